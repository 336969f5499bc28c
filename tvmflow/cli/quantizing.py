"""`tvmflow quantize` and `tvmflow export`: a trained network in int8, and one in int8 as a file for other runtimes."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tvmflow.cli import calls
from tvmflow.cli.options import (
    InputRange,
    InputShapes,
    Json,
    Labels,
    Mean,
    ModelName,
    Scheme,
    Std,
    check_folder,
    output_path,
)
from tvmflow.cli.outcome import show
from tvmflow.cli.results import QuantisedNetwork
from tvmflow.spec import UserError

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
    input_range: InputRange = None,
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
    import shlex

    check_folder(out)
    if onnx is not None:
        _check_file(onnx, "--onnx")
    checkpoints = work_dir or out / "qat"
    try:
        found = calls.quantize(
            model,
            data,
            input_shape,
            scheme=scheme,
            mean=mean,
            std=std,
            input_range=input_range,
            labels=labels,
            count=count,
            seed=seed,
            keep_float=keep_float or (),
            qat=qat,
            epochs=epochs,
            batch=batch,
            rate=rate,
            work_dir=checkpoints,
            test=test,
        )
    except KeyboardInterrupt:
        if qat:
            log.info(f"\nThe same command goes on from the last checkpoint in {checkpoints}.")
        raise
    if found.output_snr_db < NOISY_DB:
        log.info(
            "A good part of what it gives is noise: see by the layers below where that begins. Inputs for calibration "
            "like those that it will meet help, fewer outliers among them, or --scheme per-channel."
        )
    path = found.save(out, shlex.join(["tvmflow", *sys.argv[1:]]))
    text, written = _text(path, found), {"weights": str(path)}
    if onnx is not None:
        found.save_onnx(onnx)
        text, written = f"{text}\n{_written(found.network, onnx)}", {**written, "onnx": str(onnx)}
    show(text, {**written, **found.document}, json)


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


def _text(path: Path, found: QuantisedNetwork) -> str:
    facts = found.document
    lines = [*found.lines(), f"{path}: {found.summary()}"]
    if "accuracy" in facts:
        lines.append(
            f"Accuracy {facts['accuracy']:.2%}, float32 {facts['float_accuracy']:.2%}, "
            f"on {facts['test_images']:,} test images ({facts['data']})"
        )
    return "\n".join(lines)
