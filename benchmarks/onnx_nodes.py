"""What tvmflow makes of ONNX's own tests of operators, counted for each operator.

`python -m benchmarks.onnx_nodes` runs the tests that the package `onnx` brings, about two thousand of them in half an
hour, and writes docs/onnx-nodes.md. `--only SUBSTRING` prints what becomes of those whose names have it, and writes
nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "onnx-nodes.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="tests whose names have this")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    options = parser.parse_args()
    names = [name for name in _nodes().tests() if options.only in name]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = []
        for outcome in pool.map(_outcome, names, chunksize=8):
            found.append(outcome)
            if options.only or outcome.answer in ("wrong", "crashed"):
                print(f"{outcome.test}: {outcome.answer} {outcome.sentence}", flush=True)
    if not options.only:
        PAGE.write_text(page(found), encoding="utf-8")
    if any(outcome.answer in ("wrong", "crashed") for outcome in found):
        sys.exit(1)


def _nodes() -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx_nodes

    return onnx_nodes


def _outcome(name: str) -> Any:
    nodes = _nodes()
    return nodes.outcome(nodes.tests()[name])


def page(found: list[Any]) -> str:
    """The page with the counts of each operator, and why operators that are taken refuse what they refuse."""
    import onnx

    from tvmflow.network.onnx_operators import OPERATORS

    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for outcome in found:
        counts[outcome.operator][outcome.answer] += 1
        if outcome.answer == "refused":
            reasons[outcome.operator].append(outcome.reason)
    total = Counter(outcome.answer for outcome in found)
    lines = [
        "# ONNX's own tests of operators",
        "",
        f"The package `onnx` {onnx.__version__} brings {len(found):,} tests, each of one operator on small inputs with",
        "the answers that its definition gives, and many again as the simpler operators of which a function consists.",
        "Each is compiled for this computer and run. An input that has to be known at build time, as a shape, is made",
        "a constant. *Refused* is one sentence and an exit code. `python -m benchmarks.onnx_nodes` makes this page.",
        "",
        "; ".join(f"{answer} {total[answer]:,}" for answer in _nodes().ANSWERS) + ".",
        "",
        "## Operators that are taken",
        "",
        "| operator | passed | refused | because |",
        "|---|---|---|---|",
    ]
    known = (*OPERATORS, "Constant", "If", "Shape", "Size")
    taken = sorted(name for name in counts if name in known or counts[name]["passed"])
    for name in taken:
        why = "; ".join(f"{reason} ({count})" if count > 1 else reason for reason, count in _sorted(reasons[name]))
        lines.append(f"| `{name}` | {counts[name]['passed']} | {counts[name]['refused'] or ''} | {why} |")
    if differing := [f"`{outcome.test}`" for outcome in found if outcome.answer == "differs"]:
        said = "As ONNX Runtime answers, and not as the test expects, which tvmflow is held to:"
        lines += ["", f"{said} {', '.join(differing)}."]
    others = sorted(set(counts) - set(taken))
    lines += ["", "## Operators that are refused", ""]
    lines.append(", ".join(f"`{name}` ({counts[name]['refused']})" for name in others) + ".")
    return "\n".join(lines) + "\n"


def _sorted(reasons: list[str]) -> list[tuple[str, int]]:
    return sorted(Counter(reasons).items(), key=lambda pair: (-pair[1], pair[0]))


if __name__ == "__main__":
    main()
