"""Repetition of a tensor along its axes reads its places from tables.

TVM's own form takes remainders of the place, in loops that LLVM 22 vectorises wrongly with AVX-512 where several axes
are repeated: a tensor of 2×3×4×5 repeated 7×6×4×2 times came out with elements from beyond its end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te


def tiled(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A kernel for `relax.tile` of static shape, by a table for each axis that is repeated."""
    data, shape = call.args[0], [int(length) for length in call.args[0].ty.shape]
    times = [int(count) for count in call.attrs.repeats]
    rank = max(len(shape), len(times))
    counts, lengths = [1] * (rank - len(times)) + times, [1] * (rank - len(shape)) + shape
    made = [length * count for length, count in zip(lengths, counts, strict=True)]
    repeated = [axis for axis in range(rank) if counts[axis] > 1 and lengths[axis] > 1]
    tables = [relax.const(np.tile(np.arange(lengths[axis], dtype=np.int32), counts[axis])) for axis in repeated]

    def make(x: te.Tensor, *given: te.Tensor) -> te.Tensor:
        of = dict(zip(repeated, given, strict=True))

        def read(*place: Any) -> Any:
            at = [of[axis][place[axis]] if axis in of else place[axis] for axis in range(rank)]
            return x[tuple(0 if lengths[axis] == 1 else at[axis] for axis in range(rank - len(shape), rank))]

        return te.compute(made, read, name="tiled")

    return builder.call_te(make, data, *tables, primfunc_name_hint="tile")
