/* The runner of a bundle, for devices without Python: see USAGE. */
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tvmflow.h"

#define MAX_TENSORS 64
#define USAGE \
  "usage: run INPUT.npy...          outputs, and the time they took, as JSON\n" \
  "       run --bench [SECONDS]     latency of single inferences as JSON (3 s)\n" \
  "       run --samples [SECONDS [WINDOW]]\n" \
  "                                 the same, with each inference's time, or a summary of each WINDOW seconds\n" \
  "                                 beside a million of them at most\n" \
  "       run --profile [RUNS]      time of each kernel in so many inferences as JSON, in us (50); of libraries for C\n" \
  "       run --self-test           compare with the golden vectors; 0 if they agree, 3 if not\n"
#define WARMUP_SECONDS 0.5
#define WARMUP_RUNS 10
#define MOST_SAMPLES (1 << 20)

static char bundle[PATH_MAX];
static tvmflow_network *network;
static void *inputs[MAX_TENSORS], *outputs[MAX_TENSORS], *expected[MAX_TENSORS];

static void stop(int code, const char *what, const char *why) {
  fprintf(stderr, "run: %s%s%s\n", what, *why ? ": " : "", why);
  exit(code);
}

static double now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

/* ---------------------------------------------------------------------------------------------------- .npy files */

static size_t element_count(const tvmflow_tensor *tensor) {
  size_t count = 1;
  for (int axis = 0; axis < tensor->ndim; ++axis) count *= (size_t)tensor->shape[axis];
  return count;
}

static size_t element_width(const tvmflow_tensor *tensor) {
  size_t elements = element_count(tensor);
  return elements ? tensor->bytes / elements : 0;
}

static int is(const tvmflow_tensor *tensor, const char *dtype) { return strcmp(tensor->dtype, dtype) == 0; }

/* The header that NumPy writes for a tensor, up to its padding; what says the same in another way isn't from NumPy. */
static void describe(const tvmflow_tensor *tensor, int fortran, char *text, size_t size) {
  char kind = is(tensor, "bfloat16") ? 'V' : tensor->dtype[0];
  size_t width = element_width(tensor);
  int used = snprintf(text, size, "{'descr': '%c%c%zu', 'fortran_order': %s, 'shape': (", width == 1 ? '|' : '<', kind,
                      width, fortran ? "True" : "False");
  for (int axis = 0; axis < tensor->ndim; ++axis)
    used += snprintf(text + used, size - (size_t)used, axis ? ", %lld" : "%lld", (long long)tensor->shape[axis]);
  snprintf(text + used, size - (size_t)used, tensor->ndim == 1 ? ",), }" : "), }");
}

/* Elements in Fortran's order, the first axis fastest, become those in C order. */
static void reorder(const tvmflow_tensor *tensor, const char *from, char *to) {
  size_t width = element_width(tensor), count = element_count(tensor);
  for (size_t place = 0; place < count; ++place) {
    size_t left = place, there = 0, stride = count;
    for (int axis = tensor->ndim - 1; axis >= 0; --axis) {
      stride /= (size_t)tensor->shape[axis];
      there += left % (size_t)tensor->shape[axis] * stride;
      left /= (size_t)tensor->shape[axis];
    }
    memcpy(to + place * width, from + there * width, width);
  }
}

static void read_npy(const char *path, const tvmflow_tensor *tensor, void *data) {
  unsigned char start[10];
  char header[65536], wanted[512], transposed[512];
  FILE *file = fopen(path, "rb");
  if (file == NULL) stop(4, path, "can't be opened");
  if (fread(start, 1, 10, file) != 10 || memcmp(start, "\x93NUMPY\x01", 7) != 0) stop(4, path, "is no .npy file");
  size_t length = (size_t)(start[8] | start[9] << 8);
  if (length >= sizeof header || fread(header, 1, length, file) != length) stop(4, path, "is damaged");
  header[length] = '\0';
  describe(tensor, 0, wanted, sizeof wanted);
  describe(tensor, 1, transposed, sizeof transposed);
  int fortran = strncmp(header, transposed, strlen(transposed)) == 0;
  if (!fortran && strncmp(header, wanted, strlen(wanted)) != 0) {
    header[strcspn(header, "\n")] = '\0';
    fprintf(stderr, "run: %s holds %s, but %s is %s\n", path, header, tensor->name, wanted);
    exit(4);
  }
  if (fread(data, 1, tensor->bytes, file) != tensor->bytes) stop(4, path, "ends early");
  fclose(file);
  if (!fortran) return;
  char *read = malloc(tensor->bytes + 1);
  if (read == NULL) stop(1, path, "there is no memory to read it");
  memcpy(read, data, tensor->bytes);
  reorder(tensor, read, data);
  free(read);
}

