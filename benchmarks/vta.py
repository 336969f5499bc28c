"""The paper's network on VTA: equal to the integer reference on many images, and its cycles beside each layer's bounds.

`python -m benchmarks.vta --data cifar10.tar.xz` compiles the quantised network for a board three times: untiled (one
block of outputs after the other, nothing overlapping), with the default tilings, and with those that `tvmflow tune
--target vta` found (`--db` says where; otherwise what a build would use). All three are checked; the last runs
`--images` test images on the functional simulator, whose logits have to be the reference's, bit for bit. Without
`--data` the images are noise. Of a network that has no such weights here `--model` is the file that `tvmflow quantize
--scheme power-of-two` makes. Cycles are those of the timed simulator. Results go to benchmarks/results/vta.json, .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "vta.json"
COMMAND = "python -m benchmarks.vta"
"""Of results that don't say by what they were made."""
LARGE = 1_000_000
"""Multiply-adds from which a pointwise layer has to be near the GEMM core's peak or the memory's bandwidth."""
NEAR_PEAK, NEAR_BANDWIDTH, NEAR_TAPS = 0.8, 1.1, 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dilated-net", help="a network with weights for power-of-two, or a file")
    parser.add_argument("--board", default="pynq-z1")
    parser.add_argument("--db", type=Path, help="records of `tvmflow tune --target vta`")
    parser.add_argument("--data", type=Path, help="CIFAR-10; without it, images are noise")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--output", type=Path, help="by default in benchmarks/results, by the network's name")
    options = parser.parse_args()

    from tvmflow import models
    from tvmflow.report import environment, write_json, write_text
    from tvmflow.targets import TARGETS

    board = TARGETS[options.board]
    network = models.quantized(options.model, "power-of-two")
    if work := on_the_processor(network, board):
        raise SystemExit(
            f"{network.name} isn't the accelerator's alone: {', '.join(work)} run on the board's processor."
        )
    document = {
        "board": board.name,
        "model": network.name,
        "command": command(options.model),
        "environment": environment({}),
        "vta": asdict(board.facts),
        **measure(network, board, options.db),
    }
    images, source = read_images(network, options.data, options.images)
    document["equality"] = {
        "images": len(images),
        "source": source,
        "equal": count_equal(network, board, options.db, images),
    }
    own = RESULTS if network.name == "dilated-net" else RESULTS.with_name(f"vta-{network.name}.json")
    output = options.output or own
    write_json(output, document)
    write_text(output.with_suffix(".md"), markdown(document))
    print(markdown(document))
    if document["equality"]["equal"] != len(images):
        raise SystemExit(f"{len(images) - document['equality']['equal']} images differ from the reference.")


def command(model: str) -> str:
    """What makes the page; a file is only called one."""
    given = {"dilated-net": ""}.get(model, f" --model {'FILE' if model.endswith('.safetensors') else model}")
    return f"{COMMAND}{given}"


def on_the_processor(network: Any, board: Any) -> list[str]:
    """The layers that the accelerator leaves to it."""
    from tvmflow.targets.vta.compile import prepare
    from tvmflow.targets.vta.cpu import CpuWork
    from tvmflow.targets.vta.stages import configuration

    return [work.layer.name for work in prepare(network, configuration(board)) if isinstance(work, CpuWork)]


def read_images(network: Any, data: Path | None, count: int) -> tuple[np.ndarray, str]:
    """int8 images, and where they are from."""
    if data is None:
        rng = np.random.default_rng(0)
        return rng.integers(-128, 128, (count, *network.input_shape[1:])).astype(np.int8), "noise"
    from tvmflow.models.data import load_cifar10

    images = load_cifar10(data).test.images[:count]
    return network.quantize_input(network.preprocessing.apply(images)), "the first test images of CIFAR-10"


def compiled(network: Any, board: Any, db: Path | None) -> dict[str, Any]:
    """The network by each schedule's name, checked."""
    from tvmflow.integer.frontend import graphless_program
    from tvmflow.pipeline import run_stages
    from tvmflow.targets.vta.check import check
    from tvmflow.targets.vta.compile import compile_works, ports_of, prepare, untiled
    from tvmflow.targets.vta.stages import compiled_of, configuration
    from tvmflow.tune.apply import find_records

    config, program = configuration(board), graphless_program(network)
    works = prepare(network, config)
    tilings = {work.layer.name: untiled(work, config) for work in works}
    plain = compile_works(works, config, tilings, ports_of(network, config))
    check(plain.executable)
    return {
        "untiled": plain,
        "default": compiled_of(run_stages(program, board)),
        "tuned": compiled_of(run_stages(replace(program, records=find_records(board, db)), board)),
    }


