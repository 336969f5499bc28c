"""docs/experiments.md: every figure on it is read from a committed result or computed here."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import EPOCHS, EXPERIMENTS, SEEDS, VARIANTS
from tvmflow.models import baselines
from tvmflow.models.dilated_net import WEIGHTS, DilatedNet, DilatedNetConfig
from tvmflow.models.train import write_text

PAPER_TABLE_2 = {"delta0": 82.04, "delta1": 83.32, "delta2": 84.25, "delta3": 83.56}
IMAGE_SIDE = 32
LATENCIES = Path(__file__).parents[1] / "benchmarks" / "results" / "variants.json"
"""Of the variants, by `python -m benchmarks.variants`."""
TITLES = {
    "delta0": "δ = 0",
    "delta1": "δ = 1",
    "delta2": "δ = 2",
    "delta3": "δ = 3",
    "clipped": "δ = 2, clipped",
    "merged": "δ = 2, merged",
}
COLOURS = dict(zip(TITLES, ("#888888", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"), strict=True))

Results = dict[str, dict[str, list[dict[str, Any]]]]
"""group → variant → what its runs left, by seed."""


def write(results_folder: Path, page: Path) -> None:
    """Write the page and, beside the results, the curves."""
    results = read(results_folder)
    for group, variants in results.items():
        means = {name: _mean_curve(runs) for name, runs in variants.items()}
        write_text(results_folder / f"{group}.svg", curves(means))
    write_text(page, text(results, results_folder.name))


def read(folder: Path) -> Results:
    """The committed results, in the order of the list of runs."""
    results: Results = {}
    for experiment in EXPERIMENTS.values():
        path = folder / f"{experiment.name}.json"
        if path.exists():
            variants = results.setdefault(experiment.group, {})
            variants.setdefault(experiment.variant, []).append(json.loads(path.read_text()))
    return {group: {name: variants[name] for name in TITLES if name in variants} for group, variants in results.items()}


def text(results: Results, folder: str) -> str:
    """The page. Links to curves go to `folder`."""
    parts = [
        INTRODUCTION,
        *(group_text(group, variants, folder) for group, variants in results.items()),
        default_weights(),
        TAPS,
        taps_table(),
        dead_taps(results),
        latencies(json.loads(LATENCIES.read_text())),
        MERGED,
        receptive_field(),
        merged(results),
        "## Table 1: parameters",
        sizes(),
        SIZES,
        TINY_IMAGENET,
    ]
    return "\n\n".join(_wrapped(block) for part in parts for block in part.split("\n\n")) + "\n"


def _wrapped(block: str) -> str:
    """A paragraph in lines of 120 columns; all else as it is."""
    if block.startswith(("#", "|", "!", "```")):
        return block
    return textwrap.fill(" ".join(block.split()), 120, break_long_words=False, break_on_hyphens=False)


INTRODUCTION = f"""# The paper's experiments

This page is made by `python -m benchmarks.experiments page` from the files in `docs/experiments`: nothing is
typed in. `python -m benchmarks.experiments run --data cifar10.tar.xz` does the runs that have no file yet, and
`list` shows them: δ = 0 to 3, a variant with clipped dilations and the merged reading of the joint module, with seeds
{" and ".join(map(str, SEEDS))}, {EPOCHS} epochs each under one recipe, that of `tvmflow train`.

There are three groups: the paper's network with its widths quartered, halved, and as it is. A narrow network is not the
paper's: its accuracies are not to be compared with the paper's one by one, only their order is. Runs that nobody has
done yet are not shown.

The test images chose nothing: accuracies are those of the averaged weights after the last epoch. Spread is the range
over seeds. On 10,000 images, an accuracy near 80 % has a standard error of 0.4 points from the choice of images alone,
so differences of less than a point say little."""

TAPS = """## What the taps see

A 3×3 filter at δ reads pixels 2δ + 1 apart. On a small map, most of them are outside: padding, that is zeros,
whatever the weight. This is the mean number of taps, of nine, which read a pixel, on each size of map that the
dilated layers have:"""

MERGED = """## The merged reading

