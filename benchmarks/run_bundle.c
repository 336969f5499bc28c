/* `run_bundle BUNDLE INPUT.npy N` runs the network of a bundle with a runner N times and once before, and prints its output. */
#include <stdio.h>
#include <stdlib.h>
#include <tvmflow.h>

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  tvmflow_network *network = tvmflow_load(argv[1]);
  FILE *file = fopen(argv[2], "rb");
  if (network == NULL || file == NULL) return 1;
  const tvmflow_tensor *input = tvmflow_input(network, 0), *output = tvmflow_output(network, 0);
  void *image = malloc(input->bytes), *result = malloc(output->bytes);
  if (image == NULL || result == NULL) return 1;
  /* the array is what ends the file, whatever its header says */
  if (fseek(file, -(long)input->bytes, SEEK_END) != 0 || fread(image, 1, input->bytes, file) != input->bytes) return 1;
  for (int count = atoi(argv[3]); count >= 0; --count)
    if (tvmflow_run(network, (const void *const *)&image, &result) != 0) return 1;
  for (size_t index = 0; index < output->bytes / sizeof(float); ++index) printf("%.9g\n", ((float *)result)[index]);
  return 0;
}
