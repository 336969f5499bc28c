/* A network in an application of your own, in the bundle's folder:
 *
 *     cc example.c -Irunner -Lrunner -ltvmflow -Wl,-rpath,'$ORIGIN/runner' -Wl,--allow-shlib-undefined -o example
 *     ./example .
 */
#include <stdio.h>
#include <stdlib.h>
#include <tvmflow.h>

int main(int argc, char **argv) {
  tvmflow_network *network = tvmflow_load(argc > 1 ? argv[1] : ".");
  if (network == NULL) {
    fprintf(stderr, "%s\n", tvmflow_error());
    return 1;
  }
  const tvmflow_tensor *input = tvmflow_input(network, 0), *output = tvmflow_output(network, 0);
  void *image = calloc(1, input->bytes), *logits = malloc(output->bytes);
  if (image == NULL || logits == NULL || tvmflow_run(network, (const void *const *)&image, &logits) != 0) return 1;
  for (size_t index = 0; index < output->bytes / sizeof(float); ++index) printf("%g\n", ((float *)logits)[index]);
  free(image);
  free(logits);
  tvmflow_free(network);
  return 0;
}
