"""`tvmflow quantize` and `tvmflow export`: a trained network in int8, and one in int8 as a file for other runtimes."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tvmflow.cli.options import InputShapes, Json, Labels, Mean, ModelName, Scheme, Std, check_folder, output_path
from tvmflow.cli.outcome import show
from tvmflow.models import CIFAR10_PREPROCESSING
from tvmflow.spec import Program, UserError

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork

log = logging.getLogger("tvmflow.cli")

NOISY_DB = 10.0
"""Below that the noise has more than a tenth of the output's power."""


def quantize(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="CIFAR-10 (archive, folder or batches), a folder of images, a .npy or .npz file, or "
            "module:function or file.py:function that yields batches.",
        ),
    ],
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    scheme: Scheme = "per-channel",
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--output", parser=output_path, metavar="<path>", help="Folder for weights, facts and model card."
        ),
    ] = Path("runs/int8"),
    count: Annotated[int, typer.Option("--count", min=1, help="Images for calibration.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which images, and in what order.")] = 0,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-float",
            help="A layer or module that stays in float32, with all that comes after it; once for each.",
        ),
    ] = None,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune as well; stopped, it goes on where it was.")] = False,
    epochs: Annotated[float, typer.Option("--epochs", min=1e-3, help="Length of --qat.")] = 0.1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images in a step of --qat.")] = 64,
    rate: Annotated[float, typer.Option("--rate", help="Peak of --qat's rate, in steps of the weights.")] = 3e-3,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="Checkpoints of --qat; OUTPUT/qat by default.")
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            "--onnx", parser=output_path, metavar="<path>", help="Also write it as ONNX, for other runtimes: net.onnx."
        ),
    ] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Measure accuracy on CIFAR-10's test images.")] = True,
    json: Json = None,
) -> None:
    """Quantise a network to int8, and say layer by layer what that cost."""
    if qat and keep_float:
        raise UserError("--qat fine-tunes networks that are quantised whole, and --keep-float leaves parts; give one.")

    import shlex

    from tvmflow.integer import qdq
    from tvmflow.integer.fine_tune import TuneConfig
    from tvmflow.integer.keep_float import cut
    from tvmflow.integer.post_training import Method
    from tvmflow.integer.reader import float_graph
    from tvmflow.models import examples as given
    from tvmflow.models import int8
    from tvmflow.models.data import is_cifar10, load_cifar10

    check_folder(out)
    if onnx is not None:
        _check_file(onnx, "--onnx")
    seen = given.parse_preprocessing(mean, std)
    named = given.parse_labels(labels) if labels is not None else ()
    method = Method(count=count, seed=seed)
    tuning = TuneConfig(epochs=epochs, batch=batch, peak_rate=rate, seed=seed) if qat else None
    program = _imported(model, input_shape or [])
    graph = float_graph(program)  # what has no integer form is said before data are read
    if keep_float:
        kept = ", ".join(layer.name for layer in cut(graph, keep_float).end.layers)
        log.info(f"In float32 stay what is named and all that comes after it: {kept}")
    given.check_described(program.inputs, program.outputs, seen, named)
    shape, seen, cifar = program.inputs[0].shape, seen or program.preprocessing, None
    program = replace(program, labels=named or program.labels)
    log.info(f"Reading {data}")
    if not given.is_function(data) and is_cifar10(Path(data)):
        if len(program.inputs) > 1 or shape[1:] != (3, 32, 32):
            wanted = ", ".join("×".join(map(str, spec.shape[1:])) for spec in program.inputs)
            raise UserError(
                f"{program.name} takes {wanted}, no image of CIFAR-10: give a folder of images or a .npz file."
            )
        cifar, seen = load_cifar10(Path(data)), seen or CIFAR10_PREPROCESSING
        examples = int8.of_cifar10(cifar, seen, method)
    else:
        found = given.load_inputs(data, program.inputs, seen, program.labels, most=count + int8.CHECKED)
        if found.names and len(found.names) == given.classes_of(program.outputs[0].shape):
            program = replace(program, labels=found.names)
        examples = int8.of_inputs(found, method)
    log.info(f"Quantising {program.name} {scheme} on {count} {examples.facts.get('inputs', 'training images')}")
    try:
        network = int8.make(program, examples, scheme, method, seen, tuning, work_dir or out / "qat", keep_float or ())
    except KeyboardInterrupt:
        if qat:
            log.info(f"\nThe same command goes on from the last checkpoint in {work_dir or out / 'qat'}.")
        raise
    if test and cifar is not None:
        log.info(f"Judging it on {len(cifar.test.labels):,} test images")
        network = int8.judge(network, program, cifar)
    if network.facts["output_sqnr_db"] < NOISY_DB:
        log.info(
            "A good part of what it gives is noise: see by the layers below where that begins. Inputs for calibration "
            "like those that it will meet help, fewer outliers among them, or --scheme per-channel."
        )
    path = int8.export(network, out, shlex.join(["tvmflow", *sys.argv[1:]]))
    text, written = _text(path, network.facts), {"weights": str(path)}
    if onnx is not None:
        qdq.write(network, onnx)
        text, written = f"{text}\n{_written(network, onnx)}", {**written, "onnx": str(onnx)}
    show(text, {**written, **network.facts}, json)


