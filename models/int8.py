"""int8 forms of a trained network: made on images of CIFAR-10, judged, and written with their facts and model card."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvmflow import integer
from tvmflow.chain import FloatLayer, float_chain, run_float
from tvmflow.frontend import call_factory, parse_input_shape
from tvmflow.integer import BATCH, IntegerNetwork, Scheme
from tvmflow.models import CIFAR10_LABELS, CIFAR10_PREPROCESSING, MODELS, Model, quantized_name
from tvmflow.models.data import Cifar10
from tvmflow.models.train import predict, write_text
from tvmflow.qat import TuneConfig, tune
from tvmflow.quantize import Method, Quantised, quantize
from tvmflow.spec import Preprocessing, UserError

CHECKED = 512
"""Training images, other than those for calibration, on which float and integer layers are compared."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How near the integer network is to the float one, on training images that calibrated nothing.

    `sqnr_db` is each layer's signal to quantisation noise in dB, with the noise of all layers before it; `agreement`
    the share of images with the same answer; `divergence` the mean Kullback-Leibler divergence of the probabilities.
    """

    images: int
    sqnr_db: dict[str, float]
    agreement: float
    divergence: float


def trained(model: str, input_shapes: Sequence[str] = ()) -> Model:
    """The network of the registry, or of a factory for images of CIFAR-10's kind. Raises UserError."""
    if model in MODELS:
        return MODELS[model]
    if not re.fullmatch(r"[\w.]+:\w+", model):
        raise UserError(
            f"--model {model!r} can't be quantised: it is neither a known network ({', '.join(MODELS)}) "
            "nor package.module:factory."
        )
    shape = parse_input_shape(input_shapes[0]).shape if input_shapes else (1, 3, 32, 32)
    return _Factory(
        name=model.partition(":")[2],
        description="",
        factory=model,
        input_shape=shape,
        labels=CIFAR10_LABELS,
        preprocessing=CIFAR10_PREPROCESSING,
    )


class _Factory(Model):
    def __call__(self) -> nn.Module:
        return call_factory(self.factory)


def make(
    model: Model, data: Cifar10, scheme: Scheme, method: Method, tuning: TuneConfig | None, work_dir: Path
) -> IntegerNetwork:
    """Quantise `model` and, with `tuning`, fine-tune it; `facts` say how, and how near it came. Raises UserError."""
    chain = float_chain(model(), model.name, model.input_shape)
    order = np.random.default_rng(method.seed).permutation(len(data.train.labels))
    if len(order) <= method.count:
        raise UserError(f"{method.count} images for calibration leave none to check on; {len(order)} are there.")
    images = model.preprocessing.apply(data.train.images[order[: method.count]])
    quantised = quantize(chain, images, scheme, method)
    facts: dict[str, Any] = {
        "data": data.note,
        "data_sha256": data.sha256,
        "method": dataclasses.asdict(method),
        "torch": torch.__version__,
    }
    layers = quantised.layers
    if tuning is not None:
        tuned = tune(chain, quantised, data.train, tuning, work_dir)
        layers = tuned.layers
        facts["fine_tuning"] = {
            **dataclasses.asdict(tuning),
            "steps": tuned.steps,
            "losses": tuned.losses,
            "minutes": round(tuned.seconds / 60, 1),
        }
    network = IntegerNetwork(
        name=model.name,
        scheme=scheme,
        input_shape=model.input_shape,
        input_scale=quantised.input_scale,
        layers=layers,
        preprocessing=model.preprocessing,
        labels=model.labels,
    )
    rest = order[method.count :][-CHECKED:]
    found = fidelity(chain, quantised, network, model.preprocessing, data.train.images[rest])
    return replace(network, facts={**facts, **dataclasses.asdict(found)})


