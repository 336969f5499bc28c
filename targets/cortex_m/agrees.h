/* Whether an output is what it should be: its OUTPUT_SIZE elements of type ELEMENT may differ by that much. What isn't
 * finite in the golden output must be the same. */
#include <stdint.h>

static float magnitude(float value) { return value < 0 ? -value : value; }

static int agrees(const ELEMENT *output, const ELEMENT *golden, float tolerance) {
  for (uint32_t index = 0; index < OUTPUT_SIZE; index++) {
    float given = (float)output[index], wanted = (float)golden[index];
    int same = given == wanted || (given != given && wanted != wanted);
    if (!same && !(magnitude(given - wanted) <= tolerance)) return 0;
  }
  return 1;
}