def export(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Registry name, .safetensors file of `tvmflow quantize`, or quantised .tflite file."
        ),
    ] = "dilated-net",
    scheme: Annotated[
        Literal["per-channel", "power-of-two"] | None,
        typer.Option("--scheme", help="Which int8 form of a network of the registry; per-channel by default."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("-o", "--output", parser=output_path, metavar="<path>", help="The .onnx file.")],
    json: Json = None,
) -> None:
    """Write a quantised network as ONNX with QuantizeLinear and DequantizeLinear, for other runtimes."""
    from tvmflow.integer import onnx_writer, qdq
    from tvmflow.integer.frontend import find_network

    _check_file(out, "--output")
    network = find_network(model, scheme)
    qdq.write(network, out)
    facts = {"onnx": str(out), "model": network.name, "scheme": network.scheme, "opset": onnx_writer.OPSET}
    show(_written(network, out), {**facts, "layers": len(network.layers), "file_bytes": out.stat().st_size}, json)


def _check_file(path: Path, option: str) -> None:
    """Raises UserError, before anything takes time, unless a file can be written there."""
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"There is no folder {path.parent}"
        raise UserError(f"{what}; give another file as {option}.")


def _written(network: IntegerNetwork, path: Path) -> str:
    from tvmflow.integer.onnx_writer import OPSET

    return (
        f"{path}: {network.name}, {network.scheme}, {len(network.layers)} layers with QuantizeLinear and "
        f"DequantizeLinear of opset {OPSET}, float32 in and out"
    )


def _imported(model: str, shapes: list[str]) -> Program:
    from tvmflow.network.frontend import import_model, parse_input_shape

    given = [parse_input_shape(text) for text in shapes]
    if not given and ":" in model:
        given = [parse_input_shape("1x3x32x32")]
    log.info(f"Importing {model}")
    return import_model(model, given)


def _text(path: Path, facts: Any) -> str:
    kept = facts.get("keep_float", ())
    lines = [f"{name:40}{ratio:6.1f} dB{' float32' * (name in kept)}" for name, ratio in facts["sqnr_db"].items()]
    lines.append(f"{'output, against the original network':40}{facts['output_sqnr_db']:6.1f} dB")
    lines.append(
        f"{path}: the float network's answer on {facts['agreement']:.2%} of {facts['images']} "
        f"{facts.get('inputs', 'training images')} that calibrated nothing"
    )
    if "accuracy" in facts:
        lines.append(
            f"Accuracy {facts['accuracy']:.2%}, float32 {facts['float_accuracy']:.2%}, "
            f"on {facts['test_images']:,} test images ({facts['data']})"
        )
    return "\n".join(lines)
