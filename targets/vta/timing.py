"""How many cycles a program takes: an event model of VTA's fetch, three queues, tokens, read port and write port.

The constants are those of the Chisel core as verilated RTL shows them; docs/vta.md has them as a table, with how far
the model was from that RTL. The HLS core, which upstream's bitstreams are, is modelled after its source, not measured.
What it says of a board is simulated: the memory's latency there is an assumption, which is why it is a parameter.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tvmflow.spec import TvmflowError, UserError
from tvmflow.targets.vta import isa
from tvmflow.targets.vta.check import CORES, QUEUED, Core
from tvmflow.targets.vta.config import BURST_BEATS, INSTRUCTION_BYTES, Config
from tvmflow.targets.vta.isa import MODULES, Alu, Finish, Gemm, Instruction, Load, Memory, Store
from tvmflow.targets.vta.program import Executable, Mark

LATENCIES = (20, 60)
"""The range of read latencies, in cycles at 100 MHz, that Zynq boards are assumed to lie in; 30 is the default."""

KINDS = ("gemm", "alu", "load inp", "load wgt", "load acc", "load uop", "store", "nop")
"""What an instruction is, for counters and pictures."""

OUTSTANDING = 16
"""Bursts that wait for data at most."""
BURST_ALIGNMENT = 4096
"""Bytes that no AXI burst crosses a multiple of."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The core, its clock, and the memory behind it.

    `read_latency` are the cycles from a read's address to its first data, `write_latency` those from a write's last
    data to its answer. `burst_beats` is how many words of the bus the core asks for at once. Raises UserError for
    impossible values.
    """

    core: Core = "chisel"
    clock_mhz: float = 100
    bus_bytes: int = 8
    read_latency: int = 30
    write_latency: int = 15
    burst_beats: int = 256

    def __post_init__(self) -> None:
        if self.core not in CORES:
            raise UserError(f"{self.core!r} is no VTA core; there are {' and '.join(CORES)}.")
        if self.bus_bytes not in (8, 16, 32, 64) or self.clock_mhz <= 0:
            raise UserError("A VTA has a bus of 8, 16, 32 or 64 bytes and a positive clock.")
        if not (0 < self.read_latency <= 10_000 and 0 < self.write_latency <= 10_000):
            raise UserError("A memory latency is from 1 to 10000 cycles.")
        if self.burst_beats not in BURST_BEATS:
            raise UserError(f"Bursts have {BURST_BEATS[0]} or {BURST_BEATS[1]} beats at most, not {self.burst_beats}.")

    @property
    def fetch_chunk(self) -> int:
        """Instructions that are fetched at once; the next ones are only when these have been dispatched.

        Fetch's queue holds what one burst brings, and on buses wider than an instruction no more (upstream's
        FetchVME64 and FetchWideVME).
        """
        return self.burst_beats * min(self.bus_bytes, INSTRUCTION_BYTES) // INSTRUCTION_BYTES

    def with_latency(self, cycles: int) -> Hardware:
        """The same with another read latency, and the write latency half of it, which is an assumption."""
        return replace(self, read_latency=cycles, write_latency=max(cycles // 2, 1))


@dataclass(frozen=True, kw_only=True)
class LayerTiming:
    """A layer's share: `cycles` are from the end of all before it to its own end, so that layers add up to the whole.

    `begin` and `end` are when its first instruction began and its last ended, which overlaps with its neighbours;
    its instructions are `first` … `last` − 1.
    `busy` has the cycles of `KINDS`. `gemm_steps` are the GEMM core's (without resets), each of `macs_per_cycle`;
    `alu_cycles`, `read_cycles` and `write_cycles` are what the ALU, the read port and the write port need at least.
    """

    name: str
    first: int
    last: int
    cycles: int
    begin: int
    end: int
    busy: Mapping[str, int]
    gemm_steps: int
    alu_cycles: int
    read_cycles: int
    write_cycles: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What became of a program. `begin`, `end`, `module` and `kind` (of `KINDS`) have a number an instruction.

    `waits` has for each module the cycles it stood still, by what for: "instructions" to be fetched, a neighbour's
    token, or that it is "done". `contended` are the cycles that reads waited behind others' reads.
    """

    hardware: Hardware
    cycles: int
    begin: np.ndarray
    end: np.ndarray
    module: np.ndarray
    kind: np.ndarray
    busy: Mapping[str, int]
    waits: Mapping[str, Mapping[str, int]]
    contended: int
    read_bytes: int
    written_bytes: int
    instruction_bytes: int
    layers: tuple[LayerTiming, ...]

    @property
    def latency_ms(self) -> float:
        """At the hardware's clock; basis "simulated"."""
        return self.cycles / self.hardware.clock_mhz / 1000


