"""Train the paper's network, or ResNet-8, on CIFAR-10: cross-entropy, AdamW, one cycle of the learning rate, averaged
weights.

On two cores of a Zen 4 an epoch of the default network takes about four minutes: the depthwise layers run in
`tvmflow.models.depthwise`, the pointwise ones in bfloat16 where the CPU multiplies that. A run leaves its state in a
work directory; started again, it goes on where it was, to the same weights as if it had never stopped.
"""

from __future__ import annotations

import ctypes
import dataclasses
import io
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tvmflow.models import CIFAR10_PREPROCESSING
from tvmflow.models.data import DataSet, Split
from tvmflow.models.depthwise import use_fast_depthwise
from tvmflow.models.dilated_net import DilatedNet, DilatedNetConfig, load_weights
from tvmflow.models.resnet8 import ResNet8
from tvmflow.spec import Preprocessing, UserError
from tvmflow.system import interrupt, scratch, untrusted
from tvmflow.system import progress as waiting
from tvmflow.system.host import cpu_name
from tvmflow.system.untrusted import MalformedError, UnusableFileError, reason, shortened

log = logging.getLogger(__name__)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which PyTorch otherwise emulates at great cost."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Recipe of a run. Learning rates are per step, times in epochs. `network` is for the paper's alone."""

    model: str = "dilated-net"  # a name of NETWORKS
    network: DilatedNetConfig = field(default_factory=DilatedNetConfig)
    epochs: int = 16
    batch: int = 128
    optimizer: str = "AdamW"  # a name of OPTIMIZERS
    peak_rate: float = 4e-3
    warmup: float = 0.2  # share of the steps in which the rate rises from 0; it falls to 0 in the rest
    weight_decay: float = 0.05  # not on biases, batch normalisation and depthwise filters, which have few weights
    label_smoothing: float = 0.1
    averaging: float = 0.998  # decay per step of the averaged weights, which are the ones evaluated and exported
    crop: int = 4  # pixels of shift in each direction
    cutout: int = 8  # side in pixels of the square that is blanked
    seed: int = 0
    bfloat16: bool = field(default_factory=multiplies_bfloat16)  # pointwise layers only; all else stays float32


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch did: mean training loss, accuracy of the averaged weights on the test images, seconds."""

    epoch: int
    loss: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has reached its last epoch: the averaged network in eval mode, and its curve."""

    network: nn.Module
    config: TrainConfig
    curve: tuple[Epoch, ...]


CHECKPOINT_SECONDS = 120.0

NETWORKS: dict[str, Callable[[DilatedNetConfig], nn.Module]] = {
    "dilated-net": DilatedNet,
    "resnet-8": lambda config: ResNet8(config.classes),
}
"""What can be trained. The classes are in the paper's network's configuration, which others take nothing else from."""


RECIPES: dict[str, dict[str, Any]] = {
    "dilated-net": {},
    "resnet-8": {
        "optimizer": "SGD",
        "peak_rate": 0.1,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        "cutout": 0,
    },
}
"""What differs from TrainConfig's defaults: so few weights as ResNet-8's don't learn the training images by heart."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": partial(torch.optim.AdamW, fused=True),
    "SGD": partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
}


def new_network(config: TrainConfig) -> nn.Module:
    """The network of a recipe, not yet initialised for training. Raises UserError."""
    if config.model not in NETWORKS:
        raise UserError(f"There is no recipe for {shortened(config.model)}; there are {', '.join(NETWORKS)}.")
    return NETWORKS[config.model](config.network)


def train(
    config: TrainConfig,
    data: DataSet,
    work_dir: Path,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Train, or go on with the run whose state is in `work_dir`. Raises UserError if that is another recipe's."""
    from tqdm import tqdm

    keep_memory()
    torch.set_flush_denormal(True)
    work_dir.mkdir(parents=True, exist_ok=True)
    state = _State(config, math.ceil(len(data.train.labels) / config.batch))
    state.load(work_dir / "state.pt")
    saved = time.monotonic()
    if state.epoch or state.step:
        log.info(f"Going on from step {state.step} of {state.steps_per_epoch} in epoch {state.epoch + 1}")
    bar = tqdm(
        total=state.steps_per_epoch * config.epochs,
        initial=state.steps_per_epoch * state.epoch + state.step,
        file=sys.stderr,
        disable=not (progress and waiting.wanted()),
        mininterval=1.0,
    )
    while state.epoch < config.epochs:
        started, spent_before = time.monotonic(), state.seconds
        bar.set_description(f"epoch {state.epoch + 1}/{config.epochs}", refresh=False)
        with interrupt.deferred(), waiting.own_line():
            for images, labels in batches(data.train, config, state.epoch, state.step, data.preprocessing):
                state.update(images, labels)
                bar.set_postfix(loss=f"{state.loss / state.step:.3f}", refresh=False)
                bar.update()
                if time.monotonic() - saved > checkpoint_seconds or interrupt.noted:
                    state.seconds = spent_before + time.monotonic() - started
                    state.save(work_dir / "state.pt")
                    saved = time.monotonic()
                interrupt.check()
        accuracy = accuracy_of(state.averaged, data.test, data.preprocessing)
        state.finish_epoch(accuracy, spent_before + time.monotonic() - started)
        state.save(work_dir / "state.pt")
        write_text(work_dir / "curve.json", json.dumps([dataclasses.asdict(row) for row in state.curve], indent=1))
        if progress and waiting.wanted():
            row = state.curve[-1]
            bar.write(f"epoch {row.epoch}: loss {row.loss:.4f}, test accuracy {row.test_accuracy:.2%}", file=sys.stderr)
    bar.close()
    network = new_network(config).eval()
    network.load_state_dict(state.averaged.state_dict())
    return Run(network=network, config=config, curve=tuple(state.curve))


