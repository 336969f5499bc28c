/* libtvmflow.so: tvmflow.h over the C interface of TVM's runtime. */
#include "tvmflow.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#define MAX_TENSORS 64
#define MAX_VECTORS 64
#define NAME_BYTES 256
#define ALIGNMENT 64

/* C has no accessors: the cell of every object follows its header. */
#define CELL(object) ((void *)((char *)(object) + sizeof(TVMFFIObject)))

typedef struct {
  tvmflow_tensor described;
  char name[NAME_BYTES], dtype[16];
  DLDataType type;
} Tensor;

struct tvmflow_network {
  char library[4096];
  Tensor inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  int input_count, output_count, vector_count;
  char vectors[MAX_VECTORS][NAME_BYTES];
  double tolerances[MAX_VECTORS][MAX_TENSORS];
  DLManagedTensor storage[MAX_TENSORS];
  TVMFFIAny arguments[MAX_TENSORS];
  TVMFFIAny module, machine, entry, result;
};

static char message[2048];

const char *tvmflow_error(void) { return message; }

static int fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  return -1;
}

/* ---------------------------------------------------------------------------------------------- TVM's interface */

static int check(int status, const char *what) {
  if (status == 0) return 0;
  TVMFFIObjectHandle error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  if (error == NULL) return fail("%s: no message", what);
  TVMFFIErrorCell *cell = CELL(error);
  fail("%s: %.*s: %.*s", what, (int)cell->kind.size, cell->kind.data, (int)cell->message.size, cell->message.data);
  TVMFFIObjectDecRef(error);
  return -1;
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

static void release(TVMFFIAny *any) {
  if (any->type_index >= kTVMFFIStaticObjectBegin && any->v_obj != NULL) TVMFFIObjectDecRef(any->v_obj);
  *any = (TVMFFIAny){.type_index = kTVMFFINone};
}

static int call(TVMFFIObjectHandle function, TVMFFIAny *arguments, int count, TVMFFIAny *result, const char *what) {
  *result = (TVMFFIAny){.type_index = kTVMFFINone};
  return check(TVMFFIFunctionCall(function, arguments, count, result), what);
}

static int call_global(const char *name, TVMFFIAny *arguments, int count, TVMFFIAny *result, const char *what) {
  TVMFFIByteArray bytes = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  if (check(TVMFFIFunctionGetGlobal(&bytes, &function), name) != 0) return -1;
  if (function == NULL) return fail("TVM's runtime has no function %s", name);
  int status = call(function, arguments, count, result, what);
  TVMFFIObjectDecRef(function);
  return status;
}

static int method(TVMFFIAny module, const char *name, TVMFFIAny *function) {
  TVMFFIAny query_imports = {.type_index = kTVMFFIBool};
  query_imports.v_int64 = 1;
  TVMFFIAny arguments[] = {module, text(name), query_imports};
  if (call_global("ffi.ModuleGetFunction", arguments, 3, function, name) != 0) return -1;
  return function->type_index == kTVMFFIFunction ? 0 : fail("the library has no function %s", name);
}

/* -------------------------------------------------------------------------------------------------- description */

static int parse_tensor(Tensor *tensor, const char *line) {
  tvmflow_tensor *described = &tensor->described;
  int used = 0;
  if (sscanf(line, "%255s %15s%n", tensor->name, tensor->dtype, &used) != 2) return fail("no tensor: %s", line);
  described->name = tensor->name;
  described->dtype = tensor->dtype;
  const char *digits = strpbrk(tensor->dtype, "0123456789");
  int bits = strcmp(tensor->dtype, "bool") == 0 ? 8 : digits == NULL ? 0 : atoi(digits);
  int code = tensor->dtype[0] == 'f' ? kDLFloat : tensor->dtype[0] == 'u' ? kDLUInt : kDLInt;
  if (tensor->dtype[0] == 'b') code = tensor->dtype[1] == 'f' ? kDLBfloat : kDLBool;
  if (bits < 8 || bits > 64) return fail("a tensor of %s can't be given to a network", tensor->dtype);
  tensor->type = (DLDataType){.code = (uint8_t)code, .bits = (uint8_t)bits, .lanes = 1};
  described->bytes = (size_t)bits / 8;
  for (line += used;; line += used) {
    long long dim;
    if (sscanf(line, "%lld%n", &dim, &used) != 1) break;
    if (described->ndim == TVMFLOW_MAX_DIMS) return fail("%s has more than %d axes", tensor->name, TVMFLOW_MAX_DIMS);
    described->shape[described->ndim++] = dim;
    described->bytes *= (size_t)dim;
  }
  return 0;
}

/* network.txt: what the manifest says, in words that need no JSON parser. */
static int read_description(tvmflow_network *network, const char *bundle) {
  char path[4096], line[1024];
  snprintf(path, sizeof path, "%s/runner/network.txt", bundle);
  FILE *file = fopen(path, "r");
  if (file == NULL) return fail("%s can't be opened", path);
  int status = 0, allowed_count = 0; /* of the last vector */
  while (status == 0 && fgets(line, sizeof line, file) != NULL) {
    char word[16];
    int used = 0;
    if (sscanf(line, "%15s %n", word, &used) != 1) continue;
    const char *rest = line + used;
    if (strcmp(word, "library") == 0) {
      char name[NAME_BYTES];
      if (sscanf(rest, "%255s", name) == 1) snprintf(network->library, sizeof network->library, "%s/%s", bundle, name);
    } else if (strcmp(word, "input") == 0 && network->input_count < MAX_TENSORS) {
      status = parse_tensor(&network->inputs[network->input_count++], rest);
    } else if (strcmp(word, "output") == 0 && network->output_count < MAX_TENSORS) {
      status = parse_tensor(&network->outputs[network->output_count++], rest);
    } else if (strcmp(word, "vector") == 0 && network->vector_count < MAX_VECTORS) {
      sscanf(rest, "%255s", network->vectors[network->vector_count++]);
      allowed_count = 0;
    } else if (strcmp(word, "tolerance") == 0 && network->vector_count > 0 && allowed_count < MAX_TENSORS) {
      network->tolerances[network->vector_count - 1][allowed_count++] = atof(rest);
    } else {
      status = fail("%s has a line that this runner doesn't know: %s", path, line);
    }
  }
  fclose(file);
  if (status == 0 && network->library[0] == '\0') return fail("%s names no library", path);
  return status;
}

/* ------------------------------------------------------------------------------------------------------ network */

static void keep(DLManagedTensor *self) { (void)self; }

static int make_inputs(tvmflow_network *network) {
  for (int index = 0; index < network->input_count; ++index) {
    Tensor *input = &network->inputs[index];
    DLManagedTensor *managed = &network->storage[index];
    managed->dl_tensor.device = (DLDevice){kDLCPU, 0};
    managed->dl_tensor.dtype = input->type;
    managed->dl_tensor.ndim = input->described.ndim;
    managed->dl_tensor.shape = input->described.shape;
    managed->dl_tensor.data = aligned_alloc(ALIGNMENT, (input->described.bytes / ALIGNMENT + 1) * ALIGNMENT);
    if (managed->dl_tensor.data == NULL) return fail("there is no memory for the input %s", input->name);
    managed->deleter = keep;
    TVMFFIObjectHandle handle = NULL;
    if (check(TVMFFITensorFromDLPack(managed, ALIGNMENT, 1, &handle), input->name) != 0) return -1;
    network->arguments[index].type_index = kTVMFFITensor;
    network->arguments[index].v_obj = handle;
  }
  return 0;
}

static int load(tvmflow_network *network, const char *bundle) {
  if (read_description(network, bundle) != 0) return -1;
  /* Nothing here calls it by name, so a linker would drop it: it registers the virtual machine as it is loaded. */
  if (dlopen("libtvm_runtime.so", RTLD_NOW | RTLD_GLOBAL) == NULL) return fail("%s", dlerror());
  TVMFFIAny path = text(network->library), executable = {0}, unused;
  if (call_global("ffi.ModuleLoadFromFile", &path, 1, &network->module, "the library can't be loaded") != 0) return -1;
  if (method(network->module, "vm_load_executable", &executable) != 0) return -1;
  int status = call(executable.v_obj, NULL, 0, &network->machine, "vm_load_executable");
  release(&executable);
  if (status != 0 || method(network->machine, "vm_initialization", &executable) != 0) return -1;
  TVMFFIAny device[] = {integer(kDLCPU), integer(0), integer(2)}; /* 2: pooled allocator */
  status = call(executable.v_obj, device, 3, &unused, "vm_initialization");
  release(&executable);
  if (status != 0 || method(network->machine, "main", &network->entry) != 0) return -1;
  return make_inputs(network);
}

tvmflow_network *tvmflow_load(const char *bundle) {
  tvmflow_network *network = calloc(1, sizeof *network);
  if (network == NULL) {
    fail("there is no memory");
    return NULL;
  }
  if (load(network, bundle) == 0) return network;
  tvmflow_free(network);
  return NULL;
}

void tvmflow_free(tvmflow_network *network) {
  if (network == NULL) return;
  release(&network->result);
  for (int index = 0; index < network->input_count; ++index) {
    release(&network->arguments[index]);
    free(network->storage[index].dl_tensor.data);
  }
  release(&network->entry);
  release(&network->machine);
  release(&network->module);
  free(network);
}

const tvmflow_tensor *tvmflow_input(const tvmflow_network *network, int index) {
  return index >= 0 && index < network->input_count ? &network->inputs[index].described : NULL;
}

const tvmflow_tensor *tvmflow_output(const tvmflow_network *network, int index) {
  return index >= 0 && index < network->output_count ? &network->outputs[index].described : NULL;
}

const char *tvmflow_vector(const tvmflow_network *network, int index) {
  return index >= 0 && index < network->vector_count ? network->vectors[index] : NULL;
}

double tvmflow_tolerance(const tvmflow_network *network, int vector, int output) {
  return tvmflow_vector(network, vector) && tvmflow_output(network, output) ? network->tolerances[vector][output] : 0;
}

int tvmflow_run_again(tvmflow_network *network) {
  release(&network->result);
  return call(network->entry.v_obj, network->arguments, network->input_count, &network->result, "main");
}

const char *tvmflow_kernel(const tvmflow_network *network, int index) {
  (void)network, (void)index;
  return NULL;
}

int tvmflow_profile(tvmflow_network *network, double *microseconds) {
  (void)network, (void)microseconds;
  return fail("%s", "kernels of a module are timed apart by `tvmflow profile` alone");
}

int tvmflow_capture(tvmflow_network *network, const void *const *inputs, void *const *outputs,
                    void (*left)(int kernel, const void *data, size_t bytes)) {
  (void)network, (void)inputs, (void)outputs, (void)left;
  return fail("%s", "what kernels of a module leave is known to `tvmflow compare` alone");
}

/* Copy the elements of an axis, and of those within it, from wherever they lie; the position behind the copy. */
static char *gather(const DLTensor *tensor, int axis, const char *from, size_t width, char *to) {
  if (axis == tensor->ndim) {
    memcpy(to, from, width);
    return to + width;
  }
  for (int64_t index = 0; index < tensor->shape[axis]; ++index)
    to = gather(tensor, axis + 1, from + index * tensor->strides[axis] * (int64_t)width, width, to);
  return to;
}

/* Whether the elements lie densely in C order; axes of one element have whatever stride. */
static int is_dense(const DLTensor *tensor) {
  int64_t dense = 1;
  for (int axis = tensor->ndim - 1; tensor->strides != NULL && axis >= 0; --axis) {
    if (tensor->shape[axis] != 1 && tensor->strides[axis] != dense) return 0;
    dense *= tensor->shape[axis];
  }
  return 1;
}

static int copy_output(const tvmflow_network *network, int index, TVMFFIAny value, void *output) {
  const Tensor *expected = &network->outputs[index];
  if (value.type_index != kTVMFFITensor) return fail("output %d is no tensor", index);
  const DLTensor *tensor = CELL(value.v_obj);
  int same = tensor->dtype.code == expected->type.code && tensor->dtype.bits == expected->type.bits &&
             tensor->dtype.lanes == 1 && tensor->ndim == expected->described.ndim;
  for (int axis = 0; same && axis < tensor->ndim; ++axis) same = tensor->shape[axis] == expected->described.shape[axis];
  if (!same)
    return fail("output %d isn't the %s of %zu bytes that it should be", index, expected->dtype, expected->described.bytes);
  const char *from = (const char *)tensor->data + tensor->byte_offset;
  if (is_dense(tensor))
    memcpy(output, from, expected->described.bytes);
  else
    gather(tensor, 0, from, tensor->dtype.bits / 8, output);
  return 0;
}

int tvmflow_run(tvmflow_network *network, const void *const *inputs, void *const *outputs) {
  for (int index = 0; index < network->input_count; ++index)
    memcpy(network->storage[index].dl_tensor.data, inputs[index], network->inputs[index].described.bytes);
  if (tvmflow_run_again(network) != 0) return -1;
  if (network->result.type_index != kTVMFFIArray) {
    if (network->output_count != 1) return fail("there is one output instead of %d", network->output_count);
    return copy_output(network, 0, network->result, outputs[0]);
  }
  for (int index = 0; index < network->output_count; ++index) {
    TVMFFIAny item[] = {network->result, integer(index)}, value;
    if (call_global("ffi.ArrayGetItem", item, 2, &value, "main") != 0) return -1;
    int status = copy_output(network, index, value, outputs[index]);
    release(&value);
    if (status != 0) return -1;
  }
  return 0;
}
