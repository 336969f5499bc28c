"""The networks tvmflow knows by name. Importing this costs nothing; calling an entry imports torch."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.spec import Preprocessing, UserError

if TYPE_CHECKING:
    from torch import nn

    from tvmflow.integer.network import IntegerNetwork, Scheme

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR10_PREPROCESSING = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Per-channel mean and standard deviation of the 50,000 training images."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network: `factory` is `module:function`; `input_shape` is N×C×H×W. Call it for the `nn.Module` in eval mode.

    `quoted_accuracy` is what the paper states for its own training of it, as a share of CIFAR-10's test images.
    """

    name: str
    description: str
    factory: str
    input_shape: tuple[int, ...]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    quoted_accuracy: float | None = None

    def __call__(self) -> nn.Module:
        module, _, function = self.factory.partition(":")
        return getattr(importlib.import_module(module), function)()


def _cifar10(name: str, description: str, factory: str, quoted_accuracy: float | None = None) -> Model:
    return Model(
        name=name,
        description=description,
        factory=factory,
        input_shape=(1, 3, 32, 32),
        labels=CIFAR10_LABELS,
        preprocessing=CIFAR10_PREPROCESSING,
        quoted_accuracy=quoted_accuracy,
    )


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        _cifar10(
            "dilated-net", "the paper's network, δ = 2, trained", "tvmflow.models.dilated_net:dilated_net", 0.8425
        ),
        _cifar10(
            "dilated-net-merged",
            "its other reading, the dilated filter as the only 3×3; untrained, a hard case for compilers",
            "tvmflow.models.dilated_net:dilated_net_merged",
        ),
        _cifar10("resnet-8", "MLPerf Tiny's network of residual blocks, trained", "tvmflow.models.resnet8:resnet_8"),
        _cifar10("mobilenet-v1", "MobileNetV1 for small images, untrained", "tvmflow.models.baselines:mobilenet_v1"),
        _cifar10("googlenet", "GoogLeNet for small images, untrained", "tvmflow.models.baselines:googlenet"),
        _cifar10("squeezenet", "SqueezeNet 1.1 for small images, untrained", "tvmflow.models.baselines:squeezenet"),
        _cifar10("vgg16", "VGG16 for small images, untrained", "tvmflow.models.baselines:vgg16"),
        _cifar10("small-vgg", "eight 3×3 convolutions, untrained", "tvmflow.models.baselines:small_vgg"),
    )
}

WEIGHTS = Path(__file__).parent / "weights"
SCHEMES: tuple[Scheme, ...] = ("per-channel", "power-of-two")
"""How weights of networks that come quantised may be."""


def quantized_name(name: str, scheme: Scheme) -> str:
    """How the files of a quantised network are called, without their suffix."""
    return f"{name}-int8" if scheme == "per-channel" else f"{name}-int8-pow2"


def comes_quantised(name: str) -> bool:
    """Whether int8 weights of a network of the registry come with tvmflow."""
    return any((WEIGHTS / f"{quantized_name(name, scheme)}.safetensors").exists() for scheme in SCHEMES)


def accuracy(name: str, scheme: Scheme | None = None) -> dict[str, Any] | None:
    """What was measured of the committed weights of that name, or of their int8 form: `value`, the share of `images`
    test images of `data` that they class right, computed in `arithmetic`. None where nothing was trained."""
    card = WEIGHTS / f"{quantized_name(name, scheme) if scheme else name}.json"
    if not card.exists():
        return None
    facts = json.loads(card.read_text(encoding="utf-8"))
    return {
        "value": facts["accuracy"],
        "images": facts.get("test_images", facts["images"]),
        "data": facts["data"],
        "arithmetic": "int8" if scheme else "float32",
    }


def quantized(name: str, scheme: Scheme = "per-channel") -> IntegerNetwork:
    """The int8 form of a network of the registry, or the one in a .safetensors file of `tvmflow quantize`.

    Raises UserError if there is none, or if the file's has another scheme.
    """
    from tvmflow.integer import file

    path = Path(name) if name.endswith(".safetensors") else WEIGHTS / f"{quantized_name(name, scheme)}.safetensors"
    if path.parent == WEIGHTS and not path.exists():
        known = f"tvmflow quantize --model {name} --scheme {scheme}" if name in MODELS else "tvmflow quantize"
        raise UserError(f"There are no {scheme} int8 weights of {name}; `{known}` makes some, to be given as a file.")
    network = file.load(path)
    if network.scheme != scheme:
        raise UserError(f"{path} is quantised {network.scheme}, not {scheme}; say --scheme {network.scheme}.")
    return network
