"""Instructions in program order, with the tokens that keep three queues from overtaking each other.

A generator says what an instruction reads and writes; which tokens it pops and pushes follows. The rule for one pair
of queues: instruction `j` of one needs all of the other up to `p(j)`; it pops a token, and `p(j)` pushes it, only if no
earlier instruction has waited for as much. The k-th pop thus waits for the k-th push, tokens balance, and since every
wait is for something earlier in the program, there is no deadlock.

New tiles take the place of those that were used longest ago. So the load queue runs ahead of compute as far as there is
room, which is double buffering, and what is still on chip when it is wanted again isn't loaded again.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from tvmflow.spec import UserError
from tvmflow.targets.vta import isa
from tvmflow.targets.vta.config import CHISEL_UOP_DEPTH, SIZE_BITS, Config
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Instruction, Load, Memory, Operation, Store, Uop
from tvmflow.targets.vta.semantics import most_loaded

LOAD, COMPUTE, STORE = 0, 1, 2
"""The queues."""

NEVER = -1
LEAST, MOST = -(2**31), 2**31 - 1
LIKELY_LATENCY, LIKELY_BUS = 35, 8
"""Cycles before a LOAD's first data and after its last, and bytes a cycle: of a board, of which a program knows
nothing. They only decide how far loads of weights run ahead."""
SIZES = 1 << SIZE_BITS
"""What no number of rows or columns of a transfer reaches, nor the distance of its rows."""


class Loop(NamedTuple):
    """A loop around micro-ops: how many times, and what it adds to their ACC, source and WGT indices."""

    times: int
    dst: int = 0
    src: int = 0
    wgt: int = 0


class Infeasible(UserError):
    """A tiling whose tiles don't fit the buffers or the instruction's fields."""


@dataclass
class Draft:
    """An instruction before its tokens are known: `tokens` grow while later instructions come to wait for it."""

    instruction: Instruction
    tokens: set[str] = field(default_factory=set)

    def finished(self) -> Instruction:
        return replace(self.instruction, **dict.fromkeys(self.tokens, True))


FLAGS = {
    (LOAD, COMPUTE): ("push_next", "pop_prev"),
    (COMPUTE, LOAD): ("push_prev", "pop_next"),
    (COMPUTE, STORE): ("push_next", "pop_prev"),
    (STORE, COMPUTE): ("push_prev", "pop_next"),
}
"""Producer and consumer queue → the flags that push and pop a token between them."""


class Buffer:
    """One on-chip buffer: what lies where. With `single`, everything is put at its start."""

    def __init__(self, depth: int) -> None:
        self.depth, self.single = depth, False
        self.kept: set[Hashable] = set()
        """Keys of what is wanted soon, which others take the place of only if there is no other."""
        self._held: dict[Hashable, range] = {}
        self._touched = np.zeros(depth, np.int64)
        self._now = 0

    def find(self, key: Hashable) -> int | None:
        """Where `key` lies, if it does."""
        return self._held[key].start if key in self._held else None

    def take(self, count: int, key: Hashable = None) -> int:
        """Room for `count` tiles, where nothing was used for the longest time. Raises Infeasible."""
        if count > self.depth:
            raise Infeasible(f"{count} tiles don't fit a buffer of {self.depth}.")
        start = 0 if self.single else self._oldest(count)[1]
        self.take_at(start, count)
        if key is not None:
            self._held[key] = range(start, start + count)
        return start

    def room(self, count: int, since: int) -> int | None:
        """Where `take` would make room, if nothing that is kept or was used after `since` lies there."""
        if count > self.depth:
            return None
        touched, start = self._oldest(count)
        return start if touched <= since else None

    @property
    def now(self) -> int:
        """The time of `room`: how often something was used."""
        return self._now

    def _oldest(self, count: int) -> tuple[int, int]:
        """The last use of the best place for `count` tiles, and where it is."""
        touched = self._touched
        if self.kept:
            touched = touched.copy()
            for key in self.kept & self._held.keys():
                touched[self._held[key].start : self._held[key].stop] += self._now + 1
        borders = np.flatnonzero(np.diff(touched)) + 1
        starts = [0, self.depth - count, *(int(start) for start in borders if start + count <= self.depth)]
        return min((int(touched[start : start + count].max()), start) for start in starts)

    def take_at(self, start: int, count: int) -> None:
        """These tiles, whatever they held."""
        self._held = {
            other: held for other, held in self._held.items() if held.stop <= start or start + count <= held.start
        }
        self.touch(slice(start, start + count))

    def touch(self, tiles: slice) -> None:
        """These tiles are in use."""
        self._now += 1
        self._touched[tiles] = self._now


class Stream:
    """A program while it is written: instructions, micro-ops and who last touched every tile on chip and in memory.

    `dram_tiles` is how many INP tiles of memory the program stores to and loads from, from tile 0.
    """

    def __init__(self, config: Config, dram_tiles: int) -> None:
        self.config = config
        self.drafts: list[Draft] = []
        self.uops: list[Uop] = []
        self.inp, self.wgt, self.acc = Buffer(config.inp_depth), Buffer(config.wgt_depth), Buffer(config.acc_depth)
        self._queues: tuple[list[Draft], list[Draft], list[Draft]] = ([], [], [])
        # the last instruction of a queue that wrote or read each tile
        self._loaded = {Memory.INP: _nobody(config.inp_depth), Memory.WGT: _nobody(config.wgt_depth)}
        self._used = {Memory.INP: _nobody(config.inp_depth), Memory.WGT: _nobody(config.wgt_depth)}
        self._computed, self._stored = _nobody(config.acc_depth), _nobody(config.acc_depth)
        self._memory = _nobody(dram_tiles)
        # the tile of memory that each accumulator tile is equal to
        self._equal = _nobody(config.acc_depth)
        # the range in which each accumulator tile's values are known to lie
        self._low = np.full(config.acc_depth, LEAST, np.int64)
        self._high = np.full(config.acc_depth, MOST, np.int64)
        self._synced = dict.fromkeys(FLAGS, NEVER)
        self._known_stores: list[tuple[int, int]] = []  # (store, the compute instruction that first knows of it)
        # what the queues have done, in cycles, if nothing ever waits: when compute begins an instruction, a store ends
        self._begins: list[int] = []
        self._clock = 0
        self._ends: list[int] = []
        # the same where queues wait: when each instruction of a queue ends, and when the queue is free
        self._when: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._free = [0, 0, 0]
        self.partly: dict[Hashable, int] = {}
        """Of the weights that have a place but aren't all loaded: how many are."""
        self.fill: Callable[[int], None] | None = None
        """Called where loads stand still until then, as an input isn't stored yet: others may be loaded before it."""
        self._after: list[int] = []  # of each store: the number of compute instructions before it
        self._uop_limit = min(config.uop_depth, CHISEL_UOP_DEPTH)
        self._uop_load: Draft | None = None
        self._uop_table: dict[tuple[Uop, ...], int] = {}
        self._uop_count = 0

    # ------------------------------------------------------------------------------------------------- instructions

    def load(self, memory: Memory, sram: int, dram: int, rows: int, columns: int, stride: int) -> None:
        """`rows` of `columns` tiles, `stride` tiles apart in memory, to `sram`. INP tiles may be what a store wrote.

        Where one instruction can't bring all of it, or has no such stride, there are several.
        """
        if rows > 1 and (stride >= SIZES or rows * columns > most_loaded(memory, self.config)):
            half = rows // 2
            self.load(memory, sram, dram, half, columns, stride)
            self.load(memory, sram + half * columns, dram + half * stride, rows - half, columns, stride)
            return
        if columns > most_loaded(memory, self.config):
            half = columns // 2
            self.load(memory, sram, dram, 1, half, half)
            self.load(memory, sram + half, dram + half, 1, columns - half, columns - half)
            return
        stride = stride if rows > 1 else columns
        target = slice(sram, sram + rows * columns)
        compute, store = int(self._used[memory][target].max()), NEVER
        if memory == Memory.INP:
            starts = _starts(dram, rows, stride)
            store = max(int(self._memory[start : start + columns].max(initial=NEVER)) for start in starts)
            if store != NEVER:
                compute = max(compute, self._knows(store))
            ready = self._ready({COMPUTE: compute, STORE: store})
            if self.fill is not None and ready > self._free[LOAD]:
                self.fill(ready)
        instruction = Load(
            memory=memory,
            sram_base=sram,
            dram_base=dram,
            y_size=_size(rows),
            x_size=_size(columns),
            x_stride=_size(stride),
        )
        self._loaded[memory][target] = self._emit(LOAD, instruction, {COMPUTE: compute})

    def loadable(self, sram: int, count: int, until: int) -> int:
        """How many of `count` weight tiles from `sram` on a LOAD would bring until then, if it came next."""
        used = int(self._used[Memory.WGT][sram : sram + count].max())
        begins = max(self._free[LOAD], self._ready({COMPUTE: used}))
        return max(0, min(count, (until - begins - LIKELY_LATENCY) * LIKELY_BUS // self.config.wgt_bytes))

    def gemm(self, outer: Loop, inner: Loop, uops: Sequence[Uop]) -> None:
        """INP · WGT added to ACC; `outer` and `inner` are loops around the micro-ops."""
        acc, inp, wgt = (_span(part, outer, inner, uops) for part in range(3))
        loaded = max(int(self._loaded[Memory.INP][inp].max()), int(self._loaded[Memory.WGT][wgt].max()))
        index = self._gemm(False, outer, inner, uops, acc, loaded)
        self._used[Memory.INP][inp] = index
        self._used[Memory.WGT][wgt] = index
        self.inp.touch(inp)
        self.wgt.touch(wgt)
        self._low[acc], self._high[acc] = LEAST, MOST
        self._equal[acc] = NEVER

    def reset(self, start: int, count: int) -> None:
        """ACC tiles become 0."""
        span = slice(start, start + count)
        self._gemm(True, Loop(1), Loop(count, 1), [Uop(start)], span, NEVER)
        self._equal[span] = NEVER
        self._low[span] = self._high[span] = 0

    def alu(self, operation: Operation, start: int, count: int, imm: int) -> None:
        """`operation` with a constant on `count` ACC tiles from `start` on."""
        if not -(2**15) <= imm < 2**15:
            raise Infeasible(f"{imm} is no constant of 16 bits.")
        span = slice(start, start + count)
        begin = self._place_uops((Uop(start, start),))  # some cores read ACC[src] where others read ACC[dst]
        instruction = Alu(
            operation=operation,
            uop_bgn=begin,
            uop_end=begin + 1,
            iter_in=count,
            dst_factor_in=1,
            src_factor_in=1,
            use_imm=True,
            imm=imm,
        )
        self._computed[span] = self._emit(COMPUTE, instruction, {STORE: self._last_store(span)})
        self._equal[span] = NEVER
        if operation == Operation.MAX:
            self._low[span], self._high[span] = (np.maximum(part[span], imm) for part in (self._low, self._high))
        elif operation == Operation.MIN:
            self._low[span], self._high[span] = (np.minimum(part[span], imm) for part in (self._low, self._high))
        elif operation == Operation.SHR and imm >= 0:
            self._low[span], self._high[span] = (part[span] >> imm for part in (self._low, self._high))
        else:
            self._low[span], self._high[span] = LEAST, MOST

    def combine(self, operation: Operation, outer: Loop, inner: Loop, uops: Sequence[Uop]) -> None:
        """`operation` of two ACC tiles, MAX or ADD; `outer` and `inner` are loops around the micro-ops."""
        _check_loops(outer, inner)
        dst, src = (_span(part, outer, inner, uops) for part in range(2))
        begin = self._place_uops(tuple(uops))
        instruction = Alu(
            operation=operation,
            uop_bgn=begin,
            uop_end=begin + len(uops),
            iter_out=outer.times,
            iter_in=inner.times,
            dst_factor_out=outer.dst,
            dst_factor_in=inner.dst,
            src_factor_out=outer.src,
            src_factor_in=inner.src,
        )
        self._computed[dst] = self._emit(COMPUTE, instruction, {STORE: self._last_store(dst)})
        self.acc.touch(src)
        self._equal[dst] = NEVER
        if operation == Operation.MAX:
            self._high[dst] = np.maximum(self._high[dst], self._high[src].max())
        else:
            self._low[dst], self._high[dst] = LEAST, MOST

    def known(self, start: int, count: int, low: int, high: int) -> None:
        """What the caller knows of these ACC tiles: their values lie between `low` and `high`."""
        span = slice(start, start + count)
        self._low[span], self._high[span] = low, high

    def constant(self, start: int, count: int, value: int) -> None:
        """ACC tiles become `value`, by one instruction where all that they can hold is on one side of it."""
        span = slice(start, start + count)
        if self._high[span].max() <= value < 2**15:
            self.alu(Operation.MAX, start, count, value)
        elif self._low[span].min() >= value >= -(2**15):
            self.alu(Operation.MIN, start, count, value)
        else:
            self.reset(start, count)
            if value:
                self.alu(Operation.ADD, start, count, value)
        self._low[span] = self._high[span] = value

    def store(self, sram: int, dram: int, rows: int, columns: int, stride: int) -> None:
        """OUT tiles from `sram` on to `rows` of `columns` tiles in memory, `stride` tiles apart.

        Where an instruction has no such stride, there is one for each row.
        """
        if rows > 1 and stride >= SIZES:
            for row in range(rows):
                self.store(sram + row * columns, dram + row * stride, 1, columns, columns)
            return
        stride = stride if rows > 1 else columns
        source = slice(sram, sram + rows * columns)
        instruction = Store(
            sram_base=sram, dram_base=dram, y_size=_size(rows), x_size=_size(columns), x_stride=_size(stride)
        )
        index = self._emit(STORE, instruction, {COMPUTE: int(self._computed[source].max())})
        self._stored[source] = index
        self.acc.touch(source)
        for start in _starts(dram, rows, stride):
            self._memory[start : start + columns] = index

    def stored_by(self, dram: int, rows: int, columns: int, stride: int) -> int:
        """When these tiles of memory have likely been stored."""
        tiles = (self._memory[start : start + columns] for start in _starts(dram, rows, stride))
        return self._ready({STORE: max(int(part.max(initial=NEVER)) for part in tiles)})

    @property
    def computed_by(self) -> int:
        """When what the compute queue has so far has likely ended."""
        return self._free[COMPUTE]

    def equal(self, sram: int, dram: int, rows: int, columns: int, stride: int) -> None:
        """What the caller knows of ACC tiles: from `sram` on they are what was stored to these tiles of memory."""
        self._equal[sram : sram + rows * columns] = _tiles_of(dram, rows, columns, stride)

    def holding(self, dram: int, rows: int, columns: int, stride: int) -> int | None:
        """Where ACC holds what these tiles of memory do, one behind the other, if it does."""
        wanted = _tiles_of(dram, rows, columns, stride)
        for start in np.flatnonzero(self._equal == wanted[0]):
            if np.array_equal(self._equal[start : start + len(wanted)], wanted):
                return int(start)
        return None

    def finish(self) -> None:
        """End the program once everything is done, with no token left."""
        loads, stores = len(self._queues[LOAD]) - 1, len(self._queues[STORE]) - 1
        self._emit(COMPUTE, isa.nop("compute"), {LOAD: loads, STORE: stores})
        self._emit(COMPUTE, Finish(), {})
        self._close_uops()

    def instructions(self) -> tuple[Instruction, ...]:
        return tuple(draft.finished() for draft in self.drafts)

    # ------------------------------------------------------------------------------------------------------- tokens

    def _gemm(self, reset: bool, outer: Loop, inner: Loop, uops: Sequence[Uop], acc: slice, loaded: int) -> int:
        begin = self._place_uops(tuple(uops))
        _check_loops(outer, inner)
        instruction = Gemm(
            reset=reset,
            uop_bgn=begin,
            uop_end=begin + len(uops),
            iter_out=outer.times,
            iter_in=inner.times,
            dst_factor_out=outer.dst,
            dst_factor_in=inner.dst,
            src_factor_out=outer.src,
            src_factor_in=inner.src,
            wgt_factor_out=outer.wgt,
            wgt_factor_in=inner.wgt,
        )
        self._computed[acc] = index = self._emit(COMPUTE, instruction, {LOAD: loaded, STORE: self._last_store(acc)})
        return index

    def _last_store(self, acc: slice) -> int:
        """The last store that reads what is about to be overwritten."""
        return int(self._stored[acc].max())

    def _emit(self, queue: int, instruction: Instruction, waits: dict[int, int]) -> int:
        draft = Draft(instruction)
        index = len(self._queues[queue])
        for producer, needed in waits.items():
            if needed > self._synced[producer, queue]:
                self._link(producer, needed, queue, draft)
                self._synced[producer, queue] = needed
                if producer == STORE:
                    self._known_stores.append((needed, index))
        self._queues[queue].append(draft)
        self.drafts.append(draft)
        self._free[queue] = max(self._free[queue], self._ready(waits)) + self._likely(instruction)
        self._when[queue].append(self._free[queue])
        if queue == COMPUTE:
            self._begins.append(self._clock)
            self._clock += _cycles(instruction)
        elif queue == STORE:
            self._ends.append(max(self._clock, self._ends[-1] if self._ends else 0) + _cycles(instruction))
            self._after.append(len(self._queues[COMPUTE]))
        return index

    def _ready(self, waits: dict[int, int]) -> int:
        """When the instructions that are waited for have likely ended."""
        return max((self._when[queue][number] for queue, number in waits.items() if number != NEVER), default=0)

    def _likely(self, instruction: Instruction) -> int:
        """What an instruction likely takes."""
        if isinstance(instruction, Load) and not isa.is_nop(instruction):
            size = isa.element_bytes(instruction.memory, self.config)
            return LIKELY_LATENCY + instruction.y_size * instruction.x_size * size // LIKELY_BUS
        return _cycles(instruction)

    def _link(self, producer: int, needed: int, queue: int, draft: Draft) -> None:
        push, pop = FLAGS[producer, queue]
        self._queues[producer][needed].tokens.add(push)
        draft.tokens.add(pop)

    def _knows(self, store: int) -> int:
        """A compute instruction that runs after `store` is done: the first that won't have to wait for it.

        No queue leads from stores to loads, so a load waits for a compute instruction that has waited for the store.
        """
        place = bisect.bisect_left(self._known_stores, (store, NEVER))
        known = self._known_stores[place][1] if place < len(self._known_stores) else len(self._begins)
        earliest = max(self._after[store], bisect.bisect_left(self._begins, self._ends[store]))
        if place:
            earliest = max(earliest, self._known_stores[place - 1][1] + 1)
        if earliest < known:
            if known < len(self._begins) and self._known_stores[place][0] == store:  # its one token is popped earlier
                self._queues[COMPUTE][known].tokens.discard(FLAGS[STORE, COMPUTE][1])
                del self._known_stores[place]
            self._link(STORE, store, COMPUTE, self._queues[COMPUTE][earliest])
            self._known_stores.insert(place, (store, earliest))
            self._synced[STORE, COMPUTE] = max(self._synced[STORE, COMPUTE], store)
            return earliest
        if place < len(self._known_stores):
            return known
        return self._emit(COMPUTE, isa.nop("compute"), {STORE: store})

    # ------------------------------------------------------------------------------------------------------ micro-ops

    def _place_uops(self, uops: tuple[Uop, ...]) -> int:
        """Where these micro-ops are on chip. What doesn't fit any more is in the next load of micro-ops."""
        if uops in self._uop_table:
            return self._uop_table[uops]
        if len(uops) > self._uop_limit:
            raise Infeasible(f"{len(uops)} micro-ops don't fit a buffer of {self._uop_limit}.")
        if self._uop_load is None or self._uop_count + len(uops) > self._uop_limit:
            self._close_uops()
            self._emit(COMPUTE, Load(memory=Memory.UOP, dram_base=len(self.uops), y_size=1), {})
            self._uop_load = self.drafts[-1]
        begin = self._uop_count
        self._uop_table[uops] = begin
        self._uop_count += len(uops)
        self.uops += uops
        return begin

    def _close_uops(self) -> None:
        if self._uop_load is not None:
            load = self._uop_load.instruction
            assert isinstance(load, Load)
            self._uop_load.instruction = replace(load, x_size=self._uop_count, x_stride=self._uop_count)
        self._uop_load, self._uop_table, self._uop_count = None, {}, 0


def _cycles(instruction: Instruction) -> int:
    """Roughly what an instruction takes: enough to see which of two ends first. `timing` has the truth."""
    if isinstance(instruction, Gemm):
        return instruction.steps + 7
    if isinstance(instruction, Alu):
        return instruction.steps * (1 if instruction.use_imm else 2) + 7
    if isinstance(instruction, Store):
        return 3 * instruction.y_size * instruction.x_size + 50
    return 2


def _nobody(count: int) -> np.ndarray:
    return np.full(count, NEVER, np.int64)


def _starts(dram: int, rows: int, stride: int) -> range:
    return range(dram, dram + rows * stride, stride) if stride and rows > 1 else range(dram, dram + 1)


def _tiles_of(dram: int, rows: int, columns: int, stride: int) -> np.ndarray:
    return (dram + np.arange(rows)[:, None] * stride + np.arange(columns)).ravel()


def _size(value: int) -> int:
    if not 0 <= value < SIZES:
        raise Infeasible(f"A transfer of {value} tiles is beyond an instruction's fields.")
    return value


def _check_loops(*loops: Loop) -> None:
    if any(loop.times >= 1 << 14 for loop in loops):
        raise Infeasible("A loop is beyond an instruction's fields.")


def _span(part: int, outer: Loop, inner: Loop, uops: Sequence[Uop]) -> slice:
    """The tiles from the first to the last that a loop nest touches."""
    begins = [uop[part] for uop in uops]
    reach = (outer.times - 1) * outer[part + 1] + (inner.times - 1) * inner[part + 1]
    return slice(min(begins), max(begins) + reach + 1)
