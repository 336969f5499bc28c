"""What holds for all finite numbers, and so for quantised networks: comparisons with infinity, and what hangs on them.

PyTorch's attention gives 0 where a whole row of scores is −∞. Integers are never infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from tvmflow.integer.views import constant_of, shape_of

PASSED_ON = ("reshape", "broadcast_to", "expand_dims", "squeeze", "permute_dims", "kernel.any", "kernel.all")
"""Operators and kernels that give what all of their elements are."""


def chosen(bindings: Sequence[Any], resolved: Callable[[Any], Any]) -> dict[Any, Any]:
    """The results of `where` whose condition is known → the variable that they always are."""
    known: dict[Any, bool] = {}
    found = {}
    for binding in bindings:
        call = binding.value
        if not isinstance(call, relax.Call):
            continue
        name = name_of(call)
        read = call.args[1].fields if name.startswith("kernel.") else call.args
        given = [known.get(resolved(value)) for value in read if isinstance(value, relax.Var)]
        if name in ("isinf", "isnan") or (name in ("equal", "kernel.equal") and any(map(_is_infinite, read))):
            known[binding.var] = False
        elif name == "isfinite":
            known[binding.var] = True
        elif name == "logical_not" and given[0] is not None:
            known[binding.var] = not given[0]
        elif name in PASSED_ON and given[:1] != [None] and len(given) == 1:
            known[binding.var] = bool(given[0])
        elif name == "where" and (condition := known.get(resolved(read[0]))) is not None:
            taken = read[1 if condition else 2]
            if isinstance(taken, relax.Var) and shape_of(taken) == shape_of(binding.var):
                found[binding.var] = taken
    return found


def name_of(call: Any) -> str:
    """Of an operator, or of a kernel with "kernel." before it."""
    name = call.op.name.removeprefix("relax.")
    return f"kernel.{call.args[0].name_hint.rstrip('0123456789')}" if name == "call_tir" else name


def _is_infinite(value: Any) -> bool:
    array = constant_of(value)
    return array is not None and bool(np.isinf(array).all())
