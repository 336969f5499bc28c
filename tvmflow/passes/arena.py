"""One static arena for all that lives only for a while: offsets at which nothing overlaps that lives together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvmflow.passes.lifetimes import Tensor, live_bytes

ALIGNMENT = 16
"""Bytes; what a vector of MVE is long."""


def pack(tensors: Sequence[Tensor], alignment: int = ALIGNMENT) -> tuple[Mapping[str, int], int]:
    """The offset of each tensor in bytes, and the arena's size: the largest first, each as low as it can lie.

    Offsets and the size are multiples of `alignment`.
    """
    placed: list[tuple[int, Tensor]] = []
    for tensor in sorted(tensors, key=lambda tensor: (-tensor.bytes, tensor.first, tensor.name)):
        offset = 0
        for start, other in sorted(placed, key=lambda pair: pair[0]):
            if tensor.meets(other) and start < offset + tensor.bytes and offset < start + other.bytes:
                offset = _aligned(start + other.bytes, alignment)
        placed.append((offset, tensor))
    size = max((offset + tensor.bytes for offset, tensor in placed), default=0)
    return {tensor.name: offset for offset, tensor in placed}, _aligned(size, alignment)


def least(tensors: Sequence[Tensor]) -> int:
    """What lives together at the most crowded step: no arena can be smaller."""
    return max(live_bytes(tensors, max((tensor.last for tensor in tensors), default=-1) + 1), default=0)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
