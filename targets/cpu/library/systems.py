"""What a library is made for beside a processor: the C library that is there, and what can be linked for it here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvmflow.spec import Target
from tvmflow.system import children, toolchain
from tvmflow.system.host import COMPUTER
from tvmflow.system.toolchain import Linker


@dataclass(frozen=True, kw_only=True)
class System:
    """One kind of them, by how a board's triple ends.

    `compiled` is the triple that C for it is compiled for, where it isn't the board's own; {arch} stands for the
    processor's name. `shared` says whether a shared library is linked here, `stubs` which libraries it finds on the
    board that nobody has here, and `page_bytes` how its pages must lie. `options` are for compiling C.
    """

    name: str
    endings: Sequence[str]
    compiled: str = ""
    shared: bool = True
    stubs: Sequence[str] = ()
    page_bytes: int = 4096
    options: Sequence[str] = ()


WITHOUT_SYSTEM = ("-ffreestanding", "-DNETWORK_THREADS=0", "-DNETWORK_WITHOUT_MALLOC")

SYSTEMS = (
    # No NDK is needed: of its C library the calls use functions alone whose arguments are numbers and plain pointers.
    System(
        name="Android",
        endings=("-android", "-androideabi"),
        compiled="{arch}-linux-musl{abi}",
        stubs=("libc.so", "libm.so"),
        page_bytes=16384,
    ),
    System(name="Linux with musl", endings=("-musl", "-musleabi", "-musleabihf")),
    System(name="QNX", endings=("-qnx",), compiled="{arch}-linux-musl{abi}", shared=False, options=WITHOUT_SYSTEM),
    System(
        name="no system", endings=("-none", "-none-elf"), compiled="{arch}-linux-musl{abi}", shared=False,
        options=WITHOUT_SYSTEM,
    ),
)  # fmt: skip
LINUX = System(name="Linux", endings=("",))
"""With glibc, of the version in the triple."""


def system_of(target: Target) -> System:
    """That of a board."""
    return next((system for system in SYSTEMS if target.triple.endswith(tuple(system.endings))), LINUX)


def architecture(target: Target) -> tuple[str, str]:
    """A processor's name in triples, and what stands behind "musl": how floats are passed on 32-bit ARM."""
    if target.elf == (32, "ARM"):
        return "arm", "eabihf" if target.tvm.get("mfloat-abi") == "hard" else "eabi"
    return target.triple.partition("-")[0], ""


def compiled_for(target: Target) -> Target:
    """The board with the triple that C for it is compiled for."""
    arch, abi = architecture(target)
    compiled = system_of(target).compiled.format(arch=arch, abi=abi)
    return replace(target, triple=compiled) if compiled else target


def program_linkers(target: Target, linker: Linker, math: bool) -> list[tuple[Linker, tuple[str, ...]]]:
    """What may link programs that need nothing of a board but Linux, by preference, with its options.

    Before zig has linked the first static program for a processor it makes musl for it, which takes a minute or two, so
    what is there already is preferred: this computer's own C library, and of the two for 32-bit ARM the one that boards
    with hard floats need. Only a program that passes floats to functions (`math`) has to have its board's.
    """
    if target.triple == COMPUTER.triple:
        return [(linker, ("-pthread",))]
    if linker.name != "zig":
        return [(linker, ("-static", "-pthread"))]
    arch, abi = architecture(target)
    abi = abi if math or not abi else "eabihf"
    alone = replace(target, triple=f"{arch}-linux-musl{abi}", kind="")
    found: list[tuple[Linker, tuple[str, ...]]] = [(toolchain.select_linker(alone, "zig"), ("-static",))]
    if target.elf == COMPUTER.elf and (path := children.which("cc")):
        found.insert(0, (Linker(name="cc", command=(path,), version=""), ("-static", "-pthread")))
    return found
