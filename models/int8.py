"""int8 forms of a trained network: made on images, judged, and written with their facts and model card."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvmflow.integer import network as integer
from tvmflow.integer.chain import FloatLayer, float_chain, run_float
from tvmflow.integer.fine_tune import TuneConfig, tune
from tvmflow.integer.network import BATCH, IntegerNetwork, Scheme
from tvmflow.integer.post_training import Method, Quantised, quantize
from tvmflow.models import CIFAR10_PREPROCESSING, quantized_name
from tvmflow.models.data import Cifar10, Inputs, Split
from tvmflow.models.train import write_text
from tvmflow.network.agreement import compare, failure_sentence
from tvmflow.spec import Preprocessing, Program, UserError, VerificationError

CHECKED = 512
"""Inputs, other than those for calibration, on which float and integer layers are compared."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How near the integer network is to the float one, on inputs that calibrated nothing.

    `sqnr_db` is each layer's signal to quantisation noise in dB, with the noise of all layers before it, and
    `output_sqnr_db` that of the output against the original network's own; 300 dB stand for no noise. `agreement` is
    the share of answers that are the same; `divergence` the mean Kullback-Leibler divergence of the probabilities.
    """

    images: int
    sqnr_db: dict[str, float]
    output_sqnr_db: float
    agreement: float
    divergence: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What a network is quantised on: float32 N×C×H×W that calibrate, and others to check on.

    `facts` say where they are from; `training` are the images that fine-tuning may use, of CIFAR-10 only.
    """

    calibration: np.ndarray
    others: np.ndarray
    facts: Mapping[str, Any]
    training: Split | None = None


def of_cifar10(data: Cifar10, preprocessing: Preprocessing, method: Method) -> Examples:
    """Training images of CIFAR-10. Raises UserError."""
    first, rest = _drawn(len(data.train.labels), method)
    calibration, others = (preprocessing.apply(data.train.images[which]) for which in (first, rest))
    facts = {"data": data.note, "data_sha256": data.sha256}
    return Examples(calibration=calibration, others=others, facts=facts, training=data.train)


def of_inputs(data: Inputs, method: Method) -> Examples:
    """Images or arrays of the user's own. Raises UserError."""
    first, rest = _drawn(data.count, method)
    facts = {"inputs": data.note, "data_sha256": data.sha256}
    return Examples(calibration=data.take(first), others=data.take(rest), facts=facts)


