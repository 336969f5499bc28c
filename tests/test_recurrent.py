"""Layers with steps: one kernel for each direction, and PyTorch's answers; what stays unrolled."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm
from test_operators import answers, imported
from torch import nn
from tvm import relax

from tvmflow.pipeline import CPU_KERNELS, run_stages
from tvmflow.schedules.cpu import recurrent
from tvmflow.spec import Program, Target
from tvmflow.system.toolchain import tvm_target_dict
from tvmflow.targets import TARGETS
from tvmflow.targets.cpu.passes.roll_steps import roll_steps

HOST = TARGETS["host"]
ARM = TARGETS["raspberry-pi-4b"]
SHARED = replace(HOST, cpu=replace(HOST.cpu, cores=4))
"""A computer whose threads share what is worth it."""

ROLLED: dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...], int]] = {
    "states given, two layers, both directions": (
        nn.LSTM(6, 20, 2, bidirectional=True),
        ((10, 1, 6), (4, 1, 20), (4, 1, 20)),
        4,
    ),
    "no biases, three at a time": (nn.GRU(5, 7, bias=False, batch_first=True), ((3, 9, 5),), 1),
    "one unit": (nn.RNN(3, 1, nonlinearity="relu"), ((8, 1, 3),), 1),
    "neither batch nor vectors that fit": (nn.RNN(3, 33), ((12, 3),), 1),
    "wide": (nn.GRU(4, 154), ((7, 1, 4),), 1),
}
"""Networks, the shapes of their inputs, and in how many kernels their steps are."""
UNROLLED = {
    "projected": (nn.LSTM(6, 8, proj_size=3), (9, 1, 6)),
    "few steps": (nn.LSTM(6, 8), (4, 1, 6)),
    "many at a time": (nn.GRU(6, 8), (9, 5, 6)),
}


class Together(nn.Module):
    """Several networks as one, of whose inputs each takes its own; a state that is given is a tuple of an LSTM's."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network for network, _, _ in ROLLED.values())
        self.counts = [len(shapes) for _, shapes, _ in ROLLED.values()]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results, given = [], list(inputs)
        for network, count in zip(self.networks, self.counts, strict=True):
            own, given = given[:count], given[count:]
            made, states = network(own[0], tuple(own[1:])) if count > 1 else network(own[0])
            results += [made, *(states if isinstance(states, tuple) else (states,))]
        return tuple(results)


def program_of(network: nn.Module, inputs: list[np.ndarray]) -> Program:
    """A network as `roll_steps` gets it."""
    module = imported(network.eval(), inputs)
    program = Program(name="network", source="", module=module, inputs=(), outputs=(), vectors=(), parameters=0)
    for stage in CPU_KERNELS[: CPU_KERNELS.index(roll_steps)]:
        program = stage(program, HOST)
    return program


@functools.cache
def together() -> tuple[Together, list[np.ndarray], Program]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shapes = [shape for _, own, _ in ROLLED.values() for shape in own]
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    network = Together()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network, inputs, program_of(network, inputs)


@pytest.mark.parametrize("target", [HOST, SHARED, ARM], ids=["host", "threads", "as on ARM"])
def test_steps_are_one_kernel_with_pytorchs_answers(target: Target) -> None:
    network, inputs, program = together()
    rolled = roll_steps(program, target)
    assert roll_steps(rolled, HOST) is rolled  # what follows is of this board's loops
    made = run_stages(rolled, HOST)
    assert sum(layer.schedule == "recurrent" for layer in made.layers) == sum(count for _, _, count in ROLLED.values())
    described = tvm.target.Target(tvm_target_dict(HOST))
    with described:
        machine = relax.VirtualMachine(relax.build(made.module, described, relax_pipeline=None), tvm.cpu())
    for ours, theirs in zip(machine["main"](*map(tvm.runtime.tensor, inputs)), answers(network, inputs), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6)


def test_multiply_adds_stay_those_of_the_network() -> None:
    _, _, program = together()
    rolled, unrolled = (run_stages(program, target).layers for target in (HOST, _without_rule()))
    assert sum(layer.macs for layer in rolled) == sum(layer.macs for layer in unrolled)
    assert len(rolled) < len(unrolled) / 3


def _without_rule() -> Target:
    return replace(HOST, schedules=tuple(name for name in HOST.schedules if name != "recurrent"))


@pytest.mark.parametrize("name", UNROLLED)
def test_others_stay_unrolled(name: str) -> None:
    network, shape = UNROLLED[name]
    program = program_of(network, [np.zeros(shape, np.float32)])
    assert roll_steps(program, HOST) is program


def test_a_state_that_another_step_doesnt_continue_ends_a_chain() -> None:
    """Of two runs over the same inputs neither goes on where the other stopped: each has its own."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _, state = self.gru(x)
            return self.gru(x, state)[0]

    made = run_stages(program_of(Twice(), [np.zeros((6, 1, 4), np.float32)]), HOST)
    assert sum(layer.schedule == "recurrent" for layer in made.layers) == 2


@pytest.mark.parametrize("target", [HOST, ARM], ids=["host", "ARM"])
def test_weights_lie_as_they_are_read(target: Target) -> None:
    """By tiles of units, of which the last begins early."""
    step = next(func for var, func in together()[2].module.functions.items() if var.name_hint.startswith("lstm_step"))
    form = recurrent.Recurrence(step=step, first=0, stride=1, count=9, has_bias=True, carried=(1,))
    weight = np.arange(20 * 80, dtype=np.float32).reshape(20, 80)
    packed = recurrent.pack(weight, form, target)
    begins = [*range(0, 20 - packed.shape[3] + 1, packed.shape[3]), 20 - packed.shape[3]]
    for tile, begin in zip(packed, begins, strict=False):
        rows = weight.reshape(20, 4, 20)[:, :, begin : begin + packed.shape[3]]
        np.testing.assert_array_equal(tile, rows)
