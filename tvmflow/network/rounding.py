"""How much of a network's outputs is rounding: the reference again, with every value on the way moved a little.

This is Monte Carlo arithmetic (D. S. Parker, Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic, UCLA CSD-970002, 1997). Where a result depends on how its values were rounded, as a constant less its own
mean does, it moves by much; where it doesn't, it moves by as little as its values.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

MOVED_BY: dict[str, float] = {"float64": 2**-48, "float32": 2**-19, "float16": 2**-10, "bfloat16": 2**-7}
"""By how much, relative to itself, a value of each dtype is moved at most.

It is what a sum of a thousand terms may be off by in another order: sixteen times the distance between two numbers of
the dtype, but once that distance for the narrow ones, whose sums are kept in wider numbers.
"""
EVALUATIONS = 2
"""Of the reference with moved values: one alone may by chance leave a network with few outputs where it was."""
EXACT = frozenset(
    {
        *("_to_copy", "abs", "amax", "amin", "arange", "cat", "ceil", "clamp", "clamp_max", "clamp_min", "clone"),
        *("constant_pad_nd", "copy", "embedding", "empty", "empty_like", "flip", "floor", "full", "full_like"),
        *("gather", "index", "index_select", "masked_fill", "max", "max_pool2d_with_indices"),
        *("max_pool3d_with_indices", "maximum", "min", "minimum", "neg", "new_full", "new_ones", "new_zeros", "ones"),
        *("ones_like", "relu", "round", "scalar_tensor", "sign", "sort", "stack", "topk", "trunc", "where", "zeros"),
        "zeros_like",
    }
)
"""PyTorch's operators that select, copy or make values: nothing in their results is rounded."""


MOVING: contextvars.ContextVar[int | None] = contextvars.ContextVar("MOVING", default=None)
"""The seed of the moves while a reference is computed with moved values: for references that aren't PyTorch's."""


def rounding_of(
    reference: Callable[..., tuple[np.ndarray, ...]], inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> tuple[float, ...]:
    """How far each of `outputs` = reference(*inputs) moves, absolutely, if values move by MOVED_BY: `Vector.rounding`.

    Moved are the inputs and the results of operators, where the reference computes with PyTorch or looks at `MOVING`.
    Elements that
    aren't finite in both evaluations, and outputs that are no floats, count as not moved.
    """
    found = [0.0] * len(outputs)
    for seed in range(EVALUATIONS):
        generator = np.random.default_rng(seed)
        with _moving_pytorch(seed), _moving_others(seed):
            others = reference(*(_moved(generator, array) for array in inputs))
        for place, (output, other) in enumerate(zip(outputs, others, strict=True)):
            if str(output.dtype) in MOVED_BY and output.shape == other.shape:
                both = np.isfinite(output.astype(np.float64)) & np.isfinite(other.astype(np.float64))
                difference = np.abs(other[both].astype(np.float64) - output[both].astype(np.float64))
                found[place] = max(found[place], float(difference.max(initial=0.0)))
    return tuple(found)


def _moved(generator: np.random.Generator, array: np.ndarray) -> np.ndarray:
    if str(array.dtype) not in MOVED_BY:
        return array.copy()
    step = MOVED_BY[str(array.dtype)] * generator.uniform(-1, 1, array.shape)
    return np.asarray(array.astype(np.float64) * (1 + step)).astype(array.dtype)


@contextlib.contextmanager
def _moving_others(seed: int) -> Iterator[None]:
    token = MOVING.set(seed)
    try:
        yield
    finally:
        MOVING.reset(token)


def _moving_pytorch(seed: int) -> contextlib.AbstractContextManager[Any]:
    """While it lasts, what PyTorch's operators compute is moved; where PyTorch isn't at work, it does nothing."""
    if "torch" not in sys.modules:
        return contextlib.nullcontext()
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = torch.Generator().manual_seed(seed)

    def moved(value: Any) -> Any:
        step = MOVED_BY.get(str(value.dtype).removeprefix("torch.")) if isinstance(value, torch.Tensor) else None
        if step is None:
            return value
        return value * (1 + step * (2 * torch.rand(value.shape, generator=generator, dtype=value.dtype) - 1))

    class Moving(TorchDispatchMode):
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            schema = getattr(func, "_schema", None)
            name = func.__name__.partition(".")[0]
            # what shares its memory with an operand, a weight say, is that operand
            if schema is None or func.is_view or schema.is_mutable or name in EXACT:
                return result
            return type(result)(map(moved, result)) if isinstance(result, tuple | list) else moved(result)

    return Moving()