class _State:
    """All that a run has to remember. Random numbers are drawn from (seed, epoch, step), so there is no other state."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.epoch = self.step = 0
        self.loss = self.seconds = 0.0
        self.curve: list[Epoch] = []
        torch.manual_seed(config.seed)
        self.network = initialise(new_network(config)).train()
        self.averaged = new_network(config).eval()
        self.averaged.load_state_dict(self.network.state_dict())
        for network in (self.network, self.averaged):
            use_fast_depthwise(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        decayed = [p for p in self.network.parameters() if p.ndim > 1 and p.shape[1] > 1]
        rest = [p for p in self.network.parameters() if not (p.ndim > 1 and p.shape[1] > 1)]
        self.optimizer = OPTIMIZERS[config.optimizer](
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.peak_rate,
        )

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        done = (self.epoch * self.steps_per_epoch + self.step) / (self.config.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.peak_rate * one_cycle(done, self.config.warmup)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        if not torch.isfinite(loss):
            raise UserError(f"Training diverged in epoch {self.epoch + 1}: the loss is {loss.item()}; lower --rate.")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.loss += loss.item()
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        count = self.epoch * self.steps_per_epoch + self.step
        weight = 1 - min(self.config.averaging, (1 + count) / (10 + count))  # early averages must not hold the start
        for mean, value in zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    def finish_epoch(self, accuracy: float, seconds: float) -> None:
        self.curve.append(
            Epoch(epoch=self.epoch + 1, loss=self.loss / self.step, test_accuracy=accuracy, seconds=round(seconds, 1))
        )
        self.epoch, self.step, self.loss, self.seconds = self.epoch + 1, 0, 0.0, 0.0

    def save(self, path: Path) -> None:
        content = {
            "config": json.dumps(dataclasses.asdict(self.config)),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": [self.epoch, self.step],
            "loss": self.loss,
            "seconds": self.seconds,
            "curve": [dataclasses.asdict(row) for row in self.curve],
        }
        save_state(content, path)

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        content = load_state(path)
        try:
            recipe = content["config"]
            if config_of(untrusted.parse_json(recipe)) != self.config:
                raise UserError(
                    f"{path} belongs to a run with another recipe ({shortened(recipe, 2000)}); "
                    "give the same options, or another --work-dir."
                )
            self.network.load_state_dict(content["network"])
            self.averaged.load_state_dict(content["averaged"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.epoch, self.step = map(int, content["position"])
            self.loss, self.seconds = float(content["loss"]), float(content["seconds"])
            self.curve = [Epoch(**row) for row in content["curve"]]
        except UserError:
            raise
        except Exception as error:  # whatever PyTorch raises for states of other networks, and Python for other types
            raise damaged(path, error) from error


def save_state(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    buffer = io.BytesIO()  # torch.save has errors of its own for a full disk
    torch.save(content, buffer)
    with scratch.replacing(path) as made:
        made.write_bytes(buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Raises UserError."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # whatever the zip reader, the unpickler and torch raise
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    """What is said of a file that can't be a checkpoint."""
    return UserError(f"{path} is no intact checkpoint ({reason(error)}); delete it to start anew.")


