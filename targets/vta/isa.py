"""VTA's instructions and micro-ops as values, their two binary encodings, and their text.

Field names are those of upstream's hw_spec.h, which lays the fields out as C bit-fields: in order, from the lowest bit
of a 64-bit word, and into the next word where one doesn't fit. Addresses count elements (tiles or micro-ops), not
bytes. What an instruction does is in `tvmflow.targets.vta.semantics`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from tvmflow.spec import UserError
from tvmflow.targets.vta.config import (
    DRAM_ADDRESS_BITS,
    IMMEDIATE_BITS,
    INSTRUCTION_BYTES,
    LOOP_BITS,
    PAD_BITS,
    SIZE_BITS,
    SRAM_ADDRESS_BITS,
    Config,
)

MODULES = ("load", "compute", "store")
"""The three modules that execute, in the order in which data passes them."""


class Memory(IntEnum):
    """The on-chip buffers. ACC_8BIT is ACC filled from int8, which only the functional simulator upstream can do."""

    UOP = 0
    WGT = 1
    INP = 2
    ACC = 3
    OUT = 4
    ACC_8BIT = 5


class Operation(IntEnum):
    """What the ALU does. MUL exists in upstream's functional simulator, and in no PYNQ bitstream."""

    MIN = 0
    MAX = 1
    ADD = 2
    SHR = 3
    MUL = 4


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What all have: the tokens that are waited for before the instruction, and given after it.

    `prev` and `next` are the neighbours in `MODULES` of the module that executes it.
    """

    pop_prev: bool = False
    pop_next: bool = False
    push_prev: bool = False
    push_next: bool = False


@dataclass(frozen=True, kw_only=True)
class Load(Instruction):
    """y_size rows of x_size elements, x_stride elements apart in memory, into a buffer, with zeros around them.

    With y_size = x_size = 0 it does nothing but take and give tokens: INP on the load module, UOP on compute.
    """

    memory: Memory
    sram_base: int = 0
    dram_base: int = 0
    y_size: int = 0
    x_size: int = 0
    x_stride: int = 0
    y_pad_0: int = 0
    y_pad_1: int = 0
    x_pad_0: int = 0
    x_pad_1: int = 0

    @property
    def width(self) -> int:
        """Elements of a row in the buffer."""
        return self.x_pad_0 + self.x_size + self.x_pad_1

    @property
    def elements(self) -> int:
        """Elements that are written in the buffer."""
        return 0 if is_nop(self) else (self.y_pad_0 + self.y_size + self.y_pad_1) * self.width


@dataclass(frozen=True, kw_only=True)
class Store(Instruction):
    """y_size rows of x_size tiles, contiguous in OUT, to memory, where rows are x_stride tiles apart."""

    sram_base: int = 0
    dram_base: int = 0
    y_size: int = 0
    x_size: int = 0
    x_stride: int = 0


@dataclass(frozen=True, kw_only=True)
class Gemm(Instruction):
    """ACC[dst] += INP[src] · WGT[wgt]ᵀ, or = 0 with reset, for the micro-ops before uop_end, iter_out × iter_in times.

    The factors are what each iteration of a loop adds to the micro-op's indices.
    """

    reset: bool = False
    uop_bgn: int
    uop_end: int
    iter_out: int = 1
    iter_in: int = 1
    dst_factor_out: int = 0
    dst_factor_in: int = 0
    src_factor_out: int = 0
    src_factor_in: int = 0
    wgt_factor_out: int = 0
    wgt_factor_in: int = 0

    @property
    def steps(self) -> int:
        return self.iter_out * self.iter_in * max(self.uop_end - self.uop_bgn, 0)


@dataclass(frozen=True, kw_only=True)
class Alu(Instruction):
    """The same loops: ACC[dst] = operation(ACC[dst], imm if use_imm else ACC[src]), elementwise, signed 32 bit."""

    operation: Operation
    uop_bgn: int
    uop_end: int
    iter_out: int = 1
    iter_in: int = 1
    dst_factor_out: int = 0
    dst_factor_in: int = 0
    src_factor_out: int = 0
    src_factor_in: int = 0
    use_imm: bool = False
    imm: int = 0

    @property
    def steps(self) -> int:
        return self.iter_out * self.iter_in * max(self.uop_end - self.uop_bgn, 0)


@dataclass(frozen=True, kw_only=True)
class Finish(Instruction):
    """The end of a program: the host is told. Runs on compute."""


class Uop(NamedTuple):
    """One micro-op: indices into ACC, into INP (GEMM) or ACC (ALU), and into WGT."""

    dst: int
    src: int = 0
    wgt: int = 0


def nop(module: str, **tokens: bool) -> Load | Store:
    """The instruction that does nothing on `module` but take and give tokens."""
    if module == "store":
        return Store(**tokens)
    return Load(memory=Memory.INP if module == "load" else Memory.UOP, **tokens)


def is_nop(instruction: Instruction) -> bool:
    return isinstance(instruction, Load | Store) and instruction.x_size == 0 and instruction.y_size == 0


def module_of(instruction: Instruction) -> str:
    """Which of `MODULES` executes it."""
    if isinstance(instruction, Store):
        return "store"
    return "load" if isinstance(instruction, Load) and instruction.memory in (Memory.INP, Memory.WGT) else "compute"


def element_bytes(memory: Memory, config: Config) -> int:
    """Bytes of one element in the host's memory, which is the unit of dram_base and x_stride."""
    return {
        Memory.UOP: config.uop_bytes,
        Memory.WGT: config.wgt_bytes,
        Memory.INP: config.inp_bytes,
        Memory.ACC: config.acc_bytes,
        Memory.OUT: config.out_bytes,
        Memory.ACC_8BIT: config.inp_bytes,
    }[memory]


