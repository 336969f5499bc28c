/* Runs the network of tensors.h on every vector in the host's input.raw and writes output.raw; as long as expected.raw
 * has outputs, they are compared here, on the device, each by its number in allowed.raw. Says how many vectors there
 * were, how many outputs differed, and how deep the stack became. In the files a vector's tensors follow each other.
 * KEEP_STATE copies the outputs that are inputs of the next call. */
#include "agrees.h"
#include "startup.h"

struct tensor {
  void *bytes, *expected;
  uint32_t size;
  int kind;
  uint32_t elements;
};

#include "tensors.h"

static float allowed[OUTPUTS];

static int read_inputs(int32_t file) {
  for (uint32_t number = 0; number < INPUTS; number++)
    if (!read_file(file, input_tensors[number].bytes, input_tensors[number].size)) return 0;
  return 1;
}

static int read_expected(int32_t file) {
  for (uint32_t number = 0; number < OUTPUTS; number++)
    if (!read_file(file, output_tensors[number].expected, output_tensors[number].size)) return 0;
  return 1;
}

int main(void) {
  const int32_t inputs = open_file("input.raw", READ_BINARY), outputs = open_file("output.raw", WRITE_BINARY);
  const int32_t golden = open_file("expected.raw", READ_BINARY), limits = open_file("allowed.raw", READ_BINARY);
  if (inputs < 0 || outputs < 0) {
    say("input.raw or output.raw can't be opened\n");
    return 3;
  }
  uint32_t count = 0, compared = 0, wrong = 0, depth = 0;
  while (read_inputs(inputs)) {
    if (count) KEEP_STATE();
    volatile uint32_t *top = stack_pointer();
    paint_stack(top, STACK_BYTES);
    RUN_NETWORK();
    const uint32_t used = painted_over(top, STACK_BYTES);
    if (used > depth) depth = used;
    for (uint32_t number = 0; number < OUTPUTS; number++)
      if (!write_file(outputs, output_tensors[number].bytes, output_tensors[number].size)) return 3;
    count++;
    if (golden >= 0 && read_expected(golden)) {
      if (limits < 0 || !read_file(limits, allowed, sizeof allowed)) return 3;
      compared++;
      for (uint32_t number = 0; number < OUTPUTS; number++) {
        const struct tensor *tensor = &output_tensors[number];
        wrong += (uint32_t)!agrees(tensor->bytes, tensor->expected, tensor->kind, tensor->elements, allowed[number]);
      }
    }
  }
  say("inputs ");
  say_number(count);
  say(" compared ");
  say_number(compared);
  say(" wrong ");
  say_number(wrong);
  say(" stack ");
  say_number(depth);
  say("\n");
  return wrong != 0;
}
