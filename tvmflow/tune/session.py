"""A search from its first trial to its winners: whose turn it is, when it ends, and what is written down."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from tvmflow.schedules import ReplayError
from tvmflow.spec import Best
from tvmflow.targets.search import Candidate, Options, Result, Search, Space, Task, Winner, latency_ms, typical
from tvmflow.tune.store import Entry, Store, classified

REASONS = {
    "trials": "all trials are spent",
    "time": "the time budget is spent",
    "exhausted": "nothing is left to try",
    "gain": "the gain per minute fell under --min-gain",
    "interrupted": "it was interrupted",
}

HOPE_OF_RULE, HOPE_OF_DEFAULT = 0.2, 0.8
"""The improvement that is expected of a task's first batch, by who scheduled it so far; a quarter of it of the next,
then a ninth, …"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """How a task stands. Latencies are in ms of one call; None where nothing was measured yet."""

    task: Task
    default_ms: float | None = None
    best_ms: float | None = None
    best: str = ""
    trials: int = 0
    failed: int = 0
    batches: int = 0
    last_gain: float = 0.0
    exhausted: bool = False

    @property
    def network_ms(self) -> float:
        """Its share of the network's time."""
        return self.task.calls * (self.best_ms or 0.0)


@dataclass(frozen=True, kw_only=True)
class State:
    """How a search stands.

    `spent` trials count all its runs, `tried` this one alone, as do `seconds`: start, search, build, run, waiting.
    `busy_s` is what counts against the time budget.
    """

    rows: tuple[Row, ...]
    options: Options
    spent: int
    tried: int
    busy_s: float
    seconds: Mapping[str, float]
    failures: Mapping[str, int]
    gain_per_minute: float | None = None
    reason: str = ""
    tuned: Mapping[str, Best] = field(default_factory=dict)
    """Winners of comparisons by task key."""

    @property
    def default_ms(self) -> float:
        """The kernels of the network without tuning."""
        return sum(row.task.calls * (row.default_ms or 0.0) for row in self.rows)

    @property
    def best_ms(self) -> float:
        """The kernels of the network by the fastest trials."""
        return sum(row.network_ms for row in self.rows)

    @property
    def compared_ms(self) -> tuple[float, float]:
        """The network without tuning and with its winners, where they were compared in turns."""
        before = after = 0.0
        for row in self.rows:
            best = self.tuned.get(row.task.key)
            before += row.task.calls * ((best.default_ms if best else row.default_ms) or 0.0)
            after += row.task.calls * ((best.ms if best else row.best_ms) or 0.0)
        return before, after


