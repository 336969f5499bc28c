"""How a search is going: a table that renews itself on a terminal, a line a batch elsewhere, tables at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tvmflow.system import progress
from tvmflow.system.text import text_table
from tvmflow.tune.session import REASONS, State, failure_text

if TYPE_CHECKING:
    from tvmflow.tune.session import Row

SHOWN_TASKS = 15

Watch = Callable[[State], None]


@contextmanager
def watching(stream: TextIO = sys.stderr) -> Iterator[Watch]:
    """What a session reports to while the block lasts."""
    if not stream.isatty():
        yield lambda state: print(status_line(state), file=stream, flush=True)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with progress.own_line(), Live(console=Console(file=stream), auto_refresh=False) as live:
        yield lambda state: live.update(Text(f"{task_table(state)}\n\n{status_line(state)}"), refresh=True)


def status_line(state: State) -> str:
    """Trials, latency, gain, failures and time left, in one line."""
    words = [
        f"{state.spent}/{state.options.trials} trials",
        f"kernels {state.best_ms:.4g} ms (untuned {state.default_ms:.4g})",
    ]
    if state.gain_per_minute is not None:
        words.append(f"gain {state.gain_per_minute:.1f} %/min")
    if state.failures:
        words.append(f"failed: {failure_text(state.failures)}")
    left = time_left_s(state)
    if left is not None:
        words.append(f"{left:.0f} s left at most")
    return ", ".join(words)


def time_left_s(state: State) -> float | None:
    """Seconds until the budget ends, at the pace so far; None before there is one."""
    busy = sum(seconds for kind, seconds in state.seconds.items() if kind != "start")
    if not state.tried or not busy:
        return None
    return min(busy / state.tried * (state.options.trials - state.spent), state.options.budget_s - state.busy_s)


def task_table(state: State, most: int = SHOWN_TASKS) -> str:
    """The tasks that take most of the network's time."""
    rows = sorted(state.rows, key=lambda row: -row.network_ms)
    cells = [_cells(row, state) for row in rows[:most]]
    if len(rows) > most:
        cells.append([f"and {len(rows) - most} more", "", "", "", "", "", ""])
    return text_table(["task", "calls", "trials", "failed", "untuned", "best", "by"], cells)


def _cells(row: Row, state: State) -> list[str]:
    best = state.tuned.get(row.task.key)
    before, after = (best.default_ms, best.ms) if best else (row.default_ms, row.best_ms)
    return [
        row.task.name,
        str(row.task.calls),
        str(row.trials) + (", all" if row.exhausted else ""),
        str(row.failed),
        _microseconds(before),
        _microseconds(after),
        best.candidate if best else row.best,
    ]


def _microseconds(ms: float | None) -> str:
    return "" if ms is None else f"{1e3 * ms:.3g} µs"


def final_text(state: State, how: str) -> str:
    """The tasks, where the time went, and what was gained."""
    before, after = state.compared_ms
    total = sum(state.seconds.values())
    times = text_table(
        ["time", "seconds", "share"],
        [
            [kind, f"{seconds:.1f}", f"{seconds / total:.0%}"]
            for kind, seconds in (*state.seconds.items(), ("all", total))
        ],
    )
    pace = f", {state.tried / total:.1f} a second" if state.tried else ""
    return "\n".join(
        [
            task_table(state, len(state.rows)),
            "",
            times,
            "",
            f"{state.spent} trials ({state.tried} in this run{pace}), failed: {failure_text(state.failures)}. "
            f"It ended because {REASONS[state.reason]}.",
            f"The network's kernels take {after:.4g} ms, {before:.4g} untuned ({how}).",
        ]
    )
