"""The paper's network on microcontrollers: exact on test images, flash and RAM, and executed instructions per layer.

`python -m benchmarks.mcu --data cifar10.tar.xz` builds the int8 network for each emulated board, runs it under
qemu-system-arm on test images of CIFAR-10, compares every logit with the exact integer reference, on the device and
here, and counts the instructions of one inference by the function that they are in. A count is no time: it knows
nothing of flash that is slow to read, of caches, or of how many cycles an instruction takes.

No peer is counted: TensorFlow Lite Micro has a package for Python (tflite-micro), which holds an interpreter for this
computer and neither its C++ sources nor a library for microcontrollers; CMSIS-NN is in no package of PyPI or Debian.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "mcu.json"
BOARDS = ("mps2-an386", "mps2-an500", "mps3-an547")


def main() -> None:
    from tvmflow.cortex_m.machine import find_qemu
    from tvmflow.models import quantized
    from tvmflow.models.data import load_cifar10
    from tvmflow.report import environment, write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10, as `tvmflow train` takes it")
    parser.add_argument("--images", type=int, default=256, help="test images that each board runs")
    parser.add_argument("--boards", nargs="+", default=list(BOARDS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    network = quantized("dilated-net")
    assert network.preprocessing is not None
    data = load_cifar10(options.data)
    images = network.quantize_input(network.preprocessing.apply(data.test.images[: options.images]))
    expected = network.run(images)
    boards = []
    document = {
        "basis": "emulated",
        "unit": "instructions per inference",
        "network": network.name,
        "images": len(images),
        "data": data.note,
        "data_sha256": data.sha256,
        "environment": environment({"tvmflow": version("tvmflow"), "tvm": version("apache-tvm")}),
        "qemu": qemu_version(find_qemu()),
        "boards": boards,
    }
    for name in options.boards:  # slow: what is done is written
        boards.append(measure(name, network, images, expected))
        write_json(options.output, document)
        options.output.with_suffix(".md").write_text(markdown(document))
    print(markdown(document))


def measure(name: str, network: Any, images: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Build for a board, run all images there, count one."""
    from tvmflow import targets
    from tvmflow.cortex_m import machine
    from tvmflow.cortex_m.backend import build, count, network_name
    from tvmflow.integer_frontend import integer_program

    board = targets.find("cortex_m", name)
    program = integer_program(network)
    layers = network.layers
    pair = max(int(np.prod(layer.input_shape) + np.prod(layer.output_shape)) for layer in layers)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        bundle = build(program, board, Path(folder, "bundle"))
        library, output = bundle.library, program.outputs[0]
        ran = machine.run(library, board, network_name(library), images, output, expected=expected)
        counted = count(library, board, bundle.layers, images[:1], output)
    macs = sum(layer.macs for layer in bundle.layers)
    rows = [
        {
            "modules": list(layer.modules),
            "schedule": layer.schedule,
            "macs": layer.macs,
            "instructions": details["instructions"],
        }
        for layer, details in zip(bundle.layers, counted.details, strict=True)
    ]
    return {
        "board": name,
        "core": board.cpu.model,
        "exact": int((ran.outputs == expected).all(1).sum()),
        "wrong_on_the_device": ran.wrong,
        "memory": bundle.manifest["memory"],
        "largest_pair_bytes": pair,
        "stack_used_bytes": ran.stack_bytes,
        "instructions": counted.total,
        "macs": macs,
        "layers": rows,
    }


def qemu_version(qemu: str) -> str:
    import subprocess

    return subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def markdown(document: dict[str, Any]) -> str:
    around, boards = document["environment"], document["boards"]
    lines = [
        "# The paper's network on microcontrollers",
        "",
        "*Emulated instruction counts, not latencies*: what a core makes of them depends on its pipeline, its caches "
        f"and its flash, of which the emulator knows nothing. int8, batch 1, {document['qemu']} with a counting "
        f"plugin. Every logit of {document['images']} test images was compared with the exact integer reference, on "
        f"the device and afterwards. TVM {around['versions']['tvm']}; made by `python -m benchmarks.mcu` on "
        f"{around['date'][:10]}.",
        "",
        "| board | core | images exact | flash: weights + code | RAM: arena + stack bound "
        "| arena ÷ largest two tensors | stack used | million instructions | per multiply-add |",
        "|---" * 9 + "|",
    ]
    for row in boards:
        memory = row["memory"]
        lines.append(
            f"| {row['board']} | {row['core']} | {row['exact']} of {document['images']} "
            f"| {memory['flash_bytes']:,} B: {memory['weights_bytes']:,} + {memory['code_bytes']:,} "
            f"| {memory['ram_bytes']:,} B: {memory['activations_bytes']:,} + {memory['stack_bytes']:,} "
            f"| {memory['activations_bytes'] / row['largest_pair_bytes']:.2f} | {row['stack_used_bytes']:,} B "
            f"| {1e-6 * row['instructions']:.2f} | {row['instructions'] / row['macs']:.3f} |"
        )
    lines += ["", "Thousand instructions of each kernel:", ""]
    lines += [
        f"| layer | kernel | M multiply-adds | {' | '.join(row['core'] for row in boards)} |",
        "|---" * (3 + len(boards)) + "|",
    ]
    for layers in zip(*(row["layers"] for row in boards), strict=True):
        first = layers[0]
        counts = " | ".join(f"{1e-3 * layer['instructions']:,.0f}" for layer in layers)
        names = first["modules"][0] + (f" +{len(first['modules']) - 1}" if len(first["modules"]) > 1 else "")
        lines.append(f"| {names} | {first['schedule']} | {1e-6 * first['macs']:.2f} | {counts} |")
    lines += [
        "",
        "No peer was counted: the package tflite-micro holds an interpreter for this computer and no sources or "
        "library for microcontrollers, and CMSIS-NN is in no package of PyPI or Debian.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
