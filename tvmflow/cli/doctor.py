"""What is installed, what isn't, what each thing is for and how to get it, found without importing tvm or torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tvmflow.models
from tvmflow.measure import emulate
from tvmflow.measure.cycles import MCA, OBJDUMP
from tvmflow.measure.cycles import PACKAGE as LLVM
from tvmflow.measure.emulate import EMULATORS, Emulator
from tvmflow.spec import MissingDependencyError, install_command
from tvmflow.system import children, runtime, toolchain
from tvmflow.targets import KINDS

NEEDED_FREE_BYTES = 1 << 30
"""zig's C libraries, a download of the emulated runtime and a build's temporary files fit into it."""

PURPOSES: dict[str, str] = {
    "apache-tvm": "compiling",
    "apache-tvm-ffi": "compiling",
    "torch": "importing networks, training",
    "xgboost": "tuning",
    "onnx": "importing .onnx files",
}
"""What the packages are for that are worth a line of their own; the others share one."""

Status = Literal["ok", "missing", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for.

    "problem": tvmflow can't build without it. "missing": only what `needed_for` says goes without it. `remedy` is the
    command that brings it, or what else to do; `packages` are those of tools/install-system-packages.sh that would.
    """

    name: str
    status: Status
    detail: str
    remedy: str | None = None
    needed_for: str
    packages: tuple[str, ...] = ()


def packaged(name: str, path: str | None, packages: Sequence[str], needed_for: str, absent: str = "") -> Finding:
    """The finding on what Debian's packages bring: it is at `path`, or missing."""
    return Finding(
        name=name,
        status="ok" if path else "missing",
        detail=path or absent or "not installed",
        remedy=None if path else install_command(packages),
        needed_for=needed_for,
        packages=() if path else tuple(packages),
    )


def examine() -> tuple[Finding, ...]:
    """Look for everything that tvmflow uses. Takes a fraction of a second, downloads and imports nothing big."""
    return (
        _python(),
        *_packages(),
        *_linkers(),
        *(finding for elf, emulator in EMULATORS.items() for finding in _emulation(elf, emulator)),
        *_tools(),
        *_cycles(),
        _ssh(),
        _onnxruntime(),
        *_wheels(),
        _weights(),
        _cache(),
        _disk(),
    )


WIDTH = 80
"""Of a terminal that nobody has made larger."""


def in_columns(findings: Sequence[Finding]) -> list[str]:
    """What was found as lines of WIDTH characters at most, below what it is needed for."""
    purposes: dict[str, list[Finding]] = {}
    for finding in findings:
        purposes.setdefault(finding.needed_for, []).append(finding)
    lines = []
    for purpose, found in purposes.items():
        lines += textwrap.wrap(f"{purpose}:", WIDTH, subsequent_indent="  ")
        for finding in found:
            start = f"  {finding.status:9}{finding.name}: "
            lines += textwrap.wrap(start + finding.detail, WIDTH, subsequent_indent=" " * 13)
    return lines


# ------------------------------------------------------------------------------------------------------------- Python


