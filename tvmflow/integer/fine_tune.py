"""Quantisation-aware fine-tuning: the integer network is trained as it computes, with its scales as they are.

The forward pass is the reference's arithmetic in float32: rounded weights and biases, sums, scaling, rounding halves
up, saturation. In the backward pass rounding counts as the identity ("straight-through") and saturation passes nothing.
The network learns to give the probabilities that the float network gives for the same augmented images. A run leaves
its state in a work directory; started again, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tvmflow.integer.graph import REAL, FloatGraph, convolve
from tvmflow.integer.layers import AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.operators import Function, LogSoftmax, MatMul, Normalise, Product, Softmax, Sum
from tvmflow.integer.post_training import Quantised
from tvmflow.integer.reference import run_layer
from tvmflow.models import train
from tvmflow.models.data import Split
from tvmflow.spec import UserError
from tvmflow.system import interrupt
from tvmflow.system import progress as waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Recipe of a run. The rate is per step of Adam, in steps of the weights' scales; of biases in those of outputs."""

    epochs: float = 0.1
    batch: int = 64
    peak_rate: float = 3e-3
    warmup: float = 0.1  # share of the steps in which the rate rises from 0; it falls to 0 in the rest
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The fine-tuned layers, and what became of the loss: mean Kullback-Leibler divergence of every tenth of a run."""

    layers: tuple[AnyIntegerLayer, ...]
    steps: int
    losses: tuple[float, ...]
    seconds: float


CHECKPOINT_SECONDS = 60.0


def tune(
    graph: FloatGraph,
    quantised: Quantised,
    split: Split,
    config: TuneConfig,
    work_dir: Path,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Tuned:
    """Fine-tune `quantised`, made from `graph`, or go on with the run in `work_dir`. Raises UserError."""
    from tqdm import tqdm

    train.keep_memory()
    torch.set_flush_denormal(True)
    work_dir.mkdir(parents=True, exist_ok=True)
    run = _Run(graph, quantised, config, math.ceil(config.epochs * len(split.labels) / config.batch))
    run.load(work_dir / "qat.pt")
    saved = time.monotonic()
    bar = tqdm(
        _images(split, config, run.step, run.steps),
        desc="fine-tuning",
        total=run.steps,
        initial=run.step,
        file=sys.stderr,
        disable=not (progress and waiting.wanted()),
        mininterval=1.0,
    )
    if run.step:
        log.info(f"Going on from step {run.step} of {run.steps}")
    with interrupt.deferred(), waiting.own_line():
        for images in bar:
            started = time.monotonic()
            run.update(images)
            run.seconds += time.monotonic() - started
            bar.set_postfix(loss=f"{run.losses[-1]:.5f}", refresh=False)
            if time.monotonic() - saved > checkpoint_seconds or run.step == run.steps or interrupt.noted:
                run.save(work_dir / "qat.pt")
                saved = time.monotonic()
            interrupt.check()
    tenths = np.array_split(run.losses, min(10, run.steps))
    return Tuned(
        layers=run.network.integer(),
        steps=run.steps,
        losses=tuple(round(float(tenth.mean()), 6) for tenth in tenths),
        seconds=round(run.seconds, 1),
    )


def _images(split: Split, config: TuneConfig, first: int, last: int) -> Iterator[torch.Tensor]:
    recipe = train.TrainConfig(batch=config.batch, seed=config.seed)
    steps_per_epoch = math.ceil(len(split.labels) / config.batch)
    step = first
    while step < last:
        epoch, start = divmod(step, steps_per_epoch)
        for images, _ in train.batches(split, recipe, epoch, start):
            if step == last:
                return
            yield images
            step += 1


class FakeQuantised(nn.Module):
    """Integer layers whose weights and biases are float parameters: N×C×H×W of integers → logits in output steps.

    It takes networks of one input and gives the first output.
    """

    def __init__(self, quantised: Quantised) -> None:
        super().__init__()
        self.layers = quantised.layers
        self.input, self.output = quantised.inputs[0].name, quantised.outputs[0].source
        weighted = [layer for layer in self.layers if isinstance(layer, IntegerLayer)]
        self.place = {layer.name: number for number, layer in enumerate(weighted)}
        self.scales = [torch.from_numpy(_scale(layer)).float() for layer in weighted]
        self.weights = nn.ParameterList(torch.from_numpy(quantised.weights[layer.name]).float() for layer in weighted)
        self.biases = nn.ParameterList(torch.from_numpy(layer.bias * _scale(layer)).float() for layer in weighted)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = {self.input: x}
        for layer in self.layers:
            inputs = [tensors[name] for name in layer.inputs]
            if isinstance(layer, IntegerNode):
                tensors[layer.name] = _through(layer, *inputs)
                continue
            number = self.place[layer.name]
            scale, weight, bias = self.scales[number], self.weights[number], self.biases[number]
            if layer.kind == "pool":
                sums, bias = inputs[0].sum((2, 3), keepdim=True), torch.zeros_like(scale)
            else:
                sums = convolve(layer, inputs[0], _Round.apply(weight))
            tensors[layer.name] = _Requantise.apply(sums, bias, scale, layer.minimum, layer.maximum)
        return tensors[self.output].flatten(1)

    def integer(self) -> tuple[AnyIntegerLayer, ...]:
        """The layers with the weights and biases as they now are."""
        return tuple(self._integer(layer) for layer in self.layers)

    def _integer(self, layer: AnyIntegerLayer) -> AnyIntegerLayer:
        if isinstance(layer, IntegerNode) or layer.kind == "pool":
            return layer
        number = self.place[layer.name]
        return replace(
            layer,
            weight=self.weights[number].detach().round().clamp(-127, 127).to(torch.int8).numpy(),
            bias=(self.biases[number].detach() / self.scales[number]).round().to(torch.int32).numpy(),
        )


def _through(node: IntegerNode, *inputs: torch.Tensor) -> torch.Tensor:
    """What the reference gives; gradients are those of the operator without its rounding, within its limits."""
    smooth = _smooth(node, *inputs).clamp(node.minimum, node.maximum)
    wide = (x.detach().numpy().astype(np.int64) for x in inputs)
    exact = torch.from_numpy(run_layer(node, *wide).astype(np.float32))
    return smooth + (exact - smooth).detach()


def _smooth(node: IntegerNode, *inputs: torch.Tensor) -> torch.Tensor:
    operator, unit = node.operator, 2.0**-node.shift
    if isinstance(operator, Sum):
        assert node.factors is not None
        pairs = zip(node.factors.tolist(), inputs, strict=True)
        return torch.stack(torch.broadcast_tensors(*(factor * unit * x for factor, x in pairs))).sum(0)
    if isinstance(operator, Product):
        assert node.factors is not None
        return inputs[0] * inputs[1] * (int(node.factors[0]) * unit)
    if isinstance(operator, Function):
        return inputs[0] * _slopes(node, inputs[0].detach())
    if isinstance(operator, MatMul):
        assert node.factors is not None
        return inputs[0] @ inputs[1] * (int(node.factors[0]) * unit)
    if isinstance(operator, Softmax | LogSoftmax):
        assert node.table is not None
        step = math.log(node.table[0] / max(1, node.table[1]))
        if isinstance(operator, Softmax):
            return torch.softmax(inputs[0] * step, operator.axis) * 256
        assert node.factors is not None
        return torch.log_softmax(inputs[0] * step, operator.axis) * (int(node.factors[0]) * unit / step)
    if isinstance(operator, Normalise):
        assert node.table is not None
        assert node.factors is not None
        gamma, beta = node.table[0] * unit, node.table[1] / 256
        epsilon = (int(node.factors[0]) << int(node.factors[1])) / operator.count**2
        return REAL[Normalise](replace(operator, epsilon=epsilon, gamma=gamma, beta=beta), *inputs)
    return REAL[type(operator)](operator, *inputs)


def _slopes(node: IntegerNode, x: torch.Tensor) -> torch.Tensor:
    """How a table rises at each element, from the entry before to the one behind."""
    assert node.table is not None
    rows = np.atleast_2d(node.table)
    signed = np.roll(rows, 128, 1)  # from −128 on
    ordered = rows if x.min() >= 0 and x.max() > 127 else signed
    rise = np.gradient(ordered.astype(np.float32), axis=1)
    index = x.long() + (0 if ordered is rows else 128)
    channel = torch.arange(x.shape[1])[:, None, None] if len(rows) > 1 else torch.zeros((), dtype=torch.long)
    return torch.from_numpy(rise)[channel, index.clamp(0, 255)]


def _scale(layer: IntegerLayer) -> np.ndarray:
    """By which accumulators become outputs, float64 O."""
    if layer.multiplier is not None:
        return layer.multiplier / 2.0**32
    assert layer.shift is not None
    return 2.0**-layer.shift


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.round().clamp_(-127, 127)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Requantise(torch.autograd.Function):
    """clip(⌊(sums + round(bias ÷ scale)) · scale + ½⌋), scale and bias (in output steps) per channel."""

    @staticmethod
    def forward(ctx, sums, bias, scale, minimum, maximum):
        y = sums + (bias / scale).round_()[:, None, None]
        y = y.mul_(scale[:, None, None]).add_(0.5).floor_().clamp_(minimum, maximum)
        ctx.save_for_backward(y, scale)
        ctx.limits = minimum, maximum
        return y

    @staticmethod
    def backward(ctx, grad):
        y, scale = ctx.saved_tensors
        minimum, maximum = ctx.limits
        passed = torch.ops.aten.hardtanh_backward(grad, y, minimum, maximum)
        return passed * scale[:, None, None], passed.sum((0, 2, 3)), None, None, None


class _Run:
    """All that a run has to remember; random numbers are drawn from (seed, epoch, step), so there is no other state."""

    def __init__(self, graph: FloatGraph, quantised: Quantised, config: TuneConfig, steps: int) -> None:
        if len(graph.inputs) > 1:
            raise UserError(f"--qat fine-tunes networks of one input, and {graph.name} has {len(graph.inputs)}.")
        self.teacher, self.config, self.steps = graph, config, steps
        self.input_scale, self.output_scale = quantised.inputs[0].scale, quantised.outputs[0].scale
        self.network = FakeQuantised(quantised)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.peak_rate, fused=True)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def update(self, images: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.peak_rate * train.one_cycle(self.step / self.steps, self.config.warmup)
        wanted = torch.from_numpy(self.teacher.outputs_of((images.numpy(),))[0])
        q = (images / self.input_scale).round_().clamp_(-128, 127)
        logits = self.network(q) * self.output_scale
        loss = functional.kl_div(
            functional.log_softmax(logits, 1),
            functional.log_softmax(wanted.flatten(1), 1),
            reduction="batchmean",
            log_target=True,
        )
        if not torch.isfinite(loss):
            raise UserError(f"Fine-tuning diverged in step {self.step + 1}: the loss is {loss.item()}; lower --rate.")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())

    def save(self, path: Path) -> None:
        content = {
            "recipe": self._recipe(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        train.save_state(content, path)

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        content = train.load_state(path)
        if content.get("recipe") != self._recipe():
            raise UserError(
                f"{path} belongs to a run with another recipe; give the same options, or another --work-dir."
            )
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds, self.losses = content["step"], content["seconds"], content["losses"]

    def _recipe(self) -> str:
        scales = [f"{scale:.3g}" for scale in (self.input_scale, *(layer.scale for layer in self.network.layers))]
        return json.dumps([dataclasses.asdict(self.config), self.steps, scales])
