"""What a search for better schedules is given by the kind of target, and what `tvmflow.tune` drives it with.

A kind hands over a module with the functions of `SearchKind`; one whose kernels are TVM's needs none, for
`tvmflow.tune.kernels` serves them all. The module opens a `Search`: its tasks, the space of each, the measurer and how
winners are decided. A session does the rest for every kind alike: whose turn it is, when it ends, what is written down.

These types lie here, below both, so that neither a kind imports the search nor the search names a kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from tvmflow.spec import Basis, Best, Target, UserError
from tvmflow.system import untrusted
from tvmflow.targets.about import KINDS, OwnSearch

if TYPE_CHECKING:
    import tvm

# ------------------------------------------------------------------------------------------------------ whose records

EMULATED = ", emulated by "
"""What the CPU of an identity has in it if the times are an emulator's, which say nothing."""


MODELLED = ", modelled"
"""How the CPU of an identity ends if no device was there and its times are a model's: good for an order only."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose records: the board, its CPU, the dict of its tvm Target, the versions of TVM and of the rule set."""

    board: str
    cpu: str
    target: Mapping[str, Any]
    tvm: str
    rules: str

    @property
    def folder(self) -> str:
        """The name of its folder in a work dir."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.board}-tvm{self.tvm}-{digest[:8]}"

    @property
    def emulated(self) -> bool:
        return EMULATED in self.cpu

    @property
    def modelled(self) -> bool:
        return self.cpu.endswith(MODELLED)

    @property
    def unmeasured(self) -> bool:
        """Whether its times say nothing of the board, so that they are never shown and teach nobody."""
        return self.emulated or self.modelled

    @property
    def basis(self) -> Basis:
        """What its latencies rest on."""
        own = own_search(self.target)
        if own is not None:
            return own.basis
        return "emulated" if self.emulated else "modelled" if self.modelled else "measured"

    def differences(self, other: Identity) -> list[str]:
        """The fields in which they differ, with both values."""
        mine, its = asdict(self), asdict(other)
        return [
            f"{key} {untrusted.shortened(str(its[key]))} instead of {untrusted.shortened(str(mine[key]))}"
            for key in mine
            if mine[key] != its[key]
        ]


# ----------------------------------------------------------------------------------------------------- what was asked


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a search may spend, in all its runs together, and how it goes about it.

    `min_gain` is in percent of the network's time a minute; `window_s` is what it is taken over. `population` is that
    of MetaSchedule's evolution, by default what the trials of a task are worth.
    """

    trials: int
    budget_s: float
    seed: int = 0
    batch: int = 8
    min_gain: float = 0.5
    window_s: float = 60.0
    finalists: int = 3
    rounds: int = 15
    population: int | None = None


@dataclass(frozen=True, kw_only=True)
class Where:
    """How a board is reached: the arguments of `rpc.reach`, and its name for people."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tuned, with what, and where the records go."""

    target: Target
    model: str
    shapes: Sequence[Any]
    options: Options
    runner: str
    boards: Sequence[Where]
    listed: Callable[[], Sequence[Where]] | None
    builders: str | None
    transfer: bool
    calibration: Path | None
    work_dir: Path
    started: float


# -------------------------------------------------------------------------------------------------- what is tried, how


class Task(Protocol):
    """What is tuned by itself. `calls` is how often the network has it, `modules` are the layers that it serves."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def workload(self) -> tuple[str, str]: ...
    @property
    def calls(self) -> int: ...
    @property
    def modules(self) -> tuple[str, ...]: ...


class Candidate(Protocol):
    """What may be tried on a task; `text` tells it from the task's others, `record` is its line without times."""

    @property
    def text(self) -> str: ...
    @property
    def record(self) -> list[Any]: ...


