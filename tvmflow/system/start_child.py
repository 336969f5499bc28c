"""The beginning of every Python child (`tvmflow.system.children`): `python -I start_child.py HOW MODULE ARGUMENT…`.

HOW is JSON: `path`, where modules are; `parent`, the process that started this one and is to take it along, or null;
`by_main_thread`, whether its main thread did.
"""

# Until `path` is set nothing may be imported that isn't built in.
import sys

if not sys.flags.isolated:  # then Python has put this file's folder first
    del sys.path[0]

import ctypes
import importlib.util
import json
import os
import runpy
import select
import signal
import threading
import time

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
CHECK_S = 0.5
"""How often a child looks for its parent where the system can't be asked to tell it."""


def end_with(parent: int, by_main_thread: bool) -> None:
    """Have this process end when its parent does, also one that was killed while a kernel hangs here."""
    if sys.platform == "linux" and by_main_thread:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _watch(parent: int) -> None:
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(parent)
        except OSError:  # the parent has gone, or the kernel is too old
            pass
        else:
            waiting = select.poll()  # without waking up: this process may be timing a network
            waiting.register(descriptor, select.POLLIN)
            waiting.poll()
    while os.getppid() == parent:
        time.sleep(CHECK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def import_tvmflow() -> None:
    """Import the package that this file belongs to, which may lie where no path leads."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    initial = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location("tvmflow", initial, submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["tvmflow"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def main() -> None:
    how, module = json.loads(sys.argv[1]), sys.argv[2]
    sys.path[:] = how["path"]
    if hasattr(signal, "pthread_sigmask"):  # the parent may wait for it in a thread (`tvmflow.system.interrupt`)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if how["parent"] is not None:
        end_with(how["parent"], how["by_main_thread"])
    import_tvmflow()
    sys.argv[:] = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


main()
