/* Threads for the parallel loops of one network, each there from NAME_init to NAME_free, which allocate nothing.
 *
 * A loop is cut into shares, which whoever runs the network and the workers take one after the other: what a worker that
 * the system doesn't let run hasn't taken, others compute. Workers look for work for a while and then sleep. On a busy
 * machine the system may leave a worker on the core of whoever calls, where it finds all work done: such a worker leaves
 * that core. NETWORK_THREADS says what they sleep by: 1, Linux's futex, which Android has as well and which is in no C
 * library's header; 2, POSIX's conditions; 0, there are no threads. This file is included by the C of one network and
 * everything in it is that file's own.
 */
#ifndef NETWORK_POOL_H
#define NETWORK_POOL_H

#include <stddef.h>
#include <stdint.h>

#ifndef NETWORK_THREADS
#if defined(__linux__)
#define NETWORK_THREADS 1
#elif defined(__unix__) || defined(__QNX__) || defined(__APPLE__)
#define NETWORK_THREADS 2
#else
#define NETWORK_THREADS 0
#endif
#endif

#define POOL_LOOKS 300  /* how often work is looked for at once: some ten microseconds */
#define POOL_YIELDS 50  /* and how often after others were let run, before sleeping */
#define POOL_SHARES 2   /* of a loop, for each thread */
#define POOL_MISSES 8   /* loops that a worker wasn't let run for, before it asks where the caller is */
#define POOL_WORDS 16   /* of a set of cores, as Linux has them */

typedef void (*pool_task)(const void *closure, int32_t worker, int32_t begin, int32_t end);

#if NETWORK_THREADS

#include <pthread.h>
#include <sched.h>

struct pool;

typedef struct {
  struct pool *pool;
  pthread_t thread;
  int32_t number;
  int32_t core;  /* -1: any */
  uint32_t seen; /* loops */
#if NETWORK_THREADS == 1
  unsigned long cores[POOL_WORDS]; /* that it may be on */
#endif
} pool_worker;

typedef struct pool {
  pool_task task;
  const void *closure;
  int32_t extent, shares, threads, started, stopping;
  uint32_t ticket;     /* the shares that nobody has taken, in its last eight bits; those before count the loops */
  uint32_t unfinished; /* shares */
  uint32_t waiting;    /* workers that may be asleep until `ticket` changes */
  uint32_t caller_waits;
  uint32_t asked;      /* a worker wants to know the caller's core */
  int32_t caller_core; /* the answer, -1 before */
#if NETWORK_THREADS == 2
  pthread_mutex_t mutex;
  pthread_cond_t condition;
#endif
  pool_worker *workers;
} pool;

static inline void pool_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __asm__ volatile("pause");
#elif defined(__aarch64__) || (defined(__arm__) && __ARM_ARCH >= 7)
  __asm__ volatile("yield");
#endif
}

#if NETWORK_THREADS == 1

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

extern long syscall(long number, ...);

#if defined(SYS_futex)
#define POOL_FUTEX SYS_futex
#else
#define POOL_FUTEX SYS_futex_time64
#endif

/* Without a time to wait until, both calls of that name are the same. 128: within this process alone. */
static void pool_sleep(pool *pool, uint32_t *word, uint32_t value) {
  (void)pool;
  syscall(POOL_FUTEX, word, 0 | 128, value, NULL, NULL, 0);
}

static void pool_wake(pool *pool, uint32_t *word) {
  (void)pool;
  syscall(POOL_FUTEX, word, 1 | 128, INT32_MAX, NULL, NULL, 0);
}

#define POOL_BITS (8 * sizeof(unsigned long))

/* Words of the kernel's interface, which are the same for all C libraries: a bit for each core. */
static void pool_stay_on(pool_worker *self) {
  unsigned long mask[POOL_WORDS] = {0};
  size_t core = (size_t)self->core;
  if (self->core < 0) {
    if (syscall(SYS_sched_getaffinity, 0, sizeof self->cores, self->cores) <= 0) self->core = 0;
  } else if (core < POOL_WORDS * POOL_BITS) {
    mask[core / POOL_BITS] = 1UL << (core % POOL_BITS);
    syscall(SYS_sched_setaffinity, 0, sizeof mask, mask);
  }
}

/* The core that a thread is on, -1 if the system doesn't say. */
static int32_t pool_core(void) {
  unsigned core = 0;
  return syscall(SYS_getcpu, &core, NULL, NULL) == 0 ? (int32_t)core : -1;
}