def depth(memory: Memory, config: Config) -> int:
    """Elements that a buffer holds."""
    return {Memory.UOP: config.uop_depth, Memory.WGT: config.wgt_depth, Memory.INP: config.inp_depth}.get(
        memory, config.acc_depth
    )


OPCODES: dict[int, type[Instruction]] = {0: Load, 1: Store, 2: Gemm, 3: Finish, 4: Alu}
_NUMBERS = {kind: number for number, kind in OPCODES.items()}


class Field(NamedTuple):
    """Where a field of an instruction lies: its lowest bit of 128, and how many bits."""

    name: str
    low: int
    bits: int


@functools.cache
def layout(opcode: int, config: Config) -> tuple[Field, ...]:
    """The fields of one of OPCODES. Raises UserError if they need more than 128 bits."""
    kind = OPCODES[opcode]
    new = config.version != "0.0.1"
    acc, inp, wgt, uop = config.log_acc_depth, config.log_inp_depth, config.log_wgt_depth, config.log_uop_depth
    widths = [("opcode", 3), ("pop_prev", 1), ("pop_next", 1), ("push_prev", 1), ("push_next", 1)]
    loops = [("reset", 1), ("uop_bgn", uop), ("uop_end", uop + 1), ("iter_out", LOOP_BITS), ("iter_in", LOOP_BITS)]
    loops += [("dst_factor_out", acc), ("dst_factor_in", acc)]
    if kind in (Load, Store):
        widths += [("memory", 3 if new else 2), ("sram_base", SRAM_ADDRESS_BITS), ("dram_base", DRAM_ADDRESS_BITS)]
        widths += [("y_size", SIZE_BITS), ("x_size", SIZE_BITS), ("x_stride", SIZE_BITS)]
        widths += [(name, PAD_BITS) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")]
    elif kind is Gemm:
        widths += [*loops, ("src_factor_out", inp), ("src_factor_in", inp)]
        widths += [("wgt_factor_out", wgt), ("wgt_factor_in", wgt)]
    elif kind is Alu:
        widths += [*loops, ("src_factor_out", acc), ("src_factor_in", acc)]
        widths += [("operation", 3 if new else 2), ("use_imm", 1), ("imm", IMMEDIATE_BITS)]
    fields, low = [], 0
    for name, bits in widths:
        if low // 64 != (low + bits - 1) // 64:
            low = (low // 64 + 1) * 64
        fields.append(Field(name, low, bits))
        low += bits
    if low > INSTRUCTION_BYTES * 8:
        raise UserError(f"{config.bitstream}: {_name(kind)} needs {low} bits, an instruction has 128.")
    return tuple(fields)


def _name(kind: type[Instruction]) -> str:
    return kind.__name__.upper()


def encode(instruction: Instruction, config: Config) -> bytes:
    """16 bytes, little-endian. Raises UserError where a value doesn't fit its field."""
    kind = type(instruction)
    values: dict[str, Any] = {**vars(instruction), "opcode": _NUMBERS[kind]}
    if isinstance(instruction, Store):
        values["memory"] = Memory.UOP if is_nop(instruction) else Memory.OUT
    word = 0
    for name, low, bits in layout(values["opcode"], config):
        value = int(values.get(name, 0))
        if name == "memory" and isinstance(instruction, Store):
            value &= (1 << bits) - 1  # 0.0.1 has two bits for OUT = 4, and its store module ignores them
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if name == "imm" else (0, (1 << bits) - 1)
        if not least <= value <= most:
            raise UserError(
                f"{_name(kind)}: {name} is {value}, but HW_VER {config.version} of {config.bitstream} "
                f"has {bits} bits for it ({least} … {most})."
            )
        word |= (value & (1 << bits) - 1) << low
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(code: bytes, config: Config) -> Instruction:
    """The instruction in 16 bytes. Raises UserError for what is none, and for bits set that no field has."""
    if len(code) != INSTRUCTION_BYTES:
        raise UserError(f"A VTA instruction has {INSTRUCTION_BYTES} bytes, not {len(code)}.")
    word = int.from_bytes(code, "little")
    kind = OPCODES.get(word & 7)
    if kind is None:
        raise UserError(f"Opcode {word & 7} is no VTA instruction.")
    values: dict[str, Any] = {}
    for name, low, bits in layout(word & 7, config):
        mask = (1 << bits) - 1 << low
        values[name] = (word & mask) >> low
        word &= ~mask
    if word:
        raise UserError(f"{_name(kind)}: bits are set that HW_VER {config.version} has no field for.")
    del values["opcode"]
    for name in ("pop_prev", "pop_next", "push_prev", "push_next"):
        values[name] = bool(values[name])
    if kind is Load:
        if values["memory"] not in (0, 1, 2, 3, 5):
            raise UserError(f"LOAD: memory type {values['memory']} can't be loaded.")
        values["memory"] = Memory(values["memory"])
    elif kind is Store:
        memory = values.pop("memory")
        if config.version != "0.0.1" and memory != (4 if values["x_size"] or values["y_size"] else 0):
            raise UserError(f"STORE: memory type {memory} can't be stored.")
        if any(values.pop(name) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")):
            raise UserError("STORE: padding is set, which a store doesn't have.")
    elif kind is Gemm:
        values["reset"] = bool(values["reset"])
    elif kind is Alu:
        if values.pop("reset"):
            raise UserError("ALU: reset is set, which means nothing there.")
        if values["operation"] > max(Operation):
            raise UserError(f"ALU: operation {values['operation']} doesn't exist.")
        values["operation"] = Operation(values["operation"])
        values["use_imm"] = bool(values["use_imm"])
        values["imm"] -= (values["imm"] >> IMMEDIATE_BITS - 1) << IMMEDIATE_BITS
    return kind(**values)


def encode_program(instructions: Iterable[Instruction], config: Config) -> bytes:
    """The instruction stream. Raises UserError with the number of the instruction that doesn't fit."""
    codes = []
    for number, instruction in enumerate(instructions):
        try:
            codes.append(encode(instruction, config))
        except UserError as error:
            raise UserError(f"Instruction {number}: {error}") from error
    return b"".join(codes)


def decode_program(code: bytes, config: Config) -> tuple[Instruction, ...]:
    """The inverse. Raises UserError with the number of what is no instruction."""
    if len(code) % INSTRUCTION_BYTES:
        raise UserError(f"{len(code)} bytes are no whole number of {INSTRUCTION_BYTES}-byte instructions.")
    instructions = []
    for number in range(len(code) // INSTRUCTION_BYTES):
        try:
            instructions.append(decode(code[number * INSTRUCTION_BYTES :][:INSTRUCTION_BYTES], config))
        except UserError as error:
            raise UserError(f"Instruction {number}: {error}") from error
    return tuple(instructions)


def encode_uops(uops: np.ndarray | Sequence[Uop], config: Config) -> np.ndarray:
    """N×3 indices (dst, src, wgt) → N micro-ops, uint32. Raises UserError where an index doesn't fit."""
    table = np.asarray(uops, np.int64).reshape(-1, 3)
    bits = (config.log_acc_depth, config.log_uop_src, config.log_wgt_depth)
    word, low = np.zeros(len(table), np.uint32), 0
    for column, (name, width) in enumerate(zip(Uop._fields, bits, strict=True)):
        wrong = np.flatnonzero((table[:, column] < 0) | (table[:, column] >> width))
        if wrong.size:
            raise UserError(
                f"Micro-op {wrong[0]}: {name} is {table[wrong[0], column]}, "
                f"but {config.bitstream} has {width} bits for it."
            )
        word |= table[:, column].astype(np.uint32) << np.uint32(low)
        low += width
    return word


def decode_uops(words: np.ndarray, config: Config) -> np.ndarray:
    """N micro-ops, uint32 → N×3 int64 indices (dst, src, wgt)."""
    acc, src, wgt = config.log_acc_depth, config.log_uop_src, config.log_wgt_depth
    words = np.asarray(words, np.uint32).astype(np.int64)
    masked = [words & (1 << acc) - 1, words >> acc & (1 << src) - 1, words >> acc + src & (1 << wgt) - 1]
    return np.stack(masked, axis=-1)


def text(instruction: Instruction) -> str:
    """One line: what the instruction does, then its tokens."""
    if isinstance(instruction, Finish):
        shown = "finish"
    elif is_nop(instruction):
        shown = f"nop     {module_of(instruction)}"
    elif isinstance(instruction, Load):
        shown = (
            f"load    {instruction.memory.name}[{instruction.sram_base}:{instruction.sram_base + instruction.elements}]"
            f" = dram[{instruction.dram_base}] {_rows(instruction)}"
        )
        pads = [instruction.y_pad_0, instruction.y_pad_1, instruction.x_pad_0, instruction.x_pad_1]
        if any(pads):
            shown += " pad top {} bottom {} left {} right {}".format(*pads)
    elif isinstance(instruction, Store):
        end = instruction.sram_base + instruction.y_size * instruction.x_size
        shown = f"store   dram[{instruction.dram_base}] {_rows(instruction)} = OUT[{instruction.sram_base}:{end}]"
    elif isinstance(instruction, Gemm):
        name = "reset   " if instruction.reset else "gemm    "
        shown = name + _loops(instruction) + f" wgt +{instruction.wgt_factor_out},+{instruction.wgt_factor_in}"
    else:
        assert isinstance(instruction, Alu)
        operand = str(instruction.imm) if instruction.use_imm else "ACC[src]"
        shown = f"{instruction.operation.name.lower():<8}{operand} {_loops(instruction)}"
    names = ("pop_prev", "pop_next", "push_prev", "push_next")
    tokens = [name.replace("_", " ") for name in names if getattr(instruction, name)]
    return f"{shown:<84} ; {', '.join(tokens)}" if tokens else shown


def _rows(instruction: Load | Store) -> str:
    return f"{instruction.y_size} × {instruction.x_size} stride {instruction.x_stride}"


def _loops(instruction: Gemm | Alu) -> str:
    return (
        f"uops {instruction.uop_bgn}:{instruction.uop_end} × {instruction.iter_out} × {instruction.iter_in}"
        f" dst +{instruction.dst_factor_out},+{instruction.dst_factor_in}"
        f" src +{instruction.src_factor_out},+{instruction.src_factor_in}"
    )


def disassemble(instructions: Iterable[Instruction]) -> str:
    """The program as text, one numbered line an instruction. The factors are those of the outer and inner loop."""
    return "".join(f"{number:6}  {text(instruction)}\n" for number, instruction in enumerate(instructions))
