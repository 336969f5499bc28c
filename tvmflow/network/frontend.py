"""A trained network, in whatever form it comes, becomes a Program: Relax module, interface and reference vectors.

Five forms are taken: a name in `tvmflow.models.MODELS`, `package.module:factory` or `file.py:factory` (a function
without arguments that returns an `nn.Module`), a `.pt2` file of `torch.export.save`, an `.onnx` file, and a `.tflite`
file that computes in float32. PyTorch networks go through `torch.export`; every Relax binding is named after the module
(or ONNX node, or tensor of a `.tflite` file) that it came from, so that reports can speak of `joint.3.pointwise`
instead of `fused_conv2d9_add3_relu3`. The readers are in `tvmflow.network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tvmflow.integer.tflite.schema import SUFFIX
from tvmflow.models import MODELS
from tvmflow.network.forms import check_model
from tvmflow.network.onnx_file import from_onnx
from tvmflow.network.pytorch import from_examples, from_factory, from_module, from_pt2, from_registry
from tvmflow.network.shapes import InputShape, parse_input_shape
from tvmflow.network.tflite.file import from_tflite
from tvmflow.network.tflite.graph import is_float
from tvmflow.spec import Program, UserError

__all__ = ["InputShape", "from_examples", "from_module", "import_model", "parse_input_shape"]

READERS: dict[str, Callable[[Path, Sequence[InputShape]], Program]] = {
    ".pt2": from_pt2,
    ".onnx": from_onnx,
    SUFFIX: from_tflite,
}
"""By the suffixes of the files that they read."""


def import_model(model: str, input_shapes: Sequence[InputShape] = ()) -> Program:
    """Import `model` (see the module's docstring) with its weights as constants.

    `input_shapes` are needed for a factory and for ONNX inputs without a fixed shape, and refused where they differ
    from what the file says. Raises UserError, UnsupportedOperatorError.
    """
    check_model(model)
    if model in MODELS:
        return from_registry(model, input_shapes)
    path = Path(model)
    if path.suffix not in READERS:
        return from_factory(model, input_shapes)
    if path.suffix == SUFFIX and not is_float(path):
        raise UserError(
            f"{model} is quantised already, and this needs a network in float32; `tvmflow build --model {model}` "
            "takes it as it is."
        )
    return READERS[path.suffix](path, input_shapes)