There, the dilated filter is the separable convolution's only 3×3. All pixels that it reads are 2δ + 1 apart, and
strides multiply that distance: the filters of the whole network stay on one grid, and no output ever sees two
neighbouring pixels. Where a plain 3×3 follows each dilated one, it does. These are the rows of the image, of 32, which
one element of the last map sees (columns are the same):"""

SIZES = """Parameters are counted from the definitions in `models/baselines.py` as they were published, with 1,000
classes, and in `models/dilated_net.py` with ten. GoogLeNet's include its batch normalisation, which stands in place of
biases. None of the four was trained here, and no accuracy of them is claimed. `make table1` says what
each costs on several boards."""

TINY_IMAGENET = """## Table 3: Tiny ImageNet

`tvmflow train` and `evaluate` take Tiny ImageNet's standard folder as `--data`; no figure is given here, since nothing
was trained on it. The paper's 85.01 % there can't be top-1 accuracy on the task of 200 classes by any usual measure:
networks of this size which learn from these 64×64 images alone stay far below that."""


def group_text(group: str, variants: dict[str, list[dict[str, Any]]], folder: str) -> str:
    """One group's accuracies beside the paper's, and its curves."""
    runs = [run for of_variant in variants.values() for run in of_variant]
    parameters = variants.get("delta2", runs)[0]["parameters"]
    rows = [
        f"| {TITLES[name]} | {_percent(_mean(of_variant))} | {_spread(of_variant)} | "
        f"{', '.join(str(run['config']['seed']) for run in of_variant)} | "
        f"{f'{PAPER_TABLE_2[name]:.2f} %' if name in PAPER_TABLE_2 else ''} |"
        for name, of_variant in variants.items()
    ]
    cpus = sorted({f"{run['cpu']}, threads: {run['threads']}, PyTorch {run['versions']['torch']}" for run in runs})
    in_float32 = [run["name"].removeprefix(f"{group}-") for run in runs if not run["config"]["bfloat16"]]
    formats = (
        f" Trained in bfloat16, but for {', '.join(in_float32)}, in float32; what the format changes was not measured."
        if 0 < len(in_float32) < len(runs)
        else ""
    )
    minutes = sum(run["minutes"] for run in runs)
    return f"""## Table 2, {group} widths: {parameters:,} parameters

| | Accuracy, mean | Spread | Seeds | Paper, its own widths and training |
|---|---|---|---|---|
{chr(10).join(rows)}

{order(variants)}

![Accuracy on the test images after each epoch, mean of the seeds]({folder}/{group}.svg)

{len(runs)} runs of {EPOCHS} epochs, {minutes / 60:.1f} hours on the clock, pauses included, on a computer that did \
other work as well ({"; ".join(cpus)}). Data: {runs[0]["data"]}.{formats}"""


def order(variants: dict[str, list[dict[str, Any]]]) -> str:
    """Whether the paper's order of δ holds, as found."""
    if missing := [TITLES[name] for name in PAPER_TABLE_2 if name not in variants]:
        return f"Whether the paper's order holds is open: {', '.join(missing)} not trained yet."
    found = sorted(PAPER_TABLE_2, key=lambda name: -_mean(variants[name]))
    paper = sorted(PAPER_TABLE_2, key=lambda name: -PAPER_TABLE_2[name])
    said = " > ".join(TITLES[name].removeprefix("δ = ") for name in found)
    gap = 100 * (_mean(variants[found[0]]) - _mean(variants[found[-1]]))
    if found == paper:
        return f"The paper's order of δ holds ({said}); first and last are {gap:.2f} points apart."
    theirs = " > ".join(TITLES[name].removeprefix("δ = ") for name in paper)
    apart = f"first and last are {gap:.2f} points apart."
    taps = " Fewer live taps go with less accuracy (see below)." if found == list(PAPER_TABLE_2) else ""
    return f"The paper's order of δ, {theirs}, is not found: it is {said}; {apart}{taps}"


def against_delta2(results: Results, variant: str) -> str:
    """How far a variant is from δ = 2 in each group that has both, on average."""
    said = [
        f"{100 * (_mean(variants[variant]) - _mean(variants['delta2'])):+.2f} points in {group} widths"
        for group, variants in results.items()
        if {variant, "delta2"} <= variants.keys()
    ]
    return " and ".join(said).replace("-", "−")


