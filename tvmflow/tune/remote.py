"""Timing candidates on boards, one or a farm of the same: over RPC, through `tvmflow serve`.

Candidates are compiled and linked here and timed there, each board with a process of this computer of its own, since
TVM's client goes down with a connection that breaks. A board that goes away is left out and taken back when it
answers again; what it was at is measured again, so that no trial is lost. One that joins the tracker later is taken in.
A candidate that ends its session is tried
once more, alone in a fresh one, before it is recorded as crashed: it may have been the one before it.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvmflow.remote import tracker as trackers
from tvmflow.remote.deploy import why_incompatible
from tvmflow.remote.rpc import Place, health, reach
from tvmflow.schedules import UNSCHEDULED
from tvmflow.spec import DeviceError, Target, UserError
from tvmflow.system import children
from tvmflow.targets.search import EMULATED, Identity, Result, Where
from tvmflow.tune.builders import Builders, start_process
from tvmflow.tune.measure import REPEATS, SHORTEST_MS, device
from tvmflow.tune.processes import CHECK_S, Worker, WorkerError

log = logging.getLogger("tvmflow.tune")

CONNECT_LIMIT_S, RUN_LIMIT_S = 180.0, 60.0
"""What a session may take to begin, others' included, and what a candidate may take in it."""
RETRY_S, GIVE_UP_S = 5.0, 600.0
"""How often a board that was lost is looked for, and how long a search waits while all are."""
NEWCOMERS_S = 10.0
"""How often a tracker is asked whether more boards have come."""
MOST_LOSSES = 3
"""A candidate over which boards were lost so often is what loses them."""
SESSION_SHARE = 0.5
"""Of the time that a board allows a session, after which a search begins another."""


def listed(tracker: str, key: str, token_file: Path | None) -> list[Where]:
    """The boards of that kind which a tracker knows. Raises DeviceError, UserError."""
    found = trackers.ports(trackers.parse_address(tracker), trackers.check_key(key))
    addresses = [f"{trackers.LOOPBACK}:{port}" for port in found]
    return [Where(name=name, arguments={"address": name, "token_file": token_file}) for name in addresses]


class Board:
    """A board and the process that talks to it.

    Its state is "lost", "ready" (a session can be begun), "connecting", "idle" (in a session) or "busy".
    """

    def __init__(self, where: Where, target: Target) -> None:
        self.where, self.target = where, target
        self.state, self.facts = "lost", dict[str, Any]()
        self.fresh = False
        self.job = -1
        self.look_again = 0.0
        self._reached = contextlib.ExitStack()
        self.process = self._start()

    def _start(self) -> Worker:
        settings = {
            "shortest_ms": SHORTEST_MS,
            "threads": self.target.cpu.cores,
            "device": device(self.target),
        }
        self.had_session = False
        return start_process("remote", settings, children.environment(), RUN_LIMIT_S)

    def look(self) -> None:
        """Find the board's server. Raises DeviceError, UserError."""
        self._reached.close()
        self.look_again = time.monotonic() + RETRY_S
        self.place: Place = self._reached.enter_context(reach(**self.where.arguments))
        self.session_s = SESSION_SHARE * float(health(self.place)["session_seconds"])
        self.state = "ready"

    def connect(self) -> None:
        """Begin a session; the process has the answer."""
        if self.had_session:  # which only ends with its process for sure, and the board serves one at a time
            self.process.close()
            self.process = self._start()
        self.had_session = True
        self.state, self.process.limit_s = "connecting", CONNECT_LIMIT_S
        place = self.place
        self.process.send({"connect": {"port": place.port, "server_port": place.server_port, "token": place.token}})

    def connected(self, answer: dict[str, Any]) -> None:
        """Take what the board says of itself. Raises DeviceError, UserError if it isn't what is tuned for."""
        if answer["outcome"] != "ok":
            raise DeviceError(f"{self.where.name} refuses a session: {answer['message']}.", "auth")
        if reason := why_other(self.target, answer["facts"], self.where.name):
            raise UserError(reason)
        self.facts = answer["facts"]
        self.state, self.fresh, self.until = "idle", True, time.monotonic() + self.session_s

    def run(self, job: int, content: dict[str, Any]) -> None:
        self.state, self.job, self.process.limit_s = "busy", job, RUN_LIMIT_S
        self.process.send(content)

    def is_there(self) -> bool:
        try:
            health(self.place)
        except DeviceError:
            return False
        return True

    def lose(self) -> None:
        self.state, self.look_again = "lost", time.monotonic() + RETRY_S

    def close(self) -> None:
        self.process.close()
        self._reached.close()


