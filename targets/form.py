"""Boards as manifests of bundles and `tvmflow boards --json` have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from tvmflow.spec import Cpu, Facts, Target
from tvmflow.system import tensors, untrusted
from tvmflow.system.untrusted import MalformedError, shown
from tvmflow.targets.about import KINDS, facts_types


def figures(target: Target) -> dict[str, Any]:
    """A board as `tvmflow boards --json` has it: its facts stand under their name, those of other kinds are null."""
    content = asdict(target)
    facts = content.pop("facts")
    return {**content, **{name: facts if name == target.facts.NAME else None for name in sorted(facts_types())}}


def to_json(target: Target) -> dict[str, Any]:
    """A board as manifests have it."""
    return {**figures(target), "elf": {"bits": target.elf[0], "machine": target.elf[1]}}


def schema() -> dict[str, Any]:
    """What `to_json` gives; what a newer version adds is left alone, and facts may be missing."""
    text: dict[str, Any] = {"type": "string"}
    found = untrusted.schema_of(Target)
    del found["properties"]["facts"]
    found["properties"] |= {
        "name": {"type": "string", "pattern": r"^[^/\s\x00-\x1f][^/\x00-\x1f]*\Z", "maxLength": 200},
        "kind": {"type": "string", "maxLength": 100},
        "elf": {
            "type": "object",
            "required": ["bits", "machine"],
            "properties": {"bits": {"enum": [0, 32, 64]}, "machine": text},
        },
        "arithmetic": {"enum": list(tensors.ARITHMETICS)},
        **{name: {"oneOf": [untrusted.schema_of(facts), {"type": "null"}]} for name, facts in facts_types().items()},
    }
    return found


def check_json(content: Mapping[str, Any]) -> None:
    """What no schema says of a board. Raises MalformedError."""
    kind = KINDS.get(content["kind"])
    if kind is None:
        raise MalformedError(f"target.kind is {shown(content['kind'])}, not {' or '.join(map(shown, KINDS))}")
    for name in facts_types():
        if name == kind.facts.NAME and not content.get(name):
            raise MalformedError(f"target is of kind {kind.name} and lacks {name!r}")
        if name != kind.facts.NAME and content.get(name):
            raise MalformedError(f"target is of kind {kind.name} and has {name!r}")


def from_json(content: Mapping[str, Any]) -> Target:
    """The board that was written so, after `schema` and `check_json` found nothing."""
    kind = KINDS[content["kind"]]
    lists = {key: tuple(content[key]) for key in ("schedules", "arithmetics", "deliveries") if key in content}
    facts = _record(kind.facts, content[kind.facts.NAME]) if kind.facts.NAME else Facts()
    elf = (content["elf"]["bits"], content["elf"]["machine"])
    return _record(Target, {**content, **lists, "cpu": _record(Cpu, content["cpu"]), "facts": facts, "elf": elf})


def _record(kind: type, content: Mapping[str, Any]) -> Any:
    """A record without what a newer format has added to it; JSON has lists where records have tuples."""
    names = {field.name for field in fields(kind)}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return kind(**{key: value for key, value in plain.items() if key in names})
