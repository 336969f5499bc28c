"""A small VTA program as compilers make it: a layer in strips, double-buffered."""

from __future__ import annotations

import numpy as np

from tvmflow.targets.vta import isa
from tvmflow.targets.vta.config import SAMPLES, Config
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Instruction, Load, Memory, Operation, Store
from tvmflow.targets.vta.program import Executable, Mark, Region

HEIGHT, WIDTH, CHANNELS, STRIPS, SHIFT = 8, 6, 32, 4, 7
INP, WGT, ACC, UOP, OUT, END = 0, 1536, 2560, 8192, 12288, 16384
"""Where things lie in the memory image."""


def pointwise(config: Config = SAMPLES["pynq"], seed: int = 0) -> tuple[Executable, np.ndarray, np.ndarray]:
    """A pointwise layer, 32 → 32 channels of 8 × 6, in four strips of rows, and its weight (O×I) and bias.

    Strip n uses half n % 2 of INP and ACC. Tokens: load → compute when a strip is there, compute → load when it has
    been read, compute → store when it is ready, store → compute when its half of OUT is free again.
    """
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (CHANNELS, CHANNELS)).astype(np.int8)
    bias = rng.integers(-3000, 3000, CHANNELS).astype(np.int32)
    blocks, pixels, plane = CHANNELS // 16, HEIGHT // STRIPS * WIDTH, HEIGHT * WIDTH
    strip_tiles = blocks * pixels

    uops = []  # for each half, GEMM's and then the ALU's, each over the blocks of outputs
    for start in (0, strip_tiles):
        uops += [(start + o * pixels, start, o * blocks) for o in range(blocks)]
        uops += [(start + o * pixels, start + o * pixels, 0) for o in range(blocks)]
    image = np.zeros(UOP + 4 * len(uops), np.uint8)
    tiles = weight.reshape(blocks, 16, blocks, 16).transpose(0, 2, 1, 3)  # [o/16][i/16][o][i]
    image[WGT:ACC] = tiles.reshape(-1).view(np.uint8)
    biases = np.repeat(bias.reshape(blocks, 1, 16), pixels, axis=1)
    image[ACC : ACC + biases.nbytes] = biases.reshape(-1).view(np.uint8)
    image[UOP:] = isa.encode_uops(np.array(uops), config).view(np.uint8)

    code: list[Instruction] = [
        Load(memory=Memory.UOP, dram_base=UOP // 4, y_size=1, x_size=len(uops), x_stride=len(uops)),
        Load(memory=Memory.WGT, dram_base=WGT // 256, y_size=1, x_size=blocks**2, x_stride=blocks**2),
    ]
    for strip in range(STRIPS):
        again, last = strip >= 2, strip >= STRIPS - 2
        start, first = strip % 2 * strip_tiles, strip % 2 * 2 * blocks
        rows = {"sram_base": start, "y_size": blocks, "x_size": pixels, "x_stride": plane}
        bias_row = {"y_size": 1, "x_size": strip_tiles, "x_stride": strip_tiles}
        each = {"iter_in": pixels, "dst_factor_in": 1, "src_factor_in": 1}
        over_inputs = {"iter_out": blocks, "src_factor_out": pixels, "wgt_factor_out": 1}
        code += [
            Load(memory=Memory.INP, dram_base=INP // 16 + strip * pixels, pop_next=again, push_next=True, **rows),
            Load(memory=Memory.ACC, sram_base=start, dram_base=ACC // 64, pop_prev=True, pop_next=again, **bias_row),
            Gemm(uop_bgn=first, uop_end=first + blocks, push_prev=not last, **each, **over_inputs),
        ]
        for operation, imm in ((Operation.ADD, 64), (Operation.SHR, SHIFT), (Operation.MAX, 0), (Operation.MIN, 127)):
            alu = {"uop_bgn": first + blocks, "uop_end": first + 2 * blocks, "push_next": operation == Operation.MIN}
            code.append(Alu(operation=operation, use_imm=True, imm=imm, **alu, **each))
        code.append(Store(dram_base=OUT // 16 + strip * pixels, pop_prev=True, push_prev=True, **rows))
    code += [isa.nop("compute", pop_next=True), Finish(pop_next=True)]
    shape = (1, CHANNELS, HEIGHT, WIDTH)
    executable = Executable(
        config=config,
        instructions=tuple(code),
        image=image,
        memory_bytes=END,
        inputs=(Region(name="input", offset=INP, shape=shape),),
        outputs=(Region(name="output", offset=OUT, shape=shape),),
        layers=(Mark(name="upper", first=2, last=18), Mark(name="lower", first=18, last=len(code))),
    )
    return executable, weight, bias


def reference(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What `pointwise` computes."""
    acc = np.einsum("oi,bihw->bohw", weight.astype(np.int32), inputs.astype(np.int32)) + bias[None, :, None, None]
    return np.clip((acc + (1 << SHIFT - 1)) >> SHIFT, 0, 127).astype(np.int8)
