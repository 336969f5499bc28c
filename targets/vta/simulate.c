/* The fast functional simulator of VTA. targets/vta/semantics.py says what it has to do; simulate.py calls it. */
#include <stdint.h>
#include <string.h>

enum { LOAD = 0, STORE = 1, GEMM = 2, FINISH = 3, ALU = 4 };
enum { UOP = 0, WGT = 1, INP = 2, ACC = 3 };
enum { MIN = 0, MAX = 1, ADD = 2, SHR = 3 };

/* The State of semantics.py; the order of the fields is that of simulate._State. Depths count elements. */
typedef struct {
  int64_t batch, block, uop_depth, inp_depth, wgt_depth, acc_depth, acc_bits, src_bits;
  int64_t dram_bytes;
  uint8_t *dram;
  uint32_t *uop;
  int8_t *inp, *wgt;
  int32_t *acc;
  int8_t *out;
  uint8_t *fresh;
} state;

/* The fields of an instruction, as simulate.translate lays them out: opcode, memory, reset or operation, the rest. */
#define FIELDS 13
typedef const int64_t *instruction;

static int load(const state *s, instruction f) {
  int64_t memory = f[1], sram = f[2], dram = f[3], y_size = f[4], x_size = f[5], stride = f[6];
  int64_t top = f[7], bottom = f[8], left = f[9], right = f[10];
  if (y_size == 0 && x_size == 0) return 1;
  if (y_size == 0 || x_size == 0 || memory > ACC) return 0;
  if ((memory == UOP || memory == WGT) && (top || bottom || left || right)) return 0;
  if (memory == UOP && y_size != 1) return 0;
  int64_t lanes = s->batch * s->block;
  int64_t sizes[] = {4, s->block * s->block, lanes, 4 * lanes};
  int64_t depths[] = {s->uop_depth, s->wgt_depth, s->inp_depth, s->acc_depth};
  uint8_t *buffers[] = {(uint8_t *)s->uop, (uint8_t *)s->wgt, (uint8_t *)s->inp, (uint8_t *)s->acc};
  int64_t size = sizes[memory], width = left + x_size + right, count = (top + y_size + bottom) * width;
  if (sram + count > depths[memory]) return 0;
  if (memory != UOP && y_size * x_size == depths[memory]) return 0;
  if ((dram + (y_size - 1) * stride + x_size) * size > s->dram_bytes) return 0;
  uint8_t *to = buffers[memory] + sram * size;
  memset(to, 0, top * width * size);
  to += top * width * size;
  for (int64_t y = 0; y < y_size; y++, to += width * size) {
    memset(to, 0, left * size);
    memcpy(to + left * size, s->dram + (dram + y * stride) * size, x_size * size);
    memset(to + (left + x_size) * size, 0, right * size);
  }
  memset(to, 0, bottom * width * size);
  if (memory == ACC) memset(s->fresh + sram, 0, count);
  return 1;
}

static int store(const state *s, instruction f) {
  int64_t sram = f[2], dram = f[3], y_size = f[4], x_size = f[5], stride = f[6], size = s->batch * s->block;
  if (y_size == 0 && x_size == 0) return 1;
  if (y_size == 0 || x_size == 0) return 0;
  if (sram + y_size * x_size > s->acc_depth) return 0;
  if ((dram + (y_size - 1) * stride + x_size) * size > s->dram_bytes) return 0;
  if (memchr(s->fresh + sram, 0, y_size * x_size)) return 0;
  for (int64_t y = 0; y < y_size; y++)
    memcpy(s->dram + (dram + y * stride) * size, s->out + (sram + y * x_size) * size, x_size * size);
  return 1;
}

/* acc += weights · inputs, for compilers to unroll where `block` is known. */
static inline void multiply(int32_t *acc, const int8_t *inputs, const int8_t *weights, int64_t block) {
  for (int64_t o = 0; o < block; o++) {
    int32_t sum = 0;
    for (int64_t i = 0; i < block; i++) sum += (int32_t)inputs[i] * weights[o * block + i];
    acc[o] += sum;
  }
}

