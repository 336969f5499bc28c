"""Which tensors are needed at the same time, and how many bytes that is at each step of a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Bytes that are needed from step `first` to step `last`, both included.

    Tensors that name the same `place` begin at the same byte, as the result of a kernel that works in place does; while
    both are needed they take as much as the larger one. Without a name a tensor has a place of its own.
    """

    name: str
    bytes: int
    first: int
    last: int
    place: str = ""

    @property
    def lies_at(self) -> str:
        return self.place or self.name

    def meets(self, other: Tensor) -> bool:
        return self.first <= other.last and other.first <= self.last


def by_place(tensors: Sequence[Tensor]) -> Mapping[str, Sequence[Tensor]]:
    """The tensors that begin at the same byte, in the order in which the places come."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        found[tensor.lies_at].append(tensor)
    return found


def live_bytes(tensors: Sequence[Tensor], steps: int, alignment: int = 1) -> list[int]:
    """What lives together at each of `steps`, each place rounded up to a multiple of `alignment`."""
    found = [0] * steps
    for together in by_place(tensors).values():
        for step in range(steps):
            size = max((tensor.bytes for tensor in together if tensor.first <= step <= tensor.last), default=0)
            found[step] += -(-size // alignment) * alignment
    return found
