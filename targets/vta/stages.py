"""The stages of VTA's compiler: an integer network is cut into tiles, becomes instructions, and is checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tvmflow.passes.lifetimes import Tensor, live_bytes
from tvmflow.spec import Layer, Program, Target
from tvmflow.targets.vta import isa
from tvmflow.targets.vta.bounds import AnyWork, Bounds
from tvmflow.targets.vta.check import check
from tvmflow.targets.vta.compile import Compiled, compile_works, default_tiling, ports_of, prepare
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.cpu import KERNEL as CPU_KERNEL
from tvmflow.targets.vta.cpu import CpuWork
from tvmflow.targets.vta.facts import Vta
from tvmflow.targets.vta.layout import Tensor as Placed
from tvmflow.targets.vta.layout import is_diagonal
from tvmflow.targets.vta.nodes import KERNELS as NODE_KERNELS
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.records import candidate_of, recorded, task_key_of
from tvmflow.targets.vta.tiles import Tiling, Work

PROCESSOR = "processor"
"""In place of a schedule: the layer runs on the board's processor."""
KERNELS = {"pool": "vta_pool", "dense": "vta_dense", "conv2d": "vta_convolution"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """What the stages have made so far."""

    works: tuple[AnyWork, ...]
    schedule: Mapping[str, Tiling]
    searched: frozenset[str] = frozenset()
    """Names of the layers whose tiling a search found."""
    compiled: Compiled | None = None

    def text(self) -> str:
        """For --dump-dir: the tilings, or the program once there is one."""
        if self.compiled is None:
            return "".join(f"{name}: {tiling}\n" for name, tiling in self.schedule.items())
        executable = self.compiled.executable
        return isa.disassemble(executable.instructions) + executable.source


def configuration(target: Target) -> Config:
    """The hardware configuration of a board's VTA. Raises UserError."""
    return Vta.of(target).config(target.name)


def cut_layers(program: Program, target: Target) -> Program:
    """Each layer gets its tiling: a record's, or the default. Raises UserError for what isn't quantised for VTA."""
    assert program.integer is not None
    config = configuration(target)
    works = prepare(program.integer, config)
    schedule, searched, used = {}, set(), {}
    for before, work in zip((None, *works), works, strict=False):
        if isinstance(work, CpuWork):
            continue
        key = task_key_of(before, work, config)
        best = program.records.get(key) if isinstance(work, Work) else None
        tiling = recorded(best)
        if best is not None and tiling is not None:
            used[key] = best
            searched.add(work.layer.name)
        schedule[work.layer.name] = tiling or default_tiling(work, config)
    return replace(program, records=used, made=Made(works=works, schedule=schedule, searched=frozenset(searched)))


def emit_program(program: Program, target: Target) -> Program:
    """Instructions with their tokens, micro-ops and the memory image."""
    assert program.integer is not None
    made, config = _made(program), configuration(target)
    compiled = compile_works(made.works, config, made.schedule, ports_of(program.integer, config))
    return replace(program, made=replace(made, compiled=compiled))


def check_program(program: Program, target: Target) -> Program:
    """Nothing leaves that could deadlock, overflow or be read too early. Raises VerificationError."""
    check(compiled_of(program).executable)
    return program


def describe_layers(program: Program, target: Target) -> Program:
    """What the report says of each layer, and of memory."""
    made, compiled = _made(program), compiled_of(program)
    executable = compiled.executable
    assert program.integer is not None
    kept = {port.source for port in program.integer.outputs}
    live = live_bytes(_lifetimes(made.works, kept), len(made.works))
    layers = tuple(
        _layer(work, made, Vta.of(target).bus_bytes, count) for work, count in zip(made.works, live, strict=True)
    )
    instructions, uops = (
        isa.INSTRUCTION_BYTES * len(executable.instructions),
        executable.config.uop_bytes * compiled.uops,
    )
    memory = {
        "weights_bytes": executable.image.size - uops,  # as tiles
        "activations_bytes": executable.memory_bytes - executable.image.size,
        "code_bytes": instructions + uops,
        "library_bytes": executable.image.size + instructions,
    }
    return replace(program, layers=layers, memory=memory)


def compiled_of(program: Program) -> Compiled:
    """What `emit_program` made."""
    compiled = _made(program).compiled
    assert compiled is not None
    return compiled


def _made(program: Program) -> Made:
    assert isinstance(program.made, Made)
    return program.made


def _lifetimes(works: Sequence[AnyWork], kept: Collection[str]) -> list[Tensor]:
    """Inputs and each layer's output, in bytes of their tiles. The `kept` are outputs, needed to the end.

    What is a part of another tensor lives as that does, and takes no bytes of its own.
    """
    tensors = {tensor.name: tensor for work in works for tensor in (*work.sources, work.target)}
    wholes = {name: _whole(tensor, tensors.values()) for name, tensor in tensors.items()}
    first, last = dict.fromkeys(tensors, len(works)), dict.fromkeys(tensors, 0)
    made = {work.target.name for work in works}
    for name in tensors:
        if name not in made:
            first[wholes[name]] = 0
        if name in kept:
            last[wholes[name]] = len(works) - 1
    for step, work in enumerate(works):
        for tensor in (*work.sources, work.target):
            whole = wholes[tensor.name]
            first[whole], last[whole] = min(first[whole], step), max(last[whole], step)
    return [
        Tensor(name=name, bytes=tensor.tiles * tensor.block, first=first[name], last=last[name])
        for name, tensor in tensors.items()
        if wholes[name] == name
    ]


def _whole(tensor: Placed, others: Iterable[Placed]) -> str:
    """The largest of the tensors in whose place it lies."""
    around = (
        other
        for other in others
        if other.tile <= tensor.tile and tensor.tile + tensor.tiles <= other.tile + other.tiles
    )
    return max(around, key=lambda other: other.tiles).name


def _layer(work: AnyWork, made: Made, bus_bytes: int, live: int) -> Layer:
    if isinstance(work, CpuWork):
        return _on_the_processor(work, live, sum(prod(it.layer.output_shape) for it in made.works))
    if isinstance(work, NodeWork):
        return _node(work, made, bus_bytes, live)
    layer = work.network_layer
    weights = 0 if work.pool else layer.weight.nbytes + layer.bias.nbytes
    return Layer(
        kernel="vta_depthwise" if is_diagonal(layer) and not work.pool else KERNELS[layer.kind],
        modules=layer.modules,
        macs=0 if work.pool else layer.macs,
        bytes=weights + prod(layer.input_shape) + prod(layer.output_shape),
        live_macs=0 if work.pool else layer.live_macs,
        weight_bytes=weights,
        live_bytes=live,
        schedule=f"tiles({candidate_of(made.schedule[layer.name])})" + ", searched" * (layer.name in made.searched),
        details=Bounds.of(work, bus_bytes).details(),
    )


def _node(work: NodeWork, made: Made, bus_bytes: int, live: int) -> Layer:
    layer = work.layer
    cut = f"tiles({candidate_of(made.schedule[layer.name])})"
    return Layer(
        kernel=NODE_KERNELS[type(layer.operator)],
        modules=layer.modules,
        macs=0,
        bytes=sum(map(prod, layer.input_shapes)) + prod(layer.output_shape) if work.blocks else 0,
        live_macs=0,
        weight_bytes=0,
        live_bytes=live,
        schedule=cut if work.blocks else "in place",
        details=Bounds.of(work, bus_bytes).details(),
    )


def _on_the_processor(work: CpuWork, live: int, elements: int) -> Layer:
    """Its share is of the `elements` that all layers give: it has no multiply-adds."""
    layer = work.layer
    return Layer(
        kernel=f"{CPU_KERNEL}_{layer.kind}",
        modules=layer.modules,
        macs=0,
        bytes=sum(map(prod, layer.input_shapes)) + prod(layer.output_shape),
        live_macs=None,  # so that it isn't held against the accelerator's roof
        weight_bytes=sum(table.nbytes for table in work.constants),
        live_bytes=live,
        schedule=PROCESSOR,
        details={"processor_share": work.elements / elements},
    )
