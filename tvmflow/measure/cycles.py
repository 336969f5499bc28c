"""Modelled cycles of code that this computer can only emulate: the instructions that it executes, through llvm-mca.

A plugin of qemu keeps which blocks of instructions one inference executes, in order (`trace_blocks.c`). They are shared
out to the layers by the entries of kernels; windows of each layer's instructions, disassembled, go to llvm-mca, LLVM's
model of a core's pipelines, and the cycles that it gives them stand for the whole layer. It knows of no caches, no
memory and no mispredicted branches. docs/report.md says how good that is, benchmarks/cycles.py how it was found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.spec import MissingDependencyError, VerificationError
from tvmflow.system import children, limits

if TYPE_CHECKING:
    from tvmflow.spec import Built

MCA, OBJDUMP = "llvm-mca-22", "llvm-objdump-22"
PACKAGE = "llvm-22"
"""Debian's package of both."""
WINDOW = 4096
"""Instructions that llvm-mca sees at once, from empty pipelines to empty pipelines."""
WINDOWS = 3
"""Of each kernel, spread evenly; a kernel of fewer instructions is seen whole."""
OPTIONS = (
    "-iterations=1",
    "-json",
    "-instruction-info=0",
    "-resource-pressure=0",
    "-call-latency=1",  # what is called is in the sequence itself
    "-skip-unsupported-instructions=lack-sched",  # LE, the end of a Cortex-M55's loops, which costs nothing in them
)

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
COMMENT = re.compile(r"\s+(?:#|//|@|;)\s.*")
DESTINATION = re.compile(r"(?<![#$\w])0x[0-9a-f]+(?: <[^>]*>)?$")


@dataclass(frozen=True, kw_only=True)
class Core:
    """llvm-mca's name of a core. `note` says why it stands for another CPU than its own."""

    mcpu: str
    note: str = ""


CORES: Mapping[str, Core] = {
    "cortex-a53": Core(
        mcpu="cortex-a55",
        note="the A53's successor; LLVM's model of the A53 itself gives nearly twice as many, and neither was measured",
    ),
    "cortex-a72": Core(mcpu="cortex-a72"),
    "cortex-a76": Core(
        mcpu="neoverse-n1", note="the A76's design for servers; for the A76 itself LLVM has the numbers of the A57"
    ),
    "cortex-m4": Core(mcpu="cortex-m4"),
    "cortex-m7": Core(mcpu="cortex-m7"),
    "cortex-m33": Core(mcpu="cortex-m33"),
    "cortex-m55": Core(mcpu="cortex-m55"),
}
"""By LLVM's name of the CPU that code is compiled for."""

VALIDATION: Mapping[str, Any] = {"cpu": "znver3", "kernels": 125, "spearman": 0.984, "band": (0.97, 2.46)}
"""How measured cycles of kernels were related to modelled ones, by `python -m benchmarks.cycles`."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Executed blocks of code: `order` has their numbers, one after the other; block n has `sizes[n]` instructions and
    begins at the address `starts[n]` of its file."""

    starts: np.ndarray
    sizes: np.ndarray
    order: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One inference: its blocks, those of each layer's kernel call, and the instructions of the file by address."""

    trace: Trace
    calls: Sequence[np.ndarray]
    text: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one kernel call: instructions, counted exactly, and modelled cycles."""

    instructions: int
    cycles: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Modelled cycles as reports have them: of the whole, and what `details` of each layer is to have."""

    facts: Mapping[str, Any]
    layers: Sequence[Mapping[str, Any]]


def profile(bundle: Built, trace_calls: Callable[[Built], Traced], emulator: tuple[str, str]) -> Profile:
    """Modelled cycles of one inference of a bundle, on one thread.

    `trace_calls` is its kind's, and `emulator` the command that it takes, with Debian's package. Raises
    MissingDependencyError, VerificationError.
    """
    target = bundle.target
    core = CORES.get(target.tvm["mcpu"])
    if core is None:
        raise MissingDependencyError(
            f"Cycles of a {target.cpu.model} can't be modelled: there are models of {', '.join(CORES)}."
        )
    require_tools(emulator)  # before what takes longer
    costs = model(trace_calls(bundle), core, target.tvm["mtriple"])
    return Profile(
        facts={
            "basis": "modelled",
            "cycles": round(sum(cost.cycles for cost in costs)),
            "instructions": sum(cost.instructions for cost in costs),
            "threads": 1,
            "core": core.mcpu,
            "core_note": core.note,
            "model": version(),
            "validation": dict(VALIDATION),
        },
        layers=[
            {
                "instructions": cost.instructions,
                "instructions_basis": "emulated",
                "modelled_cycles": round(cost.cycles),
            }
            for cost in costs
        ],
    )


def sentence(facts: Mapping[str, Any]) -> str:
    """Modelled cycles and what they are worth, for people."""
    low, high = facts["validation"]["band"]
    note = f" ({facts['core_note']})" if facts["core_note"] else ""
    return (
        f"llvm-mca's model of {facts['core']}{note} gives one inference on one thread {1e-6 * facts['cycles']:.2f} "
        "million cycles, without what caches and memory add: modelled, and no latency. Of kernels on another CPU, 95 % "
        f"took {low:.2f} to {high:.2f} times as many as its model gave."
    )


