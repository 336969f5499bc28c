/* Stands in for libcuda.so.1 and libcudart.so.13 where there is no GPU: what TVM calls of them, and no more.
 *
 * Device memory is memory of this process, between pages that nobody may touch; kernels are host code that kernels.h
 * makes of CUDA C. An image is either "TVMFLOW STANDIN" and the path of that host code, or anything at all, such as
 * the machine code of a real GPU, if $TVMFLOW_STANDIN_KERNELS names the host code of the same kernels, or if it is that
 * of a file X.image in the folder $TVMFLOW_STANDIN_IMAGES, where X.so is its host code.
 * It is built twice, each library keeping the other's half hidden; CUDART says which.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "TVMFLOW STANDIN\n"

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
       LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALID = 901 };

typedef int (*launch_function)(const unsigned *grid, const unsigned *block, unsigned shared, void **arguments,
                               char *error, size_t size);

typedef struct {
  char name[256];
  launch_function launch;
  const unsigned *sizes; /* bytes of each parameter, then 0 */
  unsigned dynamic_shared_limit;
} function;

typedef struct command { /* what a captured stream will do: a launch, or a copy if `function` is NULL */
  struct command *next;
  function *function;
  unsigned grid[3], block[3], shared;
  void **arguments;
  void *to;
  const void *from;
  size_t bytes;
} command;

typedef struct {
  command *first, **end;
} graph;

/* Memory: [no access] [header page] [poison … data, poison] [no access], the data's end as close to the last page as
 * the widest vector allows: cudaMalloc aligns to 256 bytes, which would hide reads up to 255 bytes too far. What lies
 * around the data is looked at after each launch. */

#define ALIGNMENT 16
#define POISON 0xFF /* as float32 and float16 no number */

typedef struct allocation {
  struct allocation *next, **before;
  size_t mapped, bytes, slack;
  unsigned char *data;
} allocation;

/* What both halves share: the one in libcuda.so.1, which exports it. */
typedef struct {
  unsigned long launches, kernels; /* what the host has launched, graphs included, and the kernels that ran */
  char message[1024];
  graph *capturing;
  void *captured_stream;
  allocation *allocations;
} shared_state;

static int setting(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}

static const char *error_text(int code, const char *message) {
  switch (code) {
    case SUCCESS: return "no error";
    case INVALID_IMAGE: case LAUNCH_FAILED: case ILLEGAL_ADDRESS: case INVALID_VALUE: case OUT_OF_MEMORY:
      return message[0] ? message : "stand-in: invalid argument";
    case NOT_FOUND: return "stand-in: the kernels have no function of that name";
    case CAPTURE_UNSUPPORTED: return "stand-in: this isn't allowed while a stream is being captured";
    case CAPTURE_INVALID: return "stand-in: the stream is not being captured as it should be";
    default: return "stand-in: not supported";
  }
}

/* Whether something was written around an allocation; if so, the message says what. */
static int overran(const shared_state *state, char *message, size_t size, const char *who) {
  size_t page = sysconf(_SC_PAGESIZE);
  for (const allocation *found = state->allocations; found; found = found->next) {
    const unsigned char *end = found->data + found->bytes;
    for (size_t index = found->slack; index-- > 0;)
      if (end[index] != POISON) {
        snprintf(message, size, "stand-in: %s wrote up to %zu bytes behind the end of %zu bytes of device memory", who,
                 index + 1, found->bytes);
        return 1;
      }
    for (const unsigned char *place = (const unsigned char *)found + page; place < found->data; place++)
      if (*place != POISON) {
        snprintf(message, size, "stand-in: %s wrote up to %zd bytes before the start of %zu bytes of device memory", who,
                 (ssize_t)(found->data - place), found->bytes);
        return 1;
      }
  }
  return 0;
}

static int launch(shared_state *state, const function *kernel, const unsigned *grid, const unsigned *block,
                  unsigned shared, void **arguments) {
  state->kernels++;
  int code = kernel->launch(grid, block, shared, arguments, state->message, sizeof state->message);
  if (!code && overran(state, state->message, sizeof state->message, kernel->name)) code = ILLEGAL_ADDRESS;
  return code;
}

static void append(graph *into, const command *what) {
  command *copy = malloc(sizeof *copy);
  *copy = *what;
  copy->next = NULL;
  *into->end = copy;
  into->end = &copy->next;
}

