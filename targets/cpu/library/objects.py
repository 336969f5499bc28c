"""Object files: what they lack, what they need, how they are laid out, and the archive that keeps them together."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmflow.spec import UserError

LIBC = frozenset(
    [
        "close",
        "free",
        "malloc",
        "memcpy",
        "memmove",
        "memset",
        "open",
        "pthread_create",
        "pthread_join",
        "pthread_mutex_init",
        "pthread_mutex_lock",
        "pthread_mutex_unlock",
        "pthread_mutex_destroy",
        "pthread_cond_init",
        "pthread_cond_wait",
        "pthread_cond_broadcast",
        "pthread_cond_destroy",
        "read",
        "sched_yield",
        "syscall",
        "__aeabi_memcpy",
        "__aeabi_memcpy4",
        "__aeabi_memcpy8",
        "__aeabi_memmove",
        "__aeabi_memmove4",
        "__aeabi_memmove8",
        "__aeabi_memset",
        "__aeabi_memset4",
        "__aeabi_memset8",
        "__aeabi_memclr",
        "__aeabi_memclr4",
        "__aeabi_memclr8",
    ]
)
"""What the calls need of a C library, and what compilers make of copies on ARM."""

_MATH = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "copysign",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "fabs",
    "floor",
    "fma",
    "fmax",
    "fmin",
    "fmod",
    "hypot",
    "ldexp",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "nearbyint",
    "nextafter",
    "pow",
    "remainder",
    "rint",
    "round",
    "roundeven",
    "sin",
    "sincos",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "tgamma",
    "trunc",
]
LIBM = frozenset([*_MATH, *(f"{name}f" for name in _MATH)])
"""C99's functions of real numbers, which LLVM calls by these names where it has no instructions."""

COMPILER = ("__aeabi_", "__gnu_", "__div", "__udiv", "__mod", "__umod", "__mul", "__fix", "__float", "__ash", "__lshr")
"""How the names begin of what compilers bring along themselves (libgcc, compiler-rt)."""


def symbols(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The global symbols that an ELF file defines, and those that it lacks and can't do without."""
    defined: set[str] = set()
    lacking: set[str] = set()
    for symbol in _table(path):
        bound, undefined = symbol["st_info"]["bind"], symbol["st_shndx"] == "SHN_UNDEF"
        if not symbol.name or bound == "STB_LOCAL" or (undefined and bound == "STB_WEAK"):
            continue
        (lacking if undefined else defined).add(symbol.name)
    return frozenset(defined), frozenset(lacking)


def _table(path: Path) -> list[Any]:
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        elf = ELFFile(file)
        table: Any = elf.get_section_by_name(".dynsym") if elf["e_type"] == "ET_DYN" else None
        table = table or elf.get_section_by_name(".symtab")
        return list(table.iter_symbols()) if table else []


def weaken(path: Path, names: Collection[str]) -> None:
    """Have an object do without these symbols, which it names and calls nowhere, where nothing defines them."""
    from elftools.elf.elffile import ELFFile

    with path.open("r+b") as file:
        elf = ELFFile(file)
        table: Any = elf.get_section_by_name(".symtab")
        place = 12 if elf.elfclass == 32 else 4  # of a symbol's kind and binding among its bytes
        found = [
            table["sh_offset"] + number * table["sh_entsize"] + place
            for number, symbol in enumerate(table.iter_symbols())
            if symbol.name in names
        ]
        for offset in found:
            file.seek(offset)
            kind = file.read(1)[0] & 0xF
            file.seek(offset)
            file.write(bytes([STB_WEAK << 4 | kind]))


STB_WEAK = 2


def lacking(paths: Sequence[Path]) -> list[str]:
    """What object files need of others than themselves."""
    found = [symbols(path) for path in paths]
    defined = frozenset().union(*(names for names, _ in found))
    return sorted(frozenset().union(*(names for _, names in found)) - defined - {"_GLOBAL_OFFSET_TABLE_"})


def strangers(names: Collection[str], *, compiler: bool = True) -> list[str]:
    """Those of the names that are no function of the C or the mathematical library, and no compiler's own.

    Without `compiler` the latter are strangers, too.
    """
    own = COMPILER if compiler else ()
    return sorted(name for name in names if name not in LIBC and name not in LIBM and not name.startswith(own))


def shared_facts(path: Path) -> Mapping[str, Any]:
    """Of a shared library: the libraries that it `needed`, and the alignment of its pages in bytes (`page_bytes`)."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        elf = ELFFile(file)
        dynamic: Any = elf.get_section_by_name(".dynamic")
        tags = list(dynamic.iter_tags("DT_NEEDED")) if dynamic else []
        pages = [segment["p_align"] for segment in elf.iter_segments("PT_LOAD")]
        return {"needed": sorted(tag.needed for tag in tags), "page_bytes": min(pages, default=0)}


def check_pages(path: Path, page_bytes: int) -> None:
    """Raises UserError for a shared library that systems with pages of that size can't load."""
    found = shared_facts(path)["page_bytes"]
    if found % page_bytes:
        raise UserError(
            f"{path.name} has pages of {found} bytes, where its board needs {page_bytes}; use --linker zig."
        )


def archive(path: Path, members: Sequence[Path]) -> None:
    """Write a static library, with the index that linkers look symbols up in; the same members give the same bytes."""
    names = [sorted(symbols(member)[0]) for member in members]
    table = b"".join(name.encode() + b"\0" for found in names for name in found)
    long_names = b"".join(f"{member.name}/\n".encode() for member in members)
    index_bytes = 4 + 4 * sum(map(len, names)) + len(table)
    offset = 8 + _padded(60 + index_bytes) + _padded(60 + len(long_names))
    places = []
    for member, found in zip(members, names, strict=True):
        places += [offset] * len(found)
        offset += _padded(60 + member.stat().st_size)
    index = struct.pack(f">I{len(places)}I", len(places), *places) + table
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        _member(file, "/", index)
        _member(file, "//", long_names)
        start = 0
        for member in members:
            _member(file, f"/{start}", member.read_bytes())
            start += len(member.name) + 2


def lacking_of(path: Path) -> list[str]:
    """`lacking` of an archive's members."""
    content = path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        members: list[Path] = []
        place = 8
        while place + 60 <= len(content):
            title, size = content[place : place + 16].rstrip(), int(content[place + 48 : place + 58])
            if title not in (b"/", b"//"):
                members.append(Path(name) / f"{len(members)}.o")
                members[-1].write_bytes(content[place + 60 : place + 60 + size])
            place += _padded(60 + size)
        return lacking(members)


def _member(file: Any, name: str, content: bytes) -> None:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
    file.write(header.encode() + content + b"\n" * (len(content) % 2))


def _padded(size: int) -> int:
    return size + size % 2
