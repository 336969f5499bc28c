"""Modelled latencies of boards that aren't at hand, with the interval that published latencies of such cores give them.

An inference takes, on one thread,

    (a · cycles + hit · unforeseen + branch · mispredicted) / clock + b · lines

where `cycles` are llvm-mca's for the instructions that were executed, `unforeseen` are lines that the first level of
cache lacked, a later one had, and no prefetcher would have asked for, `mispredicted` are branches, and `lines` are
those that come from memory (`tvmflow.measure.memory`). What an unforeseen line and a mispredicted branch cost a core is
assumed, in CORES. The two constants a, at least 1, and b were fitted to latencies of ncnn that its users published;
latency.json has them, with how good the same fit was on networks and boards that it had not seen. The interval has what
these rows were off by, below what the formula gives without the assumed costs, and above what it gives with twice as
much. `python -m benchmarks.published` makes that file. docs/method.md tells how.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmflow.measure import cycles as modelling
from tvmflow.measure.memory import OUTER_BYTES, Followed, Hierarchy

FILE = Path(__file__).with_name("latency.json")
CONFIDENCE = 0.9
"""Of the interval: the share of published latencies that it should hold."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """What is taken from documents, or assumed: the caches, and the cycles that a line from the second level costs
    which wasn't foreseen, and a mispredicted branch."""

    hierarchy: Hierarchy
    hit: float
    branch: float


CORES: Mapping[str, Core] = {
    "cortex-a53": Core(hierarchy=Hierarchy(first=(32 << 10, 4), pages=(512, 4)), hit=15, branch=8),
    "cortex-a55": Core(hierarchy=Hierarchy(first=(32 << 10, 4), pages=(1024, 4)), hit=15, branch=8),
    "cortex-a72": Core(hierarchy=Hierarchy(first=(32 << 10, 2), pages=(1024, 4)), hit=18, branch=16),
    "cortex-a76": Core(hierarchy=Hierarchy(first=(64 << 10, 4), pages=(1280, 5)), hit=11, branch=13),
}
"""By LLVM's name. Caches are those of Arm's technical reference manuals: DDI 0500 (A53), 100442 (A55), 100095 (A72),
100798 (A76). The cycles are assumed, of a size that is usual for such cores."""

ASSUMED = (0.0, 1.0, 2.0)
"""How many times the assumed cycles count at the interval's lower end, in the middle and at its upper end."""
WIDEST = 2.0
"""By how much the last of these may be more than the first before nothing is shown."""


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """Of one inference, as the formula has them."""

    cycles: float
    unforeseen: int
    mispredicted: int
    lines: int


@dataclass(frozen=True, kw_only=True)
class Court:
    """How a core's fit did on rows of a published table of which it had seen neither the network nor the board.

    `median_error` and `p90_error` are of |modelled ÷ published − 1|, `within` is the share of rows where that is at
    most WITHIN, and `coverage` the share that lay in the interval which the other boards' rows gave. `boards` names
    those that judged, `networks` counts theirs.
    """

    rows: int
    networks: int
    boards: tuple[str, ...]
    median_error: float
    p90_error: float
    within: float
    coverage: float

    @property
    def accurate(self) -> bool:
        """Whether errors are small enough, whatever the intervals hold."""
        return self.median_error <= MEDIAN_ERROR and self.within >= SHARE

    def fails(self) -> str:
        """Which bar is missed, in words, or nothing."""
        missed = [
            (self.median_error <= MEDIAN_ERROR, f"the median error is {self.median_error:.0%}"),
            (self.within >= SHARE, f"{self.within:.0%} of rows are within ±{WITHIN:.0%}"),
            (self.coverage >= COVERAGE, f"the intervals hold {self.coverage:.0%} of rows"),
        ]
        return " and ".join(words for met, words in missed if not met)


