"""How right a network is, and what was compiled from it: on test images, or on inputs of a user's own.

`evaluate` and `evaluate_quantised` are for the registry's networks on CIFAR-10 and Tiny ImageNet, `evaluate_on` for
every form of network and of data. Where there are labels, it counts what is classed right; where there are none, it
says how near outputs are to those of the float network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.bundles import bundle as bundles
from tvmflow.integer.network import IntegerNetwork, Scheme
from tvmflow.integer.reference import quantize
from tvmflow.models import CIFAR10_PREPROCESSING, MODELS
from tvmflow.models.data import Split, is_cifar10, load_cifar10
from tvmflow.models.examples import Inputs, check_described, is_function, load_inputs, of_data_set
from tvmflow.network.agreement import Arrays
from tvmflow.network.shapes import InputShape
from tvmflow.spec import Preprocessing, TensorSpec, UserError, VerificationError
from tvmflow.targets import KINDS
from tvmflow.targets.kind import find_runner

MIN_AGREEMENT = 0.999
"""Share of images on which PyTorch and the compiled network have to choose the same class."""

MIN_SNR_DB = 40.0
"""Of what a float bundle gives against its network, where no classes are chosen: float16 has some 60 dB."""
AT_ONCE = 200
"""Inputs that are read, and given to a network, at a time."""


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
            if network.tail is not None:
                result["compiled"] = _agreeing(bundle, model, expected, given, data.test)
                return result
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
        if KINDS[bundle.target.kind].needs_device:
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
        result["compiled"] = _agreeing(bundle, "PyTorch", expected, given, data.test)
    return result


def _agreeing(
    bundle: bundles.Bundle, reference: str, expected: np.ndarray, given: np.ndarray, split: Split
) -> dict[str, Any]:
    """Facts of a bundle whose logits are those of a reference but for rounding. Raises VerificationError."""
    agreement = float((expected.argmax(1) == given.argmax(1)).mean())
    right = accuracy(given, split)
    if agreement < MIN_AGREEMENT:
        raise VerificationError(
            f"The compiled network agrees with {reference} on {agreement:.2%} of the images, less than "
            f"{MIN_AGREEMENT:.1%}; its accuracy is {right:.2%}."
        )
    return {
        "bundle": str(bundle.path),
        "target": bundle.target.name,
        "accuracy": right,
        "agreement": agreement,
        "max_abs_error": float(np.abs(expected - given).max()),
    }


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


# -------------------------------------------------------------------------------- any network, on any data


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What can be asked: float32 inputs, many of each, as the float network takes them → outputs as real numbers."""

    name: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    answer: Callable[[Arrays], Arrays]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    integer: IntegerNetwork | None = None


def is_data_set(data: str) -> bool:
    """Whether `--data` is CIFAR-10 or Tiny ImageNet, or would be if it were there."""
    return not is_function(data) and (Path(data, "wnids.txt").exists() or is_cifar10(Path(data)))


def is_quantised(model: str) -> bool:
    """Whether a .safetensors file is one of `tvmflow quantize`, or a file of another quantised network.

    Raises UserError if it can't be read.
    """
    from tvmflow.integer.frontend import comes_quantised
    from tvmflow.system.untrusted import read_tensors

    if comes_quantised(model):
        return True
    return model.endswith(".safetensors") and "tvmflow" in read_tensors(Path(model))[0]


def evaluate_on(
    data: str,
    model: str,
    *,
    shapes: Sequence[InputShape] = (),
    dtype: str = "float32",
    scheme: Scheme = "per-channel",
    bundle_path: Path | None = None,
    float_model: str | None = None,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    count: int | None = None,
) -> dict[str, Any]:
    """How `model`, in any form, answers on `data`: what it classes right, and how near it and a bundle come to others.

    A bundle of the same arithmetic is held to it; an int8 bundle beside a float network is compared with that. A
    quantised network is compared with `float_model`. Of the data, the first `count` are taken. Raises UserError, and
    VerificationError for a bundle that computes something else.
    """
    from tvmflow.models.tiny_imagenet import load_data_set

    network = _integer(model, scheme) if dtype == "int8" else _float(model, shapes)
    if float_model is None and dtype == "int8" and model in MODELS:
        float_model = model
    check_described(network.inputs, network.outputs, preprocessing, labels)
    seen = preprocessing or network.preprocessing
    classes = tuple(labels) or network.labels
    with _any_bundle(bundle_path, network) as bundle:
        if is_data_set(data):
            found = of_data_set(load_data_set(data), seen or CIFAR10_PREPROCESSING)
            (taken,) = found.take(np.arange(1))
            if len(network.inputs) != 1 or taken.shape[1:] != tuple(network.inputs[0].shape[1:]):
                raise UserError(f"{network.name} takes other inputs than {data} has, which are images of 3×H×W.")
        else:
            found = load_inputs(data, network.inputs, seen, classes, most=count)
        total = min(found.count, count or found.count)
        original = _float(float_model, shapes) if float_model is not None else None
        if found.labels is None and bundle is None and original is None:
            raise UserError(
                f"{data} has no labels, so that there is nothing to compare {network.name} with: give labels, "
                "--bundle, or --float with the network that it was quantised from."
            )
        return _judged(data, model, dtype, network, found, total, bundle, original, float_model)


