"""An integer network of scheme "power-of-two" → a static VTA program: instructions, micro-ops, memory image, layout.

The host puts inputs' channels into tiles and takes the outputs out, and computes the layers that the accelerator has no
instructions for; then the program has steps, in which both take turns on one memory. There is no way on chip from the
accelerator's results back to its inputs, so every activation passes memory; its layers follow each other without a stop
all the same, since each load waits only for the stores that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tvmflow.integer.layers import RANGES, IntegerLayer
from tvmflow.integer.network import IntegerNetwork
from tvmflow.spec import UnsupportedOperatorError, UserError
from tvmflow.targets.vta import isa, node_tiles, nodes
from tvmflow.targets.vta.bounds import AnyWork
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.cpu import ALIGNMENT, CpuWork, Place, function_name, source_of
from tvmflow.targets.vta.emit import Infeasible, Stream
from tvmflow.targets.vta.isa import Instruction, Load, Memory, Store
from tvmflow.targets.vta.layout import TENSORS, Tensor, ones_tile
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.places import place_tensors, placed_inputs
from tvmflow.targets.vta.program import Executable, Mark, Region, Step
from tvmflow.targets.vta.tiles import Tiling, Weights, Work, emit, input_rows, parts


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A program, the layers that it computes in their order, their tilings, and where each activation is in memory."""

    executable: Executable
    works: tuple[AnyWork, ...]
    schedule: Mapping[str, Tiling]
    regions: Mapping[str, Region]
    uops: int


def compile_network(network: IntegerNetwork, config: Config, schedule: Mapping[str, Tiling] | None = None) -> Compiled:
    """Compile with the tilings of `schedule`, by layer, and `default_tiling` for the others.

    Raises UserError for networks that the accelerator can't run, and Infeasible for a tiling that doesn't fit.
    """
    works = prepare(network, config)
    tilings = {
        work.layer.name: (schedule or {}).get(work.layer.name) or default_tiling(work, config)
        for work in works
        if not isinstance(work, CpuWork)
    }
    return compile_works(works, config, tilings, ports_of(network, config))


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The tensors that a network takes and gives, in its order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def ports_of(network: IntegerNetwork, config: Config) -> Ports:
    """Where inputs and outputs lie."""
    tensors = place_tensors(network, config.block)
    return Ports(
        inputs=tuple(tensors[port.name] for port in network.inputs),
        outputs=tuple(tensors[port.source] for port in network.outputs),
    )


def prepare(network: IntegerNetwork, config: Config) -> tuple[AnyWork, ...]:
    """The layers, with a place in memory for every activation.

    Raises UnsupportedOperatorError for layers with weights that read what isn't signed, and UserError for networks of
    another scheme.
    """
    if network.scheme != "power-of-two":
        raise UserError(f"VTA only shifts: it takes the scheme power-of-two, and {network.name} has {network.scheme}.")
    if config.batch != 1:
        raise UserError(
            f"Networks are compiled for VTAs with LOG_BATCH 0; {config.bitstream} has a batch of {config.batch}."
        )
    tensors = place_tensors(network, config.block)
    ranges, dtypes = {port.name: RANGES["int8"] for port in network.inputs}, network.dtypes
    works: list[AnyWork] = []
    read_before: set[str] = set()
    for layer in network.layers:
        sources = tuple(tensors[name] for name in layer.inputs)
        read = tuple(ranges[name] for name in layer.inputs)
        ranges[layer.name] = layer.minimum, layer.maximum
        target = tensors[layer.name]
        again = {source.name: source.tiles for source in sources if source.name in read_before}
        kept = min(config.inp_depth, sum(again.values()))
        signed = all(high <= RANGES["int8"][1] for _, high in read)
        if isinstance(layer, IntegerLayer):
            if not signed:
                raise _unsigned(network.name, layer)
            ((lowest, highest),) = read
            work = Work(layer=layer, source=sources[0], target=target, lowest=lowest, highest=highest, kept=kept)
            _ = work.shifts  # raises what can't be done
            works.append(work)
            read_before |= set(layer.inputs)
            continue
        placed = placed_inputs(layer, sources, target)
        node = NodeWork(layer=layer, sources=sources, target=target, ranges=read, placed=placed, kept=kept)
        if not placed.issuperset(range(len(sources))) and not (signed and nodes.supported(layer)):
            of = tuple(dtypes[name] for name in layer.inputs)
            works.append(CpuWork(layer=layer, sources=sources, target=target, dtypes=of, placed=placed))
            read_before.clear()  # the next program of the accelerator finds nothing on chip
            continue
        works.append(node)
        read_before |= set(layer.inputs)
    for one in works:
        if isinstance(one, Work) or (isinstance(one, NodeWork) and one.blocks):
            _check_widths((*one.sources, one.target), config)
    return tuple(works)