#ifndef CUDART

shared_state tvmflow_standin_state;
#define state tvmflow_standin_state

int cuGetErrorName(int code, const char **text) {
  *text = error_text(code, state.message);
  return SUCCESS;
}

int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

int cuDeviceGetName(char *name, int length, int device) {
  (void)device;
  snprintf(name, length, "stand-in for sm_%d", setting("TVMFLOW_STANDIN_ARCH", 87));
  return SUCCESS;
}

/* Whether a file is how the image begins. */
static int holds(const char *path, const unsigned char *image) {
  FILE *file = fopen(path, "rb");
  int byte = EOF, same = file != NULL;
  while (same && (byte = fgetc(file)) != EOF) same = byte == *image++;
  if (file) fclose(file);
  return same;
}

/* The host code of an image in $TVMFLOW_STANDIN_IMAGES, written into `path`; NULL if it isn't there. */
static const char *remembered(const void *image, char *path, size_t size) {
  const char *folder = getenv("TVMFLOW_STANDIN_IMAGES"), *found = NULL;
  DIR *files = folder ? opendir(folder) : NULL;
  for (struct dirent *entry; files && !found && (entry = readdir(files));) {
    const char *ending = strstr(entry->d_name, ".image");
    if (!ending) continue;
    snprintf(path, size, "%s/%s", folder, entry->d_name);
    if (!holds(path, image)) continue;
    snprintf(path, size, "%s/%.*s.so", folder, (int)(ending - entry->d_name), entry->d_name);
    found = path;
  }
  if (files) closedir(files);
  return found;
}

int cuModuleLoadData(void **module, const void *image) {
  char place[4096];
  const char *path = remembered(image, place, sizeof place);
  if (!path) path = getenv("TVMFLOW_STANDIN_KERNELS");
  if (strncmp(image, MAGIC, strlen(MAGIC)) == 0) path = (const char *)image + strlen(MAGIC);
  if (!path || !*path) {
    snprintf(state.message, sizeof state.message,
             "stand-in: this is real machine code, and TVMFLOW_STANDIN_KERNELS names no host code of it");
    return INVALID_IMAGE;
  }
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (*module) return SUCCESS;
  snprintf(state.message, sizeof state.message, "stand-in: %s", dlerror());
  return INVALID_IMAGE;
}

int cuModuleUnload(void *module) {
  (void)module; /* its functions may still be in a graph */
  return SUCCESS;
}

int cuModuleGetFunction(void **found, void *module, const char *name) {
  char symbol[512];
  function *made = calloc(1, sizeof *made);
  snprintf(made->name, sizeof made->name, "%s", name);
  snprintf(symbol, sizeof symbol, "standin_launch_%s", name);
  made->launch = (launch_function)dlsym(module, symbol);
  snprintf(symbol, sizeof symbol, "standin_sizes_%s", name);
  made->sizes = dlsym(module, symbol);
  made->dynamic_shared_limit = 48 << 10;
  *found = made;
  return made->launch && made->sizes ? SUCCESS : NOT_FOUND;
}

