// CUDA C as host C++: threads of a block are fibers, barriers and warp operations are real, and what a GPU would refuse
// or leave undefined is an error here. It is included before TVM's text, and needs C headers only.
//
// A launch fails, with a sentence, if: threads wait at different barriers, or some have ended while others wait; lanes
// that a warp operation names don't meet in it; an index leaves an array in shared memory or of a thread; a vector is
// read or written where it isn't aligned; memory beyond an allocation's pages is touched. Shared memory holds NaN before
// a block begins, and so does what a shuffle takes from a lane that isn't there.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define __CUDACC_RTC__
#define __CUDA_ARCH__ 870
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// alignas may not follow `static` and the like, where CUDA C has it
#define alignas(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("standin_shared")))

// ---------------------------------------------------------------------------------------------------------- threads

struct standin_index {
  unsigned x, y, z;
};

static standin_index threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

namespace standin {

enum State { READY, AT_BARRIER, IN_WARP, ENDED };
enum Operation { SYNC, SHUFFLE, UP, DOWN, XOR, BALLOT };

struct Fiber {
  void *stack_pointer;
  char *stack;
  standin_index index;
  State state;
  int site;            // line of the barrier or warp operation
  unsigned mask;       // lanes that the warp operation names
  Operation operation;
  int operand, width;
  uint64_t given, taken;
};

static const size_t STACK_BYTES = 256 << 10;
static const size_t PAGE = 4096;
static Fiber fibers[1024];
static int running;
static void *scheduler;
static void (*body)(void **);
static void **arguments;
static void *dynamic_shared;
static const char *kernel_name;
static char *error_text;
static size_t error_size;
static sigjmp_buf failed;

extern "C" void standin_switch(void **save, void *load) __asm__("standin_switch");
#if defined(__x86_64__)
__asm__(".text\n.p2align 4\nstandin_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nretq\n");
static const int ENTRY = 6;  // the word that is the return address, above six saved registers
static const int FRAME = 8;  // words; afterwards the stack is as a call leaves it
#elif defined(__aarch64__)
__asm__(".text\n.p2align 4\nstandin_switch:\n"
        "sub sp, sp, #160\n"
        "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
        "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
        "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\nret\n");
static const int ENTRY = 11;  // the word that is x30
static const int FRAME = 20;  // words
#else
#error "the stand-in runs on x86-64 and aarch64"
#endif

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
  char reason[512];
  __builtin_va_list list;
  __builtin_va_start(list, format);
  vsnprintf(reason, sizeof reason, format, list);
  __builtin_va_end(list);
  snprintf(error_text, error_size, "stand-in: %s, block (%u,%u,%u), thread (%u,%u,%u): %s", kernel_name, blockIdx.x,
           blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, reason);
  siglongjmp(failed, 1);
}

static void on_fault(int signal_number, siginfo_t *info, void *) {
  fail(signal_number == SIGSEGV || signal_number == SIGBUS ? "memory is touched where none is (%p)"
                                                           : "an instruction can't be executed (%p)",
       info->si_addr);
}

static void fiber_main() {
  body(arguments);
  fibers[running].state = ENDED;
  standin_switch(&fibers[running].stack_pointer, scheduler);
  __builtin_unreachable();
}

static void reset(Fiber &fiber) {
  if (!fiber.stack) {
    fiber.stack = (char *)mmap(0, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fiber.stack == (char *)MAP_FAILED) fail("there is no memory for its stack");
    mprotect(fiber.stack, PAGE, PROT_NONE);
  }
  void **top = (void **)(fiber.stack + STACK_BYTES) - FRAME;
  memset(top, 0, FRAME * sizeof(void *));
  top[ENTRY] = (void *)fiber_main;
  fiber.stack_pointer = top;
  fiber.state = READY;
}

static void wait(State state, int site) {
  Fiber &me = fibers[running];
  me.state = state;
  me.site = site;
  standin_switch(&me.stack_pointer, scheduler);
}

static int count() { return blockDim.x * blockDim.y * blockDim.z; }

static unsigned lanes_of_warp() {
  int first = running / 32 * 32, lanes = count() - first;
  return lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
}

