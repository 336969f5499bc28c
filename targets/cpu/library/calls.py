"""The calls of a network, out of Relax's `main`: kernels in their order, and what each of their arguments points to.

A place is a text: "input 0" and "output 0" are the caller's, "constant 0" lies in the library, "tensor 0" in the arena.
A kernel's scratch memory gets places of its own later: "scratch 0" of a step lies in the arena, "share 0" in the memory
that each thread has for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvmflow.passes.fuse_operators import tensor_bytes
from tvmflow.passes.lifetimes import Tensor as Lifetime
from tvmflow.passes.lifetimes import live_bytes
from tvmflow.spec import Program, Target, UserError


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A function of a kernel. With `extent` it takes the range of a parallel loop of so many iterations to compute.

    `scratch` and `shares` are the bytes of memory that it takes beyond the kernel's arguments, the latter for each
    thread. All phases of a kernel have the same scratch memory, by its number in the kernel.
    """

    function: str
    extent: int | None = None
    scratch: Mapping[int, int] = field(default_factory=dict)
    shares: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kernel's call, with the places that its arguments point to."""

    kernel: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A network as its caller sees it.

    `tensors` are the bytes of what lies in the arena, `outputs` those of what the caller gets, `constants` have their
    values. `copies` come last: from a place to an output. `phases` are those of each kernel, `serial` says how many
    loops of a kernel one thread computes alone that have threads in a module, `offsets` where in the arena each place
    lies, in bytes, once that is known; a step's scratch memory is there as "4 scratch 0". `origin` is the Relax module
    that was read, of which TVM's runtime can be given the same kernels.
    """

    steps: tuple[Step, ...]
    tensors: Mapping[str, int]
    outputs: Mapping[str, int]
    constants: Mapping[str, np.ndarray]
    copies: tuple[tuple[str, str], ...]
    phases: Mapping[str, tuple[Phase, ...]] = field(default_factory=dict)
    serial: Mapping[str, int] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)
    arena_bytes: int = 0
    share_bytes: int = 0
    origin: Any = None

    def text(self) -> str:
        """For --dump-dir."""
        lines = [f"{step.kernel}({', '.join(map(self._shown, step.arguments))})" for step in self.steps]
        lines += [f"copy {self._shown(source)} to {output}" for source, output in self.copies]
        lines += [f"{phase.function}: {phase}" for phases in self.phases.values() for phase in phases]
        return "\n".join([*lines, f"arena {self.arena_bytes} bytes, {self.share_bytes} a thread", ""])

    def _shown(self, place: str) -> str:
        return f"{place} at {self.offsets[place]}" if place in self.offsets else place


def calls_of(program: Program) -> Calls:
    """Those of a program that has been through `write_calls`."""
    assert isinstance(program.made, Calls)
    return program.made


def write_calls(program: Program, target: Target) -> Program:
    """`Program.made` becomes the calls of `main`; the module's kernels stay. Raises UserError for what C can't do."""
    module = tvm.ir.transform.Sequential(
        [relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking(), relax.transform.CallTIRRewrite()]
    )(program.module)
    calls = replace(_Reader(program.name, module["main"]).calls(), origin=program.module)
    kernels = {step.kernel: module[step.kernel] for step in calls.steps}
    lives = [*lifetimes(calls), *lifetimes(calls, outputs=True)]
    live = live_bytes(lives, len(program.layers))
    layers = tuple(replace(layer, live_bytes=count) for layer, count in zip(program.layers, live, strict=True))
    weights = sum(array.nbytes for array in calls.constants.values())
    return replace(
        program,
        module=tvm.IRModule(kernels),
        made=calls,
        layers=layers,
        memory={**program.memory, "weights_bytes": weights},
    )


def lifetimes(calls: Calls, *, outputs: bool = False) -> list[Lifetime]:
    """The steps at which each tensor of the arena, or each output, is written or read."""
    used: dict[str, list[int]] = {}
    for number, step in enumerate(calls.steps):
        for place in step.arguments:
            used.setdefault(place, []).append(number)
    for source, output in calls.copies:
        for place in (source, output):
            used.setdefault(place, []).append(len(calls.steps))
    sizes = calls.outputs if outputs else calls.tensors
    return [
        Lifetime(name=place, bytes=size, first=min(used[place]), last=len(calls.steps) if outputs else max(used[place]))
        for place, size in sizes.items()
        if place in used
    ]


VIEWS = ("relax.reshape", "relax.memory.view", "relax.memory.ensure_zero_offset")
"""Operators whose result is their first argument's memory."""

