/* Calls of CMSIS-NN on the host's input.raw (H×W×C); writes output.raw, what the last call that ran made.
 *
 * calls.h has the table of calls; calls.raw, two int32, says which is the first to run and how many do. A call reads what the one before
 * made, and a sum of two tensors reads both from there, one behind the other. Kernels are chosen by the library itself, by its wrappers.
 */
#include "arm_nnfunctions.h"
#include "arm_nnsupportfunctions.h"
#include "startup.h"

enum { CONVOLUTION, DEPTHWISE, POOL, MAX_POOL, DENSE, ADD, SOFTMAX };

#define WIDER 20 /* bits by which TensorFlow Lite shifts what it adds */

struct call {
  int32_t kind, in[3], out[3], kernel[2], stride[2], padding[2], dilation[2]; /* rows, columns, channels */
  int32_t input_offset, second_offset, output_offset, least, most, of_channels, sums;
  const int8_t *weight;
  const int32_t *bias;
  int32_t *multiplier, *shift;
};

extern const uint8_t constants[];

#include "calls.h"

static int8_t activations[2][LARGEST] __attribute__((aligned(16)));
static int8_t scratch[SCRATCH] __attribute__((aligned(16)));
static int32_t kernel_sums[SUMS];

static arm_cmsis_nn_status run(const struct call *call, const int8_t *input, int8_t *output) {
  const cmsis_nn_dims in = {1, call->in[0], call->in[1], call->in[2]};
  const cmsis_nn_dims out = {1, call->out[0], call->out[1], call->out[2]};
  const cmsis_nn_dims bias = {1, 1, 1, call->out[2]};
  const cmsis_nn_tile stride = {call->stride[1], call->stride[0]}, padding = {call->padding[1], call->padding[0]};
  const cmsis_nn_tile dilation = {call->dilation[1], call->dilation[0]};
  const cmsis_nn_activation activation = {call->least, call->most};
  const cmsis_nn_per_channel_quant_params channels = {call->multiplier, call->shift};
  cmsis_nn_context context = {scratch, sizeof scratch};
  if (call->kind == CONVOLUTION) {
    const cmsis_nn_conv_params given = {call->input_offset, call->output_offset, stride, padding, dilation, activation};
    const cmsis_nn_dims filter = {call->out[2], call->kernel[0], call->kernel[1], call->in[2]};
    if (arm_convolve_wrapper_s8_get_buffer_size(&given, &in, &filter, &out) > SCRATCH) return ARM_CMSIS_NN_ARG_ERROR;
    return arm_convolve_wrapper_s8(&context, &given, &channels, &in, input, &filter, call->weight, &bias, call->bias,
                                   &out, output);
  }
  if (call->kind == DEPTHWISE) {
    const cmsis_nn_dw_conv_params given = {
        call->input_offset, call->output_offset, 1, stride, padding, dilation, activation};
    const cmsis_nn_dims filter = {1, call->kernel[0], call->kernel[1], call->out[2]};
    if (arm_depthwise_conv_wrapper_s8_get_buffer_size(&given, &in, &filter, &out) > SCRATCH)
      return ARM_CMSIS_NN_ARG_ERROR;
    return arm_depthwise_conv_wrapper_s8(&context, &given, &channels, &in, input, &filter, call->weight, &bias,
                                         call->bias, &out, output);
  }
  if (call->kind == POOL || call->kind == MAX_POOL) {
    const cmsis_nn_pool_params given = {stride, padding, activation};
    const cmsis_nn_dims filter = {1, call->kernel[0], call->kernel[1], 1};
    if (call->kind == MAX_POOL) return arm_max_pool_s8(&context, &given, &in, input, &filter, &out, output);
    return arm_avgpool_s8(&context, &given, &in, input, &filter, &out, output);
  }
  const int32_t elements = call->in[0] * call->in[1] * call->in[2];
  const int32_t *by = call->multiplier, *shift = call->shift;
  if (call->kind == ADD) {
    return arm_elementwise_add_s8(input, input + elements, call->input_offset, by[0], shift[0], call->second_offset, by[1],
                                  shift[1], WIDER, output, call->output_offset, by[2], shift[2], call->least, call->most,
                                  elements);
  }
  if (call->kind == SOFTMAX) {
    arm_softmax_s8(input, elements / call->in[2], call->in[2], by[0], shift[0], call->least, output);
    return ARM_CMSIS_NN_SUCCESS;
  }
  const cmsis_nn_fc_params given = {call->input_offset, 0, call->output_offset, activation};
  const cmsis_nn_quant_params quantised = {call->multiplier, call->shift, call->of_channels};
  const cmsis_nn_dims filter = {call->in[2], 1, 1, call->out[2]};
  context.buf = kernel_sums + call->sums;
  return arm_fully_connected_wrapper_s8(&context, &given, &quantised, &in, input, &filter, call->weight, &bias,
                                        call->bias, &out, output);
}

int main(void) {
  int32_t which[2];
  if (!read_file(open_file("calls.raw", READ_BINARY), which, sizeof which)) return 3;
  const struct call *first = &calls[which[0]], *end = first + which[1];
  for (const struct call *call = calls; call < calls + CALLS; call++)
    if (call->kind == DENSE) /* what MVE's dense kernel wants is of the weights alone, so that nobody computes it again */
      arm_vector_sum_s8(kernel_sums + call->sums, call->in[2], call->out[2], call->weight, call->input_offset, 0,
                        call->bias);
  const int32_t inputs = open_file("input.raw", READ_BINARY), outputs = open_file("output.raw", WRITE_BINARY);
  const uint32_t size = (uint32_t)(first->in[0] * first->in[1] * first->in[2]) * (first->kind == ADD ? 2 : 1);
  while (read_file(inputs, activations[0], size)) {
    int at = 0;
    for (const struct call *call = first; call < end; call++, at = !at)
      if (run(call, activations[at], activations[!at]) != ARM_CMSIS_NN_SUCCESS) {
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