// ---- warp operations

static int source_lane(const Fiber &fiber, int lane) {
  int base = lane / fiber.width * fiber.width, end = base + fiber.width, source;
  switch (fiber.operation) {
    case SHUFFLE: return base + (fiber.operand & (fiber.width - 1));
    case UP: source = lane - fiber.operand; return source < base ? lane : source;
    case DOWN: source = lane + fiber.operand; return source >= end ? lane : source;
    case XOR: source = lane ^ fiber.operand; return source >= end ? lane : source;
    default: return lane;
  }
}

// Let the lanes that wait in this warp go on if all that they name are there. Whether any did.
static bool release_warp(int first, int threads) {
  int lanes = threads - first < 32 ? threads - first : 32;
  bool any = false;
  for (int lane = 0; lane < lanes; lane++) {
    Fiber &leader = fibers[first + lane];
    if (leader.state != IN_WARP) continue;
    unsigned present = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1, mask = leader.mask & present, ballot = 0;
    running = first + lane;
    threadIdx = leader.index;
    if (!(mask >> lane & 1)) fail("line %d: a warp operation's mask leaves out the lane that does it", leader.site);
    for (int other = 0; other < lanes; other++) {
      Fiber &fiber = fibers[first + other];
      if (!(mask >> other & 1)) continue;
      if (fiber.state != IN_WARP || fiber.mask != leader.mask || fiber.site != leader.site)
        fail("line %d: lane %d doesn't meet the others in a warp operation that names it", leader.site, other);
      ballot |= (fiber.given ? 1u : 0u) << other;
    }
    for (int other = 0; other < lanes; other++) {
      Fiber &fiber = fibers[first + other];
      if (!(mask >> other & 1)) continue;
      int source = source_lane(fiber, other);
      bool there = source >= 0 && source < lanes && (mask >> source & 1);
      fiber.taken = fiber.operation == BALLOT ? ballot : there ? fibers[first + source].given : ~(uint64_t)0;
    }
    for (int other = 0; other < lanes; other++)
      if (mask >> other & 1) fibers[first + other].state = READY;
    any = true;
  }
  return any;
}

// What a lane gives and what it takes are bits: a vote, or a value of up to eight bytes.
static uint64_t in_warp(Operation operation, unsigned mask, uint64_t given, int operand, int width, int site) {
  Fiber &me = fibers[running];
  me.mask = mask, me.operation = operation, me.given = given, me.operand = operand, me.width = width;
  wait(IN_WARP, site);
  return fibers[running].taken;
}

template <class T>
static T shuffle(Operation operation, unsigned mask, T value, int operand, int width, int site) {
  static_assert(sizeof(T) <= 8, "shuffles take at most eight bytes");
  uint64_t bits = 0;
  memcpy((void *)&bits, (const void *)&value, sizeof value);
  bits = in_warp(operation, mask, bits, operand, width, site);
  memcpy((void *)&value, (const void *)&bits, sizeof value);
  return value;
}

// ---- blocks

static void run(int index) {
  running = index;
  threadIdx = fibers[index].index;
  standin_switch(&scheduler, fibers[index].stack_pointer);
}

static void run_block(const int *order) {
  int threads = count();
  for (int index = 0; index < threads; index++) reset(fibers[index]);
  while (true) {
    for (int index = 0; index < threads; index++)
      if (fibers[order[index]].state == READY) run(order[index]);
    bool released = false;
    for (int first = 0; first < threads; first += 32) released |= release_warp(first, threads);
    if (released) continue;
    int ended = 0, waiting = -1;
    for (int index = 0; index < threads; index++) {
      if (fibers[index].state == ENDED) ended++;
      else if (waiting < 0) waiting = index;
    }
    if (waiting < 0) return;
    threadIdx = fibers[waiting].index;
    if (ended) fail("line %d: it waits at a barrier, where %d threads have ended", fibers[waiting].site, ended);
    for (int index = 0; index < threads; index++) {
      if (fibers[index].site != fibers[waiting].site)
        fail("it waits at the barrier of line %d, where another waits at that of line %d", fibers[waiting].site,
             fibers[index].site);
      fibers[index].state = READY;
    }
  }
}

