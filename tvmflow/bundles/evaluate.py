"""Accuracy on test images, of the PyTorch or the quantised network and of what was compiled from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.bundles import bundle as bundles
from tvmflow.integer.network import Scheme
from tvmflow.models import MODELS
from tvmflow.models.data import Split, load_cifar10
from tvmflow.spec import UserError, VerificationError
from tvmflow.targets import kind as backends
from tvmflow.targets.kind import find_runner

MIN_AGREEMENT = 0.999
"""Share of images on which PyTorch and the compiled network have to choose the same class."""


def evaluate(data_path: Path, model: str = "dilated-net", bundle_path: Path | None = None) -> dict[str, Any]:
    """Accuracy of `model` and, with a bundle, of that bundle and how often the two agree.

    `model` is a name of the registry or a .safetensors file of `tvmflow train`. Raises UserError, and VerificationError
    when they agree on too few images.
    """
    if model not in MODELS and not model.endswith(".safetensors"):
        raise UserError(
            f"--model {model!r} is neither a .safetensors file nor one of tvmflow's networks: {', '.join(MODELS)}."
        )
    with _opened(bundle_path, model, quantised=False) as bundle:
        return _evaluate(data_path, model, bundle)


def evaluate_quantised(
    data_path: Path, model: str = "dilated-net", scheme: Scheme = "per-channel", bundle_path: Path | None = None
) -> dict[str, Any]:
    """Accuracy of a quantised network on the integer reference and, with a bundle, that the bundle gives the same bits.

    `model` is a name of the registry or a file of `tvmflow quantize`. Raises UserError, and VerificationError when a
    single logit differs.
    """
    from tvmflow.models import quantized
    from tvmflow.models.int8 import logits_of

    network = quantized(model, scheme)
    with _opened(bundle_path, network.name, quantised=True) as bundle:
        data = load_cifar10(data_path)
        expected = logits_of(network, data.test.images)
        result: dict[str, Any] = {
            "model": model,
            "dtype": "int8",
            "scheme": scheme,
            "accuracy": accuracy(expected, data.test),
            "images": len(data.test.labels),
            "data": data.note,
            "data_sha256": data.sha256,
        }
        if bundle is not None:
            given = _predict_compiled(bundle, data.test, network.quantize_input)
            differing = int((given != expected).any(1).sum())
            if differing:
                raise VerificationError(
                    f"The compiled network differs from the exact arithmetic of {model}, {scheme}, on {differing:,} of "
                    f"{len(given):,} images; its accuracy is {accuracy(given, data.test):.2%}."
                )
            result["compiled"] = {
                "bundle": str(bundle.path),
                "target": bundle.target.name,
                "accuracy": accuracy(given, data.test),
                "identical": len(given),
            }
    return result


@contextmanager
def _opened(path: Path | None, model: str, *, quantised: bool) -> Iterator[bundles.Bundle | None]:
    """The bundle, if there is one, after a look at whether it holds that network and runs here."""
    if path is None:
        yield None
        return
    with bundles.open_bundle(path) as bundle:
        if bundle.target.kind not in backends.NEED_NO_DEVICE:
            bundles.require_native(bundle)
        if bundle.name != model:
            raise UserError(f"{path} holds {bundle.name}, but --model says {model}; compare like with like.")
        if (bundle.inputs[0].dtype == "int8") != quantised:
            dtype = "float" if quantised else "int8"
            raise UserError(
                f"{path} holds the {dtype} network; {'build it with' if quantised else 'say'} --dtype int8."
            )
        yield bundle


def _evaluate(data_path: Path, model: str, bundle: bundles.Bundle | None) -> dict[str, Any]:
    from tvmflow.models.tiny_imagenet import load_data_set
    from tvmflow.models.train import exported, predict

    network = MODELS[model]() if model in MODELS else exported(Path(model))
    data = load_data_set(data_path)
    expected = predict(network, data.test.images, preprocessing=data.preprocessing)
    if expected.shape[1] != len(data.labels):
        raise UserError(
            f"{model} has {expected.shape[1]} classes; {data.name}, at {data_path}, has {len(data.labels)}."
        )
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


def _predict_compiled(
    bundle: bundles.Bundle, split: Split, prepare: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    spec, preprocessing = bundle.inputs[0], bundle.preprocessing
    if preprocessing is None or spec.shape != (1, 3, 32, 32):
        raise UserError(f"{bundle.path} doesn't take one 3×32×32 image at a time; build it from {', '.join(MODELS)}.")
    images = preprocessing.apply(split.images)
    if prepare is not None:
        images = prepare(images)
    _, runner = find_runner(bundle.library, bundle.target, bundle.outputs)
    outputs = runner([(image[None],) for image in images])
    return np.concatenate([output[0] for output in outputs])
