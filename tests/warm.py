"""The command line in processes that begin with everything imported: `WarmProcess` is asked, this file's main answers.

A command spends most of its time importing PyTorch and TVM. The server has done that once, runs nothing else (a process
whose libraries have started threads mustn't be forked), and forks for each command a child that becomes `tvmflow` with
the arguments, the folder and the variables it is given.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

UNREAD_WHEN_IMPORTING = frozenset({"CUDA_VISIBLE_DEVICES", "TMPDIR", "XDG_CACHE_HOME"})
"""The variables of which it makes no difference whether they were set before the imports."""


class WarmProcess:
    """A server of commands, whose children come from the servers in a folder (`warm_children`) if one is given."""

    def __init__(self, children: str | None = None) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *([children] if children else [])]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._answers = self._connection.makefile("r", encoding="utf-8")

    def run(self, arguments: Sequence[str], cwd: Path | None, environment: dict[str, str]) -> tuple[int, str, str]:
        """The exit code of `tvmflow ARGUMENTS…`, as a shell has it, and what it says on stdout and stderr."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            said = {"arguments": list(arguments), "cwd": str(cwd or Path.cwd()), "environment": environment}
            socket.send_fds(self._connection, [f"{json.dumps(said)}\n".encode()], [out.fileno(), err.fileno()])
            code = int(self._answers.readline())
            return code, _text(out), _text(err)

    def close(self) -> None:
        """End the server."""
        self._answers.close()
        self._connection.close()
        self._process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _import_everything() -> None:
    """What commands import at some time; a module that isn't here is imported by the command that needs it."""
    for name in (
        *("elftools.elf.elffile", "jsonschema", "torch._dynamo", "torch._functorch.aot_autograd"),
        *("torch.export._trace", "tvm.relax.frontend.torch", "tvm.s_tir", "tvmflow.bundles.build", "tvmflow.cli"),
        *("tvmflow.targets.cpu.backend", "tvmflow.report.estimate", "tvmflow.bundles.evaluate", "tvmflow.models"),
        *("tvmflow.network.frontend", "tvmflow.integer.frontend", "tvmflow.network.pytorch", "tvmflow.pipeline"),
        *("tvmflow.report", "tvmflow.schedules", "tvmflow.tune.apply", "tvmflow.tune.command"),
        *("numpy.ma", "tvmflow.report.render", "tvmflow.schedules.registry", "tvmflow.tune.tasks"),
    ):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):  # the part of it that reads options, which has no name that it promises
        importlib.import_module("typer._adapters")


def _serve(connection: socket.socket) -> None:
    """Return in each child, with all that it was given in place."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        while message and not message.endswith(b"\n"):
            message += connection.recv(1 << 16)
        if not message:
            os._exit(0)
        child = os.fork()
        if child:
            for descriptor in descriptors:
                os.close(descriptor)
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            continue
        connection.close()
        for place, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, place)
            os.close(descriptor)
        said = json.loads(message)
        os.chdir(said["cwd"])
        os.environ.clear()
        os.environ.update(said["environment"])
        tempfile.tempdir = None  # TMPDIR may be another now
        sys.argv[:] = ["tvmflow", *said["arguments"]]
        return


def end_with(code: int) -> None:
    """End as the interpreter does, but for taking apart each of some thousand modules."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    import warm_children

    # As for `python -m tvmflow`, whose __main__ takes the first folder away: this file's is none of its.
    del sys.path[0]
    _import_everything()
    for folder in sys.argv[2:]:
        warm_children.use(folder)
    from tvmflow.cli import main

    _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        main()
    except SystemExit as end:
        end_with(int(end.code or 0))