def _judged(
    data: str,
    model: str,
    dtype: str,
    network: _Network,
    found: Inputs,
    total: int,
    bundle: bundles.Bundle | None,
    original: _Network | None,
    float_model: str | None,
) -> dict[str, Any]:
    given: list[list[Arrays]] = [[], [], []]
    method, run = ("", None) if bundle is None else _runner(bundle)
    for start in range(0, total, AT_ONCE):
        some = found.take(np.arange(start, min(total, start + AT_ONCE)))
        for place, answer in enumerate((network.answer, run, original.answer if original else None)):
            if answer is not None:
                given[place].append(answer(some))
    own, compiled, real = (tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for parts in given)
    numbers = None if found.labels is None else found.labels[:total]
    result: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        **({"scheme": network.integer.scheme} if network.integer else {}),
        "images": total,
        "data": found.note,
        "data_sha256": found.sha256,
        **_right(own, numbers, data),
    }
    if original is not None:
        result["float"] = {"model": float_model, **_right(real, numbers, data), **_likeness(real, own)}
    if bundle is not None:
        result["compiled"] = {
            "bundle": str(bundle.path),
            "target": bundle.target.name,
            "method": method,
            **_right(compiled, numbers, data),
            **_likeness(own, compiled),
        }
        _hold(result["compiled"], network, bundle, own, compiled)
    return result


def _hold(facts: dict[str, Any], network: _Network, bundle: bundles.Bundle, own: Arrays, compiled: Arrays) -> None:
    """Raises VerificationError if a bundle doesn't compute what the network of its arithmetic does."""
    if network.integer is not None and network.integer.tail is None:
        rows = [(a != b).reshape(len(a), -1).any(1) for a, b in zip(own, compiled, strict=True)]
        if differing := int(np.any(rows, 0).sum()):
            raise VerificationError(
                f"The compiled network differs from the exact arithmetic of {network.name} on {differing:,} of "
                f"{len(own[0]):,} inputs; `tvmflow compare {bundle.path}` says in which tensor that begins."
            )
        facts["identical"] = len(own[0])
        return
    if bundle.quantization is not None and network.integer is None:
        return
    if facts.get("agreement", 1.0) < MIN_AGREEMENT:
        raise VerificationError(
            f"The compiled network agrees with {network.name} on {facts['agreement']:.2%} of the inputs, less than "
            f"{MIN_AGREEMENT:.1%}."
        )
    if "agreement" not in facts and facts["snr_db"] < MIN_SNR_DB:
        raise VerificationError(
            f"The compiled network's outputs have {facts['snr_db']:.1f} dB of signal to noise against {network.name}, "
            f"less than {MIN_SNR_DB:g} dB."
        )


def _float(model: str, shapes: Sequence[InputShape]) -> _Network:
    from tvmflow.models.train import exported
    from tvmflow.network.frontend import from_module, import_model

    if model.endswith(".safetensors"):
        shape = shapes[0].shape if shapes else (1, 3, 32, 32)
        program = from_module(exported(Path(model)), Path(model).stem, model, [shape], CIFAR10_PREPROCESSING)
    else:
        factory = ":" in model and not Path(model).is_file()
        program = import_model(model, shapes or ([InputShape(name=None, shape=(1, 3, 32, 32))] if factory else []))
    original = program.original
    assert original is not None

    def answer(inputs: Arrays) -> Arrays:
        each = [original(*(array[place : place + 1].copy() for array in inputs)) for place in range(len(inputs[0]))]
        return tuple(np.concatenate(part) for part in zip(*each, strict=True))

    return _Network(
        name=program.name,
        inputs=program.inputs,
        outputs=program.outputs,
        answer=answer,
        preprocessing=program.preprocessing,
        labels=program.labels,
    )


def _integer(model: str, scheme: Scheme) -> _Network:
    from tvmflow.integer.frontend import is_integer, load_network
    from tvmflow.models import quantized

    network = load_network(Path(model)) if is_integer(model) else quantized(model, scheme)

    def answer(inputs: Arrays) -> Arrays:
        pairs = zip(inputs, network.inputs, strict=True)
        found = network.answer(tuple(quantize(array, port.scale, port.zero_point, port.dtype) for array, port in pairs))
        if network.tail is not None:
            return found
        each = zip(found, network.outputs, strict=True)
        return tuple((q.astype(np.float64) - port.zero_point) * port.scale for q, port in each)

    def specs(ports: Sequence[Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=port.name, shape=tuple(port.shape), dtype="float32") for port in ports)

    return _Network(
        name=network.name,
        inputs=specs(network.inputs),
        outputs=specs(network.answers),
        answer=answer,
        preprocessing=network.preprocessing,
        labels=network.labels,
        integer=network,
    )