def _python() -> Finding:
    try:
        wanted = importlib.metadata.metadata("tvmflow")["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:  # a checkout that isn't installed
        wanted = ">=3.10"
    fits = _satisfies(platform.python_version(), wanted)
    return Finding(
        name="Python",
        status="ok" if fits else "problem",
        detail=f"{platform.python_version()} ({sys.executable})" + ("" if fits else f", wanted {wanted}"),
        remedy=None if fits else f"install Python {wanted} and make a virtual environment of it",
        needed_for="everything",
    )


def _packages() -> Iterator[Finding]:
    wanted = _requirements()
    others = []
    for package, specifier in wanted.items():
        found = _version(package)
        fits = found is not None and _satisfies(found, specifier)
        finding = Finding(
            name=package,
            status="ok" if fits else "problem",
            detail=(found or "not installed") + ("" if fits else f", wanted {specifier or 'any version'}"),
            remedy=None if fits else f"pip install '{package}{specifier}'",
            needed_for=PURPOSES.get(package, "everything"),
        )
        if package in PURPOSES or not fits:
            yield finding
        else:
            others.append(f"{package} {found}")
    if others:
        yield Finding(name="other packages", status="ok", detail=", ".join(others), needed_for="everything")


def _requirements() -> dict[str, str]:
    """tvmflow's own requirements: package → version specifier. Of a checkout that isn't installed: the names above."""
    try:
        lines = importlib.metadata.requires("tvmflow") or []
    except importlib.metadata.PackageNotFoundError:
        return dict.fromkeys(PURPOSES, "")
    requirements = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        found = re.match(r"\s*([\w.-]+)\s*(.*?)\s*$", requirement)
        # Markers are on extras and on old versions of Python; neither is needed by everyone.
        if found and not marker and found[1] != "ziglang":
            requirements[found[1]] = found[2]
    return requirements


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _satisfies(version: str, specifier: str) -> bool:
    """Whether a version fits `==`, `>=` or no specifier: all that pyproject.toml uses."""
    for clause in filter(None, (clause.strip() for clause in specifier.split(","))):
        if clause.startswith("=="):
            # torch and tvm mark their builds, as in 2.13.0+cpu
            if version.partition("+")[0] != clause[2:].strip():
                return False
        elif clause.startswith(">=") and _numbers(version) < _numbers(clause[2:]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))


def _ssh() -> Finding:
    return packaged("ssh", children.which("ssh"), ["openssh-client"], "deploying to a board")


def _onnxruntime() -> Finding:
    found = _version("onnxruntime")
    return Finding(
        name="onnxruntime",
        status="ok" if found else "missing",
        detail=found or "not installed",
        remedy=None if found else "pip install 'tvmflow[bench]'",
        needed_for="comparing latencies with ONNX Runtime",
    )


def _wheels() -> Iterator[Finding]:
    for wheels in (wheels for kind in KINDS.values() for wheels in kind.wheels):
        lacking = [package for package in wheels.packages if _version(package) is None]
        yield Finding(
            name=wheels.name,
            status="missing" if lacking else "ok",
            detail=f"no {', '.join(lacking)}" if lacking else str(_version(wheels.packages[0])),
            remedy=f"pip install 'tvmflow[{wheels.extra}]'" if lacking else None,
            needed_for=wheels.purpose,
        )


# ------------------------------------------------------------------------------------------------------------ linkers


def _linkers() -> Iterator[Finding]:
    zig = _version("ziglang")
    system = children.which(os.environ.get("CC", "cc")) or children.which("gcc") or children.which("clang")
    yield Finding(
        name="ziglang",
        status="ok" if zig else "missing" if system else "problem",
        detail=zig or "not installed",
        remedy=None if zig else "pip install ziglang",
        needed_for="linking for every board",
    )
    yield Finding(
        name="C compiler",
        status="ok" if system else "missing",
        detail=system or "no cc, gcc or clang",
        remedy=None if system else "apt-get install gcc",
        needed_for="linking for this computer" + (" (ziglang does it too)" if zig else ""),
    )
    for (bits, machine), command in toolchain.CROSS_COMPILERS.items():
        if machine not in ("AArch64", "ARM"):
            continue
        path = children.which(command)
        yield Finding(
            name=command,
            status="ok" if path or zig else "missing",
            detail=path or "not installed" + (", not needed beside ziglang" if zig else ""),
            remedy=None if path or zig else f"apt-get install gcc-{command.removesuffix('-gcc')}",
            needed_for=f"linking for {bits}-bit ARM boards without ziglang",
        )


# ---------------------------------------------------------------------------------------------------------- emulation