class Session:
    """One run of a search, whose store may have earlier ones; to the search it is its `Standing`."""

    def __init__(
        self,
        search: Search,
        store: Store,
        options: Options,
        watch: Callable[[State], None],
        *,
        started: float | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.search, self.store, self.options, self.watch = search, store, options, watch
        self.tasks, self.measurer = tuple(search.tasks), search.measurer
        self.check = check  # asked between steps; what it raises passes
        self.keys = [task.key for task in self.tasks]
        self.started = time.perf_counter() if started is None else started
        self.spent_before_s = store.seconds(self.keys)
        self.run_number = 1 + max((entry["run"] for entry in store.entries if entry["kind"] == "run"), default=0)
        self.seconds = {"start": 0.0, "search": 0.0, "build": 0.0, "run": 0.0, "waiting": 0.0}
        self.tried = 0
        self.history: list[tuple[float, float]] = []
        self.spaces: Mapping[str, Space] = {}
        self.rows: dict[str, Row] = {}
        self.mark = self.started
        self._billed = {"search": 0.0, "build": 0.0, "run": 0.0, "waiting": 0.0}

    def run(self) -> State:
        """Search until something ends it, then compare the fastest. KeyboardInterrupt passes, all results kept."""
        reason = "interrupted"
        try:
            self._open()
            reason = self._search()
            self.search.decide(self)
        finally:
            if sys.exc_info()[0] in (None, KeyboardInterrupt) and self.keys[0] in self.store.tasks:
                self.store.append([self._bill(self.keys[0]), self._entry("end", reason=reason)])
        return self.state(reason)

    def state(self, reason: str = "") -> State:
        """How it stands now."""
        return State(
            rows=tuple(self.rows.values()),
            options=self.options,
            spent=self.store.spent(self.keys),
            tried=self.tried,
            busy_s=self._busy_s(),
            seconds=dict(self.seconds),
            failures=self.store.failures(self.keys),
            gain_per_minute=self._gain(),
            reason=reason,
            tuned={key: best for key in self.keys if (best := self.store.best(key)) and best.compared},
        )

    # ------------------------------------------------------------------------------------------------------- opening

    def _open(self) -> None:
        self.spaces, learnt = self.search.spaces(self.options, self.check)
        entries: list[Entry] = [
            self._entry("run", options=asdict(self.options), runner=self.measurer.name, learnt_from=dict(learnt))
        ]
        for task in self.tasks:
            self.rows[task.key] = Row(task=task)
            if task.key not in self.store.tasks:
                workload = list(task.workload)
                default = self.spaces[task.key].default.text
                entries.append(
                    {"kind": "task", "task": task.key, "name": task.name, "default": default, "workload": workload}
                )
        self.store.append(entries)
        for task in self.tasks:
            self.check()
            trials = self.store.trials(task.key)
            if trials:
                self.spaces[task.key].recall(trials)
            self._refresh(task.key)
        self.spend("start")

    def _refresh(self, key: str) -> None:
        """Read a row's figures off the store."""
        trials = self.store.trials(key)
        good = {text: latency_ms(trial) for text, trial in trials.items() if trial["outcome"] == "ok"}
        best = min(good, key=lambda text: good[text], default="")
        self.rows[key] = replace(
            self.rows[key],
            default_ms=good.get(self.spaces[key].default.text),
            best_ms=good.get(best),
            best=best,
            trials=len(trials),
            failed=len(trials) - len(good),
            exhausted=self.spaces[key].exhausted,
        )

    # ----------------------------------------------------------------------------------------------------- searching

    def _search(self) -> str:
        self.search.begin(self)
        for key, space in self.spaces.items():
            if space.default.text not in self.store.trials(key):
                if reason := self._over():
                    return reason
                self._batch(key, [space.default])
        while True:
            if reason := self._over():
                return reason
            key = max(self.keys, key=self._promise)
            if self.rows[key].exhausted:
                return "exhausted"
            count = min(self.options.batch, self.options.trials - self.store.spent(self.keys))
            candidates = self.spaces[key].propose(count, self.store.trials(key))
            self.spend("search")
            self.check()
            if candidates:
                self._batch(key, candidates)
            else:
                self._refresh(key)

    def _promise(self, key: str) -> float:
        """What the next batch of a task may take off the network's time, in ms; −1 if nothing is left to try."""
        row = self.rows[key]
        if row.exhausted:
            return -1.0
        hope = HOPE_OF_RULE if self.spaces[key].rule else HOPE_OF_DEFAULT
        return row.network_ms * max(row.last_gain, hope / (1 + row.batches) ** 2)

    def _over(self) -> str:
        """Why the search is over, or nothing."""
        self.check()
        if self.store.spent(self.keys) >= self.options.trials:
            return "trials"
        if self._busy_s() >= self.options.budget_s:
            return "time"
        gain = self._gain()
        if gain is not None and gain < self.options.min_gain:
            return "gain"
        return ""

    def _busy_s(self) -> float:
        return self.spent_before_s + sum(self.seconds.values()) - self.seconds["start"]

    def _gain(self) -> float | None:
        """Percent of the network's time that the last `window_s` saved, a minute; None until they are over."""
        if not self.history:
            return None
        now, current = self.history[-1]
        before = [entry for entry in self.history if entry[0] <= now - self.options.window_s]
        if not before or not current:
            return None
        then, estimate = before[-1]
        return 100 * (estimate - current) / estimate * 60 / (now - then)

    def _batch(self, key: str, candidates: Sequence[Candidate]) -> None:
        row, results = self.rows[key], list[Result]()
        before = dict(self.measurer.seconds)
        try:
            for result in self.measurer.measure(row.task, candidates, row.best_ms):
                results.append(classified(result))
                self.check()
        finally:
            known = {kind: self.measurer.seconds[kind] - before[kind] for kind in before}
            self.spend("waiting", known)
            self._note(key, list(zip(candidates, results, strict=False)))
        measured = [
            (candidate, typical(result.ms) if result.outcome == "ok" else float("inf"))
            for candidate, result in zip(candidates, results, strict=True)
        ]
        self.spaces[key].learn(measured)
        self.spend("search")
        if all(row.default_ms or row.failed for row in self.rows.values()):
            self.history.append((time.perf_counter(), sum(row.network_ms for row in self.rows.values())))
        self.show()

    def _note(self, key: str, tried: Sequence[tuple[Candidate, Result]]) -> None:
        """Write a batch, or what there is of it, into the store."""
        if not tried:
            return
        entries = [self._bill(key)]
        for candidate, result in tried:
            entry = self._entry(
                "trial",
                task=key,
                candidate=candidate.text,
                outcome=result.outcome,
                ms=list(result.ms),
                message=result.message,
            )
            if result.outcome == "ok":
                entry["record"] = [candidate.record[0], [ms / 1e3 for ms in result.ms], *candidate.record[2:]]
            entries.append(entry)
        self.store.append(entries)
        self.tried += len(tried)
        old = self.rows[key].best_ms
        self._refresh(key)
        new = self.rows[key].best_ms
        gain = 1 - new / old if old and new else 0.0
        self.rows[key] = replace(self.rows[key], last_gain=gain, batches=self.rows[key].batches + 1)

    # ----------------------------------------------------------------------------------- what a search asks it

    @property
    def entries(self) -> Sequence[Entry]:
        """The lines of the ledger."""
        return self.store.entries

    def trials(self, key: str) -> Mapping[str, Entry]:
        """The trials of a task by candidate."""
        return self.store.trials(key)

    def best(self, key: str) -> Best | None:
        """The winner of a task's latest decision, else its fastest successful trial."""
        return self.store.best(key)

    def decided(self, key: str) -> bool:
        """Whether a task has a winner, and nothing of it was tried since."""
        kinds = [entry["kind"] for entry in self.store.entries if entry.get("task") == key]
        return "winner" in kinds and "trial" not in kinds[len(kinds) - kinds[::-1].index("winner") :]

    def replay(self, key: str, name: str) -> Any | None:
        """The candidate of a trial, None if its record can't be applied."""
        try:
            return self.spaces[key].replay(name, self.store.trials(key)[name]["record"])
        except (ReplayError, KeyError):
            return None

    def spend(self, kind: str, known: Mapping[str, float] | None = None) -> None:
        """Put the time since the last call down to `kind`, but for what is known to have gone elsewhere."""
        now = time.perf_counter()
        spent = now - self.mark
        for other, seconds in (known or {}).items():
            self.seconds[other] += seconds
            spent -= seconds
        self.seconds[kind] += max(0.0, spent)
        self.mark = now

    def win(self, winners: Sequence[Winner]) -> None:
        """Write winners down."""
        self.store.append(
            [
                self._entry(
                    "winner",
                    task=winner.task,
                    candidate=winner.candidate,
                    ms=list(winner.ms),
                    default_ms=list(winner.default_ms),
                )
                for winner in winners
            ]
        )

    def show(self) -> None:
        """Tell whoever watches how it stands."""
        self.watch(self.state())

    # ----------------------------------------------------------------------------------------------------- bookkeeping

    def _entry(self, kind: str, **content: Any) -> Entry:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return {"kind": kind, "run": self.run_number, "time": now, **content}

    def _bill(self, key: str) -> Entry:
        """A batch's line, with the seconds since the last one."""
        since = {kind: self.seconds[kind] - self._billed[kind] for kind in self._billed}
        self._billed = {kind: self.seconds[kind] for kind in self._billed}
        return self._entry("batch", task=key, seconds=since)


def failure_text(failures: Mapping[str, int]) -> str:
    """Failures by class, the most frequent first."""
    return ", ".join(f"{count} {outcome}" for outcome, count in Counter(failures).most_common()) or "none"


def described(state: State, store: Store) -> dict[str, Any]:
    """A search as data, without times."""
    return {
        "folder": str(store.folder),
        "reason": state.reason,
        "trials": state.spent,
        "trials_of_this_run": state.tried,
        "failures": dict(state.failures),
        "quarantined_lines": store.quarantined,
        "seconds": dict(state.seconds),
        "basis": store.identity.basis,
        "tasks": [
            {
                "name": row.task.name,
                "key": row.task.key,
                "calls": row.task.calls,
                "trials": row.trials,
                "failed": row.failed,
                "winner": best.candidate if (best := store.best(row.task.key)) else None,
            }
            for row in state.rows
        ],
    }
