"""Run a bundle on a user's own input: a .npy tensor or, for networks that say how they see one, an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.bundles.bundle import Bundle, load_array
from tvmflow.integer.network import quantize
from tvmflow.models.data import read_image
from tvmflow.spec import TensorSpec, UserError
from tvmflow.targets.kind import find_runner

TOP = 5


def infer(bundle: Bundle, paths: Sequence[Path]) -> dict[str, Any]:
    """Outputs for one file per input, in order, and the classes they mean. Raises UserError.

    Inputs that are outputs of the call before may be left out, all of them: then this is the first call.
    """
    wanted, state = bundle.inputs, bundle.state
    if state and len(paths) < len(bundle.inputs):
        wanted = tuple(spec for spec in bundle.inputs if spec.name not in state)
    if len(paths) != len(wanted):
        names = ", ".join(spec.name for spec in wanted)
        raise UserError(f"{bundle.name} has {len(wanted)} inputs ({names}); {len(paths)} files were given.")
    given = {spec.name: read_input(path, spec, bundle) for path, spec in zip(paths, wanted, strict=True)}
    arrays = tuple(
        given[spec.name] if spec.name in given else np.full(spec.shape, state[spec.name][1], spec.dtype)
        for spec in bundle.inputs
    )
    method, runner = find_runner(bundle.library, bundle.target, bundle.outputs)
    outputs = runner([arrays])[0]
    result: dict[str, Any] = {
        "model": bundle.name,
        "target": bundle.target.name,
        "method": method,
        "outputs": {spec.name: array.tolist() for spec, array in zip(bundle.outputs, outputs, strict=True)},
    }
    if bundle.labels and outputs[0].shape[-1] == len(bundle.labels):
        result["classes"] = [top_classes(logits, bundle.labels) for logits in real_outputs(bundle, outputs[0])]
    return result


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
    """A .npy file of the input's shape and dtype, or an image, preprocessed as the network wants. Raises UserError."""
    preprocessing = bundle.preprocessing
    if not path.is_file():
        raise UserError(f"There is no input file {path}; --input takes a .npy file or an image.")
    if path.suffix == ".npy":
        return load_array(path, spec)
    if preprocessing is None or len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[1] != len(preprocessing.mean):
        raise UserError(
            f"This network doesn't say how it sees an image, so {path.name} can't be used; give a .npy file."
        )
    return prepare_images(bundle, read_image(path, spec.shape)[None])
