/* A plugin for qemu-system-arm that counts executed instructions by the function that they are in:
 * `-plugin FILE,out=PATH` writes a line "count name" for each to PATH when the emulator ends.
 *
 * Only what is used of qemu's interface for plugins, version 1, is declared; no header of qemu's is needed. One core is
 * emulated, so the counts are exact.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 };
enum { MOST_FUNCTIONS = 1024 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int operation, void *value, uint64_t added);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

int qemu_plugin_version = 1;

static struct {
  char name[256];
  uint64_t count;
} functions[MOST_FUNCTIONS];
static int used;
static char path[4096];

/* The counter of a function; the last one is shared by all for which there is no room. */
static uint64_t *counter(const char *name) {
  if (name == NULL || *name == '\0') name = "?";
  for (int index = 0; index < used; index++)
    if (strncmp(functions[index].name, name, sizeof functions[index].name - 1) == 0) return &functions[index].count;
  if (used == MOST_FUNCTIONS - 1) name = "(others)";
  if (used == MOST_FUNCTIONS) return &functions[used - 1].count;
  strncpy(functions[used].name, name, sizeof functions[used].name - 1);
  return &functions[used++].count;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  for (size_t index = 0; index < qemu_plugin_tb_n_insns(block); index++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, index);
    uint64_t *count = counter(qemu_plugin_insn_symbol(instruction));
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, ADD_U64, count, 1);
  }
}

static void ended(plugin_id id, void *unused) {
  (void)id, (void)unused;
  FILE *file = fopen(path, "w");
  if (file == NULL) return;
  for (int index = 0; index < used; index++)
    fprintf(file, "%" PRIu64 " %s\n", functions[index].count, functions[index].name);
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
