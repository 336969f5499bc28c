"""Accuracy on CIFAR-10's test images, of the PyTorch network and of what was compiled from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tvmflow import bundle as bundles
from tvmflow.models import MODELS
from tvmflow.models.data import Split, load_cifar10
from tvmflow.spec import UserError, VerificationError

MIN_AGREEMENT = 0.999
"""Share of images on which PyTorch and the compiled network have to choose the same class."""


def evaluate(data_path: Path, model: str = "dilated-net", bundle_path: Path | None = None) -> dict[str, Any]:
    """Accuracy of `model` and, with a bundle, of that bundle and how often the two agree.

    Raises UserError, and VerificationError when they agree on too few images.
    """
    if model not in MODELS:
        raise UserError(f"--model {model!r} isn't one of the networks for CIFAR-10: {', '.join(MODELS)}.")
    if bundle_path is None:
        return _evaluate(data_path, model, None)
    with bundles.open_bundle(bundle_path) as bundle:
        bundles.require_native(bundle)
        if bundle.name != model:
            raise UserError(f"{bundle_path} holds {bundle.name}, but --model says {model}; compare like with like.")
        return _evaluate(data_path, model, bundle)


def _evaluate(data_path: Path, model: str, bundle: bundles.Bundle | None) -> dict[str, Any]:
    from tvmflow.models.train import predict

    data = load_cifar10(data_path)
    expected = predict(MODELS[model](), data.test.images)
    result: dict[str, Any] = {
        "model": model,
        "accuracy": accuracy(expected, data.test),
        "images": len(data.test.labels),
        "data": data.note,
        "data_sha256": data.sha256,
    }
    if bundle is not None:
        given = _predict_compiled(bundle, data.test)
        agreement = float((expected.argmax(1) == given.argmax(1)).mean())
        result["compiled"] = {
            "bundle": str(bundle.path),
            "target": bundle.target.name,
            "accuracy": accuracy(given, data.test),
            "agreement": agreement,
            "max_abs_error": float(np.abs(expected - given).max()),
        }
        if agreement < MIN_AGREEMENT:
            raise VerificationError(
                f"The compiled network agrees with PyTorch on {agreement:.2%} of the images, less than "
                f"{MIN_AGREEMENT:.1%}; its accuracy is {result['compiled']['accuracy']:.2%}."
            )
    return result


def accuracy(logits: np.ndarray, split: Split) -> float:
    """Share of the images whose largest logit is the right one."""
    return float((logits.argmax(1) == split.labels).mean())


def _predict_compiled(bundle: bundles.Bundle, split: Split) -> np.ndarray:
    from tvmflow.measure.local import run_vectors

    spec, preprocessing = bundle.inputs[0], bundle.preprocessing
    if preprocessing is None or spec.shape != (1, 3, 32, 32):
        raise UserError(f"{bundle.path} doesn't take one 3×32×32 image at a time; build it from {', '.join(MODELS)}.")
    images = preprocessing.apply(split.images)
    outputs = run_vectors(bundle.library, [(image[None],) for image in images], bundle.outputs)
    return np.concatenate([output[0] for output in outputs])
