/* What startup.c gives the programs that run under qemu-system-arm: files of the host by semihosting, text, an end. */
#ifndef STARTUP_H
#define STARTUP_H

#include <stddef.h>
#include <stdint.h>

enum { READ_BINARY = 1, WRITE_BINARY = 5 };

int main(void);
int32_t open_file(const char *name, int32_t mode);                        /* -1 if there is none */
int32_t read_file(int32_t file, void *bytes, uint32_t count);             /* whether all were there */
int32_t write_file(int32_t file, const void *bytes, uint32_t count);
void say(const char *text);
void say_number(uint32_t value);
void leave(uint32_t code);
void paint_stack(volatile uint32_t *top, uint32_t bytes);
uint32_t painted_over(volatile uint32_t *top, uint32_t bytes); /* bytes below `top` used since these were painted */
void *memcpy(void *restrict to, const void *restrict from, size_t count);

/* Where the stack of the function ends that asks: what it calls lies below, the return address first. */
static inline __attribute__((always_inline)) volatile uint32_t *stack_pointer(void) {
  volatile uint32_t *pointer;
  __asm__ volatile("mov %0, sp" : "=r"(pointer));
  return pointer;
}

#endif
