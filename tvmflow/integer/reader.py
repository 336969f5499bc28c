"""The Relax module of an imported network → a FloatGraph.

Convolutions, products with weights and averages become layers with weights. What scales or moves their channels is
folded into the weights, in float64, and what clamps them into limits; where there is nothing to be folded into it
becomes the depthwise 1×1 convolution that it is. Reshapes, transposes, slices, borders and the like move elements:
one after the other they are a single map of places, which becomes an operator only where it has to: borders of zeros
and flattened maps are taken over by the layer that reads them. All other arithmetic on one tensor,
element by element, becomes one function. What can't be taken is named at once, everything, with its modules.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer import finite, normalisations, probe
from tvmflow.integer.graph import AnyFloatLayer, FloatGraph, FloatLayer, FloatNode
from tvmflow.integer.network import Port, canonical
from tvmflow.integer.normalisations import Normalisation
from tvmflow.integer.operators import (
    OUTSIDE,
    Box,
    Concat,
    Function,
    Gather,
    LogSoftmax,
    MatMul,
    MaxPool,
    Normalise,
    Operator,
    Product,
    Resample,
    Shape,
    Softmax,
    Sum,
    boxed,
)
from tvmflow.integer.views import (
    BINARY,
    UNARY,
    View,
    added,
    constant_of,
    covers,
    inside,
    is_injection,
    is_permutation,
    limits_of,
    order_of,
    places_of_view,
    read_by,
    shape_of,
    unless_ordered,
)
from tvmflow.integer.window import Window
from tvmflow.network.names import module_path
from tvmflow.spec import Program, TensorSpec, TvmflowError, UnsupportedOperatorError, UserError

MOST_CONSTANTS = 1 << 16
"""Elements of a constant that an element-wise operator may have, as it is laid out once for each element."""

REFUSED = {
    "nn.conv2d": "with computed weights",
    "nn.conv1d": "with computed weights",
    "nn.batch_norm": "with computed statistics",
    "mean": "over these axes",
}
"""Of operators that can be taken: how those are that can't."""


