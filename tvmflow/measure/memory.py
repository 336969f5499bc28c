"""Instructions, cache misses and modelled cycles of code that this computer can only emulate.

`trace_memory.c`, a plugin of qemu, follows one inference through caches that it simulates, and keeps windows of the
instructions that it executes, spread evenly over it; llvm-mca's model of the core gives those windows cycles, which
stand for all. `python -m benchmarks.published` holds what comes from it against published latencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow.measure import cycles
from tvmflow.spec import MissingDependencyError
from tvmflow.system import children, limits

PLUGIN = Path(__file__).with_name("trace_memory.c")
HEADERS = (Path(__file__).with_name("caches.h"),)
MC = "llvm-mc-22"
WINDOWS, WINDOW = 160, 1024
"""Stretches of the inference that llvm-mca sees, and the instructions of each."""
END_OF_WINDOW = 2**32 - 1
TRIPLE = "aarch64-linux-gnu"
LINE_BYTES = 64

OUTER_BYTES = (131072, 262144, 524288, 1048576, 2097152, 3145728)
"""Sizes that a core's last cache may have; each is simulated as if it were the only one behind the first level."""
OUTER_WAYS = 16


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """What a core has of its own: the first level of data cache, in bytes and ways, and the translations of pages that
    it keeps in its last TLB, in entries and ways."""

    first: tuple[int, int]
    pages: tuple[int, int]

    def options(self, out: Path) -> str:
        """What the plugin is told, to leave its files at `out`."""
        outer = [f"outer={size}:{OUTER_WAYS}" for size in OUTER_BYTES]
        own = [f"first={self.first[0]}:{self.first[1]}", f"pages={self.pages[0]}:{self.pages[1]}"]
        return ",".join([f"out={out}", *own, *outer, f"windows={WINDOWS}", f"size={WINDOW}"])


@dataclass(frozen=True, kw_only=True)
class Followed:
    """One inference: what the plugin counted, and windows of executed instructions as the assembler takes them."""

    counts: Mapping[str, int]
    windows: Sequence[Sequence[str]]

    def cycles(self, core: cycles.Core) -> float:
        """Of the inference, by llvm-mca's model of `core`, as if the first level held all. Raises
        MissingDependencyError."""
        seen = sum(map(len, self.windows))
        return self.counts["instructions"] * sum(cycles.simulate(self.windows, core, TRIPLE)) / seen


def read(out: Path) -> Followed:
    """What the plugin has left at `out`. Raises MissingDependencyError without LLVM's disassembler."""
    counts = dict(line.split() for line in out.with_suffix(".counts").read_text().splitlines())
    blocks = [line.split()[1:] for line in out.with_suffix(".blocks").read_text().splitlines()]
    order = np.fromfile(out.with_suffix(".windows"), np.uint32)
    parts = [part[part != END_OF_WINDOW] for part in np.split(order, np.flatnonzero(order == END_OF_WINDOW))]
    executed = [[word for number in part.tolist() for word in blocks[number]] for part in parts if len(part)]
    text = disassemble(sorted({word for window in executed for word in window}))
    return Followed(
        counts={name: int(value) for name, value in counts.items()},
        windows=[[text[word] for word in window] for window in executed],
    )


def disassemble(words: Sequence[str]) -> dict[str, str]:
    """Instructions of 64-bit ARM by their 32 bits in hexadecimal. Raises MissingDependencyError."""
    tool = children.which(MC)
    if tool is None:
        raise MissingDependencyError(f"Modelling latencies needs {MC}, which is not installed", [cycles.PACKAGE])
    lines = "".join(f"{','.join(f'0x{word[at : at + 2]}' for at in (6, 4, 2, 0))}\n" for word in words)
    done = children.finished([tool, "--disassemble", f"-triple={TRIPLE}", "-mattr=+all"], limits.TOOL, MC, input=lines)
    shown = [line.strip() for line in done.stdout.splitlines() if line.startswith("\t") and not line.startswith("\t.")]
    if len(shown) != len(words):
        raise MissingDependencyError(f"{MC} reads {len(shown)} of {len(words)} instructions that were executed.")
    return dict(zip(words, shown, strict=True))
