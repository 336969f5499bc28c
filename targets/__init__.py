"""The boards tvmflow knows, as values. Importing this imports neither tvm nor torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import Cpu, Facts, Target, UserError
from tvmflow.system import untrusted
from tvmflow.system.text import did_you_mean
from tvmflow.system.untrusted import MalformedError, UnusableFileError
from tvmflow.targets.about import KINDS, facts_types
from tvmflow.targets.cortex_m import boards as cortex_m_boards
from tvmflow.targets.cpu import boards as cpu_boards
from tvmflow.targets.cuda import boards as cuda_boards
from tvmflow.targets.vta import boards as vta_boards

FAMILIES = (cpu_boards, cuda_boards, vta_boards, cortex_m_boards)
"""The modules that state boards and the kinds that these are of."""

KINDS.update({kind.name: kind for family in FAMILIES for kind in family.KINDS})

TARGETS: dict[str, Target] = {board.name: board for family in FAMILIES for board in family.BOARDS}

DEFAULT_BOARD: dict[str, str] = {name: kind.default_board for name, kind in KINDS.items()}
"""The board of a kind (`--target`) when none is named."""


def find(kind: str | None, board: str | None) -> Target:
    """The board of that name, or of that .toml file; `kind` alone gives its default board. Raises UserError."""
    if kind is not None and kind not in DEFAULT_BOARD:
        hint = did_you_mean(kind, DEFAULT_BOARD)
        if kind in TARGETS:
            hint = f" {kind} is a board: say --board {kind}."
        raise UserError(f"There is no target {kind!r}; the targets are {', '.join(DEFAULT_BOARD)}.{hint}")
    if board is None:
        return TARGETS[DEFAULT_BOARD[kind or "llvm"]]
    if board.endswith(".toml"):
        target = load_toml(Path(board))
    elif board in TARGETS:
        target = TARGETS[board]
    else:
        hint = did_you_mean(board, TARGETS)
        raise UserError(f"There is no board {board!r}; the boards are {', '.join(TARGETS)}, or a .toml file.{hint}")
    if kind is not None and target.kind != kind:
        raise UserError(f"The board {target.name} is of target {target.kind}, not {kind}.")
    return target


def compute_in(target: Target, dtype: str) -> Target:
    """The board, told to compute networks in `dtype`. Raises UserError if it can't do that well."""
    if dtype not in target.arithmetics:
        others = ", ".join(board.name for board in TARGETS.values() if dtype in board.arithmetics)
        processor = target.processor.model
        raise UserError(f"The {processor} of {target.name} has no {dtype} arithmetic; boards that do: {others}.")
    return replace(target, arithmetic=dtype)


def deliver_as(target: Target, delivery: str | None) -> Target:
    """The board, whose builds are delivered as a "module" or as a "library", by default as what it can load.

    Raises UserError if it has nothing of that kind.
    """
    delivery = delivery or target.deliveries[0]
    if delivery not in target.deliveries:
        others = ", ".join(board.name for board in TARGETS.values() if delivery in board.deliveries)
        raise UserError(
            f"--format {delivery} isn't made for {target.name}, which takes {' or '.join(target.deliveries)}; boards "
            f"that take it: {others}."
        )
    return replace(target, delivery=delivery)


def compile_also(target: Target, architectures: Sequence[str]) -> Target:
    """The board, whose builds are for other GPUs as well: "sm_90", or "compute_90" for PTX. Raises UserError."""
    if not architectures:
        return target
    if not isinstance(target.facts, Gpu):
        raise UserError(f"--arch names architectures of NVIDIA GPUs, and {target.name} has none.")
    for name in architectures:
        if not re.fullmatch(r"(sm|compute)_\d{2,3}", name):
            raise UserError(
                f"--arch {name} is no architecture of a GPU: they are called sm_90 or, for PTX, compute_90."
            )
    return replace(target, facts=replace(target.facts, also=tuple(architectures)))


