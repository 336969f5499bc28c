"""Networks that others trained, as files: what tvmflow makes of each, held against the library that it was made for.

`python -m benchmarks.strangers FOLDER` takes every .tflite and .onnx file of a folder to this computer, a Raspberry Pi
4B and three microcontrollers. Quantised .tflite files are held against the interpreter of TensorFlow Lite for
Microcontrollers (package `tflite-micro`), bit for bit; those that it doesn't take, and those of floats, against
LiteRT's reference kernels (`ai-edge-litert`); ONNX files against ONNX Runtime. Inputs are random over the whole range,
and its ends; a stream's calls follow each other. The results go to benchmarks/results/strangers-files.json as they
come, and to docs/strangers-files.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.report import environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "strangers-files.json"
PAGE = ROOT / "docs" / "strangers-files.md"
SUFFIXES = (".tflite", ".onnx")
BOARDS = {"host": 1000, "raspberry-pi-4b": 100, "mps2-an386": 20, "mps2-an500": 20, "mps3-an547": 20}
"""How many inputs each of them gets."""
FRAMES = 200
"""Calls of a stream on this computer."""
LEAST = 5
"""Inputs that every network gets; four of them are no noise."""
ORACLE_SECONDS = 900
"""What the other library may take: of large networks, for which its kernels are slow, there are fewer inputs."""
LIMIT_SECONDS = 7200
SHAPES = {
    "ch_ppocr_mobile_v2.0_cls_infer": ("1x3x48x192",),
    "basic_pitch_nmp": ("1x43844x1",),
    "pulsevad_2.1k": ("1x64x21",),
    "pulsevad_teacher_81k": ("1x64x21",),
}
"""Of files that leave them open, as whoever published them gives them."""
MAX_RELATIVE = 3e-5
"""What floats may be off, of the largest output."""

Arrays = tuple[np.ndarray, ...]
Answer = Callable[[Sequence[Arrays]], list[Arrays]]


def main(options: argparse.Namespace, folder: Path) -> None:
    if options.in_process:
        print(json.dumps(take(Path(options.in_process), options)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"files": {}}
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    for path in () if options.page else found:
        rows = results["files"].setdefault(path.name, {})
        for board in BOARDS:
            if options.ways in board and not (options.keep and board in rows):
                rows[board] = apart(folder, path, board, options)
                print(path.name, board, rows[board]["state"], rows[board].get("said", ""), flush=True)
                results["environment"] = environment({})
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(results))


def apart(folder: Path, path: Path, board: str, options: argparse.Namespace) -> dict[str, Any]:
    """`take` in a process of its own: what one file breaks, the next one doesn't meet."""
    command = [sys.executable, "-m", "benchmarks.strangers", str(folder), "--in-process", str(path), "--ways", board]
    if options.inputs:
        command += ["--inputs", str(options.inputs)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return {"state": "fault", "said": f"{type(error).__name__} outside tvmflow"}


def take(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A file on the board that `options.ways` names.

    `state` ("exact", "close", "refused", "wrong", "fault"), what was said, how many inputs there were, how many numbers
    of the outputs were off and by how much, and what the network takes there.
    """
    with tempfile.TemporaryDirectory(prefix="strangers-") as folder, contextlib.redirect_stdout(sys.stderr):
        try:
            return _take(path, options.ways, options.inputs, Path(folder))
        except Exception as error:
            return {"state": "fault", "said": f"{type(error).__name__}: {str(error).strip()[:200]}"}


def _take(path: Path, board: str, most: int, folder: Path) -> dict[str, Any]:
    from tvmflow.bundles.bundle import open_bundle
    from tvmflow.targets import kind

    shapes = [option for shape in SHAPES.get(path.stem, ()) for option in ("--input-shape", shape)]
    command = [sys.executable, "-m", "tvmflow", "build", "--board", board, "--model", str(path), *shapes]
    done = subprocess.run([*command, "-o", str(folder / "bundle")], capture_output=True, text=True, check=False)
    if done.returncode:
        state = {3: "wrong", 1: "fault"}.get(done.returncode, "refused")
        said = done.stderr.strip().splitlines()[-1].removeprefix("tvmflow: ")
        return {"state": state, "exit_code": done.returncode, "said": said.replace(str(path), path.name)}
    with open_bundle(folder / "bundle") as bundle:
        kinds = ("weights_bytes", "code_bytes", "activations_bytes")
        row: dict[str, Any] = {kind: bundle.manifest["memory"][kind] for kind in kinds}
        method, run = kind.find_runner(bundle.library, bundle.target, bundle.outputs)
        count = min(most or BOARDS[board], BOARDS[board])
        if bundle.state and board == "host":
            count = min(count, FRAMES)
        library, answer = oracle(path, bundle)
        own = [spec.name not in bundle.state for spec in bundle.inputs]
        started = time.perf_counter()
        answer([_own(call, own) for call in inputs_of(bundle, LEAST)])
        count = min(count, max(LEAST, int(LEAST * ORACLE_SECONDS / (time.perf_counter() - started))))
        calls, kept = inputs_of(bundle, count), _kept(bundle)
        given = run(calls, kept)
        library, answer = oracle(path, bundle)  # anew: a stream begins
        expected = answer([_own(call, own) for call in calls])
        row |= {"method": method, "against": library, **_compared(bundle, given, expected)}
        with contextlib.suppress(AttributeError):  # kinds that count no instructions
            row["instructions"] = _instructions(bundle)
    return row


def _own(call: Arrays, own: Sequence[bool]) -> Arrays:
    return tuple(array for array, is_own in zip(call, own, strict=True) if is_own)


def inputs_of(bundle: Any, count: int) -> list[Arrays]:
    """Inputs over the whole range of their type, and at its ends; floats are normally distributed."""
    rng = np.random.default_rng(0)

    def noise(spec: Any) -> np.ndarray:
        if spec.dtype in ("int8", "uint8"):
            info = np.iinfo(spec.dtype)
            return rng.integers(info.min, info.max + 1, spec.shape).astype(spec.dtype)
        return rng.standard_normal(spec.shape).astype(spec.dtype)

    def end(spec: Any, high: bool) -> np.ndarray:
        if spec.dtype in ("int8", "uint8"):
            return np.full(spec.shape, np.iinfo(spec.dtype).max if high else np.iinfo(spec.dtype).min, spec.dtype)
        return np.full(spec.shape, 1 if high else -1, spec.dtype)

    state, calls = bundle.state, []
    for call in range(count):
        arrays = []
        for spec in bundle.inputs:
            if spec.name in state:
                arrays.append(np.full(spec.shape, state[spec.name][1], spec.dtype))
            elif call < count - 3:
                arrays.append(noise(spec))
            elif call == count - 1:  # the two ends side by side
                ends = np.indices(spec.shape).sum(0) % 2
                arrays.append(np.where(ends, end(spec, True), end(spec, False)).astype(spec.dtype))
            else:
                arrays.append(end(spec, call == count - 2))
        calls.append(tuple(arrays))
    return calls


def _kept(bundle: Any) -> list[tuple[int, int]]:
    places = {spec.name: place for place, spec in enumerate(bundle.outputs)}
    return [
        (place, places[bundle.state[spec.name][0]])
        for place, spec in enumerate(bundle.inputs)
        if spec.name in bundle.state
    ]


def _compared(bundle: Any, given: Sequence[Arrays], expected: Sequence[Arrays]) -> dict[str, Any]:
    """Our outputs beside the other library's, in steps where they are integers here."""
    quantised = bundle.quantization is not None
    scales = (bundle.quantization or {}).get("output_scales", ())
    off, largest, numbers = 0, 0.0, 0
    for ours, theirs in zip(given, expected, strict=True):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            wanted = other.reshape(one.shape)
            if quantised and wanted.dtype == np.float32:  # the file gives real numbers
                wanted = np.rint(wanted / np.float32(scales[place])) + bundle.zero_points[1][place]
            difference = np.abs(one.astype(np.float64) - wanted.astype(np.float64))
            if not quantised:
                difference /= max(float(np.abs(wanted).max()), 1e-30)
            off, largest = off + int((difference > 0).sum()), max(largest, float(difference.max(initial=0)))
            numbers += one.size
    state = "exact" if quantised and not off else "close" if largest <= (1 if quantised else MAX_RELATIVE) else "wrong"
    return {"state": state, "inputs": len(given), "numbers": numbers, "off": off, "largest": largest}


def _instructions(bundle: Any) -> int:
    from importlib import import_module

    from tvmflow.targets import KINDS

    count = import_module(KINDS[bundle.target.kind].backend).count
    return count(bundle.library, bundle.target, bundle.layers, bundle.vectors()[0].inputs, bundle.outputs).total


# ----------------------------------------------------------------------------------------------- the other libraries


def oracle(path: Path, bundle: Any) -> tuple[str, Answer]:
    """The library that a file was made for, and what it answers to the calls of a stream or of nobody."""
    if path.suffix == ".onnx":
        return "ONNX Runtime", _onnxruntime(path, bundle)
    if bundle.quantization is not None:
        from tflite_micro.python.tflite_micro import runtime

        with contextlib.suppress(RuntimeError):  # it has no kernels of uint8, for one
            interpreter = runtime.Interpreter.from_file(str(path), arena_size=60_000_000)
            return "TensorFlow Lite for Microcontrollers", _tflm(interpreter, bundle)
    return "LiteRT's reference kernels", _litert(path)


def _real(bundle: Any, place: int, array: np.ndarray) -> np.ndarray:
    scale, zero_point = bundle.quantization["input_scales"][place], bundle.zero_points[0][place]
    return ((array.astype(np.float32) - zero_point) * np.float32(scale)).astype(np.float32)


def _tflm(interpreter: Any, bundle: Any) -> Answer:
    def answer(calls: Sequence[Arrays]) -> list[Arrays]:
        found = []
        for arrays in calls:
            for place, array in enumerate(arrays):
                details = interpreter.get_input_details(place)
                real = details["dtype"] == np.float32
                interpreter.set_input(_real(bundle, place, array) if real else array, place)
            interpreter.invoke()
            count = len(bundle.outputs) - len(bundle.state)
            found.append(tuple(interpreter.get_output(place).copy() for place in range(count)))
        return found

    return answer


def _litert(path: Path) -> Answer:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()

    def answer(calls: Sequence[Arrays]) -> list[Arrays]:
        found = []
        for arrays in calls:
            for details, array in zip(interpreter.get_input_details(), arrays, strict=True):
                interpreter.set_tensor(details["index"], array.reshape(details["shape"]))
            interpreter.invoke()
            found.append(tuple(interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()))
        return found

    return answer


def _onnxruntime(path: Path, bundle: Any) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(calls: Sequence[Arrays]) -> list[Arrays]:
        found = []
        for arrays in calls:
            given = {}
            for place, (port, array) in enumerate(zip(session.get_inputs(), arrays, strict=True)):
                real = bundle.quantization is not None and port.type == "tensor(float)"
                given[port.name] = _real(bundle, place, array) if real else array
            found.append(tuple(session.run(None, given)))
        return found

    return answer


# ------------------------------------------------------------------------------------------------------------ the page

INTRODUCTION = """# Files that others trained

{files} files of trained networks that nobody here had made, as they were published, on this computer, a Raspberry Pi 4B
(under qemu-user) and three microcontrollers (under qemu-system). *Exact*: each of so many inputs, random over the whole
range and at its ends, gave what the library gives that the file was made for, bit for bit. *Close*: off by one step at
most or, in float32, by {relative:.0e} of the largest output at most. *Refused* is one sentence and an exit code, before
anything is written; the sentences are below. Bytes are those of weights and code together, and of activations;
instructions are those of one inference, executed under emulation, which says nothing of time.
`python -m benchmarks.strangers FOLDER` makes this page of the files in a folder.

"""


def page(results: dict[str, Any]) -> str:
    files = results["files"]
    lines = [
        INTRODUCTION.format(files=len(files), relative=MAX_RELATIVE),
        "| file | board | result | against | weights and code | activations | instructions |",
        "|---|---|---|---|---|---|---|",
    ]
    said: dict[str, list[str]] = {}
    for name, rows in files.items():
        for board in (board for board in BOARDS if board in rows):
            row = rows[board]
            if "said" in row:
                said.setdefault(row["said"].replace(name, "the file").replace("|", "\\|"), []).append(
                    f"{name} ({board})"
                )
                lines.append(f"| `{name}` | {board} | {_shown(row)} | | | | |")
                continue
            kept, used = row["weights_bytes"] + row["code_bytes"], row["activations_bytes"]
            count = f"{row['instructions'] / 1e6:,.1f} M" if "instructions" in row else ""
            lines.append(
                f"| `{name}` | {board} | {_shown(row)} | {row['against']} | {kept / 1024:,.0f} KiB "
                f"| {used / 1024:,.0f} KiB | {count} |"
            )
    lines += ["", "## What was said", ""]
    lines += [f"- {sentence} — {', '.join(where)}" for sentence, where in sorted(said.items())]
    return "\n".join(lines) + "\n"


def _shown(row: dict[str, Any]) -> str:
    if row["state"] == "exact":
        return f"exact on {row['inputs']:,}"
    if row["state"] == "close" and row["largest"] >= 1:
        return f"{row['off']:,} of {row['numbers']:,} off by one step, of {row['inputs']:,} inputs"
    if "largest" in row:
        return f"{row['state']}, off by {row['largest']:.0e}, on {row['inputs']:,}"
    return row["state"] if row["state"] == "refused" else f"**{row['state']}**"
