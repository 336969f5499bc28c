"""TVM's runtime for a board: two libraries of its wheels, of exactly the installed versions."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tvmflow.spec import MissingDependencyError, Target, UserError
from tvmflow.system import cache, children

log = logging.getLogger(__name__)

LIBRARIES: dict[str, tuple[str, ...]] = {
    "apache-tvm-ffi": ("libtvm_ffi.so",),
    "apache-tvm": ("libtvm_runtime.so",),
}
"""What is kept of each wheel. Beyond these two they need the C and C++ libraries only."""

GROUP = "runtime"
"""The cache's folder for it."""

PLATFORMS: dict[tuple[int, str], tuple[str, ...]] = {
    (64, "AArch64"): tuple(f"manylinux_2_{glibc}_aarch64" for glibc in (28, 27, 24, 17)),
}
"""Platforms of the wheels by the ELF header of what they run; this computer's own are installed."""


def why_none(target: Target) -> str | None:
    """None where TVM has a runtime for the board, else a sentence why not."""
    if "module" not in target.deliveries:
        return f"TVM publishes no runtime for the system of {target.name}, whose networks are libraries for C."
    if target.triple.endswith("-android"):
        return f"TVM publishes no runtime for Android's C library, which {target.name} has."
    if target.elf not in PLATFORMS and not _is_host(target.elf):
        return (
            f"TVM publishes no runtime for {target.elf[0]}-bit {target.elf[1]}, and the sources in its wheel lack the "
            "headers (tvm/support/io.h and others) that one could be built with."
        )
    return None


def offline() -> bool:
    """Whether TVMFLOW_OFFLINE=1 forbids downloads."""
    return os.environ.get("TVMFLOW_OFFLINE", "0") not in ("", "0")


def folder(elf: tuple[int, str]) -> Path:
    """Where the downloaded runtime of the installed versions is kept."""
    versions = "-".join(f"{package}-{importlib.metadata.version(package)}" for package in sorted(LIBRARIES))
    return cache.cache_folder() / GROUP / f"{elf[1].lower()}-{versions}"


def missing(elf: tuple[int, str]) -> bool:
    """Whether the runtime has still to be downloaded (some 95 MB, of which 5 MB are kept)."""
    return elf in PLATFORMS and not _is_host(elf) and not cache.is_intact(folder(elf), _files(), recorded=False)


def offline_sentence(elf: tuple[int, str]) -> str:
    return (
        f"TVM's runtime for {elf[0]}-bit {elf[1]} is needed, which is not in {cache.cache_folder()}, and "
        "TVMFLOW_OFFLINE forbids the download: run one build without it."
    )


def fetch(elf: tuple[int, str]) -> tuple[Path, ...]:
    """The runtime's libraries, downloaded unless they are there. Raises MissingDependencyError."""
    if _is_host(elf):
        return tuple(_installed(package, name) for package, names in LIBRARIES.items() for name in names)
    if missing(elf) and offline():
        raise MissingDependencyError(offline_sentence(elf))
    try:
        kept = cache.entry(GROUP, folder(elf).name, _files(), lambda made: _download_into(made, elf), recorded=False)
    except (OSError, zipfile.BadZipFile, UserError) as error:
        raise MissingDependencyError(f"TVM's runtime for the board can't be kept: {error}") from error
    return tuple(kept / name for name in _files())


def _files() -> tuple[str, ...]:
    return tuple(name for names in LIBRARIES.values() for name in names)


def include_folder() -> Path:
    """Headers of the C interface. Raises MissingDependencyError."""
    return _package("tvm_ffi") / "include"


def _is_host(elf: tuple[int, str]) -> bool:
    from tvmflow.system.host import COMPUTER

    return elf == COMPUTER.elf


def _package(name: str) -> Path:
    found = children.find_package(name)
    if found is None:
        raise MissingDependencyError(f"The Python package {name} is not installed: `pip install tvmflow`.")
    return found


def _installed(package: str, library: str) -> Path:
    path = _package(package.removeprefix("apache-").replace("-", "_")) / "lib" / library
    if not path.is_file():
        raise MissingDependencyError(f"{package} has no {path}; install it again.")
    return path


def _download_into(kept: Path, elf: tuple[int, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="download-", dir=kept.parent) as temporary:
        for package, libraries in LIBRARIES.items():
            _unpack(_download(package, elf, Path(temporary, package)), libraries, kept)


def _download(package: str, elf: tuple[int, str], destination: Path) -> Path:
    wanted = f"{package}=={importlib.metadata.version(package)}"
    log.info(f"Downloading {wanted} for {elf[0]}-bit {elf[1]}, once (95 MB in all)")
    platforms = [option for platform in PLATFORMS[elf] for option in ("--platform", platform)]
    command = children.python("pip", "download", "--quiet", "--disable-pip-version-check", "--no-input")
    command += ["--no-deps", "--only-binary=:all:", *platforms, "--dest", str(destination), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=children.environment())
    wheels = sorted(destination.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise MissingDependencyError(
            f"`pip download {wanted}` for {elf[0]}-bit {elf[1]} failed, so there is no runtime for its code: "
            f"{lines[-1].removeprefix('ERROR: ') if lines else 'no message'}"
        )
    return wheels[0]


def _unpack(wheel: Path, libraries: Sequence[str], destination: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for library in libraries:
            if library not in members:
                raise MissingDependencyError(f"{wheel.name} has no {library}, so its code can't be run.")
            Path(destination, library).write_bytes(archive.read(members[library]))
