"""Children of tvmflow that begin with their imports done: `use` has `children.python` give their commands.

A process that runs a library, or compiles a kernel, takes seconds of imports for a moment's work, and the tests start
hundreds. A server has imported what they need, runs nothing else, and forks for each child one that becomes it, with
the variables, streams, folder and limits that it would have had. What the tests start is a client, a small process that
ends as the child does, and takes it along if it is killed. Where there is no server, it becomes the child itself.

`python -I -S warm_children.py SOCKET PARENT COMMAND…` is the client, `python warm_children.py SOCKET NAME PATH` the
server.
"""

from __future__ import annotations

# A client imports no more than it needs: that is what it saves.
import json
import os
import select
import signal
import socket
import sys

if not sys.flags.isolated:
    import contextlib
    import ctypes
    import importlib
    import resource
    import runpy
    import subprocess
    import tempfile
    import traceback
    from collections.abc import Callable
    from typing import Any

    from warm import end_with

LIBRARIES = (
    *("tvmflow.system.without_compiler", "numpy", "psutil", "tvm", "tvm.runtime.vm", "tvm.rpc"),
    *("tvmflow.measure.noise", "tvmflow.network.agreement", "tvmflow.remote.deploy", "tvmflow.remote.handshake"),
    *("tvmflow.report", "tvmflow.system.limits", "tvmflow.system.tensors"),
)
COMPILER = (
    *("numpy", "psutil", "tvm", "tvm.relax", "tvm.s_tir.meta_schedule", "tvmflow.network.agreement"),
    *("tvmflow.passes.schedule_kernels", "tvmflow.pipeline", "tvmflow.system.toolchain", "tvmflow.targets"),
    *("tvmflow.targets.cpu.backend", "tvmflow.targets.cuda.generate", "tvmflow.targets.cuda.rank"),
    "tvmflow.tune.tasks",
)
IMPORTS = {"libraries": LIBRARIES, "compiler": COMPILER, "stand-in": COMPILER}
"""What each server imports. PyTorch isn't there for any of its children."""
EARLY = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "TVM_USE_RUNTIME_LIB")
"""Variables that are read before a server could set them: with other values a child begins from nothing."""


def possible() -> bool:
    """Whether this system has what servers and clients are made of."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def server_of(module: str, arguments: tuple[str, ...]) -> str | None:
    """Which server a child of this module can come from, if any."""
    if module == "tvmflow.tune.worker":
        return "libraries" if arguments[0] in ("run", "remote") else "compiler"
    if module in ("tvmflow.measure.worker", "tvmflow.measure.emulated_kernels", "tvmflow.remote.rpc_worker"):
        return "libraries"
    return "stand-in" if module == "tvmflow.targets.cuda.standin" else None


# ---------------------------------------------------------------------------------------------------- who starts them


class Servers:
    """The servers of this process, begun when they are first asked for; `folder` has their sockets."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.python = python_of(folder, self.start)
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._lifeline = os.pipe()  # servers end when this process does, which has the end that is written to

    def start(self, name: str) -> None:
        if name in self._started:
            return
        environment = dict(os.environ)
        if name == "stand-in":
            from tvmflow.targets.cuda import standin

            environment = standin.environment("sm_87")
        self._started[name] = subprocess.Popen(
            [sys.executable, __file__, os.path.join(self.folder, name), name, json.dumps(sys.path)],
            stdin=self._lifeline[0],
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )


def use(folder: str) -> None:
    """Have all children of this process come from the servers whose sockets are in `folder`."""
    from tvmflow.system import children

    children.python = python_of(folder)


def python_of(folder: str, start: Callable[[str], None] | None = None) -> Any:
    """`children.python`, with a client's command for what a server can begin, which `start` is told before."""
    from tvmflow.system import children

    cold = children.python

    def python(module: str, *arguments: str | os.PathLike[str], ends_with_parent: bool = True) -> list[str]:
        command = cold(module, *arguments, ends_with_parent=ends_with_parent)
        name = server_of(module, tuple(map(str, arguments)))
        if name is None:
            return command
        if start is not None:
            start(name)
        parent = str(os.getpid() if ends_with_parent else 0)
        return [sys.executable, "-I", "-S", "-B", __file__, os.path.join(folder, name), parent, *command]

    return python


