/* A board with PYNQ up to 2.6: registers by /dev/mem, contiguous memory by libcma.so, which is loaded when needed. */
#define _DEFAULT_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vta_driver.h"

enum { REGISTER_BYTES = 0x4000 };

static struct {
  volatile uint32_t *registers;
  uint64_t base;
  void *(*allocate)(uint32_t bytes, uint32_t cached);
  unsigned long (*physical)(void *data);
  void (*release)(void *data);
  void (*flush)(void *data, unsigned physical, int bytes);
  void (*invalidate)(void *data, unsigned physical, int bytes);
} hardware;

static uint32_t read_register(void *context, uint64_t address) {
  (void)context;
  return hardware.registers[(address - hardware.base) / 4];
}

static void write_register(void *context, uint64_t address, uint32_t value) {
  (void)context;
  hardware.registers[(address - hardware.base) / 4] = value;
}

static int allocate(void *context, size_t bytes, vta_memory *memory) {
  (void)context;
  memory->data = hardware.allocate((uint32_t)bytes, 0);
  if (!memory->data || memory->data == (uint8_t *)-1) {
    memory->data = NULL;
    return -1;
  }
  memory->bytes = bytes;
  memory->physical = hardware.physical(memory->data);
  return 0;
}

static void release(void *context, vta_memory *memory) {
  (void)context;
  hardware.release(memory->data);
}

static void flush(void *context, const vta_memory *memory) {
  (void)context;
  hardware.flush(memory->data, (unsigned)memory->physical, (int)memory->bytes);
}

static void invalidate(void *context, const vta_memory *memory) {
  (void)context;
  hardware.invalidate(memory->data, (unsigned)memory->physical, (int)memory->bytes);
}

static double seconds(void *context) {
  (void)context;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void pause_shortly(void *context) {
  (void)context;
  struct timespec microsecond = {0, 1000};
  nanosleep(&microsecond, NULL);
}

/* Reading registers of an FPGA that is not configured would hang the processor. */
static int check_bitstream(void) {
  FILE *file = fopen("/sys/class/fpga_manager/fpga0/state", "r");
  char state[64] = "operating";
  if (!file) return 0; /* an older kernel, which doesn't say */
  if (fgets(state, sizeof state, file)) state[strcspn(state, "\n")] = 0;
  fclose(file);
  if (strcmp(state, "operating") == 0) return 0;
  return vta_fail("No bitstream is loaded (the FPGA is '%s').", state);
}

/* The functions of libcma.so, or -1. ISO C has no cast from an object's to a function's address: copied instead. */
static int find(void *library, const char *name, void *function) {
  void *found = dlsym(library, name);
  if (!found) return vta_fail("libcma.so has no %s.", name);
  memcpy(function, &found, sizeof found);
  return 0;
}

int vta_linux_open(vta_board *board, uint64_t base) {
  if (check_bitstream()) return -1;
  void *library = dlopen("libcma.so", RTLD_NOW);
  if (!library) return vta_fail("libcma.so is not here to allocate contiguous memory; PYNQ images up to 2.6 have it.");
  if (find(library, "cma_alloc", &hardware.allocate) || find(library, "cma_get_phy_addr", &hardware.physical) ||
      find(library, "cma_free", &hardware.release) || find(library, "cma_flush_cache", &hardware.flush) ||
      find(library, "cma_invalidate_cache", &hardware.invalidate))
    return -1;
  int memory = open("/dev/mem", O_RDWR | O_SYNC);
  if (memory < 0) return vta_fail("/dev/mem can't be opened (%s); the driver runs as root.", strerror(errno));
  void *mapped = mmap(NULL, REGISTER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory, (off_t)base);
  close(memory);
  if (mapped == MAP_FAILED) return vta_fail("The registers at 0x%llx can't be mapped.", (unsigned long long)base);
  hardware.registers = mapped;
  hardware.base = base;
  *board = (vta_board){NULL,  read_register, write_register, allocate,     release,
                       flush, invalidate,    seconds,        pause_shortly};
  return 0;
}
