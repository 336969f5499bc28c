"""`python -m tests.fuzz --inputs 100000 [--reader NAME] [--seed N]`: what the readers make of spoiled files.

Prints every kind of fault once, with the command that makes its first input again, and how often it came. Ends with 1
if there were any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

# threads of libraries reserve memory, and a forked child waits for them forever
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from .readers import READERS  # noqa: E402
from .runner import Fault, fuzz, made, write  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="how many for each reader")
    parser.add_argument("--first", type=int, default=0, help="the number of the first of them")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="only this one, or these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="that a reader may take in all")
    parser.add_argument("--keep", type=Path, help="a folder for the first input of each fault")
    options = parser.parse_args()
    failed = 0
    for name in options.reader or READERS:
        reader, began = READERS[name], time.monotonic()
        corpus = reader.corpus()
        prepared, numbers = time.monotonic(), range(options.first, options.first + options.inputs)
        first: dict[tuple[str, str], Fault] = {}
        times: Counter[tuple[str, str]] = Counter()
        done = 0
        for outcome in fuzz(reader, corpus, options.seed, numbers, seconds=options.seconds):
            done += 1
            if isinstance(outcome, Fault):
                alike = (outcome.kind, outcome.where)
                times[alike] += 1
                if alike not in first:
                    first[alike] = outcome
                    print(f"  {outcome}", flush=True)
                    if options.keep:
                        write(
                            made(reader, corpus, options.seed, outcome.number),
                            options.keep / f"{name}-{outcome.number}",
                        )
        failed += sum(times.values())
        took = f"{time.monotonic() - prepared:.0f} s, {prepared - began:.0f} s to begin"
        print(
            f"{name}: {sum(times.values())} of {done:,} failed, in {len(first)} ways (seed {options.seed}; {took})",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
