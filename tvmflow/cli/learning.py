"""Training on CIFAR-10 or Tiny ImageNet, and evaluating on these or on data of a user's own."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tvmflow.cli.options import InputRange, InputShapes, Json, Labels, Mean, Scheme, Std, check_folder, output_path
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
    rate: Annotated[
        float | None, typer.Option("--rate", help="Peak of the learning rate; by default that of the network's recipe.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    delta: Annotated[int, typer.Option("--delta", min=0, help="The paper's dilated rate δ.")] = 2,
    joint: Annotated[
        Literal["separate", "merged"], typer.Option("--joint", help="Reading of the joint module.")
    ] = "separate",
    json: Json = None,
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
        seed=seed,
        **trainer.RECIPES[model] | ({} if rate is None else {"peak_rate": rate}),
    )
    try:
        finished = trainer.train(config, images, work_dir)
    except KeyboardInterrupt:
        log.info(f"\nThe same command goes on from the last checkpoint in {work_dir}.")
        raise
    name = model + "-merged" * (model == "dilated-net" and joint == "merged")
    trainer.export(finished, images, out or work_dir, name, shlex.join(["tvmflow", *sys.argv[1:]]))
    weights, accuracy = f"{(out or work_dir) / name}.safetensors", finished.curve[-1].test_accuracy
    content = {"weights": weights, "model": name, "accuracy": accuracy, "data": images.note}
    show(f"{weights}: accuracy {accuracy:.2%} ({images.note})", content, json)


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="CIFAR-10 or Tiny ImageNet, a folder with one of images for each class, a .npy or .npz file, or "
            "module:function or file.py:function that yields batches.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="A network in any form that `build` takes, or a .safetensors file of `tvmflow train` or `quantize`.",
        ),
    ] = "dilated-net",
    input_shape: InputShapes = None,
    dtype: Annotated[
        Literal["float32", "int8"] | None,
        typer.Option("--dtype", help="The float network, or its exact int8 form; by default what --model is."),
    ] = None,
    scheme: Scheme = "per-channel",
    float_model: Annotated[
        str | None, typer.Option("--float", help="The float network to compare a quantised one with.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Also evaluate this bundle and compare.")] = None,
    mean: Mean = None,
    std: Std = None,
    input_range: InputRange = None,
    labels: Labels = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Take the first so many inputs.")] = None,
    json: Json = None,
) -> None:
    """How many inputs a network classes right, or how near its outputs are to the float network's; a bundle's beside.

    Of CIFAR-10 the 10,000 test images are taken, of Tiny ImageNet those for validation. Without labels, and for
    networks that choose no class, cosine similarity and signal to noise are given. A float bundle has to agree with
    --model on nearly every input; an int8 one has to match the quantised network bit for bit, and is compared with a
    float one.
    """
    from tvmflow.bundles import evaluate as evaluation
    from tvmflow.models import MODELS
    from tvmflow.models.examples import parse_labels, parse_preprocessing
    from tvmflow.network.shapes import parse_input_shape

    seen = parse_preprocessing(mean, std, input_range)
    named = parse_labels(labels) if labels is not None else ()
    log.info(f"Evaluating {model} on {data}")
    dtype = dtype or ("int8" if evaluation.is_quantised(model) else "float32")
    plain = not (seen or named or count or float_model or input_shape)
    if plain and evaluation.is_data_set(data) and (model in MODELS or model.endswith(".safetensors")):
        if dtype == "int8":
            result = evaluation.evaluate_quantised(Path(data), model, scheme, bundle)
        else:
            result = evaluation.evaluate(Path(data), model, bundle)
    else:
        result = evaluation.evaluate_on(
            data,
            model,
            shapes=[parse_input_shape(text) for text in input_shape or []],
            dtype=dtype,
            scheme=scheme,
            bundle_path=bundle,
            float_model=float_model,
            preprocessing=seen,
            labels=named,
            count=count,
        )
    show(
        _text(result, f"in exact int8 arithmetic, {result.get('scheme', scheme)}" if dtype == "int8" else "in PyTorch"),
        result,
        json,
    )


def _text(result: dict[str, Any], where: str) -> str:
    lines = []
    if "accuracy" in result:
        lines.append(f"{_share(result)} of {result['images']:,} images {where} ({result['data']})")
    else:
        lines.append(f"{result['images']:,} inputs without classes ({result['data']})")
    if original := result.get("float"):
        right = f"{_share(original)} in float, by {original['model']}; " if "accuracy" in original else ""
        lines.append(f"{right}against it {_near(original)}")
    if compiled := result.get("compiled"):
        right = f"{_share(compiled)} " if "accuracy" in compiled else ""
        if "identical" in compiled:
            like = "bit for bit the same on all"
        elif "cosine" in compiled:
            like = _near(compiled)
        else:
            like = f"agreeing on {compiled['agreement']:.2%}"
        lines.append(f"{right}compiled for {compiled['target']}, {like}")
    return "\n".join(lines)


def _share(facts: dict[str, Any]) -> str:
    return f"{facts['accuracy']:.2%}" + (f" (top five {facts['top5']:.2%})" if "top5" in facts else "")


def _near(facts: dict[str, Any]) -> str:
    """How near one is to another, in words."""
    noise = "no noise" if facts["snr_db"] >= 300 else f"signal to noise {facts['snr_db']:.1f} dB"
    same = f", agreeing on {facts['agreement']:.2%}" if "agreement" in facts else ""
    return f"cosine similarity {facts['cosine']:.6f}, {noise}{same}"
