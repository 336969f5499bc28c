"""How other programs are started, so that none of the folder one stands in runs by its name.

Python children (`python`) get the modules of this process and no others; commands (`which`, `environment`) are those of
PATH's absolute folders. Every child ends with the process that started it, also where that one is killed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import site
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmflow.spec import UserError
from tvmflow.system.limits import Limits

START = Path(__file__).with_name("start_child.py")


def python(module: str, *arguments: str | Path, ends_with_parent: bool = True) -> list[str]:
    """The command for `python -m module arguments…` that imports what this process would, tvmflow's own included.

    It is isolated: neither the current folder nor the environment says where its modules are. One that doesn't
    `ends_with_parent` sees to its end itself.
    """
    # Where a user's own packages are in use, as of `pip install --user`, their hooks for imports have to be, too.
    options = ["-E" if site.ENABLE_USER_SITE else "-I"]
    options += ["-B"] if sys.dont_write_bytecode else []
    options += ["-X", "utf8"] if sys.flags.utf8_mode else []
    options += ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []
    options += [f"-W{option}" for option in sys.warnoptions]
    how = {
        "path": search_path(),
        "parent": os.getpid() if ends_with_parent else None,
        # Linux tells a child of the end of the thread that started it: only the first lives as long as the process.
        "by_main_thread": threading.current_thread() is threading.main_thread(),
    }
    return [sys.executable, *options, str(START), json.dumps(how), module, *map(str, arguments)]


def search_path() -> list[str]:
    """Where this process looks for modules, without the current folder unless PYTHONPATH names it."""
    named = {os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    unwanted = {_current_folder()} - named
    return [entry for entry in sys.path if os.path.isabs(entry) and entry not in unwanted]


def forget_current_folder() -> None:
    """Take the current folder out of where this process looks for modules and for commands."""
    sys.path[:] = search_path()
    if "PATH" in os.environ:
        os.environ["PATH"] = _commands()


def environment() -> dict[str, str]:
    """This process's variables for a child, which may look for commands itself, as compilers do."""
    return {**os.environ, "PATH": _commands()} if "PATH" in os.environ else dict(os.environ)


def which(command: str) -> str | None:
    """Where a command is: in an absolute folder of PATH, or as its own path says. None if there is none."""
    path = shutil.which(command)
    if path is None or os.path.isabs(path) or os.path.dirname(command):
        return path
    return shutil.which(command, path=_commands() or os.devnull)  # no path would be the system's own


def ending_with_us(command: Sequence[str]) -> list[str]:
    """The command of a program that isn't Python's, which the system ends with the thread that starts it, if it can.

    Without that, an emulator goes on when this process is killed. util-linux has the program that asks for it.
    """
    setpriv = which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else [*command]


def finished(command: Sequence[str], limits: Limits, what: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `options` of subprocess.run; both its streams are kept as text.

    `what` begins the sentence if it takes longer than `limits` has seconds. Raises UserError then, and OSError.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limits.seconds, **options)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{what} was stopped: it wasn't done in {limits.seconds:,} s ({limits.remedy('seconds')})."
        ) from None


def find_package(name: str) -> Path | None:
    """The folder of an installed package, without importing it. None if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    found_in = str(folder.parent if spec.submodule_search_locations else folder)
    if found_in != _current_folder() or found_in in search_path():
        return folder
    spec = importlib.machinery.PathFinder.find_spec(name, search_path())
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _commands() -> str:
    """PATH without what is relative to the current folder: that folder's name is empty there."""
    return os.pathsep.join(filter(os.path.isabs, os.environ.get("PATH", "").split(os.pathsep)))


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""
