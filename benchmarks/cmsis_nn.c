/* A network by CMSIS-NN's kernels, on the host's input.raw (H×W×C); writes output.raw, what the last layer that ran made.
 *
 * layers.h has the table of layers; layers.raw, two int32, says which is the first to run and how many do. Kernels are chosen by the library
 * itself, by its wrappers.
 */
#include "arm_nnfunctions.h"
#include "arm_nnsupportfunctions.h"
#include "startup.h"

enum { CONVOLUTION, DEPTHWISE, POOL, DENSE };

struct layer {
  int32_t kind, in[3], out[3], kernel[2], stride[2], padding[2], dilation[2]; /* rows, columns, channels */
  int32_t input_offset, output_offset, least, most;
  const int8_t *weight;
  const int32_t *bias;
  int32_t *multiplier, *shift;
};

extern const uint8_t constants[];

#include "layers.h"

static int8_t activations[2][LARGEST] __attribute__((aligned(16)));
static int8_t scratch[SCRATCH] __attribute__((aligned(16)));
static int32_t kernel_sums[CLASSES];

static arm_cmsis_nn_status run(const struct layer *layer, const int8_t *input, int8_t *output) {
  const cmsis_nn_dims in = {1, layer->in[0], layer->in[1], layer->in[2]};
  const cmsis_nn_dims out = {1, layer->out[0], layer->out[1], layer->out[2]};
  const cmsis_nn_dims bias = {1, 1, 1, layer->out[2]};
  const cmsis_nn_tile stride = {layer->stride[1], layer->stride[0]}, padding = {layer->padding[1], layer->padding[0]};
  const cmsis_nn_tile dilation = {layer->dilation[1], layer->dilation[0]};
  const cmsis_nn_activation activation = {layer->least, layer->most};
  const cmsis_nn_per_channel_quant_params channels = {layer->multiplier, layer->shift};
  cmsis_nn_context context = {scratch, sizeof scratch};
  if (layer->kind == CONVOLUTION) {
    const cmsis_nn_conv_params given = {layer->input_offset, layer->output_offset, stride, padding, dilation, activation};
    const cmsis_nn_dims filter = {layer->out[2], layer->kernel[0], layer->kernel[1], layer->in[2]};
    if (arm_convolve_wrapper_s8_get_buffer_size(&given, &in, &filter, &out) > SCRATCH) return ARM_CMSIS_NN_ARG_ERROR;
    return arm_convolve_wrapper_s8(&context, &given, &channels, &in, input, &filter, layer->weight, &bias, layer->bias,
                                   &out, output);
  }
  if (layer->kind == DEPTHWISE) {
    const cmsis_nn_dw_conv_params given = {
        layer->input_offset, layer->output_offset, 1, stride, padding, dilation, activation};
    const cmsis_nn_dims filter = {1, layer->kernel[0], layer->kernel[1], layer->out[2]};
    if (arm_depthwise_conv_wrapper_s8_get_buffer_size(&given, &in, &filter, &out) > SCRATCH)
      return ARM_CMSIS_NN_ARG_ERROR;
    return arm_depthwise_conv_wrapper_s8(&context, &given, &channels, &in, input, &filter, layer->weight, &bias,
                                         layer->bias, &out, output);
  }
  if (layer->kind == POOL) {
    const cmsis_nn_pool_params given = {stride, padding, activation};
    const cmsis_nn_dims filter = {1, layer->kernel[0], layer->kernel[1], 1};
    return arm_avgpool_s8(&context, &given, &in, input, &filter, &out, output);
  }
  const cmsis_nn_fc_params given = {layer->input_offset, 0, layer->output_offset, activation};
  const cmsis_nn_quant_params quantised = {layer->multiplier, layer->shift, 1};
  const cmsis_nn_dims filter = {layer->in[2], 1, 1, layer->out[2]};
  context.buf = kernel_sums;
  return arm_fully_connected_wrapper_s8(&context, &given, &quantised, &in, input, &filter, layer->weight, &bias,
                                        layer->bias, &out, output);
}

int main(void) {
  int32_t which[2];
  if (!read_file(open_file("layers.raw", READ_BINARY), which, sizeof which)) return 3;
  const struct layer *first = &layers[which[0]], *end = first + which[1];
  const struct layer *last = &layers[LAYERS - 1];
  if (last->kind == DENSE) /* what MVE's dense kernel wants is of the weights alone, so that nobody computes it again */
    arm_vector_sum_s8(kernel_sums, last->in[2], last->out[2], last->weight, last->input_offset, 0, last->bias);
  const int32_t inputs = open_file("input.raw", READ_BINARY), outputs = open_file("output.raw", WRITE_BINARY);
  const uint32_t size = (uint32_t)(first->in[0] * first->in[1] * first->in[2]);
  while (read_file(inputs, activations[0], size)) {
    int at = 0;
    for (const struct layer *layer = first; layer < end; layer++, at = !at)
      if (run(layer, activations[at], activations[!at]) != ARM_CMSIS_NN_SUCCESS) {
        say("refused\n");
        return 3;
      }
    const int32_t *made = first < end ? end[-1].out : first->in;
    if (!write_file(outputs, activations[at], (uint32_t)(made[0] * made[1] * made[2]))) return 3;
  }
  return 0;
}

/* As good libraries have them: words wherever there is one, MVE's kernels bring their own. */
typedef uint32_t __attribute__((may_alias, aligned(1))) word;
#define COPIES __attribute__((optimize("no-tree-loop-distribute-patterns"))) /* gcc would make them call themselves */

COPIES void *memcpy(void *restrict to, const void *restrict from, size_t count) {
  uint8_t *target = to;
  const uint8_t *source = from;
  for (; count >= 16; count -= 16, target += 16, source += 16)
    for (int part = 0; part < 4; part++) ((word *)target)[part] = ((const word *)source)[part];
  for (; count >= 4; count -= 4, target += 4, source += 4) *(word *)target = *(const word *)source;
  while (count--) *target++ = *source++;
  return to;
}

COPIES void *memset(void *to, int value, size_t count) {
  uint8_t *target = to;
  const uint32_t four = 0x01010101u * (uint8_t)value;
  for (; count >= 16; count -= 16, target += 16)
    for (int part = 0; part < 4; part++) ((word *)target)[part] = four;
  while (count--) *target++ = (uint8_t)value;
  return to;
}
