/* Calls single kernels of a compiled network inside an emulator: emulated_kernels LIBRARY.
 *
 * A request on standard input is a kernel's name and its tensors; the answer on standard output is 0 and the tensors as
 * the kernel left them, or 1 and a message. Numbers are 32-bit, texts are length and bytes, a tensor is `code, bits, ndim,
 * dims, data`. This needs none of TVM's runtime, which isn't published for 32-bit ARM: it stands in for the four services
 * that kernels ask of it.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#define MAX_TENSORS 64
#define MAX_DIMS 8
#define ALIGNMENT 64
#define THREADS 2 /* one would leave the code that splits loops among threads untested */

typedef struct {
  void *sync_handle;
  int32_t num_task;
} Group; /* TVMParallelGroupEnv of tvm/runtime/c_backend_api.h */

typedef int (*Task)(int task_id, Group *group, void *data);

static char message[1024];

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(2);
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t used = (size_t)snprintf(message, sizeof message, "%s: ", kind);
  for (int32_t index = 0; index < count && used < sizeof message; ++index)
    used += (size_t)snprintf(message + used, sizeof message - used, "%s", parts[index]);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *text) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &text, 1);
}

static void *allocate(size_t bytes) {
  void *data = aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT);
  if (data == NULL) fail("there is no memory for a tensor");
  return data;
}

static void *allocate_workspace(int device_type, int device_id, uint64_t bytes, int code_hint, int bits_hint) {
  (void)device_type, (void)device_id, (void)code_hint, (void)bits_hint;
  return allocate((size_t)bytes);
}

static int free_workspace(int device_type, int device_id, void *data) {
  (void)device_type, (void)device_id;
  free(data);
  return 0;
}

/* One task after the other: what they compute is the same, for tasks may not depend on each other but by a barrier. */
static int launch(Task task, void *data, int tasks) {
  Group group = {NULL, tasks == 0 ? THREADS : tasks};
  int status = 0;
  for (int index = 0; index < group.num_task && status == 0; ++index) status = task(index, &group, data);
  return status;
}

static int barrier(int task_id, Group *group) {
  (void)task_id, (void)group;
  fail("a kernel waits at a barrier, which takes threads that this program doesn't have");
  return 1;
}

static void provide(void *library, const char *name, void *service) {
  void **pointer = dlsym(library, name);
  if (pointer != NULL) *pointer = service;
}

static void receive(void *data, size_t bytes) {
  if (bytes != 0 && fread(data, 1, bytes, stdin) != bytes) fail("the request ends early");
}

static uint32_t receive_number(void) {
  uint32_t number;
  receive(&number, sizeof number);
  return number;
}

static void send(const void *data, size_t bytes) {
  if (fwrite(data, 1, bytes, stdout) != bytes) fail("the answer can't be written");
}

static size_t receive_tensor(DLTensor *tensor, int64_t *shape) {
  memset(tensor, 0, sizeof *tensor);
  tensor->device = (DLDevice){kDLCPU, 0};
  tensor->dtype.code = (uint8_t)receive_number();
  tensor->dtype.bits = (uint8_t)receive_number();
  tensor->dtype.lanes = 1;
  tensor->ndim = (int32_t)receive_number();
  if (tensor->ndim > MAX_DIMS) fail("a tensor has too many dimensions");
  tensor->shape = shape;
  size_t bytes = tensor->dtype.bits / 8;
  for (int32_t axis = 0; axis < tensor->ndim; ++axis) bytes *= (size_t)(shape[axis] = receive_number());
  tensor->data = allocate(bytes);
  receive(tensor->data, bytes);
  return bytes;
}

int main(int argc, char **argv) {
  static DLTensor tensors[MAX_TENSORS];
  static int64_t shapes[MAX_TENSORS][MAX_DIMS];
  static size_t bytes[MAX_TENSORS];
  void *library = argc == 2 ? dlopen(argv[1], RTLD_LAZY | RTLD_LOCAL) : NULL;
  if (library == NULL) {
    fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "emulated_kernels takes LIBRARY");
    return 1;
  }
  provide(library, "__TVMBackendAllocWorkspace", (void *)allocate_workspace);
  provide(library, "__TVMBackendFreeWorkspace", (void *)free_workspace);
  provide(library, "__TVMBackendParallelLaunch", (void *)launch);
  provide(library, "__TVMBackendParallelBarrier", (void *)barrier);

  for (uint32_t length; fread(&length, sizeof length, 1, stdin) == 1; fflush(stdout)) {
    char symbol[1 << 14] = "__tvm_ffi_";
    size_t prefix = strlen(symbol);
    if (length >= sizeof symbol - prefix) fail("a kernel's name is too long");
    receive(symbol + prefix, length);
    uint32_t count = receive_number();
    if (count > MAX_TENSORS) fail("a kernel has too many tensors");
    TVMFFIAny arguments[MAX_TENSORS], result = {.type_index = kTVMFFINone};
    memset(arguments, 0, sizeof arguments);
    for (uint32_t index = 0; index < count; ++index) {
      bytes[index] = receive_tensor(&tensors[index], shapes[index]);
      arguments[index].type_index = kTVMFFIDLTensorPtr;
      arguments[index].v_ptr = &tensors[index];
    }
    TVMFFISafeCallType kernel = (TVMFFISafeCallType)dlsym(library, symbol);
    snprintf(message, sizeof message, "%s", kernel == NULL ? "the library has no such kernel" : "it failed");
    uint32_t failed = kernel == NULL || kernel(NULL, arguments, (int32_t)count, &result) != 0;
    send(&failed, sizeof failed);
    if (failed) {
      uint32_t size = (uint32_t)strlen(message);
      send(&size, sizeof size);
      send(message, size);
    }
    for (uint32_t index = 0; index < count; ++index) {
      if (!failed) send(tensors[index].data, bytes[index]);
      free(tensors[index].data);
    }
  }
  return 0;
}
