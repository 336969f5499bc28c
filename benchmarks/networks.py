"""Networks that benchmarks take: those of the registry and those of the zoo, and their int8 forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.zoo import ZOO, Entry
from tvmflow.models import MODELS, WEIGHTS, Model, quantized, quantized_name

if TYPE_CHECKING:
    from tvmflow.integer.network import IntegerNetwork
    from tvmflow.spec import Program

NETWORKS: dict[str, Model | Entry] = {
    **MODELS,
    "mobilenet-v2-224": Model(
        name="mobilenet-v2-224",
        description="MobileNetV2 as it was published, untrained",
        factory="tvmflow.models.baselines:mobilenet_v2_224",
        input_shape=(1, 3, 224, 224),
        labels=(),
        preprocessing=MODELS["dilated-net"].preprocessing,
    ),
    **ZOO,
}
COUNT = 16
"""Random inputs that an untrained network is quantised on: its speed doesn't depend on them."""


def program_of(name: str, batch: int = 1) -> Program:
    """The network, imported, for `batch` times as many inputs at a time as its entry says."""
    from tvmflow.network.frontend import InputShape, import_model

    entry = NETWORKS[name]
    images, *rest = entry.input_shape
    shape = InputShape(name=None, shape=(batch * images, *rest))
    return replace(import_model(name if name in MODELS else entry.factory, [shape]), name=name)


def int8_of(name: str, program: Program) -> IntegerNetwork:
    """The registry's int8 weights, or, where it has none, what quantising on random inputs gives."""
    import numpy as np

    from tvmflow.integer.post_training import Method
    from tvmflow.models.int8 import Examples, make

    if (Path(WEIGHTS) / f"{quantized_name(name, 'per-channel')}.safetensors").exists():
        return quantized(name)
    rng, shape = np.random.default_rng(0), program.inputs[0].shape[1:]
    given, others = ((rng.standard_normal((count, *shape), np.float32),) for count in (COUNT, 2))
    return make(program, Examples(calibration=given, others=others, facts={}), "per-channel", Method(count=COUNT))
