"""Every program is checked before it leaves: what it may not do on a VTA, found without running it.

The tokens of a queue are taken in the order in which they are given, and modules execute in order, so which instruction
has surely ended when another begins does not depend on any timing. It is kept as three counts, one a module. From them
follow that nothing deadlocks or overflows, and that modules touch the same place only in the program's order; so a
simulator may execute in program order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tvmflow.spec import UserError
from tvmflow.targets.vta import access, isa
from tvmflow.targets.vta.config import CHISEL_UOP_DEPTH, Config
from tvmflow.targets.vta.isa import MODULES, Alu, Finish, Gemm, Load, Memory, Store
from tvmflow.targets.vta.program import Executable, Step
from tvmflow.targets.vta.semantics import RefusedError, check_form

Core = Literal["hls", "chisel"]
CORES: tuple[Core, ...] = ("hls", "chisel")
"""The two implementations: upstream's HLS, which the PYNQ bitstreams are, and its Chisel. By default a program has to
be right on both."""

TOKENS = 255
"""Tokens that a queue holds: Chisel's counters have 8 bits and lose what is more; HLS holds 1024."""
QUEUED = 512
"""Instructions that wait for a module at most; beyond, fetch stops, and with it the other modules."""
HLS_DISTANCE = 20
"""Steps between a write to an ACC tile and its next use in the same instruction: HLS's pipeline isn't guarded. Its
depth is unknown; 16 to 20 is assumed."""
CHISEL_IMMEDIATE_DISTANCE = 2
"""The same for ALU with an immediate on Chisel. With ACC[src], the tile of the step before can't be the source."""

UNIT = 16
"""Bytes that accesses to the host's memory are told apart by."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong: in which instruction, and what, in a sentence."""

    instruction: int
    sentence: str

    def __str__(self) -> str:
        return f"Instruction {self.instruction}: {self.sentence}"


def check(executable: Executable, cores: Sequence[Core] = CORES) -> None:
    """Raise RefusedError, with the first finding and how many there are, unless there is none."""
    if found := findings(executable, cores):
        more = f" ({len(found) - 1} more findings.)" if len(found) > 1 else ""
        raise RefusedError(f"{found[0]}{more}")


