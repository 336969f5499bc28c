"""Run a bundle on a user's own input: a .npy tensor or, for networks that say how they see one, an image."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.bundles.bundle import Bundle, load_calls
from tvmflow.integer.network import quantize
from tvmflow.models.data import read_image
from tvmflow.network.agreement import Arrays
from tvmflow.spec import TensorSpec, UserError
from tvmflow.system import scratch
from tvmflow.system.tensors import BFLOAT16
from tvmflow.targets.kind import find_runner

TOP = 5


def infer(bundle: Bundle, paths: Sequence[Path]) -> dict[str, Any]:
    """Outputs for one file per input, in order, and the classes they mean. Raises UserError.

    Inputs that are outputs of the call before may be left out, all of them. A file with the tensors of many calls
    makes many, in which each begins with what the one before has left; where another file has one tensor, it is that
    of all calls. The result then has "calls", a list, where that of one call has "outputs".
    """
    return described(bundle, *call(bundle, paths))


def described(bundle: Bundle, method: str, calls: Sequence[Arrays]) -> dict[str, Any]:
    """What `infer` says of calls that were run like that."""
    result: dict[str, Any] = {"model": bundle.name, "target": bundle.target.name, "method": method}
    rows = [_described(bundle, outputs) for outputs in calls]
    return {**result, **rows[0]} if len(rows) == 1 else {**result, "calls": rows}


def save_outputs(path: Path, bundle: Bundle, calls: Sequence[Arrays]) -> None:
    """Write the outputs to a .npz file, each under its name, calls first. Raises UserError.

    The file is whole or as it was before.
    """
    try:
        with scratch.replacing(path) as made, zipfile.ZipFile(made, "w") as archive:
            for spec, stack in zip(bundle.outputs, zip(*calls, strict=True), strict=True):
                with archive.open(f"{spec.name}.npy", "w", force_zip64=True) as member:
                    np.save(member, np.stack(stack))
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}.") from error


def call(bundle: Bundle, paths: Sequence[Path]) -> tuple[str, list[Arrays]]:
    """How the bundle was run, in a word, and the outputs of each call. As `infer`, of which this is the work."""
    wanted, state = bundle.inputs, bundle.state
    if state and len(paths) < len(bundle.inputs):
        wanted = tuple(spec for spec in bundle.inputs if spec.name not in state)
    if len(paths) != len(wanted):
        names = ", ".join(spec.name for spec in wanted)
        raise UserError(f"{bundle.name} has {len(wanted)} inputs ({names}); {len(paths)} files were given.")
    given = {spec.name: read_input(path, spec, bundle) for path, spec in zip(paths, wanted, strict=True)}
    counts = {name: len(arrays) for name, arrays in given.items()}
    calls = max(counts.values())
    if other := next((name for name, count in counts.items() if count not in (1, calls)), None):
        most = next(name for name, count in counts.items() if count == calls)
        raise UserError(
            f"{most} is given for {calls} calls, {other} for {counts[other]}: give as many, or one for all."
        )
    for name, (_, initial) in state.items():
        spec = next(spec for spec in bundle.inputs if spec.name == name)
        given.setdefault(name, np.full((1, *spec.shape), initial, spec.dtype))
    stacks = [np.broadcast_to(given[spec.name], (calls, *spec.shape)) for spec in bundle.inputs]
    places = {spec.name: place for place, spec in enumerate(bundle.outputs)}
    # a state that is given for every call is what it is given as
    kept = [
        (place, places[state[spec.name][0]])
        for place, spec in enumerate(bundle.inputs)
        if spec.name in state and len(given[spec.name]) == 1
    ]
    method, runner = find_runner(bundle.library, bundle.target, bundle.outputs)
    return method, runner(list(zip(*stacks, strict=True)), kept)


def answer(bundle: Bundle, given: Sequence[Any], named: Mapping[str, Any] | None = None) -> Arrays:
    """The outputs for arrays or tensors, one for each input, in order or by name; in the order of `bundle.outputs`.

    Where a network's batch is 1, N of each input may be given at once, and the outputs are those of all N. A quantised
    network takes real numbers, which are quantised as the bundle says, and then gives real numbers; integers of its own
    dtype are taken as they are, and then its own integers are given. Inputs that are outputs of the call before may be
    left out: they begin as at the first call and, where N of the others are given, each call begins with what the one
    before has left, as in `infer`. Raises UserError.
    """
    found = _assigned(bundle, given, named or {})
    scales, zero_points = bundle.scales, bundle.zero_points
    stacks, real = [], []
    for place, spec in enumerate(bundle.inputs):
        if spec.name not in found:
            stacks.append(np.full((1, *spec.shape), bundle.state[spec.name][1], spec.dtype))
            continue
        array = found[spec.name]
        if scales is not None and array.dtype.kind == "f" and np.dtype(spec.dtype).kind in "iu":
            if not np.isfinite(array).all():
                raise UserError(f"{spec.name} holds NaN or infinity, which no integer stands for.")
            array = quantize(array, scales[0][place], zero_points[0][place], spec.dtype)
            real.append(spec.name)
        stacks.append(_calls(array, spec))
    if real and len(real) < len(found):
        raise UserError(
            f"{', '.join(real)} of {bundle.name} was given as real numbers and another input as integers; give all of "
            "them as real numbers, or all as the integers of the quantised network."
        )
    count = max(map(len, stacks))
    if other := next((len(stack) for stack in stacks if len(stack) not in (1, count)), None):
        raise UserError(f"One input of {bundle.name} is given {count} times and another {other} times; give as many.")
    _, runner = find_runner(bundle.library, bundle.target, bundle.outputs)
    places = {spec.name: place for place, spec in enumerate(bundle.outputs)}
    kept = [
        (place, places[bundle.state[spec.name][0]])
        for place, spec in enumerate(bundle.inputs)
        if spec.name in bundle.state and len(stacks[place]) == 1
    ]
    whole_stacks = (np.broadcast_to(stack, (count, *stack.shape[1:])) for stack in stacks)
    calls = runner(list(zip(*whole_stacks, strict=True)), kept)
    outputs = []
    for place, (spec, arrays) in enumerate(zip(bundle.outputs, zip(*calls, strict=True), strict=True)):
        whole = arrays[0] if count == 1 else (np.concatenate if spec.shape[:1] == (1,) else np.stack)(arrays)
        if real and scales is not None and whole.dtype.kind in "iu":
            whole = ((whole.astype(np.float64) - zero_points[1][place]) * scales[1][place]).astype(np.float32)
        outputs.append(whole)
    return tuple(outputs)


def _assigned(bundle: Bundle, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by their inputs' names: what has a name, and the rest in order. Raises UserError."""
    names = [spec.name for spec in bundle.inputs]
    known = ", ".join(names)
    if strange := [name for name in named if name not in names]:
        raise UserError(f"{bundle.name} has no input {strange[0]!r}; its inputs are {known}.")
    left = [name for name in names if name not in named]
    if len(given) + len(named) < len(names):  # a state needn't be given
        left = [name for name in left if name not in bundle.state]
    if len(given) != len(left):
        raise UserError(f"{bundle.name} has {len(names)} inputs ({known}); {len(given) + len(named)} were given.")
    arrays = {**dict(zip(left, given, strict=True)), **named}
    return {name: np.asarray(to_numpy(value)) for name, value in arrays.items()}