def _check_widths(tensors: Sequence[Tensor], config: Config) -> None:
    """Raise UserError for maps of which no row fits the buffers."""
    most = min(config.inp_depth, config.acc_depth)
    for tensor in tensors:
        if tensor.shape[2] > most:
            raise UserError(
                f"{tensor.name} has rows of {tensor.shape[2]:,} pixels; the buffers of {config.bitstream} hold "
                f"{most:,}, and maps are cut between rows alone. A map of one column in place of one row can be cut."
            )


def _unsigned(name: str, layer: IntegerLayer) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(
        f"{name} can't run on VTA, whose inputs are signed: {layer.name} ({layer.kind}) has weights and reads numbers "
        "up to 255.",
        {layer.kind: layer.modules or (layer.name,)},
    )


@dataclass(kw_only=True)
class _StepDraft:
    """A step while it is made, on the processor if it has no `stream`."""

    stream: Stream | None
    works: list[AnyWork] = field(default_factory=list)
    function: str = ""


def _steps_of(works: Sequence[AnyWork], config: Config, tiles: int) -> list[_StepDraft]:
    """The works in steps. What lies in its place already, so that there is nothing to do, belongs to any."""
    steps: list[_StepDraft] = []
    waiting: list[AnyWork] = []
    for number, work in enumerate(works):
        if isinstance(work, NodeWork) and not work.blocks:
            (steps[-1].works if steps else waiting).append(work)
        elif isinstance(work, CpuWork):
            steps.append(_StepDraft(stream=None, works=[*waiting, work], function=function_name(number)))
            waiting.clear()
        else:
            if not steps or steps[-1].stream is None:
                steps.append(_StepDraft(stream=Stream(config, tiles), works=[*waiting]))
                waiting.clear()
            steps[-1].works.append(work)
    return steps or [_StepDraft(stream=Stream(config, tiles), works=waiting)]


def compile_works(
    works: Sequence[AnyWork],
    config: Config,
    schedule: Mapping[str, Tiling],
    ports: Ports | None = None,
    *,
    with_source: bool = True,
) -> Compiled:
    """Compile layers that follow each other, which need not be all of a network. Raises Infeasible.

    Whoever only wants the accelerator's cycles needs no `with_source`, the C of the processor's layers.
    Without `ports` the inputs are what none of them makes, and the output is that of the last.
    """
    tensors = {tensor.name: tensor for work in works for tensor in (*work.sources, work.target)}
    ports = ports or _ports(works)
    tensors |= {tensor.name: tensor for tensor in (*ports.inputs, *ports.outputs)}
    tiles = max(tensor.tile + tensor.tiles for tensor in tensors.values())
    weights, drafts = Weights(), _steps_of(works, config, tiles)
    marks, steps = _write(drafts, weights, schedule)
    streams = [draft.stream for draft in drafts if draft.stream]

    # the image: the tile of ones, weights, micro-ops, tables; behind it the activations, which no one initialises
    ones = ones_tile(config)
    parts = [ones, np.zeros(config.alignment - ones.nbytes % config.alignment, np.int8), *weights.tiles]
    offsets = {Memory.WGT: config.alignment}
    offsets[Memory.UOP] = config.alignment + weights.count * config.wgt_bytes
    parts += [isa.encode_uops(stream.uops, config) for stream in streams]
    image = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
    on_cpu = {
        draft.function: work for draft in drafts if draft.function for work in draft.works if isinstance(work, CpuWork)
    }
    image, tables = _with_tables(image, on_cpu)
    offsets[Memory.INP] = _behind(image, config)
    dtypes = {work.target.name: work.layer.dtype for work in works}
    regions = _regions(tensors, dtypes, image, config)
    instructions: list[Instruction] = []
    for stream in streams:
        instructions += (_moved(instruction, offsets, config) for instruction in stream.instructions())
        offsets[Memory.UOP] += len(stream.uops) * config.uop_bytes
    places = {
        name: Place(
            sources=tuple(regions[source.name].offset for source in work.sources),
            target=regions[work.target.name].offset,
            constants=tables[name],
        )
        for name, work in on_cpu.items()
    }
    written = {name: regions[work.target.name] for name, work in on_cpu.items()}
    return Compiled(
        executable=Executable(
            config=config,
            instructions=tuple(instructions),
            image=image,
            memory_bytes=_up(offsets[Memory.INP] + tiles * config.inp_bytes, config.alignment),
            inputs=tuple(regions[tensor.name] for tensor in ports.inputs),
            outputs=tuple(regions[tensor.name] for tensor in ports.outputs),
            layers=tuple(marks),
            steps=tuple(
                replace(step, offset=written[step.function].offset, bytes=written[step.function].bytes(config))
                if step.function
                else step
                for step in steps
            )
            if on_cpu
            else (),
            source=source_of(on_cpu, places) if on_cpu and with_source else "",
        ),
        works=tuple(works),
        schedule={name: schedule[name] for work in works if (name := work.layer.name) in schedule},
        regions=regions,
        uops=sum(len(stream.uops) for stream in streams),
    )


