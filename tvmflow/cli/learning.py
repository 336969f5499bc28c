"""Commands that need CIFAR-10 or Tiny ImageNet: training and evaluating."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tvmflow.cli.options import Json, Scheme, check_folder, output_path
from tvmflow.cli.outcome import show

log = logging.getLogger("tvmflow.cli")


DataSet = Annotated[
    Path,
    typer.Option(
        "--data", help="CIFAR-10: an archive or folder of images, or its batches; or Tiny ImageNet's standard folder."
    ),
]


def train(
    data: DataSet,
    model: Annotated[
        Literal["dilated-net", "resnet-8"], typer.Option("--model", help="What to train.")
    ] = "dilated-net",
    work_dir: Annotated[
        Path | None,
        typer.Option("--work-dir", help="Checkpoints; started again, the run goes on. [default: runs/MODEL]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=output_path,
            metavar="<path>",
            help="Folder for weights and model card; the work dir by default.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 16,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 128,
    rate: Annotated[float, typer.Option("--rate", help="Peak of the learning rate.")] = 4e-3,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    delta: Annotated[int, typer.Option("--delta", min=0, help="The paper's dilated rate δ.")] = 2,
    joint: Annotated[
        Literal["separate", "merged"], typer.Option("--joint", help="Reading of the joint module.")
    ] = "separate",
) -> None:
    """Train the paper's network, or ResNet-8, on CIFAR-10 or Tiny ImageNet. Stopped, a run goes on where it was."""
    import shlex

    from tvmflow.models import train as trainer
    from tvmflow.models.dilated_net import DilatedNetConfig
    from tvmflow.models.tiny_imagenet import load_data_set

    work_dir = work_dir or Path("runs") / model
    check_folder(out or work_dir)
    check_folder(work_dir)
    log.info(f"Reading {data}")
    images = load_data_set(data)
    network = DilatedNetConfig(delta=delta, joint=joint, classes=len(images.labels))
    config = trainer.TrainConfig(
        model=model,
        network=network,
        epochs=epochs,
        batch=batch,
        peak_rate=rate,
        seed=seed,
        **trainer.RECIPES[model],
    )
    try:
        finished = trainer.train(config, images, work_dir)
    except KeyboardInterrupt:
        log.info(f"\nThe same command goes on from the last checkpoint in {work_dir}.")
        raise
    name = model + "-merged" * (model == "dilated-net" and joint == "merged")
    trainer.export(finished, images, out or work_dir, name, shlex.join(["tvmflow", *sys.argv[1:]]))
    print(f"{(out or work_dir) / name}.safetensors: accuracy {finished.curve[-1].test_accuracy:.2%} ({images.note})")


def evaluate(
    data: DataSet,
    model: Annotated[
        str,
        typer.Option(
            "--model", help="A network of the registry, or a .safetensors file of `tvmflow train` or, int8, `quantize`."
        ),
    ] = "dilated-net",
    dtype: Annotated[
        Literal["float32", "int8"], typer.Option("--dtype", help="The network in PyTorch, or its exact int8 form.")
    ] = "float32",
    scheme: Scheme = "per-channel",
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Also evaluate this bundle and compare.")] = None,
    json: Json = None,
) -> None:
    """Accuracy on the 10,000 test images of CIFAR-10, and with --bundle that of the compiled network.

    Of Tiny ImageNet, the images for validation are taken. A float32 bundle has to agree with PyTorch on nearly every
    image; an int8 one has to match the integer reference bit for bit.
    """
    from tvmflow.bundles import evaluate as evaluation

    log.info(f"Evaluating {model} on {data}")
    if dtype == "int8":
        result = evaluation.evaluate_quantised(data, model, scheme, bundle)
        where, agreement = f"in exact int8 arithmetic, {scheme}", "bit for bit the same on all"
    else:
        result = evaluation.evaluate(data, model, bundle)
        where, agreement = "in PyTorch", f"agreeing on {result.get('compiled', {}).get('agreement', 0):.2%}"
    lines = [f"{result['accuracy']:.2%} of {result['images']:,} images {where} ({result['data']})"]
    if compiled := result.get("compiled"):
        lines.append(f"{compiled['accuracy']:.2%} compiled for {compiled['target']}, {agreement}")
    show("\n".join(lines), result, json)
