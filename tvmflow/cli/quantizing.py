"""`tvmflow quantize`: a trained network in int8."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmflow.cli.options import InputShapes, Json, Scheme
from tvmflow.cli.outcome import show

log = logging.getLogger("tvmflow.cli")


def quantize(
    data: Annotated[Path, typer.Option("--data", help="CIFAR-10: an archive or folder of images, or its batches.")],
    model: Annotated[str, typer.Option("--model", help="Registry name, or package.module:factory.")] = "dilated-net",
    input_shapes: InputShapes = None,
    scheme: Scheme = "per-channel",
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for weights, facts and model card.")] = Path(
        "runs/int8"
    ),
    count: Annotated[int, typer.Option("--count", min=1, help="Training images for calibration.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which images, and in what order.")] = 0,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune as well; stopped, it goes on where it was.")] = False,
    epochs: Annotated[float, typer.Option("--epochs", min=1e-3, help="Length of --qat.")] = 0.1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images in a step of --qat.")] = 64,
    rate: Annotated[float, typer.Option("--rate", help="Peak of --qat's rate, in steps of the weights.")] = 3e-3,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="Checkpoints of --qat; OUTPUT/qat by default.")
    ] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Measure accuracy on the test images.")] = True,
    json: Json = None,
) -> None:
    """Quantise a network to int8, and say layer by layer what that cost."""
    import shlex

    from tvmflow.models import int8
    from tvmflow.models.data import load_cifar10
    from tvmflow.qat import TuneConfig
    from tvmflow.quantize import Method

    entry = int8.trained(model, input_shapes or [])
    tuning = TuneConfig(epochs=epochs, batch=batch, peak_rate=rate, seed=seed) if qat else None
    log.info(f"Reading {data}")
    cifar = load_cifar10(data)
    log.info(f"Quantising {entry.name} {scheme} on {count} training images")
    try:
        network = int8.make(entry, cifar, scheme, Method(count=count, seed=seed), tuning, work_dir or out / "qat")
    except KeyboardInterrupt:
        if qat:
            log.info(f"\nThe same command goes on from the last checkpoint in {work_dir or out / 'qat'}.")
        raise
    if test:
        log.info(f"Judging it on {len(cifar.test.labels):,} test images")
        network = int8.judge(network, entry, cifar)
    path = int8.export(network, out, shlex.join(["tvmflow", *sys.argv[1:]]))
    show(_text(path, network.facts), {"weights": str(path), **network.facts}, json)


def _text(path: Path, facts: Any) -> str:
    lines = [f"{name:40}{ratio:6.1f} dB" for name, ratio in facts["sqnr_db"].items()]
    lines.append(
        f"{path}: the float network's answer on {facts['agreement']:.2%} of {facts['images']} training images that "
        "calibrated nothing"
    )
    if "accuracy" in facts:
        lines.append(
            f"Accuracy {facts['accuracy']:.2%}, float32 {facts['float_accuracy']:.2%}, "
            f"on {facts['test_images']:,} test images ({facts['data']})"
        )
    return "\n".join(lines)