def default_weights() -> str:
    """The curve of the weights that come with tvmflow."""
    facts = json.loads((WEIGHTS / "dilated-net.json").read_text())
    config, curve = facts["config"], facts["curve"]
    rows = "\n".join(f"| {row['epoch']} | {row['loss']:.3f} | {_percent(row['test_accuracy'])} |" for row in curve)
    return f"""## The default weights

The network as it is, δ = {config["network"]["delta"]}, {len(curve)} epochs, seed {config["seed"]}: \
**{_percent(facts["accuracy"])}** on {facts["images"]:,} test images, where the paper has \
{PAPER_TABLE_2["delta2"]:.2f} % ([model card](../models/weights/dilated-net.md)).

| Epoch | Training loss | Accuracy |
|---|---|---|
{rows}"""


def live_taps(side: int, stride: int, dilation: int) -> int:
    """How often, along one axis, one of a filter's three taps reads a pixel and not padding, over all outputs."""
    return sum(0 <= start + tap * dilation < side for start in range(0, side, stride) for tap in (-1, 0, 1))


def multiply_adds(config: DilatedNetConfig, *, live: bool) -> int:
    """Of one image; `live` leaves out those with padding."""
    channels, total = (config.in_channels, *config.widths), config.widths[-1] * config.classes
    layers = zip(config.map_sides(IMAGE_SIDE), config.strides, config.dilations(), strict=True)
    for (side, stride, dilation), before, width in zip(layers, channels, config.widths, strict=False):
        filters = [(stride, dilation)] if config.joint == "merged" else [(1, dilation), (stride, 1)]
        for step, apart in filters:
            total += before * (live_taps(side, step, apart) if live else 3 * -(-side // step)) ** 2
        total += before * width * (-(-side // stride)) ** 2
    return total


def taps_table() -> str:
    """Live taps of the dilated layers by δ and map."""
    config = DilatedNetConfig()
    sides = config.map_sides(IMAGE_SIDE)
    kinds = sorted(set(sides), reverse=True)
    rows = []
    for name in ("delta0", "delta1", "delta2", "delta3", "clipped"):
        dilations = dict(zip(sides, VARIANTS[name].dilations(), strict=True))
        taps = (f"{(live_taps(side, 1, dilations[side]) / side) ** 2:.2f}" for side in kinds)
        rows.append(f"| {TITLES[name]} | {' | '.join(taps)} |")
    heads = " | ".join(f"{side}×{side} ({sides.count(side)} layers)" for side in kinds)
    return f"| | {heads} |\n|{'---|' * (len(kinds) + 1)}\n" + "\n".join(rows)


def dead_taps(results: Results) -> str:
    """What the taps outside the map cost and, without them, what is left."""
    whole, live = (multiply_adds(VARIANTS["delta2"], live=live) for live in (False, True))
    clipped = multiply_adds(VARIANTS["clipped"], live=True)
    parameters = sum(parameter.numel() for parameter in DilatedNet().parameters())
    bought = against_delta2(results, "clipped") or "not trained yet"
    return f"""On 4×4 maps, δ = 2 leaves the centre alone: the layer is a factor for each channel. What would taps that
see something buy? The clipped variant has the same {parameters:,} parameters, and no dilation that is more than half of
its map's side. Its accuracy against δ = 2: {bought}. It costs next to nothing: of the {whole / 1e6:.2f} million
multiply-adds of an image, {live / 1e6:.2f} million do not meet padding at δ = 2, and {clipped / 1e6:.2f} million when
it is clipped. Nearly all of them are the pointwise layers'. What that is in time:"""


def latencies(measured: Mapping[str, Any]) -> str:
    """What each variant takes with the paper's widths: medians over rounds in turns, lowest and highest round."""
    rows = measured["rows"]
    heads = " | ".join(f"{row['threads']} thread{'s' * (row['threads'] > 1)}, ms" for row in rows)
    lines = []
    for name, title in TITLES.items():
        times = [row["variants"][name] for row in rows]
        cells = (f"{statistics.median(found):.3f} ({min(found):.3f}–{max(found):.3f})" for found in times)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    around = measured["environment"]
    return f"""| Latency of one inference, float32, measured | {heads} |
|{"---|" * (1 + len(rows))}
{chr(10).join(lines)}

On this computer ({around["cpu"]}, {around["date"]}), by `python -m benchmarks.variants`, with the paper's widths and
random weights: medians of {measured["rounds"]} rounds in turns, and the lowest and highest round. tvmflow leaves out
taps that meet nothing but padding."""


def merged(results: Results) -> str:
    """What seeing only a grid of pixels does to accuracy."""
    lost = against_delta2(results, "merged")
    return f"The merged reading's accuracy against that of the two filters, both at δ = 2: {lost or 'not trained yet'}."


def seen(config: DilatedNetConfig) -> set[int]:
    """Rows of the image which the middle element of the last map depends on."""
    sides = config.map_sides(IMAGE_SIDE)
    rows = {-(-sides[-1] // config.strides[-1]) // 2}
    for side, stride, dilation in reversed(list(zip(sides, config.strides, config.dilations(), strict=True))):
        filters = [(stride, dilation)] if config.joint == "merged" else [(stride, 1), (1, dilation)]
        for step, apart in filters:
            rows = {row * step + tap * apart for row in rows for tap in (-1, 0, 1)}
            rows = {row for row in rows if 0 <= row < side}
    return rows


def receptive_field() -> str:
    """Which pixels one output of either reading sees."""
    lines = []
    for name in ("merged", "delta2"):
        rows = seen(VARIANTS[name])
        picture = "".join("#" if row in rows else "." for row in range(IMAGE_SIDE))
        lines.append(f"{TITLES[name]:14} {picture}  {len(rows) ** 2:5,} of {IMAGE_SIDE**2:,} pixels")
    return "```\n" + "\n".join(lines) + "\n```"


def sizes() -> str:
    """Parameters of the paper's network and of those it is compared with."""
    with torch.device("meta"):
        networks = {
            "the paper's network": DilatedNet(),
            "its merged reading": DilatedNet(DilatedNetConfig(joint="merged")),
            "MobileNetV1": baselines.MobileNetV1(1000, small=False),
            "GoogLeNet": baselines.GoogLeNet(1000, small=False),
            "SqueezeNet 1.1": baselines.SqueezeNet(1000, small=False),
            "VGG16": baselines.VGG16(1000, small=False),
        }
    rows = (f"| {name} | {sum(p.numel() for p in made.parameters()):,} |" for name, made in networks.items())
    return "| | Parameters |\n|---|---|\n" + "\n".join(rows)


def curves(lines: Mapping[str, Sequence[float]]) -> str:
    """An SVG of accuracies by epoch."""
    low = 10 * int(10 * min(min(values) for values in lines.values()))
    high = 100 - 10 * int(10 * (1 - max(max(values) for values in lines.values())))
    width, height, left, top = 640, 360, 48, 12
    epochs = max(len(values) for values in lines.values())

    def x(epoch: int) -> float:
        return left + (epoch - 1) * (width - left - 130) / max(1, epochs - 1)

    def y(percent: float) -> float:
        return top + (high - percent) * (height - top - 40) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for percent in range(low, high + 1, 10):
        parts.append(f'<path d="M{left} {y(percent):.1f}H{x(epochs):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(percent) + 4:.1f}" text-anchor="end">{percent} %</text>')
    for epoch in range(1, epochs + 1):
        parts.append(f'<text x="{x(epoch):.1f}" y="{height - 22}" text-anchor="middle">{epoch}</text>')
    parts.append(f'<text x="{x(epochs) / 2 + left / 2:.1f}" y="{height - 5}" text-anchor="middle">epoch</text>')
    for index, (name, values) in enumerate(lines.items()):
        points = " ".join(f"{x(epoch):.1f},{y(100 * value):.1f}" for epoch, value in enumerate(values, 1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(
            f'<text x="{width - 122}" y="{top + 16 + 18 * index}" fill="{COLOURS[name]}">— {TITLES[name]}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _mean_curve(runs: list[dict[str, Any]]) -> list[float]:
    return [
        statistics.mean(row["test_accuracy"] for row in rows)
        for rows in zip(*(run["curve"] for run in runs), strict=True)
    ]


def _mean(runs: list[dict[str, Any]]) -> float:
    return statistics.mean(run["accuracy"] for run in runs)


def _spread(runs: list[dict[str, Any]]) -> str:
    accuracies = [run["accuracy"] for run in runs]
    return f"{100 * (max(accuracies) - min(accuracies)):.2f} points" if len(runs) > 1 else "one seed"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
