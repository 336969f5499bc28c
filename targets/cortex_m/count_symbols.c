/* A plugin for qemu-system-arm that counts executed instructions by the function that they are in:
 * `-plugin FILE,out=PATH` writes a line "count name" for each to PATH when the emulator ends.
 *
 * With `,of=PREFIX` those of other functions count for the function of that prefix that called them, such as memcpy and
 * the compiler's own arithmetic, until main() goes on.
 *
 * Only what is used of qemu's interface for plugins, version 1, is declared; no header of qemu's is needed. One core is
 * emulated, and each block is executed to its end, so the counts are exact.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { NO_REGISTERS };
enum { MOST_FUNCTIONS = 1024, MOST_BLOCKS = 1 << 18 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *, void (*)(unsigned, void *), int registers, void *block);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

int qemu_plugin_version = 1;

enum role { OWN, CALLED, CALLER };
static struct function {
  char name[256];
  enum role role;
  uint64_t count;
} functions[MOST_FUNCTIONS];
static int used;
static struct block {
  struct function *function;
  uint64_t instructions;
} blocks[MOST_BLOCKS];
static uint32_t translations;
static struct function *current; /* the function of the prefix that runs or has called what runs */
static char path[4096], prefix[256];

/* The last one is shared by all for which there is no room. */
static struct function *function_of(const char *name) {
  if (name == NULL || *name == '\0') name = "?";
  for (int index = 0; index < used; index++)
    if (strncmp(functions[index].name, name, sizeof functions[index].name - 1) == 0) return &functions[index];
  if (used == MOST_FUNCTIONS - 1) name = "(others)";
  if (used == MOST_FUNCTIONS) return &functions[used - 1];
  struct function *found = &functions[used++];
  strncpy(found->name, name, sizeof found->name - 1);
  found->role = CALLED;
  if (*prefix && strncmp(name, prefix, strlen(prefix)) == 0) found->role = OWN;
  if (strcmp(name, "main") == 0) found->role = CALLER;
  return found;
}

static void executed(unsigned core, void *pointer) {
  (void)core;
  struct block *block = pointer;
  struct function *function = block->function;
  if (function->role == OWN) current = function;
  if (function->role == CALLER) current = NULL;
  (current ? current : function)->count += block->instructions;
}

static void translated(plugin_id id, struct qemu_plugin_tb *translation) {
  (void)id;
  if (translations == MOST_BLOCKS) return; /* ended() says so */
  struct block *block = &blocks[translations++];
  block->function = function_of(qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(translation, 0)));
  block->instructions = qemu_plugin_tb_n_insns(translation);
  qemu_plugin_register_vcpu_tb_exec_cb(translation, executed, NO_REGISTERS, block);
}

/* Nothing is written where not all was counted. */
static void ended(plugin_id id, void *unused) {
  (void)id, (void)unused;
  FILE *file = translations < MOST_BLOCKS ? fopen(path, "w") : NULL;
  if (file == NULL) return;
  for (int index = 0; index < used; index++)
    fprintf(file, "%" PRIu64 " %s\n", functions[index].count, functions[index].name);
  fclose(file);
}

static int take(const char *option, const char *name, char *to, size_t size) {
  if (strncmp(option, name, strlen(name)) != 0 || strlen(option + strlen(name)) >= size) return 0;
  strcpy(to, option + strlen(name));
  return 1;
}

int qemu_plugin_install(plugin_id id, const void *information, int count, char **options) {
  (void)information;
  for (int index = 0; index < count; index++)
    if (!take(options[index], "out=", path, sizeof path) && !take(options[index], "of=", prefix, sizeof prefix))
      return 1;
  if (!*path) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
