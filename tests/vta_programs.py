"""Random legal VTA programs, and ways to make them illegal."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from tvmflow.targets.vta import isa
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Instruction, Load, Memory, Operation, Store
from tvmflow.targets.vta.semantics import State

SMALL = Config(log_batch=1, log_block=2, log_uop_buffer=8, log_inp_buffer=8, log_wgt_buffer=8, log_acc_buffer=9)
"""Two rows a tile, blocks of 4, and buffers of 64 micro-ops, 32 INP, 16 WGT and 16 ACC tiles."""
BLOCK_16 = Config(version="0.0.1", log_uop_buffer=8, log_inp_buffer=8, log_wgt_buffer=12, log_acc_buffer=10)
"""The tiles of the samples, and buffers of 64 micro-ops, 16 INP, 16 WGT and 16 ACC tiles."""

DRAM_BYTES = 4096
BUFFERS = ("inp", "wgt", "out", "acc", "uop")


class Generator:
    """Makes one program; `dram` is its memory, random and with the micro-ops that the program loads."""

    def __init__(self, rng: np.random.Generator, config: Config):
        self.rng, self.config = rng, config
        self.die = random.Random(int(rng.integers(1 << 60)))  # for single numbers ten times as fast as NumPy's
        self.dram = rng.integers(0, 256, DRAM_BYTES, np.uint8)
        self.uops = 0  # words of micro-ops at the memory's beginning, at most 256
        self.fresh = np.zeros(config.acc_depth, bool)
        self.instructions: list[Instruction] = []

    def below(self, limit: int) -> int:
        """A random number from 0 to `limit` inclusive."""
        return self.die.randint(0, limit)

    def one(self) -> None:
        kind = self.die.choice(["load", "load", "acc", "gemm", "gemm", "reset", "alu", "alu", "store"])
        if kind == "load":
            self.load(self.die.choice([Memory.INP, Memory.WGT]))
        elif kind == "acc":
            self.load(Memory.ACC)
        elif kind == "store":
            self.store()
        else:
            self.operate(kind)

    def load(self, memory: Memory) -> None:
        pads = [self.below(1) if memory != Memory.WGT else 0 for _ in range(4)]
        y_size, x_size = 1 + self.below(1), 1 + self.below(1)
        stride = x_size + self.below(1)
        made = Load(memory=memory, y_size=y_size, x_size=x_size, x_stride=stride)
        made = replace(made, **dict(zip(("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1"), pads, strict=True)))
        room = isa.depth(memory, self.config) - made.elements
        if room < 0:
            return
        last = DRAM_BYTES // isa.element_bytes(memory, self.config) - (y_size - 1) * stride - x_size
        made = replace(made, sram_base=self.below(room), dram_base=self.below(last))
        if memory == Memory.ACC:
            self.fresh[made.sram_base : made.sram_base + made.elements] = False
        self.instructions.append(made)

    def store(self) -> None:
        places = np.flatnonzero(self.fresh)
        if not places.size:
            return
        start = int(self.die.choice(places))
        run = 1
        while run < 4 and start + run < len(self.fresh) and self.fresh[start + run]:
            run += 1
        x_size = 1 + self.below(min(run, 2) - 1)
        y_size = 1 + self.below(run // x_size - 1)
        stride = x_size + self.below(2)
        first, last = 1024 // self.config.out_bytes, DRAM_BYTES // self.config.out_bytes
        dram = first + self.below(last - first - (y_size - 1) * stride - x_size)
        self.instructions.append(Store(sram_base=start, dram_base=dram, y_size=y_size, x_size=x_size, x_stride=stride))

    def operate(self, kind: str) -> None:
        config = self.config
        count, outer, inner = 1 + self.below(3), 1 + self.below(2), 1 + self.below(2)
        use_imm = kind == "alu" and self.below(1) == 1
        depths = (config.acc_depth, config.acc_depth if kind == "alu" else config.inp_depth, config.wgt_depth)
        factors = [(self.below(2), self.below(2)) for _ in range(3)]
        if use_imm:
            factors[1] = factors[0]
        spread = [(outer - 1) * far + (inner - 1) * near for far, near in factors]
        columns = [self.rng.integers(0, depth - more, count) for depth, more in zip(depths, spread, strict=True)]
        if use_imm:
            columns[1] = columns[0]
        words = isa.encode_uops(np.stack(columns, -1), config)
        if self.uops + count > 256:
            return
        self.dram[4 * self.uops : 4 * (self.uops + count)] = words.view(np.uint8)
        begin = self.below(config.uop_depth - count)
        self.instructions.append(
            Load(memory=Memory.UOP, sram_base=begin, dram_base=self.uops, y_size=1, x_size=count, x_stride=count)
        )
        self.uops += count
        loops = {"uop_bgn": begin, "uop_end": begin + count, "iter_out": outer, "iter_in": inner}
        names = ("dst_factor", "src_factor", "wgt_factor")[: 2 if kind == "alu" else 3]
        for name, (far, near) in zip(names, factors, strict=False):
            loops |= {f"{name}_out": far, f"{name}_in": near}
        if kind == "alu":
            operation = Operation(self.below(3 if use_imm else 2))
            limits = (-16, 15) if operation == Operation.SHR else (-32768, 32767)
            imm = self.die.randint(*limits) if use_imm else 0
            self.instructions.append(Alu(operation=operation, use_imm=use_imm, imm=imm, **loops))
        else:
            self.instructions.append(Gemm(reset=kind == "reset", **loops))
        steps = (
            columns[0][:, None, None]
            + np.arange(outer)[:, None] * factors[0][0]
            + np.arange(inner)[None, :] * factors[0][1]
        )
        self.fresh[steps] = kind != "reset"


def program(rng: np.random.Generator, config: Config) -> tuple[tuple[Instruction, ...], np.ndarray]:
    """A random program that hardware takes, without tokens, and its memory."""
    generator = Generator(rng, config)
    for _ in range(2 + generator.below(6)):
        generator.one()
    return (*generator.instructions, Finish()), generator.dram


def in_series(instructions):
    """The same with tokens that keep the modules in the program's order."""
    made = []
    for instruction in instructions:
        here = isa.MODULES.index(isa.module_of(instruction))
        while made and (before := isa.MODULES.index(isa.module_of(made[-1]))) != here:
            ahead = "next" if here > before else "prev"
            made[-1] = replace(made[-1], **{f"push_{ahead}": True})
            tokens = {f"pop_{'prev' if ahead == 'next' else 'next'}": True}
            if abs(here - before) == 1:
                instruction = replace(instruction, **tokens)
                break
            made.append(isa.nop("compute", **tokens))
        made.append(instruction)
    return made