def to_numpy(value: Any) -> Any:
    """A tensor of PyTorch as an array; what is none stays what it is."""
    if not hasattr(value, "detach"):
        return value
    found = value.detach().cpu()
    return found.float().numpy() if str(found.dtype) == "torch.bfloat16" else found.numpy()


def _calls(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """An input of one call or of many, calls first. Raises UserError."""
    if spec.dtype == "bfloat16" and array.dtype == np.float32:
        array = array.astype(BFLOAT16)
    many = spec.shape[:1] == (1,) and array.shape[1:] == spec.shape[1:] and len(array) > 0 if array.ndim else False
    if str(array.dtype) != spec.dtype or not (array.shape == spec.shape or many):
        shape = "×".join(map(str, spec.shape)) or "scalar"
        seen = "×".join(map(str, array.shape)) or "scalar"
        raise UserError(f"{spec.name} is {spec.dtype} {shape}, and {array.dtype} {seen} was given.")
    return array.reshape((len(array), *spec.shape)) if many else array[None]


def _described(bundle: Bundle, outputs: Arrays) -> dict[str, Any]:
    """The outputs of a call by their names and, of a classifier's, the classes."""
    named = {spec.name: array.tolist() for spec, array in zip(bundle.outputs, outputs, strict=True)}
    if not bundle.labels or outputs[0].shape[-1] != len(bundle.labels):
        return {"outputs": named}
    classes = [top_classes(logits, bundle.labels) for logits in real_outputs(bundle, outputs[0])]
    return {"outputs": named, "classes": classes}


def top_classes(logits: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The most probable classes with their softmax, highest first."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    best = np.argsort(-probabilities)[:TOP]
    return [{"label": labels[index], "probability": float(probabilities[index])} for index in best]


def real_outputs(bundle: Bundle, outputs: np.ndarray) -> np.ndarray:
    """Outputs as rows of real logits, which those of a quantised network are times their scale."""
    scale = bundle.quantization["output_scale"] if bundle.quantization else 1
    zero_point = bundle.zero_points[1][0] if bundle.quantization else 0
    return (outputs.reshape(-1, len(bundle.labels)).astype(np.float64) - zero_point) * scale


def prepare_images(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """uint8 N×H×W×C → N×C×H×W as the bundle's network takes them. It says how it sees images."""
    assert bundle.preprocessing is not None
    real = bundle.preprocessing.apply(images)
    if not bundle.quantization:
        return real
    return quantize(real, bundle.quantization["input_scale"], bundle.zero_points[0][0], bundle.inputs[0].dtype)


def read_input(path: Path, spec: TensorSpec, bundle: Bundle) -> np.ndarray:
    """What a file gives an input at each call, calls first: a .npy file's, or an image's as the network sees it.

    Raises UserError.
    """
    preprocessing = bundle.preprocessing
    if not path.is_file():
        raise UserError(f"There is no input file {path}; --input takes a .npy file or an image.")
    if path.suffix == ".npy":
        return load_calls(path, spec)
    if preprocessing is None or len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[1] != len(preprocessing.mean):
        raise UserError(
            f"This network doesn't say how it sees an image, so {path.name} can't be used; give a .npy file, or build "
            "the bundle with --mean and --std, or --input-range."
        )
    return prepare_images(bundle, read_image(path, spec.shape)[None])[None]
