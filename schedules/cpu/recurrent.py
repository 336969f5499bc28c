"""The steps of a recurrent layer as one kernel, a loop over time: the product with the state, and all that comes after.

`roll_steps` decides which layers are computed so, and has the weights in the order in which they are read.

1. Lanes are units of the state, and a tile has some vectors of them for each gate: the sums of all gates of a unit meet
   in registers, and what the step makes of them is computed there.
2. Each element of the state is spread over the lanes and multiplied by a row of weights, which lie one behind the
   other: no sum is across lanes. They come from the cache each step, and nothing else is as much.
3. The states of all steps are the result. The last of them is what a step reads, and it writes the next, so that no
   tile sees what another has written already. The other states, as a cell's, have two places in turns.
4. The last tile begins early rather than reach beyond the state's end; what two tiles have is computed twice, and both
   times to the same bits.
5. Threads share the tiles of a step, if it has work enough for as many starts as there are steps.

A step of an LSTM of 64 units: 0.9 µs on one core; as two calls of the virtual machine, product and step, 2.5.
Intel Xeon (AVX-512, 2 virtual cores, busy: the best of several rounds), TVM 0.27.0, 2026-11-30.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tvm_ffi
from tvm import sym, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import SBlock, Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvmflow.schedules.convolutions import Expr, fitting, starts, static_shape, vectors_of, worth_threads

if TYPE_CHECKING:
    from tvmflow.spec import Target

ATTRIBUTE = "tvmflow.steps"
"""Of a kernel that `define` made: how many steps it takes."""
MOST_SUMS, MOST_VECTORS = 16, 5
"""Of a tile: vectors of sums for all gates, and of units. Less than eight sums would wait for one another."""


def recurrent(func: tirx.PrimFunc, target: Target, tile: None = None) -> Schedule | None:
    """There is no tile to choose: `define` writes the loops."""
    return Schedule(func) if func.attrs is not None and ATTRIBUTE in func.attrs else None


def tiles(func: tirx.PrimFunc, target: Target) -> list[None]:
    """There is nothing to search."""
    return []


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """Steps of one layer in one direction.

    `step` computes one of them: its parameters are the inputs' shares of the gates (steps × batch × gates·units), the
    number of the step, the state's share (batch × gates·units), states of before (batch × units each), and the states
    that it makes, the hidden one first. `first` is the number of the step before the first that is taken here, and
    `stride` 1 or −1. `carried` are the results that the step's states of before are, in their order.
    """

    step: tirx.PrimFunc
    first: int
    stride: int
    count: int
    has_bias: bool
    carried: tuple[int, ...]

    @property
    def shares(self) -> tuple[int, ...]:
        return _shape(self.step.params[0])

    @property
    def batch(self) -> int:
        return self.shares[1]

    @property
    def units(self) -> int:
        return _shape(self.step.params[-1])[1]

    @property
    def gates(self) -> int:
        return self.shares[2] // self.units

    @property
    def macs(self) -> int:
        """Multiply-adds of a step."""
        return self.batch * self.units * self.shares[2]

    @property
    def kept(self) -> tuple[int, ...]:
        """Results other than the hidden state that the next step reads."""
        return tuple(sorted({number for number in self.carried if number}))


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How many vectors of units a tile has, of how many lanes."""

    lanes: int
    vectors: int