def why_other(target: Target, facts: Mapping[str, Any], name: str) -> str | None:
    """Why records of a board that says this of itself aren't of `target`; None if they are, or if it is emulated."""
    if reason := why_incompatible(target.elf, facts, name):
        return reason
    if "emulator" in facts:
        return None
    found, wanted = facts.get("model", ""), target.identity
    if target.kind == "llvm":
        found, wanted = facts.get("cpu", ""), target.cpu.model
    if wanted and not found.startswith(wanted):
        return f"{name} is {found or 'an unnamed computer'}, and records for {target.name} have to come from {wanted}."
    return None


@contextlib.contextmanager
def boards(
    wheres: Sequence[Where], target: Target, *, check: Callable[[], None] = lambda: None
) -> Iterator[list[Board]]:
    """The boards of a search, each in a session if it answers. Raises DeviceError if none does, UserError."""
    if not wheres:
        yield []
        return
    found = [Board(where, target) for where in wheres]
    failures = []
    try:
        for board in found:
            try:
                board.look()
                board.connect()
                board.connected(board.process.receive(check))
            except (DeviceError, WorkerError) as error:
                board.lose()
                failures.append(DeviceError(f"{board.where.name} can't be used: {error}", "unreachable"))
                log.info(f"{failures[-1]} Going on without it for now.")
        known = [board for board in found if board.facts]
        if not known:
            raise failures[-1]
        check_alike(known)
        yield found
    finally:
        for board in found:
            board.close()


def marked(identity: Identity, found: Sequence[Board]) -> Identity:
    """Whose records those of these boards are: an emulated board's are of no other's, so that no build takes them."""
    emulator = next((board.facts["emulator"] for board in found if "emulator" in board.facts), None)
    return replace(identity, cpu=f"{identity.cpu}{EMULATED}{emulator}") if emulator else identity


def check_alike(known: Sequence[Board]) -> None:
    """Raises UserError if the boards' times can't be compared."""
    first = known[0]
    for board in known:
        for key in ("emulator", "model", "cpu"):
            if board.facts.get(key) != first.facts.get(key):
                raise UserError(
                    f"{board.where.name} and {first.where.name} aren't alike ({board.facts.get(key)} and "
                    f"{first.facts.get(key)}), so their times can't be compared."
                )