extern "C" {
extern char __start_standin_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_standin_shared[] __attribute__((weak, visibility("hidden")));
}

__attribute__((no_sanitize("address"))) static void poison_shared(unsigned dynamic_bytes) {
#ifdef __SANITIZE_ADDRESS__  // between the arrays are gaps, at which it would stop memset
  for (volatile char *place = __start_standin_shared; place < __stop_standin_shared; place++) *place = (char)0xFF;
#else
  if (__start_standin_shared) memset(__start_standin_shared, 0xFF, __stop_standin_shared - __start_standin_shared);
#endif
  if (dynamic_bytes) memset(dynamic_shared, 0xFF, dynamic_bytes);
}

// What the order of threads and blocks is: a race may show in one and not in another.
static void set_order(int *order, int threads) {
  const char *name = getenv("TVMFLOW_STANDIN_ORDER");
  bool reverse = name && strcmp(name, "reverse") == 0, shuffled = name && strcmp(name, "shuffled") == 0;
  for (int index = 0; index < threads; index++) order[index] = reverse ? threads - 1 - index : index;
  unsigned random = 12345;
  for (int index = threads - 1; shuffled && index > 0; index--) {
    random = random * 1664525u + 1013904223u;
    int other = (int)((random >> 8) % (unsigned)(index + 1)), kept = order[index];
    order[index] = order[other], order[other] = kept;
  }
}

static int launch(const char *name, void (*kernel)(void **), bool synchronises, const unsigned *grid,
                  const unsigned *block, unsigned dynamic_bytes, void **given, char *error, size_t size) {
  static int order[1024];
  static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  struct sigaction catcher, before[4];
  kernel_name = name, body = kernel, arguments = given, error_text = error, error_size = size;
  gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
  int threads = count();
  set_order(order, threads);
  for (int index = 0; index < threads; index++)
    fibers[index].index = {index % block[0], index / block[0] % block[1], index / (block[0] * block[1])};
  memset(&catcher, 0, sizeof catcher);
  catcher.sa_sigaction = on_fault;
  catcher.sa_flags = SA_SIGINFO | SA_NODEFER;
  for (int index = 0; index < 4; index++) sigaction(SIGNALS[index], &catcher, &before[index]);
  dynamic_shared = dynamic_bytes ? aligned_alloc(1024, (dynamic_bytes + 1023) / 1024 * 1024) : 0;
  int code = sigsetjmp(failed, 1) ? 719 : 0;  // CUDA_ERROR_LAUNCH_FAILED
  if (!code)
    for (unsigned z = 0; z < grid[2]; z++)
      for (unsigned y = 0; y < grid[1]; y++)
        for (unsigned x = 0; x < grid[0]; x++) {
          blockIdx = {x, y, z};
          poison_shared(dynamic_bytes);
          if (synchronises) {
            run_block(order);
            continue;
          }
          for (int index = 0; index < threads; index++) {
            running = order[index];
            threadIdx = fibers[running].index;
            kernel(given);
          }
        }
  for (int index = 0; index < 4; index++) sigaction(SIGNALS[index], &before[index], 0);
  free(dynamic_shared);
  return code;
}

template <int... I> struct Indices {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef Indices<I...> type; };

template <class... A, int... I>
static void call_with(void (*kernel)(A...), void **given, Indices<I...>) {
  kernel(*(A *)given[I]...);
}
template <class... A>
static void call(void (*kernel)(A...), void **given) {
  call_with(kernel, given, typename Count<sizeof...(A)>::type());
}

}  // namespace standin

// What the compiler calls where it finds an index outside an array or a vector that isn't aligned.
extern "C" {
struct standin_place {
  const char *file;
  unsigned line, column;
};
__attribute__((used, visibility("hidden"))) void __ubsan_handle_out_of_bounds_abort(void *data, uintptr_t index) {
  standin::fail("line %u: index %ld is outside its array", ((standin_place *)data)->line, (long)index);
}
__attribute__((used, visibility("hidden"))) void __ubsan_handle_type_mismatch_v1_abort(void *data, uintptr_t place) {
  standin::fail("line %u: a vector is read or written at %p, where it isn't aligned", ((standin_place *)data)->line,
                (void *)place);
}
}

