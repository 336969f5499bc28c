#!/usr/bin/env python3
"""The net under a refactoring: builds one network a kind of target, and prints the SHA-256 of what was compiled.

Builds are reproducible, so a change that moves code without changing what it does prints the same lines on the same
computer: `tools/library-hashes.py >before`, the change, and `tools/library-hashes.py | diff before -`. The host's lines
depend on the CPU.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

PAIRS = {
    "host": ["--board", "host"],
    "host, int8": ["--board", "host", "--dtype", "int8"],
    "host, squeezenet": ["--board", "host", "--model", "squeezenet"],
    "raspberry-pi-4b": ["--board", "raspberry-pi-4b"],
    "raspberry-pi-5, float16": ["--board", "raspberry-pi-5", "--dtype", "float16"],
    "raspberry-pi-5, int8": ["--board", "raspberry-pi-5", "--dtype", "int8"],
    "jetson-orin-nano": ["--board", "jetson-orin-nano"],
    "jetson-orin-nano, int8": ["--board", "jetson-orin-nano", "--dtype", "int8"],
    "pynq-z1": ["--board", "pynq-z1"],
    "mps3-an547, int8": ["--board", "mps3-an547", "--dtype", "int8"],
    "stm32n6": ["--board", "stm32n6"],
}
COMPILED = {"model.so", "model.o", "program.bin", "memory.bin", "layout.json"}
"""What of a bundle is compiled; the rest is its description, with dates and versions in it."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, options in PAIRS.items():
            out = Path(folder) / name.replace(", ", "-")
            command = [sys.executable, "-m", "tvmflow", "build", *options, "--no-verify", "-o", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for file in sorted(file for file in out.iterdir() if file.name in COMPILED):
                print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}: {file.name}", flush=True)


if __name__ == "__main__":
    main()
