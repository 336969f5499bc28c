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

from tvmflow.integer import file
from tvmflow.integer.fine_tune import TuneConfig, tune
from tvmflow.integer.graph import FloatGraph
from tvmflow.integer.keep_float import cut, tail_of
from tvmflow.integer.network import BATCH, IntegerNetwork, Scheme
from tvmflow.integer.network import quantize as to_integers
from tvmflow.integer.post_training import Method, Quantised, quantize
from tvmflow.integer.reader import float_graph
from tvmflow.integer.tail import Tail
from tvmflow.models import CIFAR10_PREPROCESSING, quantized_name
from tvmflow.models.data import Cifar10, Split
from tvmflow.models.examples import Inputs
from tvmflow.models.train import write_text
from tvmflow.network.agreement import compare, failure_sentence
from tvmflow.spec import Preprocessing, Program, UserError, Vector, VerificationError
from tvmflow.system import progress

Arrays = tuple[np.ndarray, ...]

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
    """What a network is quantised on: float32 arrays that calibrate, many of each input, and others to check on.

    `facts` say where they are from; `training` are the images that fine-tuning may use, of CIFAR-10 only.
    """

    calibration: Arrays
    others: Arrays
    facts: Mapping[str, Any]
    training: Split | None = None


def of_cifar10(data: Cifar10, preprocessing: Preprocessing, method: Method) -> Examples:
    """Training images of CIFAR-10. Raises UserError."""
    first, rest = _drawn(len(data.train.labels), method)
    calibration, others = ((preprocessing.apply(data.train.images[which]),) for which in (first, rest))
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
    keep_float: Sequence[str] = (),
) -> IntegerNetwork:
    """Quantise a network and, with `tuning`, fine-tune it; `facts` say how, and how near it came.

    The layers and modules of `keep_float`, and what comes after them, stay in float32. Raises UserError, and
    VerificationError if what was imported computes something else than the original.
    """
    graph = float_graph(program)
    _require_faithful(graph, program)
    parts = cut(graph, keep_float) if keep_float else None
    head, inner = (parts.head, parts.inner) if parts else (graph, frozenset[str]())
    progress.at("running the inputs that calibrate")
    quantised = quantize(head, examples.calibration, scheme, method, inner)
    facts: dict[str, Any] = {
        "channel_factors": _factors_of(quantised),
        **examples.facts,
        "method": dataclasses.asdict(method),
        "torch": torch.__version__,
    }
    layers = quantised.layers
    if parts is not None:
        facts["keep_float"] = [layer.name for layer in parts.end.layers]
    if tuning is not None:
        if examples.training is None or preprocessing != CIFAR10_PREPROCESSING:
            raise UserError("--qat fine-tunes on CIFAR-10's training images as the registry's networks see them alone.")
        tuned = tune(graph, quantised, examples.training, tuning, work_dir)
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
        inputs=quantised.inputs,
        outputs=quantised.outputs,
        layers=layers,
        preprocessing=preprocessing,
        labels=program.labels,
        tail=_tail(parts.end, quantised) if parts else None,
    )
    if parts is not None:
        _require_right_tail(parts.end, network, examples.others)
    progress.at("comparing its layers with those of floats")
    found = fidelity(graph, quantised, network, examples.others, program.original, parts.end if parts else None)
    if found.output_sqnr_db <= 0:
        raise VerificationError(
            f"Quantised, {program.name} gives more noise than answer ({found.output_sqnr_db:.1f} dB against the "
            f"original network): its inputs for calibration reach {_largest(examples.calibration):.3g}, those that "
            f"it was checked on {_largest(examples.others):.3g}; give inputs like those that it will meet."
        )
    return replace(network, facts={**facts, **dataclasses.asdict(found)})


def _tail(end: FloatGraph, quantised: Quantised) -> Tail:
    dtypes = {layer.name: layer.dtype for layer in quantised.layers}
    ports = quantised.outputs
    return tail_of(end, [port.scale for port in ports], [dtypes[port.source] for port in ports])


