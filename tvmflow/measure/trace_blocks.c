/* A plugin for qemu's emulators that keeps which blocks of code a program executes, one after the other:
 * `-plugin FILE,out=PATH` leaves in PATH.blocks a line "address instructions" for each block, address in hexadecimal, and
 * in PATH.trace their numbers, from 0, as they run, 32 bits each in this computer's order.
 *
 * Of several threads only the first is traced. Only what is used of qemu's interface for plugins, version 1, is declared;
 * no header of qemu's is needed.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum { NO_REGISTERS };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *, void (*)(unsigned, void *), int registers, void *number);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

int qemu_plugin_version = 1;

static FILE *blocks, *trace;
static uint32_t used;

static void executed(unsigned thread, void *number) {
  uint32_t value = (uint32_t)(uintptr_t)number;
  if (thread == 0) fwrite_unlocked(&value, sizeof value, 1, trace);
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  fprintf(blocks, "%" PRIx64 " %zu\n", qemu_plugin_tb_vaddr(block), qemu_plugin_tb_n_insns(block));
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, (void *)(uintptr_t)used++);
}

static void ended(plugin_id id, void *unused) {
  (void)id, (void)unused;
  fclose(blocks);
  fclose(trace);
}

static FILE *create(const char *path, const char *ending) {
  char name[4096];
  int length = snprintf(name, sizeof name, "%s.%s", path, ending);
  return length < (int)sizeof name ? fopen(name, "wb") : NULL;
}

int qemu_plugin_install(plugin_id id, const void *information, int count, char **options) {
  (void)information;
  if (count != 1 || strncmp(options[0], "out=", 4) != 0) return 1;
  blocks = create(options[0] + 4, "blocks");
  trace = create(options[0] + 4, "trace");
  if (blocks == NULL || trace == NULL) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