def spoil(rng: np.random.Generator, instructions: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """The same with one instruction that may be refused."""
    spoilt = list(instructions)
    number = int(rng.integers(len(spoilt)))
    it = spoilt[number]
    big = int(rng.choice([0, 1, 14, 40, 200]))
    if isinstance(it, Load | Store):
        name = str(rng.choice(["sram_base", "dram_base", "y_size", "x_size", "x_stride"]))
        spoilt[number] = replace(it, **{name: big * 20 if name == "dram_base" else big})
    elif isinstance(it, Gemm | Alu):
        names = ["uop_bgn", "uop_end", "iter_out", "iter_in", "dst_factor_out", "src_factor_in"]
        names += ["imm", "operation", "use_imm"] if isinstance(it, Alu) else ["wgt_factor_out"]
        name = str(rng.choice(names))
        value = {"operation": Operation(big % 5), "use_imm": not getattr(it, "use_imm", False)}.get(name, big)
        spoilt[number] = replace(it, **{name: value})
    return tuple(spoilt)


def state(config: Config, dram: np.ndarray, rng: np.random.Generator) -> State:
    """A machine with random buffers."""
    made = State(config=config, dram=dram.copy())
    for name in BUFFERS:
        buffer = getattr(made, name).reshape(-1).view(np.uint8)
        buffer[:] = np.frombuffer(rng.bytes(buffer.size), np.uint8)
    return made


def copy(state: State) -> State:
    """The same machine again."""
    made = State(config=state.config, dram=state.dram.copy())
    for name in (*BUFFERS, "fresh"):
        getattr(made, name)[:] = getattr(state, name)
    return made
