"""Kernels of quantised networks for CPUs: a rule writes the loops of a layer and packs its weights, or says "not mine".

The contract is that of `tvmflow.schedules.integer_tasks`. A new rule is one file here and one line in RULES. Between
kernels a tensor is pixels × channels, its channels filled up to whole vectors: no loop has a remainder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvmflow.schedules.integer_tasks import Rule, Tensor, rule_of

if TYPE_CHECKING:
    from tvmflow.spec import Target

RULES: dict[str, Rule] = {
    "table": rule_of("table", __name__),
    "node": rule_of("node", __name__),
    "convolution": rule_of("convolution", __name__),
    "depthwise_dots": rule_of("depthwise_dots", __name__),
    "depthwise": rule_of("depthwise", __name__),
    "plain": rule_of("plain", __name__),
}


def form(layer: Any, readers: Sequence[Any], target: Target) -> Tensor:
    """How the result of `layer` lies in memory for other kernels: as its readers' instructions want it."""
    from tvmflow.schedules.cpu.integer import _between

    return _between.form(layer, readers, target)


def joins(group: Sequence[Any], layer: Any, target: Target) -> bool:
    """Whether a layer that alone reads what these give can be computed in their kernel."""
    from tvmflow.schedules.cpu.integer import _between

    return _between.joins(group, layer, target)


def slice_of(target: Target) -> int | None:
    """How many channels a kernel can write into a part of a larger tensor, or a multiple: a vector's."""
    from tvmflow.schedules.instructions import instructions_of

    return instructions_of(target).lanes
