"""An integer network of scheme "power-of-two" → a static VTA program: instructions, micro-ops, memory image, layout.

The whole network runs on the accelerator; the host only puts the input's channels into tiles and takes the output out.
There is no way on chip from the accelerator's results back to its inputs, so every activation passes memory; layers
follow each other without a stop all the same, since each load waits only for the stores that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tvmflow.integer import RANGES, IntegerNetwork
from tvmflow.spec import UserError
from tvmflow.vta import isa
from tvmflow.vta.config import Config
from tvmflow.vta.emit import HAZARD_DISTANCE, Infeasible, Stream
from tvmflow.vta.isa import Instruction, Load, Memory, Uop
from tvmflow.vta.layout import Tensor, ones_tile, pack, place, unpack
from tvmflow.vta.tiles import Tiling, Weights, Work, emit, input_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """A program for one configuration. Addresses in it are relative to the beginning of its memory image.

    `layer_of` has for each instruction the number of the layer it is for, −1 for those of none. `memory` is the image,
    uint8: activations from byte 0 on, weights from `weights_offset`, micro-ops from `uops_offset`.
    """

    name: str
    config: Config
    instructions: tuple[Instruction, ...]
    layer_of: tuple[int, ...]
    memory: np.ndarray
    weights_offset: int
    uops_offset: int
    uops: int
    input: Tensor
    output: Tensor
    works: tuple[Work, ...]
    schedule: Mapping[str, Tiling]

    def input_bytes(self, q: np.ndarray) -> np.ndarray:
        """int8 C×H×W → what the host writes at the input's place."""
        return pack(q, self.config.block).view(np.uint8).ravel()

    def output_of(self, memory: np.ndarray) -> np.ndarray:
        """The image after a run → int8 C×H×W."""
        return self.tensor_of(self.output, memory)

    def tensor_of(self, tensor: Tensor, memory: np.ndarray) -> np.ndarray:
        """An activation, int8 C×H×W, from the image after a run."""
        size = self.config.inp_bytes
        raw = memory[tensor.tile * size : (tensor.tile + tensor.tiles) * size]
        shape = (tensor.blocks, *tensor.shape[1:], self.config.block)
        return unpack(raw.view(np.int8).reshape(shape), tensor.shape[0])

    @cached_property
    def input_offset(self) -> int:
        return self.input.tile * self.config.inp_bytes

    @cached_property
    def output_offset(self) -> int:
        return self.output.tile * self.config.inp_bytes


def compile_network(
    network: IntegerNetwork,
    config: Config,
    schedule: Mapping[str, Tiling] | None = None,
    *,
    single: bool = False,
) -> Compiled:
    """Compile with the tilings of `schedule`, by layer, and `default_tiling` for the others.

    With `single` nothing overlaps: each buffer holds one thing at a time. Raises UserError for networks that the
    accelerator can't run, and Infeasible for a tiling that doesn't fit.
    """
    works = prepare(network, config)
    tilings = {work.layer.name: (schedule or {}).get(work.layer.name) or default_tiling(work, config) for work in works}
    return compile_works(network.name, works, config, tilings, single=single)


def prepare(network: IntegerNetwork, config: Config) -> tuple[Work, ...]:
    """The layers, with a place in memory for every activation. Raises UserError for what VTA can't compute."""
    if network.scheme != "power-of-two":
        raise UserError(f"VTA only shifts: it takes the scheme power-of-two, and {network.name} has {network.scheme}.")
    if config.batch != 1:
        raise UserError(f"Networks are compiled for VTAs with LOG_BATCH 0; {config.bitstream} has a batch of {config.batch}.")
    shapes = {"input": network.input_shape[1:], **{layer.name: layer.output_shape[1:] for layer in network.layers}}
    tensors, _ = place(shapes, config.block)  # type: ignore[arg-type]
    ranges = {"input": RANGES["int8"], **{layer.name: (layer.minimum, layer.maximum) for layer in network.layers}}
    works = []
    for layer in network.layers:
        lowest, highest = ranges[layer.inputs[0]]
        works.append(
            Work(layer=layer, source=tensors[layer.inputs[0]], target=tensors[layer.name], lowest=lowest, highest=highest)
        )
        _ = works[-1].shifts  # raises what can't be done
    return tuple(works)


def compile_works(
    name: str, works: Iterable[Work], config: Config, schedule: Mapping[str, Tiling], *, single: bool = False
) -> Compiled:
    """Compile layers, which need not be all of a network."""
    works = tuple(works)
    tiles = max(tensor.tile + tensor.tiles for work in works for tensor in (work.source, work.target))
    stream, weights = Stream(config, tiles, single=single), Weights()
    for number, work in enumerate(works):
        stream.layer = number
        try:
            emit(stream, weights, work, schedule[work.layer.name])
        except Infeasible as error:
            raise Infeasible(f"{work.layer.name} as {schedule[work.layer.name]}: {error}") from error
    stream.layer = -1
    stream.finish()
    weights_offset = _up(tiles * config.inp_bytes, config.alignment)
    uops_offset = weights_offset + weights.count * config.wgt_bytes
    memory = np.zeros(_up(uops_offset + len(stream.uops) * config.uop_bytes, config.alignment), np.uint8)
    memory[: config.inp_bytes] = ones_tile(config).view(np.uint8).ravel()
    if weights.count:
        memory[weights_offset:uops_offset] = np.concatenate(weights.tiles).view(np.uint8).ravel()
    words = isa.encode_uops(stream.uops, config)
    memory[uops_offset : uops_offset + words.nbytes] = words.view(np.uint8)
    offsets = {Memory.WGT: weights_offset // config.wgt_bytes, Memory.UOP: uops_offset // config.uop_bytes}
    return Compiled(
        name=name,
        config=config,
        instructions=tuple(_moved(instruction, offsets) for instruction in stream.instructions()),
        layer_of=tuple(draft.layer for draft in stream.drafts),
        memory=memory,
        weights_offset=weights_offset,
        uops_offset=uops_offset,
        uops=len(stream.uops),
        input=works[0].source,
        output=works[-1].target,
        works=works,
        schedule=schedule,
    )


def _moved(instruction: Instruction, offsets: Mapping[Memory, int]) -> Instruction:
    if isinstance(instruction, Load) and instruction.x_size and instruction.memory in offsets:
        return replace(instruction, dram_base=instruction.dram_base + offsets[instruction.memory])
    return instruction


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

    rows = max((rows for rows in _parts(height) if fits(rows, 1)), default=1)
    if work.diagonal:
        room = max((n for n in range(1, blocks + 1) if fits(rows, n)), default=1)
        out_blocks = max(1, min(room, blocks, acc // (rows * width), wgt // (taps + bias), -(-blocks // 2)))
        return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=out_blocks, pieces=_pieces(out_blocks * rows * width))
    in_blocks = max((n for n in range(1, inputs + 1) if fits(rows, n)), default=1)
    out_blocks = max(1, min(blocks, acc // (rows * width), wgt // (inputs * taps + bias) or 1))
    return Tiling(out_blocks=out_blocks, rows=rows, in_blocks=in_blocks, pieces=_pieces(out_blocks * rows * width))


def _pieces(tiles: int) -> int:
    return max(1, tiles // 256)


def _parts(size: int) -> list[int]:
    """Sizes of parts that cut `size` into equal parts, but for the last."""
    return sorted({-(-size // count) for count in range(1, size + 1)})


assert HAZARD_DISTANCE > 0