static void read_vector(const char *name, const char *kind, const tvmflow_tensor *(*get)(const tvmflow_network *, int),
                        void **data) {
  char path[PATH_MAX + 512];
  for (int index = 0; get(network, index) != NULL; ++index) {
    snprintf(path, sizeof path, "%s/vectors/%s/%s-%d.npy", bundle, name, kind, index);
    read_npy(path, get(network, index), data[index]);
  }
}

/* --------------------------------------------------------------------------------------------------- what it does */

static void infer(void) {
  if (tvmflow_run(network, (const void *const *)inputs, outputs) != 0) stop(1, tvmflow_error(), "");
}

static int is_integer(const tvmflow_tensor *tensor) { return tensor->dtype[0] != 'f' && !is(tensor, "bfloat16"); }

/* IEEE 754's binary16. */
static double half(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 31  ? (fraction ? NAN : INFINITY)
                 : exponent == 0 ? ldexp(fraction, -24)
                                 : ldexp(fraction + 1024, exponent - 25);
  return bits >> 15 ? -value : value;
}

/* The upper half of a float32. */
static double upper_half(uint16_t bits) {
  uint32_t whole = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &whole, sizeof value);
  return value;
}

/* Of an integer of 64 bits, rounded. */
static double element(const tvmflow_tensor *tensor, const void *data, size_t index) {
  if (is(tensor, "float32")) return ((const float *)data)[index];
  if (is(tensor, "float64")) return ((const double *)data)[index];
  if (is(tensor, "float16")) return half(((const uint16_t *)data)[index]);
  if (is(tensor, "bfloat16")) return upper_half(((const uint16_t *)data)[index]);
  if (is(tensor, "int64")) return (double)((const int64_t *)data)[index];
  if (is(tensor, "uint64")) return (double)((const uint64_t *)data)[index];
  if (is(tensor, "int32")) return ((const int32_t *)data)[index];
  if (is(tensor, "uint32")) return ((const uint32_t *)data)[index];
  if (is(tensor, "int16")) return ((const int16_t *)data)[index];
  if (is(tensor, "uint16")) return ((const uint16_t *)data)[index];
  if (is(tensor, "int8")) return ((const int8_t *)data)[index];
  if (is(tensor, "uint8") || is(tensor, "bool")) return ((const uint8_t *)data)[index];
  stop(1, "this runner can't read outputs of", tensor->dtype);
  return 0;
}

/* JSON has no word for what isn't finite. */
static void print_number(double value) { isfinite(value) ? (void)printf("%.9g", value) : (void)printf("null"); }

static void print_element(const tvmflow_tensor *tensor, const void *data, size_t index) {
  if (is(tensor, "int64"))
    printf("%lld", (long long)((const int64_t *)data)[index]);
  else if (is(tensor, "uint64"))
    printf("%llu", (unsigned long long)((const uint64_t *)data)[index]);
  else if (is(tensor, "bool"))
    printf(((const uint8_t *)data)[index] ? "true" : "false");
  else if (is_integer(tensor))
    printf("%.0f", element(tensor, data, index));
  else
    print_number(element(tensor, data, index));
}

static void print_outputs(double milliseconds) {
  printf("{\"outputs\": {");
  for (int index = 0; tvmflow_output(network, index) != NULL; ++index) {
    const tvmflow_tensor *tensor = tvmflow_output(network, index);
    printf("%s\"%s\": [", index ? ", " : "", tensor->name);
    for (size_t place = 0; place < element_count(tensor); ++place) {
      if (place) printf(", ");
      print_element(tensor, outputs[index], place);
    }
    printf("]");
  }
  printf("}, \"latency\": {\"unit\": \"ms\", \"first\": %.6f}}\n", milliseconds);
}

/* Of the only output, if it is a class vector: whether each row is largest where it should be. What can't be said, as the
 * expected best is ahead by no more than twice the tolerance, is null. */
