"""Schedules for CUDA: the same contract as `tvmflow.schedules`, a registry and a digest of their own.

A rule is `rule(func, target, tile=None) -> Schedule | None`. Its kernel's loops are bound to blocks and threads; each
launch is one grid of one dimension. `dlight` serves everything, so a kernel never stays unbound.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tvmflow.schedules import Knobs, Rule, named, version_of

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target


NAMES = (
    "depthwise_direct",
    "depthwise_staged",
    "depthwise_pair",
    "depthwise_pointwise",
    "pointwise",
    "convolution",
    "pool_dense",
    "dense",
    "matmul",
    "direct",
    "dlight",
)
"""In the order in which boards try them."""

RULES: dict[str, Rule] = {name: named(__name__, name) for name in NAMES}

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
    folder = Path(__file__).parent
    return version_of((*folder.glob("*.py"), folder.parent / "cpu" / "dense.py"))