def fidelity(
    chain: Sequence[FloatLayer],
    quantised: Quantised,
    network: IntegerNetwork,
    preprocessing: Preprocessing,
    images: np.ndarray,
) -> Fidelity:
    """Compare layer by layer on uint8 images N×H×W×C, in the units of the float network."""
    signal, noise = np.zeros(len(chain)), np.zeros(len(chain))
    agreeing = divergence = 0.0
    for start in range(0, len(images), BATCH):
        real = preprocessing.apply(images[start : start + BATCH])
        logits, kept = network.run(network.quantize_input(real), keep=True)
        wanted: Any = None
        for index, (_, after) in enumerate(run_float(tuple(chain), torch.from_numpy(real))):
            layer, wanted = network.layers[index], after.double().numpy()
            given = kept[layer.name] * (layer.scale * quantised.factors[index][:, None, None])
            signal[index] += np.square(wanted).sum()
            noise[index] += np.square(wanted - given).sum()
        wanted = wanted.reshape(logits.shape)
        agreeing += float((wanted.argmax(1) == logits.argmax(1)).sum())
        log_p, log_q = _log_softmax(wanted), _log_softmax(logits * network.output_scale)
        divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
    ratios = 10 * np.log10(signal / np.maximum(noise, 1e-30))
    return Fidelity(
        images=len(images),
        sqnr_db={layer.name: round(float(ratio), 1) for layer, ratio in zip(network.layers, ratios, strict=True)},
        agreement=agreeing / len(images),
        divergence=round(divergence / len(images), 6),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def logits_of(network: IntegerNetwork, images: np.ndarray) -> np.ndarray:
    """int8 logits N×classes of uint8 images N×H×W×3."""
    assert network.preprocessing is not None
    parts = np.array_split(images, -(-len(images) // 500))
    return np.concatenate([network.run(network.quantize_input(network.preprocessing.apply(part))) for part in parts])


def judge(network: IntegerNetwork, model: Model, data: Cifar10) -> IntegerNetwork:
    """Add to the facts what share of the test images it gets right, and the float network as well."""
    right = (logits_of(network, data.test.images).argmax(1) == data.test.labels).mean()
    before = (predict(model(), data.test.images).argmax(1) == data.test.labels).mean()
    facts = {"accuracy": float(right), "float_accuracy": float(before), "test_images": len(data.test.labels)}
    return replace(network, facts={**network.facts, **facts})


def export(network: IntegerNetwork, folder: Path, command: str) -> Path:
    """Write NAME.safetensors, its facts as .json and its model card as .md into `folder`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    name = quantized_name(network.name, network.scheme)
    path = folder / f"{name}.safetensors"
    network = replace(network, facts={**network.facts, "command": command})
    integer.save(network, path)
    facts = {"weight_bytes": network.weight_bytes, "file_bytes": os.stat(path).st_size, **network.facts}
    write_text(folder / f"{name}.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / f"{name}.md", model_card(name, network, facts))
    return path


REQUANTISATION = {
    "per-channel": "a scale for each output channel's weights, requantised by a 32-bit multiplier; after a ReLU uint8",
    "power-of-two": "requantised by shifts, one for each block of {block} output channels; all tensors int8",
}


def model_card(name: str, network: IntegerNetwork, facts: dict[str, Any]) -> str:
    """The card, made from what `make`, `judge` and `export` recorded."""
    method, tuning = facts["method"], facts.get("fine_tuning")
    if "accuracy" in facts:
        headline = (
            f"Accuracy on the {facts['test_images']:,} test images of CIFAR-10: **{facts['accuracy']:.2%}**, float32 "
            f"{facts['float_accuracy']:.2%} ({facts['data']})."
        )
    else:
        headline = f"Its accuracy on CIFAR-10's test images wasn't measured ({facts['data']})."
    made = "Post-training quantisation alone."
    if tuning:
        losses = " → ".join(f"{loss:.5f}" for loss in (tuning["losses"][0], tuning["losses"][-1]))
        made = (
            f"After post-training quantisation {tuning['steps']} steps of fine-tuning ({tuning['epochs']:g} epochs, "
            f"batch {tuning['batch']}, Adam, one cycle to {tuning['peak_rate']:g}, seed {tuning['seed']}; "
            f"{tuning['minutes']:g} minutes on two CPU cores that other work shared), whose loss, the divergence from "
            f"the float network on augmented training images, went {losses} from the first tenth to the last."
        )
    rows = "\n".join(
        f"| {layer.name} | {'×'.join(map(str, layer.output_shape[1:]))} | {layer.dtype} | "
        f"{facts['sqnr_db'][layer.name]:.1f} |"
        for layer in network.layers
    )
    return f"""# {name}

{headline} The test images chose nothing.

| | |
|---|---|
| Network | the int8 form of {network.name}: {facts["weight_bytes"]:,} bytes of weights, biases and requantisation |
| Scheme | {network.scheme}: {REQUANTISATION[network.scheme].format(block=method["block"])} |
| Input | int8, real = q · {network.input_scale:.6g} after the float network's preprocessing |
| Output | int8 logits, real = q · {network.output_scale:.6g} |
| Made with | `{facts["command"]}` |
| Calibration | {method["count"]} training images, drawn with seed {method["seed"]} |
| PyTorch | {facts["torch"]} |
| Training data | SHA-256 of the archive `{facts["data_sha256"]}` |

{made}

[docs/int8.md](../../docs/int8.md) has the method and the arithmetic, which is exact: all devices give the same logits,
bit for bit.

On {facts["images"]} training images that calibrated nothing it chooses the float network's class for
{facts["agreement"]:.2%}, and the mean divergence of its probabilities is {facts["divergence"]:.5f}. Signal to
quantisation noise of each layer's output there, with the noise of all layers before it:

| Layer | Output | Type | dB |
|---|---|---|---|
{rows}
"""
