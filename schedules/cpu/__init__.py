"""Schedules for CPUs: loops, vectors and threads, over tensors in NCHW or with their channels in blocks."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.schedules import Knobs, Rule, named, version_of

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from tvmflow.spec import Target

NAMES = (
    "pointwise_blocked",
    "depthwise_blocked",
    "winograd",
    "conv_blocked",
    "concat_blocked",
    "pointwise_nchw",
    "depthwise_rows",
    "depthwise_nchw",
    "direct_nchw",
    "recurrent",
    "dense",
    "products",
    "segments",
    "lanes",
)
"""In the order in which boards try them."""

RULES: dict[str, Rule] = {name: named(__name__, name) for name in NAMES}


def tiles(name: str, func: PrimFunc, target: Target) -> list[Any]:
    """The tiles that the rule of that name can be told for a kernel; none if it doesn't serve it."""
    return import_module(f"{__name__}.{name}").tiles(func, target)


def choices(name: str, func: PrimFunc, target: Target) -> list[Knobs]:
    """The keyword arguments that a search may try with that rule on a kernel; none if it doesn't serve it."""
    return [{"tile": tile} for tile in tiles(name, func, target)]


def rules_version() -> str:
    """Eight digits that change with the source of any rule."""
    return version_of(Path(__file__).parent.glob("*.py"))
