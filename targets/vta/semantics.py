"""What each VTA instruction means, written once and plainly: the oracle of the fast simulator.

Instructions execute in program order. That is the machine's meaning for every program that `tvmflow.targets.vta.check`
lets pass: there, tokens order all accesses of different modules to the same place as the program does. What hardware
would do wrongly without a word is refused here: RefusedError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tvmflow.spec import VerificationError
from tvmflow.targets.vta import isa
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Instruction, Load, Memory, Operation, Store

SHIFTS = range(-16, 16)
"""Amounts of SHR that every core agrees on; negative ones shift left. The HLS core has five signed bits."""


class RefusedError(VerificationError):
    """A program does what hardware does not, or not everywhere alike."""


@dataclass(kw_only=True)
class State:
    """Everything that a program can read or write; changed in place.

    `dram` is the host's memory, uint8. `out` is what STORE reads: 8 bits a lane, written by GEMM and ALU only; `fresh`
    says of which tiles it still is the low byte of `acc`. Buffers begin as zeros, though hardware's begin as anything.
    """

    config: Config
    dram: np.ndarray
    uop: np.ndarray = field(init=False)
    inp: np.ndarray = field(init=False)
    wgt: np.ndarray = field(init=False)
    acc: np.ndarray = field(init=False)
    out: np.ndarray = field(init=False)
    fresh: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.uop = np.zeros(config.uop_depth, np.uint32)
        self.inp = np.zeros((config.inp_depth, config.batch, config.block), np.int8)
        self.wgt = np.zeros((config.wgt_depth, config.block, config.block), np.int8)
        self.acc = np.zeros((config.acc_depth, config.batch, config.block), np.int32)
        self.out = np.zeros((config.acc_depth, config.batch, config.block), np.int8)
        self.fresh = np.zeros(config.acc_depth, np.uint8)


def run(instructions: tuple[Instruction, ...], state: State) -> None:
    """Execute a program. Raises RefusedError with the number of the instruction that is refused."""
    for number, instruction in enumerate(instructions):
        try:
            execute(instruction, state)
        except RefusedError as error:
            raise RefusedError(f"Instruction {number}: {error}") from error


def execute(instruction: Instruction, state: State) -> None:
    """Execute one instruction; its tokens have no meaning here. Raises RefusedError."""
    check_form(instruction, state.config)
    if isinstance(instruction, Load):
        load(instruction, state)
    elif isinstance(instruction, Store):
        store(instruction, state)
    elif isinstance(instruction, Gemm):
        gemm(instruction, state)
    elif isinstance(instruction, Alu):
        alu(instruction, state)
    else:
        assert isinstance(instruction, Finish)


def check_form(instruction: Instruction, config: Config) -> None:
    """Raise RefusedError for what is seen to be wrong without knowing what buffers hold."""
    if isinstance(instruction, Finish) or isa.is_nop(instruction):
        return
    if isinstance(instruction, Load | Store):
        memory = instruction.memory if isinstance(instruction, Load) else Memory.OUT
        name = f"LOAD {memory.name}" if isinstance(instruction, Load) else "STORE"
        y_size, x_size = instruction.y_size, instruction.x_size
        if y_size == 0 or x_size == 0:
            raise RefusedError(f"{name} of {y_size} × {x_size} elements: either both are 0 or none.")
        if memory == Memory.ACC_8BIT:
            raise RefusedError("LOAD of ACC_8BIT is ignored by the HLS core.")
        if (
            isinstance(instruction, Load)
            and memory in (Memory.UOP, Memory.WGT)
            and instruction.elements != y_size * x_size
        ):
            raise RefusedError(f"{name} with padding: the HLS core does not pad {memory.name}.")
        if memory == Memory.UOP and y_size != 1:
            raise RefusedError("LOAD UOP of other than one row: the HLS core ignores y_size.")
        elements = instruction.elements if isinstance(instruction, Load) else y_size * x_size
        if instruction.sram_base + elements > (depth := isa.depth(memory, config)):
            verb = "writes" if isinstance(instruction, Load) else "reads"
            raise RefusedError(f"{name} {verb} beyond the buffer's {depth} elements.")
        if isinstance(instruction, Load) and y_size * x_size > most_loaded(memory, config):
            raise RefusedError(
                f"{name} of all {depth} tiles of the buffer: the Chisel core's counter of words on their way wraps "
                "to 0, and what follows doesn't wait for them."
            )
        return
    assert isinstance(instruction, Gemm | Alu)
    if instruction.uop_end > config.uop_depth:
        raise RefusedError(f"Micro-op {instruction.uop_end - 1} is beyond the buffer's {config.uop_depth}.")
    if instruction.steps == 0:
        raise RefusedError("A GEMM or ALU instruction without a single step: the cores differ in what they do.")
    if isinstance(instruction, Alu):
        if instruction.operation == Operation.MUL:
            raise RefusedError("ALU MUL exists in upstream's functional simulator, not in hardware.")
        if instruction.operation == Operation.SHR and not instruction.use_imm:
            raise RefusedError("ALU SHR by ACC[src]: the cores differ in how many bits of it they use.")
        if instruction.operation == Operation.SHR and instruction.imm not in SHIFTS:
            raise RefusedError(f"ALU SHR by {instruction.imm}: the HLS core shifts by {SHIFTS[0]} … {SHIFTS[-1]} only.")


def most_loaded(memory: Memory, config: Config) -> int:
    """Elements that one LOAD may bring.

    Chisel's TensorLoadNarrowVME, which loads tiles that are wider than the bus, counts the bus words that it has asked
    for and not got, and has as many values for that as the buffer has words. A LOAD of the whole buffer brings the
    counter back to 0 where memory answers later than all is asked for: for INP at 30 cycles of latency and a bus of 8
    bytes, for ACC and WGT on buses of 32 and 64. Its other counters, and those of LoadUop, TensorStore and Fetch, are a
    bit wider than that, or as wide as the instruction's fields.
    """
    depth = isa.depth(memory, config)
    return depth - 1 if memory in (Memory.INP, Memory.WGT, Memory.ACC) else depth


def load(instruction: Load, state: State) -> None:
    """Copy rows into a buffer, with zeros around them."""
    if isa.is_nop(instruction):
        return
    memory = instruction.memory
    buffer = {Memory.UOP: state.uop, Memory.WGT: state.wgt, Memory.INP: state.inp, Memory.ACC: state.acc}[memory]
    place = instruction.sram_base
    for y in range(-instruction.y_pad_0, instruction.y_size + instruction.y_pad_1):
        for x in range(-instruction.x_pad_0, instruction.x_size + instruction.x_pad_1):
            inside = 0 <= y < instruction.y_size and 0 <= x < instruction.x_size
            if inside:
                source = instruction.dram_base + y * instruction.x_stride + x
                buffer[place] = _element(memory, source, state).view(buffer.dtype).reshape(buffer.shape[1:])
            else:
                buffer[place] = 0
            if memory == Memory.ACC:
                state.fresh[place] = 0  # OUT keeps what it had
            place += 1


def store(instruction: Store, state: State) -> None:
    """Copy rows of OUT to memory."""
    if isa.is_nop(instruction):
        return
    place = instruction.sram_base
    for y in range(instruction.y_size):
        for x in range(instruction.x_size):
            if not state.fresh[place]:
                raise RefusedError(
                    f"STORE of OUT[{place}], which is stale: after LOAD ACC or a reset, only GEMM or ALU write OUT."
                )
            target = instruction.dram_base + y * instruction.x_stride + x
            _element(Memory.OUT, target, state)[:] = state.out[place].reshape(-1).view(np.uint8)
            place += 1


def gemm(instruction: Gemm, state: State) -> None:
    """ACC[dst] += INP[src] · WGT[wgt]ᵀ in int32, which wraps; OUT[dst] = its low bytes. With reset, ACC[dst] = 0."""
    micro_ops = isa.decode_uops(state.uop[instruction.uop_bgn : instruction.uop_end], state.config).tolist()
    for i in range(instruction.iter_out):
        for j in range(instruction.iter_in):
            for dst, src, wgt in micro_ops:
                dst += i * instruction.dst_factor_out + j * instruction.dst_factor_in
                src += i * instruction.src_factor_out + j * instruction.src_factor_in
                wgt += i * instruction.wgt_factor_out + j * instruction.wgt_factor_in
                _check_index("GEMM", "ACC", dst, state.acc)
                _check_index("GEMM", "INP", src, state.inp)  # also with reset: hardware reads them then, too
                _check_index("GEMM", "WGT", wgt, state.wgt)
                if instruction.reset:
                    state.acc[dst] = 0
                    state.fresh[dst] = 0  # the cores differ in what they leave in OUT
                else:
                    state.acc[dst] += state.inp[src].astype(np.int32) @ state.wgt[wgt].astype(np.int32).T
                    state.out[dst] = state.acc[dst].astype(np.int8)
                    state.fresh[dst] = 1


def alu(instruction: Alu, state: State) -> None:
    """ACC[dst] = operation(ACC[dst], immediate or ACC[src]); OUT[dst] = its low bytes."""
    micro_ops = isa.decode_uops(state.uop[instruction.uop_bgn : instruction.uop_end], state.config).tolist()
    for i in range(instruction.iter_out):
        for j in range(instruction.iter_in):
            for dst, src, _ in micro_ops:
                dst += i * instruction.dst_factor_out + j * instruction.dst_factor_in
                src += i * instruction.src_factor_out + j * instruction.src_factor_in
                _check_index("ALU", "ACC", dst, state.acc)
                _check_index("ALU", "ACC", src, state.acc)
                if instruction.use_imm and src != dst:
                    raise RefusedError(
                        f"ALU with an immediate has src {src} and dst {dst}: the Chisel core reads src, others dst."
                    )
                left = state.acc[dst]
                right = np.full_like(left, instruction.imm) if instruction.use_imm else state.acc[src]
                state.acc[dst] = _OPERATIONS[instruction.operation](left, right)
                state.out[dst] = state.acc[dst].astype(np.int8)
                state.fresh[dst] = 1


def _shift(left: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Arithmetic, rounding to −∞; negative amounts shift left and drop the high bits."""
    shifted = left << np.maximum(-amount, 0)
    return shifted >> np.maximum(amount, 0)


_OPERATIONS: dict[Operation, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    Operation.MIN: np.minimum,
    Operation.MAX: np.maximum,
    Operation.ADD: np.add,
    Operation.SHR: _shift,
}


def _element(memory: Memory, index: int, state: State) -> np.ndarray:
    """The bytes of one element of the host's memory, to read or write."""
    size = isa.element_bytes(memory, state.config)
    if (index + 1) * size > len(state.dram):
        verb = "STORE writes" if memory == Memory.OUT else f"LOAD {memory.name} reads"
        raise RefusedError(f"{verb} beyond the memory's {len(state.dram)} bytes.")
    return state.dram[index * size : (index + 1) * size]


def _check_index(instruction: str, memory: str, index: int, buffer: np.ndarray) -> None:
    if index >= len(buffer):
        raise RefusedError(f"{instruction} uses {memory}[{index}], beyond the buffer's {len(buffer)} tiles.")