def _write(
    drafts: Sequence[_StepDraft], weights: Weights, schedule: Mapping[str, Tiling]
) -> tuple[list[Mark], list[Step]]:
    """Fill the streams; where each layer is then, and each step."""
    marks: list[Mark] = []
    steps: list[Step] = []
    end = 0
    for draft in drafts:
        begin = end
        for work in draft.works:
            first = end
            if draft.stream and not isinstance(work, CpuWork):
                _emit(draft.stream, weights, work, schedule[work.layer.name])
                end = begin + len(draft.stream.drafts)
            marks.append(Mark(name=work.layer.name, first=first, last=end))
        if draft.stream:
            draft.stream.finish()
            end = begin + len(draft.stream.drafts)
        steps.append(Step(layers=len(draft.works), first=begin, last=end, function=draft.function))
    return marks, steps


def _emit(stream: Stream, weights: Weights, work: Work | NodeWork, tiling: Tiling) -> None:
    try:
        if isinstance(work, NodeWork):
            node_tiles.emit(stream, weights, work, tiling)
        else:
            emit(stream, weights, work, tiling)
    except Infeasible as error:
        raise Infeasible(f"{work.layer.name} can't be cut into {tiling}: {error}") from error


def _with_tables(image: np.ndarray, works: Mapping[str, CpuWork]) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """The image with what functions of the processor read, and where that lies, by the functions' names."""
    parts, size = [image], image.size
    places: dict[str, tuple[int, ...]] = {}
    for name, work in works.items():
        found = []
        for table in work.constants:
            padding = -size % ALIGNMENT
            parts += [np.zeros(padding, np.uint8), np.ascontiguousarray(table).reshape(-1).view(np.uint8)]
            found.append(size + padding)
            size += padding + table.nbytes
        places[name] = tuple(found)
    return np.concatenate(parts), places


def regions_of(network: IntegerNetwork, executable: Executable) -> dict[str, Region]:
    """Where every tensor of a network lies in the memory of its program."""
    config = executable.config
    return _regions(place_tensors(network, config.block), network.dtypes, executable.image, config)


def _regions(
    tensors: Mapping[str, Tensor], dtypes: Mapping[str, str], image: np.ndarray, config: Config
) -> dict[str, Region]:
    """`dtypes` are those that aren't int8, at least."""
    behind = _behind(image, config)
    return {
        name: Region(
            name=name,
            offset=behind + tensor.tile * config.inp_bytes,
            shape=(1, *tensor.shape),
            dtype=dtypes.get(name, "int8"),
        )
        for name, tensor in tensors.items()
    }


