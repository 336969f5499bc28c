"""Tuning on boards: no trial is lost, faults are put down to whose they are, and emulated times stay apart."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from boards import TOKEN, running
from conftest import ROOT
from kernels import TASK, adding, allocating, as_candidate, calling

from tvmflow.remote.serve import Server
from tvmflow.schedules import UNSCHEDULED
from tvmflow.spec import DeviceError, UserError
from tvmflow.targets import TARGETS
from tvmflow.targets.search import Where
from tvmflow.tune import remote
from tvmflow.tune.apply import find_records
from tvmflow.tune.builders import Builders, LocalPool
from tvmflow.tune.remote import Board, RemoteMeasurer
from tvmflow.tune.tasks import identity

HOST = TARGETS["host"]
PI = TARGETS["raspberry-pi-4b"]


@pytest.fixture(scope="module")
def builders() -> Iterator[Builders]:
    with closing(Builders(LocalPool(HOST, identity(HOST).target, 1))) as found:
        yield found


@contextlib.contextmanager
def farm(tmp_path: Path, count: int, **limits) -> Iterator[tuple[list[Server], list[Where]]]:
    """Servers on this computer that stand for boards."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(count):
            (tmp_path / str(number)).mkdir()
            servers.append(stack.enter_context(running(tmp_path / str(number), **limits)))
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        yield servers, [Where(name=name, arguments={"address": name, "token_file": token}) for name in addresses]


def outcomes(found: list[Board], builders: Builders, batch: list) -> list[str]:
    measurer = RemoteMeasurer(found, builders)
    return [result.outcome for result in measurer.measure(TASK, batch, None)]


def good(count: int, prefix: str = "good") -> list:
    return [as_candidate(f"{prefix} {number}", adding(1)) for number in range(count)]


def test_every_fault_is_the_candidates_own(tmp_path, builders, monkeypatch):
    """Wrong, crashing, hanging and greedy ones among good ones; those before and after them are measured."""
    monkeypatch.setattr(remote, "RUN_LIMIT_S", 5.0)
    monkeypatch.setattr("tvmflow.remote.serve.FAREWELL_SECONDS", 1.0)
    batch = [
        *good(1),
        as_candidate(UNSCHEDULED, TASK.module),
        as_candidate("wrong", adding(2)),
        as_candidate("memory", allocating(4 << 30)),
        as_candidate("segfault", calling("raise", 11)),
        as_candidate("hang", calling("sleep", 600)),
        *good(1, "after"),
    ]
    with farm(tmp_path, 1, memory_bytes=2 << 30) as (_, wheres), remote.boards(wheres, HOST) as found:
        assert outcomes(found, builders, batch) == ["ok", "ok", "wrong", "crashed", "crashed", "hung", "ok"]
        times = RemoteMeasurer(found, builders).compare(TASK, [batch[0], batch[-1]], 3)
    assert [len(row) >= 3 for row in times] == [True, True]


def test_a_lost_board_is_taken_back_and_nothing_is_lost(tmp_path, builders, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 0.2)
    monkeypatch.setattr("tvmflow.remote.serve.FAREWELL_SECONDS", 1.0)
    with farm(tmp_path, 2) as (servers, wheres), remote.boards(wheres, HOST) as found:
        first = servers[0]

        def replace() -> None:
            first.stop()
            while True:
                with contextlib.suppress(UserError):
                    servers.append(Server(TOKEN, port=first.port, folder=tmp_path))
                    return servers[-1].run()
                time.sleep(0.1)

        batch = [as_candidate(f"slow {number}", calling("usleep", 60_000)) for number in range(6)]
        replaced = threading.Thread(target=replace)
        results = RemoteMeasurer(found, builders).measure(TASK, batch, None)
        seen = [next(results).outcome]
        replaced.start()
        seen += [result.outcome for result in results]
        assert seen == ["ok"] * 6
        states = {board.state for board in found}
        until = time.monotonic() + 60
        tried = 0
        while found[0].state == "lost" and time.monotonic() < until:
            tried += 1
            assert outcomes(found, builders, good(1, f"more {tried}")) == ["ok"]
        assert found[0].state != "lost", states
        servers[-1].stop()
        replaced.join()


def test_a_board_that_joins_later_is_taken_in(tmp_path, builders, monkeypatch):
    monkeypatch.setattr(remote, "NEWCOMERS_S", 0.0)
    with farm(tmp_path, 2) as (servers, wheres), remote.boards(wheres[:1], HOST) as found:
        there = wheres[:1]
        measurer = RemoteMeasurer(found, builders, listed=lambda: there)
        pair = good(2, "joined")
        assert [result.outcome for result in measurer.measure(TASK, pair, None)] == ["ok", "ok"]
        assert len(found) == 1
        there.append(wheres[1])
        until = time.monotonic() + 60
        while not servers[1].busy.locked() and time.monotonic() < until:
            assert [result.outcome for result in measurer.measure(TASK, pair, None)] == ["ok", "ok"]
        assert [board.where.name for board in found] == [where.name for where in wheres]
        assert servers[1].busy.locked()


