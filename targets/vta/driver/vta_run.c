/* vta_run BUNDLE INPUT OUTPUT [hls|chisel] [BASE]: one inference on a PYNQ board, from files of int8, 1×C×H×W.
 *
 * Several inputs or outputs are one behind the other in one file.
 *
 * In a bundle's folder runner: cc -O2 vta_run.c vta_driver.c vta_linux.c -ldl -o vta_run
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vta_driver.h"

static int failed(void) {
  fprintf(stderr, "vta_run: %s\n", vta_error());
  return 7;
}

int main(int count, char **arguments) {
  if (count < 4 || count > 6) {
    fprintf(stderr, "usage: vta_run BUNDLE INPUT OUTPUT [hls|chisel] [BASE]\n");
    return 2;
  }
  const char *folder = arguments[1];
  vta_core core = count > 4 && strcmp(arguments[4], "chisel") == 0 ? VTA_CHISEL : VTA_HLS;
  uint64_t base = count > 5 ? strtoull(arguments[5], NULL, 0) : 0x43C00000;
  vta_board board;
  char place[4096];
  snprintf(place, sizeof place, "%s/runner/selftest", folder);
  if (vta_linux_open(&board, base) || vta_self_test(&board, place, core, base)) return failed();
  vta_device *device = vta_open(&board, folder, core, base, 10.0);
  if (!device) return failed();
  size_t inputs = vta_input_elements(device), outputs = vta_output_elements(device);
  int8_t *input = malloc(inputs), *output = malloc(outputs);
  FILE *file = fopen(arguments[2], "rb");
  if (!input || !output || !file || fread(input, 1, inputs, file) != inputs) {
    fprintf(stderr, "vta_run: %s does not hold %zu int8 values.\n", arguments[2], inputs);
    return 4;
  }
  fclose(file);
  if (vta_run(device, input, output)) return failed();
  file = fopen(arguments[3], "wb");
  if (!file || fwrite(output, 1, outputs, file) != outputs || fclose(file)) {
    fprintf(stderr, "vta_run: %s can't be written.\n", arguments[3]);
    return 4;
  }
  printf("%.6f s\n", vta_seconds(device));
  vta_close(device);
  free(input);
  free(output);
  return 0;
}