def _require_right_tail(end: FloatGraph, network: IntegerNetwork, inputs: Arrays) -> None:
    """Raises VerificationError unless what was written of the end computes what it does."""
    given = tuple(to_integers(array[:2], port.scale) for array, port in zip(inputs, network.inputs, strict=True))
    _, kept = network.run_kept(given)
    real = end.outputs_of(tuple(kept[port.source] * np.float32(port.scale) for port in network.outputs))
    verdict = compare([Vector(name="inputs", inputs=given, outputs=real)], [network.answer(given)])
    if not verdict["passed"]:
        raise VerificationError(failure_sentence(verdict, f"What stays in float32 of {network.name}"))


def _factors_of(quantised: Quantised) -> dict[str, list[float]]:
    """By what real values of channels were divided when they were equalised, of layers where that was done."""
    return {
        name: [float(f"{value:.8g}") for value in factor]
        for name, factor in quantised.factors.items()
        if (factor != 1).any()
    }


def _largest(arrays: Arrays) -> float:
    return max(float(np.abs(array).max()) for array in arrays)


def _require_faithful(graph: FloatGraph, program: Program) -> None:
    """Raises VerificationError unless the graph gives the outputs that the original network gave.

    Inputs with NaN and infinity are left out, for integers have neither.
    """
    vectors = [vector for vector in program.vectors if all(np.isfinite(array).all() for array in vector.inputs)]
    verdict = compare(vectors, [graph.outputs_of(vector.inputs) for vector in vectors])
    if not verdict["passed"]:
        raise VerificationError(failure_sentence(verdict, f"{program.name} as it was imported"))


def fidelity(
    graph: FloatGraph,
    quantised: Quantised,
    network: IntegerNetwork,
    inputs: Arrays,
    original: Callable[..., tuple[np.ndarray, ...]] | None = None,
    end: FloatGraph | None = None,
) -> Fidelity:
    """Compare layer by layer on inputs, float32, in the units of the float network; `end` is what stays in float32.

    The outputs are compared with what `original` gives for one input at a time, or else with the graph's; of several
    outputs, agreement and divergence are the first one's.
    """
    names = [layer.name for layer in graph.layers]
    signal, noise = (dict.fromkeys((*names, ""), 0.0) for _ in range(2))
    layers = network.by_name
    agreeing = divergence = 0.0
    count = len(inputs[0])
    for start in range(0, count, BATCH):
        real = tuple(array[start : start + BATCH] for array in inputs)
        ported = zip(real, network.inputs, strict=True)
        given, kept = network.run_kept(tuple(to_integers(array, port.scale) for array, port in ported))
        found = [q * port.scale for port, q in zip(network.outputs, given, strict=True)]
        real_end: dict[str, np.ndarray] = {}
        if end is not None:
            read = end.tensors_of(tuple(array.astype(np.float32) for array in found))
            real_end = {name: tensor.double().numpy() for name, tensor in read.items()}
            real_end |= {layer.name: after.double().numpy() for layer, _, after in end.run(read)}
            found = [real_end[port.source].reshape(-1, *port.shape[1:]) for port in end.outputs]
        floats: dict[str, np.ndarray] = {}
        sources = {port.source for port in graph.outputs}
        for layer, _, after in graph.run(graph.tensors_of(real)):
            wanted = after.double().numpy()
            if layer.name in sources:
                floats[layer.name] = wanted
            if layer.name in layers:
                own = kept[layer.name] * (layers[layer.name].scale * quantised.factors[layer.name][:, None, None])
            else:
                own = real_end[layer.name]
            signal[layer.name] += np.square(wanted).sum()
            noise[layer.name] += np.square(wanted - own).sum()
        if original is None:
            outputs = [floats[port.source] for port in graph.outputs]
        else:
            each = [original(*(array[place : place + 1].copy() for array in real)) for place in range(len(real[0]))]
            outputs = [np.stack([found[place] for found in each]) for place in range(len(found))]
        for place, answer in enumerate(found):
            wanted = outputs[place].astype(np.float64).reshape(answer.shape)
            signal[""] += np.square(wanted).sum()
            noise[""] += np.square(wanted - answer).sum()
            if place == 0:
                agreeing += _agreement(wanted, answer)
                divergence += _divergence(wanted, answer)
    ratios = {name: round(_decibels(signal[name], noise[name]), 1) for name in signal}
    output = ratios.pop("")
    return Fidelity(
        images=count,
        sqnr_db=ratios,
        output_sqnr_db=output,
        agreement=agreeing / count,
        divergence=round(divergence / count, 6),
    )


