"""What stands below each command's `--help`: commands as they are given."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "boards": ("tvmflow boards", "tvmflow boards --json boards.json"),
    "build": (
        "tvmflow build --model mynet.onnx -o here",
        "tvmflow build --model mynet.py:make --input-shape 1x3x32x32 --board raspberry-pi-5 --runner c -o pi.tar",
        "tvmflow build --model mynet-int8.safetensors --target cortex_m -o mcu",
    ),
    "tune": (
        "tvmflow tune --model mynet.onnx --time-budget 10m",
        "tvmflow tune --model mynet.onnx --tasks list",
        "tvmflow tune --model mynet.onnx --board raspberry-pi-5 --ssh pi@raspberrypi",
    ),
    "run": ("tvmflow run here --input photo.jpg", "tvmflow run here --input left.npy --input right.npy -o outputs.npz"),
    "verify": ("tvmflow verify here", "tvmflow verify pi.tar --json verdict.json"),
    "compare": ("tvmflow compare here8", "tvmflow compare here8 --model mynet.onnx --inputs photos --count 32"),
    "bench": ("tvmflow bench here --threads 1", "tvmflow bench here --seconds 10 --json bench.json"),
    "profile": ("tvmflow profile here --threads 1", "tvmflow profile pi.tar --cycles"),
    "deploy": (
        "tvmflow deploy pi.tar --ssh pi@raspberrypi --json pi.json",
        "tvmflow deploy pi.tar --ssh pi@raspberrypi --sustained 30m",
        "tvmflow deploy pi.tar --ssh pi@raspberrypi --rpc --profile",
    ),
    "serve": ("tvmflow serve", "tvmflow serve --port 9091 --session-seconds 60"),
    "report": (
        "tvmflow report here pi.json -o report/",
        "tvmflow report pi.tar mcu --cycles -o report.html",
        "tvmflow report here pynq -o report/ --trace trace.json",
        "tvmflow report here runs/tune -o .",
    ),
    "report diff": ("tvmflow report diff before.json after.json", "tvmflow report diff a.json b.json --fail-over 5%"),
    "estimate": (
        "tvmflow estimate --model mynet.onnx",
        "tvmflow estimate --model mynet.py:make --input-shape 1x3x32x32 --board pynq-z1 --board raspberry-pi-5",
    ),
    "train": ("tvmflow train --data cifar10.tar.xz", "tvmflow train --data cifar10.tar.xz --delta 1 --epochs 4"),
    "quantize": (
        "tvmflow quantize --model mynet.onnx --data photos --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 -o int8",
        "tvmflow quantize --model mynet.onnx --data inputs.npz --scheme power-of-two",
        "tvmflow quantize --data cifar10.tar.xz --scheme power-of-two --qat",
    ),
    "export": ("tvmflow export --model mynet-int8.safetensors -o mynet-int8.onnx",),
    "evaluate": (
        "tvmflow evaluate --model mynet.onnx --data photos --bundle here",
        "tvmflow evaluate --model mynet-int8.safetensors --float mynet.onnx --data inputs.npz",
    ),
    "doctor": ("tvmflow doctor",),
    "db show": ("tvmflow db show runs/tune",),
    "db merge": ("tvmflow db merge runs/tune other/records",),
    "db export": ("tvmflow db export runs/tune --better -o best",),
    "db prune": ("tvmflow db prune runs/tune --keep 3",),
}
"""By the full names of commands."""

DISASSEMBLY = ("tvmflow {kind} disasm bundle", "tvmflow {kind} disasm bundle --layer joint.0.pointwise")
"""Of the commands for programs of one kind of target."""


def epilog(lines: tuple[str, ...]) -> str:
    """As it stands below a command's help, one to a line."""
    return "\n".join(["Examples:", "", "\b", *(f"  {line}" for line in lines)])