ALLOCATIONS = ("relax.builtin.alloc_tensor",)

Value = str | tuple[Any, ...]
"""A place, or a tuple of values."""


class _Reader:
    """Of one `main`, whose allocations, calls and views come in their order."""

    def __init__(self, network: str, main: relax.Function) -> None:
        self.network, self.main = network, main
        self.values: dict[relax.Var, Value] = {}
        self.steps: list[Step] = []
        self.tensors: dict[str, int] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.known: list[tuple[Any, str]] = []

    def calls(self) -> Calls:
        for number, param in enumerate(self.main.params):
            self.values[param] = f"input {number}"
        for binding in (binding for block in self.main.body.blocks for binding in block.bindings):
            if not isinstance(binding, relax.VarBinding):
                raise self._refused(type(binding).__name__)
            self.values[binding.var] = self._value(binding.value, binding.var)
        given = _flat(self._value(self.main.body.body, None))
        renamed: dict[str, str] = {}
        outputs: dict[str, int] = {}
        copies: list[tuple[str, str]] = []
        for number, (place, size) in enumerate(zip(given, _sizes(self.main.ret_ty), strict=True)):
            output = f"output {number}"
            outputs[output] = size
            if place in self.tensors and place not in renamed:
                renamed[place] = output  # it is written where the caller wants it
            else:
                copies.append((place, output))
        return Calls(
            steps=tuple(
                replace(step, arguments=tuple(renamed.get(place, place) for place in step.arguments))
                for step in self.steps
            ),
            tensors={place: size for place, size in self.tensors.items() if place not in renamed},
            outputs=outputs,
            constants=self.constants,
            copies=tuple((renamed.get(source, source), output) for source, output in copies),
        )

    def _value(self, value: Any, var: relax.Var | None) -> Value:
        if isinstance(value, relax.Var):
            return self.values[value]
        if isinstance(value, relax.Tuple):
            return tuple(self._value(part, None) for part in value.fields)
        if isinstance(value, relax.TupleGetItem):
            return self._value(value.tuple_value, None)[value.index]
        if isinstance(value, tvm.ir.expr.GenericConst) and isinstance(value.value, tvm.runtime.Tensor):
            return self._constant(value)
        if not isinstance(value, relax.Call):
            raise self._refused(type(value).__name__)
        if isinstance(value.op, tvm.ir.GlobalVar):
            return self._called(value)
        name = getattr(value.op, "name", type(value.op).__name__)
        if name in ALLOCATIONS:
            assert var is not None
            place = f"tensor {len(self.tensors)}"
            self.tensors[place] = tensor_bytes(var.ty)
            return place
        if name in VIEWS:
            return self._value(value.args[0], None)
        raise self._refused(name)

    def _called(self, call: relax.Call) -> Value:
        values = [self._value(argument, None) for argument in call.args]
        arguments = [place for place in values if isinstance(place, str)]
        if len(arguments) != len(values):
            raise self._refused(f"a tuple that {call.op.name_hint} takes")
        self.steps.append(Step(kernel=call.op.name_hint, arguments=tuple(arguments)))
        return ()

    def _constant(self, constant: Any) -> str:
        for known, place in self.known:
            if known.same_as(constant.value):
                return place
        place = f"constant {len(self.constants)}"
        self.known.append((constant.value, place))
        self.constants[place] = constant.value.numpy()
        return place

    def _refused(self, what: str) -> UserError:
        return UserError(
            f"{self.network} can't be a library without TVM's runtime: its virtual machine computes {what}; "
            "build it with --format module."
        )


def _flat(value: Value) -> list[str]:
    return [value] if isinstance(value, str) else [place for part in value for place in _flat(part)]


def _sizes(given: Any) -> list[int]:
    """Bytes of the tensors that a function returns."""
    fields = getattr(given, "fields", None)
    return [tensor_bytes(given)] if fields is None else [size for part in fields for size in _sizes(part)]


def kernels_of(program: Program) -> Mapping[str, tirx.PrimFunc]:
    """The functions of the module by their names."""
    return {var.name_hint: func for var, func in program.module.functions.items()}