// -------------------------------------------------------------------------------------------------------- synchronising

#define __syncthreads() standin::wait(standin::AT_BARRIER, __LINE__)
#define __activemask() standin::lanes_of_warp()
#define __syncwarp(...) ((void)standin::in_warp(standin::SYNC, standin::named_lanes(__VA_ARGS__), 0, 0, 32, __LINE__))
#define __shfl_sync(mask, value, ...) standin::shuffle_of(standin::SHUFFLE, mask, value, __LINE__, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) standin::shuffle_of(standin::UP, mask, value, __LINE__, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) standin::shuffle_of(standin::DOWN, mask, value, __LINE__, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) standin::shuffle_of(standin::XOR, mask, value, __LINE__, __VA_ARGS__)
#define __ballot_sync(mask, value) ((unsigned)standin::in_warp(standin::BALLOT, mask, !!(value), 0, 32, __LINE__))
#define __any_sync(mask, value) (__ballot_sync(mask, value) != 0)
#define __all_sync(mask, value) (__ballot_sync(mask, !(value)) == 0)
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)

namespace standin {
static inline unsigned named_lanes(unsigned mask = 0xffffffffu) { return mask; }
template <class T>
static T shuffle_of(Operation operation, unsigned mask, T value, int site, int operand, int width = 32) {
  return shuffle(operation, mask, value, operand, width, site);
}
}  // namespace standin

// --------------------------------------------------------------------------------------------------------------- vectors

// With copies of their own, so that the compiler checks where they are read and written.
#define STANDIN_VECTORS(T, N)                                                                          \
  struct N##1 { T x; };                                                                                \
  struct alignas(2 * sizeof(T)) N##2 {                                                                 \
    T x, y;                                                                                            \
    N##2() = default;                                                                                  \
    N##2(T x, T y) : x(x), y(y) {}                                                                     \
    N##2(const N##2 &o) : x(o.x), y(o.y) {}                                                            \
    N##2 &operator=(const N##2 &o) { x = o.x, y = o.y; return *this; }                                 \
  };                                                                                                   \
  struct N##3 { T x, y, z; };                                                                          \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) N##4 {                                       \
    T x, y, z, w;                                                                                      \
    N##4() = default;                                                                                  \
    N##4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                               \
    N##4(const N##4 &o) : x(o.x), y(o.y), z(o.z), w(o.w) {}                                            \
    N##4 &operator=(const N##4 &o) { x = o.x, y = o.y, z = o.z, w = o.w; return *this; }               \
  };                                                                                                   \
  static inline N##1 make_##N##1(T x) { return {x}; }                                                  \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                          \
  static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                                  \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
STANDIN_VECTORS(signed char, char)
STANDIN_VECTORS(unsigned char, uchar)
STANDIN_VECTORS(short, short)
STANDIN_VECTORS(unsigned short, ushort)
STANDIN_VECTORS(int, int)
STANDIN_VECTORS(unsigned, uint)
STANDIN_VECTORS(long long, longlong)
STANDIN_VECTORS(unsigned long long, ulonglong)
STANDIN_VECTORS(float, float)
STANDIN_VECTORS(double, double)

// ------------------------------------------------------------------------------------------------------------ functions

#define STANDIN_EXTREMES(A, B, R)                                                                      \
  static inline R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }                                  \
  static inline R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; }
STANDIN_EXTREMES(int, int, int)
STANDIN_EXTREMES(unsigned, unsigned, unsigned)
STANDIN_EXTREMES(int, unsigned, unsigned)
STANDIN_EXTREMES(unsigned, int, unsigned)
STANDIN_EXTREMES(long, long, long)
STANDIN_EXTREMES(unsigned long, unsigned long, unsigned long)
STANDIN_EXTREMES(long long, long long, long long)
STANDIN_EXTREMES(unsigned long long, unsigned long long, unsigned long long)
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }

