"""An integer network of scheme "power-of-two" → a static VTA program: instructions, micro-ops, memory image, layout.

The whole network runs on the accelerator; the host only puts the input's channels into tiles and takes the output out.
There is no way on chip from the accelerator's results back to its inputs, so every activation passes memory; layers
follow each other without a stop all the same, since each load waits only for the stores that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvmflow.integer.layers import RANGES, IntegerLayer
from tvmflow.integer.network import IntegerNetwork
from tvmflow.spec import UserError
from tvmflow.targets.vta import isa
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.emit import Infeasible, Stream
from tvmflow.targets.vta.isa import Instruction, Load, Memory, Store
from tvmflow.targets.vta.layout import TENSORS, ones_tile, place
from tvmflow.targets.vta.program import Executable, Mark, Region
from tvmflow.targets.vta.tiles import Tiling, Weights, Work, emit, input_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A program, the layers that it computes in their order, their tilings, and where each activation is in memory."""

    executable: Executable
    works: tuple[Work, ...]
    schedule: Mapping[str, Tiling]
    regions: Mapping[str, Region]
    uops: int


def compile_network(network: IntegerNetwork, config: Config, schedule: Mapping[str, Tiling] | None = None) -> Compiled:
    """Compile with the tilings of `schedule`, by layer, and `default_tiling` for the others.

    Raises UserError for networks that the accelerator can't run, and Infeasible for a tiling that doesn't fit.
    """
    works = prepare(network, config)
    tilings = {work.layer.name: (schedule or {}).get(work.layer.name) or default_tiling(work, config) for work in works}
    return compile_works(works, config, tilings)


def prepare(network: IntegerNetwork, config: Config) -> tuple[Work, ...]:
    """The layers, with a place in memory for every activation. Raises UserError for what VTA can't compute."""
    if network.scheme != "power-of-two":
        raise UserError(f"VTA only shifts: it takes the scheme power-of-two, and {network.name} has {network.scheme}.")
    if config.batch != 1:
        raise UserError(
            f"Networks are compiled for VTAs with LOG_BATCH 0; {config.bitstream} has a batch of {config.batch}."
        )
    if not network.is_chain or not all(isinstance(layer, IntegerLayer) for layer in network.layers):
        raise UserError(f"VTA takes chains of layers with weights, and {network.name} is none.")
    shapes = {"input": network.input_shape[1:], **{layer.name: layer.output_shape[1:] for layer in network.layers}}
    tensors, _ = place(shapes, config.block)  # type: ignore[arg-type]
    ranges = {"input": RANGES["int8"], **{layer.name: (layer.minimum, layer.maximum) for layer in network.layers}}
    works = []
    for layer in network.layers:
        lowest, highest = ranges[layer.inputs[0]]
        works.append(
            Work(
                layer=layer, source=tensors[layer.inputs[0]], target=tensors[layer.name], lowest=lowest, highest=highest
            )
        )
        _ = works[-1].shifts  # raises what can't be done
    return tuple(works)


def compile_works(works: Sequence[Work], config: Config, schedule: Mapping[str, Tiling]) -> Compiled:
    """Compile layers that follow each other, which need not be all of a network. Raises Infeasible."""
    tensors = {tensor.name: tensor for work in works for tensor in (work.source, work.target)}
    tiles = max(tensor.tile + tensor.tiles for tensor in tensors.values())
    stream, weights = Stream(config, tiles), Weights()
    marks = []
    for work in works:
        first, tiling = len(stream.drafts), schedule[work.layer.name]
        try:
            emit(stream, weights, work, tiling)
        except Infeasible as error:
            raise Infeasible(f"{work.layer.name} can't be cut into {tiling}: {error}") from error
        marks.append(Mark(name=work.layer.name, first=first, last=len(stream.drafts)))
    stream.finish()

    # the image: the tile of ones, weights, micro-ops; behind it the activations, which no one initialises
    ones = ones_tile(config)
    parts = [ones, np.zeros(config.alignment - ones.nbytes % config.alignment, np.int8), *weights.tiles]
    offsets = {Memory.WGT: config.alignment}
    offsets[Memory.UOP] = config.alignment + weights.count * config.wgt_bytes
    parts.append(isa.encode_uops(stream.uops, config))
    image = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
    behind = offsets[Memory.INP] = _up(image.size, config.alignment) - TENSORS * config.inp_bytes
    regions = {
        name: Region(name=name, offset=behind + tensor.tile * config.inp_bytes, shape=(1, *tensor.shape))
        for name, tensor in tensors.items()
    }
    return Compiled(
        executable=Executable(
            config=config,
            instructions=tuple(_moved(instruction, offsets, config) for instruction in stream.instructions()),
            image=image,
            memory_bytes=_up(behind + tiles * config.inp_bytes, config.alignment),
            inputs=(regions[works[0].source.name],),
            outputs=(regions[works[-1].target.name],),
            layers=tuple(marks),
        ),
        works=tuple(works),
        schedule={work.layer.name: schedule[work.layer.name] for work in works},
        regions=regions,
        uops=len(stream.uops),
    )


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


def default_tiling(work: Work, config: Config) -> Tiling:
    """A tiling that fits and keeps the queues busy: half of each buffer at most, whole planes where they fit.

    The search of `tvmflow tune` begins with it.
    """
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
        out_blocks = max(1, min(room, blocks, acc // (rows * width), wgt // (taps + bias), -(-blocks // 2)))
        return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=out_blocks, pieces=_pieces(out_blocks * rows * width))
    in_blocks = max((n for n in range(1, inputs + 1) if fits(rows, n)), default=1)
    out_blocks = max(1, min(blocks, acc // (rows * width), wgt // (inputs * taps + bias) or 1))
    return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=in_blocks, pieces=_pieces(out_blocks * rows * width))


def untiled(work: Work, config: Config) -> Tiling:
    """What a compiler does that doesn't tile: one block of outputs after the other, as much of the map as fits at once,
    and one buffer of each kind, so that loading, computing and storing take turns."""
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


def parts(size: int) -> list[int]:
    """Sizes of parts that cut `size` into equal parts, but for the last."""
    return sorted({-(-size // count) for count in range(1, size + 1)})
