/* Depthwise 3x3 convolution of float32 NCHW planes, forward and backward, for training on CPUs.
 *
 * One call handles channels [first, last) of the whole batch, so that threads share nothing and the sums of the
 * weight gradient are taken in the same order whatever the number of threads. Padding equals the dilation. */
#include <stdlib.h>
#include <string.h>

typedef struct {
    long batch, channels, height, width, out_height, out_width, stride, dilation;
} shape_t;

/* Compiling a kernel per common map width keeps a row of sums in vector registers. */
#define BY_WIDTH(kernel, w, ...)                 \
    switch (w) {                                 \
    case 32: kernel(32, __VA_ARGS__); break;     \
    case 16: kernel(16, __VA_ARGS__); break;     \
    case 8: kernel(8, __VA_ARGS__); break;       \
    case 4: kernel(4, __VA_ARGS__); break;       \
    default: kernel(w, __VA_ARGS__);             \
    }
#define INLINE static inline __attribute__((always_inline))

/* out[y][x] = sum over taps of weight[tap] * padded[y * stride + ...][x * stride + ...] */
INLINE void correlate(long width, long stride, long rows, long row, long dilation, int dead, const float *restrict padded,
                      const float *restrict weight, float *restrict out) {
    for (long y = 0; y < rows; y++) {
        float sums[width];
        for (long x = 0; x < width; x++) sums[x] = 0;
        for (long tap = dead ? 4 : 0; tap < (dead ? 5 : 9); tap++) {
            const float w = weight[tap];
            const float *restrict in = padded + (y * stride + tap / 3 * dilation) * row + tap % 3 * dilation;
            for (long x = 0; x < width; x++) sums[x] += w * in[x * stride];
        }
        for (long x = 0; x < width; x++) out[y * width + x] = sums[x];
    }
}

/* sums[tap] += sum over y, x of grad[y][x] * padded[y + ...][x + ...] */
INLINE void reduce(long width, long rows, long row, long dilation, int dead, const float *restrict padded,
                   const float *restrict grad, long grad_row, float *restrict sums) {
    for (long tap = dead ? 4 : 0; tap < (dead ? 5 : 9); tap++) {
        float lanes[width], sum = 0;
        for (long x = 0; x < width; x++) lanes[x] = 0;
        for (long y = 0; y < rows; y++) {
            const float *restrict in = padded + (y + tap / 3 * dilation) * row + tap % 3 * dilation;
            for (long x = 0; x < width; x++) lanes[x] += grad[y * grad_row + x] * in[x];
        }
        for (long x = 0; x < width; x++) sum += lanes[x];
        sums[tap] += sum;
    }
}

/* With a dilation that reaches past the map, every tap but the centre reads padding only. */
static int only_centre(const shape_t *s) { return s->dilation >= s->height && s->dilation >= s->width; }

static float *padded_plane(const shape_t *s) {
    return calloc((s->height + 2 * s->dilation) * (s->width + 2 * s->dilation), sizeof(float));
}

static void load(float *restrict padded, const float *restrict plane, const shape_t *s) {
    long row = s->width + 2 * s->dilation;
    for (long y = 0; y < s->height; y++)
        memcpy(padded + (y + s->dilation) * row + s->dilation, plane + y * s->width, s->width * sizeof(float));
}

int depthwise_forward(const shape_t *s, long first, long last, const float *x, const float *weight, float *out) {
    long row = s->width + 2 * s->dilation;
    int dead = only_centre(s);
    float *padded = padded_plane(s);
    if (!padded) return 1;
    for (long n = 0; n < s->batch; n++)
        for (long c = first; c < last; c++) {
            const float *w = weight + c * 9;
            float *o = out + (n * s->channels + c) * s->out_height * s->out_width;
            load(padded, x + (n * s->channels + c) * s->height * s->width, s);
            if (s->stride == 1) {
                BY_WIDTH(correlate, s->out_width, 1, s->out_height, row, s->dilation, dead, padded, w, o)
            } else if (s->stride == 2) {
                BY_WIDTH(correlate, s->out_width, 2, s->out_height, row, s->dilation, dead, padded, w, o)
            } else
                correlate(s->out_width, s->stride, s->out_height, row, s->dilation, dead, padded, w, o);
        }
    free(padded);
    return 0;
}

/* The gradient is spread over the input's grid, zeros between, so that a stride needs no code of its own. */
int depthwise_backward(const shape_t *s, long first, long last, const float *x, const float *weight, const float *grad,
                       float *grad_x, float *grad_weight) {
    long row = s->width + 2 * s->dilation;
    int dead = only_centre(s);
    float *padded = padded_plane(s), *spread = padded_plane(s);
    if (!padded || !spread) {
        free(padded);
        free(spread);
        return 1;
    }
    memset(grad_weight + first * 9, 0, (last - first) * 9 * sizeof(float));
    for (long n = 0; n < s->batch; n++)
        for (long c = first; c < last; c++) {
            const float *g = grad + (n * s->channels + c) * s->out_height * s->out_width;
            float *inner = spread + s->dilation * row + s->dilation, mirrored[9];
            for (long tap = 0; tap < 9; tap++) mirrored[tap] = weight[c * 9 + 8 - tap];
            load(padded, x + (n * s->channels + c) * s->height * s->width, s);
            for (long y = 0; y < s->out_height; y++)
                if (s->stride == 1)
                    memcpy(inner + y * row, g + y * s->out_width, s->out_width * sizeof(float));
                else
                    for (long i = 0; i < s->out_width; i++)
                        inner[y * s->stride * row + i * s->stride] = g[y * s->out_width + i];
            float *to = grad_x + (n * s->channels + c) * s->height * s->width;
            BY_WIDTH(correlate, s->width, 1, s->height, row, s->dilation, dead, spread, mirrored, to)
            BY_WIDTH(reduce, s->width, s->height, row, s->dilation, dead, padded, inner, row, grad_weight + c * 9)
        }
    free(padded);
    free(spread);
    return 0;
}
