"""Sums that are rounded two times on microcontrollers: by one product where nothing can overflow, and dead channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import needs_commands
from test_cortex_m_memory import BOARDS, answers

from tvmflow.integer.layers import IntegerLayer
from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.reference import accumulate, requantize
from tvmflow.schedules.cortex_m._kernel import rounds_shortly, settled
from tvmflow.targets import TARGETS
from tvmflow.targets.cortex_m import machine

pytestmark = pytest.mark.packages

CHANNELS, OUTPUTS, SIZE = 11, 9, 5


def layer(shifts: list[int], dense: bool = False, zero_point: int = -7, **more) -> IntegerLayer:
    """Of the scheme that rounds two times, with a shift for each output channel in turn."""
    rng = np.random.default_rng(len(shifts))
    kernel, size = ((1, 1), (1, 1)) if dense else ((3, 3), (SIZE, SIZE))
    shift = np.array([shifts[number % len(shifts)] for number in range(OUTPUTS)], np.int32)
    return IntegerLayer(
        name="layer",
        modules=("layer",),
        kind="dense" if dense else "conv2d",
        inputs=("x",),
        weight=rng.integers(-127, 128, (OUTPUTS, CHANNELS, *kernel), np.int8),
        bias=rng.integers(-3000, 3000, OUTPUTS).astype(np.int32),
        padding=(0, 0) if dense else (1, 1),
        multiplier=rng.integers(1 << 30, (1 << 31) - 1, OUTPUTS).astype(np.int32),
        shift=shift,
        minimum=-128,
        maximum=127,
        dtype="int8",
        scale=1.0,
        zero_point=zero_point,
        input_shape=(1, CHANNELS, *size),
        output_shape=(1, OUTPUTS, *size),
        **more,
    )


def network_of(one: IntegerLayer) -> IntegerNetwork:
    given = Port(name="x", shape=one.input_shape, scale=1.0, dtype="int8")
    made = Port(name="y", shape=one.output_shape, scale=1.0, zero_point=one.zero_point, dtype="int8", source=one.name)
    return IntegerNetwork(name="rounded", scheme="tflite", inputs=(given,), outputs=(made,), layers=(one,))


CASES = {
    "to the right": [-8, -9, -11],
    "some not shifted": [0, -8, -1],
    "to the left": [1, -9, 0],
    "far": [-22, -9, -25],
    "as far as can be": [-31, 4, -30],
}


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_all_shifts_are_exact(tmp_path, name, dense, board):
    needs_commands(machine.QEMU)
    _, found, expected = answers(network_of(layer(CASES[name], dense)), TARGETS[board], tmp_path)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["to the right", "some not shifted"])
def test_shifts_to_the_right_take_one_product(name):
    assert rounds_shortly(layer(CASES[name]))


def test_shifts_to_the_left_do_not():
    assert not rounds_shortly(layer(CASES["to the left"]))


def test_sums_whose_double_overflows_do_not():
    one = layer([-8])
    assert not rounds_shortly(replace(one, bias=np.full(OUTPUTS, 1 << 30, np.int32)))


def dead() -> IntegerLayer:
    """Every second channel has next to no scale, and a bias that makes up for it, as training leaves them."""
    one = layer([-9])
    is_dead = np.arange(OUTPUTS) % 2 == 0
    return replace(
        one,
        weight=np.where(is_dead[:, None, None, None], np.sign(one.weight), one.weight).astype(np.int8),
        bias=np.where(is_dead, 1_073_741_000, one.bias).astype(np.int32),
        shift=np.where(is_dead, -27, one.shift).astype(np.int32),
    )


def test_dead_channels_lose_their_weights_and_stay_what_they_are():
    one = dead()
    rng = np.random.default_rng(4)
    inputs = rng.integers(-128, 128, (20, *one.input_shape[1:]), np.int8)
    simpler = settled(one, "int8")
    assert [bool(weights.any()) for weights in simpler.weight] == [number % 2 == 1 for number in range(OUTPUTS)]
    expected = requantize(one, accumulate(one, inputs))
    np.testing.assert_array_equal(requantize(simpler, accumulate(simpler, inputs)), expected)


@pytest.mark.parametrize("shift", [-31, -30, -22])
def test_what_is_shifted_away_is_the_zero_point(shift):
    simpler = settled(layer([shift]), "int8")
    assert (simpler.weight.any(), simpler.bias.any()) == (False, False)


def test_dead_channels_no_longer_keep_the_others_from_one_product():
    assert (rounds_shortly(dead()), rounds_shortly(settled(dead(), "int8"))) == (False, True)


@pytest.mark.parametrize("board", BOARDS)
def test_dead_channels_are_exact(tmp_path, board):
    needs_commands(machine.QEMU)
    _, found, expected = answers(network_of(dead()), TARGETS[board], tmp_path)
    np.testing.assert_array_equal(found, expected)
