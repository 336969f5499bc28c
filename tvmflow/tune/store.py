"""What a search leaves behind: a ledger that nothing can spoil, and MetaSchedule's database made from it.

A store is a folder for one `Identity`, since records of another board, TVM or rule set are about other kernels:

- `identity.json`: whose records these are.
- `ledger.jsonl`: one JSON object a line, appended batch by batch and synced: runs with their options, tasks, batches
  with their seconds, trials with outcome, times and record, winners, ends. Budgets and resuming go by it alone, and it
  is the event log for other programs.
- `database_workload.json`, `database_tuning_record.json`: the successful trials as TVM reads them, derived.
- `quarantine.jsonl`: lines of these files that were torn or not ours, with the reason.

Nothing here imports tvm. docs/tune.md has the format.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tvmflow.spec import Best, UserError
from tvmflow.system import limits, scratch, untrusted
from tvmflow.system.untrusted import UnusableFileError
from tvmflow.targets.search import Identity, Result, latency_ms, records_of, typical

Entry = dict[str, Any]

SCHEMA_VERSION = "1.0"
IDENTITY, LEDGER, QUARANTINE, LOCK = "identity.json", "ledger.jsonl", "quarantine.jsonl", "lock"
WORKLOADS, RECORDS = "database_workload.json", "database_tuning_record.json"

OUTCOMES = ("ok", "build failed", "build hung", "crashed", "hung", "wrong", "bad time")
"""How a trial can end. "wrong" computed something else, "bad time" is zero, negative or no number."""


FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "task": {"task": str, "name": str, "workload": list},
    "run": {"run": int, "options": dict},
    "batch": {"run": int, "task": str, "seconds": dict},
    "trial": {"run": int, "task": str, "candidate": str, "outcome": str, "ms": list, "message": str},
    "winner": {"run": int, "task": str, "candidate": str, "ms": list, "default_ms": list},
    "end": {"run": int, "reason": str},
}
"""The kinds of lines in a ledger and what each has at least."""

OPTIONAL: dict[str, type] = {"default": str, "merged": bool}
"""What some lines have as well, and is of that type where it is."""

KEPT_OF_A_LINE = 1 << 20
"""Characters of a bad line that are set aside."""

MOST_MS = 1e9
"""More than any kernel takes, which is twelve days."""

IDENTITY_SCHEMA = untrusted.Schema(
    {
        "type": "object",
        "required": ["schema_version", "board", "cpu", "target", "tvm", "rules"],
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "target": {"type": "object"},
            **{name: {"type": "string", "maxLength": 1000} for name in ("board", "cpu", "tvm", "rules")},
        },
        "additionalProperties": False,
    }
)


class Store:
    """The folder of one identity, read, and with `writable` locked, mended and open for more.

    `entries` are the ledger's intact lines in order, `quarantined` counts the lines that were set aside. Raises
    UserError if it can't be used: another process writes it, or it is another identity's.
    """

    def __init__(self, folder: Path, identity: Identity | None = None, *, writable: bool = False) -> None:
        self.folder, self.writable = folder, writable
        self.quarantined = 0
        self._lock = -1
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        try:
            self.identity = self._read_identity(identity)
            self._forget()
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ------------------------------------------------------------------------------------------------------ reading

    def trials(self, task: str) -> dict[str, Entry]:
        """The trials of a task by candidate, those merged from elsewhere included."""
        return self._outcomes.get(task, {})

    def spent(self, tasks: Iterable[str]) -> int:
        """Trials that were spent here on these tasks."""
        return sum(not trial.get("merged") for task in tasks for trial in self.trials(task).values())

    def seconds(self, tasks: Iterable[str]) -> float:
        """Seconds that were spent here on these tasks."""
        wanted = set(tasks)
        batches = (entry for entry in self.entries if entry["kind"] == "batch" and entry["task"] in wanted)
        return sum(sum(entry["seconds"].values()) for entry in batches)

    def failures(self, tasks: Iterable[str]) -> Counter[str]:
        """Unsuccessful trials of these tasks by class."""
        outcomes = (trial["outcome"] for task in tasks for trial in self.trials(task).values())
        return Counter(outcome for outcome in outcomes if outcome != "ok")

    def best(self, task: str) -> Best | None:
        """The winner of the latest comparison, else the fastest successful trial."""
        good = {key: trial for key, trial in self.trials(task).items() if trial["outcome"] == "ok"}
        winner = next(
            (entry for entry in reversed(self.entries) if entry["kind"] == "winner" and entry["task"] == task), None
        )
        name = self.tasks.get(task, {}).get("name", task)
        if winner is not None and "record" in good.get(winner["candidate"], {}):
            return Best(
                task=task,
                name=name,
                candidate=winner["candidate"],
                record=good[winner["candidate"]]["record"],
                ms=typical(winner["ms"]),
                default_ms=typical(winner["default_ms"]) if winner["default_ms"] else None,
                compared=True,
                modelled=self.identity.modelled,
            )
        if self.identity.modelled:  # only winners were checked
            return None
        fastest = min((row for row in good.values() if "record" in row), key=latency_ms, default=None)
        if fastest is None:
            return None
        default = good.get(self.tasks.get(task, {}).get("default", ""))
        return Best(
            task=task,
            name=name,
            candidate=fastest["candidate"],
            record=fastest["record"],
            ms=latency_ms(fastest),
            default_ms=latency_ms(default) if default else None,
            compared=False,
        )

    def _read_identity(self, wanted: Identity | None) -> Identity:
        path = self.folder / IDENTITY
        if not path.exists():
            if wanted is None or not self.writable:
                raise UserError(f"{self.folder} holds no records of `tvmflow tune`: it has no {IDENTITY}.")
            _replace(path, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(wanted)}, indent=1) + "\n")
            return wanted
        content = untrusted.read_json(path, what="identity of records", schema=IDENTITY_SCHEMA)
        del content["schema_version"]
        found = Identity(**content)
        if wanted is not None and found != wanted:
            raise UserError(
                f"The records in {self.folder} aren't for this: "
                f"{untrusted.printable(', '.join(wanted.differences(found)))}; tune again with another --work-dir."
            )
        return found

    def _load(self) -> None:
        path = self.folder / LEDGER
        text = read_lines(path) if path.exists() else ""
        bad = []
        for line in text.splitlines():
            try:
                entry = untrusted.parse_json(line, limits.LINE)
                self._check(entry)
            except (ValueError, TypeError, KeyError) as error:
                bad.append((LEDGER, line[:KEPT_OF_A_LINE], str(error) or type(error).__name__))
                continue
            self._take(entry)
        if self.writable:
            bad += self._foreign_database_lines()
            self._quarantine(bad)
            if any(name == LEDGER for name, _, _ in bad) or (text and not text.endswith("\n")):
                _replace(self.folder / LEDGER, "".join(map(_line, self.entries)))
            self._write_database()
        self.quarantined = len(bad)

    def _check(self, entry: Any) -> None:
        """Raises ValueError, KeyError or TypeError if this is no line of this ledger."""
        for name, kind in FIELDS[entry["kind"]].items():
            if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
                raise ValueError(f"its {name} is {untrusted.shown(entry[name])}")
        for name, kind in OPTIONAL.items():
            if not isinstance(entry.get(name, kind()), kind):
                raise ValueError(f"its {name} is {untrusted.shown(entry[name])}")
        if entry["kind"] in ("trial", "winner", "batch") and entry["task"] and entry["task"] not in self.tasks:
            raise ValueError("its task is unknown")
        if entry["kind"] == "task":
            check_workload(entry["workload"])
        if entry["kind"] == "batch" and not all(map(_is_duration, entry["seconds"].values())):
            raise ValueError("its seconds aren't times")
        if entry["kind"] == "winner" and not (
            are_latencies(entry["ms"]) and (not entry["default_ms"] or are_latencies(entry["default_ms"]))
        ):
            raise ValueError("its times aren't times")
        if entry["kind"] == "trial":
            if entry["outcome"] not in OUTCOMES:
                raise ValueError(f"its outcome is {entry['outcome']!r}")
            if entry["outcome"] == "ok" and not are_latencies(entry["ms"]):
                raise ValueError("its times aren't times")
            if not entry["task"] or ("record" in entry and entry["outcome"] != "ok"):
                raise ValueError("it has no task, or a record of what failed")
            if "record" in entry:
                check_record(entry["record"], self.identity.target)

    def _take(self, entry: Entry) -> None:
        if entry["kind"] == "task":
            self.tasks.setdefault(entry["task"], entry)
        if entry["kind"] == "trial":
            # a trial that was written twice counts once
            self._outcomes.setdefault(entry["task"], {}).setdefault(entry["candidate"], entry)
        self.entries.append(entry)

    # ------------------------------------------------------------------------------------------------------ writing

    def append(self, entries: Sequence[Entry]) -> None:
        """Add lines; when this returns they are on disk."""
        assert self.writable
        for entry in entries:
            self._check(entry)
            self._take(entry)
        with (self.folder / LEDGER).open("a", encoding="utf-8") as file:
            file.write("".join(_line(entry) for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        before = {name: len(lines) for name, lines in self._database.items()}
        self._extend_database(entries)
        for name, lines in self._database.items():
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.writelines(lines[before[name] :])

    def rewrite(self, entries: Sequence[Entry]) -> None:
        """Replace the ledger as a whole, and the database with it."""
        assert self.writable
        _replace(self.folder / LEDGER, "".join(map(_line, entries)))
        self._forget()
        for entry in entries:
            self._take(entry)
        self._extend_database(self.entries)
        self._write_database()

    def _forget(self) -> None:
        self.tasks: dict[str, Entry] = {}
        self.entries: list[Entry] = []
        self._outcomes: dict[str, dict[str, Entry]] = {}
        self._database: dict[str, list[str]] = {WORKLOADS: [], RECORDS: []}
        self._workload_index: dict[str, int] = {}

    def _extend_database(self, entries: Iterable[Entry]) -> None:
        """Add to `_database`, the lines that its files should have, what these entries say."""
        for entry in entries:
            if entry["kind"] != "trial" or entry["outcome"] != "ok" or "record" not in entry:
                continue
            if self._outcomes[entry["task"]][entry["candidate"]] is not entry:
                continue
            if entry["task"] not in self._workload_index:
                self._workload_index[entry["task"]] = len(self._workload_index)
                self._database[WORKLOADS].append(_line(self.tasks[entry["task"]]["workload"]))
            self._database[RECORDS].append(_line([self._workload_index[entry["task"]], entry["record"]]))

    def _write_database(self) -> None:
        for name, lines in self._database.items():
            path, text = self.folder / name, "".join(lines)
            if not path.exists() or path.read_bytes() != text.encode():
                _replace(path, text)

    def _foreign_database_lines(self) -> list[tuple[str, str, str]]:
        """Lines of the database's files that the ledger knows nothing of; lines that are missing are no harm."""
        self._extend_database(self.entries)
        bad = []
        for name, lines in self._database.items():
            path = self.folder / name
            known = {line.rstrip("\n") for line in lines}
            text = read_lines(path) if path.exists() else ""
            found = [line for line in text.splitlines() if line not in known]
            bad += [(name, line[:KEPT_OF_A_LINE], "the ledger has no such record") for line in found]
        return bad

    def _quarantine(self, bad: Sequence[tuple[str, str, str]]) -> None:
        if bad:
            with (self.folder / QUARANTINE).open("a", encoding="utf-8") as file:
                file.writelines(_line({"file": name, "why": why, "line": line}) for name, line, why in bad)
                file.flush()
                os.fsync(file.fileno())


