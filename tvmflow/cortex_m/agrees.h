/* Whether an output is what it should be: its OUTPUT_SIZE elements of type ELEMENT may differ by TOLERANCE times the
 * largest of the golden output, or times 1 if that is more. */
#include <stdint.h>

static float magnitude(float value) { return value < 0 ? -value : value; }

static int agrees(const ELEMENT *output, const ELEMENT *golden) {
  float largest = 1;
  for (uint32_t index = 0; index < OUTPUT_SIZE; index++)
    if (magnitude(golden[index]) > largest) largest = magnitude(golden[index]);
  for (uint32_t index = 0; index < OUTPUT_SIZE; index++)
    if (!(magnitude((float)output[index] - (float)golden[index]) <= TOLERANCE * largest)) return 0;
  return 1;
}