def model(traced: Traced, core: Core, triple: str) -> list[Cost]:
    """What each kernel call costs. Blocks outside of `traced.text`, such as a C library's, don't count."""
    trace, addresses, lines = traced.trace, np.array(list(traced.text)), list(traced.text.values())
    first = np.searchsorted(addresses, trace.starts)
    inside = np.isin(trace.starts, addresses)
    regions: list[tuple[str, ...]] = []
    calls = []
    for call in (blocks[inside[blocks]] for blocks in traced.calls):
        sizes = trace.sizes[call]
        cut = windows(sizes)
        texts = [
            tuple(line for block in call[part] for line in lines[first[block] : first[block] + trace.sizes[block]])
            for part in cut
        ]
        calls.append((int(sizes.sum()), texts))
        regions += texts
    different = list(dict.fromkeys(regions))
    cycles = dict(zip(different, simulate(different, core, triple), strict=True))
    return [
        Cost(instructions=total, cycles=total * sum(cycles[text] for text in texts) / sum(map(len, texts)))
        for total, texts in calls
    ]


def windows(sizes: np.ndarray) -> list[slice]:
    """Stretches of blocks, whose numbers of instructions are given, at even distances; all if that is no more."""
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    if total <= WINDOW * WINDOWS:
        return [slice(0, len(sizes))]
    begins = (np.arange(WINDOWS) + 0.5) / WINDOWS * total - WINDOW / 2
    return [slice(*np.searchsorted(ends, (begin, begin + WINDOW))) for begin in begins]


# ------------------------------------------------------------------------------------------------------------- tracing


def read_trace(path: Path, base: int = 0) -> Trace:
    """What `trace_blocks.c` has left at `path`, of a file that was loaded at `base`."""
    lines = [line.split() for line in path.with_suffix(".blocks").read_text().splitlines()]
    return Trace(
        starts=np.array([int(address, 16) - base for address, _ in lines]),
        sizes=np.array([int(size) for _, size in lines]),
        order=np.fromfile(path.with_suffix(".trace"), np.uint32),
    )


def split(trace: Trace, entries: Mapping[int, str], calls: Sequence[str]) -> list[np.ndarray]:
    """The blocks of each of `calls`, from one entry of a kernel (address → name) to the next.

    Raises VerificationError if other kernels ran than `calls` names.
    """
    names = {number: entries[start] for number, start in enumerate(trace.starts.tolist()) if start in entries}
    (begins,) = np.nonzero(np.isin(trace.order, list(names)))
    if [names[number] for number in trace.order[begins]] != list(calls):
        raise VerificationError(
            f"The library ran {len(begins)} kernels where its manifest names {len(calls)}; build the bundle again."
        )
    return np.split(trace.order, begins)[1:]


# ---------------------------------------------------------------------------------------------------------------- LLVM


def disassemble(file: Path, *options: str) -> dict[int, str]:
    """Instructions by address, in a form that the assembler takes again; where they jump to is lost."""
    shown = _call([find(OBJDUMP), "-d", "--no-show-raw-insn", *options, str(file)])
    matches = filter(None, map(INSTRUCTION.match, shown.splitlines()))
    return {int(match[1], 16): DESTINATION.sub("elsewhere", COMMENT.sub("", match[2]).strip()) for match in matches}


def simulate(regions: Sequence[Sequence[str]], core: Core, triple: str) -> list[int]:
    """Cycles that llvm-mca gives each sequence of instructions, from its beginning until the last has ended."""
    marked = [line for region in regions for line in ("# LLVM-MCA-BEGIN", *region, "# LLVM-MCA-END")]
    said = _call([find(MCA), f"-mtriple={triple}", f"-mcpu={core.mcpu}", *OPTIONS], "\n".join(marked) + "\n")
    return [region["SummaryView"]["TotalCycles"] for region in json.loads(said)["CodeRegions"]]


def version() -> str:
    """Of llvm-mca, as it calls itself."""
    lines = [line.strip() for line in _call([find(MCA), "--version"]).splitlines()]
    return f"llvm-mca, {next(line for line in lines if 'version' in line)}"


def tools(emulator: tuple[str, str]) -> dict[str, str]:
    """The commands that modelling takes with that emulator, and Debian's packages of them."""
    return {MCA: PACKAGE, OBJDUMP: PACKAGE, emulator[0]: emulator[1]}


def require_tools(emulator: tuple[str, str]) -> None:
    """Raises MissingDependencyError that names all that isn't installed, so that one command brings it."""
    if absent := {command: package for command, package in tools(emulator).items() if children.which(command) is None}:
        raise MissingDependencyError(
            f"Modelling cycles needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed",
            tuple(dict.fromkeys(absent.values())),
        )


def find(command: str) -> str:
    """Raises MissingDependencyError."""
    if path := children.which(command):
        return path
    raise MissingDependencyError(f"Modelling cycles needs {command}, which is not installed", [PACKAGE])


def _call(command: Sequence[str], text: str = "") -> str:
    done = children.finished(command, limits.TOOL, Path(command[0]).name, input=text)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise MissingDependencyError(f"{Path(command[0]).name} failed: {said[0]}")
    return done.stdout
