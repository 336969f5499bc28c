/* The driver of vta_driver.h: files, relocation, registers, steps, and the start and wait of a run. */
#include "vta_driver.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INSTRUCTION_BYTES = 16, WINDOW_BYTES = 0x1000, OLDEST_SCHEMA = 1, NEWEST_SCHEMA = 2, LOOKS = 100 };

static char message[512];

const char *vta_error(void) { return message; }

int vta_fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return -1;
}

enum { MAX_PORTS = 64, MAX_STEPS = 10000 };

/* An input or output in memory: 1×C×H×W, dense or in tiles of `block` channels. */
typedef struct {
  size_t offset, bytes, elements;
  size_t channels, pixels;
  int tiles;
} region;

/* What runs by itself: instructions of the accelerator, or a function of the processor on the same memory. */
typedef struct {
  size_t first, count;
  void (*function)(uint8_t *memory);
} step;

struct vta_device {
  const vta_board *board;
  vta_core core;
  uint64_t base;
  double timeout_s, seconds;
  uint32_t cycles;
  vta_memory image, code;
  size_t count, block;
  region inputs[MAX_PORTS], outputs[MAX_PORTS];
  size_t input_count, output_count;
  step *steps;
  size_t step_count;
  void *functions; /* the library cpu.so */
  int new_version; /* of the instruction set: 0.0.2 */
};

/* Files */

static uint8_t *read_file(const char *folder, const char *name, size_t *bytes) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
    vta_fail("The path %s is too long.", folder);
    return NULL;
  }
  FILE *file = fopen(path, "rb");
  if (!file) {
    vta_fail("%s can't be read.", path);
    return NULL;
  }
  uint8_t *data = NULL;
  long size = -1;
  if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0)
    data = malloc((size_t)size + 1); /* and a 0 behind text */
  if (data && fread(data, 1, (size_t)size, file) != (size_t)size) {
    free(data);
    data = NULL;
  }
  fclose(file);
  if (!data) {
    vta_fail("%s can't be read.", path);
    return NULL;
  }
  data[size] = 0;
  *bytes = (size_t)size;
  return data;
}

/* The value of a key of layout.json, whose keys are found by their first occurrence. NULL if it isn't there. */
static const char *find(const char *layout, const char *key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\":", key);
  const char *at = strstr(layout, quoted);
  if (!at) {
    vta_fail("layout.json lacks %s.", key);
    return NULL;
  }
  for (at += strlen(quoted); isspace((unsigned char)*at); at++) {
  }
  return at;
}

static int number(const char *layout, const char *key, size_t *value) {
  const char *at = find(layout, key);
  if (!at) return -1;
  if (!isdigit((unsigned char)*at)) return vta_fail("layout.json: %s is no number.", key);
  *value = strtoull(at, NULL, 10);
  return 0;
}

static int find_region(const char *layout, const char *prefix, size_t memory_bytes, size_t block, region *found) {
  char key[64];
  size_t shape[4];
  snprintf(key, sizeof key, "%s_offset", prefix);
  if (number(layout, key, &found->offset)) return -1;
  snprintf(key, sizeof key, "%s_bytes", prefix);
  if (number(layout, key, &found->bytes)) return -1;
  snprintf(key, sizeof key, "%s_order", prefix);
  const char *at = find(layout, key);
  if (!at) return -1;
  found->tiles = strncmp(at, "\"tiles\"", 7) == 0;
  snprintf(key, sizeof key, "%s_shape", prefix);
  if (!(at = find(layout, key))) return -1;
  found->elements = 1;
  size_t dims = 0;
  for (at++; *at && *at != ']'; at++)
    if (isdigit((unsigned char)*at)) {
      char *end;
      size_t extent = strtoull(at, &end, 10);
      if (dims < 4) shape[dims] = extent;
      dims++;
      found->elements *= extent;
      at = end - 1;
    }
  if (found->offset + found->bytes > memory_bytes) return vta_fail("The %s lies outside the memory.", prefix);
  if (!found->tiles)
    return found->bytes == found->elements ? 0 : vta_fail("The %s has another size than its shape.", prefix);
  if (dims != 4) return vta_fail("The %s has %zu dimensions, not 4.", prefix, dims);
  found->channels = shape[1];
  found->pixels = shape[2] * shape[3];
  size_t blocks = (found->channels + block - 1) / block;
  if (found->bytes == blocks * block * found->pixels) return 0;
  return vta_fail("The %s has another size than its shape.", prefix);
}

