// float16 on the host, as far as TVM's kernels use it. Each operation rounds once, like the GPU's.
#pragma once

struct __half {
  _Float16 value;
  __half() = default;
  __half(_Float16 v) : value(v) {}
  __half(float v) : value((_Float16)v) {}
  __half(double v) : value((_Float16)v) {}
  __half(int v) : value((_Float16)v) {}
  __half(unsigned v) : value((_Float16)v) {}
  __half(long v) : value((_Float16)v) {}
  operator float() const { return (float)value; }
  __half &operator+=(__half b) { value = value + b.value; return *this; }
  __half &operator-=(__half b) { value = value - b.value; return *this; }
  __half &operator*=(__half b) { value = value * b.value; return *this; }
  __half &operator/=(__half b) { value = value / b.value; return *this; }
};
typedef __half half;

static inline __half operator+(__half a, __half b) { return (_Float16)(a.value + b.value); }
static inline __half operator-(__half a, __half b) { return (_Float16)(a.value - b.value); }
static inline __half operator*(__half a, __half b) { return (_Float16)(a.value * b.value); }
static inline __half operator/(__half a, __half b) { return (_Float16)(a.value / b.value); }
static inline __half operator-(__half a) { return (_Float16)-a.value; }
static inline bool operator==(__half a, __half b) { return a.value == b.value; }
static inline bool operator!=(__half a, __half b) { return a.value != b.value; }
static inline bool operator<(__half a, __half b) { return a.value < b.value; }
static inline bool operator>(__half a, __half b) { return a.value > b.value; }
static inline bool operator<=(__half a, __half b) { return a.value <= b.value; }
static inline bool operator>=(__half a, __half b) { return a.value >= b.value; }

static inline float __half2float(__half a) { return (float)a.value; }
static inline __half __float2half(float a) { return a; }
static inline __half __float2half_rn(float a) { return a; }
static inline __half __double2half(double a) { return a; }
static inline bool __heq(__half a, __half b) { return a == b; }
static inline bool __hne(__half a, __half b) { return a != b; }
static inline bool __hlt(__half a, __half b) { return a < b; }
static inline bool __hle(__half a, __half b) { return a <= b; }
static inline bool __hgt(__half a, __half b) { return a > b; }
static inline bool __hge(__half a, __half b) { return a >= b; }
static inline bool __hisnan(__half a) { return a.value != a.value; }
static inline __half __hadd(__half a, __half b) { return a + b; }
static inline __half __hsub(__half a, __half b) { return a - b; }
static inline __half __hmul(__half a, __half b) { return a * b; }
static inline __half __hdiv(__half a, __half b) { return a / b; }
static inline __half __hneg(__half a) { return -a; }
static inline __half __habs(__half a) { return a.value < 0 ? -a : a; }
static inline __half __hmax(__half a, __half b) { return a.value < b.value || __hisnan(a) ? b : a; }
static inline __half __hmin(__half a, __half b) { return b.value < a.value || __hisnan(a) ? b : a; }
static inline __half __hfma(__half a, __half b, __half c) {
  return (_Float16)((double)a.value * (double)b.value + (double)c.value);
}
static inline __half hexp(__half a) { return expf(a); }
static inline __half hexp2(__half a) { return exp2f(a); }
static inline __half hexp10(__half a) { return powf(10.0f, a); }
static inline __half hlog(__half a) { return logf(a); }
static inline __half hlog2(__half a) { return log2f(a); }
static inline __half hlog10(__half a) { return log10f(a); }
static inline __half hsqrt(__half a) { return sqrtf(a); }
static inline __half hrsqrt(__half a) { return 1.0f / sqrtf(a); }
static inline __half hrcp(__half a) { return 1.0f / (float)a; }
static inline __half hsin(__half a) { return sinf(a); }
static inline __half hcos(__half a) { return cosf(a); }
static inline __half htanh(__half a) { return tanhf(a); }
static inline __half hfloor(__half a) { return floorf(a); }
static inline __half hceil(__half a) { return ceilf(a); }
static inline __half htrunc(__half a) { return truncf(a); }
static inline __half hrint(__half a) { return rintf(a); }

struct alignas(4) __half2 {
  __half x, y;
};
typedef __half2 half2;

static inline __half2 make_half2(__half x, __half y) { return {x, y}; }
static inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
static inline __half2 __half2half2(__half x) { return {x, x}; }
static inline __half2 __float2half2_rn(float x) { return {x, x}; }
static inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
static inline __half __low2half(__half2 a) { return a.x; }
static inline __half __high2half(__half2 a) { return a.y; }
static inline float __low2float(__half2 a) { return a.x; }
static inline float __high2float(__half2 a) { return a.y; }
static inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
static inline __half2 operator+(__half2 a, __half2 b) { return {a.x + b.x, a.y + b.y}; }
static inline __half2 operator-(__half2 a, __half2 b) { return {a.x - b.x, a.y - b.y}; }
static inline __half2 operator*(__half2 a, __half2 b) { return {a.x * b.x, a.y * b.y}; }
static inline __half2 __hadd2(__half2 a, __half2 b) { return a + b; }
static inline __half2 __hsub2(__half2 a, __half2 b) { return a - b; }
static inline __half2 __hmul2(__half2 a, __half2 b) { return a * b; }
static inline __half2 __hmax2(__half2 a, __half2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
static inline __half2 __hmin2(__half2 a, __half2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