def _emulation(elf: tuple[int, str], emulator: Emulator) -> Iterator[Finding]:
    purpose = f"verifying builds for {emulator.machine} boards on this computer"
    qemu = next(filter(None, map(children.which, emulator.commands)), None)
    yield packaged(emulator.commands[-1], qemu, emulator.packages, purpose)
    root: str | None = None
    with contextlib.suppress(MissingDependencyError):
        root = str(emulate.find_root(emulator))
    absent = f"no {', '.join(emulator.libraries)} in {os.environ.get('QEMU_LD_PREFIX') or emulator.root}"
    yield packaged(f"{emulator.machine} C library", root, emulator.packages, purpose, absent)
    if emulator.whole:
        yield _runtime(elf, emulator, purpose)


def _tools() -> Iterator[Finding]:
    for tool in (tool for kind in KINDS.values() for tool in kind.tools):
        yield packaged(tool.name or tool.command, children.which(tool.command), tool.packages, tool.purpose)


def _cycles() -> Iterator[Finding]:
    boards = " and ".join(kind.boards for kind in KINDS.values() if kind.tracer is not None)
    for command in (MCA, OBJDUMP):
        yield packaged(command, children.which(command), [LLVM], f"modelling cycles of {boards}")


def _runtime(elf: tuple[int, str], emulator: Emulator, purpose: str) -> Finding:
    name = f"{emulator.machine} TVM runtime"
    if any(_version(package) is None for package in runtime.LIBRARIES):
        return Finding(
            name=name,
            status="missing",
            detail="of no version, for TVM itself is not installed",
            remedy="pip install tvmflow",
            needed_for=purpose,
        )
    if not runtime.missing(elf):
        return Finding(name=name, status="ok", detail=str(runtime.folder(elf)), needed_for=purpose)
    if runtime.offline():
        return Finding(
            name=name,
            status="missing",
            detail="not downloaded, and TVMFLOW_OFFLINE forbids it",
            remedy="unset TVMFLOW_OFFLINE for one build",
            needed_for=purpose,
        )
    return Finding(
        name=name, status="ok", detail="not yet here: the first build downloads it (95 MB)", needed_for=purpose
    )


# -------------------------------------------------------------------------------------------------------------- files


def _weights() -> Finding:
    path = Path(tvmflow.models.__file__).parent / "weights" / "dilated-net.safetensors"
    problem = ""
    if not path.is_file():
        problem = "not there"
    else:
        try:
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, framework="np") as weights:
                    count = len(weights.keys())
            except (SafetensorError, OSError) as error:
                problem = f"not readable ({error})"
        except ImportError:
            problem = "not readable without the package safetensors"
    return Finding(
        name="trained weights",
        status="missing" if problem else "ok",
        detail=f"{path}: {problem}" if problem else f"{count} tensors, {path.stat().st_size / 1e6:.1f} MB",
        remedy="install tvmflow again, or train: tvmflow train --help" if problem else None,
        needed_for="the network dilated-net",
    )


def _cache() -> Finding:
    folder = toolchain.cache_folder()
    problem = ""
    try:
        # A folder that isn't there yet is tried where it would be made: looking must leave no trace.
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        problem = f", where nothing can be written ({error.strerror})"
    return Finding(
        name="cache folder",
        status="problem" if problem else "ok",
        detail=f"{folder}{problem}",
        remedy="set XDG_CACHE_HOME to a folder that can be written" if problem else None,
        needed_for="linking and emulation",
    )


def _disk() -> Finding:
    folder = _nearest(toolchain.cache_folder())
    free = shutil.disk_usage(folder).free
    enough = free >= NEEDED_FREE_BYTES
    return Finding(
        name="free disk space",
        status="ok" if enough else "problem",
        detail=f"{free / 1e9:.1f} GB at {folder}" + ("" if enough else f", wanted {NEEDED_FREE_BYTES / 1e9:.1f} GB"),
        remedy=None if enough else "make room, or set XDG_CACHE_HOME to a folder on another disk",
        needed_for="linking and emulation",
    )


def _nearest(folder: Path) -> Path:
    """`folder`, or the closest folder above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
