"""`tvmflow db`: looking after the records of `tvmflow tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmflow.spec import UserError
from tvmflow.system.text import text_table
from tvmflow.tune import exchange
from tvmflow.tune.session import failure_text
from tvmflow.tune.store import RECORDS, Store, find_stores

MODELLED_NOTE = "chosen by a model that nobody has calibrated: no times are shown"


def _only(folder: Path) -> Path:
    """The one store in a folder. Raises UserError."""
    found = list(find_stores(folder))
    if not found:
        raise UserError(f"There are no records of `tvmflow tune` in {folder}.")
    if len(found) > 1:
        raise UserError(f"{folder} has records of several: give one of {', '.join(str(path) for path in found)}.")
    return found[0]


def show(folder: Path) -> tuple[str, Any]:
    """Every store in a work dir, as text and as data."""
    paths = list(find_stores(folder)) or [_only(folder)]
    texts, contents = [], []
    for path in paths:
        store = Store(path)
        bests = {key: store.best(key) for key in store.tasks}
        failures = store.failures(store.tasks)
        rows = []
        for key, best in bests.items():
            trials = store.trials(key)
            failed = sum(trial["outcome"] != "ok" for trial in trials.values())
            shown = f"{1e3 * best.ms:.3g} µs" if best and not store.identity.unmeasured else ""
            figures = [shown, best.candidate + ("" if best.compared else " *")] if best else ["", ""]
            rows.append([store.tasks[key]["name"], len(trials), failed, *figures])
        identity = store.identity
        texts.append(
            f"{path}: {identity.board} ({identity.cpu}), TVM {identity.tvm}, rules {identity.rules}\n\n"
            f"{text_table(['task', 'trials', 'failed', 'best', 'by'], rows)}\n\n"
            f"{store.spent(store.tasks)} trials in {store.seconds(store.tasks):.0f} s, "
            f"failed: {failure_text(failures)}; {store.quarantined} unusable lines\n"
            f"{MODELLED_NOTE if identity.modelled else '* not yet measured in turns with the default'}"
        )
        contents.append(
            {
                "folder": str(path),
                "identity": {"board": identity.board, "tvm": identity.tvm, "rules": identity.rules},
                "trials": store.spent(store.tasks),
                "failures": dict(failures),
                "unusable_lines": store.quarantined,
                "tasks": [
                    {
                        "key": key,
                        "name": store.tasks[key]["name"],
                        "trials": len(store.trials(key)),
                        "best": best.candidate if best else None,
                        "best_ms": best.ms if best and not identity.unmeasured else None,
                        "default_ms": best.default_ms if best and not identity.unmeasured else None,
                    }
                    for key, best in bests.items()
                ],
            }
        )
    return "\n\n".join(texts), contents


def merge(folder: Path, sources: Sequence[Path]) -> str:
    """Add the records of other folders; what was done, in a line each."""
    lines = []
    with Store(_only(folder), writable=True) as store:
        for source in sources:
            path = source if (source / RECORDS).exists() else _only(source)
            added, refused = exchange.merge(store, path)
            lines.append(f"{source}: {added} trials added, {refused} unusable lines left out")
    return "\n".join(lines)


def export(folder: Path, out: Path, *, better: bool = False) -> str:
    """Copy the best records; what was done."""
    with Store(_only(folder), writable=True) as store:
        return f"{out}: the best records of {exchange.export(store, out, better=better)} tasks"


def prune(folder: Path, keep: int) -> str:
    """Forget slow records; what was done."""
    with Store(_only(folder), writable=True) as store:
        return f"{store.folder}: {exchange.prune(store, keep)} records dropped"