def initialise(network: nn.Module) -> nn.Module:
    """Start depthwise filters near the identity, so that three linear layers in a row pass the signal on.

    Other networks start as PyTorch has them.
    """
    if not isinstance(network, DilatedNet):
        return network
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            nn.init.normal_(layer.weight, std=0.2)
            with torch.no_grad():
                layer.weight[:, :, 1, 1] += 1
        elif isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
    return network


def one_cycle(done: float, warmup: float) -> float:
    """Share of the peak learning rate when `done` (0…1) of the steps are done: linear up, half a cosine down."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def batches(
    split: Split,
    config: TrainConfig,
    epoch: int,
    first_step: int,
    preprocessing: Preprocessing = CIFAR10_PREPROCESSING,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The augmented images and the labels of each step of an epoch, from `first_step` on."""
    order = np.random.default_rng([config.seed, epoch]).permutation(len(split.labels))
    for step in range(first_step, math.ceil(len(order) / config.batch)):
        chosen = order[step * config.batch : (step + 1) * config.batch]
        rng = np.random.default_rng([config.seed, epoch, step])
        images = augment(preprocessing.apply(split.images[chosen]), config, rng)
        yield torch.from_numpy(images), torch.from_numpy(split.labels[chosen])


def augment(images: np.ndarray, config: TrainConfig, rng: np.random.Generator) -> np.ndarray:
    """Shift, mirror and blank out a square: float32 N×3×H×W → the same shape. What is unknown is 0, the mean colour."""
    count, _, height, width = images.shape
    pad = config.crop
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.empty_like(images)
    shifts = rng.integers(0, 2 * pad + 1, (count, 2))
    mirrored: Any = rng.integers(0, 2, count)
    corners = [height - config.cutout + 1, width - config.cutout + 1]
    holes: Any = rng.integers(0, corners, (count, 2))
    for index, (top, left) in enumerate(shifts.tolist()):
        image = padded[index, :, top : top + height, left : left + width]
        out[index] = image[:, :, ::-1] if mirrored[index] else image
        y, x = holes[index]
        out[index, :, y : y + config.cutout, x : x + config.cutout] = 0
    return out


def predict(
    network: nn.Module,
    images: np.ndarray,
    batch: int = 50,
    preprocessing: Preprocessing = CIFAR10_PREPROCESSING,
) -> np.ndarray:
    """Logits float32 N×classes of uint8 images N×H×W×3.

    Tensors of larger batches are given back to the system after each layer, which then clears their memory anew: with
    500 images at a time that took as much of the processor as the network itself.
    """
    with torch.no_grad():
        return np.concatenate(
            [
                network(torch.from_numpy(preprocessing.apply(images[start : start + batch]))).numpy()
                for start in range(0, len(images), batch)
            ]
        )


def accuracy_of(network: nn.Module, split: Split, preprocessing: Preprocessing = CIFAR10_PREPROCESSING) -> float:
    """Share of `split` whose largest logit is the right one."""
    return float((predict(network, split.images, preprocessing=preprocessing).argmax(1) == split.labels).mean())


