"""How a network may be named. A name is looked at before anything is imported that takes seconds."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from tvmflow.models import MODELS
from tvmflow.spec import UserError
from tvmflow.system.text import did_you_mean

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}
FILES = (".pt2", ".onnx", ".tflite")
"""Suffixes of files that hold a network."""


def names_function(text: str) -> bool:
    """Whether `text` has the form of `package.module:function`, or of `file.py:function`."""
    return re.fullmatch(r"([\w.]+|.+\.py):\w+", text) is not None


def check_model(model: str, also: Collection[str] = ()) -> None:
    """Raises UserError unless `model` is a name of the registry, names a function, or is the path of a file.

    Files are those of FILES and of the suffixes `also`. What is in a file, and whether there is such a function, is
    for those who read it to say.
    """
    if model in MODELS:
        return
    path = Path(model)
    if path.suffix in PICKLES:
        raise UserError(
            f"{model} is a pickle by its name, and loading one runs whatever code it holds; "
            "save the network with torch.export.save as .pt2, or export it to .onnx."
        )
    if path.suffix in FILES or path.suffix in also:
        if not path.is_file():
            raise UserError(
                f"There is no file {model}; --model takes a path to a {' or '.join(FILES)} file that exists."
            )
        return
    if path.suffix == ".py":
        raise UserError(f"--model {model} is a file of Python; name the function in it too, as {model}:function.")
    if not names_function(model):
        raise UserError(
            f"--model {model!r} is neither a known network ({', '.join(MODELS)}), nor a function "
            f"(package.module:factory or file.py:factory), nor a {' or '.join(FILES)} file."
            f"{did_you_mean(model, MODELS)}"
        )