def simulate(executable: Executable, hardware: Hardware) -> Timing:
    """Time a checked program. Raises TvmflowError for one that deadlocks.

    Steps of the board's processor take no cycles here: nothing is known of them.
    """
    parts = [time_instructions(part.instructions, part.config, hardware, part.layers) for _, part in executable.parts()]
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[Timing]) -> Timing:
    """What runs one after the other, without a pause between."""
    begins = np.cumsum([0, *(part.cycles for part in parts)]).tolist()
    firsts = np.cumsum([0, *(len(part.begin) for part in parts)]).tolist()
    layers = tuple(
        replace(
            layer, first=layer.first + first, last=layer.last + first, begin=layer.begin + begin, end=layer.end + begin
        )
        for part, begin, first in zip(parts, begins, firsts, strict=False)
        for layer in part.layers
    )
    return Timing(
        hardware=parts[0].hardware,
        cycles=begins[-1],
        begin=np.concatenate([part.begin + begin for part, begin in zip(parts, begins, strict=False)]),
        end=np.concatenate([part.end + begin for part, begin in zip(parts, begins, strict=False)]),
        module=np.concatenate([part.module for part in parts]),
        kind=np.concatenate([part.kind for part in parts]),
        busy=_added([part.busy for part in parts]),
        waits={module: _added([part.waits[module] for part in parts]) for module in MODULES},
        contended=sum(part.contended for part in parts),
        read_bytes=sum(part.read_bytes for part in parts),
        written_bytes=sum(part.written_bytes for part in parts),
        instruction_bytes=sum(part.instruction_bytes for part in parts),
        layers=layers,
    )


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def time_instructions(
    instructions: Sequence[Instruction], config: Config, hardware: Hardware, layers: Sequence[Mark] = ()
) -> Timing:
    """The same for bare instructions."""
    run = _Run(instructions=instructions, hardware=hardware, costs=[_cost(it, config, hardware) for it in instructions])
    run.finish()
    return _timing(run, layers)


