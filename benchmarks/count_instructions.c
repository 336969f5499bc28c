/* A plugin for qemu's user-mode emulators that counts the instructions of a program: `-plugin FILE,out=PATH` writes the
 * number to PATH when it ends.
 *
 * The count is not atomic, so that programs of several threads come out too low. Only what is used of qemu's interface
 * for plugins, version 1, is declared; no header of qemu's is needed.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum { ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *value, uint64_t added);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

int qemu_plugin_version = 1;

static uint64_t instructions;
static char path[4096];

/* Each time that a block of code runs, its number of instructions is added. */
static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &instructions, qemu_plugin_tb_n_insns(block));
}

static void ended(plugin_id id, void *unused) {
  (void)id, (void)unused;
  FILE *file = fopen(path, "w");
  if (file == NULL) return;
  fprintf(file, "%" PRIu64 "\n", instructions);
  fclose(file);
}

int qemu_plugin_install(plugin_id id, const void *information, int count, char **options) {
  (void)information;
  if (count != 1 || strncmp(options[0], "out=", 4) != 0 || strlen(options[0] + 4) >= sizeof path) return 1;
  strcpy(path, options[0] + 4);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