static const char *same_class(int vector) {
  const tvmflow_tensor *tensor = tvmflow_output(network, 0), *input = tvmflow_input(network, 0);
  size_t length = tensor->ndim == 2 ? (size_t)tensor->shape[1] : 0;
  int like_input = input && input->ndim == 2 && input->shape[0] == tensor->shape[0] && input->shape[1] == tensor->shape[1];
  if (length < 2 || tvmflow_output(network, 1) || like_input || is(tensor, "bool")) return NULL;
  int same = 1;
  for (size_t row = 0; row < element_count(tensor); row += length) {
    size_t given = row, wanted = row;
    for (size_t place = row; place < row + length; ++place) {
      if (element(tensor, outputs[0], place) > element(tensor, outputs[0], given)) given = place;
      if (element(tensor, expected[0], place) > element(tensor, expected[0], wanted)) wanted = place;
    }
    for (size_t place = row; place < row + length; ++place) {
      double margin = element(tensor, expected[0], wanted) - element(tensor, expected[0], place);
      if (place != wanted && !(margin > 2 * tvmflow_tolerance(network, vector, 0))) return "null";
    }
    same &= given == wanted;
  }
  return same ? "true" : "false";
}

/* The largest |difference| of an output. What isn't finite must be the same. */
static double error_of(int index) {
  const tvmflow_tensor *tensor = tvmflow_output(network, index);
  double error = 0;
  /* integers have to be the same, also those that a double can't tell apart */
  if (is_integer(tensor) && memcmp(outputs[index], expected[index], tensor->bytes) != 0) error = 1;
  for (size_t place = 0; place < element_count(tensor); ++place) {
    double given = element(tensor, outputs[index], place), wanted = element(tensor, expected[index], place);
    if (isfinite(given) && isfinite(wanted)) {
      error = fmax(error, fabs(given - wanted));
    } else if (!(isnan(given) && isnan(wanted)) && given != wanted) {
      error = INFINITY;
    }
  }
  return error;
}

static int self_test(void) {
  int failed = 0, count = 0;
  printf("{\"vectors\": [");
  for (; tvmflow_vector(network, count) != NULL; ++count) {
    const char *name = tvmflow_vector(network, count);
    read_vector(name, "input", tvmflow_input, inputs);
    read_vector(name, "output", tvmflow_output, expected);
    infer();
    int passed = 1;
    printf("%s{\"name\": \"%s\", \"abs_errors\": [", count ? ", " : "", name);
    for (int index = 0; tvmflow_output(network, index) != NULL; ++index) {
      double error = error_of(index);
      passed &= error <= tvmflow_tolerance(network, count, index);
      if (index) printf(", ");
      print_number(error);
    }
    failed += !passed;
    printf("], \"passed\": %s", passed ? "true" : "false");
    const char *same = same_class(count);
    if (same != NULL) printf(", \"same_class\": %s", same);
    printf("}");
  }
  printf("], \"passed\": %s}\n", failed == 0 && count > 0 ? "true" : "false");
  return failed == 0 && count > 0 ? 0 : 3;
}

static int ascending(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return (left > right) - (left < right);
}

/* Between ranks in proportion, as NumPy does by default. */
static double percentile(const double *sorted, size_t count, double share) {
  double rank = share * (double)(count - 1);
  size_t below = (size_t)rank;
  return below + 1 < count ? sorted[below] + (rank - (double)below) * (sorted[below + 1] - sorted[below]) : sorted[below];
}

static double timed(void) {
  double started = now_ms();
  if (tvmflow_run_again(network) != 0) stop(1, tvmflow_error(), "");
  return now_ms() - started;
}

typedef struct {
  double *values, total;
  size_t count, room;
} Samples;

static void append(Samples *samples, double value) {
  if (samples->count == samples->room) {
    samples->room += 65536;
    samples->values = realloc(samples->values, samples->room * sizeof *samples->values);
    if (samples->values == NULL) stop(1, "there is no memory for the samples", "");
  }
  samples->values[samples->count++] = value;
  samples->total += value;
}

static void print_samples(const char *name, const Samples *samples) {
  printf("\"%s\": [", name);
  for (size_t index = 0; index < samples->count; ++index) printf("%s%.6f", index ? ", " : "", samples->values[index]);
  printf("]");
}

