"""The Relax module of an imported network → a FloatGraph.

Convolutions, products with weights and averages become layers with weights. What scales or moves their channels is
folded into the weights, in float64, and what clamps them into limits; where there is nothing to be folded into it
becomes the depthwise 1×1 convolution that it is. Reshapes, transposes, slices, borders and the like move elements:
one after the other they are a single map of places, which becomes an operator only where it has to: borders of zeros
and flattened maps are taken over by the layer that reads them. All other arithmetic on one tensor,
element by element, becomes one function. What can't be taken is named at once, everything, with its modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer import finite, normalisations, pools, probe, together, weighted
from tvmflow.integer.draft import QUANTISED
from tvmflow.integer.elementwise import Elementwise
from tvmflow.integer.graph import AnyFloatLayer, FloatGraph
from tvmflow.integer.network import Port, canonical
from tvmflow.integer.operators import Gather
from tvmflow.integer.views import BINARY, UNARY, View, order_of, read_by, shape_of
from tvmflow.network.names import module_path
from tvmflow.spec import Program, TensorSpec, TvmflowError, UnsupportedOperatorError, UserError

CONVERTERS = weighted.CONVERTERS | pools.CONVERTERS | together.CONVERTERS
"""Of Relax's operators, and of our kernels, that aren't element by element."""

REFUSED = {
    "nn.conv2d": "with computed weights",
    "nn.conv1d": "with computed weights",
    "nn.batch_norm": "with computed statistics",
}
"""Of operators that can be taken: how those are that can't."""


def float_graph(program: Program, purpose: str = QUANTISED) -> FloatGraph:
    """The layers of an imported network. Raises UnsupportedOperatorError, UserError: why it can't be `purpose`.

    What was found of the last network is kept: quantising and estimates ask several times.
    """
    for known, words, found in _LAST:
        if known.module is program.module and (known.name, words) == (program.name, purpose):
            if isinstance(found, TvmflowError):
                raise found.with_traceback(None)
            return found
    made: FloatGraph | TvmflowError
    try:
        made = _read_graph(program, purpose)
    except TvmflowError as error:
        made = error
    _LAST[:] = [*(last for last in _LAST if last[0].module is program.module), (program, purpose, made)]
    return float_graph(program, purpose)


_LAST: list[tuple[Program, str, FloatGraph | TvmflowError]] = []


