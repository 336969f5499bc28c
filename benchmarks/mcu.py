"""The paper's network on microcontrollers: right answers, flash and RAM, executed instructions per layer, and a peer.

`python -m benchmarks.mcu --data cifar10.tar.xz` builds the network for each emulated board and counts the instructions
of one inference under qemu-system-arm by the function that they are in. A count is no time: it knows nothing of flash
that is slow to read, of caches, or of how many cycles an instruction takes. Of int8, every logit of test images of
CIFAR-10 is compared with the exact integer reference, on the device and here; float32 is compared with PyTorch on the
golden vectors.

The peer is CMSIS-NN, Arm's own kernels: `--cmsis-nn CHECKOUT` (github.com/ARM-software/CMSIS-NN) compiles them with
arm-none-eabi-gcc, on the same layers and weights in int8 (benchmarks/cmsis_nn.py). It is in no package of PyPI or
Debian, and nothing else needs it. TensorFlow Lite Micro's package (tflite-micro) holds an interpreter for this computer
and no sources; on a Cortex-M its int8 kernels are CMSIS-NN's.

What isn't asked for by `--parts` stays as it was in the file of results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "mcu.json"
BOARDS = ("mps2-an386", "mps2-an500", "mps3-an547")
PARTS = ("int8", "float32", "cmsis-nn")
PEER_IMAGES = 4


def main() -> None:
    from tvmflow.report import environment, write_json
    from tvmflow.targets.cortex_m.machine import find_qemu

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure anew")
    parser.add_argument("--data", type=Path, help="CIFAR-10, as `tvmflow train` takes it; int8 and cmsis-nn need it")
    parser.add_argument("--images", type=int, default=256, help="test images that each board runs in int8")
    parser.add_argument("--cmsis-nn", type=Path, help="a checkout of CMSIS-NN")
    parser.add_argument("--boards", nargs="+", default=list(BOARDS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.data is None and set(options.parts) != {"float32"}:
        parser.error("--data is missing")
    if options.cmsis_nn is None and "cmsis-nn" in options.parts:
        parser.error("--cmsis-nn is missing; leave it out of --parts to do without")
    document = json.loads(options.output.read_text()) if options.output.exists() else {}
    document |= {"basis": "emulated", "unit": "instructions per inference"}
    for part in options.parts:
        document[part] = {
            "environment": environment({"tvmflow": version("tvmflow"), "tvm": version("apache-tvm")}),
            "qemu": first_line(find_qemu(), "--version"),
            **MEASURES[part](options),
        }
        write_json(options.output, document)
        options.output.with_suffix(".md").write_text(markdown(document))
    print(markdown(document))


def test_images(options: argparse.Namespace, count: int) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """The integer network, `count` test images as it takes them, and what data they are of."""
    from tvmflow.models import quantized
    from tvmflow.models.data import load_cifar10

    network = quantized("dilated-net")
    assert network.preprocessing is not None
    data = load_cifar10(options.data)
    images = network.quantize_input(network.preprocessing.apply(data.test.images[:count]))
    return network, images, {"images": count, "data": data.note, "data_sha256": data.sha256}


def measure_int8(options: argparse.Namespace) -> dict[str, Any]:
    """Build for each board, run all images there, count one."""
    from tvmflow import targets
    from tvmflow.bundles.build import build
    from tvmflow.integer.frontend import integer_program
    from tvmflow.targets.cortex_m import machine
    from tvmflow.targets.cortex_m.backend import network_name

    network, images, facts = test_images(options, options.images)
    expected = network.run(images)
    program = integer_program(network)
    pair = max(int(np.prod(layer.input_shape) + np.prod(layer.output_shape)) for layer in network.layers)
    boards = []
    for name in options.boards:
        board = targets.find("cortex_m", name)
        with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
            bundle = build(program, board, Path(folder, "bundle"))
            name, given = network_name(bundle.library), [(image[None],) for image in images]
            wanted = [(row[None],) for row in expected]
            ran = machine.run(bundle.library, board, name, given, program.outputs, expected=wanted)
            boards.append(
                {
                    **counts(bundle, given[0]),
                    "exact": sum(
                        np.array_equal(one, other) for (one,), (other,) in zip(ran.outputs, wanted, strict=True)
                    ),
                    "wrong_on_the_device": ran.wrong,
                    "largest_pair_bytes": pair,
                    "stack_used_bytes": ran.stack_bytes,
                }
            )
    return {**facts, "boards": boards}


def measure_float32(options: argparse.Namespace) -> dict[str, Any]:
    """Build for each board, which verifies on the golden vectors, and count one."""
    from tvmflow import targets
    from tvmflow.bundles.build import build
    from tvmflow.network.frontend import import_model
    from tvmflow.targets.cortex_m import machine
    from tvmflow.targets.cortex_m.backend import network_name

    program = import_model("dilated-net")
    boards = []
    for name in options.boards:
        board = replace(targets.find("cortex_m", name), arithmetic="float32")
        with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
            bundle = build(program, board, Path(folder, "bundle"))
            inputs = bundle.vectors()[0].inputs
            ran = machine.run(bundle.library, board, network_name(bundle.library), [inputs], program.outputs)
            boards.append(
                {
                    **counts(bundle, inputs),
                    "max_rel_error": bundle.manifest["verify"]["max_rel_error"],
                    "stack_used_bytes": ran.stack_bytes,
                }
            )
    return {"vectors": len(program.vectors), "boards": boards}


def counts(bundle: Any, inputs: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Memory, and the instructions of one inference: of all, and of each layer."""
    from tvmflow.targets.cortex_m.backend import count

    counted = count(bundle.library, bundle.target, bundle.layers, inputs, bundle.outputs)
    return {
        "board": bundle.target.name,
        "core": bundle.target.cpu.model,
        "memory": bundle.manifest["memory"],
        "instructions": counted.total,
        "macs": sum(layer.macs for layer in bundle.layers),
        "layers": [
            {
                "modules": list(layer.modules),
                "schedule": layer.schedule,
                "macs": layer.macs,
                "instructions": details["instructions"],
            }
            for layer, details in zip(bundle.layers, counted.details, strict=True)
        ],
    }