static int gemm(const state *s, instruction f) {
  int64_t reset = f[1], begin = f[2], end = f[3], outer = f[4], inner = f[5];
  if (end > s->uop_depth || begin >= end || outer == 0 || inner == 0) return 0;
  int64_t block = s->block, lanes = s->batch * block;
  int64_t acc_mask = (1 << s->acc_bits) - 1, src_mask = (1 << s->src_bits) - 1;
  for (int64_t i = 0; i < outer; i++)
    for (int64_t j = 0; j < inner; j++) {
      int64_t more_dst = i * f[6] + j * f[7], more_src = i * f[8] + j * f[9], more_wgt = i * f[10] + j * f[11];
      for (int64_t u = begin; u < end; u++) {
        int64_t dst = (s->uop[u] & acc_mask) + more_dst;
        int64_t src = (s->uop[u] >> s->acc_bits & src_mask) + more_src;
        int64_t wgt = (s->uop[u] >> (s->acc_bits + s->src_bits) & (s->wgt_depth - 1)) + more_wgt;
        if (dst >= s->acc_depth || src >= s->inp_depth || wgt >= s->wgt_depth) return 0;
        int32_t *acc = s->acc + dst * lanes;
        if (reset) {
          memset(acc, 0, lanes * 4);
          s->fresh[dst] = 0;
          continue;
        }
        const int8_t *inputs = s->inp + src * lanes, *weights = s->wgt + wgt * block * block;
        for (int64_t b = 0; b < s->batch; b++) {
          if (block == 16)
            multiply(acc + b * 16, inputs + b * 16, weights, 16);
          else
            multiply(acc + b * block, inputs + b * block, weights, block);
        }
        for (int64_t l = 0; l < lanes; l++) s->out[dst * lanes + l] = (int8_t)acc[l];
        s->fresh[dst] = 1;
      }
    }
  return 1;
}

static int32_t operate(int64_t operation, int32_t left, int32_t right) {
  switch (operation) {
    case MIN: return left < right ? left : right;
    case MAX: return left > right ? left : right;
    case ADD: return (int32_t)((uint32_t)left + (uint32_t)right);
    default: return right < 0 ? (int32_t)((uint32_t)left << -right) : left >> right;
  }
}

static int alu(const state *s, instruction f) {
  int64_t operation = f[1], begin = f[2], end = f[3], outer = f[4], inner = f[5], use_imm = f[10], imm = f[11];
  if (operation > SHR || (operation == SHR && (!use_imm || imm < -16 || imm > 15))) return 0;
  if (end > s->uop_depth || begin >= end || outer == 0 || inner == 0) return 0;
  int64_t lanes = s->batch * s->block, acc_mask = (1 << s->acc_bits) - 1, src_mask = (1 << s->src_bits) - 1;
  for (int64_t i = 0; i < outer; i++)
    for (int64_t j = 0; j < inner; j++) {
      int64_t more_dst = i * f[6] + j * f[7], more_src = i * f[8] + j * f[9];
      for (int64_t u = begin; u < end; u++) {
        int64_t dst = (s->uop[u] & acc_mask) + more_dst, src = (s->uop[u] >> s->acc_bits & src_mask) + more_src;
        if (dst >= s->acc_depth || src >= s->acc_depth || (use_imm && src != dst)) return 0;
        int32_t *to = s->acc + dst * lanes, *from = s->acc + src * lanes;
        for (int64_t l = 0; l < lanes; l++) {
          to[l] = operate(operation, to[l], use_imm ? (int32_t)imm : from[l]);
          s->out[dst * lanes + l] = (int8_t)to[l];
        }
        s->fresh[dst] = 1;
      }
    }
  return 1;
}

/* Execute `count` instructions. The number of those that were; the next one, if there is one, is refused. */
int64_t vta_run(const state *s, const int64_t *instructions, int64_t count) {
  for (int64_t n = 0; n < count; n++) {
    instruction f = instructions + n * FIELDS;
    int done = 1;
    switch (f[0]) {
      case LOAD: done = load(s, f); break;
      case STORE: done = store(s, f); break;
      case GEMM: done = gemm(s, f); break;
      case ALU: done = alu(s, f); break;
    }
    if (!done) return n;
  }
  return count;
}
