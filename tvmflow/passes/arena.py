"""One static arena for all that lives only for a while: offsets at which nothing overlaps that lives together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tvmflow.passes.lifetimes import Tensor, by_place, live_bytes

ALIGNMENT = 16
"""Bytes; what a vector of MVE is long."""
TRIES = 400
"""Orders in which places are packed anew, each with the topmost one before all others, where none is the best yet."""

Places = Mapping[str, Sequence[Tensor]]


def pack(tensors: Sequence[Tensor], alignment: int = ALIGNMENT) -> tuple[Mapping[str, int], int]:
    """The offset of each tensor in bytes, and the arena's size, both multiples of `alignment`.

    Places come one after the other, each as low as it can lie: in some orders that are usually good, the largest first
    above all, and then with what lies on top moved to the front, until the arena is as small as `least` says that it
    can be, or nothing has helped for a while. The same tensors get the same offsets everywhere.
    """
    places, bound = by_place(tensors), least(tensors, alignment)
    best: tuple[Mapping[str, int], int] | None = None
    for key in ORDERS:
        order = sorted(places, key=lambda place: (*key(places[place]), place))
        for _ in range(TRIES // len(ORDERS)):
            offsets = _packed(places, order, alignment)
            tops = {place: offsets[place] + max(tensor.bytes for tensor in places[place]) for place in places}
            size = _aligned(max(tops.values(), default=0), alignment)
            if best is None or size < best[1]:
                best = {tensor.name: offsets[tensor.lies_at] for tensor in tensors}, size
            if best[1] == bound:
                return best
            highest = max(tops, key=lambda place: (tops[place], place))
            if order[0] == highest:
                break
            order = [highest, *(place for place in order if place != highest)]
    assert best is not None
    return best


def _largest(together: Sequence[Tensor]) -> tuple[int, ...]:
    return -max(tensor.bytes for tensor in together), together[0].first


def _longest(together: Sequence[Tensor]) -> tuple[int, ...]:
    return -sum(tensor.bytes * (tensor.last - tensor.first + 1) for tensor in together), together[0].first


def _earliest(together: Sequence[Tensor]) -> tuple[int, ...]:
    return together[0].first, -together[0].bytes


ORDERS: Sequence[Callable[[Sequence[Tensor]], tuple[int, ...]]] = (_largest, _longest, _earliest)


def least(tensors: Sequence[Tensor], alignment: int = ALIGNMENT) -> int:
    """What lives together at the most crowded step, in multiples of `alignment`: no arena can be smaller."""
    return max(live_bytes(tensors, max((tensor.last for tensor in tensors), default=-1) + 1, alignment), default=0)


def _packed(places: Places, order: Sequence[str], alignment: int) -> dict[str, int]:
    offsets: dict[str, int] = {}
    for place in order:
        taken = sorted(
            (offsets[other] - tensor.bytes, offsets[other] + theirs.bytes)
            for other in offsets
            for theirs in places[other]
            for tensor in places[place]
            if tensor.meets(theirs)
        )  # it can't begin between these
        offset = 0
        for after, until in taken:
            if offset <= after:
                break
            offset = max(offset, _aligned(until, alignment))
        offsets[place] = offset
    return offsets


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