class RemoteMeasurer:
    """Boards that time candidates side by side, each one after the other.

    `check` is asked several times a second while it waits; what it raises passes. `listed` says which boards there are
    now, and those that are new are added to `found`.
    """

    name = "rpc"

    def __init__(
        self,
        found: list[Board],
        builders: Builders,
        *,
        check: Callable[[], None] = lambda: None,
        listed: Callable[[], Sequence[Where]] | None = None,
    ) -> None:
        self.boards, self.builders, self.check, self.listed = found, builders, check, listed
        self.ask_again = time.monotonic() + NEWCOMERS_S
        self.run_seconds = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent so far by kind: "build" and "run"."""
        return {"build": self.builders.seconds, "run": self.run_seconds}

    def measure(self, task: Any, candidates: Sequence[Any], best_ms: float | None) -> Iterator[Result]:
        """Build them all, then give one result after the other. Raises DeviceError if all boards stay away."""
        failures = self.builders.build(task, candidates)
        good = [row for row in candidates if row.text not in failures]
        answers = self._answers([self._job(task, [row], best_ms, REPEATS) for row in good])
        for candidate in candidates:
            yield failures[candidate.text] if candidate.text in failures else _result(next(answers))

    def compare(self, task: Any, candidates: Sequence[Any], rounds: int) -> list[tuple[float, ...]]:
        """Times in ms of candidates that were measured before, in turns on one board; empty if one of them failed."""
        if self.builders.build(task, candidates):
            return []
        answer = next(self._answers([self._job(task, candidates, None, rounds)]))
        return [tuple(times) for times in answer["ms"]] if answer["outcome"] == "ok" else []

    def close(self) -> None:
        """The boards are closed by who opened them."""

    def _job(self, task: Any, candidates: Sequence[Any], best_ms: float | None, repeats: int) -> dict[str, Any]:
        return {
            "libraries": [str(self.builders.library(task, candidate.text)) for candidate in candidates],
            "reference": str(self.builders.library(task, UNSCHEDULED)),
            "arguments": task.arguments,
            "best_ms": best_ms,
            "repeats": repeats,
        }

    def _answers(self, jobs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What came of jobs, in their order."""
        round_ = _Round(jobs)
        for index in range(len(jobs)):
            started = time.perf_counter()
            try:
                while index not in round_.answers:
                    self._step(round_)
            finally:
                self.run_seconds += time.perf_counter() - started
            yield round_.answers[index]

    def _step(self, round_: _Round) -> None:
        if self.listed and time.monotonic() > self.ask_again:
            self._welcome(self.listed)
        for board in self.boards:
            if board.state == "lost" and time.monotonic() > board.look_again:
                self._look_for(board)
            self._occupy(board, round_)
        talking = [board for board in self.boards if board.state in ("busy", "connecting")]
        with selectors.DefaultSelector() as selector:
            for board in talking:
                selector.register(board.process, selectors.EVENT_READ)
            selector.select(CHECK_S)
        self.check()
        for board in talking:
            self._hear(board, round_)
        if all(board.state == "lost" for board in self.boards):
            round_.alone_since = round_.alone_since or time.monotonic()
            if time.monotonic() - round_.alone_since > GIVE_UP_S:
                names = ", ".join(board.where.name for board in self.boards)
                raise DeviceError(f"No board has answered for {GIVE_UP_S:g} s: {names}.", "lost")
        else:
            round_.alone_since = 0.0

    def _welcome(self, listed: Callable[[], Sequence[Where]]) -> None:
        known = {board.where.name for board in self.boards}
        with contextlib.suppress(DeviceError):  # the tracker has gone, or knows none at the moment
            self.boards += [Board(where, self.boards[0].target) for where in listed() if where.name not in known]
        self.ask_again = time.monotonic() + NEWCOMERS_S

    def _look_for(self, board: Board) -> None:
        try:
            board.look()
        except DeviceError:
            board.lose()
        else:
            log.info(f"{board.where.name} is there{' again' if board.facts else ' as well'}")

    def _occupy(self, board: Board, round_: _Round) -> None:
        """Give a board its next job, in a session that is young enough."""
        if not round_.waiting or board.state not in ("ready", "idle"):
            return
        alone = round_.endings.get(round_.waiting[0], 0) > 0
        if board.state == "ready" or time.monotonic() > board.until or (alone and not board.fresh):
            board.connect()
            return
        job = round_.waiting.pop(0)
        board.run(job, round_.jobs[job])

    def _hear(self, board: Board, round_: _Round) -> None:
        was_connecting = board.state == "connecting"
        try:
            answer = board.process.poll()
            if answer is None:
                return
            if was_connecting:
                board.connected(answer)
                check_alike([row for row in self.boards if row.facts])
                return
        except WorkerError as error:
            answer = {"outcome": error.outcome, "message": str(error)}
        except (DeviceError, UserError) as error:
            log.info(f"Going on without {board.where.name}: {error}")
            board.facts = {}  # of a board that isn't the others' like nothing counts
            board.lose()
            return
        if was_connecting:
            board.lose()
            return
        job, fresh = board.job, board.fresh
        board.fresh = False
        if answer["outcome"] in ("ok", "wrong", "failed"):
            board.state = "idle"
            round_.answers[job] = answer
            return
        # the session has ended: over the candidate, or because the board has gone
        if not board.is_there():
            log.info(f"{board.where.name} is lost; what it was at is measured again")
            board.lose()
            round_.lost(job, board.where.name)
            return
        board.state = "ready"
        if answer["outcome"] == "hung" or fresh:
            round_.answers[job] = answer
        else:
            round_.again(job)


class _Round:
    """Jobs on their way."""

    def __init__(self, jobs: Sequence[dict[str, Any]]) -> None:
        self.jobs = list(jobs)
        self.waiting = list(range(len(jobs)))
        self.answers: dict[int, dict[str, Any]] = {}
        self.endings: dict[int, int] = {}
        self.losses: dict[int, int] = {}
        self.alone_since = 0.0

    def again(self, job: int) -> None:
        """Measure it once more, alone."""
        self.endings[job] = self.endings.get(job, 0) + 1
        self.waiting.insert(0, job)

    def lost(self, job: int, name: str) -> None:
        self.losses[job] = self.losses.get(job, 0) + 1
        if self.losses[job] < MOST_LOSSES:
            self.waiting.insert(0, job)
        else:
            message = f"boards were lost over it {MOST_LOSSES} times, at last {name}"
            self.answers[job] = {"outcome": "crashed", "message": message}


def _result(answer: Mapping[str, Any]) -> Result:
    if answer["outcome"] == "ok":
        return Result(outcome="ok", ms=tuple(answer["ms"][0]))
    known = answer["outcome"] in ("wrong", "hung")
    return Result(outcome=answer["outcome"] if known else "crashed", message=answer["message"])