/* Percentiles and extremes as JSON members; sorts the samples. */
static void print_summary(const Samples *samples) {
  size_t count = samples->count;
  qsort(samples->values, count, sizeof *samples->values, ascending);
  printf("\"p50\": %.6f, \"p90\": %.6f, \"p99\": %.6f, \"mean\": %.6f, \"min\": %.6f, \"max\": %.6f, \"repeats\": %zu",
         percentile(samples->values, count, .5), percentile(samples->values, count, .9),
         percentile(samples->values, count, .99), samples->total / (double)count, samples->values[0],
         samples->values[count - 1], count);
}

/* A number from a file of the system, scaled, if there is one. */
static void print_fact(const char *name, const char *path, double factor) {
  double value;
  FILE *file = fopen(path, "r");
  if (file == NULL) return;
  if (fscanf(file, "%lf", &value) == 1) printf(", \"%s\": %.2f", name, factor * value);
  fclose(file);
}

/* What the Raspberry Pi's firmware says of throttling; nothing elsewhere. */
static void print_throttling(void) {
  unsigned flags;
  FILE *said = popen("vcgencmd get_throttled 2>/dev/null", "r");
  if (said == NULL) return;
  if (fscanf(said, "throttled=%x", &flags) == 1) printf(", \"throttled\": \"0x%x\"", flags);
  pclose(said);
}

static void print_window(const Samples *samples, double at_s) {
  printf("{\"at_s\": %.3f, ", at_s);
  print_summary(samples);
  print_fact("temperature_c", "/sys/class/thermal/thermal_zone0/temp", 1e-3);
  print_fact("clock_mhz", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e-3);
  print_throttling();
  printf("}");
  fflush(stdout);
}

/* Keeps every so many of the samples, so that hours of them fit into memory and still stand for all. */
static void append_thinned(Samples *samples, double value, size_t number, size_t *every) {
  if (number % *every != 0) return;
  append(samples, value);
  if (samples->count < MOST_SAMPLES) return;
  *every *= 2;
  samples->count /= 2;
  for (size_t index = 0; index < samples->count; ++index) samples->values[index] = samples->values[2 * index];
}

static void bench(double seconds, double window, double setup, int raw) {
  Samples warmup = {0}, steady = {0}, part = {0};
  size_t number = 0, every = 1;
  read_vector(tvmflow_vector(network, 0), "input", tvmflow_input, inputs);
  double started = now_ms();
  infer();
  double first = now_ms() - started;
  started = now_ms();
  while (warmup.count < WARMUP_RUNS || now_ms() - started < 1e3 * WARMUP_SECONDS) append(&warmup, timed());
  printf("{\"basis\": \"measured\", \"unit\": \"ms\", \"threads\": %ld, \"setup\": %.6f, \"first\": %.6f, ",
         atol(getenv("TVM_NUM_THREADS")), setup, first);
  started = now_ms();
  if (window > 0) {
    printf("\"windows\": [");
    for (double at_s = 0; at_s < seconds; at_s = (now_ms() - started) / 1e3) {
      if (at_s > 0) printf(", ");
      double window_started = now_ms();
      part.count = 0, part.total = 0;
      do {
        append(&part, timed());
        append_thinned(&steady, part.values[part.count - 1], number++, &every);
      } while (now_ms() - window_started < 1e3 * window);
      print_window(&part, at_s);
    }
    printf("], ");
  } else {
    do append(&steady, timed());
    while (now_ms() - started < 1e3 * seconds);
  }
  if (raw) {
    print_samples("warmup", &warmup);
    printf(", ");
    print_samples("samples", &steady);
  } else {
    print_summary(&steady);
  }
  printf("}\n");
  free(warmup.values);
  free(steady.values);
  free(part.values);
}

/* A name as JSON has it. */
static void print_name(const char *name) {
  putchar('"');
  for (; *name; ++name) {
    if ((unsigned char)*name < 32)
      printf("\\u%04x", *name);
    else
      printf(*name == '"' || *name == '\\' ? "\\%c" : "%c", *name);
  }
  putchar('"');
}