def band(executable: Executable, hardware: Hardware) -> tuple[int, int]:
    """Cycles at both ends of `LATENCIES`."""
    low, high = (simulate(executable, hardware.with_latency(latency)).cycles for latency in LATENCIES)
    return low, high


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What an instruction needs: `cycles` once it has begun, or, for a load, the `bursts` (beats) it has to read.

    A load ends `tail` cycles after its last beat, and not before `least` cycles; `priority` is that of its reads.
    """

    module: int
    kind: int
    cycles: int = 0
    bursts: tuple[int, ...] = ()
    tail: int = 0
    least: int = 0
    priority: int = 0
    gemm_steps: int = 0
    alu_cycles: int = 0
    write_cycles: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


def _cost(instruction: Instruction, config: Config, hardware: Hardware) -> _Cost:
    module = MODULES.index(isa.module_of(instruction))
    if isinstance(instruction, Finish) or isa.is_nop(instruction):
        return _Cost(module=module, kind=KINDS.index("nop"), cycles=2)
    if isinstance(instruction, Gemm):
        steps = instruction.steps
        return _Cost(module=module, kind=0, cycles=steps + 7, gemm_steps=0 if instruction.reset else steps)
    if isinstance(instruction, Alu):
        twice = hardware.core == "hls" or not instruction.use_imm
        cycles = instruction.steps * (2 if twice else 1)
        return _Cost(module=module, kind=1, cycles=cycles + 7, alu_cycles=cycles)
    bus = hardware.bus_bytes
    if isinstance(instruction, Store):
        bursts = _bursts(instruction, config.out_bytes, hardware)
        tiles = instruction.y_size * instruction.x_size
        cycles = (-(-config.out_bytes // bus) + 1) * tiles + len(bursts) * (hardware.write_latency + 1) + 1
        return _Cost(
            module=module,
            kind=KINDS.index("store"),
            cycles=cycles,
            write_cycles=cycles,
            written_bytes=tiles * config.out_bytes,
        )
    assert isinstance(instruction, Load)
    element = isa.element_bytes(instruction.memory, config)
    bursts = _bursts(instruction, element, hardware)
    count = instruction.y_size * instruction.x_size
    pads = instruction.elements - count
    return _Cost(
        module=module,
        kind=KINDS.index(f"load {instruction.memory.name.lower()}"),
        bursts=bursts,
        # HLS writes its pads before and after each row, Chisel while data is on its way.
        tail=1 if instruction.memory == Memory.UOP else 2 + (pads if hardware.core == "hls" else 0),
        least=0 if instruction.memory == Memory.UOP else sum(bursts) + pads + 3,
        priority={Memory.UOP: 1, Memory.INP: 2, Memory.WGT: 3, Memory.ACC: 4}[instruction.memory],
        read_bytes=count * element,
    )


def _bursts(instruction: Load | Store, element: int, hardware: Hardware) -> tuple[int, ...]:
    """Beats of each burst: a row's, split where a burst has to end. The image's base is a multiple of 4 KiB here."""
    longest = min(BURST_ALIGNMENT, hardware.burst_beats * hardware.bus_bytes)
    bursts = []
    for row in range(instruction.y_size):
        begin = (instruction.dram_base + row * instruction.x_stride) * element
        end = begin + instruction.x_size * element
        while begin < end:
            stop = min(end, (begin // longest + 1) * longest)
            bursts.append(-(-(stop - begin) // hardware.bus_bytes))
            begin = stop
    return tuple(bursts)


FETCH = 3
"""The reader that fetches instructions, beside the three modules."""


@dataclass(kw_only=True)
class _Reader:
    """Bursts that one of them still has to ask for: `asks` is when it can ask for the next."""

    bursts: deque[int]
    asks: int
    priority: int


@dataclass(kw_only=True)
class _Run:
    """The event loop. Always the earliest of what can happen next happens: an instruction is dispatched or begins, or
    the read port takes a burst."""

    instructions: Sequence[Instruction]
    hardware: Hardware
    costs: Sequence[_Cost]
    waits: tuple[Counter[str], ...] = field(default_factory=lambda: (Counter(), Counter(), Counter()))
    contended: int = 0

    def __post_init__(self) -> None:
        count = len(self.instructions)
        self.begin, self.end = [0] * count, [0] * count
        self.queues: list[deque[tuple[int, int]]] = [deque(), deque(), deque()]  # (instruction, when it can begin)
        self.room = [0, 0, 0]  # since when the queue isn't full
        self.free: list[int | None] = [0, 0, 0]  # when the module's last instruction ends; None: not known yet
        self.current = [-1, -1, -1]
        self.tokens: dict[tuple[int, int], deque[int]] = {p: deque() for p in ((0, 1), (1, 0), (1, 2), (2, 1))}
        self.readers: dict[int, _Reader] = {}
        self.granted = self.port_free = 0
        self.owner = FETCH  # whose data came last
        self.outstanding: deque[int] = deque()  # when the bursts that were taken have arrived
        self.fetched = self.chunk_end = 0
        self.dispatch_at = 0
        self._ask_for_chunk(2)

    def finish(self) -> None:
        """Run to the end."""
        while True:
            possible = (self._next_dispatch(), *map(self._next_begin, range(3)), self._next_grant())
            events = [event for event in possible if event]
            if not events:
                break
            time, order, cause = min(events)
            if order == 0:
                self._dispatch(time)
            elif order <= 3:
                self._start(order - 1, time, cause)
            else:
                self._grant(time)
        if self.fetched < len(self.instructions) or any(self.queues):
            raise TvmflowError("The program deadlocks; it should have been checked first.")

    # Fetch

    def _ask_for_chunk(self, time: int) -> None:
        self.chunk_end = min(self.fetched + self.hardware.fetch_chunk, len(self.instructions))
        if count := self.chunk_end - self.fetched:
            beats = -(-count * INSTRUCTION_BYTES // self.hardware.bus_bytes)
            self.readers[FETCH] = _Reader(bursts=deque([beats]), asks=time, priority=0)

    def _next_dispatch(self) -> tuple[int, int, str] | None:
        if self.fetched == self.chunk_end or FETCH in self.readers:
            return None
        module = self.costs[self.fetched].module
        if len(self.queues[module]) >= QUEUED:
            return None
        return max(self.dispatch_at, self.room[module]), 0, ""

    def _dispatch(self, time: int) -> None:
        self.queues[self.costs[self.fetched].module].append((self.fetched, time + 1))
        self.fetched += 1
        self.dispatch_at = time + 1
        if self.fetched == self.chunk_end:
            self._ask_for_chunk(time + 4)

    # Modules

    def _next_begin(self, module: int) -> tuple[int, int, str] | None:
        free = self.free[module]
        if free is None or not self.queues[module]:
            return None
        number, time = self.queues[module][0]
        time, cause = max(free, time), ""
        for pair in self._pops(number, module):
            if not self.tokens[pair]:
                return None
            if self.tokens[pair][0] > time:
                time, cause = self.tokens[pair][0], MODULES[pair[0]]
        return time, module + 1, cause

    def _pops(self, number: int, module: int) -> list[tuple[int, int]]:
        instruction = self.instructions[number]
        before = [(module - 1, module)] if instruction.pop_prev else []
        return [*before, (module + 1, module)] if instruction.pop_next else before

    def _start(self, module: int, time: int, cause: str) -> None:
        if len(self.queues[module]) == QUEUED:
            self.room[module] = time
        number, dispatched = self.queues[module].popleft()
        free = self.free[module]
        assert free is not None
        self.waits[module]["instructions"] += max(dispatched - free, 0)
        if cause:
            self.waits[module][cause] += time - max(dispatched, free)
        for pair in self._pops(number, module):
            self.tokens[pair].popleft()
        self.begin[number], self.current[module], self.free[module] = time, number, None
        cost = self.costs[number]
        if cost.bursts:
            self.readers[module] = _Reader(bursts=deque(cost.bursts), asks=time + 3, priority=cost.priority)
        else:
            self._complete(module, time + cost.cycles)

    def _complete(self, module: int, time: int) -> None:
        number = self.current[module]
        self.end[number] = self.free[module] = time
        instruction = self.instructions[number]
        if instruction.push_prev:
            self.tokens[module, module - 1].append(time)
        if instruction.push_next:
            self.tokens[module, module + 1].append(time)

    # The read port

    def _next_grant(self) -> tuple[int, int, str] | None:
        if not self.readers:
            return None
        time = max(self.granted, min(reader.asks for reader in self.readers.values()))
        if len(self.outstanding) == OUTSTANDING:
            time = max(time, self.outstanding[0])
        return time, 4, ""

    def _grant(self, time: int) -> None:
        asking = [(reader.priority, name) for name, reader in self.readers.items() if reader.asks <= time]
        _, name = min(asking)
        reader = self.readers[name]
        while self.outstanding and self.outstanding[0] <= time:
            self.outstanding.popleft()
        arrives = max(time + self.hardware.read_latency, self.port_free)
        self.port_free = arrives + reader.bursts.popleft()
        self.outstanding.append(self.port_free)
        self.granted = time + 1
        if self.owner != name:
            self.contended += arrives - reader.asks - self.hardware.read_latency
            self.owner = name
        reader.asks = self.port_free if self.hardware.core == "hls" and name != FETCH else time + 1
        if reader.bursts:
            return
        del self.readers[name]
        if name == FETCH:
            self.dispatch_at = self.port_free
        else:
            cost = self.costs[self.current[name]]
            self._complete(name, max(self.port_free + cost.tail, self.begin[self.current[name]] + cost.least))


def _timing(run: _Run, marks: Sequence[Mark]) -> Timing:
    begin, end = np.array(run.begin, np.int64), np.array(run.end, np.int64)
    module = np.array([cost.module for cost in run.costs], np.int8)
    kind = np.array([cost.kind for cost in run.costs], np.int8)
    cycles = int(end.max(initial=0))
    for number, waits in enumerate(run.waits):
        waits["done"] += cycles - (run.free[number] or 0)
    layers, before = [], 0
    for index, mark in enumerate(marks):
        first = mark.first if index else 0
        last = marks[index + 1].first if index + 1 < len(marks) else len(run.costs)
        costs = run.costs[first:last]
        until = max(before, int(end[first:last].max(initial=0)))
        layers.append(
            LayerTiming(
                name=mark.name,
                first=mark.first,
                last=mark.last,
                cycles=until - before,
                begin=int(begin[mark.first : mark.last].min(initial=cycles)),
                end=int(end[mark.first : mark.last].max(initial=0)),
                busy=_busy(kind[first:last], end[first:last] - begin[first:last]),
                gemm_steps=sum(cost.gemm_steps for cost in costs),
                alu_cycles=sum(cost.alu_cycles for cost in costs),
                read_cycles=sum(sum(cost.bursts) for cost in costs),
                write_cycles=sum(cost.write_cycles for cost in costs),
                read_bytes=sum(cost.read_bytes for cost in costs),
                written_bytes=sum(cost.written_bytes for cost in costs),
            )
        )
        before = until
    return Timing(
        hardware=run.hardware,
        cycles=cycles,
        begin=begin,
        end=end,
        module=module,
        kind=kind,
        busy=_busy(kind, end - begin),
        waits={MODULES[number]: {**waits} for number, waits in enumerate(run.waits)},
        contended=run.contended,
        read_bytes=sum(cost.read_bytes for cost in run.costs),
        written_bytes=sum(cost.written_bytes for cost in run.costs),
        instruction_bytes=len(run.costs) * INSTRUCTION_BYTES,
        layers=tuple(layers),
    )


def _busy(kind: np.ndarray, cycles: np.ndarray) -> dict[str, int]:
    sums = np.bincount(kind, weights=cycles, minlength=len(KINDS))
    return {name: int(total) for name, total in zip(KINDS, sums, strict=True)}