def float_graph(program: Program, purpose: str = "quantised") -> FloatGraph:
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

    _check_inputs(program, purpose)
    clean = [
        relax.transform.FoldConstant(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    module = tvm.ir.transform.Sequential(clean)(program.module)
    reader = _Reader(module, program, purpose)
    return reader.graph()


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


class _Reader:
    def __init__(self, module: Any, program: Program, purpose: str) -> None:
        self.module, self.program, self.purpose = module, program, purpose
        self.main = module["main"]
        self.layers: dict[str, AnyFloatLayer] = {}
        self.views: dict[Any, View] = {}
        self.waiting: dict[Any, Any] = {}  # element-wise bindings that belong to no layer yet, by their variables
        self.same: dict[Any, Any] = {}  # other names of variables
        self.tuples: dict[Any, Sequence[Any]] = {}
        self.missing: dict[str, list[str]] = defaultdict(list)  # an operator, with what is wrong with it → where
        self.uses: Counter[Any] = Counter()
        self.normal: dict[Any, Normalisation] = {}
        self.values: list[Any] = []
        self.shapes: dict[str, Shape] = {}
        self.path = self.reason = ""

    # ------------------------------------------------------------------------------------------------ the whole

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
        self.same |= finite.chosen(bindings, self.resolved)
        self.normal = normalisations.find(bindings, self.resolved)
        instead = self.same | {var: found.source for var, found in self.normal.items()}
        bindings = [binding for binding in _live(bindings, result, instead) if binding.var not in self.same]
        self.values = [binding.value for binding in bindings]
        for binding in bindings:
            self.uses.update(self.reads(binding))
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

    def reads(self, binding: Any) -> list[Any]:
        """The variables that a binding is computed from, each as often as it reads it."""
        if binding.var in self.normal:
            return [self.normal[binding.var].source]
        return [self.resolved(var) for var in read_by(binding.value)]

    def resolved(self, var: Any) -> Any:
        while var in self.same:
            var = self.same[var]
        return var

    # ------------------------------------------------------------------------------------------------ bindings

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
            elif (whole in self.waiting or whole in self.views) and int(value.index) == 0:  # of a normalisation's three
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
        self.reason = ""
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
            self.views[var] = self.normalised(var, self.normal[var])
            return True
        if name == "nn.batch_norm" or name in UNARY or name in BINARY or probe.is_elementwise(self.module, call):
            return self.elementwise(name, var, call, reads)
        handler: Callable[..., View | None] | None = getattr(self, f"_{name.replace('.', '_')}", None)
        if handler is None and name.startswith("kernel."):
            handler = self._resampled
        made = None if handler is None else handler(call, reads)
        if made is None and len(set(reads)) == 1:
            made = self.moved(var, call, reads[0])
        if made is None:
            return False
        self.views[var] = made
        return True

    # ------------------------------------------------------------------------------------------------ layers

    def append(self, kind: str, operator: Operator, inputs: tuple[str, ...], path: str | None = None) -> str:
        """A layer without weights, by its name."""
        path = self.path if path is None else path
        name = self.free_name(path or kind)
        shapes = tuple(self.shapes[read] for read in inputs)
        node = FloatNode(
            name=name,
            modules=(path,) if path else (),
            operator=operator,
            inputs=inputs,
            input_shapes=shapes,
            output_shape=operator.out_shape(*shapes),
        )
        assert node.output_shape, kind
        self.layers[name], self.shapes[name] = node, node.output_shape
        return name

    def append_weighted(self, read: str, **fields: Any) -> str:
        name = self.free_name(self.path or fields["kind"])
        modules = (self.path,) if self.path else ()
        fields.setdefault("bias", np.zeros(len(fields["weight"])))
        layer = FloatLayer(
            name=name,
            modules=modules,
            inputs=(read,),
            input_shape=self.shapes[read],
            output_shape=(),
            **fields,
        )
        layer = replace(layer, output_shape=(1, len(layer.weight), *layer.window.out_size()))
        self.layers[name], self.shapes[name] = layer, layer.output_shape
        return name

    def free_name(self, plain: str) -> str:
        """A module that is used twice is two layers, of which the second gets a number."""
        names = itertools.chain([plain], (f"{plain}_{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in self.shapes)

    def change(self, name: str, **changes: Any) -> None:
        """A layer does the current module's work as well."""
        layer = self.layers[name]
        modules = tuple(dict.fromkeys((*layer.modules, self.path) if self.path else layer.modules))
        self.layers[name] = replace(layer, modules=modules, **changes)

    # ------------------------------------------------------------------------------------------------ views

    def view(self, var: Any) -> View:
        """Where a variable's elements are; what waited for it becomes a layer."""
        if var not in self.views:
            self.views[var] = self.function(var)
        return self.views[var]

    def shape_of(self, var: Any) -> Shape:
        """Of a variable; a normalisation's is of three tensors, the first of which is meant."""
        return shape_of(var) if hasattr(var.ty, "shape") else tuple(int(dim) for dim in var.ty.fields[0].shape.values)

    def laid(self, view: View, shape: Shape | None = None) -> str:
        """The name of a tensor that has the view's elements in order, in `shape`, else the canonical one."""
        shape = inside(view.shape) if shape is None else shape
        own = self.shapes[view.layer]
        if view.places is None and own == shape:
            return view.layer
        if view.outside != 0:
            raise probe.UnreadableError(f"a border of {view.outside}")
        places = np.arange(math.prod(own)) if view.places is None else view.places
        operator = Gather(places=places.reshape(shape).astype(np.int32))
        for name, layer in self.layers.items():
            if layer.inputs == (view.layer,) and isinstance(layer, FloatNode) and not layer.limited:
                known = layer.operator
                if isinstance(known, Gather) and np.array_equal(known.places, operator.places):
                    return name
        return self.append("gather", operator, (view.layer,))

    def moved(self, var: Any, call: Any, read: Any) -> View | None:
        """A view, if the operator only moves elements, or puts zeros between them."""
        found = probe.places_of(self.module, call, self.shape_of(read), read)
        if found is None:
            return None
        places, outside = found
        view = self.view(read)
        if (places == OUTSIDE).any() and view.places is not None and (view.places == OUTSIDE).any():
            if view.outside != outside:
                view = View(layer=self.laid(view), shape=view.shape)
        elif view.places is not None and (view.places == OUTSIDE).any():
            outside = view.outside
        if view.places is not None:
            inside = places != OUTSIDE
            places = np.where(inside, view.places.reshape(-1)[np.where(inside, places, 0)], OUTSIDE)
        count = math.prod(self.shapes[view.layer])
        same = places.size == count and np.array_equal(places.reshape(-1), np.arange(count))
        return View(
            layer=view.layer,
            shape=shape_of(var),
            places=None if same else places,
            sole=view.sole and self.uses[read] == 1,
        )

    def bordered(self, view: View, outside: float = 0.0) -> tuple[str, tuple[int, int, int, int]]:
        """A tensor and its border of `outside`: of a view that only adds one, the tensor without it."""
        shape, own = canonical(view.shape), self.shapes[view.layer]
        larger = own[1] == shape[1] and own[2] <= shape[2] and own[3] <= shape[3]
        if view.places is not None and view.outside == outside and larger:
            places = view.places.reshape(shape)
            where = np.argwhere(places[0] == 0)
            if len(where) == 1 and where[0][0] == 0:
                top, left = (int(at) for at in where[0][1:])
                height, width = own[2:]
                border = (top, left, shape[2] - top - height, shape[3] - left - width)
                if min(border) >= 0:
                    wanted = np.full(shape, OUTSIDE)
                    wanted[:, :, top : top + height, left : left + width] = order_of(own)
                    if np.array_equal(places, wanted):
                        return view.layer, border
        return self.laid(view), (0, 0, 0, 0)

    # ------------------------------------------------------------------------------------------------ convolutions

    def _nn_conv2d(self, call: Any, reads: Sequence[Any]) -> View | None:
        options, weight = call.attrs, constant_of(call.args[1])
        plain = (options.data_layout, options.kernel_layout) in (("NCHW", "OIHW"), ("NCW", "OIW"))
        if not plain or weight is None:
            return None
        padding = [int(size) for size in options.padding]
        strides, dilation = ([int(size) for size in sizes] for sizes in (options.strides, options.dilation))
        if weight.ndim == 3:
            weight, strides, dilation = weight[:, :, None], [1, *strides], [1, *dilation]
            padding = [0, padding[0], 0, padding[-1]]
        read, border = self.bordered(self.view(reads[0]))
        name = self.append_weighted(
            read,
            kind="conv2d",
            weight=weight,
            stride=tuple(strides),
            padding=added(padding, border),
            dilation=tuple(dilation),
            groups=int(options.groups),
        )
        return View(layer=name, shape=shape_of(call))

    _nn_conv1d = _nn_conv2d

    def _nn_conv2d_transpose(self, call: Any, reads: Sequence[Any]) -> View | None:
        """A convolution at every phase of the stride, whose results are interleaved.

        Output `s·q + p` sums the inputs `q − t` with the taps `p + border + s·t`; the outputs that lie in the border
        are left out when the phases are interleaved.
        """
        options, weight = call.attrs, constant_of(call.args[1])
        if weight is None or (options.data_layout, options.kernel_layout) not in (("NCHW", "IOHW"), ("NCW", "IOW")):
            return None
        strides, dilation = ([int(size) for size in sizes] for sizes in (options.strides, options.dilation))
        padding = [int(size) for size in options.padding]
        if weight.ndim == 3:
            weight, strides, dilation = weight[:, :, None], [1, *strides], [1, *dilation]
            padding = [0, padding[0], 0, padding[-1]]
        groups = int(options.groups)
        inputs, outputs = weight.shape[:2]
        # O×I/groups×KH×KW, taps with zeros between them where they are dilated
        grouped = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:]).transpose(0, 2, 1, 3, 4)
        weight = grouped.reshape(groups * outputs, inputs // groups, *weight.shape[2:])
        lengths = (d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))
        spread = np.zeros((*weight.shape[:2], *lengths))
        spread[:, :, :: dilation[0], :: dilation[1]] = weight
        taps = [-(-length // stride) for length, stride in zip(spread.shape[2:], strides, strict=True)]
        phases = np.zeros((len(spread), *strides, spread.shape[1], *taps))
        for r, s in np.ndindex(*spread.shape[2:]):
            (down, p), (along, q) = divmod(r, strides[0]), divmod(s, strides[1])
            # a convolution reads forward, so the taps come in the other order
            phases[:, p, q, :, taps[0] - 1 - down, taps[1] - 1 - along] = spread[:, :, r, s]
        count = len(spread) * math.prod(strides)
        read = self.laid(self.view(reads[0]))
        # output_padding may ask for rows beyond the last that reads an input, which are the bias alone
        size = canonical(shape_of(call))[2:]
        missing = [
            max(0, padding[axis] + size[axis] - (self.shapes[read][2 + axis] + taps[axis] - 1) * strides[axis])
            for axis in (0, 1)
        ]
        more = [-(-count // stride) for count, stride in zip(missing, strides, strict=True)]
        name = self.append_weighted(
            read,
            kind="conv2d",
            weight=phases.reshape(count, spread.shape[1], *taps),
            padding=(taps[0] - 1, taps[1] - 1, taps[0] - 1 + more[0], taps[1] - 1 + more[1]),
            groups=groups,
        )
        _, _, height, width = self.shapes[name]
        order = order_of(self.shapes[name]).reshape(len(spread), *strides, height, width).transpose(0, 3, 1, 4, 2)
        order = order.reshape(1, len(spread), height * strides[0], width * strides[1])
        order = order[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
        return View(layer=name, shape=shape_of(call), places=order)

    _nn_conv1d_transpose = _nn_conv2d_transpose

    def _matmul(self, call: Any, reads: Sequence[Any]) -> View | None:
        first, weight = (constant_of(value) for value in call.args)
        if first is None and weight is None:
            return self._product_of_two(call, reads)
        if first is not None and math.prod(first.shape[:-2]) == 1 and len(shape_of(call)) == 3:
            # what mixes rows of 1×rows×columns: rows are the channels inside
            first = first.reshape(first.shape[-2:])
            read = self.laid(self.view(reads[0]))
            name = self.append_weighted(read, kind="conv2d", weight=first[:, :, None, None])
            return View(layer=name, shape=shape_of(call))
        if weight is None:
            return None
        weights = weight.reshape(-1, *weight.shape[-2:])
        if (weights != weights[:1]).any():
            self.reason = "with weights of each row's own"
            return None
        weight = weights[0]
        view = self.view(reads[0])
        shape = view.shape
        if math.prod(shape) == shape[-1]:
            return self._dense(view, weight, shape_of(call))
        # pixel by pixel: channels come first inside
        pixels = math.prod(shape[:-1])
        places = places_of_view(view, self.shapes[view.layer]).reshape(pixels, shape[-1]).T
        own = unless_ordered(places, self.shapes[view.layer])
        turned = View(layer=view.layer, shape=(1, shape[-1], 1, pixels), places=own)
        name = self.append_weighted(self.laid(turned), kind="conv2d", weight=weight.T.reshape(*weight.T.shape, 1, 1))
        order = np.arange(weight.shape[1] * pixels).reshape(weight.shape[1], pixels).T
        return View(layer=name, shape=shape_of(call), places=order)

    def _dense(self, view: View, weight: np.ndarray, shape: Shape) -> View:
        """Over the whole map that lies beneath, wherever its elements went."""
        own: Shape = self.shapes[view.layer]
        places = places_of_view(view, own).reshape(-1)
        if not is_permutation(places, math.prod(own)):
            read = self.laid(replace(view, shape=(1, places.size)))
            own, places = self.shapes[read], np.arange(places.size)
        else:
            read = view.layer
        columns = np.zeros((weight.shape[1], math.prod(own)))
        columns[:, places] = weight.T
        name = self.append_weighted(
            read, kind="dense" if own[2:] == (1, 1) else "conv2d", weight=columns.reshape(-1, *own[1:])
        )
        return View(layer=name, shape=shape)

    # ------------------------------------------------------------------------------------------------ pools

    def _nn_adaptive_avg_pool2d(self, call: Any, reads: Sequence[Any]) -> View | None:
        return self._average(call, reads, (2, 3)) if shape_of(call)[2:] == (1, 1) else None

    def _mean(self, call: Any, reads: Sequence[Any]) -> View | None:
        rank = len(shape_of(call.args[0]))
        axes = {int(axis) % rank for axis in call.attrs.axis} if call.attrs.axis is not None else set(range(1, rank))
        inside = {4: {0: 0, 1: 1, 2: 2, 3: 3}, 3: {0: 0, 1: 1, 2: 3}, 2: {0: 0, 1: 1}}.get(rank)
        if inside is None:
            return None
        found = {inside[axis] for axis in axes} - {0}
        if found == {1}:
            return self._channel_mean(call, reads)
        return self._average(call, reads, tuple(sorted(found))) if found and 1 not in found else None

    def _channel_mean(self, call: Any, reads: Sequence[Any]) -> View:
        read = self.laid(self.view(reads[0]))
        channels = self.shapes[read][1]
        name = self.append_weighted(read, kind="conv2d", weight=np.full((1, channels, 1, 1), 1 / channels))
        return View(layer=name, shape=shape_of(call))

    def _average(self, call: Any, reads: Sequence[Any], axes: Sequence[int]) -> View:
        """Over whole rows, columns or both."""
        read = self.laid(self.view(reads[0]))
        _, channels, *size = self.shapes[read]
        window = [size[axis - 2] if axis in axes or size[axis - 2] == 1 else 1 for axis in (2, 3)]
        if window == [1, 1]:
            return View(layer=read, shape=shape_of(call), sole=self.views[reads[0]].sole and self.uses[reads[0]] == 1)
        whole = window == size
        name = self.append_weighted(
            read,
            kind="pool" if whole else "conv2d",
            weight=np.full((channels, 1, *window), 1 / math.prod(window)),
            stride=(1, 1) if whole else tuple(window),
            groups=channels,
        )
        return View(layer=name, shape=shape_of(call))

    def _nn_avg_pool2d(self, call: Any, reads: Sequence[Any]) -> View | None:
        view = self.view(reads[0])
        window = self._window(call, canonical(view.shape)[2:])
        if window is None:
            return None
        counted = bool(call.attrs.count_include_pad) or not any(window.padding)
        if not counted or not _within(window):
            axes = [_average_taps(window, axis, include=counted) for axis in (0, 1)]
            name = self.append("resample", Resample(rows=axes[0], columns=axes[1]), (self.laid(view),))
            return View(layer=name, shape=shape_of(call))
        read, border = self.bordered(view)
        channels, size = self.shapes[read][1], self.shapes[read][2:]
        padding = added(window.padding, border)
        whole = not any(padding) and window.kernel == size
        if whole and size == (1, 1):
            return View(layer=read, shape=shape_of(call), sole=view.sole and self.uses[reads[0]] == 1)
        name = self.append_weighted(
            read,
            kind="pool" if whole else "conv2d",
            weight=np.full((channels, 1, *window.kernel), 1 / math.prod(window.kernel)),
            stride=(1, 1) if whole else window.stride,
            padding=padding,
            dilation=window.dilation,
            groups=channels,
        )
        return View(layer=name, shape=shape_of(call))

    _nn_avg_pool1d = _nn_avg_pool2d

    def _kernel_max(self, call: Any, reads: Sequence[Any]) -> View | None:
        """The largest of each channel, or of each pixel."""
        shape = shape_of(call)
        read = self.laid(self.view(reads[0]))
        _, channels, height, width = self.shapes[read]
        if math.prod(shape) == channels:
            size = (height, width)
        elif math.prod(shape) == height * width:
            order = order_of(self.shapes[read]).reshape(channels, -1).T.reshape(1, height * width, channels, 1)
            read, size = self.append("gather", Gather(places=order), (read,)), (channels, 1)
        else:
            return None
        operator = MaxPool(window=Window(kernel=size, size=size))
        name = self.append("max_pool", operator, (read,))
        return View(layer=name, shape=shape)

    _kernel_amax = _max = _kernel_max

    def _nn_max_pool2d(self, call: Any, reads: Sequence[Any]) -> View | None:
        view = self.view(reads[0])
        window = self._window(call, canonical(view.shape)[2:])
        if window is None:
            return None
        read, border = self.bordered(view, -math.inf)
        if any(border):
            window = replace(
                window,
                padding=added(window.padding, border),
                size=(self.shapes[read][2], self.shapes[read][3]),
            )
        operator = MaxPool(window=window)
        if not operator.out_shape(self.shapes[read]):
            return None
        return View(layer=self.append("max_pool", operator, (read,)), shape=shape_of(call))

    _nn_max_pool1d = _nn_max_pool2d

    def _window(self, call: Any, size: Sequence[int]) -> Window | None:
        """Of a pool; borders reach as far as its last windows do."""
        options = call.attrs
        if options.layout not in ("NCHW", "NCW"):
            return None
        kernel, stride, dilation = (
            [int(number) for number in numbers] for numbers in (options.pool_size, options.strides, options.dilation)
        )
        padding = [int(number) for number in options.padding]
        if len(kernel) == 1:
            kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
            padding = [0, padding[0], 0, padding[-1]]
        out = canonical(shape_of(call))[2:]
        for axis in (0, 1):
            reach = (out[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
            padding[axis + 2] = max(padding[axis + 2], reach - size[axis] - padding[axis])
        first = (kernel[0], kernel[1]), (stride[0], stride[1]), (dilation[0], dilation[1])
        window = Window(
            kernel=first[0],
            stride=first[1],
            dilation=first[2],
            padding=(padding[0], padding[1], padding[2], padding[3]),
            size=(size[0], size[1]),
        )
        return window if window.out_size() == tuple(out) else None

    def _resampled(self, call: Any, reads: Sequence[Any]) -> View | None:
        """What our converters of interpolations and averages made: tables of places and weights."""
        tables = probe.tables_of(self.module, call)
        view = self.view(reads[0])
        shape = canonical(view.shape)
        if tables is None or len(view.shape) not in (3, 4):
            return None
        own = {2: 2, 3: 3} if len(view.shape) == 4 else {3: 2}
        if not set(tables) <= set(own.values()):
            self.reason = "of channels"
            return None
        axes = []
        for axis in (2, 3):
            table = tables.get(own[axis]) if axis in own else None
            axes.append(table or (np.arange(shape[axis], dtype=np.int32)[:, None], np.ones((shape[axis], 1))))
        if all(places.shape[1] == 1 and (weights == 1).all() for places, weights in axes):
            rows, columns = (places[:, 0] for places, _ in axes)
            chosen = places_of_view(view, self.shapes[view.layer]).reshape(shape)[:, :, rows][..., columns]
            sole = view.sole and self.uses[reads[0]] == 1
            return View(layer=view.layer, shape=shape_of(call), places=chosen, sole=sole)
        operator = Resample(rows=axes[0], columns=axes[1])
        return View(layer=self.append("resample", operator, (self.laid(view),)), shape=shape_of(call))

    # ------------------------------------------------------------------------------------------------ several inputs

    def _concat(self, call: Any, reads: Sequence[Any]) -> View | None:
        rank = len(shape_of(call))
        axis = int(call.attrs.axis) % rank if call.attrs.axis is not None else 0
        place = {4: axis, 3: {0: 0, 1: 1, 2: 3}.get(axis), 2: axis if axis < 2 else None}.get(rank)
        fields = getattr(call.args[0], "fields", None)
        if not place or fields is None:
            return None
        inputs = tuple(
            self.laid(self.view(self.resolved(field)))
            if (array := constant_of(field)) is None
            else self.constant(array)
            for field in fields
        )
        if len(inputs) == 1:
            return View(layer=inputs[0], shape=shape_of(call))
        return View(layer=self.append("concat", Concat(axis=place), inputs), shape=shape_of(call))

    def constant(self, array: np.ndarray) -> str:
        """A tensor that is the same for all inputs: biases of a layer whose weights are 0."""
        first = next(iter(self.shapes))
        one = self.append("gather", Gather(places=np.zeros((1, 1, 1, 1), np.int32)), (first,))
        weight = np.zeros((array.size, 1, 1, 1))
        name = self.append_weighted(one, kind="dense", weight=weight, bias=array.reshape(-1))
        return self.laid(View(layer=name, shape=array.shape))

    def _product_of_two(self, call: Any, reads: Sequence[Any]) -> View | None:
        """Matrix by matrix: all dimensions before the last two are channels inside."""
        shapes = [shape_of(value) for value in call.args]
        batches = [math.prod(shape[:-2]) for shape in shapes]
        if min(map(len, shapes)) < 2 or batches[0] != batches[1]:
            self.reason = "of matrices of which one is for several others"
            return None
        views = [self.view(self.resolved(value)) for value in call.args]
        first, second = (
            self.laid(view, (1, batch, *shape[-2:])) for view, batch, shape in zip(views, batches, shapes, strict=True)
        )
        return View(layer=self.append("matmul", MatMul(), (first, second)), shape=shape_of(call))

    def _nn_log_softmax(self, call: Any, reads: Sequence[Any]) -> View | None:
        return self._along(LogSoftmax, call, reads)

    def _nn_softmax(self, call: Any, reads: Sequence[Any]) -> View | None:
        return self._along(Softmax, call, reads)

    def _along(self, operator: type[Softmax | LogSoftmax], call: Any, reads: Sequence[Any]) -> View | None:
        shape = shape_of(call)
        axis = int(call.attrs.axis) % len(shape)
        place = {4: axis, 3: {1: 1, 2: 3}.get(axis), 2: {1: 1}.get(axis)}.get(len(shape))
        if shape[0] == 1 and place:
            read = self.laid(self.view(reads[0]))
        else:
            place = 2
            laid = (1, math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
            read = self.laid(self.view(reads[0]), laid)
        return View(layer=self.append(operator.kind, operator(axis=place), (read,)), shape=shape)

    def normalised(self, var: Any, found: Normalisation) -> View:
        """Where boxes of the layer beneath are normalised, as it is; else what is normalised become its channels.

        That is also done where each place in a box has a weight of its own, as in layer normalisation.
        """
        view = self.view(found.source)
        shape, count = view.shape, math.prod(view.shape[axis] for axis in found.axes)
        kept = [axis for axis in range(len(shape)) if axis not in found.axes]
        pixels = math.prod(shape[axis] for axis in kept)
        own = self.shapes[view.layer]
        if covers(view, own):
            groups = order_of(tuple(1 if axis in found.axes else length for axis, length in enumerate(shape)))
            laid = np.empty(math.prod(own), np.int64)
            laid[places_of_view(view, own).reshape(-1)] = np.broadcast_to(groups, shape).reshape(-1)
            lengths = _boxes(laid.reshape(own[1:]), count)
            if lengths == (count, 1, 1) or (lengths is not None and not self.weighs(var, found.axes)):
                operator = self._normalise(lengths, found, own[1])
                return replace(view, layer=self.append("normalise", operator, (view.layer,)), sole=True)
        order = order_of(shape).transpose(*found.axes, *kept).reshape(count, pixels)
        places = places_of_view(view, own).reshape(-1)[order]
        turned = View(layer=view.layer, shape=(1, count, 1, pixels), places=unless_ordered(places, own))
        operator = self._normalise((count, 1, 1), found, count)
        name = self.append("normalise", operator, (self.laid(turned),))
        return View(layer=name, shape=shape, places=np.argsort(order.reshape(-1)).reshape(shape))

    def weighs(self, var: Any, axes: Sequence[int]) -> bool:
        """Whether a constant that differs along these axes is multiplied with the variable, or added to it."""
        from tvm import relax

        rank = len(shape_of(var))
        readers = (value for value in self.values if isinstance(value, relax.Call) and var in read_by(value))
        arrays = (constant_of(value) for reader in readers for value in reader.args)
        shapes = [(*[1] * (rank - array.ndim), *array.shape) for array in arrays if array is not None]
        return any(shape[axis] > 1 for shape in shapes for axis in axes)

    def _normalise(self, lengths: Box, found: Normalisation, channels: int) -> Normalise:
        gamma, beta = np.ones(channels), np.zeros(channels)
        return Normalise(lengths=lengths, epsilon=found.epsilon, gamma=gamma, beta=beta)

    # -------------------------------------------------------------------------------------- element by element

    def elementwise(self, name: str, var: Any, call: Any, reads: Sequence[Any]) -> bool:
        if any(array is not None and array.size > MOST_CONSTANTS for array in map(constant_of, call.args)):
            return False
        roots = {root for read in reads for root in self.roots(read)}
        if len(roots) > 1:
            return self.combined(name, var, call, reads)
        read = reads[0]
        if len(reads) == 1 and read in self.views:
            view = self.views[read]
            changed = self.absorbed(name, call, view, view.sole and self.uses[read] == 1)
            if changed:
                self.views[var] = replace(view, sole=True, shape=view.shape)
                return True
        if not self.fits(call, roots.pop()):
            if (view := self.by_element(name, call, read)) is not None:
                self.views[var] = view
                return True
            self.reason = "with a constant that differs from pixel to pixel, or with another shape than it reads"
            return False
        self.waiting[var] = (name, call, self.path)
        return True

    def by_element(self, name: str, call: Any, read: Any) -> View | None:
        """Of what is scaled or moved by constants that differ from place to place, every element is a channel."""
        view = self.view(read)
        count = math.prod(view.shape)
        if count > MOST_CONSTANTS or shape_of(call) != view.shape:
            return None
        places = unless_ordered(places_of_view(view, self.shapes[view.layer]), self.shapes[view.layer])
        name_of_layer = self.laid(replace(view, shape=(1, count), places=places))
        flat = View(layer=name_of_layer, shape=view.shape)
        affine = self.affine(name, call, flat)
        if affine is None:
            return None
        weight = affine[0].reshape(-1, 1, 1, 1)
        layer = self.append_weighted(flat.layer, kind="conv2d", weight=weight, bias=affine[1], groups=count)
        return View(layer=layer, shape=view.shape)

    def roots(self, var: Any) -> set[Any]:
        """The variables with views that a waiting one is computed from."""
        if var in self.views:
            return {var}
        return {root for read in read_by(self.waiting[var][1]) for root in self.roots(self.resolved(read))}

    def fits(self, call: Any, root: Any) -> bool:
        """Whether constants are numbers, or numbers of channels, of a tensor of the root's shape."""
        view = self.views[root]
        if hasattr(call.ty, "shape") and shape_of(call) != view.shape:
            return False
        return all(
            self.by_channel(view, array) is not None
            for array in map(constant_of, call.args)
            if array is not None and array.size > 1 and not call.op.name.endswith("batch_norm")
        )

    def by_channel(self, view: View, array: np.ndarray) -> np.ndarray | None:
        """A constant that is broadcast to the view, as a number for each channel of the layer beneath."""
        own = self.shapes[view.layer]
        if array.size == 1:
            return np.full(own[1], array.reshape(-1)[0])
        try:
            whole = np.broadcast_to(array, view.shape).reshape(-1)
        except ValueError:
            return None
        places = places_of_view(view, own).reshape(-1)
        if not is_injection(places):
            return None
        laid = np.full(math.prod(own), np.nan)
        laid[places] = whole
        rows = laid.reshape(own[1], -1)
        with np.errstate(all="ignore"):
            low, high = np.fmin.reduce(rows, 1), np.fmax.reduce(rows, 1)
        # of channels that nobody sees any number will do
        return None if (low != high)[~np.isnan(low)].any() else np.nan_to_num(low)

    def absorbed(self, name: str, call: Any, view: View, sole: bool) -> bool:
        """Whether the layer beneath could take the operator over."""
        layer = self.layers.get(view.layer)
        if layer is None or not sole or not is_injection(places_of_view(view, self.shapes[view.layer]).reshape(-1)):
            return False
        if any(view.layer in other.inputs for other in self.layers.values()):
            return False
        limits = limits_of(name, call)
        if limits is not None:
            low, high = max(layer.low, limits[0]), min(layer.high, limits[1])
            if isinstance(layer, FloatLayer) and layer.kind == "pool":
                return False
            if low >= high or isinstance(getattr(layer, "operator", None), Function | Softmax):
                return False
            self.change(layer.name, low=low, high=high)
            return True
        affine = self.affine(name, call, view)
        if affine is None:
            return False
        factor, moved = affine
        operator = getattr(layer, "operator", None)
        if isinstance(operator, Normalise) and not layer.limited:
            assert operator.gamma is not None
            assert operator.beta is not None
            gamma, beta = operator.gamma * factor, operator.beta * factor + moved
            self.change(layer.name, operator=replace(operator, gamma=gamma, beta=beta))
            return True
        if isinstance(operator, MatMul) and not layer.limited and not moved.any():
            if (factor != factor[0]).any() or factor[0] <= 0:
                return False
            self.change(layer.name, operator=replace(operator, factor=operator.factor * float(factor[0])))
            return True
        if not isinstance(layer, FloatLayer) or layer.kind == "pool":
            return False
        low, high = layer.low, layer.high
        if layer.limited:
            # a positive number goes through a clamp
            if moved.any() or (factor != factor[0]).any() or factor[0] <= 0:
                return False
            low, high = low * factor[0], high * factor[0]
        weight = layer.weight * factor[:, None, None, None]
        self.change(layer.name, weight=weight, bias=layer.bias * factor + moved, low=low, high=high)
        return True

    def affine(self, name: str, call: Any, view: View) -> tuple[np.ndarray, np.ndarray] | None:
        """x·factor + moved, for each channel of the layer beneath."""
        if name == "nn.batch_norm":
            gamma, beta, mean, variance = (constant_of(value) for value in call.args[1:5])
            if gamma is None or beta is None or mean is None or variance is None or view.places is not None:
                return None
            rank = len(view.shape)
            if int(call.attrs.axis) % rank != 1 or self.shapes[view.layer][1] != len(gamma):
                return None
            factor = 1 / np.sqrt(variance + float(call.attrs.epsilon)) * gamma
            return factor, beta - mean * factor
        if name not in ("add", "subtract", "multiply", "divide") or len(call.args) != 2:
            return None
        given = [constant_of(value) for value in call.args]
        place = 1 if given[1] is not None else 0
        array = given[place]
        if array is None or shape_of(call) != view.shape:
            return None
        found = self.by_channel(view, array)
        if found is None:
            return None
        ones, zeros = np.ones(len(found)), np.zeros(len(found))
        if name == "add":
            return ones, found
        if name == "subtract":
            return (ones, -found) if place == 1 else (-ones, found)
        if name == "multiply":
            return found, zeros
        return (1 / found, zeros) if place == 1 and (found != 0).all() else None

    def combined(self, name: str, var: Any, call: Any, reads: Sequence[Any]) -> bool:
        """An operator of two tensors."""
        if name not in ("add", "subtract", "multiply", "divide") or len(call.args) != 2 or len(reads) != 2:
            self.reason = "of several tensors"
            return False
        views = [self.view(read) for read in reads]
        shape = shape_of(var)
        if name == "divide":
            layer = self.append("function", Function(real=_reciprocal), (self.laid(views[1]),))
            views[1] = View(layer=layer, shape=views[1].shape)
        product = name in ("multiply", "divide")
        operator: Operator = Product() if product else Sum(signs=(1, 1 if name == "add" else -1))
        first, second = views
        equal = first.shape == second.shape == shape and self.shapes[first.layer] == self.shapes[second.layer]
        ordered = first.places is None and second.places is None
        if equal and (
            ordered
            or (
                first.places is not None
                and second.places is not None
                and np.array_equal(first.places, second.places)
                and covers(first, self.shapes[first.layer])
            )
        ):
            layer = self.append(operator.kind, operator, (first.layer, second.layer))
            self.views[var] = View(layer=layer, shape=shape, places=first.places)
            return True
        inputs = []
        for view in views:
            full = (*[1] * (len(shape) - len(view.shape)), *view.shape)
            if len(full) > 4 and full != shape:
                return False
            inputs.append(self.laid(view, inside(full) if shape[0] == 1 else inside((1, *full))))
        layer = self.append(operator.kind, operator, (inputs[0], inputs[1]))
        self.views[var] = View(layer=layer, shape=shape)
        return self.shapes[layer] == inside(shape)

    def function(self, var: Any) -> View:
        """What waited for `var`, from the one variable that it is computed from, as a layer."""
        (root,) = self.roots(var)
        view = self.views[root]
        if not covers(view, self.shapes[view.layer]):
            view = View(layer=self.laid(view), shape=view.shape)
            if self.shapes[view.layer] != inside(view.shape):
                raise AssertionError(view)
        steps = self.steps(var, root)
        paths = [path for _, _, _, path in steps if path]
        keep, self.path = self.path, paths[-1] if paths else self.path
        try:
            name = self.plain(steps, root, view)
            if name is None:
                # of a permuted view the function sees the layer's own order, in which channels are known
                bindings = [(step, call) for step, _, call, _ in steps]
                real = probe.function_of(self.module, bindings, root, view.shape, self.resolved)
                shape = self.shapes[view.layer]
                places = None if view.places is None else view.places.reshape(-1)
                name = self.append("function", Function(real=_in_order(real, shape, view.shape, places)), (view.layer,))
            modules = tuple(dict.fromkeys((*self.layers[name].modules, *paths)))
            self.layers[name] = replace(self.layers[name], modules=modules)
        finally:
            self.path = keep
        return View(layer=name, shape=view.shape, places=view.places)

    def steps(self, var: Any, root: Any) -> list[tuple[Any, str, Any, str]]:
        """The waiting bindings between `root` and `var`, in order."""
        wanted, stack = set(), [var]
        while stack:
            at = stack.pop()
            if at == root or at in wanted:
                continue
            wanted.add(at)
            stack += [self.resolved(read) for read in read_by(self.waiting[at][1])]
        return [(at, *self.waiting[at]) for at in self.waiting if at in wanted]

    def plain(self, steps: Sequence[tuple[Any, str, Any, str]], root: Any, view: View) -> str | None:
        """A depthwise convolution, if all that is done is to scale, to move and at last to clamp."""
        own = self.shapes[view.layer]
        factor, moved, low, high = np.ones(own[1]), np.zeros(own[1]), -math.inf, math.inf
        before = root
        for var, name, call, _ in steps:
            if [self.resolved(read) for read in read_by(call)] != [before]:
                return None
            before = var
            limits = limits_of(name, call)
            if limits is not None:
                low, high = max(low, limits[0]), min(high, limits[1])
                continue
            affine = self.affine(name, call, view)
            if affine is None or low > -math.inf or high < math.inf:
                return None
            factor, moved = factor * affine[0], moved * affine[0] + affine[1]
        if low >= high:
            return None
        return self.append_weighted(
            view.layer,
            kind="conv2d",
            weight=factor.reshape(-1, 1, 1, 1),
            bias=moved,
            groups=own[1],
            low=low,
            high=high,
        )


def _reciprocal(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        return np.float32(1) / x


def _boxes(groups: np.ndarray, count: int) -> Box | None:
    """The lengths of the boxes that the numbers of C×H×W are equal in, of `count` elements each, if they are boxes."""
    first = groups == groups[0, 0, 0]
    lengths = tuple(int(first.any(tuple(other for other in range(3) if other != axis)).sum()) for axis in range(3))
    whole = all(size % length == 0 for size, length in zip(groups.shape, lengths, strict=True))
    if math.prod(lengths) != count or not whole:
        return None
    apart = boxed(groups[None], (lengths[0], lengths[1], lengths[2]))
    alike = (apart == apart[:, :, :1, :, :1, :, :1]).all()
    return (lengths[0], lengths[1], lengths[2]) if alike else None


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


def _in_order(
    real: Callable[[np.ndarray], np.ndarray], own: Shape, shape: Shape, places: np.ndarray | None
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of N×C×H×W, by one of a single input of `shape`, whose elements are those at `places`."""

    def compute(x: np.ndarray) -> np.ndarray:
        found = np.empty(x.shape, np.float32)
        for number, one in enumerate(x):
            flat = one.reshape(-1)
            given = flat if places is None else flat[places]
            result = real(np.ascontiguousarray(given.reshape(shape), np.float32)).reshape(-1)
            if places is None:
                found[number] = result.reshape(x.shape[1:])
            else:
                found[number].reshape(-1)[places] = result
        return found

    return compute


def _average_taps(window: Window, axis: int, *, include: bool) -> tuple[np.ndarray, np.ndarray]:
    """What the outputs along an axis read, and how much of each: one over how many there are."""
    outs, size = window.out_size()[axis], window.size[axis]
    places = np.zeros((outs, window.kernel[axis]), np.int32)
    weights = np.zeros((outs, window.kernel[axis]))
    for out in range(outs):
        inside = [place for place in window.places(axis, out) if 0 <= place < size]
        places[out, : len(inside)] = inside
        weights[out, : len(inside)] = 1 / (window.kernel[axis] if include else max(1, len(inside)))
    return places, weights


def _within(window: Window) -> bool:
    """Whether the borders are what the network says, and not longer for the last windows."""
    return window.padding[0] >= window.padding[2] and window.padding[1] >= window.padding[3]
