/* What a program sees of the library of `networks:threaded`: prints a line NAME=VALUE for each fact. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "threaded.h"

static int allocations;
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size) {
  __atomic_add_fetch(&allocations, 1, __ATOMIC_SEQ_CST);
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

/* Ones that have workers from the highest down, a range for each iteration, and ones that do what isn't asked of them. */
static void each_apart(void *pool, threaded_task task, const void *closure, int32_t extent) {
  int32_t threads = *(const int32_t *)pool;
  for (int32_t place = extent - 1; place >= 0; place--) task(closure, threads - 1 - place % threads, place, place + 1);
}

static void lazy(void *pool, threaded_task task, const void *closure, int32_t extent) {
  (void)pool;
  task(closure, 0, 0, extent - 1);
}

static void stranger(void *pool, threaded_task task, const void *closure, int32_t extent) {
  (void)pool;
  task(closure, 2, 0, extent);
}

static void beyond(void *pool, threaded_task task, const void *closure, int32_t extent) {
  (void)pool;
  task(closure, 0, 0, extent + 1);
}

/* Two threads of the caller's, each with a context of its own that has threads of its own. */
typedef struct {
  const float *given, *wanted;
  int right;
} stream;

static void *streams(void *argument) {
  stream *self = argument;
  threaded_context *context;
  float *found = malloc(sizeof output);
  self->right = threaded_init(&context, &(threaded_options){.threads = 2}) == THREADED_OK;
  for (int run = 0; run < 200 && self->right; run++) {
    memset(found, 0, sizeof output);
    self->right = threaded_run(context, self->given, found) == THREADED_OK && memcmp(found, self->wanted, sizeof output) == 0;
  }
  threaded_free(context);
  free(found);
  return NULL;
}

static uint64_t time_of_mine(void) {
  static uint64_t time;
  return time += 7;
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

  int32_t many = THREADED_MOST_THREADS;
  with((threaded_options){.threads = many, .parallel = each_apart, .pool = &many}, "many_workers");
  threaded_parallel liars[] = {lazy, stranger, beyond};
  const char *names[] = {"lazy_pool", "stranger_pool", "beyond_pool"};
  for (int liar = 0; liar < 3; liar++) {
    threaded_context *context;
    threaded_init(&context, &(threaded_options){.threads = 2, .parallel = liars[liar]});
    printf("%s=%d\n", names[liar], threaded_run(context, input, output));
    threaded_free(context);
  }

  static float others_expected[THREADED_OUTPUT_SIZE];
  threaded_run(one, other, others_expected);
  stream side_by_side[2] = {{input, expected, 0}, {other, others_expected, 0}};
  pthread_t threads[2];
  for (int place = 0; place < 2; place++) pthread_create(&threads[place], NULL, streams, &side_by_side[place]);
  for (int place = 0; place < 2; place++) pthread_join(threads[place], NULL);
  printf("side_by_side=%d\n", side_by_side[0].right && side_by_side[1].right);

  uint64_t ticks[THREADED_KERNELS + 1] = {0};
  const char *const kernels[] = THREADED_KERNEL_NAMES;
  int apart = sizeof kernels / sizeof *kernels == THREADED_KERNELS;
  memset(output, 0, sizeof output);
  printf("timed=%d\n", threaded_run_timed(one, input, output, time_of_mine, ticks));
  for (int kernel = 0; kernel < THREADED_KERNELS; kernel++) apart = apart && ticks[kernel + 1] - ticks[kernel] == 7;
  printf("timed_apart=%d\ntimed_same=%d\n", apart, same());
  printf("no_clock=%d\n", threaded_run_timed(one, input, output, NULL, ticks));

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
  char *shifted = malloc(bytes + 1);
  with((threaded_options){.memory = shifted + 1, .memory_bytes = bytes}, "shifted_memory");
  threaded_context *never = (threaded_context *)memory;
  memset(memory, 0, bytes);
  printf("never_made=%d\n", threaded_run(never, input, output));
  threaded_init(&never, &(threaded_options){.memory = memory, .memory_bytes = bytes});
  threaded_context *gone = never;
  threaded_free(never);
  printf("gone=%d\n", threaded_run(gone, input, output) == THREADED_ERROR_ARGUMENT && threaded_reset(gone));
  threaded_free(gone);
  printf("negative=%d\n", with((threaded_options){.threads = -1}, "never"));
  printf("after_failure=%d\n", threaded_init(&never, &(threaded_options){.threads = -1}) && never == NULL);
  printf("too_many=%d\n", with((threaded_options){.threads = THREADED_MOST_THREADS + 1}, "never"));
  printf("reset=%d\n", threaded_reset(one));
  /* what the caller gives may lie anywhere */
  char *odd = malloc(sizeof input + 4);
  memcpy(odd + 4, input, sizeof input);
  threaded_run(one, (float *)(odd + 4), output);
  printf("anywhere=%d\n", same());
  printf("not_aligned=%d\n", threaded_run(one, (float *)(odd + 1), output));
  threaded_free(one);
  return 0;
}
