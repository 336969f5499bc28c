/* Run a network that tvmflow has compiled, from C or C++, without Python.
 *
 * Link with libtvmflow.so, which needs libtvm_ffi.so and libtvm_runtime.so beside it. A network may be used by one thread
 * at a time; the environment variable TVM_NUM_THREADS bounds the threads that a run itself uses.
 */
#ifndef TVMFLOW_H_
#define TVMFLOW_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TVMFLOW_MAX_DIMS 8

typedef struct tvmflow_network tvmflow_network;

/* An input or output: dense, in C order. `dtype` is NumPy's name, such as "float32", or "bfloat16". */
typedef struct {
  const char *name;
  const char *dtype;
  int32_t ndim;
  int64_t shape[TVMFLOW_MAX_DIMS];
  size_t bytes;
} tvmflow_tensor;

/* Load the network of a bundle's folder. NULL if that fails; tvmflow_error() says why. */
tvmflow_network *tvmflow_load(const char *bundle);

/* The inputs and outputs in order; NULL beyond the last. */
const tvmflow_tensor *tvmflow_input(const tvmflow_network *network, int index);
const tvmflow_tensor *tvmflow_output(const tvmflow_network *network, int index);

/* The golden vectors' names in order; NULL beyond the last. */
const char *tvmflow_vector(const tvmflow_network *network, int index);

/* By how much the elements of an output may differ from those of a golden vector: |difference|, 0 where they may not. */
double tvmflow_tolerance(const tvmflow_network *network, int vector, int output);

/* One inference. inputs[i] and outputs[i] point to as many bytes as the tensors have. 0, or -1 and tvmflow_error(). */
int tvmflow_run(tvmflow_network *network, const void *const *inputs, void *const *outputs);

/* Inference without the copies, for measuring: on the inputs of the last tvmflow_run. 0, or -1 and tvmflow_error(). */
int tvmflow_run_again(tvmflow_network *network);

/* What the kernels of an inference do, in their order; NULL beyond the last, and where they can't be timed apart. */
const char *tvmflow_kernel(const tvmflow_network *network, int index);

/* tvmflow_run_again that also says how long each kernel took, in microseconds. 0, or -1 and tvmflow_error(). */
int tvmflow_profile(tvmflow_network *network, double *microseconds);

/* tvmflow_run that hands over what each kernel leaves, by its number, before the next one begins. 0, or -1 and
 * tvmflow_error(). */
int tvmflow_capture(tvmflow_network *network, const void *const *inputs, void *const *outputs,
                    void (*left)(int kernel, const void *data, size_t bytes));

void tvmflow_free(tvmflow_network *network);

/* What went wrong last. */
const char *tvmflow_error(void);

#ifdef __cplusplus
}
#endif

#endif /* TVMFLOW_H_ */
