"""Linking for a board, with the compiler that is there, and checking what came out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tvmflow.spec import MissingDependencyError, Target, UserError
from tvmflow.system import cache, children, limits
from tvmflow.system.cache import cache_folder as cache_folder

CROSS_COMPILERS: dict[tuple[int, str], str] = {
    (64, "AArch64"): "aarch64-linux-gnu-gcc",
    (32, "ARM"): "arm-linux-gnueabihf-gcc",
    (64, "x64"): "x86_64-linux-gnu-gcc",
}
"""Debian's cross compilers by what they link for."""


@dataclass(frozen=True, kw_only=True)
class Linker:
    """A compiler driver that links for one board: `command` before `-shared … -o …`."""

    name: str
    command: tuple[str, ...]
    version: str


def select_linker(target: Target, choice: str = "auto") -> Linker:
    """The linker for `target`: "auto", "zig" (from the ziglang package), "cc" (this computer's own) or a compiler.

    "auto" is this computer's compiler for this computer, and zig, which brings every board's C library, for all
    others, then a cross compiler. Raises MissingDependencyError, UserError.
    """
    from tvmflow.system.host import COMPUTER

    native = target.elf == COMPUTER.elf and target.kind == "llvm" and not target.triple.endswith("-musl")
    if choice == "auto":
        candidates = [_system if native else _zig, _zig if native else _cross]
        for candidate in candidates:
            if linker := candidate(target):
                return linker
        wanted = "cc" if native else CROSS_COMPILERS.get(target.elf, "a cross compiler")
        raise MissingDependencyError(
            f"No linker for {target.name}: neither the Python package ziglang nor {wanted} is installed; "
            "`pip install ziglang` is the quickest remedy."
        )
    if choice == "zig":
        if linker := _zig(target):
            return linker
        raise MissingDependencyError("--linker zig needs the Python package ziglang: `pip install ziglang`.")
    if choice == "cc" and not native:
        raise UserError(
            f"--linker cc links for this computer only, not for {target.name}; take zig or a cross compiler."
        )
    path = children.which(choice)
    if path is None:
        raise MissingDependencyError(f"--linker {choice}: there is no such command; give zig, cc or a compiler's path.")
    return _compiler(path)


def _zig(target: Target) -> Linker | None:
    package = children.find_package("ziglang")
    if package is None:
        return None
    # Android's C library isn't among zig's: its modules are linked to none, as their board's value says.
    triple = "aarch64-linux-musl" if target.triple.endswith("-android") else target.triple
    extra = ("-nostdlib",) if target.triple.endswith("-android") else ()
    return Linker(
        name="zig",
        command=(str(package / "zig"), "cc", "-target", triple, *extra),
        version=importlib.metadata.version("ziglang"),
    )


def _system(target: Target) -> Linker | None:
    path = children.which(os.environ.get("CC", "cc")) or children.which("gcc") or children.which("clang")
    return _compiler(path) if path else None


def _cross(target: Target) -> Linker | None:
    path = children.which(CROSS_COMPILERS.get(target.elf, ""))
    return _compiler(path) if path and not target.triple.endswith("-android") else None


def _compiler(path: str) -> Linker:
    try:
        shown = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=60, check=False, env=children.environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"The linker {path} can't be run: {error}.") from error
    lines = shown.stdout.splitlines()
    return Linker(name=Path(path).name, command=(path,), version=lines[0] if lines else "of unknown version")


def link(
    linker: Linker, output: Path, files: Sequence[str | Path], options: Sequence[str] = ("-shared", "-fPIC")
) -> None:
    """Link `files` into `output`. Raises UserError with the linker's last words if it refuses."""
    environment = children.environment()
    if "ZIG_GLOBAL_CACHE_DIR" not in environment or "ZIG_LOCAL_CACHE_DIR" not in environment:
        kept = str(_zig_cache())
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", kept)
        environment.setdefault("ZIG_LOCAL_CACHE_DIR", kept)
    command = [*linker.command, *options, "-o", str(output), *map(str, files)]
    try:
        done = children.finished(command, limits.TOOL, f"The linker {linker.name}", env=environment)
    except OSError as error:
        raise UserError(f"The linker {linker.name} can't be run: {error}.") from error
    if done.returncode != 0 or not output.exists():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = [line for line in lines if " error: " in line][:1] or lines[-3:]
        raise UserError(
            f"{linker.name} could not link {output.name} (exit code {done.returncode}): "
            f"{' / '.join(told) or 'no message'}"
        )


