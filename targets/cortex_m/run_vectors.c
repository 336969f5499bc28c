/* Runs the network NETWORK on every input in the host's input.raw and writes output.raw; as long as expected.raw has an
 * output, it is compared here, on the device, by that vector's number in allowed.raw. Says how many inputs there were, how many outputs differed, and how deep
 * the stack became. */
#include "agrees.h"
#include "startup.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

void JOIN(NETWORK, _run)(const ELEMENT *input, ELEMENT *output);

static ELEMENT input[INPUT_SIZE], output[OUTPUT_SIZE], expected[OUTPUT_SIZE];
static float allowed;

int main(void) {
  const int32_t inputs = open_file("input.raw", READ_BINARY), outputs = open_file("output.raw", WRITE_BINARY);
  const int32_t golden = open_file("expected.raw", READ_BINARY), limits = open_file("allowed.raw", READ_BINARY);
  if (inputs < 0 || outputs < 0) {
    say("input.raw or output.raw can't be opened\n");
    return 3;
  }
  uint32_t count = 0, compared = 0, wrong = 0, depth = 0;
  while (read_file(inputs, input, sizeof input)) {
    paint_stack(STACK_BYTES);
    JOIN(NETWORK, _run)(input, output);
    const uint32_t used = painted_over(STACK_BYTES);
    if (used > depth) depth = used;
    if (!write_file(outputs, output, sizeof output)) return 3;
    count++;
    if (golden >= 0 && read_file(golden, expected, sizeof expected)) {
      if (limits < 0 || !read_file(limits, &allowed, sizeof allowed)) return 3;
      compared++;
      wrong += (uint32_t)!agrees(output, expected, allowed);
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