def _read_graph(program: Program, purpose: str) -> FloatGraph:
    import tvm
    from tvm import relax

    from tvmflow.passes.constants import fold_views

    _check_inputs(program, purpose)
    clean = [
        relax.transform.FoldConstant(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    module = tvm.ir.transform.Sequential(clean)(fold_views(_with_ranges(program.module)))
    reader = _Reader(module, program, purpose)
    return reader.graph()


def _with_ranges(module: Any) -> Any:
    """Ranges become constants: they read nothing, and TVM folds only what reads constants."""
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Ranges(PyExprMutator):
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.arange" or not all(hasattr(arg, "value") for arg in call.args):
                return call
            values = np.arange(*(arg.value for arg in call.args))
            return relax.const(values.astype(str(call.ty.dtype)), str(call.ty.dtype))

    changed = module.clone() if hasattr(module, "clone") else module
    changed["main"] = Ranges(module).visit_expr(module["main"])
    return changed


def _check_inputs(program: Program, purpose: str) -> None:
    """Raises UserError, with every input that is in the way."""

    def shown(specs: Sequence[TensorSpec]) -> str:
        return ", ".join(f"{spec.name} is {spec.dtype} {'×'.join(map(str, spec.shape)) or 'scalar'}" for spec in specs)

    other = [spec for spec in program.inputs if spec.dtype != "float32"]
    if other:
        raise UserError(
            f"{program.name} can't be {purpose}: its inputs have to be float32, and {shown(other)}; feed what is "
            "looked up by such numbers, an embedding for one, as an input of its own."
        )
    odd = [spec for spec in program.inputs if not 0 < len(spec.shape) <= 4]
    if odd:
        raise UserError(
            f"{program.name} can't be {purpose}: its inputs have to be float32 of one to four dimensions, the first of "
            f"them a batch of 1, and {shown(odd)}."
        )
    batches = [spec for spec in program.inputs if len(spec.shape) > 1 and spec.shape[0] != 1]
    if batches:
        single = "x".join(map(str, (1, *batches[0].shape[1:])))
        raise UserError(
            f"{program.name} can't be {purpose}: its inputs have to be float32 with a batch of 1, and {shown(batches)}"
            f"; give --input-shape {single}, or export it for that."
        )
    several = [spec for spec in program.outputs if len(spec.shape) > 1 and spec.shape[0] != 1]
    if several:
        raise UserError(
            f"{program.name} can't be {purpose}: its outputs have to be for a batch of 1, and {shown(several)}; give "
            "them a first dimension of 1, by unsqueeze(0) for one."
        )


class _Reader(Elementwise):
    def graph(self) -> FloatGraph:
        from tvm import relax

        inputs = []
        for param, spec in zip(self.main.params, self.program.inputs, strict=True):
            inputs.append(Port(name=spec.name, shape=tuple(spec.shape), scale=1.0))
            self.views[param] = View(layer=spec.name, shape=tuple(spec.shape))
            self.shapes[spec.name] = canonical(tuple(spec.shape))
        result = self.main.body.body
        bindings = [binding for block in self.main.body.blocks for binding in block.bindings]
        for binding in bindings:
            if isinstance(binding.value, relax.Var):
                self.same[binding.var] = self.resolved(binding.value)
        if self.finite:
            self.same |= finite.chosen(bindings, self.resolved)
        self.normal = normalisations.find(bindings, self.resolved)
        instead = self.same | {var: found.source for var, found in self.normal.items()}
        bindings = [binding for binding in _live(bindings, result, instead) if binding.var not in self.same]
        self.values = [binding.value for binding in bindings]
        for binding in bindings:
            self.uses.update(self.reads(binding))
            if isinstance(binding.value, relax.TupleGetItem):
                self.read_fields[self.resolved(binding.value.tuple_value)].add(int(binding.value.index))
        given = self.tuple_of(self.resolved(result), bindings)
        self.uses.update(self.resolved(var) for var in given)
        for binding in bindings:
            self.take(binding)
        outputs = []
        for var, spec in zip(given, self.program.outputs, strict=True):
            if self.missing:
                break
            view = self.view(self.resolved(var))
            source = self.laid(view, canonical(tuple(spec.shape)))
            if source in (port.name for port in inputs):
                source = self.append("identity", Gather(places=order_of(self.shapes[source])), (source,))
            outputs.append(Port(name=spec.name, shape=tuple(spec.shape), scale=1.0, source=source))
        if self.missing:
            self.refuse()
        if not self.layers:
            raise UserError(f"{self.program.name} can't be {self.purpose}: it has no layers.")
        graph = FloatGraph(
            name=self.program.name, inputs=tuple(inputs), outputs=tuple(outputs), layers=tuple(self.layers.values())
        )
        return replace(graph, layers=tuple(_needed(graph)))

    def refuse(self) -> None:
        shown = ", ".join(f"{what} ({', '.join(dict.fromkeys(paths))})" for what, paths in self.missing.items())
        raise UnsupportedOperatorError(
            f"{self.program.name} can't be {self.purpose}: there is no integer form of {shown}.",
            {what: tuple(paths) for what, paths in self.missing.items()},
        )

    def tuple_of(self, result: Any, bindings: Sequence[Any]) -> list[Any]:
        from tvm import relax

        if isinstance(result, relax.Tuple):
            return [self.resolved(field) for field in result.fields]
        for binding in bindings:
            if binding.var.same_as(result) and isinstance(binding.value, relax.Tuple):
                return [self.resolved(field) for field in binding.value.fields]
        return [result]

    def take(self, binding: Any) -> None:
        """One binding becomes a layer, a view of one, or waits as part of a function."""
        from tvm import relax

        from tvmflow.passes.fuse_operators import OWN_NAMES

        value, var = binding.value, binding.var
        self.path = "" if OWN_NAMES.fullmatch(var.name) else module_path(var.name)
        if isinstance(value, relax.Tuple):
            self.tuples[var] = [self.resolved(field) for field in value.fields]
            return
        if isinstance(value, relax.TupleGetItem):
            whole = self.resolved(value.tuple_value)
            if whole in self.tuples:
                self.same[var] = self.resolved(self.tuples[whole][int(value.index)])
                self.uses[self.same[var]] += self.uses[var] - 1
            elif (whole in self.waiting or whole in self.views) and int(value.index) in (0, *self.alone(whole)):
                self.same[var] = whole
                self.uses[whole] = self.uses[var]
            return
        name = value.op.name.removeprefix("relax.")
        kernel = name == "call_tir"
        if kernel:
            name = value.args[0].name_hint.rstrip("0123456789")
        reads = self.reads(binding)
        if any(v not in self.views and v not in self.waiting for v in reads):
            self.skip(binding)
            return
        self.reason, self.fields = "", self.read_fields[var]
        try:
            done = bool(reads) and self.convert(f"kernel.{name}" if kernel else name, var, value, reads)
        except probe.UnreadableError:
            done = False
        except (AssertionError, IndexError, KeyError, ValueError):
            if not self.missing:  # what stands for a layer that can't be taken may fit nowhere
                raise
            done = True
            self.skip(binding)
        if not done:
            wrong = self.reason or REFUSED.get(name, "")
            self.missing[f"{name} {wrong}".strip()].append(self.path or var.name)
            self.skip(binding)

    def alone(self, var: Any) -> set[int]:
        """Of several results, the one that is read if no other is. (Of a normalisation's three it is the first.)"""
        return self.read_fields[var] if len(self.read_fields[var]) == 1 else set()

    def skip(self, binding: Any) -> None:
        """Go on behind what can't be taken, to find others; there will be no graph."""
        fields = getattr(binding.var.ty, "fields", None)
        if fields is not None:
            return
        shape = shape_of(binding.var)
        name = f"skipped {len(self.layers)}"
        self.shapes[name] = canonical(shape)
        self.views[binding.var] = View(layer=name, shape=shape)

    def convert(self, name: str, var: Any, call: Any, reads: Sequence[Any]) -> bool:
        """Whether the operator could be taken."""
        if var in self.normal:
            self.views[var] = together.normalised(self, var, self.normal[var])
            return True
        if name == "nn.batch_norm" or name in UNARY or name in BINARY or probe.is_elementwise(self.module, call):
            return self.elementwise(name, var, call, reads)
        converter = CONVERTERS.get(name)
        if converter is None and name.startswith("kernel."):
            converter = pools.resampled
        made = None if converter is None else converter(self, call, reads)
        if made is None and len(set(reads)) == 1:
            made = self.moved(var, call, reads[0])
        if made is None:
            return False
        self.views[var] = made
        return True


def _live(bindings: Sequence[Any], result: Any, instead: Mapping[Any, Any]) -> list[Any]:
    """The bindings that the result is computed from: of a tuple's fields, those that are read.

    `instead` has what some variables are computed from, whatever their bindings read.
    """
    from tvm import relax

    by_var = {binding.var: binding.value for binding in bindings}
    wanted, stack = set(), [result]
    while stack:
        at = stack.pop()
        if isinstance(at, relax.TupleGetItem):
            whole = by_var.get(at.tuple_value)
            if isinstance(whole, relax.Tuple):
                stack.append(whole.fields[int(at.index)])
                continue
        for var in read_by(at):
            if var in by_var and var not in wanted:
                wanted.add(var)
                stack.append(instead.get(var, by_var[var]))
    return [
        binding
        for binding in bindings
        if binding.var in wanted or (isinstance(binding.value, relax.Tuple) and read_by(binding.value))
    ]


def _needed(graph: FloatGraph) -> Iterator[AnyFloatLayer]:
    """The layers that some output is computed from."""
    wanted, layers = {port.source for port in graph.outputs}, graph.by_name
    stack = list(wanted)
    while stack:
        layer = layers.get(stack.pop())
        for name in layer.inputs if layer else ():
            if name not in wanted:
                wanted.add(name)
                stack.append(name)
    return (layer for layer in graph.layers if layer.name in wanted)