def kind_of(work: Any) -> str:
    """What the page calls a layer: a kind of convolution, or its operator."""
    from tvmflow.targets.vta.layout import is_diagonal
    from tvmflow.targets.vta.nodes import NodeWork

    if isinstance(work, NodeWork):
        return work.layer.kind
    if work.pool:
        return "pool"
    if is_diagonal(work.network_layer):
        return "depthwise"
    return "pointwise" if work.network_layer.weight[0, 0].size == 1 else "dense"


def measure(network: Any, board: Any, db: Path | None) -> dict[str, Any]:
    """Cycles of the three, and of each layer of the tuned one with its bounds."""
    from tvmflow.targets.vta import timing
    from tvmflow.targets.vta.backend import band, hardware
    from tvmflow.targets.vta.bounds import Bounds
    from tvmflow.targets.vta.records import candidate_of

    programs, machine = compiled(network, board, db), hardware(board)
    timings = {name: timing.simulate(program.executable, machine) for name, program in programs.items()}
    tuned = programs["tuned"]
    rows = []
    for layer, work in zip(timings["tuned"].layers, tuned.works, strict=True):
        bounds = Bounds.of(work, board.facts.bus_bytes)
        kind, written = kind_of(work), getattr(work, "network_layer", work.layer)
        weight = getattr(written, "weight", np.zeros(0))
        _, channels, height, width = written.output_shape
        rows.append(
            {
                "name": layer.name,
                "kind": kind,
                "weight": list(weight.shape) if weight.size else [],
                "map": [height, width],
                "macs": 0 if kind == "pool" else written.macs,
                "cycles": layer.cycles,
                **bounds.details(),
                "read_bytes": layer.read_bytes,
                "written_bytes": layer.written_bytes,
                "all_taps_cycles": -(-channels // work.block) * height * width * weight[0, 0].size
                if kind == "depthwise"
                else None,
                "tiling": candidate_of(tuned.schedule[layer.name]),
            }
        )
    hls = replace(machine, core="hls")
    return {
        "cycles": {name: found.cycles for name, found in timings.items()},
        "ms": {name: found.latency_ms for name, found in timings.items()},
        "band_ms": [timing.simulate(tuned.executable, end).latency_ms for end in band(board)],
        "band_burst_beats": [end.burst_beats for end in band(board)],
        "hls_ms": {name: timing.simulate(found.executable, hls).latency_ms for name, found in programs.items()},
        "instructions": len(tuned.executable.instructions),
        "layers": rows,
    }


def count_equal(network: Any, board: Any, db: Path | None, images: np.ndarray) -> int:
    """How many images give the reference's logits on the functional simulator."""
    from tqdm import tqdm

    from tvmflow.targets.vta.simulate import Machine

    machine = Machine(compiled(network, board, db)["tuned"].executable)
    expected = network.run(images)
    equal = 0
    for image, logits in zip(tqdm(images, disable=None), expected, strict=True):
        (found,) = machine.run({network.inputs[0].name: image[None]}).values()
        equal += bool(np.array_equal(found.ravel(), logits.ravel()))
    return equal


def bars(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The layers that reach each bar, and those that don't, with their figure."""
    found: dict[str, list[str]] = {"pointwise": [], "pointwise missed": [], "depthwise": [], "depthwise missed": []}
    for row in layers:
        if row["kind"] == "pointwise" and row["macs"] >= LARGE:
            peak, bandwidth = row["gemm_cycles"] / row["cycles"], row["cycles"] / row["read_cycles"]
            reached = peak >= NEAR_PEAK or bandwidth <= NEAR_BANDWIDTH
            figure = f"{row['name']} ({peak:.0%} of peak, {bandwidth:.2f} × memory)"
            found["pointwise" if reached else "pointwise missed"].append(figure)
        if row["kind"] == "depthwise":
            times = row["cycles"] / max(row["gemm_cycles"], row["read_cycles"])
            found["depthwise" if times <= NEAR_TAPS else "depthwise missed"].append(f"{row['name']} ({times:.2f} ×)")
    return found


def _ratio(value: int, whole: int, form: str) -> str:
    """Nothing of a layer that takes nothing, since what it makes lies in its place already."""
    return format(value / whole, form) if whole else ""


def _split(document: Mapping[str, Any]) -> str:
    """What the slow end of the band has besides."""
    core, port = document.get("band_burst_beats", (0, 0))
    return f" and, in the worse case, splits bursts of {core} words into {port}" if port < core else ""


def _of_taps(row: Mapping[str, Any]) -> str:
    return f"{row['cycles'] / row['all_taps_cycles']:.2f}" if row["kind"] == "depthwise" else ""


def markdown(document: Mapping[str, Any]) -> str:
    """The results as a page."""
    ms, cycles, layers = document["ms"], document["cycles"], document["layers"]
    least = sum(row["bound_cycles"] for row in layers)
    peak = sum(max(row["gemm_cycles"], row["read_cycles"]) for row in layers)
    reached = bars(layers)
    vta, equality = document["vta"], document["equality"]
    low, high = document["band_ms"]

    def listed(name: str) -> str:
        return ", ".join(reached[name]) or "none"

    lines = [
        f"# {document['model']} on VTA ({document['board']})",
        "",
        f"*Simulated* at {vta['clock_mhz']} MHz, {vta['bus_bytes']} bytes a cycle and {vta['latency_cycles']} "
        f"cycles of memory latency, {document['environment']['date'][:10]}; no board was at hand. "
        f"`{document.get('command', COMMAND)}` makes "
        "this page.",
        "",
        f"**{ms['tuned']:.2f} ms** an image ({cycles['tuned']:,} cycles, {document['instructions']:,} instructions); "
        f"{low:.2f} to {high:.2f} ms where memory takes {vta['latency_band'][0]} to {vta['latency_band'][1]} cycles"
        f"{_split(document)}. "
        "These are cycles of upstream's Chisel core, whose RTL the model was held against. Its HLS core, which the "
        f"published bitstreams are, takes {document['hls_ms']['tuned']:.2f} ms (untiled "
        f"{document['hls_ms']['untiled']:.2f}) by a model after its source alone. The whole network runs on the "
        "accelerator; the CPU puts the input into tiles and reads ten logits.",
        "",
        "| program | cycles | ms | untiled ÷ |",
        "|---|---|---|---|",
        *(
            f"| {name} | {count:,} | {ms[name]:.2f} | {cycles['untiled'] / count:.2f} |"
            for name, count in cycles.items()
        ),
        "",
        f"Logits equal to the integer reference's on {equality['equal']} of {equality['images']} images "
        f"({equality['source']}).",
        "",
        f"The sum of the layers' bounds is {least:,} cycles, which the program takes "
        f"{cycles['tuned'] / least:.3f} times. "
        "With the GEMM core and the read port alone, without the ALU's passes, it is "
        f"{peak:,}: {cycles['tuned'] / peak:.3f} times.",
        "",
        f"- Pointwise layers of a million multiply-adds or more at {NEAR_PEAK:.0%} of the GEMM core's peak, or "
        f"within 10 % "
        f"of the memory's bandwidth: {listed('pointwise')}. Not: {listed('pointwise missed')}.",
        f"- Depthwise layers within {NEAR_TAPS} times their live taps, one a cycle and tile, or their memory: "
        f"{listed('depthwise')}. Not: {listed('depthwise missed')}.",
        "",
        "Why not: the GEMM core and the ALU share one queue, and each tile of 16 outputs passes it not only for "
        "each product "
        "but once to begin it, unless it is added to an input that ACC holds, once for its bias, once for its shift "
        "and twice to saturate it. A layer of few "
        "products for "
        "each output is bound by these passes, whatever its tiling. `bound` says which limit holds: products (gemm) or "
        "passes (alu) on the compute queue, memory, or store.",
        "",
        "| layer | weights | map | M multiply-adds | bound | its cycles | cycles | × bound | × all taps | of peak "
        "| KiB read | tiling |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in layers:
        lines.append(
            f"| {row['name']} | {'×'.join(map(str, row['weight']))} | {'×'.join(map(str, row['map']))} "
            f"| {row['macs'] / 1e6:.2f} | {row['bound']} | {row['bound_cycles']:,} | {row['cycles']:,} "
            f"| {_ratio(row['cycles'], row['bound_cycles'], '.2f')} | {_of_taps(row)} "
            f"| {_ratio(row['gemm_cycles'], row['cycles'], '.0%')} "
            f"| {row['read_bytes'] / 1024:.0f} | {row['tiling']} |"
        )
    lines += [
        "",
        "A layer's cycles are from the end of all before it to its own end; where its loads ran ahead during the layer "
        "before, they are fewer than its bound. The share of the GEMM core's peak counts a step for each live tap; in "
        "depthwise layers such a step does one useful product of the sixteen for each output. `× all taps` is of a "
        "step for each tap, live or not, and output tile of 16 channels of one pixel; where a map of few channels is "
        "packed, a step is of several pixels.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