def export(run: Run, data: DataSet, folder: Path, name: str, command: str) -> None:
    """Write `name`.safetensors, its curve as .json and its model card as .md into `folder`."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = save({key: value.contiguous() for key, value in run.network.state_dict().items()})
    with scratch.replacing(folder / f"{name}.safetensors") as made:
        made.write_bytes(weights)
    facts: dict[str, Any] = {
        "accuracy": accuracy_of(run.network, data.test, data.preprocessing),
        "data_set": data.name,
        "image": list(data.test.images.shape[1:3]),
        "mean": data.preprocessing.mean,
        "std": data.preprocessing.std,
        "images": len(data.test.labels),
        "trained_on": len(data.train.labels),
        "data": data.note,
        "data_sha256": data.sha256,
        "command": command,
        "config": dataclasses.asdict(run.config),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "hours": round(sum(row.seconds for row in run.curve) / 3600, 2),
        "curve": [dataclasses.asdict(row) for row in run.curve],
    }
    write_text(folder / f"{name}.json", json.dumps(facts, indent=1) + "\n")
    write_text(folder / f"{name}.md", model_card(name, facts))


def exported(path: Path) -> nn.Module:
    """The network of a .safetensors file that `export` wrote, beside its .json, in eval mode. Raises UserError."""
    card = path.with_suffix(".json")
    try:
        found = untrusted.read_json(card, what="card of weights", schema=CARD)
        config = config_of(found["config"])
        with torch.device("meta"):  # what a file says is allocated only if the weights are there
            elements = sum(parameter.numel() for parameter in new_network(config).parameters())
        if path.exists() and 2 * elements > path.stat().st_size:
            raise MalformedError(f"it has {elements:,} parameters, for which {path.name} is too small")
    except (UnusableFileError, MalformedError) as error:
        problem = error.problem if isinstance(error, UnusableFileError) else str(error)
        raise UnusableFileError(
            card,
            f"doesn't say which network {path.name} is: it {problem.removeprefix('it ')}",
            "`tvmflow train` writes both",
        ) from error
    return load_weights(new_network(config), path)


def _card() -> dict[str, Any]:
    """The schema of what `export` records, as far as the network needs it."""
    network = untrusted.schema_of(DilatedNetConfig)
    size = {"type": "integer", "minimum": 1, "maximum": 1 << 20}
    sizes = {"type": "array", "items": {**size, "maximum": 1 << 14}, "minItems": 1, "maxItems": 64}
    network["properties"] |= {
        **dict.fromkeys(("classes", "in_channels"), size),
        **dict.fromkeys(("widths", "strides"), sizes),
        "delta": {**size, "minimum": 0, "maximum": 1 << 10},
        "clipped_for": {"oneOf": [size, {"type": "null"}]},
    }
    network["additionalProperties"] = False
    return {
        "type": "object",
        "required": ["config"],
        "properties": {
            "config": {
                "type": "object",
                "required": ["network"],
                "properties": {"network": network, "model": {"enum": list(NETWORKS)}},
            },
        },
    }


CARD = untrusted.Schema(_card)


def model_card(name: str, facts: dict[str, Any]) -> str:
    """The card, made from what `export` recorded."""
    config = facts["config"]
    parameters = sum(parameter.numel() for parameter in new_network(config_of(config)).parameters())
    described = f'δ = {config["network"]["delta"]}, joint module "{config["network"]["joint"]}"'
    if config.get("model", "dilated-net") != "dilated-net":
        described = config["model"]
    rows = "\n".join(
        f"| {row['epoch']} | {row['loss']:.3f} | {row['test_accuracy']:.2%} | {row['seconds'] / 60:.1f} |"
        for row in facts["curve"]
    )
    paper = "\nThe paper (Sun, Zhou, Zhang, He 2020) states 84.25 % for its own training at δ = 2."
    return f"""# {name}

Accuracy on the {facts["images"]:,} test images of {facts["data_set"]}: **{facts["accuracy"]:.2%}** ({facts["data"]}).\
{paper if facts["data_set"] == "CIFAR-10" and described.startswith("δ") else ""}

| | |
|---|---|
| Network | {described}, {parameters:,} parameters, float32 |
| Input | 1×3×{"×".join(map(str, facts["image"]))}, RGB, (pixel / 255 − mean) / std with mean {tuple(facts["mean"])}, \
std {tuple(facts["std"])} |
| Trained with | `{facts["command"]}` |
| Recipe | {config.get("optimizer", "AdamW")}, one cycle to {config["peak_rate"]:g}, weight decay \
{config["weight_decay"]:g}, label smoothing \
{config["label_smoothing"]:g}, batch {config["batch"]}, shifts of ±{config["crop"]} pixels, mirroring, cutout \
{config["cutout"]}×{config["cutout"]}, averaged weights (decay {config["averaging"]:g} a step) |
| Length | {len(facts["curve"])} epochs, {facts["hours"]:g} hours on {facts["cpu"]} with {facts["threads"]} threads, \
seed {config["seed"]} |
| PyTorch | {facts["torch"]} |
| Training data | SHA-256 `{facts["data_sha256"]}` |

All {facts["trained_on"]:,} training images were used. The test images chose nothing: these are the weights of the
last epoch, and the accuracies below were only looked at.

| Epoch | Training loss | Test accuracy (averaged weights) | Minutes |
|---|---|---|---|
{rows}
"""


def _network_config(fields: dict[str, Any]) -> DilatedNetConfig:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return DilatedNetConfig(**values)


def config_of(fields: dict[str, Any]) -> TrainConfig:
    """The recipe that was written down with `dataclasses.asdict`; what was added to recipes since has its default."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    fields = {key: value for key, value in fields.items() if key in known}
    return TrainConfig(**fields | {"network": _network_config(fields["network"])})


def write_text(path: Path, text: str) -> None:
    with scratch.replacing(path) as made:
        made.write_text(text, encoding="utf-8")


def keep_memory() -> None:
    """Make glibc keep freed memory: by default every large tensor is mapped, zeroed and unmapped again."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_TOP_PAD, 2**28)
