"""`python -m benchmarks.arena FILE.tflite…`: what quantised networks need of a microcontroller's RAM, here and by TFLM.

TensorFlow Lite for Microcontrollers is asked by its own interpreter (the package tflite-micro), in a process of its
own, which prints what it allocated. Its arena has the inputs, the outputs and its own records in it; here inputs and
outputs are the caller's, so their bytes are a column of their own. Nothing is compiled and nothing is timed.
"""

from __future__ import annotations

import argparse
import datetime
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tvmflow.integer.frontend import import_quantized
from tvmflow.spec import Program
from tvmflow.targets import TARGETS
from tvmflow.targets.cortex_m.stages import choose_kernels, least_arena, place_tensors

RESULTS = Path(__file__).parent / "results"
BOARDS = ("mps2-an386", "mps3-an547")
ROOM = 1 << 24
"""Bytes that TFLM's interpreter may take: it says how many it did."""
ASK = """
import sys
from tflite_micro.python.tflite_micro import runtime
runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2])).print_allocations()
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Bytes of one network: by TFLM, on each of BOARDS, and of its inputs and outputs together."""

    name: str
    tflm: int
    arenas: tuple[int, ...]
    bounds: tuple[int, ...]
    ends: int


def of_tflm(path: Path) -> int:
    """The arena of TFLM's interpreter in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(path), str(ROOM)], capture_output=True, text=True, check=True, timeout=120
    )
    found = re.search(r"Arena allocation total (\d+) bytes", done.stdout + done.stderr)
    assert found is not None, "TFLM's interpreter doesn't say any more what it allocated"
    return int(found.group(1))


def row(path: Path) -> Row:
    program = import_quantized(str(path))
    placed = [place_tensors(choose_kernels(program, TARGETS[board]), TARGETS[board]) for board in BOARDS]
    return Row(
        name=path.stem,
        tflm=of_tflm(path),
        arenas=tuple(int(made.memory["activations_bytes"]) for made in placed),
        bounds=tuple(map(least_arena, placed)),
        ends=_ends(program),
    )


def _ends(program: Program) -> int:
    ends = (*program.inputs, *program.outputs)
    return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in ends)


def table(rows: list[Row]) -> str:
    cores = [TARGETS[board].cpu.model for board in BOARDS]
    lines = [
        "# RAM of quantised networks on microcontrollers",
        "",
        "Bytes of the arena that holds activations, planned by tvmflow and by TensorFlow Lite for Microcontrollers "
        f"(tflite-micro {version('tflite-micro')}, asked by its own interpreter), {datetime.date.today()}; made by "
        "`python -m benchmarks.arena`. TFLM's arena has inputs, outputs and its records of the network in it. Here "
        "inputs and outputs are the caller's: the last columns have them added. An arena is proved the smallest for "
        "its order of kernels where it is as large as what lives together at one step.",
        "",
        f"| network | TFLM | {' | '.join(cores)} | proved | inputs and outputs | ÷ TFLM | with inputs and outputs |",
        f"|{'---|' * (6 + len(cores))}",
    ]
    for one in rows:
        shares = [", ".join(f"{(arena + more) / one.tflm:.2f}" for arena in one.arenas) for more in (0, one.ends)]
        arenas = " | ".join(f"{arena:,}" for arena in one.arenas)
        proved = "yes" if one.arenas == one.bounds else "no"
        lines.append(f"| {one.name} | {one.tflm:,} | {arenas} | {proved} | {one.ends:,} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arena", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="quantised .tflite files")
    parser.add_argument("--output", type=Path, default=RESULTS / "arena.md")
    options = parser.parse_args()
    text = table([row(path) for path in options.files])
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
