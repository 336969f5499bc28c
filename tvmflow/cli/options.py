"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Target = Annotated[
    str | None, typer.Option("--target", help="Kind of target: llvm (this computer), arm_cpu, cortex_m, cuda or vta.")
]
Board = Annotated[str | None, typer.Option("--board", help="A board of `tvmflow boards`, or a board's .toml file.")]
ModelName = Annotated[str, typer.Option("--model", help="Registry name, package.module:factory, .pt2 or .onnx file.")]
InputShapes = Annotated[
    list[str] | None, typer.Option("--input-shape", help="1x3x32x32 or name=1x3x32x32; once per input.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder or .tar.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file; - is stdout.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the network; all cores by default.")]
Cycles = Annotated[
    bool,
    typer.Option("--cycles", help="Model the cycles of ARM boards and microcontrollers, by qemu and llvm-mca."),
]
Tracker = Annotated[str | None, typer.Option("--tracker", help="127.0.0.1:PORT of TVM's RPC tracker, with --key.")]
Key = Annotated[str, typer.Option("--key", help="What kind of board, for --tracker: raspberry-pi-4b, say.")]
Scheme = Annotated[
    Literal["per-channel", "power-of-two"],
    typer.Option("--scheme", help="How int8 is scaled: by multipliers per channel, or by shifts alone."),
]
