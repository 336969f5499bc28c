"""Kernels for quantised layers on NVIDIA GPUs, by the contract of `tvmflow.schedules.integer_tasks`.

Between kernels a tensor is pixels × words: an int32 holds four neighbouring channels, which one `__dp4a` multiplies by
four weights. Words of a pixel are filled up to loads of 16 bytes. Each kernel is one launch of one dimension and
requantises what it computes, so nothing but bytes goes through memory. The first rule that fits makes the kernel; the
last fits all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmflow.schedules.integer_tasks import Rule, Tensor, rule_of

if TYPE_CHECKING:
    from tvmflow.spec import Target

BYTES = 4
"""Channels in a word."""
VECTOR = 4
"""Words in the widest load."""


RULES: dict[str, Rule] = {
    "node": rule_of("node", __name__),
    "product": rule_of("product", __name__),
    "depthwise": rule_of("depthwise", __name__),
    "plain": rule_of("plain", __name__),
}


def joins(group: Sequence[Any], layer: Any, target: Target) -> bool:
    """Each layer is a launch of its own."""
    return False


def slice_of(target: Target) -> int | None:
    """Kernels write tensors of their own."""
    return None


def form(layer: Any, readers: Sequence[Any], target: Target) -> Tensor:
    """How the result of `layer` lies in memory for other kernels. Sums over channels want signed bytes."""
    channels, height, width = layer.output_shape[1:]
    words = -(-channels // (BYTES * VECTOR)) * VECTOR
    signed = layer.dtype == "int8" or all(getattr(reader, "groups", 1) == 1 for reader in readers)
    return Tensor(
        channels=channels,
        size=(height, width),
        dtype="int8" if signed else layer.dtype,
        shape=(height * width, words),
        offset=-128 if signed and layer.dtype == "uint8" else 0,
        packed=True,
    )