def _agreement(wanted: np.ndarray, found: np.ndarray) -> float:
    """For how many of a batch the largest of the classes is the same; of maps, a share of the pixels."""
    wanted, found = (
        array.reshape(len(array), array.shape[1] if array.ndim > 1 else 1, -1) for array in (wanted, found)
    )
    return float((wanted.argmax(1) == found.argmax(1)).mean(1).sum())


def _divergence(wanted: np.ndarray, found: np.ndarray) -> float:
    wanted, found = (
        array.reshape(len(array), array.shape[1] if array.ndim > 1 else 1, -1) for array in (wanted, found)
    )
    log_p, log_q = _log_softmax(wanted), _log_softmax(found)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean(1).sum())


def _decibels(signal: float, noise: float) -> float:
    """Their ratio, at most 300 and at least −300."""
    return 300.0 if noise == 0 else float(10 * np.log10(max(1e-30, min(1e30, signal / noise))))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def logits_of(network: IntegerNetwork, images: np.ndarray) -> np.ndarray:
    """Logits N×classes of uint8 images N×H×W×3: int8, or float32 where the network ends in it."""
    assert network.preprocessing is not None
    parts = np.array_split(images, -(-len(images) // 500))
    found = [network.answer((network.quantize_input(network.preprocessing.apply(part)),))[0] for part in parts]
    return np.concatenate(found).reshape(len(images), -1)


def judge(network: IntegerNetwork, program: Program, data: Cifar10) -> IntegerNetwork:
    """Add to the facts what share of the test images it gets right, and the float network as well."""
    assert network.preprocessing is not None
    graph, right = float_graph(program), 0
    for part in np.array_split(np.arange(len(data.test.labels)), -(-len(data.test.labels) // 500)):
        logits, *_ = graph.outputs_of((network.preprocessing.apply(data.test.images[part]),))
        right += int((logits.reshape(len(part), -1).argmax(1) == data.test.labels[part]).sum())
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
    file.save(network, path)
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
        if layer.name in facts["sqnr_db"]
    )
    output = f"int8 logits, real = q · {network.output_scale:.6g}"
    exact = "which is exact: all devices give the same logits,\nbit for bit."
    if network.tail:
        output = "float32, of layers that stay so"
        rows += "".join(f"\n| {layer} |  | float32 | {facts['sqnr_db'][layer]:.1f} |" for layer in facts["keep_float"])
        exact = "which is exact: all devices give what its\nfloat32 layers read bit for bit the same."
    return f"""# {name}

{headline} The test images chose nothing.

| | |
|---|---|
| Network | the int8 form of {network.name}: {facts["weight_bytes"]:,} bytes of weights, biases and requantisation |
| Scheme | {network.scheme}: {REQUANTISATION[network.scheme].format(block=method["block"])} |
| Input | int8, real = q · {network.input_scale:.6g} after the float network's preprocessing |
| Output | {output} |
| Made with | `{facts["command"]}` |
| Calibration | {method["count"]} {inputs}, drawn with seed {method["seed"]} |
| PyTorch | {facts["torch"]} |
| {archive} `{facts["data_sha256"]}` |

{made}

[docs/int8.md](../../docs/int8.md) has the method and the arithmetic, {exact}

On {facts["images"]} {inputs} that calibrated nothing it chooses the float network's class for
{facts["agreement"]:.2%}, and the mean divergence of its probabilities is {facts["divergence"]:.5f}. Signal to
quantisation noise of each layer's output there, with the noise of all layers before it:

| Layer | Output | Type | dB |
|---|---|---|---|
{rows}{original}
"""
