"""Interpolation as weighted sums of few places along each axis: the kernel that readers of PyTorch and ONNX share.

Its tables of places and weights are constants beside it, by which the quantised graph knows it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

AXES, WEIGHTED = "tvmflow.axes", "tvmflow.weighted_axes"
"""Attributes of these kernels: the axes that have tables of places, and those that have weights as well."""
MOST_TAPS = 16
"""Up to so many inputs of one output are summed in one kernel; more take a kernel for each axis."""


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Along one axis: `inputs[o, t]`, int32, says which inputs output o is made of, `weights[o, t]` how much of each.

    What is summed is summed in the dtype of the weights.
    """

    axis: int
    inputs: np.ndarray
    weights: np.ndarray

    @property
    def count(self) -> int:
        return self.inputs.shape[1]

    @property
    def copies(self) -> bool:
        """Whether outputs are inputs, with nothing to be multiplied."""
        return bool(self.count == 1 and (self.weights == 1).all())

    def does_nothing(self, length: int) -> bool:
        """To an axis of that length, of which the first few are taken by tables that are shorter."""
        return self.copies and np.array_equal(self.inputs[:, 0], np.arange(length))


def resample(emit: Callable[..., Any], x: Any, tables: Sequence[Taps]) -> Any:
    """Apply `tables` along their axes, in one kernel if few inputs make an output, else axis by axis.

    `emit(make, *given, facts)` gives a Relax value of a kernel: `make` gets `given`, a Relax value and arrays, as
    te.Tensor, and gives the te.Tensor that is computed from them; `facts` become attributes of the kernel.
    """
    left = [table for table in tables if not table.does_nothing(int(x.ty.shape[table.axis]))]
    if not left:
        return x
    together = int(np.prod([table.count for table in left])) <= MOST_TAPS
    for some in [left] if together else [[table] for table in left]:
        make, arrays, facts = _kernel(some)
        x = emit(make, x, *arrays, facts=facts)
    return x


def _kernel(tables: Sequence[Taps]) -> tuple[Callable[..., Any], tuple[np.ndarray, ...], Mapping[str, Any]]:
    """∑ over the taps of all axes of weights · inputs; a copy where there is nothing to be summed."""
    from tvm import te

    place = {table.axis: index for index, table in enumerate(tables)}
    weighted = [table for table in tables if not table.copies]

    def make(x: Any, *given: Any) -> Any:
        inputs, weights = given[: len(tables)], dict(zip((t.axis for t in weighted), given[len(tables) :], strict=True))
        shape = [len(tables[place[axis]].inputs) if axis in place else dim for axis, dim in enumerate(x.shape)]
        steps = {table.axis: te.reduce_axis((0, table.count), name=f"tap{table.axis}") for table in weighted}

        def read(*index: Any) -> Any:
            source = tuple(
                inputs[place[axis]][at, steps.get(axis, 0)] if axis in place else at for axis, at in enumerate(index)
            )
            value = x[source].astype(str(weighted[0].weights.dtype)) if weighted else x[source]
            for axis, table in weights.items():
                value = value * table[index[axis], steps[axis]]
            return te.sum(value, list(steps.values())) if steps else value

        result = te.compute(shape, read, name="resampled")
        if not weighted or result.dtype == x.dtype:
            return result
        return te.compute(shape, lambda *index: result[index].astype(x.dtype), name="narrowed")

    facts = {AXES: [table.axis for table in tables], WEIGHTED: [table.axis for table in weighted]}
    return make, (*(table.inputs for table in tables), *(table.weights for table in weighted)), facts