WITHIN, SHARE, MEDIAN_ERROR, COVERAGE = 0.35, 0.9, 0.15, 0.85
"""The bars: a core that misses one has no milliseconds. Intervals that are too wide mislead nobody; that they aren't is
asked of all cores together (tests/test_published.py)."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What was fitted: cycles of the core for each of llvm-mca's, and ns for a line from memory. `band` is published ÷
    modelled, from below to above, of CONFIDENCE of the rows that judged, and `most_lines` are those from memory for
    each of llvm-mca's cycles, the most that any of these rows has."""

    cycles: float
    line_ns: float
    most_lines: float
    band: tuple[float, float]
    court: Court


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A modelled latency in ms with its interval, at a clock in MHz; a `doubt` says why it must not be shown."""

    p50: float
    interval: tuple[float, float]
    clock_mhz: float
    court: Court
    doubt: str = ""

    def facts(self) -> dict[str, Any]:
        """As reports have it."""
        return {
            "basis": "modelled",
            "unit": "ms",
            "p50": _round(self.p50),
            "interval": [_round(value) for value in self.interval],
            "confidence": CONFIDENCE,
            "threads": 1,
            "clock_mhz": self.clock_mhz,
            "court": {
                "rows": self.court.rows,
                "networks": self.court.networks,
                "boards": list(self.court.boards),
                "median_error": self.court.median_error,
                "coverage": self.court.coverage,
            },
        }


def _round(value: float) -> float:
    """Three digits are more than the interval bears out."""
    return float(f"{value:.3g}")


@functools.cache
def constants() -> Mapping[str, Constants]:
    """By LLVM's name of the core, those that met the bars and those that didn't."""
    document = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        core: Constants(
            cycles=found["cycles"],
            line_ns=found["line_ns"],
            most_lines=found["most_lines"],
            band=tuple(found["band"]),
            court=Court(**{**found["court"], "boards": tuple(found["court"]["boards"])}),
        )
        for core, found in document["cores"].items()
    }


def why_not(core: str, *, clock_mhz: float, cache_bytes: int) -> str:
    """Why a core has no modelled latencies, in a sentence; nothing if it has them.

    `cache_bytes` are those of its last cache.
    """
    if core not in constants():
        return f"No published latencies were at hand to hold a model of the {core} against."
    if missed := constants()[core].court.fails():
        return f"The model of the {core} is not good enough for milliseconds: on published latencies, {missed}."
    if not clock_mhz or cache_bytes < OUTER_BYTES[0]:
        return "No latency is modelled, for the board's clock or second cache isn't known or smaller than 128 KiB."
    return ""


def quantities(counts: Mapping[str, int], cycles: float, cache_bytes: int) -> Quantities:
    """Of one inference, on a core whose last cache has so many bytes.

    The cache that was simulated is the largest of those that are no larger.
    """
    index = max((place for place, size in enumerate(OUTER_BYTES) if size <= cache_bytes), default=0)
    unforeseen = counts["first_misses"] - counts["first_streamed"]
    from_memory = counts[f"outer{index}_misses"] - counts[f"outer{index}_streamed"]
    return Quantities(
        cycles=cycles,
        unforeseen=unforeseen - from_memory,
        mispredicted=counts["mispredicted"],
        lines=counts[f"outer{index}_misses"],
    )


def milliseconds(
    found: Quantities, core: Core, *, cycles: float, line_ns: float, clock_mhz: float, assumed: float = 1.0
) -> float:
    """The formula above, with `assumed` times what was assumed."""
    waiting = assumed * (core.hit * found.unforeseen + core.branch * found.mispredicted)
    return (cycles * found.cycles + waiting) / clock_mhz * 1e-3 + line_ns * found.lines * 1e-6


def three(found: Quantities, core: Core, *, cycles: float, line_ns: float, clock_mhz: float) -> tuple[float, ...]:
    """`milliseconds` by each of ASSUMED."""
    return tuple(
        milliseconds(found, core, cycles=cycles, line_ns=line_ns, clock_mhz=clock_mhz, assumed=times)
        for times in ASSUMED
    )


def predict(followed: Followed, core: str, *, clock_mhz: float, cache_bytes: int) -> Estimate:
    """The latency of one inference on one thread, on a core that `why_not` says nothing of.

    `cache_bytes` are the last cache's. Raises MissingDependencyError without llvm-mca.
    """
    known = constants()[core]
    found = quantities(followed.counts, followed.cycles(modelling.CORES[core]), cache_bytes)
    least, p50, most = three(found, CORES[core], cycles=known.cycles, line_ns=known.line_ns, clock_mhz=clock_mhz)
    low, high = known.band
    return Estimate(
        p50=p50,
        interval=(low * least, high * most),
        clock_mhz=clock_mhz,
        court=known.court,
        doubt=_doubt(found, known, least, most),
    )


def _doubt(found: Quantities, known: Constants, least: float, most: float) -> str:
    each = found.lines / found.cycles
    if each > known.most_lines:
        return (
            "No milliseconds are modelled, for this network waits more for memory than any that judged the model: "
            f"{each:.3f} lines in each cycle, where those have {known.most_lines:.3f} at most."
        )
    if most > WIDEST * least:
        return (
            f"No milliseconds are modelled, for they would hang on what is assumed: {least:.3g} to {most:.3g} ms by "
            "what the core waits for lines of its last cache."
        )
    return ""


def sentence(facts: Mapping[str, Any]) -> str:
    """What a modelled latency is worth, for people."""
    court = facts["court"]
    return (
        f"The modelled latency is of one thread at {facts['clock_mhz']:g} MHz. On {court['rows']} published latencies "
        f"of ncnn, of {court['networks']} networks on {len(court['boards'])} boards of that core, neither of which the "
        f"fit had seen, its median error is {court['median_error']:.0%}; its intervals hold {court['coverage']:.0%}. "
        "None was of code that tvmflow makes."
    )


def text(facts: Mapping[str, Any]) -> str:
    """A modelled latency in a few words: `p50 ≈ 5.1 ms (90 %: 4.3–6.2), modelled`."""
    low, high = facts["interval"]
    return f"p50 ≈ {facts['p50']:.3g} ms ({facts['confidence']:.0%}: {low:.3g}–{high:.3g}), modelled".replace(
        "%:", " %:"
    )