def are_latencies(values: Sequence[Any]) -> bool:
    """Whether these can be times: at least one, and all of them numbers above zero and not over MOST_MS."""
    return bool(values) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_MS for value in values
    )


def _is_duration(value: Any) -> bool:
    """Whether this can be seconds that were spent."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_MS


def read_lines(path: Path) -> str:
    """The text of a file of lines, each of which is for `untrusted.parse_json`. Raises UnusableFileError."""
    text = untrusted.read_bytes(path, limits.LEDGER).decode("utf-8", "replace")
    if text.count("\n") > limits.LEDGER.elements:
        raise UnusableFileError(path, f"has over {limits.LEDGER.elements:,} lines", limits.LEDGER.remedy("elements"))
    return text


def classified(result: Result) -> Result:
    """`result`, if its times can be times; a runner that lies doesn't win."""
    if result.outcome == "ok" and not are_latencies(result.ms):
        return Result(outcome="bad time", message=f"it was timed as {', '.join(map(str, result.ms)) or 'nothing'}")
    return result


def check_workload(workload: Any) -> None:
    """Raises ValueError if TVM couldn't read this as a workload: its structural hash and the module in base 64."""
    if not isinstance(workload, list) or len(workload) != 2 or not all(isinstance(part, str) for part in workload):
        raise ValueError("it has no workload")
    if not re.fullmatch("[0-9]{1,20}", workload[0]):
        raise ValueError("its workload has no structural hash")
    base64.b64decode(workload[1], validate=True)