def capture_graph(target: Target) -> Target:
    """The board, whose builds launch a network's inner kernels as one CUDA graph. Raises UserError."""
    if not isinstance(target.facts, Gpu):
        raise UserError(f"--cuda-graph is about launches on NVIDIA GPUs, and {target.name} has none.")
    return replace(target, facts=replace(target.facts, cuda_graph=True))


def load_toml(path: Path) -> Target:
    """A board of the user's own. It says which known board it `extends` and what differs. Raises UserError.

    Keys are the fields of Target; `tvm`, `cpu` and the facts that only its kind has (`gpu`, …) are tables, whose
    entries replace those of the extended board.
    """
    content = untrusted.read_toml(path, what="TOML of a board")
    base = content.pop("extends", None)
    if not isinstance(base, str) or base not in TARGETS:
        raise UnusableFileError(
            path, f'needs extends = "…", one of {", ".join(TARGETS)}', f"it has {untrusted.shown(base)}"
        )
    content.setdefault("name", path.stem)
    target = _override(TARGETS[base], content, path, "")
    if not re.fullmatch(NAME, target.name):
        raise UnusableFileError(
            path, f"gives name as {untrusted.shown(target.name)}", "a board's name has letters, digits, and .+-_ in it"
        )
    if target.arithmetic not in target.arithmetics:
        raise UnusableFileError(
            path, f"gives arithmetic as {untrusted.shown(target.arithmetic)}, which isn't among arithmetics"
        )
    target.facts.check(untrusted.printable(str(path)))
    return target


NAME = r"\w[\w.+ -]{0,99}"
"""Of a board: folders are called after it."""


def _override(base: Any, content: dict[str, Any], path: Path, table: str) -> Any:
    changes: dict[str, Any] = {}
    known = {field.name: (getattr(base, field.name), field.default) for field in fields(base)}
    fact = base.facts.NAME if isinstance(base, Target) else ""
    if isinstance(base, Target):
        facts, _ = known.pop("facts")
        known |= {name: (facts if name == fact else None, MISSING) for name in facts_types()}
    hints = get_type_hints(type(base))
    for key, value in content.items():
        where = f"{table}{untrusted.printable(key)}"
        if key not in known or key == "kind":
            names = ", ".join(sorted(known.keys() - {"kind"}))
            raise UnusableFileError(path, f"has an unknown key {untrusted.shown(table + key)}", f"known are {names}")
        old, default = known[key]
        if isinstance(old, Cpu | Facts) and isinstance(value, dict):
            changes["facts" if key == fact else key] = _override(old, value, path, f"{key}.")
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            changes[key] = {**old, **value}
        elif isinstance(old, tuple) and isinstance(value, list):
            changes[key] = tuple(value)
        elif type(old) is float and type(value) is int and value.bit_length() <= 64:
            changes[key] = float(value)
        elif type(old) is type(value):
            changes[key] = value
        if key not in changes or not _is_sensible(value, zero=isinstance(old, dict) or default == 0):
            wanted = {int: "a positive whole number", float: "a positive number"}.get(type(old), _WORDS.get(type(old)))
            raise UnusableFileError(
                path, f"gives {where} as {untrusted.shown(value)}, where {wanted or 'nothing'} belongs"
            )
        try:
            untrusted.Schema(untrusted.schema_of_type(hints[key])).check(value)
        except MalformedError as error:
            found = str(error).removeprefix("it ")  # "[0] is …" of a list, else "it is …"
            raise UnusableFileError(path, f"is no board: {where}{' ' * (found[0] != '[')}{found}") from error
    return replace(base, **changes)


_WORDS: dict[type, str] = {str: "a str", bool: "a bool", tuple: "a list of positive numbers or texts", dict: "a table"}


def _is_sensible(value: Any, *, zero: bool = False) -> bool:
    """Whether all numbers in a value are positive and finite; figures that may be unknown are zero then."""
    if isinstance(value, dict | list):
        return all(_is_sensible(part, zero=zero) for part in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0 < value < 2**53 or (zero and value == 0)
    return isinstance(value, bool) or (isinstance(value, str) and untrusted.printable(value) == value)