@contextmanager
def _any_bundle(path: Path | None, network: _Network) -> Iterator[bundles.Bundle | None]:
    """The bundle, if there is one, after a look at whether it holds that network."""
    if path is None:
        yield None
        return
    with bundles.open_bundle(path) as bundle:
        if bundle.name != network.name:
            raise UserError(f"{path} holds {bundle.name}, but --model is {network.name}; compare like with like.")
        if network.integer is not None and bundle.quantization is None:
            raise UserError(f"{path} holds the float network and --model is quantised; build it with --dtype int8.")
        shapes = [tuple(spec.shape) for spec in network.inputs], [tuple(spec.shape) for spec in network.outputs]
        if ([spec.shape for spec in bundle.inputs], [spec.shape for spec in bundle.outputs]) != shapes:
            raise UserError(f"{path} was built for other inputs or outputs than --model has; build it again.")
        yield bundle


def _runner(bundle: bundles.Bundle) -> tuple[str, Callable[[Arrays], Arrays]]:
    """How a bundle runs on this computer, and the function. Raises MissingDependencyError where it can't."""
    method, run = find_runner(bundle.library, bundle.target, bundle.outputs)

    def answer(inputs: Arrays) -> Arrays:
        scales = bundle.scales
        if scales is not None:
            steps = zip(inputs, scales[0], bundle.zero_points[0], bundle.inputs, strict=True)
            inputs = tuple(quantize(array, scale, zero, spec.dtype) for array, scale, zero, spec in steps)
        batches = [array[:, None] for array in inputs]
        found = run([tuple(batch[place] for batch in batches) for place in range(len(inputs[0]))])
        outputs = tuple(np.concatenate(part) for part in zip(*found, strict=True))
        if scales is None:
            return outputs
        each = zip(outputs, scales[1], bundle.zero_points[1], strict=True)
        return tuple((q.astype(np.float64) - zero) * scale for q, scale, zero in each)

    return method, answer


def _classes(outputs: Arrays) -> np.ndarray | None:
    """N×classes of a network that has one number for each of two classes or more, and no other output."""
    flat = outputs[0].reshape(len(outputs[0]), -1)
    vector = outputs[0].ndim > 1 and flat.shape[1] == outputs[0].shape[1] > 1
    return flat if vector and len(outputs) == 1 else None


def _right(outputs: Arrays, labels: np.ndarray | None, data: str) -> dict[str, Any]:
    """The share of inputs whose label is the first class, and one of the first five; of other outputs, nothing."""
    logits = _classes(outputs)
    if labels is None or logits is None:
        return {}
    if labels.max() >= logits.shape[1]:
        raise UserError(
            f"{data} has a label {labels.max()}, and the network has {logits.shape[1]} classes, counted from 0; see "
            "--labels."
        )
    ahead = (logits > logits[np.arange(len(logits)), labels][:, None]).sum(1)
    first = logits.argmax(1) == labels
    return {"accuracy": float(first.mean()), **({"top5": float((ahead < 5).mean())} if logits.shape[1] > 5 else {})}


def _likeness(wanted: Arrays, given: Arrays) -> dict[str, Any]:
    """How near outputs are to others: the mean of the inputs' cosine similarities, and signal to noise of the whole.

    300 dB stand for no noise. `agreement` is the share of inputs for which the same class is chosen.
    """
    a, b = (
        np.concatenate([part.reshape(len(part), -1).astype(np.float64) for part in parts], 1)
        for parts in (wanted, given)
    )
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (np.abs(a - b).max(1, initial=0.0) == 0) | (lengths == 0)
    cosines = np.where(same, 1.0, (a * b).sum(1) / np.where(lengths == 0, 1.0, lengths))
    classes = _classes(wanted), _classes(given)
    both = classes[0] is not None and classes[1] is not None
    agreement = {"agreement": float((a.argmax(1) == b.argmax(1)).mean())} if both else {}
    return {"cosine": float(cosines.mean()), "snr_db": snr_db(np.square(a).sum(), np.square(a - b).sum()), **agreement}


def snr_db(signal: float, noise: float) -> float:
    """Their ratio in dB, at most 300 and at least −300."""
    return 300.0 if noise == 0 else round(float(10 * np.log10(max(1e-30, min(1e30, signal / noise)))), 2)
