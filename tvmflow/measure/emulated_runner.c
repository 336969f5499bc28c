/* Runs a compiled network inside an emulator: emulated_runner RUNS [keep|mark].
 *
 * The current folder is a bundle as libtvmflow.so knows it, with input-0.raw, input-1.raw, …, each with the tensors of all
 * runs one after the other; output-0.raw, … are left there in the same form, and in maps what Linux says of the
 * process's memory. With `keep`, kernel-0.raw, … are what each kernel of a library for C leaves, of all runs. With
 * `mark`, each run is between the marks of trace_memory.c: the last is counted, those before it fill its caches. Exit
 * status 1 and one line on standard error: the library refused, or its files are not what they should be.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tvmflow.h"

#define MAX_TENSORS 64
#define MAX_KERNELS 1000

enum { SIMULATE = 0x7a1101, COUNT, END };

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static FILE *open_numbered(const char *stem, int index, const char *mode) {
  char name[32];
  snprintf(name, sizeof name, "%s-%d.raw", stem, index);
  FILE *file = fopen(name, mode);
  if (file == NULL) fail("a file of tensors can't be opened");
  return file;
}

static FILE *kernel_files[MAX_KERNELS];

static void keep(int kernel, const void *data, size_t bytes) {
  if (kernel >= MAX_KERNELS) fail("there are too many kernels");
  if (kernel_files[kernel] == NULL) kernel_files[kernel] = open_numbered("kernel", kernel, "wb");
  if (fwrite(data, 1, bytes, kernel_files[kernel]) != bytes) fail("what a kernel leaves can't be written");
}

static void copy_maps(void) {
  FILE *from = fopen("/proc/self/maps", "r"), *to = fopen("maps", "w");
  if (from == NULL || to == NULL) fail("the map of memory can't be copied");
  for (int byte; (byte = fgetc(from)) != EOF;) fputc(byte, to);
  fclose(from);
  fclose(to);
}

int main(int argc, char **argv) {
  FILE *input_files[MAX_TENSORS], *output_files[MAX_TENSORS];
  void *inputs[MAX_TENSORS], *outputs[MAX_TENSORS];
  int kept = argc == 3 && strcmp(argv[2], "keep") == 0, marked = argc == 3 && strcmp(argv[2], "mark") == 0;
  int asked = argc == 2 || kept || marked, runs = asked ? atoi(argv[1]) : 0;
  tvmflow_network *network = asked ? tvmflow_load(".") : NULL;
  if (network == NULL) fail(asked ? tvmflow_error() : "emulated_runner takes RUNS [keep|mark]");
  int input_count = 0, output_count = 0;
  for (; tvmflow_input(network, input_count) != NULL; ++input_count) {
    inputs[input_count] = malloc(tvmflow_input(network, input_count)->bytes + 1);
    input_files[input_count] = open_numbered("input", input_count, "rb");
  }
  for (; tvmflow_output(network, output_count) != NULL; ++output_count) {
    outputs[output_count] = malloc(tvmflow_output(network, output_count)->bytes + 1);
    output_files[output_count] = open_numbered("output", output_count, "wb");
  }
  for (int run = 0; run < runs; ++run) {
    for (int index = 0; index < input_count; ++index) {
      size_t bytes = tvmflow_input(network, index)->bytes;
      if (fread(inputs[index], 1, bytes, input_files[index]) != bytes) fail("an input ends early");
    }
    if (marked) getpgid(run + 1 < runs ? SIMULATE : COUNT);
    int status = kept ? tvmflow_capture(network, (const void *const *)inputs, outputs, keep)
                      : tvmflow_run(network, (const void *const *)inputs, outputs);
    if (marked && run + 1 == runs) getpgid(END);
    if (status != 0) fail(tvmflow_error());
    for (int index = 0; index < output_count; ++index) {
      size_t bytes = tvmflow_output(network, index)->bytes;
      if (fwrite(outputs[index], 1, bytes, output_files[index]) != bytes || fflush(output_files[index]) != 0)
        fail("an output can't be written");
    }
  }
  for (int kernel = 0; kernel < MAX_KERNELS && kernel_files[kernel] != NULL; ++kernel)
    if (fclose(kernel_files[kernel]) != 0) fail("what a kernel leaves can't be written");
  copy_maps();
  return 0;
}
