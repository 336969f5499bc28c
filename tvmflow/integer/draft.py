"""A float graph while it is read: its layers so far, and where the elements of Relax's variables lie in them."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer import probe
from tvmflow.integer.graph import AnyFloatLayer, FloatLayer, FloatNode
from tvmflow.integer.network import canonical
from tvmflow.integer.normalisations import Normalisation
from tvmflow.integer.operators import OUTSIDE, Gather, Operator, Shape
from tvmflow.integer.views import View, inside, order_of, read_by, shape_of
from tvmflow.spec import Program

QUANTISED = "quantised"
"""What a network is read for, if it isn't compiled in float32."""


class Draft:
    """What converters of operators work on. `path` is the module whose operator is read, `reason` why it can't be, and
    `fields` are the numbers of its results that somebody reads, where it has several.

    `finite`: there will be neither NaN nor infinity.
    """

    def __init__(self, module: Any, program: Program, purpose: str) -> None:
        self.module, self.program, self.purpose = module, program, purpose
        self.main = module["main"]
        self.layers: dict[str, AnyFloatLayer] = {}
        self.views: dict[Any, View] = {}
        self.waiting: dict[Any, Any] = {}  # element-wise bindings that belong to no layer yet, by their variables
        self.same: dict[Any, Any] = {}  # other names of variables
        self.tuples: dict[Any, Sequence[Any]] = {}
        self.fields: set[int] = set()
        self.read_fields: dict[Any, set[int]] = defaultdict(set)  # the same of each variable
        self.missing: dict[str, list[str]] = defaultdict(list)  # an operator, with what is wrong with it → where
        self.uses: Counter[Any] = Counter()
        self.normal: dict[Any, Normalisation] = {}
        self.values: list[Any] = []
        self.shapes: dict[str, Shape] = {}
        self.path = self.reason = ""
        self.finite = purpose == QUANTISED

    def reads(self, binding: Any) -> list[Any]:
        """The variables that a binding is computed from, each as often as it reads it."""
        if binding.var in self.normal:
            return [self.normal[binding.var].source]
        return [self.resolved(var) for var in read_by(binding.value)]

    def resolved(self, var: Any) -> Any:
        while var in self.same:
            var = self.same[var]
        return var

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
        if not math.isfinite(view.outside):
            raise probe.UnreadableError(f"a border of {view.outside}")
        places = np.arange(math.prod(own)) if view.places is None else view.places
        operator = Gather(places=places.reshape(shape).astype(np.int32), outside=view.outside)
        for name, layer in self.layers.items():
            if layer.inputs == (view.layer,) and isinstance(layer, FloatNode) and not layer.limited:
                known = layer.operator
                if not isinstance(known, Gather) or known.outside != operator.outside:
                    continue
                if np.array_equal(known.places, operator.places):
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
            outside=outside,
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

    def function(self, var: Any) -> View:
        """What waited for `var`, from the one variable that it is computed from, as a layer."""
        raise NotImplementedError
