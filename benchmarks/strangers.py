"""Networks as users bring them, taken to a board of each kind: what is right there, what is refused, and why.

`python -m benchmarks.strangers` takes the networks of tests/strangers.py, as factories, as .pt2 files and as ONNX files
of PyTorch's older and newer exporters. It builds each for this computer, in float32 and int8, and for a board of each
other kind. tvmflow verifies every build against the original; here each library is run once more, on inputs that
tvmflow hasn't seen, and held against PyTorch in float64. The results go to benchmarks/results/strangers.json,
network by network, and to docs/strangers.md; `--keep` goes on where an earlier run stopped; names choose networks.

`python -m benchmarks.strangers FOLDER` takes files that others trained instead: see benchmarks/files.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import files
from tvmflow.report import environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "strangers.json"
PAGE = ROOT / "docs" / "strangers.md"
LIMIT_SECONDS = 1800


@dataclass(frozen=True, kw_only=True)
class Way:
    """A form of a network on a board, in an arithmetic."""

    form: str
    board: str
    arithmetic: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.form} {self.board}" + (" int8" if self.arithmetic == "int8" else "")


WAYS = (
    Way(form="factory", board="host"),
    Way(form=".pt2", board="host"),
    Way(form="opset 13", board="host"),
    Way(form="opset 18", board="host"),
    Way(form="factory", board="raspberry-pi-4b"),
    Way(form="factory", board="jetson-orin-nano"),
    Way(form="factory", board="mps3-an547"),
    Way(form="factory", board="host", arithmetic="int8"),
    Way(form="factory", board="pynq-z1", arithmetic="int8"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks; all of them by default")
    parser.add_argument("--keep", action="store_true", help="build only what the results don't have")
    parser.add_argument(
        "--ways", default="", help="only ways with this in their names, such as int8; others keep their rows"
    )
    parser.add_argument("--page", action="store_true", help="write the page only")
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=int, default=0, help="of a folder's files: inputs at most")
    options = parser.parse_args()
    if len(options.names) == 1 and Path(options.names[0]).is_dir():
        files.main(options, Path(options.names[0]))
        return
    if options.in_process:
        print(json.dumps(take(options.in_process, options.ways)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    for name in () if options.page else options.names or zoo():
        if options.keep and name in results["networks"]:
            continue
        results["networks"].setdefault(name, {}).update(apart(name, options.ways))
        results["environment"] = environment({name: version(name) for name in ("apache-tvm", "torch", "onnxruntime")})
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(name, {way: row["state"] for way, row in results["networks"][name].items()}, flush=True)
    PAGE.write_text(page(results))


def zoo() -> dict[str, Any]:
    """The networks of tests/strangers.py by name."""
    sys.path.insert(0, str(ROOT / "tests"))
    from strangers import STRANGERS

    return STRANGERS


def apart(name: str, ways: str) -> dict[str, Any]:
    """`take` in a process of its own: what one network breaks, the next one doesn't meet."""
    command = [sys.executable, "-m", "benchmarks.strangers", "--in-process", name, "--ways", ways]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        fault = {"state": "fault", "said": f"{type(error).__name__} outside tvmflow"}
        return {way.name: fault for way in WAYS if ways in way.name}


def take(name: str, ways: str = "") -> dict[str, Any]:
    """A network in all ways that have `ways` in their names.

    For each: `state` ("right", "refused", "wrong", "fault"), what was said, and the error.
    """
    rows = {}
    with tempfile.TemporaryDirectory(prefix="strangers-") as folder:
        for way in (way for way in WAYS if ways in way.name):
            with contextlib.redirect_stdout(sys.stderr):
                rows[way.name] = _take(name, way, Path(folder))
    return rows


