/* Whether an output is what it should be: each of its elements may differ by that much. What isn't finite in the golden
 * output must be the same. */
#include <stdint.h>

enum { INT8, UINT8, FLOAT32 }; /* what a tensor's elements are */

static float magnitude(float value) { return value < 0 ? -value : value; }

static float element(const void *tensor, int kind, uint32_t index) {
  if (kind == INT8) return ((const int8_t *)tensor)[index];
  if (kind == UINT8) return ((const uint8_t *)tensor)[index];
  return ((const float *)tensor)[index];
}

static int agrees(const void *output, const void *golden, int kind, uint32_t elements, float tolerance) {
  for (uint32_t index = 0; index < elements; index++) {
    float given = element(output, kind, index), wanted = element(golden, kind, index);
    int same = given == wanted || (given != given && wanted != wanted);
    if (!same && !(magnitude(given - wanted) <= tolerance)) return 0;
  }
  return 1;
}