# ------------------------------------------------------------------------------------------------------- the client


def _client(path: str, parent: int, command: list[str]) -> None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:  # it hasn't begun yet, or will never
        os.execv(command[0], command)
    said = {"command": command, "cwd": os.getcwd(), "environment": dict(os.environ), "pid": os.getpid()}
    umask = os.umask(0)
    message = json.dumps({**said, "umask": umask}).encode()
    socket.send_fds(connection, [len(message).to_bytes(8, "little")], [0, 1, 2])
    connection.sendall(message)
    if connection.recv(1) != b"y":
        os.umask(umask)
        os.execv(command[0], command)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # whoever waits for the end of one of these waits for the child's
        os.dup2(nothing, stream)
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    if parent:
        try:
            waiting.register(os.pidfd_open(parent), select.POLLIN)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if not any(descriptor == connection.fileno() for descriptor, _ in waiting.poll()):
        os.kill(os.getpid(), signal.SIGKILL)
    code = int(connection.recv(16) or b"-9")
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# ------------------------------------------------------------------------------------------------------- the server


def _serve(path: str, name: str) -> list[str]:
    """Return in each child, with all in place, the module that it is to run and its arguments."""
    before = {variable: os.environ.get(variable) for variable in EARLY}
    sys.modules["torch"] = None  # type: ignore[assignment]
    for module in IMPORTS[name]:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}-")
    listener.listen(64)
    os.rename(f"{path}-", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    waiting = select.poll()
    for descriptor in (0, listener.fileno()):
        waiting.register(descriptor, select.POLLIN)
    while True:
        if any(descriptor == 0 for descriptor, _ in waiting.poll()):
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _mind(connection, before)
        connection.close()


def _mind(connection: socket.socket, before: dict[str, str | None]) -> list[str]:
    """See to one child from its beginning to its end, and return in it. `before` are variables of the server's own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    message = b""
    while len(message) < int.from_bytes(size, "little"):
        message += connection.recv(1 << 16)
    said = json.loads(message)
    environment, command = said["environment"], said["command"]
    if any(environment.get(variable) != value for variable, value in before.items()):
        connection.sendall(b"n")
        os._exit(0)
    child = os.fork()
    if child:
        connection.sendall(b"y")
        ended = os.pidfd_open(child)
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        waiting.register(connection, select.POLLIN)
        if not any(descriptor == ended for descriptor, _ in waiting.poll()):
            os.kill(child, signal.SIGKILL)  # the client has been killed
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            connection.sendall(b"%d" % code)
        os._exit(0)
    connection.close()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    _become(said, streams)
    start = next(place for place, word in enumerate(command) if word.endswith("start_child.py"))
    sys.path[:] = json.loads(command[start + 1])["path"]
    return command[start + 2 :]


def _become(said: dict, streams: list[int]) -> None:
    """Take over what the client was given."""
    for place, descriptor in enumerate(streams):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.chdir(said["cwd"])
    os.umask(said["umask"])
    os.environ.clear()
    os.environ.update(said["environment"])
    tempfile.tempdir = None
    os.sched_setaffinity(0, os.sched_getaffinity(said["pid"]))
    for kind in (name for name in dir(resource) if name.startswith("RLIMIT_")):
        limit = getattr(resource, kind)
        resource.setrlimit(limit, resource.prlimit(said["pid"], limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(words: list[str]) -> None:
    sys.argv[:] = words
    code = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    end_with(code)


if __name__ == "__main__":
    if sys.flags.isolated:
        _client(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    else:
        sys.path[:] = json.loads(sys.argv[3])
        _run(_serve(sys.argv[1], sys.argv[2]))
