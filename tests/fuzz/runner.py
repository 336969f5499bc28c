"""Children that read spoiled files, one after the other, within limits of time and memory."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tvmflow.spec import TvmflowError

from .mutate import Files, spoil
from .readers import Reader

SECONDS = 20.0
"""That one input may take."""

FIRST_SECONDS = 90.0
"""That a child's first input may take besides: it imports what the reader needs."""

MEMORY_BYTES = 2 << 30
"""That a child may reserve beyond what it has when it begins."""

RESIDENT_BYTES = 1 << 30
"""That one input may add to a child's peak."""

INPUTS_OF_A_CHILD = 500
LONGEST_MESSAGE = 2000


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An input that a reader didn't refuse or take as is documented. `kind` and `where` are the same for the alike."""

    reader: str
    seed: int
    number: int
    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        command = f"python -m tests.fuzz --reader {self.reader} --seed {self.seed} --first {self.number} --inputs 1"
        return f"{self.kind}: {self.where}: {self.message[:300]}\n    {command}"


def made(reader: Reader, corpus: list[Files], seed: int, number: int) -> Files:
    """Input `number`: the corpus as it is at first, then spoiled files of it."""
    if number < len(corpus):
        return corpus[number]
    rng = Random(f"{seed} {reader.name} {number}")
    files = spoil(rng.choice(corpus), corpus, rng)
    return reader.repaired(files) if reader.repaired and rng.random() < 0.9 else files


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)


def fuzz(
    reader: Reader, corpus: list[Files], seed: int, numbers: range, *, seconds: float = float("inf")
) -> Iterator[int | Fault]:
    """Have `reader` read inputs of these numbers, and give what went wrong, and the numbers of what went well.

    Stops after `seconds`, however many inputs are left.
    """
    ends, number = time.monotonic() + seconds, numbers.start
    while number < numbers.stop and time.monotonic() < ends:
        part = range(number, min(numbers.stop, number + INPUTS_OF_A_CHILD))
        for outcome in _one_child(reader, corpus, seed, part, ends):
            yield outcome
            number = (outcome if isinstance(outcome, int) else outcome.number) + 1


def _one_child(reader: Reader, corpus: list[Files], seed: int, numbers: range, ends: float) -> Iterator[int | Fault]:
    """What a child says of its inputs, and of the one with which it ended, if it ended with one."""
    begun = mmap.mmap(-1, 16)  # the number of the input that is made or read, and when its reading began
    begun[:] = struct.pack("qd", numbers.start, 0.0)
    receive, send = os.pipe()
    root = Path(tempfile.mkdtemp(prefix="tvmflow-fuzz-"))
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _be_child(reader, corpus, seed, numbers, ends, begun, send, root)
    os.close(send)
    text, kind, where = b"", "", ""
    try:
        while True:
            ready, _, _ = select.select([receive], [], [], 0.5)
            if ready:
                if not (block := os.read(receive, 1 << 16)):
                    break
                *rows, text = (text + block).split(b"\n")
                for row in rows:
                    said = json.loads(row)
                    yield Fault(reader=reader.name, seed=seed, **said) if "kind" in said else said["number"]
            number, since = struct.unpack("qd", begun[:])
            most = SECONDS + (FIRST_SECONDS if number == numbers.start else 0)
            if since and time.monotonic() - since > most and not kind:
                kind, where = "time-out", f"over {SECONDS:g} s"
                os.kill(child, signal.SIGKILL)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(receive)
        _, status = os.waitpid(child, 0)
        shutil.rmtree(root, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        number, _ = struct.unpack("qd", begun[:])
        if not kind:
            kind, where = "signal" if code < 0 else "exit", signal.Signals(-code).name if code < 0 else str(code)
        yield Fault(reader=reader.name, seed=seed, number=number, kind=kind, where=where, message="")


def _be_child(
    reader: Reader,
    corpus: list[Files],
    seed: int,
    numbers: range,
    ends: float,
    begun: mmap.mmap,
    send: int,
    root: Path,
) -> None:
    """Read the inputs, and never return."""
    try:
        faulthandler.disable()  # pytest's
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        os.chdir(root)
        _limit_memory()
        for number in numbers:
            if time.monotonic() > ends:
                break
            begun[:] = struct.pack("qd", number, 0.0)
            try:
                files = made(reader, corpus, seed, number)
            except Exception as error:
                fault = {"kind": "the fuzzer's own", "where": _where(error), "message": repr(error)[:500]}
                os.write(send, json.dumps({"number": number, **fault}).encode() + b"\n")
                continue
            begun[:] = struct.pack("qd", number, time.monotonic())
            said = {"number": number, **_outcome(reader, files, root / "input")}
            begun[:] = struct.pack("qd", number, 0.0)
            os.write(send, json.dumps(said).encode() + b"\n")
            shutil.rmtree(root / "cache", ignore_errors=True)
        os._exit(0)
    except BaseException:
        os._exit(70)


def _limit_memory() -> None:
    reserved = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(reader: Reader, files: Files, folder: Path) -> dict[str, Any]:
    """Nothing if the reader took the files or refused them as it should, else what a `Fault` has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write({name: content for name, content in files.items() if name}, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        reader.read(folder / reader.path if reader.path else folder)
    except TvmflowError as error:
        message = str(error)
        if not message.isprintable() or len(message) > LONGEST_MESSAGE or not message:
            kind = "a message that is too long" if message.isprintable() else "a message that is no line"
            return {"kind": kind, "where": _where(error), "message": repr(message[:500])}
    except BaseException as error:
        message = f"{type(error).__name__}: {str(error)[:500]!r}"
        return {"kind": type(error).__name__, "where": _where(error), "message": message}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > RESIDENT_BYTES:
        return {"kind": "memory", "where": "resident", "message": f"{grown:,} bytes more"}
    return {}


def _where(error: BaseException) -> str:
    """The last line of tvmflow's own in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(Path(__file__).parents[2])
    own = [
        frame for frame in frames if frame.filename.startswith(root) and f"{os.sep}tests{os.sep}" not in frame.filename
    ]
    own = [frame for frame in own if ".venv" not in frame.filename]
    frame = (own or list(frames))[-1]
    return f"{os.path.relpath(frame.filename, root)}:{frame.lineno} in {frame.name}: {frame.line}"
