"""One session of `tvmflow serve`, in a process of its own: `python -m tvmflow.remote.rpc_session LIMITS`.

It waits on standard input, a Unix socket, for the connection that it is to serve; until then it is a spare with its
imports done. What it runs may crash or run wild: limits hold it, and the server above it goes on.

The process that is started only watches over the session, which is its child: when the session or the server has ended,
however it did, it ends all that came of the session. On Linux it adopts what leaves the session's process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

RECORD = ".tvmflow-serve.json"
"""In a server's folder: whose it is."""
END_SECONDS = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def _end_with_the_server(control: socket.socket) -> None:
    control.recv(1)
    os._exit(1)


def main(text: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server, watcher = os.getppid(), os.getpid()
    session = os.fork()
    if session:
        sys.exit(_watch(session, server))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != watcher:
            os._exit(1)
    _serve(json.loads(text))


def _watch(session: int, server: int) -> int:
    """Wait for the session's end or the server's, then end what is left of it. Its exit code, or 128 + the signal's."""
    folder, waiting = Path.cwd(), select.poll()
    waiting.register(0, select.POLLHUP)  # the server's end of the socket, which the session reads
    seconds = 0.2
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # a kernel before 5.3
            waiting.register(os.pidfd_open(session), select.POLLIN)
            seconds = 60.0  # a process that wakes up often would disturb measurements
    code, left = 1, False
    while not left:
        left = any(descriptor == 0 for descriptor, _ in waiting.poll(int(1e3 * seconds)))
        found, status = os.waitpid(session, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
    _end_all()
    if left and _has_gone(server):
        _clear_away(folder)
    return code if code >= 0 else 128 - code


def _has_gone(server: int) -> bool:
    """Whether the server, this process's parent, has ended, which comes just after its end of the socket is closed."""
    for _ in range(10):
        if os.getppid() != server:
            return True
        time.sleep(0.02)
    return False


def _end_all() -> None:
    """End every descendant of this process, and those that they begin meanwhile."""
    import psutil

    until = time.monotonic() + END_SECONDS
    while time.monotonic() < until:
        found = psutil.Process().children(recursive=True)
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _clear_away(folder: Path) -> None:
    """Remove the session's folder, and the server's if it is the last: the server may have been killed."""
    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        if [path.name for path in folder.parent.iterdir()] == [RECORD]:
            (folder.parent / RECORD).unlink()
            folder.parent.rmdir()
            if folder.parents[1].name.startswith("tvmflow-"):  # a folder for temporary files, of the same server
                folder.parents[1].rmdir()


def _serve(limits: dict[str, Any]) -> None:
    control = socket.socket(fileno=0)
    import tvmflow.system.without_compiler  # noqa: F401

    # isort: split
    import tvm
    import tvm.rpc._ffi_api
    from tvm.support import utils

    from tvmflow.remote.deploy import FACTS

    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not descriptors:  # the server has gone
        return
    threading.Thread(target=_end_with_the_server, args=(control,), daemon=True).start()
    folder = Path.cwd()

    # `override`: TVM registers its own of these names, without bounds on where a path may lead
    @tvm.register_global_func("tvm.rpc.server.workpath", override=True)
    def workpath(name: str) -> str:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"a session's files have plain names, not {name!r}")
        return str(folder / name)

    @tvm.register_global_func("tvm.rpc.server.load_module", override=True)
    def load_module(name: str) -> tvm.runtime.Module:
        return tvm.runtime.load_module(workpath(name))

    @tvm.register_global_func("tvmflow.facts", override=True)
    def facts() -> str:
        for last in (False, False, True):
            try:
                command = ["sh", "-c", FACTS]
                return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
            except OSError:  # as qemu's user mode has it now and then for an exec that is in order
                if last:
                    raise
        raise AssertionError

    @tvm.register_global_func("tvmflow.digest", override=True)
    def digest(name: str) -> str:
        return hashlib.sha256(Path(workpath(name)).read_bytes()).hexdigest()

    @tvm.register_global_func("tvmflow.profile", override=True)
    def profile(job: str) -> str:
        from tvmflow.measure.worker import profile

        content = json.loads(job)
        paths = {"library": workpath(content["library"]), "inputs": [workpath(name) for name in content["inputs"]]}
        return json.dumps(profile({**content, **paths}))

    kept = utils.tempdir()  # TVM's server removes its own; ours is removed by the server above
    for name, limit in (
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_CORE", 0),
    ):
        if limit is not None:
            resource.setrlimit(getattr(resource, name), (int(limit), int(limit)))
    tvm.rpc._ffi_api.ServerLoop(descriptors[0])
    kept.remove()


if __name__ == "__main__":
    main(*sys.argv[1:])
