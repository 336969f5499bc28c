"""One operator of an exported PyTorch program, as its converter sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from tvm import relax

Converter = Callable[["Call"], Any]
"""Gives the operator's result, or a list of them, as Relax values."""

OPAQUE = 8
"""TVM's OpPatternKind of kernels that fuse with none."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """`arguments` are in the order of the operator's schema, defaults filled in, tensors as Relax values."""

    node: torch.fx.Node
    builder: relax.BlockBuilder
    arguments: tuple[Any, ...]
    overload: torch._ops.OpOverload

    @property
    def operator(self) -> str:
        """PyTorch's name of it, without the overload's, "adaptive_avg_pool2d" for one."""
        return self.overload._schema.name.partition("::")[2].lstrip("_")

    @property
    def result(self) -> torch.Tensor:
        """Shape and dtype of the (first) result, as PyTorch derived them."""
        value = self.node.meta["val"]
        return value[0] if isinstance(value, tuple | list) else value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.result.shape)

    @property
    def dtype(self) -> str:
        return dtype_name(self.result.dtype)

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by their names in the schema."""
        return dict(zip((argument.name for argument in self.overload._schema.arguments), self.arguments, strict=True))

    def emit(self, value: relax.Expr) -> relax.Var:
        return self.builder.emit(value)

    def compute(
        self,
        name: str,
        make: Callable[..., Any],
        *tensors: Any,
        apart: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> relax.Var:
        """A kernel: `make` gets the tensors as te.Tensor and gives the te.Tensor that is computed from them.

        Several results, a list, are a tuple. `apart`: it fuses with no other kernel, for what reads it reads each
        element often, and would compute it as often. `facts` become attributes of the kernel.
        """
        given = (self.tensor(value) for value in tensors)
        attributes = {**(facts or {}), **({"op_pattern": OPAQUE} if apart else {})}
        return self.builder.emit_te(make, *given, primfunc_name_hint=name, primfunc_attrs=attributes or None)

    def tensor(self, value: Any, dtype: str | None = None) -> relax.Expr:
        """A Relax value as it is, or of that dtype; an array or a number as a constant."""
        from tvm import relax

        if isinstance(value, np.ndarray | bool | int | float):
            return relax.const(value, dtype or (None if isinstance(value, np.ndarray) else self.dtype))
        if dtype is not None and dtype_of(value) != dtype:
            return self.emit(relax.op.astype(value, dtype))
        return value


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(value: relax.Expr) -> str:
    return str(value.ty.dtype.dtype)


def shape_of(value: relax.Expr) -> tuple[int, ...]:
    return tuple(int(dim) for dim in value.ty.shape.values)


def is_floating(dtype: str) -> bool:
    return "float" in dtype


def is_tensor(value: Any) -> bool:
    from tvm import relax

    return isinstance(value, relax.Expr) and isinstance(getattr(value, "ty", None), relax.TensorType)


def axes_of(dim: int | Sequence[int] | None, rank: int) -> list[int]:
    """The axes that a reduction's `dim` means, counted from the front; all of them if it is None or empty."""
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(rank))
    return sorted(axis % max(rank, 1) for axis in ([dim] if isinstance(dim, int) else dim)) if rank else []


def each(value: int | float | Sequence[Any], count: int) -> tuple[Any, ...]:
    """What PyTorch takes as one number for all axes or as one for each."""
    values = (value,) if isinstance(value, int | float) else tuple(value)
    return values * count if len(values) == 1 else values


def size(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)
