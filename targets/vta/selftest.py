"""Two small programs that tell, before the first real one, whether a board's bitstream is the one that is needed.

A core of the other instruction set would take a STORE's address from other bits and write anywhere in the board's
memory. So the first, the probe, stores nothing: it ends only where a LOAD goes to the module that it is meant for. The
second computes with every module, shifts both ways and clips.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.targets.vta import isa, program
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Instruction, Load, Memory, Operation, Store, Uop
from tvmflow.targets.vta.program import Executable, Region


def probe(config: Config) -> Executable:
    """Instructions without elements that only the configuration's own instruction set brings to FINISH.

    The bit above 0.0.1's memory type is 0.0.2's highest of the type. In 0.0.2, type 5 (ACC_8BIT) is compute's, which
    gives store a token; 0.0.1 reads type 1 (WGT), which is load's. In 0.0.1, INP with an odd buffer address is load's;
    0.0.2 reads type 6, which goes to compute. Where the token goes elsewhere, FINISH waits forever. The first
    instruction clears HLS's flag of the run before.
    """
    code: tuple[Instruction, ...]
    if config.version == "0.0.1":
        first = Load(memory=Memory.INP, sram_base=1, push_next=True)
        code = (isa.nop("compute"), first, isa.nop("compute", pop_prev=True), Finish())
    else:
        first = Load(memory=Memory.ACC_8BIT, push_next=True)
        code = (isa.nop("compute"), first, isa.nop("store", pop_prev=True, push_prev=True), Finish(pop_next=True))
    region = Region(name="nothing", offset=0, shape=(1,), order="dense")
    return Executable(
        config=config,
        instructions=code,
        image=np.zeros(config.alignment, np.uint8),
        memory_bytes=config.alignment,
        inputs=(region,),
        outputs=(region,),
    )


def compute(config: Config) -> tuple[Executable, np.ndarray, np.ndarray]:
    """One tile through GEMM, a shift left, an addition, a shift right and a clip; its input and expected output."""
    block = config.block
    rng = np.random.default_rng(block)
    weight = rng.integers(-128, 128, (block, block)).astype(np.int8)
    bias = rng.integers(-1000, 1000, block).astype(np.int32)
    inputs = rng.integers(-128, 128, (1, block, 1, 1)).astype(np.int8)
    step = config.alignment
    image = np.zeros(4 * step + 8, np.uint8)
    image[step : step + weight.nbytes] = weight.reshape(-1).view(np.uint8)
    image[2 * step : 2 * step + bias.nbytes] = bias.view(np.uint8)
    image[4 * step :] = isa.encode_uops([Uop(1, 0), Uop(1, 1)], config).view(np.uint8)
    one: dict[str, Any] = {"y_size": 1, "x_size": 1, "x_stride": 1}
    code: list[Instruction] = [
        Load(memory=Memory.INP, **one),
        Load(memory=Memory.WGT, dram_base=step // config.wgt_bytes, push_next=True, **one),
        Load(memory=Memory.UOP, dram_base=step, y_size=1, x_size=2, x_stride=2),
        Load(memory=Memory.ACC, sram_base=1, dram_base=2 * step // config.acc_bytes, **one),
        Gemm(uop_bgn=0, uop_end=1, pop_prev=True),
    ]
    operations = ((Operation.SHR, -2), (Operation.ADD, 1 << 9), (Operation.SHR, 10), (Operation.MAX, -20))
    for operation, imm in (*operations, (Operation.MIN, 20)):
        code.append(Alu(operation=operation, use_imm=True, imm=imm, uop_bgn=1, uop_end=2))
    code[-1] = replace(code[-1], push_next=True)
    code.append(Store(sram_base=1, dram_base=3 * step // config.out_bytes, pop_prev=True, push_prev=True, **one))
    code.append(Finish(pop_next=True))
    acc = weight.astype(np.int32) @ inputs.reshape(-1).astype(np.int32) + bias
    expected = np.clip(((acc << 2) + (1 << 9)) >> 10, -20, 20).astype(np.int8).reshape(1, block, 1, 1)
    executable = Executable(
        config=config,
        instructions=tuple(code),
        image=image,
        memory_bytes=5 * step,
        inputs=(Region(name="input", offset=0, shape=(1, block, 1, 1)),),
        outputs=(Region(name="output", offset=3 * step, shape=(1, block, 1, 1)),),
    )
    return executable, inputs, expected


def save(config: Config, folder: Path) -> None:
    """Write both into `folder`, which is a bundle's "runner/selftest", with the input and the expected output."""
    executable, inputs, expected = compute(config)
    program.save(executable, folder)
    program.save(probe(config), folder / "probe")
    np.save(folder / "input.npy", inputs)
    np.save(folder / "expected.npy", expected)
