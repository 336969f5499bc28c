"""What rules for quantised layers are asked and answer, for CPUs and GPUs alike.

A rule is `rule(task, target) -> Kernel | None`. A layer of an `IntegerNetwork` says exactly what it computes, so
nothing has to be read off loops, and weights, biases and offsets are worked out here, when the network is built. The
first rule of a kind's RULES that fits makes the kernel; the last fits all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from tvm import tirx

    from tvmflow.integer.layers import IntegerNode
    from tvmflow.spec import Target


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """What a kernel reads or writes, of one image.

    An element is the network's value plus `offset`, in `dtype`. `shape` is the user's where the user gives or gets it,
    with the elements in the order of 1×C×H×W, else (H·W)×`stored`: there, channels from `channels` on are nobody's,
    and may hold anything. With `packed`, four neighbouring channels lie in one int32, the first in its lowest byte, and
    `shape` counts these. What is written into a part of a larger tensor begins at the channel `first` of its pixels;
    `stored` and `shape` are then the larger one's.
    """

    channels: int
    size: tuple[int, int]
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    packed: bool = False
    first: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it lies as the user gives and gets it."""
        whole = math.prod(self.shape) == self.channels * math.prod(self.size)
        return not self.packed and self.shape[0] == 1 and whole

    @property
    def stored(self) -> int:
        """Channels of a pixel in memory."""
        if self.packed:
            return 4 * self.shape[1]
        return self.channels if self.is_plain else self.shape[1]

    @property
    def memory_dtype(self) -> str:
        """Of the buffer that holds it."""
        return "int32" if self.packed else self.dtype


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a kernel has to do: one layer, or two depthwise ones of which the second alone reads the first.

    `tail` are sums that follow at once, each of which alone reads what is before it. They have the shape of the layer's
    result, as all that they read has: the `sources` behind the layer's own, in this order.
    """

    layers: tuple[Any, ...]
    sources: tuple[Tensor, ...]
    result: Tensor
    tail: tuple[IntegerNode, ...] = ()

    @property
    def source(self) -> Tensor:
        """What a layer of one input reads."""
        return self.sources[0]

    @property
    def node(self) -> IntegerNode | None:
        """The layer, if it is one without weights."""
        return None if hasattr(self.layers[0], "weight") else self.layers[0]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A function of the sources, the `constants` and the result, in this order."""

    func: tirx.PrimFunc
    constants: tuple[np.ndarray, ...]


Rule = Callable[[Task, "Target"], "Kernel | None"]


def rule_of(name: str, package: str) -> Rule:
    """The rule of that file of a package, which imports tvm when it is first used; listing the rules mustn't."""

    def rule(task: Task, target: Target, **knobs: Any) -> Kernel | None:
        return getattr(import_module(f"{package}.{name}"), name)(task, target, **knobs)

    return rule