class Candidates(Protocol):
    """The functions of a kind's module on candidates that a CPU alone can neither compile nor run."""

    def choose_runner(self, choice: str, target: Target) -> tuple[str, str]:
        """The runner, no other computer being named, and the reason for it. Raises MissingDependencyError."""

    def environment(self, target: Target) -> dict[str, str]:
        """The variables of a process that compiles them."""

    def compile_kernel(self, module: tvm.IRModule, target: tvm.target.Target) -> Any:
        """A candidate, or the unscheduled kernel for the CPU, as what `export_library` has."""

    def model(self, settings: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """What compiles {"module"} and answers with its modelled time, by the "constants" of the settings."""

    def constants(self, path: Path | None) -> Any:
        """A dataclass: those of a calibration, or of the data sheets. Its `source` says whose. Raises UserError."""

    def save_constants(self, constants: Any, path: Path) -> None:
        """Write what `constants` reads."""

    def check(self, pairs: Sequence[tuple[str, str]], target: Target) -> list[str]:
        """For each kernel, unscheduled and as a candidate (JSON of modules), "" or what is wrong with the latter.

        They are run without the device. Raises VerificationError if one takes the process with it.
        """


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a candidate: one of the outcomes of a ledger, and its times in ms if it is "ok"."""

    outcome: str
    ms: tuple[float, ...] = ()
    message: str = ""


def typical(ms: Sequence[float]) -> float:
    """The latency that repeats stand for: their lower quartile, since whatever disturbs a run makes it longer."""
    return sorted(ms)[(len(ms) - 1) // 4]


def latency_ms(trial: Mapping[str, Any]) -> float:
    """The latency of a successful trial."""
    return typical(trial["ms"])


class Space(Protocol):
    """The candidates of one task: `default` is what it gets without tuning, by a rule if there is one for it."""

    @property
    def default(self) -> Candidate: ...
    @property
    def rule(self) -> str | None: ...
    @property
    def exhausted(self) -> bool: ...

    def propose(self, count: int, known: Collection[str]) -> Sequence[Candidate]:
        """Up to `count` candidates that aren't `known`; none if the space is exhausted."""

    def learn(self, measured: Sequence[tuple[Any, float]]) -> None:
        """Take in latencies of candidates in ms; infinity stands for a failure."""

    def recall(self, trials: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what was tried before: nothing is proposed twice."""

    def replay(self, text: str, record: Sequence[Any]) -> Candidate:
        """The candidate of a record. Raises ReplayError if it isn't one of this task."""


class Measurer(Protocol):
    """Where candidates are built and timed."""

    name: str

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent so far by kind: "build" and "run"."""

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Result]:
        """Build them all, then give one result after the other."""

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        """Times in ms of candidates that were measured before, in turns; empty if one of them failed."""

    def close(self) -> None:
        """End its processes."""


# ---------------------------------------------------------------------------------------------- a session and a search


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The candidate that a task gets, by its name, and the times by which it was chosen over the default."""

    task: str
    candidate: str
    ms: Sequence[float]
    default_ms: Sequence[float]


class Standing(Protocol):
    """A session as a search sees it: how it stands, and the pen to write winners down with."""

    @property
    def options(self) -> Options: ...
    @property
    def spaces(self) -> Mapping[str, Space]: ...
    @property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """The lines of the ledger."""

    def trials(self, key: str) -> Mapping[str, Mapping[str, Any]]:
        """The trials of a task by candidate."""

    def best(self, key: str) -> Best | None:
        """The winner of a task's latest decision, else its fastest successful trial."""

    def decided(self, key: str) -> bool:
        """Whether a task has a winner, and nothing of it was tried since."""

    def replay(self, key: str, name: str) -> Any | None:
        """The candidate of a trial, None if its record can't be applied."""

    def check(self) -> None:
        """To be asked between steps; what it raises passes."""

    def spend(self, kind: str, known: Mapping[str, float] | None = None) -> None:
        """Put the time since the last call down to `kind`, but for what is known to have gone elsewhere."""

    def win(self, winners: Sequence[Winner]) -> None:
        """Write winners down."""

    def show(self) -> None:
        """Tell whoever watches how it stands."""


@dataclass(frozen=True, kw_only=True)
class Remarks:
    """What is said of a finished search: how times were taken, `lines` after the tables, and `facts` for programs."""

    how: str
    lines: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Search(Protocol):
    """What a session asks: the tasks, what may be tried on them, what times it, and which of it wins."""

    @property
    def tasks(self) -> Sequence[Task]: ...
    @property
    def measurer(self) -> Measurer: ...

    def spaces(self, options: Options, check: Callable[[], None]) -> tuple[Mapping[str, Space], Mapping[str, int]]:
        """The space of each task by its key, and what they learnt from beforehand, with how many trials."""

    def begin(self, standing: Standing) -> None:
        """Take note of how it stands, before the first trial of this run."""

    def decide(self, standing: Standing) -> None:
        """Choose winners after the last trial, if they aren't chosen yet, and write them down."""

    def remarks(self) -> Remarks:
        """What is said of it when it is over."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A search of which it is known whose records they are, before there is a store for them.

    `search` opens the rest, given the store's folder.
    """

    identity: Identity
    search: Callable[[Path], AbstractContextManager[Search]]


class SearchKind(Protocol):
    """The functions of a module that searches for a kind of target."""

    FINALISTS: int
    """How many of a task's fastest candidates are held against its default in the end."""

    def check(self, target: Target, runner: str, *, elsewhere: bool) -> None:
        """Raise UserError for what no search can do; `elsewhere` says whether boards or builders were named."""

    def choose_runner(self, choice: str, target: Target, boards: Sequence[str] = ()) -> tuple[str, str]:
        """The runner and the reason for it. Raises MissingDependencyError, UserError."""

    def identity(self, target: Target) -> Identity:
        """Whose records those of this board are."""

    def tasks(self, target: Target, model: str, shapes: Sequence[Any]) -> Sequence[Task]:
        """What would be tuned."""

    def opened(self, plan: Plan, names: str | None) -> AbstractContextManager[Opened]:
        """What a search of the tasks with these `names` takes, open while the block lasts."""


NamedTask = TypeVar("NamedTask", bound=Task)


def select(tasks: Sequence[NamedTask], names: str | None) -> tuple[NamedTask, ...]:
    """The tasks with one of these names, given with commas; * stands for anything. Raises UserError."""
    if names is None:
        return tuple(tasks)
    patterns = [name.strip() for name in names.split(",") if name.strip()]
    for pattern in patterns:
        if not any(fnmatch(task.name, pattern) for task in tasks):
            raise UserError(f"There is no task {pattern!r}; the tasks are {', '.join(task.name for task in tasks)}.")
    return tuple(task for task in tasks if any(fnmatch(task.name, pattern) for pattern in patterns))


# -------------------------------------------------------------------------------------------------- the table of kinds


class RecordKind(Protocol):
    """The functions of a module that knows the records of a kind of target."""

    def check_trace(self, trace: Sequence[Any]) -> None:
        """Raise ValueError if a record's trace, which is two lists, isn't one of this kind."""


def of(target: Target) -> SearchKind | None:
    """The search of a board's kind, if it has one of its own; what the others search are schedules of TVM's kernels."""
    own = KINDS[target.kind].search
    return None if own is None else cast(SearchKind, import_module(own.module))


def candidates_of(target: Target) -> Candidates | None:
    """The kind's own ways with candidates, if it has some."""
    module = KINDS[target.kind].candidates
    return None if module is None else cast(Candidates, import_module(module))


def tuned_in(target: Target) -> str:
    """The arithmetic of the kernels that there are records of for a board."""
    own = KINDS[target.kind].search
    return "float32" if own is None else own.arithmetic


def own_search(described: Mapping[str, Any]) -> OwnSearch | None:
    """The kind's own search for a target as records describe it."""
    kind = KINDS.get(str(described.get("kind")))
    return None if kind is None else kind.search


def records_of(described: Mapping[str, Any]) -> RecordKind | None:
    """The module that knows the records of a target as they describe it, if they aren't MetaSchedule's."""
    own = own_search(described)
    return None if own is None else cast(RecordKind, import_module(own.records))
