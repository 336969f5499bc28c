"""Arithmetic element by element: folded into the layer before, a sum or a product, or a function of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tvmflow.integer import functions, probe
from tvmflow.integer.draft import Draft
from tvmflow.integer.graph import FloatLayer
from tvmflow.integer.operators import Function, MatMul, Normalise, Operator, Product, Shape, Softmax, Sum
from tvmflow.integer.views import (
    View,
    constant_of,
    covers,
    inside,
    is_injection,
    limits_of,
    places_of_view,
    read_by,
    shape_of,
    unless_ordered,
)

COMPARISONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}
MOST_CONSTANTS = 1 << 16
"""Elements of a constant that an element-wise operator may have, as it is laid out once for each element."""


class Elementwise(Draft):
    """Reads what is computed element by element."""

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
            if (made := self.by_element(name, call, read)) is not None:
                self.views[var] = made
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
        """An operator of two tensors. Those are compared by their difference."""
        name = name.removeprefix("kernel.") if name.removeprefix("kernel.") in COMPARISONS else name
        known = name in ("add", "subtract", "multiply", "divide", *COMPARISONS)
        if not known or len(call.args) != 2 or len(reads) != 2:
            self.reason = "of several tensors"
            return False
        views = [self.view(read) for read in reads]
        shape = shape_of(var)
        if name == "divide":
            layer = self.append(
                "function", Function(real=_reciprocal, steps=functions.RECIPROCAL), (self.laid(views[1]),)
            )
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
            layer = self.compared(name, self.append(operator.kind, operator, (first.layer, second.layer)))
            self.views[var] = View(layer=layer, shape=shape, places=first.places)
            return True
        inputs = []
        for view in views:
            full = (*[1] * (len(shape) - len(view.shape)), *view.shape)
            if len(full) + (shape[0] != 1) > 4 and full != shape:
                self.reason = "of tensors of which one is broadcast along more than three axes"
                return False
            inputs.append(self.laid(view, inside(full) if shape[0] == 1 else inside((1, *full))))
        layer = self.compared(name, self.append(operator.kind, operator, (inputs[0], inputs[1])))
        self.views[var] = View(layer=layer, shape=shape)
        return self.shapes[layer] == inside(shape)

    def compared(self, name: str, difference: str) -> str:
        """The layer itself or, of a comparison, 1 where it holds of the difference and 0, and 0 elsewhere."""
        if name not in COMPARISONS:
            return difference
        holds = COMPARISONS[name]
        return self.append("function", Function(real=lambda x: holds(x, 0).astype(np.float32)), (difference,))

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
                found = functions.steps_of(
                    [step[:3] for step in steps], root, self.resolved, lambda value: self.operand(view, value)
                )
                function = Function(real=_in_order(real, shape, view.shape, places), steps=found)
                name = self.append("function", function, (view.layer,))
            modules = tuple(dict.fromkeys((*self.layers[name].modules, *paths)))
            self.layers[name] = replace(self.layers[name], modules=modules)
        finally:
            self.path = keep
        return View(layer=name, shape=view.shape, places=view.places)

    def operand(self, view: View, value: Any) -> np.ndarray:
        """A constant that is broadcast to the view, as numbers for the layer beneath."""
        array = constant_of(value)
        assert array is not None
        if array.size == 1:
            return array.reshape(())
        found = self.by_channel(view, array)
        if found is None:
            raise functions.UnsaidError
        return found.reshape(-1, 1, 1)

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
