"""Schedules for CUDA: the same contract as `tvmflow.schedules`, a registry and a digest of their own.

A rule is `rule(func, target, tile=None) -> Schedule | None`. Its kernel's loops are bound to blocks and threads; each
launch is one grid of one dimension. `dlight` serves everything, so a kernel never stays unbound.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.schedules import Knobs, Rule

if TYPE_CHECKING:
    from tvm.s_tir import Schedule
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target


def _rule(name: str) -> Rule:
    """The rule of that file, which imports tvm when it is first used."""

    def rule(func: PrimFunc, target: Target, tile: Any = None) -> Schedule | None:
        return getattr(import_module(f"{__name__}.{name}"), name)(func, target, tile)

    return rule


RULES: dict[str, Rule] = {
    "depthwise_direct": _rule("depthwise_direct"),
    "depthwise_staged": _rule("depthwise_staged"),
    "depthwise_pair": _rule("depthwise_pair"),
    "depthwise_pointwise": _rule("depthwise_pointwise"),
    "pointwise": _rule("pointwise"),
    "convolution": _rule("convolution"),
    "pool_dense": _rule("pool_dense"),
    "dense": _rule("dense"),
    "matmul": _rule("matmul"),
    "direct": _rule("direct"),
    "dlight": _rule("dlight"),
}
"""In the order in which boards try them."""


MOST_CHOICES = 24


def choices(name: str, func: PrimFunc, target: Target) -> list[Knobs]:
    """The keyword arguments that a search may try with that rule on a kernel; none if it doesn't serve it.

    A rule lists its tiles from the most promising on. The first half of what is tried are the first of these, the
    other half some of all the others.
    """
    tiles = import_module(f"{__name__}.{name}").tiles(func, target)
    rest = tiles[MOST_CHOICES // 2 :]
    step = max(1, -(-len(rest) // (MOST_CHOICES // 2)))
    return [{"tile": tile} for tile in (*tiles[: MOST_CHOICES // 2], *rest[::step])]


def rules_version() -> str:
    """Eight digits that change with the source of any of these rules, or of the CPU's that they use."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in (*sorted(folder.glob("*.py")), folder.parent / "_convolution.py", folder.parent / "dense.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