def measure_cmsis_nn(options: argparse.Namespace) -> dict[str, Any]:
    """The peer on each board."""
    from benchmarks import cmsis_nn
    from tvmflow import targets

    network, images, facts = test_images(options, PEER_IMAGES)
    commit = first_line("git", "-C", str(options.cmsis_nn), "rev-parse", "HEAD", optional=True)
    boards = [
        {
            "board": name,
            **cmsis_nn.measure(network, targets.find("cortex_m", name), options.cmsis_nn, images),
        }
        for name in options.boards
    ]
    return {
        **facts,
        "commit": commit,
        "compiler": first_line(cmsis_nn.COMPILER, "--version"),
        "options": " ".join(cmsis_nn.OPTIONS),
        "layers": [layer.name for layer in network.layers],
        "boards": boards,
    }


MEASURES = {"int8": measure_int8, "float32": measure_float32, "cmsis-nn": measure_cmsis_nn}


def first_line(*command: str, optional: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=not optional)
    return done.stdout.splitlines()[0] if done.stdout else ""


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "# The paper's network on microcontrollers",
        "",
        "*Emulated instruction counts, not latencies*: what a core makes of them depends on its pipeline, its caches "
        "and its flash, of which the emulator knows nothing. Batch 1, a counting plugin; made by "
        "`python -m benchmarks.mcu`.",
    ]
    for part, write in SECTIONS.items():
        if part in document:
            lines += ["", *write(document[part], document)]
    return "\n".join(lines) + "\n"


def made(part: dict[str, Any]) -> str:
    around = part["environment"]
    return f"{part['qemu']}, TVM {around['versions']['tvm']}, {around['date'][:10]}."


def memory_cells(row: dict[str, Any]) -> str:
    memory = row["memory"]
    return (
        f"{memory['flash_bytes']:,} B: {memory['weights_bytes']:,} + {memory['code_bytes']:,} "
        f"| {memory['ram_bytes']:,} B: {memory['activations_bytes']:,} + {memory['stack_bytes']:,} "
    )


def int8_section(part: dict[str, Any], document: dict[str, Any]) -> list[str]:
    boards = part["boards"]
    lines = [
        "## int8",
        "",
        f"Every logit of {part['images']} test images was compared with the exact integer reference, on the device "
        f"and afterwards. {made(part)}",
        "",
        "| board | core | images exact | flash: weights + code | RAM: arena + stack bound "
        "| arena ÷ largest two tensors | stack used | million instructions | per multiply-add |",
        "|---" * 9 + "|",
    ]
    for row in boards:
        lines.append(
            f"| {row['board']} | {row['core']} | {row['exact']} of {part['images']} | {memory_cells(row)}"
            f"| {row['memory']['activations_bytes'] / row['largest_pair_bytes']:.2f} | {row['stack_used_bytes']:,} B "
            f"| {1e-6 * row['instructions']:.2f} | {row['instructions'] / row['macs']:.3f} |"
        )
    return [*lines, *layer_table(boards)]