int cuFuncSetAttribute(function *of, int attribute, int value) {
  if (attribute == 8) { /* CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
    if (value > setting("TVMFLOW_STANDIN_SHARED_OPT_IN", 48 << 10)) return INVALID_VALUE;
    of->dynamic_shared_limit = value;
  }
  return SUCCESS;
}

/* CUlaunchConfig as far as it is read */
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned attribute_count;
} launch_config;

static int refuse(const char *what, unsigned value, unsigned limit) {
  snprintf(state.message, sizeof state.message, "stand-in: %s is %u, where %u is the most", what, value, limit);
  return INVALID_VALUE;
}

int cuLaunchKernelEx(const launch_config *config, function *kernel, void **arguments, void **extra) {
  (void)extra;
  unsigned threads = config->block[0] * config->block[1] * config->block[2];
  if (threads < 1 || threads > 1024) return refuse("the block's number of threads", threads, 1024);
  if (config->block[2] > 64) return refuse("blockDim.z", config->block[2], 64);
  for (int axis = 1; axis < 3; axis++)
    if (config->grid[axis] > 65535) return refuse(axis == 1 ? "gridDim.y" : "gridDim.z", config->grid[axis], 65535);
  if (config->shared > kernel->dynamic_shared_limit)
    return refuse("dynamic shared memory", config->shared, kernel->dynamic_shared_limit);
  if (state.capturing) {
    if (config->stream != state.captured_stream) return CAPTURE_UNSUPPORTED;
    command made = {.function = kernel, .shared = config->shared};
    memcpy(made.grid, config->grid, sizeof made.grid);
    memcpy(made.block, config->block, sizeof made.block);
    size_t count = 0;
    while (kernel->sizes[count]) count++;
    made.arguments = calloc(count + 1, sizeof(void *));
    for (size_t index = 0; index < count; index++) {
      made.arguments[index] = malloc(kernel->sizes[index]);
      memcpy(made.arguments[index], arguments[index], kernel->sizes[index]);
    }
    append(state.capturing, &made);
    return SUCCESS;
  }
  state.launches++;
  return launch(&state, kernel, config->grid, config->block, config->shared, arguments);
}

int cuTensorMapEncodeTiled(void) { return NOT_SUPPORTED; }

#else /* CUDART */

extern shared_state tvmflow_standin_state;
#define state tvmflow_standin_state

static int last_error;

static int result(int code) {
  if (code) last_error = code;
  return code;
}

const char *cudaGetErrorName(int code) { return error_text(code, state.message); }
const char *cudaGetErrorString(int code) { return error_text(code, state.message); }
int cudaGetLastError(void) {
  int code = last_error;
  last_error = SUCCESS;
  return code;
}
int cudaPeekAtLastError(void) { return last_error; }

/* ---- device */

int cudaGetDeviceCount(int *count) {
  *count = 1;
  return SUCCESS;
}
int cudaGetDevice(int *device) {
  *device = 0;
  return SUCCESS;
}
int cudaSetDevice(int device) { return result(device == 0 ? SUCCESS : 101); }
int cudaGetDeviceProperties(void *properties, int device) {
  (void)properties, (void)device;
  return result(NOT_SUPPORTED);
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  int architecture = setting("TVMFLOW_STANDIN_ARCH", 87);
  switch (attribute) { /* numbers of enum cudaDeviceAttr */
    case 1: case 2: case 3: *value = 1024; break; /* threads of a block, of its x and of its y */
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;
    case 6: case 7: *value = 65535; break;
    case 8: *value = 48 << 10; break; /* shared memory of a block */
    case 10: *value = 32; break;
    case 12: *value = 65536; break; /* registers of a block */
    case 16: *value = setting("TVMFLOW_STANDIN_SMS", 8); break;
    case 38: *value = 2 << 20; break; /* L2 */
    case 75: *value = architecture / 10; break;
    case 76: *value = architecture % 10; break;
    case 97: *value = setting("TVMFLOW_STANDIN_SHARED_OPT_IN", 48 << 10); break;
    default: *value = 0;
  }
  return SUCCESS;
}

/* ---- memory */

static allocation *allocation_of(void *data, size_t page) {
  return (allocation *)(((uintptr_t)data & ~(uintptr_t)(page - 1)) - page);
}

/* Under AddressSanitizer its own allocator does all this, and it sees single bytes and what has been freed. */
static int sanitized(void) { return getenv("TVMFLOW_STANDIN_SANITIZED") != NULL; }

int cudaMalloc(void **pointer, size_t bytes) {
  if (state.capturing) return result(CAPTURE_UNSUPPORTED);
  if (sanitized()) {
    if (posix_memalign(pointer, 256, bytes)) return result(OUT_OF_MEMORY);
    memset(*pointer, POISON, bytes);
    return SUCCESS;
  }
  size_t page = sysconf(_SC_PAGESIZE), rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (rounded == 0) rounded = ALIGNMENT;
  size_t usable = (rounded + page - 1) / page * page, mapped = usable + 3 * page;
  unsigned char *start = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) {
    snprintf(state.message, sizeof state.message, "stand-in: no memory for %zu bytes", bytes);
    return result(OUT_OF_MEMORY);
  }
  unsigned char *data = start + 2 * page + usable - rounded;
  mprotect(start, page, PROT_NONE);
  mprotect(start + 2 * page + usable, page, PROT_NONE);
  memset(start + 2 * page, POISON, usable);
  allocation *made = allocation_of(data, page);
  *made = (allocation){.next = state.allocations, .before = &state.allocations, .mapped = mapped, .bytes = bytes,
                       .slack = rounded - bytes, .data = data};
  if (made->next) made->next->before = &made->next;
  state.allocations = made;
  *pointer = data;
  return SUCCESS;
}