def findings(executable: Executable, cores: Sequence[Core] = CORES) -> tuple[Finding, ...]:
    """All that is wrong with a program on any of `cores`, in the order of the instructions.

    Of steps each is a program by itself, in whose memory there is what the steps before have made.
    """
    found: list[Finding] = []
    made: np.ndarray | None = None
    parts = list(executable.parts())
    for number, (step, part) in enumerate(parts, 1):
        checker = _Checker(executable=part, cores=cores, before=made)
        made = checker.made
        if step.function:
            made[step.offset // checker.unit : -(-(step.offset + step.bytes) // checker.unit)] = True
        else:
            starts = checker.order()
            if not checker.forms() or not starts:  # then it isn't known what instructions touch, or when
                return _sorted(found, checker, step)
            for place, start in enumerate(starts):
                checker.touch(place, start)
            made |= checker.memory_written > 0
        if number == len(parts):
            checker.outputs()
        found = list(_sorted(found, checker, step))
    return tuple(found)


def _sorted(found: Sequence[Finding], checker: _Checker, step: Step) -> tuple[Finding, ...]:
    """What was found before, and what of this step, whose first instruction is another's 0."""
    own = sorted(checker.found, key=lambda finding: finding.instruction)
    return (*found, *(replace(finding, instruction=finding.instruction + step.first) for finding in own))


# What wrote an ACC tile last.
_NOTHING, _LOAD, _RESET, _GEMM, _ALU = range(5)


@dataclass(kw_only=True)
class _Checker:
    """`written` and `read` hold, per element, by how many instructions of a module it was last written or read: the
    number of the last one, counted from 1 within its module; 0 is never."""

    executable: Executable
    cores: Sequence[Core]
    before: np.ndarray | None = None
    """Units of memory that earlier steps have filled, if there are any."""
    found: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config: Config = self.executable.config
        self.instructions = self.executable.instructions
        self.module = [MODULES.index(isa.module_of(instruction)) for instruction in self.instructions]
        counts = [0, 0, 0]
        self.position = []  # of each instruction within its module, from 1
        for module in self.module:
            counts[module] += 1
            self.position.append(counts[module])
        self.counts = tuple(counts)
        config = self.config
        self.uops = np.zeros((config.uop_depth, 3), np.int64)
        self.uops_known = np.zeros(config.uop_depth, bool)
        depths = {Memory.INP: config.inp_depth, Memory.WGT: config.wgt_depth, Memory.OUT: config.acc_depth}
        self.written = {memory: np.zeros(depth, np.int32) for memory, depth in depths.items()}
        self.read = {memory: np.zeros(depth, np.int32) for memory, depth in depths.items()}
        self.last = np.zeros(config.acc_depth, np.uint8)
        self.unit = min(UNIT, self.config.inp_bytes)
        units = -(-self.executable.memory_bytes // self.unit)
        self.memory_written = np.zeros(units, np.int32)
        self.memory_read = [np.zeros(units, np.int32) for _ in MODULES]
        self.filled = np.zeros(units, bool)
        self.filled[: -(-self.executable.image.size // self.unit)] = True
        self.given = np.zeros(units, bool)
        for region in self.executable.inputs:
            self.given[region.offset // self.unit : -(-(region.offset + region.bytes(config)) // self.unit)] = True
        self.made = np.zeros(units, bool) if self.before is None else self.before
        self.filled |= self.given | self.made

    def say(self, number: int, sentence: str) -> None:
        self.found.append(Finding(instruction=number, sentence=sentence))

    # Tokens and queues

    def order(self) -> list[tuple[int, int, int]]:
        """For each instruction, of how many in each module it is sure that they have ended when it begins.

        An empty list if the program deadlocks.

        Runs the three queues without time, each as far as it gets; whether that comes to the end depends on no order.
        """
        waiting: list[deque[int]] = [deque(), deque(), deque()]
        tokens: dict[tuple[int, int], deque[tuple[int, int, int]]] = {
            pair: deque() for pair in ((0, 1), (1, 0), (1, 2), (2, 1))
        }
        pushed, popped_by = dict.fromkeys(tokens, 0), {pair: [0] * (self.counts[pair[1]] + 1) for pair in tokens}
        starts = [(0, 0, 0)] * len(self.instructions)
        pushes: list[tuple[tuple[int, int], int, int]] = []  # queue, how many so far, by which instruction
        ended: list[tuple[int, int, int]] = [(0, 0, 0)] * 3
        fetched = 0
        while True:
            before = fetched, *map(len, waiting)
            while fetched < len(self.instructions) and len(waiting[self.module[fetched]]) < QUEUED:
                waiting[self.module[fetched]].append(fetched)
                fetched += 1
            for module, queue in enumerate(waiting):
                while queue:
                    number = queue[0]
                    pops, gives = self._queues(number)
                    if not all(tokens[pair] for pair in pops):
                        break
                    queue.popleft()
                    known = [ended[module], *(tokens[pair].popleft() for pair in pops)]
                    start = tuple(max(counts) for counts in zip(*known, strict=True))
                    starts[number] = start[0], start[1], start[2]
                    done = list(start)
                    done[module] = self.position[number]
                    ended[module] = done[0], done[1], done[2]
                    for pair in popped_by:
                        if pair[1] == module:
                            popped = popped_by[pair]
                            popped[self.position[number]] = popped[self.position[number] - 1] + (pair in pops)
                    for pair in gives:
                        tokens[pair].append(ended[module])
                        pushed[pair] += 1
                        pushes.append((pair, pushed[pair], number))
            if (fetched, *map(len, waiting)) == before:
                break
        if fetched < len(self.instructions) or any(waiting):
            self._deadlock(waiting, tokens)
            return []
        for pair, left in tokens.items():
            if left:
                last = max(number for queue, _, number in pushes if queue == pair)
                self.say(last, f"{len(left)} of the tokens {_named(pair)} are never taken and would be left over.")
        told = set()
        for pair, count, number in pushes:
            outstanding = count - popped_by[pair][starts[number][pair[1]]]
            if outstanding > TOKENS and pair not in told:
                told.add(pair)
                self.say(
                    number, f"{outstanding} tokens {_named(pair)} can be outstanding here; a queue holds {TOKENS}."
                )
        self._finish(starts)
        return starts

    def _queues(self, number: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The token queues that an instruction takes from and gives to, as (from, to)."""
        instruction, module = self.instructions[number], self.module[number]
        pops, gives = [], []
        for side, neighbour in (("prev", module - 1), ("next", module + 1)):
            if 0 <= neighbour < len(MODULES):
                if getattr(instruction, f"pop_{side}"):
                    pops.append((neighbour, module))
                if getattr(instruction, f"push_{side}"):
                    gives.append((module, neighbour))
        return pops, gives

    def _deadlock(self, waiting: list[deque[int]], tokens: dict[tuple[int, int], deque]) -> None:
        for queue in waiting:
            if queue:
                lacking = [_named(pair) for pair in self._queues(queue[0])[0] if not tokens[pair]]
                full = [MODULES[module] for module, others in enumerate(waiting) if len(others) >= QUEUED]
                why = f" while {' and '.join(full)} has {QUEUED} waiting, so that no more is fetched" if full else ""
                self.say(queue[0], f"It waits forever for a token {' and '.join(lacking)}{why}.")

    def _finish(self, starts: list[tuple[int, int, int]]) -> None:
        first = next((number for number, module in enumerate(self.module) if module == 1), None)
        if first is not None and "hls" in self.cores and self._queues(first)[0]:
            # HLS shows the end of the run before until compute has all tokens of its first instruction.
            self.say(
                first, "The first instruction of compute waits for a token: HLS may seem to have finished already."
            )
        finishes = [number for number, it in enumerate(self.instructions) if isinstance(it, Finish)]
        if finishes != [len(self.instructions) - 1]:
            number = finishes[0] if finishes else max(len(self.instructions) - 1, 0)
            self.say(number, f"A program ends in its only FINISH; this one has {len(finishes)}.")
            return
        for module in (0, 2):
            if starts[-1][module] < self.counts[module]:
                lagging = self.counts[module] - starts[-1][module]
                last = len(self.instructions) - 1
                self.say(last, f"FINISH doesn't wait for the last {lagging} instructions of {MODULES[module]}.")

    # Instructions by themselves

    def forms(self) -> bool:
        """Fields, shapes, and tokens to modules that aren't there. Whether all are right."""
        before = len(self.found)
        for number, instruction in enumerate(self.instructions):
            try:
                isa.encode(instruction, self.config)
                check_form(instruction, self.config)
            except (UserError, RefusedError) as error:
                self.say(number, str(error))
            missing = {0: "prev", 2: "next"}.get(self.module[number])
            if missing and (getattr(instruction, f"pop_{missing}") or getattr(instruction, f"push_{missing}")):
                self.say(
                    number, f"The {MODULES[self.module[number]]} module has no {missing} neighbour for its tokens."
                )
            end = 0
            if isinstance(instruction, Gemm | Alu):
                end = instruction.uop_end
            elif isinstance(instruction, Load) and instruction.memory == Memory.UOP:
                end = instruction.sram_base + instruction.x_size
            if "chisel" in self.cores and end > CHISEL_UOP_DEPTH:
                self.say(number, f"Micro-op {end - 1}: the Chisel core's buffer holds {CHISEL_UOP_DEPTH}.")
        return len(self.found) == before

    # What they touch

    def touch(self, number: int, start: tuple[int, int, int]) -> None:
        """Follow one instruction: what it reads has to be there, and no other module may still need what it writes."""
        instruction = self.instructions[number]
        if isinstance(instruction, Load | Store):
            if not isa.is_nop(instruction) and self._memory(number, instruction, start):
                self._load(number, instruction, start) if isinstance(instruction, Load) else self._store(number, start)
        elif isinstance(instruction, Gemm | Alu):
            self._operate(number, instruction, start)

    def _memory(self, number: int, instruction: Load | Store, start: tuple[int, int, int]) -> bool:
        memory = instruction.memory if isinstance(instruction, Load) else Memory.OUT
        element = isa.element_bytes(memory, self.config)
        last = instruction.dram_base + (instruction.y_size - 1) * instruction.x_stride + instruction.x_size
        if last * element > self.executable.memory_bytes:
            self.say(number, f"It reaches byte {last * element} of a memory of {self.executable.memory_bytes}.")
            return False
        units = access.memory_units(instruction, element, self.unit)
        module = self.module[number]
        if isinstance(instruction, Store):
            for reader in (0, 1):
                if self.memory_read[reader][units].max() > start[reader]:
                    self.say(number, f"It may overwrite memory that an earlier LOAD of {MODULES[reader]} still reads.")
            self.memory_written[units] = self.position[number]
            self.filled[units] = True
            return True
        if self.memory_written[units].max() > start[2]:
            self.say(number, "It may read memory before an earlier STORE to it has ended.")
        if not self.filled[units].all():
            self.say(number, "It reads memory that neither the image nor an input nor a STORE has filled.")
        self.memory_read[module][units] = self.position[number]
        return True

    def _load(self, number: int, instruction: Load, start: tuple[int, int, int]) -> None:
        place = access.buffer_range(instruction)
        if instruction.memory == Memory.UOP:
            begin = instruction.dram_base * self.config.uop_bytes
            words = self.executable.image[begin : begin + instruction.x_size * self.config.uop_bytes]
            units = access.memory_units(instruction, self.config.uop_bytes, self.unit)
            if words.size < instruction.x_size * self.config.uop_bytes or self.memory_written[units].any():
                self.say(number, "It loads micro-ops that aren't in the image but made by the program itself.")
                return
            self.uops[place] = isa.decode_uops(words.view(np.uint32), self.config)
            self.uops_known[place] = True
        elif instruction.memory == Memory.ACC:
            self.last[place] = _LOAD
        else:
            name = instruction.memory.name
            if self.read[instruction.memory][place].max() > start[1]:
                self.say(number, f"It may overwrite {name} tiles that an earlier GEMM still reads.")
            self.written[instruction.memory][place] = self.position[number]

    def _store(self, number: int, start: tuple[int, int, int]) -> None:
        instruction = self.instructions[number]
        assert isinstance(instruction, Store)
        place = access.buffer_range(instruction)
        if self.written[Memory.OUT][place].max() > start[1]:
            self.say(number, "It may read OUT tiles before an earlier GEMM or ALU instruction has written them.")
        if (self.last[place] != _ALU).any():
            tile = instruction.sram_base + int(np.flatnonzero(self.last[place] != _ALU)[0])
            self.say(
                number, f"OUT[{tile}] was last written by no ALU instruction: what it holds differs between cores."
            )
        self.read[Memory.OUT][place] = self.position[number]

    def _operate(self, number: int, instruction: Gemm | Alu, start: tuple[int, int, int]) -> None:
        named = slice(instruction.uop_bgn, instruction.uop_end)
        if not self.uops_known[named].all():
            missing = instruction.uop_bgn + int(np.flatnonzero(~self.uops_known[named])[0])
            self.say(number, f"Micro-op {missing} was never loaded.")
            return
        dst, src, wgt = access.steps(instruction, self.uops[named])
        gemm = isinstance(instruction, Gemm)
        config = self.config
        source = ("INP", config.inp_depth) if gemm else ("ACC", config.acc_depth)
        for indices, (name, depth) in (
            (dst, ("ACC", config.acc_depth)),
            (src, source),
            (wgt, ("WGT", config.wgt_depth)),
        ):
            if indices.max() >= depth:
                self.say(number, f"It uses {name}[{indices.max()}], beyond the buffer's {depth} tiles.")
                return
        if self.read[Memory.OUT][dst].max() > start[2]:
            self.say(number, "It may overwrite OUT tiles that an earlier STORE still reads.")
        self.written[Memory.OUT][dst] = self.position[number]
        if isinstance(instruction, Gemm):
            if not instruction.reset:  # with reset, what is read has no effect
                for memory, indices in ((Memory.INP, src), (Memory.WGT, wgt)):
                    self._inputs(number, memory, indices, start)
                self._known(number, dst)
                if "hls" in self.cores and (distance := _reuse(dst, dst, HLS_DISTANCE)):
                    self.say(number, _too_near(distance, HLS_DISTANCE, "HLS"))
            self.last[dst] = _RESET if instruction.reset else _GEMM
            return
        if instruction.use_imm and (src != dst).any():
            self.say(number, "It has an immediate and src ≠ dst: the Chisel core reads ACC[src], others ACC[dst].")
        self._known(number, dst, src)
        if "hls" in self.cores:
            near = [distance for uses in (dst, src) if (distance := _reuse(dst, uses, HLS_DISTANCE))]
            if near:
                self.say(number, _too_near(min(near), HLS_DISTANCE, "HLS"))
        if "chisel" in self.cores:
            uses, least = (dst, CHISEL_IMMEDIATE_DISTANCE) if instruction.use_imm else (src, 2)
            if distance := _reuse(dst, uses, least):
                self.say(number, _too_near(distance, least, "Chisel"))
        self.last[dst] = _ALU

    def _inputs(self, number: int, memory: Memory, indices: np.ndarray, start: tuple[int, int, int]) -> None:
        written = self.written[memory][indices]
        if written.max() > start[0]:
            self.say(number, f"It may read {memory.name} tiles before an earlier LOAD has filled them.")
        if not written.all():
            self.say(number, f"It reads {memory.name}[{indices[np.flatnonzero(written == 0)[0]]}], never loaded.")
        self.read[memory][indices] = self.position[number]

    def _known(self, number: int, *used: np.ndarray) -> None:
        for indices in used:
            if (self.last[indices] == _NOTHING).any():
                tile = indices[np.flatnonzero(self.last[indices] == _NOTHING)[0]]
                self.say(number, f"It reads ACC[{tile}], which holds nothing yet.")
                return

    def outputs(self) -> None:
        """The program has to make its outputs, but for what of them is an input as it is."""
        for region in self.executable.outputs:
            place = slice(region.offset // self.unit, -(-(region.offset + region.bytes(self.config)) // self.unit))
            if not (self.given[place] | self.made[place] | (self.memory_written[place] > 0)).all():
                self.say(max(len(self.instructions) - 1, 0), f"The program ends, and {region.name} isn't stored whole.")


def _reuse(written: np.ndarray, used: np.ndarray, least: int) -> int:
    """The smallest distance below `least` at which a step uses what an earlier one wrote; 0 if there is none."""
    for distance in range(1, min(least, len(written))):
        if (written[:-distance] == used[distance:]).any():
            return distance
    return 0


def _too_near(distance: int, least: int, core: str) -> str:
    return f"It uses an ACC tile again at a distance of {distance} in its steps; the {core} core needs {least}."


def _named(pair: tuple[int, int]) -> str:
    return f"from {MODULES[pair[0]]} to {MODULES[pair[1]]}"