def _take(name: str, way: Way, folder: Path) -> dict[str, Any]:
    from tvmflow.spec import TvmflowError

    try:
        built = _quantised(name, way, folder) if way.arithmetic == "int8" else _built(name, way, folder)
    except TvmflowError as error:
        state = "wrong" if error.exit_code == 3 else "refused"
        return {"state": state, "exit_code": error.exit_code, "said": str(error).replace(str(folder), "…")}
    except Exception as error:
        return {"state": "fault", "said": f"{type(error).__name__}: {str(error).strip()[:200]}"}
    return built


def _built(name: str, way: Way, folder: Path) -> dict[str, Any]:
    from tvmflow import targets
    from tvmflow.bundles.build import build
    from tvmflow.network.frontend import import_model, parse_input_shape

    shapes = [parse_input_shape("x".join(map(str, shape))) for shape in zoo()[name].shapes]
    model = FORMS[way.form](name, folder)
    program = import_model(model, shapes if way.form == "factory" else ())
    target = targets.compute_in(targets.find(None, way.board), way.arithmetic)
    bundle = build(program, target, folder / f"{name} {way.name}")
    verdict = bundle.manifest["verify"]
    row = {"state": "right", "verified": verdict["method"], "error": _error(name, bundle)}
    if verdict["passed"] is None:
        row |= {"state": "not run", "said": verdict["reason"]}
    elif row["error"] is not None and row["error"] > 1e-3:
        row["state"] = "wrong"
    return row


def _error(name: str, bundle: Any) -> float | None:
    """The largest error on inputs of our own, relative to the largest output; None where the library can't run here."""
    import torch
    from torch.utils import _pytree

    from tvmflow.spec import MissingDependencyError
    from tvmflow.targets.kind import find_runner

    rng = np.random.default_rng(7)
    inputs = [
        tuple((scale * rng.standard_normal(shape)).astype(np.float32) for shape in zoo()[name].shapes)
        for scale in (1.0, 3.0)
    ]
    try:
        _, run = find_runner(bundle.library, bundle.target, bundle.outputs)
        results = run(inputs)
    except MissingDependencyError:
        return None
    network = zoo()[name].make().double()
    worst = 0.0
    for arrays, outputs in zip(inputs, results, strict=True):
        with torch.no_grad():
            answers = network(*(torch.from_numpy(array.astype(np.float64)) for array in arrays))
        exact = [leaf.numpy() for leaf in _pytree.tree_leaves(answers)]
        for want, got in zip(exact, outputs, strict=True):
            scale = max(float(np.abs(want).max(initial=0.0)), 1e-30)
            worst = max(worst, float(np.abs(want - got.astype(np.float64)).max(initial=0.0)) / scale)
    return worst


def _quantised(name: str, way: Way, folder: Path) -> dict[str, Any]:
    """The network in int8, calibrated on noise: what is shown is that it is built and exact, not how good it is."""
    from tvmflow import targets
    from tvmflow.bundles.build import build
    from tvmflow.integer.frontend import integer_program
    from tvmflow.integer.post_training import Method
    from tvmflow.models.int8 import Examples, make
    from tvmflow.network.frontend import import_model, parse_input_shape

    shapes = zoo()[name].shapes
    program = import_model(f"strangers:{name}", [parse_input_shape("x".join(map(str, shape))) for shape in shapes])
    target = targets.compute_in(targets.find(None, way.board), way.arithmetic)
    rng = np.random.default_rng(1)
    given, others = (
        tuple(rng.standard_normal((count, *shape[1:]), np.float32) for shape in shapes) for count in (32, 16)
    )
    examples = Examples(calibration=given, others=others, facts={"inputs": "noise", "data_sha256": ""})
    scheme = targets.KINDS[target.kind].scheme
    network = make(program, examples, scheme, Method(count=32))
    bundle = build(integer_program(network, name), target, folder / f"{name} {way.name}")
    verdict = bundle.manifest["verify"]
    return {"state": "right" if verdict["passed"] else "not run", "verified": verdict["method"], "error": 0.0}