int cudaFree(void *pointer) {
  if (!pointer) return SUCCESS;
  if (state.capturing) return result(CAPTURE_UNSUPPORTED);
  if (sanitized()) {
    free(pointer);
    return SUCCESS;
  }
  size_t page = sysconf(_SC_PAGESIZE);
  allocation *found = allocation_of(pointer, page);
  *found->before = found->next;
  if (found->next) found->next->before = found->before;
  munmap((char *)found - page, found->mapped);
  return SUCCESS;
}

int cudaMallocHost(void **pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
int cudaFreeHost(void *pointer) { return cudaFree(pointer); }

int cudaMemGetInfo(size_t *available, size_t *total) {
  *available = *total = (size_t)8 << 30;
  return SUCCESS;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  (void)kind;
  if (state.capturing) {
    if (stream != state.captured_stream) return result(CAPTURE_UNSUPPORTED);
    command made = {.to = to, .from = from, .bytes = bytes};
    append(state.capturing, &made);
  } else {
    memmove(to, from, bytes);
  }
  return SUCCESS;
}

int cudaMemcpyPeerAsync(void *to, int device, const void *from, int other, size_t bytes, void *stream) {
  (void)device, (void)other;
  return cudaMemcpyAsync(to, from, bytes, 0, stream);
}

/* ---- events and streams: everything has happened when it is called. Times say nothing about a GPU. */

int cudaEventCreate(void **event) {
  *event = calloc(1, sizeof(struct timespec));
  return SUCCESS;
}
int cudaEventDestroy(void *event) {
  free(event);
  return SUCCESS;
}
int cudaEventRecord(void *event, void *stream) {
  (void)stream;
  clock_gettime(CLOCK_MONOTONIC, event);
  return SUCCESS;
}
int cudaEventSynchronize(void *event) {
  (void)event;
  return SUCCESS;
}
int cudaEventElapsedTime(float *ms, void *first, void *last) {
  struct timespec *begin = first, *end = last;
  *ms = (end->tv_sec - begin->tv_sec) * 1e3f + (end->tv_nsec - begin->tv_nsec) * 1e-6f;
  return SUCCESS;
}
int cudaStreamCreate(void **stream) {
  *stream = calloc(1, 8);
  return SUCCESS;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
  (void)flags;
  return cudaStreamCreate(stream);
}
int cudaStreamDestroy(void *stream) {
  free(stream);
  return SUCCESS;
}
int cudaStreamSynchronize(void *stream) {
  (void)stream;
  return result(state.capturing ? CAPTURE_INVALID : SUCCESS);
}
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
  (void)stream, (void)event, (void)flags;
  return SUCCESS;
}

/* ---- graphs: what a stream was told between begin and end of a capture, done again at each launch */

int cudaStreamBeginCapture(void *stream, int mode) {
  (void)mode;
  if (state.capturing || !stream) return result(CAPTURE_INVALID);
  state.captured_stream = stream;
  state.capturing = calloc(1, sizeof(graph));
  state.capturing->end = &state.capturing->first;
  return SUCCESS;
}
int cudaStreamEndCapture(void *stream, void **made) {
  if (!state.capturing || stream != state.captured_stream) return result(CAPTURE_INVALID);
  *made = state.capturing;
  state.capturing = NULL;
  return SUCCESS;
}
int cudaGraphInstantiate(void **executable, void *made, unsigned long long flags) {
  (void)flags;
  *executable = made;
  return SUCCESS;
}
int cudaGraphLaunch(void *executable, void *stream) {
  (void)stream;
  state.launches++;
  for (command *step = ((graph *)executable)->first; step; step = step->next) {
    if (!step->function) {
      memmove(step->to, step->from, step->bytes);
      continue;
    }
    int code = launch(&state, step->function, step->grid, step->block, step->shared, step->arguments);
    if (code) return result(code);
  }
  return SUCCESS;
}
int cudaGraphDestroy(void *made) {
  (void)made; /* the executable is the same object; a process captures few */
  return SUCCESS;
}
int cudaGraphExecDestroy(void *executable) {
  (void)executable;
  return SUCCESS;
}

#endif
