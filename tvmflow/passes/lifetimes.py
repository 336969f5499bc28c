"""Which tensors are needed at the same time, and how many bytes that is at each step of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Bytes that are needed from step `first` to step `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int

    def meets(self, other: Tensor) -> bool:
        return self.first <= other.last and other.first <= self.last


def live_bytes(tensors: Sequence[Tensor], steps: int) -> list[int]:
    """What lives together at each of `steps`."""
    return [sum(tensor.bytes for tensor in tensors if tensor.first <= step <= tensor.last) for step in range(steps)]