/* Of each kernel the time that it took in each of so many inferences, a clock being asked between any two. */
static void profile(long runs) {
  size_t kernels = 0;
  while (tvmflow_kernel(network, (int)kernels) != NULL) ++kernels;
  if (kernels == 0 && tvmflow_profile(network, NULL) != 0) stop(2, tvmflow_error(), "");
  double *times = calloc((size_t)runs * kernels + 1, sizeof *times);
  if (times == NULL) stop(1, "there is no memory for the times", "");
  read_vector(tvmflow_vector(network, 0), "input", tvmflow_input, inputs);
  infer();
  double started = now_ms();
  for (int run = 0; run < WARMUP_RUNS || now_ms() - started < 1e2 * WARMUP_SECONDS; ++run) timed();
  for (long run = 0; run < runs; ++run)
    if (tvmflow_profile(network, times + (size_t)run * kernels) != 0) stop(1, tvmflow_error(), "");
  printf("{\"basis\": \"measured\", \"unit\": \"us\", \"threads\": %ld, \"kernels\": [", atol(getenv("TVM_NUM_THREADS")));
  double *sorted = malloc(((size_t)runs + 1) * sizeof *sorted);
  if (sorted == NULL) stop(1, "there is no memory for the times", "");
  for (size_t kernel = 0; kernel < kernels; ++kernel) {
    Samples samples = {sorted, 0, (size_t)runs, (size_t)runs};
    for (long run = 0; run < runs; ++run) sorted[run] = times[(size_t)run * kernels + kernel];
    printf("%s{\"name\": ", kernel ? ", " : "");
    print_name(tvmflow_kernel(network, (int)kernel));
    printf(", ");
    print_samples("samples", &samples);
    qsort(sorted, (size_t)runs, sizeof *sorted, ascending);
    printf(", \"p50\": %.3f, \"p90\": %.3f, \"min\": %.3f}", percentile(sorted, (size_t)runs, .5),
           percentile(sorted, (size_t)runs, .9), sorted[0]);
  }
  printf("]}\n");
  free(sorted);
  free(times);
}

static void find_bundle(void) {
  char path[PATH_MAX];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length < 0) stop(1, "/proc/self/exe", "can't be read");
  path[length] = '\0';
  snprintf(bundle, sizeof bundle, "%s", dirname(dirname(path)));
}

int main(int argc, char **argv) {
  if (argc < 2 || strcmp(argv[1], "--help") == 0) {
    fputs(USAGE, argc < 2 ? stderr : stdout);
    return argc < 2 ? 2 : 0;
  }
  find_bundle();
  /* By itself TVM takes half of an x86 computer's threads; what is measured should be what is said. */
  char cores[16];
  snprintf(cores, sizeof cores, "%ld", sysconf(_SC_NPROCESSORS_ONLN));
  setenv("TVM_NUM_THREADS", cores, 0);
  double started = now_ms();
  network = tvmflow_load(bundle);
  if (network == NULL) stop(1, tvmflow_error(), "");
  double setup = now_ms() - started;
  int count = 0;
  for (; tvmflow_input(network, count) != NULL; ++count) inputs[count] = malloc(tvmflow_input(network, count)->bytes + 1);
  for (int index = 0; tvmflow_output(network, index) != NULL; ++index) {
    outputs[index] = malloc(tvmflow_output(network, index)->bytes + 1);
    expected[index] = malloc(tvmflow_output(network, index)->bytes + 1);
  }

  int status = 0;
  if (strcmp(argv[1], "--self-test") == 0) {
    status = self_test();
  } else if (strcmp(argv[1], "--bench") == 0 || strcmp(argv[1], "--samples") == 0) {
    int raw = strcmp(argv[1], "--samples") == 0;
    double seconds = argc > 2 ? atof(argv[2]) : 3, window = raw && argc > 3 ? atof(argv[3]) : 0;
    if (!(seconds > 0)) stop(2, "it takes seconds, not", argv[2]);
    bench(seconds, window, setup, raw);
  } else if (strcmp(argv[1], "--profile") == 0) {
    long runs = argc > 2 ? atol(argv[2]) : 50;
    if (runs < 1 || runs > MOST_SAMPLES) stop(2, "it takes a number of inferences, not", argv[2]);
    profile(runs);
  } else {
    if (argc - 1 != count) stop(2, "give one .npy file for each input of the network", "");
    for (int index = 0; index < count; ++index) read_npy(argv[index + 1], tvmflow_input(network, index), inputs[index]);
    started = now_ms();
    infer();
    print_outputs(now_ms() - started);
  }
  tvmflow_free(network);
  return status;
}
