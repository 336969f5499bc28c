"""Tilings as records of a search: what a task is, and how a tiling is written in a ledger.

A task is a layer after the one before it: what it adds to the program that ends with that one. Layers of the same
shapes are one task, whatever their weights and shifts, so that a network which is quantised anew keeps its records.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from tvmflow.schedules import task_key
from tvmflow.targets.vta.bounds import AnyWork
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.cpu import CpuWork
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.tiles import Tiling

if TYPE_CHECKING:
    from tvmflow.spec import Best

FORMAT = 2
"""Of what tilings mean and how they are timed. Another one retires all records, of which any stays a right program."""


def describe(work: AnyWork | None) -> dict[str, Any]:
    """What decides how a tiling of a layer fares."""
    if work is None:
        return {}
    if isinstance(work, CpuWork):
        return {"kind": work.layer.kind, "on": "the processor"}  # after which nothing is on chip
    if isinstance(work, NodeWork):
        return {
            "kind": work.layer.kind,
            "inputs": [list(shape) for shape in work.layer.input_shapes],
            "output": list(work.layer.output_shape),
            "in_place": not work.blocks,
        }
    layer = work.layer
    packs = {"packed": [work.source.pack, work.target.pack]} if work.written else {}
    return {
        **packs,
        "kind": layer.kind,
        "weight": list(layer.weight.shape),
        "input": list(layer.input_shape),
        "output": list(layer.output_shape),
        "stride": list(layer.stride),
        "padding": list(layer.padding[:2] if layer.padding[:2] == layer.padding[2:] else layer.padding),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
        "bias_tiles": work.bias_count,
    }


def workload_of(before: AnyWork | None, work: AnyWork, config: Config) -> tuple[str, str]:
    """A task in the form that ledgers have workloads in: a hash in digits, and a description in base 64."""
    content = {"format": FORMAT, "vta": config.to_json(), "before": describe(before), "layer": describe(work)}
    text = json.dumps(content, sort_keys=True).encode()
    digest = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    return str(digest), base64.b64encode(text).decode()


def task_key_of(before: AnyWork | None, work: AnyWork, config: Config) -> str:
    """A task's name in a ledger."""
    return task_key(workload_of(before, work, config))


def candidate_of(tiling: Tiling) -> str:
    """A tiling in words, its name in a ledger."""
    return ", ".join(f"{field.name}={getattr(tiling, field.name)}" for field in fields(tiling))


def record_of(tiling: Tiling, seconds: float, target: Mapping[str, Any]) -> list[Any]:
    """A tiling as a line of a ledger has it: in place of MetaSchedule's trace, the knobs."""
    return [[[], [asdict(tiling)]], [seconds], dict(target), []]


def recorded(best: Best | None) -> Tiling | None:
    """The tiling of a record, None if there is none that this version can read."""
    try:
        return None if best is None else Tiling(**best.record[0][1][0])
    except (TypeError, IndexError, KeyError, AttributeError):
        return None


def check_trace(trace: Sequence[Any]) -> None:
    """Raise ValueError unless a record has no instructions, and in place of decisions the tiling's knobs."""
    instructions, decisions = trace
    if instructions or len(decisions) != 1 or not isinstance(decisions[0], dict):
        raise ValueError("it has no tiling")
    if not all(type(value) is int and value >= 0 for key, value in decisions[0].items() if key != "order"):
        raise ValueError("its tiling isn't made of whole numbers")
    if not isinstance(decisions[0].get("order", ""), str):
        raise ValueError("its tiling has no order")