/* All inputs or outputs: keys of the second begin with input_2. `count` is 1 where layout.json doesn't say. */
static int find_regions(const char *layout, const char *kind, size_t memory_bytes, size_t block, region *found,
                        size_t *count) {
  char key[32], prefix[32];
  *count = 1;
  snprintf(key, sizeof key, "\"%s_count\":", kind);
  if (strstr(layout, key)) {
    snprintf(key, sizeof key, "%s_count", kind);
    if (number(layout, key, count)) return -1;
  }
  if (*count < 1 || *count > MAX_PORTS) return vta_fail("layout.json has %zu of %s.", *count, kind);
  for (size_t n = 0; n < *count; n++) {
    if (n)
      snprintf(prefix, sizeof prefix, "%s_%zu", kind, n + 1);
    else
      snprintf(prefix, sizeof prefix, "%s", kind);
    if (find_region(layout, prefix, memory_bytes, block, &found[n])) return -1;
  }
  return 0;
}

/* The steps; without any in layout.json, all instructions are one. */
static int find_steps(vta_device *device, const char *layout, const char *folder) {
  char key[64], name[64], path[4096];
  device->step_count = 1;
  const int several = strstr(layout, "\"step_count\":") != NULL;
  if (several && number(layout, "step_count", &device->step_count)) return -1;
  if (device->step_count < 1 || device->step_count > MAX_STEPS)
    return vta_fail("layout.json has %zu steps.", device->step_count);
  device->steps = calloc(device->step_count, sizeof *device->steps);
  if (!device->steps) return vta_fail("There is no memory left.");
  if (!several) {
    device->steps[0].count = device->count;
    return 0;
  }
  for (size_t n = 0; n < device->step_count; n++) {
    step *made = &device->steps[n];
    size_t last;
    snprintf(key, sizeof key, "step_%zu_first", n + 1);
    if (number(layout, key, &made->first)) return -1;
    snprintf(key, sizeof key, "step_%zu_last", n + 1);
    if (number(layout, key, &last)) return -1;
    if (last < made->first || last > device->count) return vta_fail("Step %zu has no such instructions.", n + 1);
    made->count = last - made->first;
    snprintf(key, sizeof key, "step_%zu_function", n + 1);
    const char *at = find(layout, key);
    if (!at) return -1;
    if (sscanf(at, "\"%63[a-z0-9_]\"", name) != 1) continue; /* of the accelerator */
    if (snprintf(path, sizeof path, "%s/cpu.so", folder) >= (int)sizeof path)
      return vta_fail("The path %s is too long.", folder);
    if (!device->functions && !(device->functions = dlopen(path, RTLD_NOW)))
      return vta_fail("%s can't be loaded: %s.", path, dlerror());
    void *found = dlsym(device->functions, name);
    if (!found) return vta_fail("%s has no function %s.", path, name);
    memcpy(&made->function, &found, sizeof found);
  }
  return 0;
}

/* Instructions */

/* Each dram_base grows by base / element: hardware multiplies it with the size of the element. */
static int relocate(vta_device *device, uint8_t *code) {
  uint64_t base = device->image.physical, block = device->block;
  uint64_t sizes[] = {4, block * block, block, 4 * block, block, block, 1, 1};
  int low = device->new_version ? 26 : 25;
  for (size_t n = 0; n < device->count; n++) {
    uint64_t words[2];
    memcpy(words, code + n * INSTRUCTION_BYTES, sizeof words);
    uint64_t opcode = words[0] & 7;
    if (opcode > 1 || (words[1] & 0xFFFFFFFF) == 0) continue; /* no LOAD or STORE, or one of no elements */
    uint64_t size = opcode ? block : sizes[words[0] >> 7 & (device->new_version ? 7 : 3)];
    uint64_t dram = (words[0] >> low & 0xFFFFFFFF) + base / size;
    if (dram >> 32)
      return vta_fail("The memory at 0x%llx lies beyond what instructions can address.", (unsigned long long)base);
    words[0] = (words[0] & ~(UINT64_C(0xFFFFFFFF) << low)) | dram << low;
    memcpy(code + n * INSTRUCTION_BYTES, words, sizeof words);
  }
  return 0;
}

/* Loading */