/* A worker that the system let miss loops leaves the caller's core, if it is on it. A set without any core is refused, and
 * then everything stays as it is. */
static void pool_settle(pool_worker *self, uint32_t loops) {
  pool *pool = self->pool;
  unsigned long mask[POOL_WORDS];
  uint32_t passed = loops - self->seen;
  int32_t core;
  self->seen = loops;
  if (self->core >= 0) return;
  if (passed > POOL_MISSES) __atomic_store_n(&pool->asked, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->caller_core, __ATOMIC_SEQ_CST) < 0) return;
  core = __atomic_exchange_n(&pool->caller_core, -1, __ATOMIC_SEQ_CST);
  if (core < 0 || core != pool_core() || (size_t)core >= POOL_WORDS * POOL_BITS) return;
  for (int word = 0; word < POOL_WORDS; word++) mask[word] = self->cores[word];
  mask[(size_t)core / POOL_BITS] &= ~(1UL << ((size_t)core % POOL_BITS));
  syscall(SYS_sched_setaffinity, 0, sizeof mask, mask);
}

static void pool_answer(pool *pool) {
  if (!__atomic_load_n(&pool->asked, __ATOMIC_SEQ_CST)) return;
  __atomic_store_n(&pool->asked, 0, __ATOMIC_SEQ_CST);
  __atomic_store_n(&pool->caller_core, pool_core(), __ATOMIC_SEQ_CST);
}

/* A number that Linux says of a core; 0 where it says none. */
static uint64_t pool_fact(const char *stem, int core, const char *leaf) {
  char path[96], text[24];
  uint64_t value = 0;
  ssize_t length;
  size_t used = 0;
  int file;
  while (*stem) path[used++] = *stem++;
  if (core >= 10) path[used++] = (char)('0' + core / 10);
  path[used++] = (char)('0' + core % 10);
  while (*leaf) path[used++] = *leaf++;
  path[used] = '\0';
  if ((file = open(path, O_RDONLY)) < 0) return 0;
  length = read(file, text, sizeof text);
  close(file);
  for (ssize_t place = 0; place < length && text[place] >= '0' && text[place] <= '9'; place++)
    value = 10 * value + (uint64_t)(text[place] - '0');
  return value;
}

static uint64_t pool_big_cores(void) {
  static const char *const leaves[] = {"/cpu_capacity", "/cpufreq/cpuinfo_max_freq"};
  for (int leaf = 0; leaf < 2; leaf++) {
    uint64_t most = 0, cores = 0;
    for (int core = 0; core < 64; core++) {
      uint64_t value = pool_fact("/sys/devices/system/cpu/cpu", core, leaves[leaf]);
      if (value > most) most = value, cores = 0;
      if (value && value == most) cores |= (uint64_t)1 << core;
    }
    if (cores) return cores;
  }
  return 0;
}

#else

static void pool_sleep(pool *pool, uint32_t *word, uint32_t value) {
  pthread_mutex_lock(&pool->mutex);
  while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value) pthread_cond_wait(&pool->condition, &pool->mutex);
  pthread_mutex_unlock(&pool->mutex);
}

static void pool_wake(pool *pool, uint32_t *word) {
  (void)word;
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_broadcast(&pool->condition);
  pthread_mutex_unlock(&pool->mutex);
}

static void pool_stay_on(pool_worker *self) { (void)self; }

static void pool_settle(pool_worker *self, uint32_t loops) { (void)self, (void)loops; }

static void pool_answer(pool *pool) { (void)pool; }

#endif

/* Returns when the word has another value; `sleepers` is told while this thread may be asleep. */
static uint32_t pool_await_change(pool *pool, uint32_t *word, uint32_t value, uint32_t *sleepers) {
  uint32_t found;
  for (int look = 0; look < POOL_LOOKS + POOL_YIELDS; look++) {
    if ((found = __atomic_load_n(word, __ATOMIC_SEQ_CST)) != value) return found;
    if (look < POOL_LOOKS)
      pool_relax();
    else
      sched_yield();
  }
  __atomic_add_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
  while ((found = __atomic_load_n(word, __ATOMIC_SEQ_CST)) == value) pool_sleep(pool, word, value);
  __atomic_sub_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
  return found;
}