def _pt2(name: str, folder: Path) -> str:
    import torch

    path = folder / f"{name}.pt2"
    network, inputs = _example(name)
    torch.export.save(torch.export.export(network, inputs), path)
    return str(path)


def _onnx(name: str, folder: Path, **options: Any) -> str:
    import torch

    path = folder / f"{name}-{options['opset_version']}.onnx"
    network, inputs = _example(name)
    try:
        torch.onnx.export(network, inputs, path, verbose=False, **options)
    except Exception as error:
        from tvmflow.spec import UserError

        raise UserError(f"PyTorch's own exporter can't write it: {type(error).__name__}.") from error
    return str(path)


def _example(name: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    torch.manual_seed(1)
    return zoo()[name].make(), tuple(torch.randn(shape) for shape in zoo()[name].shapes)


FORMS: dict[str, Callable[[str, Path], str]] = {
    "factory": lambda name, folder: f"strangers:{name}",
    ".pt2": _pt2,
    "opset 13": lambda name, folder: _onnx(name, folder, dynamo=False, opset_version=13),
    "opset 18": lambda name, folder: _onnx(name, folder, dynamo=True, opset_version=18),
}


# ------------------------------------------------------------------------------------------------------------ the page

INTRODUCTION = """# Networks that nobody here had made

{count} of {all} small networks, written as users write them: as a factory, as a `.pt2` file, and as ONNX files of
PyTorch's older exporter (opset 13) and newer one (opset 18), for this computer and for a board of each other kind.
*Right* is a build that tvmflow has verified against the original on its golden vectors, and whose library was run once
more, on inputs that tvmflow hasn't seen, against PyTorch in float64; the figure is the largest error, relative to the
largest output. An int8 build is right where it is bit for bit what the integer reference computes. *Refused* is one
sentence and an exit code, before anything is written; the sentences are below. `python -m benchmarks.strangers`
makes this page; [tests/strangers.py](../tests/strangers.py) has the networks.

{figures}
"""

SHOWN = {"right": "right", "refused": "refused", "wrong": "**wrong**", "fault": "**fault**", "not run": "built"}


def page(results: dict[str, Any]) -> str:
    networks = results["networks"]
    known = zoo()
    lines = [
        INTRODUCTION.format(all=len(known), count=len(networks), figures=_count(networks)),
        "| network | stands for | " + " | ".join(way.name for way in WAYS) + " |",
        "|---|---|" + "---|" * len(WAYS),
    ]
    said: dict[str, list[str]] = {}
    for name, rows in networks.items():
        cells = []
        for way in WAYS:
            row = rows[way.name]
            figure = f" {row['error']:.0e}" if row.get("error") else ""
            cells.append(SHOWN[row["state"]] + figure)
            if "said" in row:
                said.setdefault(_general(row, name), []).append(f"{name} ({way.name})")
        lines.append(f"| `{name}` | {known[name].about if name in known else ''} | " + " | ".join(cells) + " |")
    lines += ["", "## What was said", ""]
    for sentence, where in sorted(said.items()):
        shown = ", ".join(where[:6]) + (f" and {len(where) - 6} more" if len(where) > 6 else "")
        lines.append(f"- {sentence} — {shown}")
    return "\n".join(lines) + "\n"


def _count(networks: dict[str, Any]) -> str:
    parts = []
    for way in WAYS:
        states = [rows[way.name]["state"] for rows in networks.values()]
        parts.append(f"{way.name}: {states.count('right')} right, {states.count('refused')} refused")
    bad = sum(row["state"] in ("wrong", "fault") for rows in networks.values() for row in rows.values())
    return "; ".join(parts) + f". Wrong or at fault: {bad}."


def _general(row: dict[str, Any], name: str) -> str:
    return row["said"].replace(f"strangers:{name}", "the network").replace(name, "the network").replace("|", "\\|")


if __name__ == "__main__":
    main()