def tiles_of(form: Recurrence, target: Target) -> Tiles:
    """Of those that need the fewest vectors for all units, the largest."""
    lanes = fitting(vectors_of(target).lanes, form.units)
    registers = max(rows * columns for rows, columns in vectors_of(target).tiles)
    most = min(registers, MOST_SUMS) // form.gates
    vectors = range(1, max(1, min(most, MOST_VECTORS, form.units // lanes)) + 1)

    def needed(many: int) -> int:
        return many * -(-form.units // (lanes * many))

    return Tiles(lanes=lanes, vectors=min(vectors, key=lambda many: (needed(many), -many)))


def pack(weight: np.ndarray, form: Recurrence, target: Target) -> np.ndarray:
    """Weights (units × gates·units) as tiles × units of before × gates × units of a tile."""
    tile = tiles_of(form, target)
    width = tile.lanes * tile.vectors
    plain = weight.reshape(form.units, form.gates, form.units)
    begins = [min(place, form.units - width) for place in range(0, form.units, width)]
    return np.ascontiguousarray(np.stack([plain[:, :, begin : begin + width] for begin in begins]))


def define(form: Recurrence, target: Target) -> tirx.PrimFunc:
    """The kernel.

    Its parameters are the inputs' shares; the hidden state of step `form.first` and the others in `form.kept`, batch ×
    units each; the packed weights; the bias of the state's shares, if there is one; and as results the hidden states of
    `form.count` + 1 steps, from the lowest number on, and the last of the others.
    """
    return _Kernel(form, target).loops()


class _Kernel:
    def __init__(self, form: Recurrence, target: Target) -> None:
        self.form, self.target = form, target
        self.tile = tiles_of(form, target)
        self.width = self.tile.lanes * self.tile.vectors
        self.blocks = _blocks(form.step)

    def loops(self) -> tirx.PrimFunc:
        form, lanes, vectors = self.form, self.tile.lanes, self.tile.vectors
        tiles, start = starts(form.units, self.width)
        state = form.batch, form.units
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, ATTRIBUTE: form.count})
            self.shares = _argument("shares", form.shares)
            hidden = _argument("hidden", state)
            others = {number: _argument(f"state_{number}", state) for number in form.kept}
            self.weight = _argument("weight", (tiles, form.units, form.gates, self.width))
            self.bias = _argument("bias", form.shares[2:]) if form.has_bias else None
            self.result = _argument("states", (form.count + 1, *state))
            last = {number: _argument(f"last_{number}", state) for number in form.kept}
            self.places = {number: T.sblock_alloc_buffer((2, *state), "float32") for number in form.kept}
            # one buffer for each: TVM puts a kilobyte on the heap, and then the sums are no registers to LLVM
            self.sums = [T.sblock_alloc_buffer((vectors, lanes), "float32") for _ in range(form.gates)]
            self.values = [T.sblock_alloc_buffer((vectors, lanes), "float32") for _ in self.blocks]
            with T.serial(0, form.batch) as row, T.serial(0, form.units) as unit:
                T.buffer_store(self.result, hidden[row, unit], [self.row_of(0), row, unit])
                for number, given in others.items():
                    T.buffer_store(self.places[number], given[row, unit], [0, row, unit])
            within = T.parallel if tiles > 1 and worth_threads(form.macs, self.target) else T.serial
            with T.serial(1, form.count + 1) as index, within(0, tiles) as tile, T.serial(0, form.batch) as row:
                self.multiply(index, tile, row)
                self.finish(index, start(tile), row)
            for number, made in last.items():
                with T.serial(0, form.batch) as row, T.serial(0, form.units) as unit:
                    T.buffer_store(made, self.places[number][form.count % 2, row, unit], [row, unit])
        return builder.get()

    def row_of(self, index: Expr | int) -> Expr:
        """Where the hidden state of a step is in the result."""
        return index if self.form.stride > 0 else self.form.count - index

    def multiply(self, index: Expr, tile: Expr, row: Expr) -> None:
        """The hidden state of the step before, times the weights of a tile."""
        form, lanes = self.form, self.tile.lanes
        every = [(gate, vector) for gate in range(form.gates) for vector in range(self.tile.vectors)]
        registers = vectors_of(self.target)
        unroll = math.gcd(form.units, registers.unroll)
        whole = registers.by_element and unroll == lanes
        loaded = T.sblock_alloc_buffer((lanes,), "float32") if whole else None
        before = self.row_of(index - 1)
        with T.vectorized(0, lanes) as lane:
            for gate, vector in every:
                T.buffer_store(self.sums[gate], T.float32(0), [vector, lane])
        with T.serial(0, form.units // unroll) as some:
            if loaded is not None:
                with T.vectorized(0, lanes) as lane:
                    T.buffer_store(loaded, self.result[before, row, some * unroll + lane], [lane])
            with T.unroll(0, unroll) as more, T.vectorized(0, lanes) as lane:
                unit = some * unroll + more
                value = self.result[before, row, unit] if loaded is None else loaded[more]
                for gate, vector in every:
                    weight = self.weight[tile, unit, gate, vector * lanes + lane]
                    T.buffer_store(self.sums[gate], self.sums[gate][vector, lane] + value * weight, [vector, lane])

    def finish(self, index: Expr, start: Expr, row: Expr) -> None:
        """What the step makes of the sums of a tile.

        Each value has a loop of its own: TVM takes a buffer that one vectorised loop alone uses for a single number.
        """
        form, lanes = self.form, self.tile.lanes
        results = form.step.params[3 + len(form.carried) :]
        computed: dict[tirx.Buffer, tirx.Buffer] = {}
        for block, kept in zip(self.blocks, self.values, strict=True):
            with T.vectorized(0, lanes) as lane:
                for vector in range(self.tile.vectors):
                    unit = start + (vector * lanes + lane)
                    values = _Values(self, block, index, row, unit, vector, lane, computed)
                    T.buffer_store(kept, values.made(), [vector, lane])
            computed[block.body.buffer] = kept
        with T.vectorized(0, lanes) as lane:
            for vector in range(self.tile.vectors):
                unit = start + (vector * lanes + lane)
                T.buffer_store(self.result, computed[results[0]][vector, lane], [self.row_of(index), row, unit])
                for number in form.kept:
                    made = computed[results[number]][vector, lane]
                    T.buffer_store(self.places[number], made, [index % 2, row, unit])


@dataclass(frozen=True)
class _Values:
    """What a step's block computes for one unit, from what the kernel has in place of the step's parameters."""

    kernel: _Kernel
    block: SBlock
    index: Expr
    row: Expr
    unit: Expr
    vector: int
    lane: Expr
    computed: Mapping[tirx.Buffer, tirx.Buffer]
    """What the step's blocks before store into → where that is."""

    def made(self) -> Expr:
        return tvm_ffi.structural_map(self.block.body.value, (TensorLoad, self._element), order="post")

    def _element(self, load: TensorLoad) -> Expr:
        kernel, form, buffer = self.kernel, self.kernel.form, load.source
        shares, number, recurred, *states = form.step.params[: 3 + len(form.carried)]
        if buffer.same_as(number):  # as an index of the shares alone, which have theirs below
            return load
        offset = _offset(load.indices[-1], self.block.iter_vars[-1])
        if buffer.same_as(shares):
            return kernel.shares[form.first + self.index * form.stride, self.row, self.unit + offset]
        if buffer.same_as(recurred):
            total = kernel.sums[offset // form.units][self.vector, self.lane]
            return total if kernel.bias is None else total + kernel.bias[self.unit + offset]
        if buffer in self.computed:
            return self.computed[buffer][self.vector, self.lane]
        carried = form.carried[next(place for place, state in enumerate(states) if state.same_as(buffer))]
        if carried == 0:
            return kernel.result[kernel.row_of(self.index - 1), self.row, self.unit]
        return kernel.places[carried][(self.index + 1) % 2, self.row, self.unit]


def _argument(name: str, shape: Sequence[int]) -> tirx.Buffer:
    return T.arg(name, tirx.decl_buffer(tuple(shape), "float32", name))


def _shape(buffer: tirx.Buffer) -> tuple[int, ...]:
    shape = static_shape(buffer)
    assert shape is not None
    return shape


def _blocks(step: tirx.PrimFunc) -> list[SBlock]:
    """What a step computes, one after the other: each stores an element for a row and a unit."""
    sch = Schedule(step)
    return [sch.get(name) for name in sch.get_child_blocks(sch.get_sblock("root"))]


def _offset(index: Expr, axis: tirx.IterVar) -> int:
    """How far an index is from that of the unit."""
    offset = sym.Analyzer().simplify(index - axis.var)
    assert isinstance(offset, tirx.IntImm)
    return int(offset)
