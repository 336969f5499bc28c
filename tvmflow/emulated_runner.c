/* Runs a compiled network inside an emulator: emulated_runner LIBRARY RUNS INPUT...
 *
 * Each INPUT is `code,bits,dim,dim,…` (code and bits of a DLDataType). The current folder has input-0.raw, input-1.raw, …,
 * each with the tensors of all runs one after the other; output-0.raw, … are left there in the same form. Standard
 * output gets one `code,bits,dim,…` line for each output. Exit status 1 and one line on standard error: the library
 * refused, or its files are not what they should be.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#define MAX_TENSORS 64
#define MAX_DIMS 8
#define ALIGNMENT 64

/* C has no accessors: the cell of every object follows its header. */
#define CELL(object) ((void *)((char *)(object) + sizeof(TVMFFIObject)))

typedef struct {
  DLManagedTensor managed;
  int64_t shape[MAX_DIMS];
  size_t bytes;
  FILE *file;
} Input;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void check(int status, const char *what) {
  if (status == 0) return;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) fail(what, "no message");
  TVMFFIErrorCell *cell = CELL(error);
  fprintf(stderr, "%s: %.*s: %.*s\n", what, (int)cell->kind.size, cell->kind.data, (int)cell->message.size,
          cell->message.data);
  exit(1);
}

static TVMFFIAny text(const char *value) {
  TVMFFIAny any = {.type_index = kTVMFFIRawStr};
  any.v_c_str = value;
  return any;
}

static TVMFFIAny integer(int64_t value) {
  TVMFFIAny any = {.type_index = kTVMFFIInt};
  any.v_int64 = value;
  return any;
}

static TVMFFIAny object(int32_t type_index, TVMFFIObjectHandle handle) {
  TVMFFIAny any = {.type_index = type_index};
  any.v_obj = handle;
  return any;
}

static TVMFFIAny call(TVMFFIObjectHandle function, TVMFFIAny *arguments, int count, const char *what) {
  TVMFFIAny result = {.type_index = kTVMFFINone};
  check(TVMFFIFunctionCall(function, arguments, count, &result), what);
  return result;
}

static TVMFFIObjectHandle global(const char *name) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  check(TVMFFIFunctionGetGlobal(&bytes, &function), name);
  if (function == NULL) fail(name, "the runtime has no such function");
  return function;
}

static TVMFFIObjectHandle method(TVMFFIAny module, const char *name) {
  TVMFFIAny query_imports = {.type_index = kTVMFFIBool};
  query_imports.v_int64 = 1;
  TVMFFIAny arguments[] = {module, text(name), query_imports};
  TVMFFIAny function = call(global("ffi.ModuleGetFunction"), arguments, 3, name);
  if (function.type_index != kTVMFFIFunction) fail(name, "the library has no such function");
  return function.v_obj;
}

static FILE *open_numbered(const char *stem, int index, const char *mode) {
  char name[32];
  snprintf(name, sizeof name, "%s-%d.raw", stem, index);
  FILE *file = fopen(name, mode);
  if (file == NULL) fail(name, "can't be opened");
  return file;
}

static size_t byte_count(const DLTensor *tensor) {
  size_t bytes = (size_t)tensor->dtype.bits * tensor->dtype.lanes / 8;
  for (int axis = 0; axis < tensor->ndim; ++axis) bytes *= (size_t)tensor->shape[axis];
  return bytes;
}

static void keep(DLManagedTensor *self) { (void)self; }

