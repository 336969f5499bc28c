"""Options that several commands have."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from tvmflow.models import MODELS
from tvmflow.network.forms import FILES
from tvmflow.spec import UserError
from tvmflow.targets import DEFAULT_BOARD, TARGETS


def output_path(text: str | Path) -> Path:
    """Where a result goes. `~` is the home folder also where the shell doesn't see it, as in --output=~/x."""
    if str(text) == "-":
        raise typer.BadParameter("results of several files can't go to stdout; name a folder, or a file.")
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError as error:  # there is no such home
        raise typer.BadParameter(f"{error}: {text}") from error


def check_folder(path: Path) -> None:
    """Raises UserError, before anything takes time, unless `path` is a folder for results or can be made one."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise UserError(f"{nearest} is no folder, and the results need one; give another --output.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"Nothing may be written into {nearest}; give another --output.")


def json_path(text: str | Path) -> Path:
    """A file that can be written, or - for stdout, so that nothing is lost after the work."""
    path = Path(text).expanduser()
    if path != Path("-") and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{path} is a folder." if path.is_dir() else f"There is no folder {path.parent}.")
    return path


def boards_like(incomplete: str) -> list[str]:
    """Boards that begin so, for the shell's completion."""
    return [name for name in TARGETS if name.startswith(incomplete)]


def targets_like(incomplete: str) -> list[str]:
    """Kinds of target that begin so."""
    return [name for name in DEFAULT_BOARD if name.startswith(incomplete)]


def models_like(incomplete: str) -> list[str]:
    """Networks of the registry that begin so, and files of networks below the folder that was typed."""
    folder = Path(os.path.dirname(incomplete) or ".")
    found = [name for name in MODELS if name.startswith(incomplete)]
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            text = os.path.join(os.path.dirname(incomplete), path.name)
            if text.startswith(incomplete) and (path.suffix in (*FILES, ".safetensors") or path.is_dir()):
                found.append(text + "/" * path.is_dir())
    return found


Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Kind of target: llvm (this computer), arm_cpu, cortex_m, cuda or vta.",
        autocompletion=targets_like,
    ),
]
Board = Annotated[
    str | None,
    typer.Option("--board", help="A board of `tvmflow boards`, or a board's .toml file.", autocompletion=boards_like),
]
DEMO = "dilated-net"
"""The network that commands take unless told otherwise."""
MODEL_HELP = "Registry name, module:factory, file.py:factory, .pt2, .onnx or .tflite file."
ModelName = Annotated[str, typer.Option("--model", help=MODEL_HELP, autocompletion=models_like)]
InputShapes = Annotated[
    list[str] | None, typer.Option("--input-shape", help="1x3x32x32 or name=1x3x32x32; once per input.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder or .tar.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", parser=json_path, metavar="<path>", help="Also write the result as JSON to this file; - is stdout."
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the network; all cores by default.")]
Cycles = Annotated[
    bool,
    typer.Option(
        "--cycles",
        help="Model the cycles of ARM boards and microcontrollers, and latencies of some, by qemu and llvm-mca.",
    ),
]
Tracker = Annotated[str | None, typer.Option("--tracker", help="127.0.0.1:PORT of TVM's RPC tracker, with --key.")]
Key = Annotated[str, typer.Option("--key", help="What kind of board, for --tracker: raspberry-pi-4b, say.")]
Scheme = Annotated[
    Literal["per-channel", "power-of-two"],
    typer.Option("--scheme", help="How int8 is scaled: by multipliers per channel, or by shifts alone."),
]
Mean = Annotated[
    str | None, typer.Option("--mean", help="How the network sees images: 0.49,0.48,0.45, of pixels from 0 to 1.")
]
Std = Annotated[str | None, typer.Option("--std", help="By what they are divided then: 0.25,0.24,0.26.")]
InputRange = Annotated[
    str | None,
    typer.Option(
        "--input-range", help="What a black and a white pixel become before --mean and --std: 0,255 or -1,1, say."
    ),
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="The classes in the order of the outputs: cat,dog, or a file of lines.")
]
