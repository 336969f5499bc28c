/* The most that a core does in a second: multiply-adds in registers, and bytes read. Compiled for this very CPU. */
#include <stdint.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define CHAINS 12 /* independent sums: as many as a multiply-add's latency times how many begin at once */

typedef float floats __attribute__((vector_size(BYTES)));
typedef float anywhere __attribute__((vector_size(BYTES), aligned(4)));

/* Operations done: a multiply-add is two. `values`, 0 each, are the factor, the term, the result and where each chain
 * starts: from one value, the compiler would compute one chain for all. */
int64_t multiply_add(int64_t rounds, float *values) {
  floats sums[CHAINS], factor = (floats){0} + values[0], term = (floats){0} + values[1];
  for (int chain = 0; chain < CHAINS; chain++)
    sums[chain] = (floats){0} + values[3 + chain];
  for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 12
    for (int chain = 0; chain < CHAINS; chain++)
      sums[chain] = sums[chain] * factor + term;
  for (int chain = 0; chain < CHAINS; chain++)
    values[2] += sums[chain][0] + sums[chain][1];
  return rounds * CHAINS * 2 * (BYTES / sizeof(float));
}

/* Bytes read: `count` floats, a multiple of CHAINS vectors, `rounds` times. */
int64_t read_memory(int64_t rounds, const float *data, int64_t count, float *result) {
  floats sums[CHAINS] = {0};
  for (int64_t round = 0; round < rounds; round++)
    for (const anywhere *at = (const anywhere *)data; at < (const anywhere *)(data + count); at += CHAINS)
#pragma GCC unroll 12
      for (int chain = 0; chain < CHAINS; chain++)
        sums[chain] += at[chain];
  for (int chain = 0; chain < CHAINS; chain++)
    result[2] += sums[chain][0];
  return rounds * count * (int64_t)sizeof(float);
}
