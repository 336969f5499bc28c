/* Depthwise 3x3 convolution of float32 NHWC maps, forward and backward, for training on CPUs.
 *
 * Lanes run over channels, which every map size has plenty of, and a tap is applied only where it reads a pixel:
 * taps that a large dilation moves off the map cost nothing. Padding equals the dilation. One call handles images
 * [first, last), so that threads share nothing. Sums of the weight gradient are kept apart for each of `parts` runs
 * of images, which makes them the same whatever the number of threads. Weights are [9][channels]. */
#include <stdlib.h>
#include <string.h>

typedef struct {
    long batch, channels, height, width, out_height, out_width, stride, dilation;
} shape_t;

#define INLINE static inline __attribute__((always_inline))

/* Outputs [from, to) of a row or column whose input at `offset` is on the map. */
typedef struct {
    long from, to;
} range_t;

INLINE range_t live(long offset, long size, long out_size, long stride) {
    long from = offset < 0 ? (-offset + stride - 1) / stride : 0, to = (size - 1 - offset) / stride + 1;
    if (size - 1 - offset < 0) to = 0;
    return (range_t){from, to < out_size ? to : out_size};
}

/* A row of a layer with few channels is one run of lanes, its weights repeated for each pixel. */
INLINE long repeats(const shape_t *s) { return s->stride == 1 && s->channels < 16 ? s->width : 1; }

static float *repeated(const shape_t *s, const float *weight) {
    long c = s->channels, n = repeats(s);
    float *rows = malloc(9 * n * c * sizeof(float));
    if (rows)
        for (long tap = 0; tap < 9; tap++)
            for (long i = 0; i < n; i++) memcpy(rows + (tap * n + i) * c, weight + tap * c, c * sizeof(float));
    return rows;
}

/* For every live tap of output row y: `body` over runs of lanes, with the offsets of output, input and weight. */
#define FOR_LIVE_RUNS(s, y, body)                                                                                  \
    for (long tap = 0; tap < 9; tap++) {                                                                           \
        const long row = (y) * (s)->stride + (tap / 3 - 1) * (s)->dilation, dx = (tap % 3 - 1) * (s)->dilation;    \
        const range_t x = live(dx, (s)->width, (s)->out_width, (s)->stride);                                       \
        if (row < 0 || row >= (s)->height || x.from >= x.to) continue;                                             \
        const long c = (s)->channels, many = repeats(s);                                                           \
        const long runs = many > 1 ? 1 : x.to - x.from, lanes = many > 1 ? (x.to - x.from) * c : c;                \
        for (long run = 0; run < runs; run++) {                                                                    \
            const long to = ((y) * (s)->out_width + x.from + run) * c;                                             \
            const long at = (row * (s)->width + (x.from + run) * (s)->stride + dx) * c;                            \
            const long of = tap * many * c + (many > 1 ? x.from * c : 0);                                          \
            body                                                                                                   \
        }                                                                                                          \
    }

INLINE void scale_add(long lanes, float *restrict out, const float *restrict in, const float *restrict weight) {
    for (long i = 0; i < lanes; i++) out[i] += weight[i] * in[i];
}

INLINE void scale_add_back(long lanes, const float *restrict grad, const float *restrict in,
                           const float *restrict weight, float *restrict grad_in, float *restrict grad_weight) {
    for (long i = 0; i < lanes; i++) {
        grad_in[i] += weight[i] * grad[i];
        grad_weight[i] += in[i] * grad[i];
    }
}

int depthwise_forward(const shape_t *s, long first, long last, const float *input, const float *weight, float *output) {
    const long in_size = s->height * s->width * s->channels, out_row = s->out_width * s->channels;
    float *weights = repeated(s, weight);
    if (!weights) return 1;
    for (long n = first; n < last; n++) {
        const float *in = input + n * in_size;
        float *out = output + n * s->out_height * out_row;
        for (long y = 0; y < s->out_height; y++) {
            memset(out + y * out_row, 0, out_row * sizeof(float));
            FOR_LIVE_RUNS(s, y, scale_add(lanes, out + to, in + at, weights + of);)
        }
    }
    free(weights);
    return 0;
}

int depthwise_backward(const shape_t *s, long first, long last, const float *input, const float *weight,
                       const float *grad_output, float *grad_input, float *grad_weight) {
    const long in_size = s->height * s->width * s->channels, out_size = s->out_height * s->out_width * s->channels;
    const long many = repeats(s), c = s->channels;
    float *weights = repeated(s, weight), *sums = calloc(9 * many * c, sizeof(float));
    if (!weights || !sums) {
        free(weights);
        free(sums);
        return 1;
    }
    for (long n = first; n < last; n++) {
        const float *in = input + n * in_size, *grad = grad_output + n * out_size;
        float *grad_in = grad_input + n * in_size;
        memset(grad_in, 0, in_size * sizeof(float));
        for (long y = 0; y < s->out_height; y++)
            FOR_LIVE_RUNS(s, y, scale_add_back(lanes, grad + to, in + at, weights + of, grad_in + at, sums + of);)
    }
    memset(grad_weight, 0, 9 * c * sizeof(float));
    for (long tap = 0; tap < 9; tap++)
        for (long i = 0; i < many; i++)
            for (long k = 0; k < c; k++) grad_weight[tap * c + k] += sums[(tap * many + i) * c + k];
    free(weights);
    free(sums);
    return 0;
}
