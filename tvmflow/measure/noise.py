"""How sure a median of times is, and whether a run was disturbed.

Times of inferences that follow each other depend on each other, so a run is cut into blocks and each block gives one
number, its median. The interval that the median lies in with CONFIDENCE is between two of these in order of size, as
many from either end as the binomial distribution allows: no distribution is assumed of the times themselves (H. A.
David and H. N. Nagaraja, Order Statistics, section 7.1; T. Hoefler and R. Belli, Scientific Benchmarking of Parallel
Computing Systems, 2015). It says nothing of how far apart two runs are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BLOCKS = 20
CONFIDENCE = 0.95
NOISY_SPREAD = 1.25
"""p90 ÷ p50 above which a run is called unstable."""
SLOWED = 1.5
"""p50 ÷ fastest inference above which a run is called disturbed: half of the time, something else ran."""
ENOUGH = 10
"""Inferences from which on a run can be called either."""


def block_medians(samples: Sequence[float]) -> list[float]:
    """Medians of BLOCKS parts of a run, one after the other; of fewer samples, the samples."""
    parts = np.array_split(np.asarray(samples, float), min(BLOCKS, len(samples)))
    return [float(np.median(part)) for part in parts]


def median_interval(samples: Sequence[float]) -> list[float] | None:
    """Between which two times the median lies with CONFIDENCE; None of fewer than six, which can't say."""
    ordered = sorted(block_medians(samples))
    count, below, left_out = len(ordered), 0.0, 0
    while (below := below + math.comb(count, left_out) / 2**count) <= (1 - CONFIDENCE) / 2:
        left_out += 1
    return [ordered[left_out - 1], ordered[count - left_out]] if left_out else None


def disturbances(p50: float, p90: float, least: float, repeats: int) -> list[str]:
    """What shows that a run was disturbed, a sentence each; `least` is its fastest inference."""
    found = []
    if repeats >= ENOUGH and p90 > NOISY_SPREAD * p50:
        found.append(f"The run was unstable: p90 is {p90 / p50:.2f} times p50.")
    if repeats >= ENOUGH and p50 > SLOWED * least:
        found.append(f"The run was disturbed: half of the inferences took {p50 / least:.2f} times the fastest or more.")
    return found
