// Integers of N bits in the smallest machine integer of 32, 64 or 128 bits.
#pragma once
#include <cstdint>
#include <type_traits>

template <int N, class A, class B, class C>
using Fitting = typename std::conditional<(N <= 32), A, typename std::conditional<(N <= 64), B, C>::type>::type;

template <class T> using IfNumber = typename std::enable_if<std::is_convertible<T, int64_t>::value>::type;

// Bits high … low of a word, at most 64 of them, to read and to write.
template <class Word> struct Bits {
  Word *word;
  int high, low;
  Word mask() const {
    int bits = high - low + 1;
    return bits >= int(sizeof(Word)) * 8 ? ~Word(0) : (Word(1) << bits) - 1;
  }
  operator uint64_t() const { return uint64_t(*word >> low & mask()); }
  template <class T> Bits &operator=(const T &value) {
    *word = (*word & ~(mask() << low)) | (Word(int64_t(value)) & mask()) << low;
    return *this;
  }
};

template <int N> struct ap_uint {
  using Word = Fitting<N, uint32_t, uint64_t, unsigned __int128>;
  Word word = 0;
  static Word cut(Word value) {
    constexpr int spare = int(sizeof(Word)) * 8 - N;
    return Word(value << spare) >> spare;
  }
  ap_uint() = default;
  ap_uint(const ap_uint &) = default;
  ap_uint(const volatile ap_uint &other) : word(other.word) {}
  template <class T, class = IfNumber<T>> ap_uint(const T &value) : word(cut(Word(value))) {}
  ap_uint &operator=(const ap_uint &) = default;
  operator Word() const { return word; }
  Bits<Word> range(int high, int low) { return {&word, high, low}; }
  template <class T> ap_uint &operator+=(const T &value) { return *this = ap_uint(Word(word + Word(value))); }
  ap_uint operator++(int) {
    ap_uint before = *this;
    *this += 1;
    return before;
  }
};

template <int N> struct ap_int {
  using Word = Fitting<N, int32_t, int64_t, __int128>;
  using Unsigned = Fitting<N, uint32_t, uint64_t, unsigned __int128>;
  Word word = 0;
  static Word cut(Unsigned value) {
    constexpr int spare = int(sizeof(Word)) * 8 - N;
    return Word(value << spare) >> spare;
  }
  ap_int() = default;
  template <class T, class = IfNumber<T>> ap_int(const T &value) : word(cut(Unsigned(int64_t(value)))) {}
  operator Word() const { return word; }
  Bits<Unsigned> range(int high, int low) { return {reinterpret_cast<Unsigned *>(&word), high, low}; }
  template <class T> ap_int &operator+=(const T &value) {
    word = cut(Unsigned(word) + Unsigned(Word(value)));
    return *this;
  }
};

// A negative amount shifts the other way.
inline ap_int<32> operator>>(const ap_int<32> &value, const ap_int<5> &amount) {
  if (amount.word < 0) return int32_t(uint32_t(value.word) << -amount.word);
  return value.word >> amount.word;
}
