"""Networks as C libraries on boards without TVM's runtime: whether they have the bits that TVM's runtime gives.

`python -m benchmarks.libraries` builds the networks of tests/strangers.py and of the registry for `BOARDS`, which run
here natively or under qemu; a build runs the golden vectors by the library and, with the same kernels, by TVM's
runtime. Names choose networks, and so do files that others trained, .tflite and .onnx, or a folder of them.
`--keep` goes on where an earlier run stopped. The results go to benchmarks/results/libraries.json network by network,
and to libraries.md beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.files import SHAPES, SUFFIXES
from benchmarks.strangers import zoo
from tvmflow.report import environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "libraries.json"
BOARDS = ("musl-x64", "musl-arm64", "musl-arm32")
LIMIT_SECONDS = 7200
REGISTRY = "registry:"
"""What stands before a name of the registry that tests/strangers.py has as well."""
FACTS = ("kernels", "parallel_loops", "serial_loops")
"""Of the manifest's `c_library`, for the page."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", help="names, files, or folders of files; all names by default")
    parser.add_argument("--boards", nargs="+", default=list(BOARDS), help="boards that a library can be built for")
    parser.add_argument("--keep", action="store_true", help="build only what the results don't have")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process:
        print(json.dumps(take(options.networks[0], options.boards)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    for network in chosen(options.networks):
        rows = results["networks"].setdefault(Path(network).name, {})
        boards = [board for board in options.boards if not (options.keep and board in rows)]
        if not boards:
            continue
        rows.update(apart(network, boards))
        results["environment"] = environment({})
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        RESULTS.with_suffix(".md").write_text(page(results))
        print(Path(network).name, {board: row["state"] for board, row in rows.items()}, flush=True)


def chosen(networks: Sequence[str]) -> list[str]:
    """What the command's arguments mean: names, and paths of files. Raises SystemExit for what is neither."""
    from tvmflow.models import MODELS

    known = [*zoo(), *(f"{REGISTRY}{name}" if name in zoo() else name for name in MODELS)]
    found: list[str] = []
    for network in networks or known:
        path = Path(network)
        if path.is_dir():
            found += sorted(str(file) for file in path.iterdir() if file.suffix in SUFFIXES)
        elif network in known or path.is_file():
            found.append(network)
        else:
            raise SystemExit(f"{network} is no network of tests/strangers.py or of the registry, and no file.")
    return found


def apart(network: str, boards: Sequence[str]) -> dict[str, Any]:
    """`take` in a process of its own: what one network breaks, the next one doesn't meet."""
    command = [sys.executable, "-m", "benchmarks.libraries", "--in-process", network, "--boards", *boards]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {board: {"state": "fault", "said": f"{type(error).__name__} outside tvmflow"} for board in boards}


def take(network: str, boards: Sequence[str]) -> dict[str, Any]:
    """A network on each board.

    `state` is "same bits", "other bits" (where a function of the C library explains it, else the build is refused as
    "wrong"), "not compared", "refused" or "fault"; beside it what was said, and facts of the library.
    """
    rows: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            program = program_of(network)
        except Exception as error:
            return {board: _said(error, network) for board in boards}
        for board in boards:
            started = time.perf_counter()
            try:
                rows[board] = _take(program, board)
            except Exception as error:
                rows[board] = _said(error, network)
            rows[board]["seconds"] = round(time.perf_counter() - started, 1)
    return rows


def program_of(network: str) -> Any:
    """A network of tests/strangers.py, of the registry or of a file, imported, quantised where it comes quantised."""
    from tvmflow.integer.frontend import comes_quantised, import_quantized
    from tvmflow.network.frontend import import_model, parse_input_shape

    if network in zoo():
        shapes = [parse_input_shape("x".join(map(str, shape))) for shape in zoo()[network].shapes]
        return import_model(f"strangers:{network}", shapes)
    network = network.removeprefix(REGISTRY)
    shapes = [parse_input_shape(shape) for shape in SHAPES.get(Path(network).stem, ())]
    if comes_quantised(network):
        return import_quantized(network, None, shapes)
    return import_model(network, shapes)


def _take(program: Any, board: str) -> dict[str, Any]:
    from tvmflow import targets
    from tvmflow.bundles.build import build

    target = targets.deliver_as(targets.find(None, board), "library")
    if program.integer is not None:
        target = targets.compute_in(target, "int8")
    with tempfile.TemporaryDirectory(prefix="libraries-") as folder:
        bundle = build(program, target, Path(folder) / "bundle")
    verdict, facts = bundle.manifest["verify"], bundle.manifest["c_library"]
    row = {"method": verdict["method"], **{fact: facts[fact] for fact in FACTS}, "math": facts["math"]}
    same = verdict.get("same_bits")
    if same is None:
        return {"state": "not compared", "said": verdict.get("runtime_reason") or verdict.get("reason"), **row}
    if not same:
        return {"state": "other bits", "said": verdict["runtime_reason"], **row}
    return {"state": "same bits", **row}


def _said(error: Exception, network: str) -> dict[str, Any]:
    from tvmflow.spec import TvmflowError

    said = str(error).strip().replace(network, Path(network).name)
    if isinstance(error, TvmflowError):
        return {"state": "wrong" if error.exit_code == 3 else "refused", "exit_code": error.exit_code, "said": said}
    return {"state": "fault", "said": f"{type(error).__name__}: {said[:200]}"}


# ------------------------------------------------------------------------------------------------------------ the page

INTRODUCTION = """# Networks as C libraries

{count} networks, each built as a [library](../../docs/library.md) for {boards}: the small ones of
[tests/strangers.py](../../tests/strangers.py), those of the registry, and files that others trained. *Same bits*: on
all golden vectors the library's outputs are to the bit those of the same kernels under TVM's runtime, natively or under
qemu, which says nothing of time. A loop is *serial* if it has threads as a module and none as a library. Made by
`python -m benchmarks.libraries`, {date}.

{figures}

"""


def page(results: dict[str, Any]) -> str:
    networks = results["networks"]
    boards = list(dict.fromkeys(board for rows in networks.values() for board in rows))
    boards.sort(key=lambda board: BOARDS.index(board) if board in BOARDS else len(BOARDS))
    states = {board: Counter(rows[board]["state"] for rows in networks.values() if board in rows) for board in boards}
    figures = [
        f"- {board}: " + ", ".join(f"{count} {state}" for state, count in found.most_common())
        for board, found in states.items()
    ]
    introduction = INTRODUCTION.format(
        count=len(networks), boards=", ".join(boards), date=results["environment"]["date"], figures="\n".join(figures)
    )
    lines = [
        introduction + "| network | " + " | ".join(boards) + " | kernels | parallel loops | serial loops |",
        "|---|" + "---|" * len(boards) + "---:|---:|---:|",
    ]
    said: dict[str, list[str]] = {}
    for name, rows in sorted(networks.items()):
        for board, row in rows.items():
            if "said" in row:
                said.setdefault(row["said"].replace("|", "\\|"), []).append(f"{name} ({board})")
        cells = [rows[board]["state"] if board in rows else "–" for board in boards]
        figures = [
            " / ".join(dict.fromkeys(str(row[fact]) for row in rows.values() if fact in row)) or "–" for fact in FACTS
        ]
        lines.append(f"| `{name}` | " + " | ".join([*cells, *figures]) + " |")
    if said:
        lines += ["", "## What was said", ""]
        lines += [f"- {sentence} — {', '.join(where)}" for sentence, where in sorted(said.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