def _behind(image: np.ndarray, config: Config) -> int:
    """Where the tile of ones would lie, if it were in front of the activations, which are behind the image."""
    return _up(image.size, config.alignment) - TENSORS * config.inp_bytes


def _ports(works: Sequence[AnyWork]) -> Ports:
    made: set[str] = set()
    inputs: dict[str, Tensor] = {}
    for work in works:
        inputs |= {source.name: source for source in work.sources if source.name not in made}
        made.add(work.target.name)
    return Ports(inputs=tuple(inputs.values()), outputs=(works[-1].target,))


def _moved(instruction: Instruction, offsets: Mapping[Memory, int], config: Config) -> Instruction:
    """The instruction with its address in the image; the tile of ones lies at its beginning."""
    if not isinstance(instruction, Load | Store) or isa.is_nop(instruction):
        return instruction
    memory = instruction.memory if isinstance(instruction, Load) else Memory.INP
    if memory == Memory.INP and instruction.dram_base < TENSORS:
        return instruction
    return replace(instruction, dram_base=instruction.dram_base + offsets[memory] // isa.element_bytes(memory, config))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def default_tiling(work: Work | NodeWork, config: Config) -> Tiling:
    """A tiling that fits and keeps the queues busy: half of each buffer at most, whole planes where they fit.

    The search of `tvmflow tune` begins with it.
    """
    if isinstance(work, NodeWork):
        return node_tiles.default_tiling(work, config)
    height, width = work.target.shape[1:]
    blocks, inputs = work.target.blocks, work.source.blocks
    taps, bias = len(work.taps), work.bias_count
    acc, inp, wgt = config.acc_depth // 2, config.inp_depth, config.wgt_depth // 2
    if work.pool:
        out_blocks = max(1, min(blocks, config.acc_depth, inp // work.source.pixels))
        return Tiling(out_blocks=out_blocks, rows=1, in_blocks=out_blocks)

    def fits(rows: int, in_blocks: int) -> bool:
        first, last = input_rows(work, (height - rows) // 2, (height - rows) // 2 + rows)
        return in_blocks * (last - first) * work.source.shape[2] <= inp // 2 and rows * width <= acc

    rows = max((rows for rows in parts(height) if fits(rows, 1)), default=1)
    if work.diagonal:
        room = max((n for n in range(1, blocks + 1) if fits(rows, n)), default=1)
        out_blocks = max(1, min(room, blocks, acc // (rows * width), wgt // max(1, taps + bias), -(-blocks // 2)))
        return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=out_blocks, pieces=_pieces(out_blocks * rows * width))
    in_blocks = max((n for n in range(1, inputs + 1) if fits(rows, n)), default=1)
    out_blocks = max(1, min(blocks, acc // (rows * width), wgt // max(1, inputs * taps + bias) or 1))
    return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=in_blocks, pieces=_pieces(out_blocks * rows * width))


def untiled(work: Work | NodeWork, config: Config) -> Tiling:
    """What a compiler does that doesn't tile: one block of outputs after the other, as much of the map as fits at once,
    and one buffer of each kind, so that loading, computing and storing take turns."""
    if isinstance(work, NodeWork):
        return replace(node_tiles.default_tiling(work, config), out_blocks=1, pieces=1, buffers=1)
    height, width = work.target.shape[1:]
    if work.pool:
        return Tiling(out_blocks=1, rows=1, in_blocks=1, buffers=1)

    def reads(rows: int) -> int:
        first, last = input_rows(work, (height - rows) // 2, (height - rows) // 2 + rows)
        return (last - first) * work.source.shape[2]

    fitting = [rows for rows in parts(height) if reads(rows) <= config.inp_depth and rows * width <= config.acc_depth]
    rows = max(fitting, default=1)
    inputs = 1 if work.diagonal else work.source.blocks
    room = min(config.inp_depth // reads(rows), (config.wgt_depth - work.bias_count) // max(1, len(work.taps)))
    return Tiling(out_blocks=1, rows=rows, in_blocks=max(1, min(inputs, room)), buffers=1)


def _pieces(tiles: int) -> int:
    return max(1, tiles // 256)