def test_a_board_behind_ssh(board, tmp_path, builders, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (board.home / ".config" / "tvmflow").mkdir(parents=True)
    (board.home / ".config" / "tvmflow" / "rpc-token").write_text(TOKEN)
    with farm(tmp_path, 1) as (servers, _):
        where = Where(name="board", arguments={"ssh": "board", "ssh_config": board.config, "port": servers[0].port})
        with remote.boards([where], HOST) as found:
            assert outcomes(found, builders, good(2, "ssh")) == ["ok", "ok"]


def test_boards_that_are_not_alike(tmp_path, builders):
    """The one that comes back as another is left out; the search goes on with the first."""
    with farm(tmp_path, 2) as (_, wheres), remote.boards(wheres, HOST) as found:
        remote.check_alike(found)
        found[1].facts = {**found[1].facts, "model": "another"}
        with pytest.raises(UserError, match="aren't alike"):
            remote.check_alike(found)


def test_all_boards_stay_away(tmp_path, builders, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 0.1)
    monkeypatch.setattr(remote, "GIVE_UP_S", 0.5)
    with farm(tmp_path, 1) as (servers, wheres), remote.boards(wheres, HOST) as found:
        assert outcomes(found, builders, good(1, "first")) == ["ok"]
        servers[0].stop()
        with pytest.raises(DeviceError, match="No board has answered"):
            outcomes(found, builders, good(1, "second"))


def test_a_session_is_renewed_before_the_board_ends_it(tmp_path, builders, monkeypatch):
    with farm(tmp_path, 1, seconds=600.0) as (servers, wheres), remote.boards(wheres, HOST) as found:
        found[0].until = 0.0
        assert outcomes(found, builders, good(1, "old")) == ["ok"]
        assert found[0].until > time.monotonic()
        assert servers[0].counts["failed"] == 0


def test_another_board_is_not_tuned_on(tmp_path):
    with farm(tmp_path, 1) as (_, wheres):
        with pytest.raises(UserError, match="Nothing was sent"), remote.boards(wheres, PI):
            pass
        (tmp_path / "other").write_text("fedcba9876543210" * 2)
        (tmp_path / "other").chmod(0o600)
        where = Where(name="board", arguments={**wheres[0].arguments, "token_file": tmp_path / "other"})
        with pytest.raises(DeviceError, match="can't be used"), remote.boards([where], HOST):
            pass
    facts = {"machine": "aarch64", "bits": "64", "libc": "glibc 2.36", "model": "Raspberry Pi 5 Model B Rev 1.0"}
    assert "have to come from Raspberry Pi 4 Model B" in str(remote.why_other(PI, facts, "pi"))
    assert remote.why_other(PI, {**facts, "model": "Raspberry Pi 4 Model B Rev 1.4"}, "pi") is None


@pytest.mark.emulated
@pytest.mark.slow
def test_on_an_emulated_board(emulated, tvmflow, tmp_path):
    """Sixteen trials; their times are nowhere shown and no build takes them."""
    with emulated.serving(f"tvmflow/bin/tvmflow serve --port {emulated.port}", emulated.port):
        done = tvmflow(
            *("tune", "--target", "arm_cpu", "--model", "networks:tiny", "--input-shape", "1x3x9x7", "--trials", "16"),
            *("--runner", "rpc", "--host", emulated.address, "--token-file", emulated.token_file),
            *("--min-gain", "0", "--work-dir", tmp_path, "--json", tmp_path / "tune.json"),
            PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        )
    assert done.code == 0, done.err
    assert "16/16 trials (16 in this run), failed: none" in done.out
    assert "emulated" in done.out
    assert " ms" not in done.out + done.err
    assert "µs" not in done.out + done.err
    summary = json.loads((tmp_path / "tune.json").read_text())
    assert summary["basis"] == "emulated"
    assert {row["best_ms"] for row in summary["tasks"]} == {None}
    assert find_records(PI) == {}
    with pytest.raises(UserError, match="emulated by qemu-aarch64-static instead of Cortex-A72"):
        find_records(PI, tmp_path)
    (tmp_path / "out").mkdir()
    tvmflow("report", tmp_path, "-o", tmp_path / "out").failed_with(4, "emulated board")
    shown = tvmflow("db", "show", tmp_path)
    assert "µs" not in shown.out