static TVMFFIAny parse_input(Input *input, const char *spec) {
  DLTensor *tensor = &input->managed.dl_tensor;
  char *rest = NULL;
  tensor->device = (DLDevice){kDLCPU, 0};
  tensor->dtype.code = (uint8_t)strtol(spec, &rest, 10);
  tensor->dtype.bits = *rest == ',' ? (uint8_t)strtol(rest + 1, &rest, 10) : 0;
  tensor->dtype.lanes = 1;
  tensor->shape = input->shape;
  while (*rest == ',' && tensor->ndim < MAX_DIMS) input->shape[tensor->ndim++] = strtoll(rest + 1, &rest, 10);
  if (*rest != '\0' || tensor->dtype.bits == 0) fail(spec, "is no tensor that this runner can make");
  input->bytes = byte_count(tensor);
  tensor->data = aligned_alloc(ALIGNMENT, (input->bytes / ALIGNMENT + 1) * ALIGNMENT);
  if (tensor->data == NULL) fail(spec, "there is no memory for it");
  input->managed.deleter = keep;
  TVMFFIObjectHandle handle = NULL;
  check(TVMFFITensorFromDLPack(&input->managed, ALIGNMENT, 1, &handle), spec);
  return object(kTVMFFITensor, handle);
}

static void write_output(int index, int run, TVMFFIAny value) {
  static FILE *files[MAX_TENSORS];
  if (value.type_index != kTVMFFITensor || index >= MAX_TENSORS) fail("main", "its result is no tuple of tensors");
  const DLTensor *tensor = CELL(value.v_obj);
  if (run == 0) {
    files[index] = open_numbered("output", index, "wb");
    printf("%d,%d", tensor->dtype.code, tensor->dtype.bits);
    for (int axis = 0; axis < tensor->ndim; ++axis) printf(",%lld", (long long)tensor->shape[axis]);
    printf("\n");
  }
  size_t bytes = byte_count(tensor);
  if (fwrite((char *)tensor->data + tensor->byte_offset, 1, bytes, files[index]) != bytes || fflush(files[index]) != 0)
    fail("output", "can't be written");
}

int main(int argc, char **argv) {
  static Input inputs[MAX_TENSORS];
  TVMFFIAny arguments[MAX_TENSORS];
  int count = argc - 3;
  if (count < 0 || count > MAX_TENSORS) fail("emulated_runner", "it takes LIBRARY RUNS INPUT...");

  /* Nothing here calls it by name, so a linker would drop it: it registers the virtual machine as it is loaded. */
  if (dlopen("libtvm_runtime.so", RTLD_NOW | RTLD_GLOBAL) == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }

  TVMFFIAny path = text(argv[1]);
  TVMFFIAny library = call(global("ffi.ModuleLoadFromFile"), &path, 1, "the library can't be loaded");
  TVMFFIAny machine = call(method(library, "vm_load_executable"), NULL, 0, "vm_load_executable");
  TVMFFIAny device[] = {integer(kDLCPU), integer(0), integer(2)}; /* 2: pooled allocator */
  call(method(machine, "vm_initialization"), device, 3, "vm_initialization");
  TVMFFIObjectHandle entry = method(machine, "main");
  TVMFFIObjectHandle array_size = global("ffi.ArraySize"), array_item = global("ffi.ArrayGetItem");

  for (int index = 0; index < count; ++index) {
    arguments[index] = parse_input(&inputs[index], argv[index + 3]);
    inputs[index].file = open_numbered("input", index, "rb");
  }
  for (int run = 0; run < atoi(argv[2]); ++run) {
    for (int index = 0; index < count; ++index)
      if (fread(inputs[index].managed.dl_tensor.data, 1, inputs[index].bytes, inputs[index].file) != inputs[index].bytes)
        fail("input", "ends early");
    TVMFFIAny result = call(entry, arguments, count, "main");
    if (result.type_index == kTVMFFIArray) {
      int64_t size = call(array_size, &result, 1, "main").v_int64;
      for (int64_t index = 0; index < size; ++index) {
        TVMFFIAny item[] = {result, integer(index)};
        TVMFFIAny value = call(array_item, item, 2, "main");
        write_output((int)index, run, value);
        TVMFFIObjectDecRef(value.v_obj);
      }
    } else {
      write_output(0, run, result);
    }
    TVMFFIObjectDecRef(result.v_obj);
  }
  return 0;
}
