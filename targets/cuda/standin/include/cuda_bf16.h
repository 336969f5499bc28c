// bfloat16 on the host, as far as TVM's kernels use it. Operations are float's, rounded once to the nearest even.
#pragma once
#include <stdint.h>
#include <string.h>

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float v) {
    uint32_t wide;
    memcpy(&wide, &v, sizeof wide);
    bits = v != v ? (uint16_t)(wide >> 16 | 0x40) : (uint16_t)((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  __nv_bfloat16(double v) : __nv_bfloat16((float)v) {}
  __nv_bfloat16(int v) : __nv_bfloat16((float)v) {}
  __nv_bfloat16(unsigned v) : __nv_bfloat16((float)v) {}
  __nv_bfloat16(long v) : __nv_bfloat16((float)v) {}
  operator float() const {
    uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, sizeof v);
    return v;
  }
  __nv_bfloat16 &operator+=(__nv_bfloat16 b) { return *this = (float)*this + (float)b; }
  __nv_bfloat16 &operator-=(__nv_bfloat16 b) { return *this = (float)*this - (float)b; }
  __nv_bfloat16 &operator*=(__nv_bfloat16 b) { return *this = (float)*this * (float)b; }
  __nv_bfloat16 &operator/=(__nv_bfloat16 b) { return *this = (float)*this / (float)b; }
};
typedef __nv_bfloat16 nv_bfloat16;

static inline __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a + (float)b; }
static inline __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a - (float)b; }
static inline __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a * (float)b; }
static inline __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a / (float)b; }
static inline __nv_bfloat16 operator-(__nv_bfloat16 a) { return -(float)a; }
static inline bool operator==(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a == (float)b; }
static inline bool operator!=(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a != (float)b; }
static inline bool operator<(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a < (float)b; }
static inline bool operator>(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a > (float)b; }
static inline bool operator<=(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a <= (float)b; }
static inline bool operator>=(__nv_bfloat16 a, __nv_bfloat16 b) { return (float)a >= (float)b; }

static inline float __bfloat162float(__nv_bfloat16 a) { return a; }
static inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
static inline __nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
static inline bool __hlt(__nv_bfloat16 a, __nv_bfloat16 b) { return a < b; }
static inline bool __hgt(__nv_bfloat16 a, __nv_bfloat16 b) { return a > b; }
static inline bool __hisnan(__nv_bfloat16 a) { return a != a; }
static inline __nv_bfloat16 __habs(__nv_bfloat16 a) { return fabsf(a); }
static inline __nv_bfloat16 hexp(__nv_bfloat16 a) { return expf(a); }
static inline __nv_bfloat16 hlog(__nv_bfloat16 a) { return logf(a); }
static inline __nv_bfloat16 hsqrt(__nv_bfloat16 a) { return sqrtf(a); }
static inline __nv_bfloat16 hrsqrt(__nv_bfloat16 a) { return 1.0f / sqrtf(a); }
static inline __nv_bfloat16 hsin(__nv_bfloat16 a) { return sinf(a); }
static inline __nv_bfloat16 hcos(__nv_bfloat16 a) { return cosf(a); }
static inline __nv_bfloat16 htanh(__nv_bfloat16 a) { return tanhf(a); }
static inline __nv_bfloat16 hfloor(__nv_bfloat16 a) { return floorf(a); }
static inline __nv_bfloat16 hceil(__nv_bfloat16 a) { return ceilf(a); }
static inline __nv_bfloat16 htrunc(__nv_bfloat16 a) { return truncf(a); }
static inline __nv_bfloat16 hrint(__nv_bfloat16 a) { return rintf(a); }

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
typedef __nv_bfloat162 nv_bfloat162;

static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
static inline float __low2float(__nv_bfloat162 a) { return a.x; }
static inline float __high2float(__nv_bfloat162 a) { return a.y; }