static int prepare(vta_device *device, const char *folder, const char *layout, const uint8_t *image, size_t image_bytes,
                   uint8_t *code, size_t code_bytes) {
  size_t version, memory_bytes, stated, alignment;
  if (number(layout, "schema_version", &version)) return -1;
  if (version < OLDEST_SCHEMA || version > NEWEST_SCHEMA)
    return vta_fail("layout.json is of version %zu, not %d or %d.", version, OLDEST_SCHEMA, NEWEST_SCHEMA);
  const char *set = find(layout, "hw_ver");
  if (!set) return -1;
  device->new_version = strncmp(set, "\"0.0.2\"", 7) == 0;
  if (!device->new_version && strncmp(set, "\"0.0.1\"", 7) != 0)
    return vta_fail("The program is for HW_VER %.7s; this driver knows 0.0.1 and 0.0.2.", set);
  if (number(layout, "instruction_count", &device->count) || number(layout, "image_bytes", &stated) ||
      number(layout, "memory_bytes", &memory_bytes) || number(layout, "alignment_bytes", &alignment) ||
      number(layout, "block", &device->block))
    return -1;
  if (stated != image_bytes || code_bytes != device->count * INSTRUCTION_BYTES || image_bytes > memory_bytes)
    return vta_fail("program.bin or memory.bin is not as long as layout.json says.");
  if (find_regions(layout, "input", memory_bytes, device->block, device->inputs, &device->input_count) ||
      find_regions(layout, "output", memory_bytes, device->block, device->outputs, &device->output_count) ||
      find_steps(device, layout, folder))
    return -1;
  const vta_board *board = device->board;
  if (board->allocate(board->context, memory_bytes, &device->image) ||
      board->allocate(board->context, code_bytes, &device->code))
    return vta_fail("There are no %zu contiguous bytes left.", memory_bytes + code_bytes);
  if (device->image.physical % alignment)
    return vta_fail("The memory is at 0x%llx, which is no multiple of %zu bytes.",
                    (unsigned long long)device->image.physical, alignment);
  if (relocate(device, code)) return -1;
  if (device->code.physical % INSTRUCTION_BYTES || device->code.physical >> 32)
    return vta_fail("The instructions are at 0x%llx, where fetch can't read them.",
                    (unsigned long long)device->code.physical);
  memcpy(device->image.data, image, image_bytes);
  memcpy(device->code.data, code, code_bytes);
  board->flush(board->context, &device->code);
  return 0;
}

vta_device *vta_open(const vta_board *board, const char *folder, vta_core core, uint64_t base, double timeout_s) {
  size_t layout_bytes, code_bytes, image_bytes;
  uint8_t *layout = read_file(folder, "layout.json", &layout_bytes);
  uint8_t *code = layout ? read_file(folder, "program.bin", &code_bytes) : NULL;
  uint8_t *image = code ? read_file(folder, "memory.bin", &image_bytes) : NULL;
  vta_device *device = image ? calloc(1, sizeof *device) : NULL;
  if (device) {
    device->board = board;
    device->core = core;
    device->base = base;
    device->timeout_s = timeout_s;
    if (prepare(device, folder, (char *)layout, image, image_bytes, code, code_bytes)) {
      vta_close(device);
      device = NULL;
    }
  }
  free(layout);
  free(code);
  free(image);
  return device;
}

void vta_close(vta_device *device) {
  if (!device) return;
  const vta_board *board = device->board;
  if (device->image.data) board->release(board->context, &device->image);
  if (device->code.data) board->release(board->context, &device->code);
  if (device->functions) dlclose(device->functions);
  free(device->steps);
  free(device);
}

static size_t elements(const region *regions, size_t count) {
  size_t total = 0;
  for (size_t n = 0; n < count; n++) total += regions[n].elements;
  return total;
}

size_t vta_input_elements(const vta_device *device) { return elements(device->inputs, device->input_count); }
size_t vta_output_elements(const vta_device *device) { return elements(device->outputs, device->output_count); }
double vta_seconds(const vta_device *device) { return device->seconds; }
uint32_t vta_cycles(const vta_device *device) { return device->cycles; }

/* Running */

static uint32_t get(const vta_device *device, uint64_t offset) {
  return device->board->read(device->board->context, device->base + offset);
}

static void set(const vta_device *device, uint64_t offset, uint32_t value) {
  device->board->write(device->board->context, device->base + offset, value);
}

static void start(const vta_device *device, const step *part) {
  uint32_t count = (uint32_t)part->count;
  uint32_t address = (uint32_t)(device->code.physical + part->first * INSTRUCTION_BYTES);
  if (device->core == VTA_CHISEL) {
    set(device, 0x08, count);
    set(device, 0x0C, address);
    for (uint64_t offset = 0x10; offset <= 0x20; offset += 4) set(device, offset, 0);
    set(device, 0x00, 1);
    return;
  }
  enum { LOAD = WINDOW_BYTES, COMPUTE = 2 * WINDOW_BYTES, STORE = 3 * WINDOW_BYTES };
  set(device, 0x10, count);
  set(device, 0x18, address);
  /* Instructions hold whole addresses, so the bases that hardware adds are 0. */
  set(device, LOAD + 0x10, 0);
  set(device, LOAD + 0x18, 0);
  set(device, COMPUTE + 0x20, 0);
  set(device, COMPUTE + 0x28, 0);
  set(device, STORE + 0x10, 0);
  set(device, 0x00, 0x01);
  set(device, LOAD, 0x81); /* start, and again and again */
  set(device, COMPUTE, 0x81);
  set(device, STORE, 0x81);
}

