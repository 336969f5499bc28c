/* What a program sees of the library of `networks:threaded`: prints a line NAME=VALUE for each fact. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "threaded.h"

static int allocations;
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size) {
  allocations++;
  return __real_malloc(size);
}

static float input[THREADED_INPUT_SIZE], other[THREADED_INPUT_SIZE];
static float output[THREADED_OUTPUT_SIZE], expected[THREADED_OUTPUT_SIZE];

static int ranges, highest_worker;

/* A pool of the caller's that has two workers, one after the other, backwards. */
static void backwards(void *pool, threaded_task task, const void *closure, int32_t extent) {
  (void)pool;
  int32_t middle = extent / 2;
  task(closure, 1, middle, extent);
  task(closure, 0, 0, middle);
  ranges += 2;
  highest_worker = 1;
}

static int same(void) { return memcmp(output, expected, sizeof output) == 0; }

static int with(threaded_options options, const char *name) {
  threaded_context *context;
  int status = threaded_init(&context, &options), right = 1;
  if (status == THREADED_OK) {
    int before = allocations;
    for (int run = 0; run < 20; run++) {
      memset(output, 0, sizeof output);
      status = threaded_run(context, input, output);
      right = right && status == THREADED_OK && same();
    }
    printf("%s_same=%d\n%s_allocations=%d\n", name, right, name, allocations - before);
    threaded_free(context);
  }
  return status;
}

int main(void) {
  threaded_context *one, *two;
  for (int place = 0; place < THREADED_INPUT_SIZE; place++) {
    input[place] = (float)(place % 23) / 23.0f - 0.5f;
    other[place] = (float)(place % 19) / 19.0f - 0.5f;
  }
  printf("belongs=%d\n", strcmp(threaded_version(), THREADED_VERSION) == 0 && strcmp(threaded_hash(), THREADED_HASH) == 0);
  printf("made=%d\n", threaded_init(&one, NULL));
  printf("ran=%d\n", threaded_run(one, input, expected));
  printf("null_context=%d\n", threaded_run(NULL, input, output));
  printf("null_output=%d\n", threaded_run(one, input, NULL));
  printf("null_out=%d\n", threaded_init(NULL, NULL));

  /* another context, between two runs of the first, changes nothing */
  threaded_init(&two, NULL);
  threaded_run(two, other, output);
  printf("others_differ=%d\n", !same());
  threaded_run(one, input, output);
  printf("contexts_apart=%d\n", same());
  threaded_free(two);
  threaded_free(NULL);

  with((threaded_options){.threads = 1}, "serial");
  with((threaded_options){.threads = 3}, "threads");
  with((threaded_options){.threads = 2, .cores = threaded_big_cores() | 1}, "cores");
  with((threaded_options){.threads = 2, .parallel = backwards}, "own_pool");
  printf("own_pool_used=%d\n", ranges > 0);

  /* threads that have just come may be told to go */
  int ended = 0;
  for (int again = 0; again < 300; again++) {
    threaded_context *context;
    if (threaded_init(&context, &(threaded_options){.threads = 2 + again % 3}) == THREADED_OK) ended++;
    threaded_free(context);
  }
  printf("ended=%d\n", ended);

  size_t bytes = threaded_memory_bytes(1);
  void *memory = malloc(bytes);
  int before = allocations;
  with((threaded_options){.memory = (char *)memory, .memory_bytes = bytes}, "own_memory");
  printf("own_memory_allocations_of_init=%d\n", allocations - before);
  printf("too_little=%d\n", with((threaded_options){.memory = memory, .memory_bytes = bytes - 1}, "never"));
  printf("too_many=%d\n", with((threaded_options){.threads = THREADED_MOST_THREADS + 1}, "never"));
  printf("reset=%d\n", threaded_reset(one));
  /* what the caller gives may lie anywhere */
  char *odd = malloc(sizeof input + 4);
  memcpy(odd + 4, input, sizeof input);
  threaded_run(one, (float *)(odd + 4), output);
  printf("anywhere=%d\n", same());
  threaded_free(one);
  return 0;
}
