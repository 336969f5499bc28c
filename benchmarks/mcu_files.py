"""`python -m benchmarks.mcu_files FILE.tflite… --cmsis-nn CHECKOUT`: quantised files on microcontrollers, and CMSIS-NN.

Each file is built for each emulated board, which compares its answers with the file's own arithmetic, and one inference
is counted under qemu-system-arm. The peer is CMSIS-NN, whose kernels TensorFlow Lite for Microcontrollers calls: each
operator that it has a kernel for runs alone (benchmarks/cmsis_nn_files.py), and what the interpreter adds to that, or
does by kernels of its own, isn't counted. Counts of instructions are no times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.mcu import BOARDS, counts, first_line

RESULTS = Path(__file__).parent / "results" / "mcu-files.json"


def main() -> None:
    from benchmarks import cmsis_nn
    from tvmflow import targets
    from tvmflow.report import environment, write_json
    from tvmflow.targets.cortex_m.machine import find_qemu

    parser = argparse.ArgumentParser(prog="python -m benchmarks.mcu_files", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="quantised .tflite files")
    parser.add_argument("--cmsis-nn", type=Path, required=True, help="a checkout of CMSIS-NN")
    parser.add_argument("--boards", nargs="+", default=list(BOARDS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    document: dict[str, Any] = {
        "basis": "emulated",
        "unit": "instructions per inference",
        "environment": environment({"tvmflow": version("tvmflow"), "tvm": version("apache-tvm")}),
        "qemu": first_line(find_qemu(), "--version"),
        "compiler": first_line(cmsis_nn.COMPILER, "--version"),
        "options": " ".join(cmsis_nn.OPTIONS),
        "commit": first_line("git", "-C", str(options.cmsis_nn), "rev-parse", "HEAD", optional=True),
        "rows": [],
    }
    # what isn't asked for stays as it was
    asked = {(path.stem, name) for path in options.files for name in options.boards}
    earlier = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    kept = [row for row in earlier if (row["network"], row["board"]) not in asked]
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        for name in options.boards:
            target = targets.find("cortex_m", name)
            library = cmsis_nn.Library.compiled(target, options.cmsis_nn.resolve(), Path(scratch, name))
            for path in options.files:
                kept.append({"network": path.stem, "board": name, **_row(path, target, library)})
                document["rows"] = sorted(kept, key=lambda row: row["board"])
                write_json(options.output, document)
    options.output.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
    print(markdown(document))


def _row(path: Path, target: Any, library: Any) -> dict[str, Any]:
    from benchmarks import cmsis_nn_files
    from tvmflow.bundles.build import build
    from tvmflow.integer.frontend import import_quantized

    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        bundle = build(import_quantized(str(path)), target, Path(folder, "bundle"))
        vectors = bundle.vectors()
        ours = counts(bundle, vectors[0].inputs)
    peer, others = cmsis_nn_files.count(path, library)
    return {
        **ours,
        "vectors": len(vectors),
        "peer": [
            {"kind": one.kind, "name": one.name, "instructions": one.instructions, "exact": one.exact} for one in peer
        ],
        "uncounted": dict(Counter(others)),
    }


def markdown(document: dict[str, Any]) -> str:
    around, rows = document["environment"], document["rows"]
    boards = list(dict.fromkeys(row["board"] for row in rows))
    cores = {row["board"]: row["core"] for row in rows}
    lines = [
        "# Quantised files on microcontrollers, and CMSIS-NN",
        "",
        "*Emulated instruction counts, not latencies.* Thousand instructions of one inference, all of the network, and "
        "those of the same file's operators by [CMSIS-NN](https://github.com/ARM-software/CMSIS-NN) "
        f"{document['commit'][:12]}, which TensorFlow Lite for Microcontrollers calls; made by "
        f"`python -m benchmarks.mcu_files`, {document['qemu']}, `{document['compiler']}`, `{document['options']}`, "
        f"TVM {around['versions']['tvm']}, {around['date'][:10]}.",
        "",
        "Every build answers as the file's own arithmetic does, bit for bit, on its golden vectors under emulation, "
        "and every operator of CMSIS-NN makes the integers of that arithmetic where the table says so. The peer's sum "
        "has its kernels alone: what it has none for, such as moving the state of a streaming network, counts for "
        "nothing there, and is in the counts of tvmflow.",
        "",
        f"| network | {' | '.join(f'{cores[board]}: tvmflow | CMSIS-NN | ratio' for board in boards)} "
        "| operators exact | not counted for CMSIS-NN |",
        f"|{'---|' * (3 + 3 * len(boards))}",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        own = {row["board"]: row for row in rows if row["network"] == network}
        cells = [_cells(own[board]) if board in own else ["–"] * 3 for board in boards]
        calls = [call for row in own.values() for call in row["peer"]]
        uncounted = ", ".join(f"{kind} ×{count}" for kind, count in next(iter(own.values()))["uncounted"].items())
        exact = f"{sum(call['exact'] for call in calls)} of {len(calls)}"
        lines.append(
            f"| {network} | {' | '.join(itertools.chain.from_iterable(cells))} | {exact} | {uncounted or '–'} |"
        )
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> Sequence[str]:
    peer = sum(call["instructions"] for call in row["peer"])
    return [f"{1e-3 * row['instructions']:,.0f}", f"{1e-3 * peer:,.0f}", f"{row['instructions'] / peer:.2f}"]


if __name__ == "__main__":
    main()