/* Computes shares for as long as there are any. What a loop is may be read once a share of it was taken: it stays until
 * all are finished. Returns the ticket that had none left. */
static uint32_t pool_take(pool *pool, int32_t worker) {
  uint32_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST);
  while (ticket & 255) {
    int32_t length, begin, end;
    if (!__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) continue;
    length = (pool->extent + pool->shares - 1) / pool->shares;
    begin = (pool->shares - (int32_t)(ticket & 255)) * length;
    end = begin + length < pool->extent ? begin + length : pool->extent;
    if (begin < end) pool->task(pool->closure, worker, begin, end);
    if (__atomic_sub_fetch(&pool->unfinished, 1, __ATOMIC_SEQ_CST) == 0 &&
        __atomic_load_n(&pool->caller_waits, __ATOMIC_SEQ_CST))
      pool_wake(pool, &pool->unfinished);
    ticket = __atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST);
  }
  return ticket;
}

static void *pool_work(void *argument) {
  pool_worker *self = argument;
  pool *pool = self->pool;
  pool_stay_on(self);
  for (;;) {
    uint32_t ticket = pool_take(pool, self->number);
    /* the last ticket comes after `stopping` was set: whoever has it knows, and all others see it change */
    if (__atomic_load_n(&pool->stopping, __ATOMIC_SEQ_CST)) return NULL;
    pool_settle(self, ticket >> 8);
    pool_await_change(pool, &pool->ticket, ticket, &pool->waiting);
  }
}

/* A ticket of so many shares, for whoever waits for one. */
static void pool_offer(pool *pool, int32_t shares) {
  uint32_t loop = (__atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST) >> 8) + 1;
  __atomic_store_n(&pool->ticket, loop << 8 | (uint32_t)shares, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->waiting, __ATOMIC_SEQ_CST)) pool_wake(pool, &pool->ticket);
}

static void pool_run(pool *pool, pool_task task, const void *closure, int32_t extent) {
  uint32_t left;
  int32_t shares = POOL_SHARES * pool->threads;
  pool_answer(pool);
  pool->task = task;
  pool->closure = closure;
  pool->extent = extent;
  pool->shares = shares < extent ? shares : extent;
  __atomic_store_n(&pool->unfinished, (uint32_t)pool->shares, __ATOMIC_SEQ_CST);
  pool_offer(pool, pool->shares);
  pool_take(pool, 0);
  while ((left = __atomic_load_n(&pool->unfinished, __ATOMIC_SEQ_CST)) != 0)
    pool_await_change(pool, &pool->unfinished, left, &pool->caller_waits);
}

static void pool_stop(pool *pool) {
  __atomic_store_n(&pool->stopping, 1, __ATOMIC_SEQ_CST);
  pool_offer(pool, 0);
  for (int32_t number = 0; number < pool->started; number++) pthread_join(pool->workers[number].thread, NULL);
#if NETWORK_THREADS == 2
  pthread_cond_destroy(&pool->condition);
  pthread_mutex_destroy(&pool->mutex);
#endif
}

/* `workers` has room for one less than there are threads, as the caller is one. `cores` has a bit for each core that the
 * workers may stay on, one each; 0: the system decides. 0, or -1 if not all could be started. */
static int pool_start(pool *pool, pool_worker *workers, int32_t threads, uint64_t cores) {
  int32_t core = -1;
  pool->workers = workers;
  pool->threads = threads;
  pool->started = pool->stopping = 0;
  pool->ticket = pool->waiting = pool->unfinished = pool->caller_waits = pool->asked = 0;
  pool->caller_core = -1;
#if NETWORK_THREADS == 2
  if (pthread_mutex_init(&pool->mutex, NULL) != 0) return -1;
  if (pthread_cond_init(&pool->condition, NULL) != 0) return -1;
#endif
  for (int32_t number = 1; number < threads; number++) {
    pool_worker *worker = &workers[number - 1];
    for (int32_t tried = 0; cores != 0 && tried < 64; tried++) {
      core = (core + 1) % 64;
      if (cores >> core & 1) break;
    }
    worker->pool = pool;
    worker->number = number;
    worker->core = core;
    worker->seen = 0;
    if (pthread_create(&worker->thread, NULL, pool_work, worker) != 0) {
      pool_stop(pool);
      return -1;
    }
    pool->started++;
  }
  return 0;
}

#endif
#endif