def float32_section(part: dict[str, Any], document: dict[str, Any]) -> list[str]:
    boards = part["boards"]
    lines = [
        "## float32",
        "",
        f"Compared with PyTorch on {part['vectors']} golden vectors; errors are relative to the largest logit, or to "
        f"1. {made(part)}",
        "",
        "| board | core | largest error | flash: weights + code | RAM: arena + stack bound "
        "| stack used | million instructions | per multiply-add |",
        "|---" * 8 + "|",
    ]
    for row in boards:
        lines.append(
            f"| {row['board']} | {row['core']} | {row['max_rel_error']:.1e} | {memory_cells(row)}"
            f"| {row['stack_used_bytes']:,} B | {1e-6 * row['instructions']:.2f} "
            f"| {row['instructions'] / row['macs']:.3f} |"
        )
    return [*lines, *layer_table(boards)]


def layer_table(boards: list[dict[str, Any]]) -> list[str]:
    lines = [
        "",
        "Thousand instructions of each kernel:",
        "",
        f"| layer | kernel | M multiply-adds | {' | '.join(row['core'] for row in boards)} |",
        "|---" * (3 + len(boards)) + "|",
    ]
    for layers in zip(*(row["layers"] for row in boards), strict=True):
        first = layers[0]
        cells = " | ".join(f"{1e-3 * layer['instructions']:,.0f}" for layer in layers)
        names = first["modules"][0] + (f" +{len(first['modules']) - 1}" if len(first["modules"]) > 1 else "")
        lines.append(f"| {names} | {first['schedule']} | {1e-6 * first['macs']:.2f} | {cells} |")
    return lines


def peer_section(part: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """Beside the same layers of ours, whose kernels each do the work of one or two of the peer's."""
    ours = {row["board"]: row for row in document.get("int8", {}).get("boards", [])}
    boards = [row for row in part["boards"] if row["board"] in ours]
    lines = [
        "## Peer: CMSIS-NN, int8",
        "",
        f"The same layers and weights by [CMSIS-NN](https://github.com/ARM-software/CMSIS-NN) {part['commit'][:12]}, "
        f"`{part['compiler']}`, `{part['options']}`, kernels chosen by the library's own wrappers; its copies "
        f"(`memcpy`, `memset`) are counted with it. {made(part)}",
        "",
        "| board | CMSIS-NN, million instructions | of these dilated depthwise layers | tvmflow | CMSIS-NN ÷ tvmflow "
        "| of pointwise layers alone | layers whose integers are the reference's | largest difference of logits "
        "| same class |",
        "|---" * 9 + "|",
    ]
    for row in boards:
        board = ours[row["board"]]
        counted = dict(zip(part["layers"], row["instructions"], strict=True))
        total, our = sum(counted.values()), board["instructions"]
        dilated, pointwise = (
            sum(count for name, count in counted.items() if name.endswith(kind)) for kind in ("dilated", "pointwise")
        )
        ours_pointwise = sum(layer["instructions"] for layer in board["layers"] if layer["schedule"] == "pointwise")
        lines.append(
            f"| {row['board']} | {1e-6 * total:.2f} | {dilated / total:.0%} | {1e-6 * our:.2f} | {total / our:.2f} "
            f"| {pointwise / ours_pointwise:.2f} | {sum(row['exact'])} of {len(row['exact'])} "
            f"| {row['largest_difference_of_logits']} | {row['same_class']} of {part['images']} |"
        )
    lines += [
        "",
        "For depthwise layers with dilation the library has but its general kernel, in plain C. Of Arm's own compiler, "
        "for which it has another path through 1×1 convolutions, nothing is known here. Its average pool can't "
        "scale, as that of this network does: the factor went into the classifier, so that these two layers are not "
        "the reference's. Thousand instructions, CMSIS-NN / tvmflow:",
        "",
        f"| layer | {' | '.join(ours[row['board']]['core'] for row in boards)} |",
        "|---" * (1 + len(boards)) + "|",
    ]
    for number, layer in enumerate(ours[boards[0]["board"]]["layers"] if boards else []):
        names = [name for name in part["layers"] if name in layer["modules"]]
        cells = []
        for row in boards:
            total = sum(row["instructions"][part["layers"].index(name)] for name in names)
            our = ours[row["board"]]["layers"][number]["instructions"]
            cells.append(f"{1e-3 * total:,.0f} / {1e-3 * our:,.0f}")
        lines.append(f"| {', '.join(names)} | {' | '.join(cells)} |")
    return lines


SECTIONS = {"int8": int8_section, "float32": float32_section, "cmsis-nn": peer_section}


if __name__ == "__main__":
    main()
