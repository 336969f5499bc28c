/* The little that a Cortex-M needs before main() under qemu-system-arm, and semihosting: files and an exit code.
 *
 * Semihosting: Arm's "Semihosting for AArch32 and AArch64", calls by BKPT 0xAB.
 */
#include "startup.h"

#include <stddef.h>

extern uint32_t stack_top[], bss_begin[], bss_end[], data_begin[], data_end[], data_load[];

enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT = 0x20 };
#define APPLICATION_EXIT 0x20026u
#define STACK_PAINT 0xC5C5C5C5u

static int32_t call(int32_t operation, const void *arguments) {
  register int32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

int32_t open_file(const char *name, int32_t mode) {
  uint32_t length = 0;
  while (name[length]) length++;
  const uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, (uint32_t)mode, length};
  return call(SYS_OPEN, arguments);
}

int32_t read_file(int32_t file, void *bytes, uint32_t count) {
  const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)(uintptr_t)bytes, count};
  return call(SYS_READ, arguments) == 0;
}

int32_t write_file(int32_t file, const void *bytes, uint32_t count) {
  const uint32_t arguments[3] = {(uint32_t)file, (uint32_t)(uintptr_t)bytes, count};
  return call(SYS_WRITE, arguments) == 0;
}

void say(const char *text) { call(SYS_WRITE0, text); }

void say_number(uint32_t value) {
  char digits[11];
  int at = 10;
  digits[at] = 0;
  do {
    digits[--at] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  say(digits + at);
}

void leave(uint32_t code) {
  const uint32_t arguments[2] = {APPLICATION_EXIT, code};
  call(SYS_EXIT, arguments);
  for (;;) {
  }
}

/* What lies between `top` and these functions' own words isn't painted, and counts as used. */
static inline volatile uint32_t *own_words(void) { return stack_pointer() - 8; }

__attribute__((noinline)) void paint_stack(volatile uint32_t *top, uint32_t bytes) {
  volatile uint32_t *end = own_words();
  for (volatile uint32_t *word = top - bytes / 4; word < end; word++) *word = STACK_PAINT;
}

__attribute__((noinline)) uint32_t painted_over(volatile uint32_t *top, uint32_t bytes) {
  volatile uint32_t *word = top - bytes / 4, *end = own_words();
  while (word < end && *word == STACK_PAINT) word++;
  return 4 * (uint32_t)(top - word);
}

/* Compilers make calls of these of loops, whatever they are told. */
void *memcpy(void *restrict to, const void *restrict from, size_t count) {
  uint8_t *target = to;
  const uint8_t *source = from;
  while (count--) *target++ = *source++;
  return to;
}

void *memset(void *to, int value, size_t count) {
  uint8_t *target = to;
  while (count--) *target++ = (uint8_t)value;
  return to;
}

#if __ARM_ARCH == 6
/* On these cores compilers call them by Arm's own names of its run-time interface. */
void __aeabi_memcpy(void *to, const void *from, size_t count) { memcpy(to, from, count); }
void __aeabi_memcpy4(void *to, const void *from, size_t count) { memcpy(to, from, count); }
void __aeabi_memcpy8(void *to, const void *from, size_t count) { memcpy(to, from, count); }
void __aeabi_memset(void *to, size_t count, int value) { memset(to, value, count); }
void __aeabi_memset4(void *to, size_t count, int value) { memset(to, value, count); }
void __aeabi_memset8(void *to, size_t count, int value) { memset(to, value, count); }
void __aeabi_memclr(void *to, size_t count) { memset(to, 0, count); }
void __aeabi_memclr4(void *to, size_t count) { memset(to, 0, count); }
void __aeabi_memclr8(void *to, size_t count) { memset(to, 0, count); }
#endif

static void fault(void) {
  say("the processor met a fault\n");
  leave(2);
}

static void reset(void) {
#ifdef __ARM_FP
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: floating point and MVE */
  __asm__ volatile("dsb\nisb");
#endif
  for (uint32_t *to = data_begin, *from = data_load; to < data_end;) *to++ = *from++;
  for (uint32_t *to = bss_begin; to < bss_end;) *to++ = 0;
  leave((uint32_t)main());
}

extern const void *const vectors[16];
__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    stack_top, (const void *)reset, (const void *)fault, (const void *)fault, (const void *)fault, (const void *)fault,
    (const void *)fault};