def _drawn(count: int, method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the inputs that calibrate, and of those to check on."""
    order = np.random.default_rng(method.seed).permutation(count)
    if count == 1:
        raise UserError("There is one input only; give two at least, of which one calibrates and one is checked on.")
    if count <= method.count:
        raise UserError(
            f"{method.count} inputs for calibration leave none to check on: {count} are there. Give a smaller --count."
        )
    return order[: method.count], order[method.count :][-CHECKED:]


def make(
    program: Program,
    examples: Examples,
    scheme: Scheme,
    method: Method,
    preprocessing: Preprocessing | None = None,
    tuning: TuneConfig | None = None,
    work_dir: Path = Path("qat"),
) -> IntegerNetwork:
    """Quantise a network and, with `tuning`, fine-tune it; `facts` say how, and how near it came.

    Raises UserError, and VerificationError if what was imported computes something else than the original.
    """
    chain = float_chain(program)
    _require_faithful(chain, program)
    quantised = quantize(chain, examples.calibration, scheme, method)
    facts: dict[str, Any] = {
        **examples.facts,
        "method": dataclasses.asdict(method),
        "torch": torch.__version__,
    }
    layers = quantised.layers
    if tuning is not None:
        if examples.training is None or preprocessing != CIFAR10_PREPROCESSING:
            raise UserError("--qat fine-tunes on CIFAR-10's training images as the registry's networks see them alone.")
        tuned = tune(chain, quantised, examples.training, tuning, work_dir)
        layers = tuned.layers
        facts["fine_tuning"] = {
            **dataclasses.asdict(tuning),
            "steps": tuned.steps,
            "losses": tuned.losses,
            "minutes": round(tuned.seconds / 60, 1),
        }
    network = IntegerNetwork(
        name=program.name,
        scheme=scheme,
        input_shape=program.inputs[0].shape,
        input_scale=quantised.input_scale,
        layers=layers,
        preprocessing=preprocessing,
        labels=program.labels,
    )
    found = fidelity(chain, quantised, network, examples.others, program.original)
    if found.output_sqnr_db <= 0:
        raise VerificationError(
            f"Quantised, {program.name} gives more noise than answer ({found.output_sqnr_db:.1f} dB against the "
            f"original network): its inputs for calibration reach {np.abs(examples.calibration).max():.3g}, those that "
            f"it was checked on {np.abs(examples.others).max():.3g}; give inputs like those that it will meet."
        )
    return replace(network, facts={**facts, **dataclasses.asdict(found)})


def _require_faithful(chain: tuple[FloatLayer, ...], program: Program) -> None:
    """Raises VerificationError unless the chain gives the outputs that the original network gave."""
    results = []
    for vector in program.vectors:
        *_, (_, found) = run_float(chain, torch.from_numpy(vector.inputs[0].copy()))
        results.append((found.numpy().reshape(vector.outputs[0].shape),))
    verdict = compare(program.vectors, results)
    if not verdict["passed"]:
        raise VerificationError(failure_sentence(verdict, f"{program.name} as it was imported"))


def fidelity(
    chain: Sequence[FloatLayer],
    quantised: Quantised,
    network: IntegerNetwork,
    inputs: np.ndarray,
    original: Callable[..., tuple[np.ndarray, ...]] | None = None,
) -> Fidelity:
    """Compare layer by layer on inputs, float32 N×C×H×W, in the units of the float network.

    The output is compared with what `original` gives for one input at a time, or else with the chain's.
    """
    signal, noise = np.zeros(len(chain) + 1), np.zeros(len(chain) + 1)
    agreeing = divergence = 0.0
    for start in range(0, len(inputs), BATCH):
        real = inputs[start : start + BATCH]
        logits, kept = network.run(network.quantize_input(real), keep=True)
        wanted: Any = None
        for index, (_, after) in enumerate(run_float(tuple(chain), torch.from_numpy(real))):
            layer, wanted = network.layers[index], after.double().numpy()
            given = kept[layer.name] * (layer.scale * quantised.factors[index][:, None, None])
            signal[index] += np.square(wanted).sum()
            noise[index] += np.square(wanted - given).sum()
        if original is not None:
            wanted = np.concatenate([original(image[None].copy())[0] for image in real]).astype(np.float64)
        wanted, real_logits = wanted.reshape(logits.shape), logits * network.output_scale
        signal[-1] += np.square(wanted).sum()
        noise[-1] += np.square(wanted - real_logits).sum()
        agreeing += float((wanted.argmax(1) == logits.argmax(1)).reshape(len(real), -1).mean(1).sum())
        log_p, log_q = _log_softmax(wanted), _log_softmax(real_logits)
        divergence += float((np.exp(log_p) * (log_p - log_q)).sum(1).reshape(len(real), -1).mean(1).sum())
    ratios = [round(ratio, 1) for ratio in map(_decibels, signal, noise)]
    return Fidelity(
        images=len(inputs),
        sqnr_db={layer.name: ratio for layer, ratio in zip(network.layers, ratios, strict=False)},
        output_sqnr_db=ratios[-1],
        agreement=agreeing / len(inputs),
        divergence=round(divergence / len(inputs), 6),
    )


def _decibels(signal: float, noise: float) -> float:
    """Their ratio, at most 300 and at least −300."""
    return 300.0 if noise == 0 else float(10 * np.log10(max(1e-30, min(1e30, signal / noise))))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def logits_of(network: IntegerNetwork, images: np.ndarray) -> np.ndarray:
    """int8 logits N×classes of uint8 images N×H×W×3."""
    assert network.preprocessing is not None
    parts = np.array_split(images, -(-len(images) // 500))
    return np.concatenate([network.run(network.quantize_input(network.preprocessing.apply(part))) for part in parts])


def judge(network: IntegerNetwork, program: Program, data: Cifar10) -> IntegerNetwork:
    """Add to the facts what share of the test images it gets right, and the float network as well."""
    assert network.preprocessing is not None
    chain, right = float_chain(program), 0
    for part in np.array_split(np.arange(len(data.test.labels)), -(-len(data.test.labels) // 500)):
        *_, (_, logits) = run_float(chain, torch.from_numpy(network.preprocessing.apply(data.test.images[part])))
        right += int((logits.flatten(1).argmax(1).numpy() == data.test.labels[part]).sum())
    found = (logits_of(network, data.test.images).argmax(1) == data.test.labels).mean()
    count = len(data.test.labels)
    facts = {"accuracy": float(found), "float_accuracy": right / count, "test_images": count}
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
    elif "data" in facts:
        headline = f"Its accuracy on CIFAR-10's test images wasn't measured ({facts['data']})."
    else:
        headline = "Its accuracy wasn't measured."
    inputs = facts.get("inputs", "training images")
    archive = "Training data | SHA-256 of the archive" if "data" in facts else "Inputs | SHA-256"
    made = "Post-training quantisation alone."
    if tuning:
        losses = " → ".join(f"{loss:.5f}" for loss in (tuning["losses"][0], tuning["losses"][-1]))
        made = (
            f"After post-training quantisation {tuning['steps']} steps of fine-tuning ({tuning['epochs']:g} epochs, "
            f"batch {tuning['batch']}, Adam, one cycle to {tuning['peak_rate']:g}, seed {tuning['seed']}; "
            f"{tuning['minutes']:g} minutes on two CPU cores that other work shared), whose loss, the divergence from "
            f"the float network on augmented training images, went {losses} from the first tenth to the last."
        )
    original = (
        f"\n\nOf the output against the original network's own: {facts['output_sqnr_db']:.1f} dB."
        if "output_sqnr_db" in facts
        else ""
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
| Calibration | {method["count"]} {inputs}, drawn with seed {method["seed"]} |
| PyTorch | {facts["torch"]} |
| {archive} `{facts["data_sha256"]}` |

{made}

[docs/int8.md](../../docs/int8.md) has the method and the arithmetic, which is exact: all devices give the same logits,
bit for bit.

On {facts["images"]} {inputs} that calibrated nothing it chooses the float network's class for
{facts["agreement"]:.2%}, and the mean divergence of its probabilities is {facts["divergence"]:.5f}. Signal to
quantisation noise of each layer's output there, with the noise of all layers before it:

| Layer | Output | Type | dB |
|---|---|---|---|
{rows}{original}
"""