/* With HLS, "done" is the last run's until compute has an instruction of this one: fetch must be idle (bit 2), too. */
static int done(const vta_device *device) {
  if (device->core == VTA_CHISEL) return (get(device, 0x00) & 2) == 2;
  return (get(device, 0x00) & 4) && get(device, 2 * WINDOW_BYTES + 0x18) == 1;
}

static int run_instructions(vta_device *device, const step *part) {
  const vta_board *board = device->board;
  board->flush(board->context, &device->image);
  double begin = board->seconds(board->context);
  start(device, part);
  board->pause(board->context);
  for (int looks = 0; !done(device); looks++) {
    /* time alone may have passed while this process had to wait */
    if (looks > LOOKS && board->seconds(board->context) - begin > device->timeout_s)
      return vta_fail("VTA did not finish within %g s; load the bitstream again before the next try.",
                      device->timeout_s);
    board->pause(board->context);
  }
  device->cycles += device->core == VTA_CHISEL ? get(device, 0x04) : 0;
  board->invalidate(board->context, &device->image);
  return 0;
}

static int launch(vta_device *device) {
  const vta_board *board = device->board;
  double begin = board->seconds(board->context);
  device->cycles = 0;
  for (size_t n = 0; n < device->step_count; n++) {
    const step *part = &device->steps[n];
    if (part->function)
      part->function(device->image.data);
    else if (run_instructions(device, part))
      return -1;
  }
  device->seconds = board->seconds(board->context) - begin;
  return 0;
}

static void pack(const region *in, size_t block, const int8_t *input, int8_t *to) {
  if (!in->tiles) {
    memcpy(to, input, in->bytes);
    return;
  }
  memset(to, 0, in->bytes);
  for (size_t c = 0; c < in->channels; c++)
    for (size_t p = 0; p < in->pixels; p++)
      to[(c / block * in->pixels + p) * block + c % block] = input[c * in->pixels + p];
}

static void unpack(const region *out, size_t block, const int8_t *from, int8_t *output) {
  if (!out->tiles) {
    memcpy(output, from, out->bytes);
    return;
  }
  for (size_t c = 0; c < out->channels; c++)
    for (size_t p = 0; p < out->pixels; p++)
      output[c * out->pixels + p] = from[(c / block * out->pixels + p) * block + c % block];
}

int vta_run(vta_device *device, const int8_t *input, int8_t *output) {
  int8_t *memory = (int8_t *)device->image.data;
  for (size_t n = 0; n < device->input_count; n++) {
    const region *in = &device->inputs[n];
    pack(in, device->block, input, memory + in->offset);
    input += in->elements;
  }
  if (launch(device)) return -1;
  for (size_t n = 0; n < device->output_count; n++) {
    const region *out = &device->outputs[n];
    unpack(out, device->block, memory + out->offset, output);
    output += out->elements;
  }
  return 0;
}

/* Self-test */

/* The data of a .npy file of version 1, which must have `elements` bytes. */
static int8_t *read_npy(const char *folder, const char *name, size_t elements, uint8_t **file) {
  size_t bytes;
  *file = read_file(folder, name, &bytes);
  if (!*file) return NULL;
  size_t header = bytes > 10 ? 10u + (*file)[8] + 256u * (*file)[9] : bytes;
  if (header + elements == bytes) return (int8_t *)*file + header;
  vta_fail("%s/%s does not hold %zu int8 values.", folder, name, elements);
  return NULL;
}

static int wrong_set(const char *why) {
  char reason[300];
  snprintf(reason, sizeof reason, "%s", why);
  return vta_fail("The bitstream does not speak the program's instruction set: %s", reason);
}

int vta_self_test(const vta_board *board, const char *place, vta_core core, uint64_t base) {
  char probe[4096];
  snprintf(probe, sizeof probe, "%s/probe", place);
  vta_device *device;
  /* The probe stores nothing: a core of the other instruction set would take a STORE's address from other bits. */
  if (core == VTA_HLS) {
    if (!(device = vta_open(board, probe, core, base, 0.2))) return -1;
    int failed = launch(device);
    vta_close(device);
    if (failed) return wrong_set("the probe got no answer.");
  }
  if (!(device = vta_open(board, place, core, base, 1.0))) return -1;
  uint8_t *files[2] = {NULL, NULL};
  int8_t *input = read_npy(place, "input.npy", vta_input_elements(device), &files[0]);
  int8_t *expected = input ? read_npy(place, "expected.npy", vta_output_elements(device), &files[1]) : NULL;
  int8_t *output = expected ? malloc(vta_output_elements(device)) : NULL;
  int failed = !output || vta_run(device, input, output);
  if (!failed && memcmp(output, expected, vta_output_elements(device)))
    failed = wrong_set("the self-test gave other values.");
  free(output);
  free(files[0]);
  free(files[1]);
  vta_close(device);
  return failed ? -1 : 0;
}