def check_record(record: Any, target: Mapping[str, Any]) -> None:
    """Raises ValueError if this is no tuning record for that target: trace, seconds, target, arguments."""
    if not isinstance(record, list) or len(record) != 4 or not all(isinstance(part, list) for part in record[:2]):
        raise ValueError("it is no tuning record")
    trace = record[0]
    if len(trace) != 2 or not all(isinstance(part, list) for part in trace) or not isinstance(record[3], list):
        raise ValueError("it has no trace")
    if not are_latencies(record[1]):
        raise ValueError("its times aren't times")
    if record[2] != target:
        raise ValueError(f"it is of another target, {json.dumps(record[2])[:KEPT_OF_A_TARGET]}")
    if (own := records_of(target)) is not None:
        own.check_trace(trace)
    else:
        _check_trace(trace, record[3])


KEPT_OF_A_TARGET = 1000
"""Characters of another target that a reason has in it."""

NULLABLE = {"Split": (1, 1), "TransformLayout": (2, 2)}
"""Instructions that can have a null, for what isn't given: in inputs (1) or attributes (2), and from where on."""


def _check_trace(trace: Sequence[Any], arguments: Sequence[Any]) -> None:
    """What TVM follows pointers in must be there: it ends the process over a null where it expects none."""
    instructions, decisions = trace
    for instruction in instructions:
        if not isinstance(instruction, list) or len(instruction) != 4 or not isinstance(instruction[0], str):
            raise ValueError("its trace has what is no instruction")
        name, parts = instruction[0], instruction[1:]
        if not all(isinstance(part, list) for part in parts) or not all(isinstance(made, str) for made in parts[2]):
            raise ValueError(f"its trace has no proper {untrusted.shown(name)}")
        part, first = NULLABLE.get(name, (0, 0))
        for number, values in enumerate(parts, 1):
            kept = [value for place, value in enumerate(values) if value is not None or number != part or place < first]
            if not all(map(_is_plain, kept)):
                raise ValueError(f"its trace has a value in {untrusted.shown(name)} that no schedule has")
    for decision in decisions:
        if not isinstance(decision, list) or len(decision) != 2 or type(decision[0]) is not int:
            raise ValueError("its trace has what is no decision")
        if not _is_plain(decision[1]) or not 0 <= decision[0] < len(instructions):
            raise ValueError("its trace has a decision on nothing, or that is none")
    for argument in arguments:
        if not isinstance(argument, list) or len(argument) != 3 or not all(map(_is_plain, argument)):
            raise ValueError("it has what is no argument")


def _is_plain(value: Any) -> bool:
    """Whether this is text, a number, or a list of such."""
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float)


def find_stores(folder: Path) -> Iterator[Path]:
    """The stores in a work dir, or `folder` itself if it is one."""
    if (folder / IDENTITY).exists():
        yield folder
        return
    yield from sorted(path.parent for path in folder.glob(f"*/{IDENTITY}"))


def _lock(folder: Path) -> int:
    """Hold the folder's lock; the system lets go of it however this process ends. Raises UserError."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(handle, 32).decode("ascii", "replace").strip() or "?"
        os.close(handle)
        raise UserError(
            f"Another tvmflow (process {owner}) is writing {folder}; wait for it, or give another --work-dir."
        ) from error
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def _line(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all, and have it on disk."""
    with scratch.replacing(path) as made, made.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
