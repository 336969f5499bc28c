/* A plugin for qemu's emulators that follows a program's memory accesses through simulated caches (caches.h), counts its
 * instructions and mispredicted branches, and keeps samples of the blocks of code that it executes.
 *
 * `-plugin FILE,out=PATH,first=BYTES:WAYS,pages=ENTRIES:WAYS,outer=BYTES:WAYS,…,windows=COUNT,size=INSTRUCTIONS`. The
 * program says what to do by the system call getpgid of MARK + 1: simulate; MARK + 2: forget the counts, keep the caches,
 * and count; MARK + 3: end. Between 2 and 3 should be as much as was between 1 and 2, for the windows are spread by that.
 * A mark that is repeated begins anew.
 *
 * PATH.counts has lines "name value"; PATH.blocks a line "instructions words" for each block, in hexadecimal words of 32
 * bits; PATH.windows their numbers, from 0, as they ran, 32 bits each in this computer's order, and UINT32_MAX after each
 * window.
 *
 * Of several threads only the first counts. Only what is used of qemu's interface for plugins, version 1, is declared.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "caches.h"

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS, LOADS_AND_STORES = 3, GETPGID = 155, MARK = 0x7a1100, GUESSES = 1 << 14 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
unsigned qemu_plugin_mem_size_shift(uint32_t);
_Bool qemu_plugin_mem_is_store(uint32_t);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *, void (*)(unsigned, void *), int registers, void *block);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *),
                                      int registers, int which, void *unused);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
void qemu_plugin_reset(plugin_id, void (*)(plugin_id));

int qemu_plugin_version = 1;

struct block {
  uint32_t number, instructions;
};

static FILE *blocks, *windows, *counts;
static struct memory memory;
static uint32_t used, previous, history, guesses[GUESSES];
static uint64_t done, before, executed_blocks, mispredicted, next_window, window_end, window_count = 400, window_size = 2048;
static int phase, installed;

static void accessed(unsigned thread, uint32_t information, uint64_t address, void *unused) {
  (void)unused;
  if (thread != 0 || phase == 0) return;
  access_memory(&memory, address, 1u << qemu_plugin_mem_size_shift(information), qemu_plugin_mem_is_store(information));
}

/* The block that runs is guessed from the last one and those before it; who guessed wrongly learns. */
static void predict(uint32_t number) {
  uint32_t *guess = &guesses[(previous * 2654435761u ^ history * 40503u) >> 7 & (GUESSES - 1)];
  mispredicted += *guess != number + 1;
  *guess = number + 1;
  history = history << 3 ^ number;
  previous = number;
}

static void sample(const struct block *block) {
  if (done >= window_end && window_end != 0) {
    uint32_t end = UINT32_MAX;
    fwrite_unlocked(&end, sizeof end, 1, windows);
    window_end = 0;
    next_window += before / window_count > window_size ? before / window_count : window_size;
  }
  if (window_end == 0 && done >= next_window) window_end = done + window_size;
  if (window_end != 0) fwrite_unlocked(&block->number, sizeof block->number, 1, windows);
}

static void executed(unsigned thread, void *data) {
  const struct block *block = data;
  if (thread != 0 || phase == 0) return;
  predict(block->number);
  if (phase == 2) sample(block);
  done += block->instructions;
  executed_blocks += 1;
}

static void translated(plugin_id id, struct qemu_plugin_tb *translation) {
  (void)id;
  struct block *block = malloc(sizeof *block);
  block->number = used++;
  block->instructions = qemu_plugin_tb_n_insns(translation);
  fprintf(blocks, "%" PRIu32, block->instructions);
  for (size_t index = 0; index < block->instructions; ++index) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(translation, index);
    uint32_t word;
    memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
    fprintf(blocks, " %08" PRIx32, word);
    qemu_plugin_register_vcpu_mem_cb(instruction, accessed, NO_REGISTERS, LOADS_AND_STORES, NULL);
  }
  fputc('\n', blocks);
  qemu_plugin_register_vcpu_tb_exec_cb(translation, executed, NO_REGISTERS, block);
}

static void write_counts(void) {
  rewind(counts);
  fprintf(counts, "instructions %" PRIu64 "\nblocks %" PRIu64 "\nmispredicted %" PRIu64 "\naccesses %" PRIu64 "\n", done,
          executed_blocks, mispredicted, memory.accesses);
  fprintf(counts, "page_misses %" PRIu64 "\nstore_misses %" PRIu64 "\n", memory.page_misses, memory.store_misses);
  for (int index = -1; index < memory.outers; ++index) {
    const struct level *level = index < 0 ? &memory.first_counts : &memory.outer_counts[index];
    char name[16] = "first";
    if (index >= 0) snprintf(name, sizeof name, "outer%d", index);
    fprintf(counts, "%s_misses %" PRIu64 "\n%s_streamed %" PRIu64 "\n%s_written_back %" PRIu64 "\n", name, level->misses,
            name, level->streamed, name, level->written_back);
  }
  fflush(counts);
}

static void begin_again(plugin_id);

static void called(plugin_id id, unsigned thread, int64_t number, uint64_t mark, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (thread != 0 || number != GETPGID || mark <= MARK || mark > MARK + 3) return;
  if (mark == MARK + 1 && !installed) {
    installed = 1;
    qemu_plugin_reset(id, begin_again);
  }
  if (mark == MARK + 2) {
    before = done;
    next_window = before / window_count / 2;
    reset_counts(&memory);
  }
  if (mark == MARK + 3) write_counts();
  phase = mark == MARK + 3 ? 0 : (int)(mark - MARK);
  done = executed_blocks = mispredicted = 0;
}

static void ended(plugin_id id, void *unused) {
  (void)id, (void)unused;
  fclose(blocks);
  fclose(windows);
  fclose(counts);
}

/* Until the first mark nothing is followed, so that a program starts as fast as without a plugin. */
static void begin_again(plugin_id id) {
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
}

static FILE *create(const char *path, const char *ending) {
  char name[4096];
  int length = snprintf(name, sizeof name, "%s.%s", path, ending);
  return length < (int)sizeof name ? fopen(name, "wb") : NULL;
}

int qemu_plugin_install(plugin_id id, const void *information, int count, char **options) {
  (void)information;
  for (int index = 0; index < count; ++index) {
    char *name = options[index], *value = strchr(name, '=');
    uint64_t size = 0, ways = 0;
    if (value == NULL) return 1;
    *value++ = 0;
    if (strcmp(name, "out") == 0) {
      blocks = create(value, "blocks");
      windows = create(value, "windows");
      counts = create(value, "counts");
      continue;
    }
    int values = sscanf(value, "%" SCNu64 ":%" SCNu64, &size, &ways);
    if (strcmp(name, "windows") == 0 && values == 1)
      window_count = size;
    else if (strcmp(name, "size") == 0 && values == 1)
      window_size = size;
    else if (strcmp(name, "pages") == 0 && values == 2 && make_cache(&memory.pages, size, ways))
      ;
    else if (strcmp(name, "first") == 0 && values == 2 && make_cache(&memory.first, size >> LINE_SHIFT, ways))
      ;
    else if (strcmp(name, "outer") == 0 && values == 2 && memory.outers < MAX_OUTER &&
             make_cache(&memory.outer[memory.outers], size >> LINE_SHIFT, ways))
      memory.outers += 1;
    else
      return 1;
  }
  if (!blocks || !windows || !counts || !memory.first.lines || !memory.pages.lines || !window_count) return 1;
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
