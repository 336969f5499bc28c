/* Run a VTA program on a board, from C. docs/vta.md has the files and the registers.
 *
 * The driver reaches hardware through the functions of a vta_board: vta_linux.c has those of a board with PYNQ; others
 * can be given, such as those of a fake board. A device may be used by one thread at a time.
 */
#ifndef VTA_DRIVER_H_
#define VTA_DRIVER_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uint8_t *data;
  uint64_t physical; /* its address for the accelerator */
  size_t bytes;
} vta_memory;

typedef struct {
  void *context; /* given to every function */
  uint32_t (*read)(void *context, uint64_t address);
  void (*write)(void *context, uint64_t address, uint32_t value);
  int (*allocate)(void *context, size_t bytes, vta_memory *memory); /* contiguous; 0, or -1 if there is none left */
  void (*release)(void *context, vta_memory *memory);
  void (*flush)(void *context, const vta_memory *memory);      /* before the accelerator reads */
  void (*invalidate)(void *context, const vta_memory *memory); /* before the processor reads */
  double (*seconds)(void *context);
  void (*pause)(void *context); /* between two looks at the registers */
} vta_board;

/* HLS has four blocks of registers from `base` on, Chisel one. */
typedef enum { VTA_HLS = 0, VTA_CHISEL = 1 } vta_core;

typedef struct vta_device vta_device;

/* Load the program in `folder`. NULL if that fails; vta_error() says why. `board` has to outlive the device. */
vta_device *vta_open(const vta_board *board, const char *folder, vta_core core, uint64_t base, double timeout_s);

/* Elements of all inputs and of all outputs in C order, 1×C×H×W, one behind the other: int8, or uint8 where layout.json
 * says so. */
size_t vta_input_elements(const vta_device *device);
size_t vta_output_elements(const vta_device *device);

/* One inference. 0, or -1 and vta_error(). */
int vta_run(vta_device *device, const int8_t *input, int8_t *output);

/* How long the last run took, and in cycles of the accelerator, where the core counts them; else 0. */
double vta_seconds(const vta_device *device);
uint32_t vta_cycles(const vta_device *device);

/* Run what is in a bundle's runner/selftest, to know whether the core speaks the program's instruction set. 0, or -1. */
int vta_self_test(const vta_board *board, const char *place, vta_core core, uint64_t base);

void vta_close(vta_device *device);

/* What went wrong last, in one sentence. */
const char *vta_error(void);

/* vta_linux.c: a board with PYNQ up to 2.6, by /dev/mem and libcma.so. 0, or -1 and vta_error(). */
int vta_linux_open(vta_board *board, uint64_t base);

/* Remember a sentence for vta_error(); for boards. */
int vta_fail(const char *format, ...);

#ifdef __cplusplus
}
#endif

#endif /* VTA_DRIVER_H_ */
