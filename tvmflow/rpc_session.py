"""One session of `tvmflow serve`, in a process of its own: `python -m tvmflow.rpc_session LIMITS`.

It waits on standard input, a Unix socket, for the connection that it is to serve; until then it is a spare with its
imports done. What it runs may crash or run wild: limits hold it, and the server above it goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path


def _end_with_the_server(control: socket.socket) -> None:
    control.recv(1)
    os._exit(1)


def main(text: str) -> None:
    limits = json.loads(text)
    control = socket.socket(fileno=0)
    sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi would import it, which no session needs
    import tvm
    import tvm.rpc._ffi_api
    from tvm.support import utils

    from tvmflow.deploy import FACTS

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
        return subprocess.run(["sh", "-c", FACTS], capture_output=True, text=True, check=False, timeout=60).stdout

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
