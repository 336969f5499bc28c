"""The window of a convolution or a pool: which inputs each output reads, along both axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Pair = tuple[int, int]

Cut = tuple[int, int, tuple[int, ...]]
"""First output along an axis, how many, and the taps that meet the input there."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Sizes are of height and width. `padding` is what lies above, to the left, below and to the right of the map.

    `stride`, `dilation` and `padding` are as in PyTorch, but that the four borders may differ. An output reads the
    inputs `out · stride + tap · dilation − border` of all taps that lie on the map.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    size: Pair

    def out_size(self) -> Pair:
        """How large the output is; 0 or less where the window doesn't fit."""
        first, second = (
            (self.size[axis] + self.padding[axis] + self.padding[axis + 2] - self.reach(axis)) // self.stride[axis] + 1
            for axis in (0, 1)
        )
        return first, second

    def reach(self, axis: int) -> int:
        """Inputs from the first that a window covers to the last."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def places(self, axis: int, out: int) -> Iterator[int]:
        """The input of each tap; those off the map are below 0 or beyond its size."""
        first = out * self.stride[axis] - self.padding[axis]
        return (first + tap * self.dilation[axis] for tap in range(self.kernel[axis]))

    def cuts(self, axis: int) -> list[Cut]:
        """The outputs along an axis, cut where the set of taps that meet the input changes."""
        found: list[Cut] = []
        for out in range(self.out_size()[axis]):
            places = enumerate(self.places(axis, out))
            taps = tuple(tap for tap, place in places if 0 <= place < self.size[axis])
            if found and found[-1][2] == taps:
                found[-1] = (found[-1][0], found[-1][1] + 1, taps)
            else:
                found.append((out, 1, taps))
        return found

    def live_taps(self) -> int:
        """Of all outputs together: how often a tap meets the map and not its border."""
        vertical, horizontal = (sum(count * len(taps) for _, count, taps in self.cuts(axis)) for axis in (0, 1))
        return vertical * horizontal

    def live(self, axis: int) -> list[int]:
        """The taps along an axis that meet the map, not only its border, for at least one output."""
        return sorted({tap for _, _, taps in self.cuts(axis) for tap in taps})

    def meets(self, axis: int, tap: int) -> list[bool]:
        """Of each output along an axis, whether this tap meets the map."""
        first = tap * self.dilation[axis] - self.padding[axis]
        outs = range(self.out_size()[axis])
        return [0 <= first + out * self.stride[axis] < self.size[axis] for out in outs]

    def span(self, axis: int, tap: int) -> tuple[slice, slice]:
        """Where the outputs are for which this tap lies on the map, and the inputs that it reads there."""
        stride, offset = self.stride[axis], tap * self.dilation[axis] - self.padding[axis]
        first = max(0, -(offset // stride))
        last = min(self.out_size()[axis], (self.size[axis] - 1 - offset) // stride + 1)
        count = max(0, last - first)
        start = first * stride + offset
        return slice(first, first + count), slice(start, start + count * stride, stride)
