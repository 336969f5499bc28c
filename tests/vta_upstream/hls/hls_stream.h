// A stream as an endless queue.
#pragma once
#include <cstdlib>
#include <deque>

namespace hls {
template <class T> struct stream {
  std::deque<T> queue;
  bool empty() const { return queue.empty(); }
  void write(const T &value) { queue.push_back(value); }
  bool read_nb(T &value) {
    if (queue.empty()) return false;
    value = queue.front();
    queue.pop_front();
    return true;
  }
  void read(T &value) {
    if (!read_nb(value)) std::abort();
  }
  T read() {
    T value;
    read(value);
    return value;
  }
};
}  // namespace hls
