"""`tvmflow quantize`: a trained network in int8."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmflow.cli.options import InputShapes, Json, ModelName, Scheme, check_folder, output_path
from tvmflow.cli.outcome import show
from tvmflow.models import CIFAR10_PREPROCESSING
from tvmflow.spec import Preprocessing, Program, UserError

log = logging.getLogger("tvmflow.cli")

NOISY_DB = 10.0
"""Below that the noise has more than a tenth of the output's power."""


def quantize(
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="CIFAR-10 (archive, folder or batches), a folder of images, or a .npy or .npz file."
        ),
    ],
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    mean: Annotated[
        str | None, typer.Option("--mean", help="How the network sees images: 0.49,0.48,0.45, of pixels from 0 to 1.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="By what they are divided then: 0.25,0.24,0.26.")] = None,
    scheme: Scheme = "per-channel",
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--output", parser=output_path, metavar="<path>", help="Folder for weights, facts and model card."
        ),
    ] = Path("runs/int8"),
    count: Annotated[int, typer.Option("--count", min=1, help="Images for calibration.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which images, and in what order.")] = 0,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune as well; stopped, it goes on where it was.")] = False,
    epochs: Annotated[float, typer.Option("--epochs", min=1e-3, help="Length of --qat.")] = 0.1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images in a step of --qat.")] = 64,
    rate: Annotated[float, typer.Option("--rate", help="Peak of --qat's rate, in steps of the weights.")] = 3e-3,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="Checkpoints of --qat; OUTPUT/qat by default.")
    ] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Measure accuracy on CIFAR-10's test images.")] = True,
    json: Json = None,
) -> None:
    """Quantise a network to int8, and say layer by layer what that cost."""
    import shlex

    from tvmflow.integer.fine_tune import TuneConfig
    from tvmflow.integer.post_training import Method
    from tvmflow.models import int8
    from tvmflow.models.data import is_cifar10, load_cifar10, load_inputs

    check_folder(out)
    seen = _preprocessing(mean, std)
    method = Method(count=count, seed=seed)
    tuning = TuneConfig(epochs=epochs, batch=batch, peak_rate=rate, seed=seed) if qat else None
    program = _imported(model, input_shape or [])
    shape, seen, cifar = program.inputs[0].shape, seen or program.preprocessing, None
    log.info(f"Reading {data}")
    if is_cifar10(data):
        if shape[1:] != (3, 32, 32):
            wanted = "×".join(map(str, shape[1:]))
            raise UserError(
                f"{program.name} takes {wanted}, no image of CIFAR-10: give a folder of images or a .npz file."
            )
        cifar, seen = load_cifar10(data), seen or CIFAR10_PREPROCESSING
        examples = int8.of_cifar10(cifar, seen, method)
    else:
        examples = int8.of_inputs(load_inputs(data, shape, seen), method)
    log.info(f"Quantising {program.name} {scheme} on {count} {examples.facts.get('inputs', 'training images')}")
    try:
        network = int8.make(program, examples, scheme, method, seen, tuning, work_dir or out / "qat")
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
    show(_text(path, network.facts), {"weights": str(path), **network.facts}, json)


def _imported(model: str, shapes: list[str]) -> Program:
    from tvmflow.network.frontend import import_model, parse_input_shape

    given = [parse_input_shape(text) for text in shapes]
    if not given and ":" in model:
        given = [parse_input_shape("1x3x32x32")]
    log.info(f"Importing {model}")
    return import_model(model, given)


def _preprocessing(mean: str | None, std: str | None) -> Preprocessing | None:
    if mean is None and std is None:
        return None
    try:
        found = [tuple(float(part) for part in text.split(",")) for text in (mean or "", std or "")]
    except ValueError as error:
        raise UserError("--mean and --std go together and take a number for each channel: 0.49,0.48,0.45.") from error
    if len(found[0]) != len(found[1]) or not all(part > 0 for part in found[1]):
        raise UserError("--mean and --std take as many numbers, and a deviation is positive.")
    return Preprocessing(mean=found[0], std=found[1])


def _text(path: Path, facts: Any) -> str:
    lines = [f"{name:40}{ratio:6.1f} dB" for name, ratio in facts["sqnr_db"].items()]
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