// macros, as the C library has some of these names for itself
#define __expf(a) expf(a)
#define __exp10f(a) powf(10.0f, a)
#define __logf(a) logf(a)
#define __log2f(a) log2f(a)
#define __log10f(a) log10f(a)
#define __sinf(a) sinf(a)
#define __cosf(a) cosf(a)
#define __tanf(a) tanf(a)
#define __tanhf(a) tanhf(a)
#define __powf(a, b) powf(a, b)
static inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float standin_rsqrtf(float a) { return 1.0f / sqrtf(a); }
#define rsqrtf standin_rsqrtf
static inline int __float2int_rn(float a) { return (int)rintf(a); }
static inline int __float2int_rz(float a) { return (int)a; }
static inline float __int2float_rn(int a) { return (float)a; }
template <class R, class T> static inline R standin_bits(T a) {
  R r;
  static_assert(sizeof(R) == sizeof(T), "bits are kept");
  memcpy((void *)&r, (const void *)&a, sizeof r);
  return r;
}
static inline float __int_as_float(int a) { return standin_bits<float>(a); }
static inline float __uint_as_float(unsigned a) { return standin_bits<float>(a); }
static inline int __float_as_int(float a) { return standin_bits<int>(a); }
static inline unsigned __float_as_uint(float a) { return standin_bits<unsigned>(a); }
static inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
static inline int __ffs(int a) { return __builtin_ffs(a); }
static inline int __popc(unsigned a) { return __builtin_popcount(a); }
static inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __dp4a(int a, int b, int c) {
  for (int byte = 0; byte < 4; byte++) c += (int)(int8_t)(a >> 8 * byte) * (int)(int8_t)(b >> 8 * byte);
  return c;
}
template <class T> static inline T __ldg(const T *place) { return *place; }
template <class T> static inline T __ldca(const T *place) { return *place; }
template <class T> static inline T __ldcg(const T *place) { return *place; }
template <class T> static inline T __ldcs(const T *place) { return *place; }

#define STANDIN_ATOMIC(NAME, T, EXPRESSION)                                                            \
  static inline T atomic##NAME(T *place, T value) {                                                    \
    T old = *place;                                                                                    \
    *place = EXPRESSION;                                                                               \
    return old;                                                                                        \
  }
STANDIN_ATOMIC(Add, int, old + value)
STANDIN_ATOMIC(Add, unsigned, old + value)
STANDIN_ATOMIC(Add, unsigned long long, old + value)
STANDIN_ATOMIC(Add, float, old + value)
STANDIN_ATOMIC(Add, double, old + value)
STANDIN_ATOMIC(Max, int, old > value ? old : value)
STANDIN_ATOMIC(Max, unsigned, old > value ? old : value)
STANDIN_ATOMIC(Min, int, old < value ? old : value)
STANDIN_ATOMIC(Min, unsigned, old < value ? old : value)

#define STANDIN_KERNEL(NAME, SYNCHRONISES)                                                                          \
  static void standin_call_##NAME(void **given) { standin::call(NAME, given); }                                     \
  extern "C" int standin_launch_##NAME(const unsigned *grid, const unsigned *block, unsigned dynamic_bytes,         \
                                       void **given, char *error, size_t size) {                                    \
    return standin::launch(#NAME, standin_call_##NAME, SYNCHRONISES, grid, block, dynamic_bytes, given, error,      \
                           size);                                                                                   \
  }                                                                                                                 \
  template <class... A> static constexpr standin::Sizes<sizeof...(A)> standin_sizes_of_##NAME(void (*)(A...)) {     \
    return {{(unsigned)sizeof(A)..., 0}};                                                                           \
  }                                                                                                                 \
  extern "C" {                                                                                                      \
  __attribute__((used)) extern const standin::Sizes<standin::count_of(NAME)> standin_sizes_##NAME =                 \
      standin_sizes_of_##NAME(NAME);                                                                                \
  }

namespace standin {
template <int N> struct Sizes { unsigned bytes[N + 1]; };
template <class... A> static constexpr int count_of(void (*)(A...)) { return sizeof...(A); }
}  // namespace standin