def _zig_cache() -> Path:
    try:
        place = cache.folder("zig")
        if os.access(place, os.W_OK):
            return place
    except OSError:
        pass
    return cache.private_folder() / "zig"


def native_library(source: Path, options: Sequence[str], headers: Sequence[Path] = ()) -> Path:
    """A C file, which includes `headers`, as a shared library for this computer, compiled at first use and kept in the
    cache.

    Raises MissingDependencyError without a compiler, UserError if it fails.
    """
    from tvmflow.system.host import COMPUTER

    host = COMPUTER
    machine = (platform.machine(), platform.system(), host.cpu.model)  # -march=native is of this CPU
    texts = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(texts + " ".join((*options, *machine)).encode()).hexdigest()[:16]
    name = f"{source.stem}.so"

    def make(folder: Path) -> None:
        link(select_linker(host), folder / name, [source], options)

    return cache.entry("native", f"{source.stem}-{key}", [name], make) / name


def fcompile(linker: Linker, triple: str) -> Callable[..., None]:
    """`linker` in the form that TVM's `export_library(fcompile=…)` takes; TVM asks it for LLVM's `triple`."""

    def compile_shared(file_name: str, files: Sequence[str], options: Sequence[str] | None = None) -> None:
        link(linker, Path(file_name), files, ("-shared", "-fPIC", "-s", *(options or ())))

    compile_shared.output_format = "so"  # type: ignore[attr-defined]
    compile_shared.get_target_triple = lambda: triple  # type: ignore[attr-defined]
    return compile_shared


def tvm_target_dict(target: Target) -> dict[str, Any]:
    """What `tvm.target.Target` takes, with "native" replaced by LLVM's name of this CPU."""
    config = dict(target.tvm)
    if config.get("mcpu") == "native":
        from tvm.target import codegen

        config["mcpu"] = codegen.llvm_get_system_cpu()
    return config


def read_elf(path: Path) -> tuple[int, str]:
    """(Class in bits, machine) of an ELF file, or of the first in an archive. Raises UserError if it is none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            begins = _first_member(file)
            file.seek(begins)
            elf = ELFFile(file if not begins else io.BytesIO(file.read()))
            return elf.elfclass, elf.get_machine_arch()
    except ELFError as error:
        raise UserError(f"{path.name} is no ELF file, so no library of a Linux or Android board: {error}.") from error


ARCHIVE, MEMBER_HEADER = b"!<arch>\n", 60


def _first_member(file: BinaryIO) -> int:
    """Where the first object of an archive begins, behind its index and its names; 0 in files that are no archives."""
    if file.read(len(ARCHIVE)) != ARCHIVE:
        return 0
    place = len(ARCHIVE)
    for _ in range(3):  # the index, the long names, and the first object
        file.seek(place)
        header = file.read(MEMBER_HEADER)
        name, size = header[:16].rstrip(), header[48:58].strip()
        if len(header) < MEMBER_HEADER or not size.isdigit():
            return 0
        if name not in (b"/", b"//"):
            return place + MEMBER_HEADER
        place += MEMBER_HEADER + int(size) + int(size) % 2
    return 0


def check_elf(path: Path, elf: tuple[int, str], wanted_by: str) -> None:
    """Raises UserError unless `path` is an ELF file of that class and machine."""
    found = read_elf(path)
    if found != tuple(elf):
        raise UserError(f"{path.name} is {found[0]}-bit {found[1]} code, but {wanted_by} needs {elf[0]}-bit {elf[1]}.")


def section_bytes(path: Path) -> Mapping[str, int]:
    """`code_bytes`: the machine code in an ELF file."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        return {
            "code_bytes": sum(
                section["sh_size"] for section in ELFFile(file).iter_sections() if section["sh_flags"] & 0x4
            )
        }
