"""VTA's compiler: every program computes what the integer reference does, however the layers are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from integer_networks import (
    JOINT_MODULES,
    POOL,
    VARIETY,
    Shape,
    conv,
    dense,
    depthwise,
    random_input,
    random_network,
)

from tvmflow.integer.network import IntegerNetwork
from tvmflow.spec import UserError
from tvmflow.targets.vta.check import check
from tvmflow.targets.vta.compile import Compiled, compile_network, default_tiling, prepare, untiled
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.emit import Infeasible
from tvmflow.targets.vta.isa import Alu, Gemm, Instruction, Load, Memory, Operation, Store, is_nop, module_of
from tvmflow.targets.vta.layout import ONES, bias_lanes, bias_tiles, ones_at, ones_count, ones_tiles, shared_bias_tiles
from tvmflow.targets.vta.simulate import Machine
from tvmflow.targets.vta.space import choices
from tvmflow.targets.vta.tiles import Tiling

CONFIG = Config()
SMALL = Config(log_block=3, log_inp_buffer=11, log_wgt_buffer=13, log_acc_buffer=12, log_uop_buffer=10)
"""Blocks of 8, and buffers in which next to nothing fits."""


def network(*shapes: Shape, size: int = 9, channels: int = 20, seed: int = 0) -> IntegerNetwork:
    return random_network(
        np.random.default_rng(seed), "power-of-two", shapes=shapes, input_shape=(1, channels, size, size)
    )


def agree(compiled: Compiled, reference: IntegerNetwork) -> bool:
    """Whether every activation of two images is the reference's; the second finds what the first left behind."""
    images = random_input(np.random.default_rng(7), reference.input_shape, 2)
    _, kept = reference.run(images, keep=True)
    check(compiled.executable)
    machine = Machine(compiled.executable)
    for number, image in enumerate(images):
        machine.run({"input": image[None]})
        for layer in reference.layers:
            found = compiled.regions[layer.name].read(machine.state.dram, compiled.executable.config)
            if not np.array_equal(found[0], kept[layer.name][number]):
                return False
    return True


@pytest.mark.parametrize("shapes", [JOINT_MODULES, VARIETY], ids=["joint modules", "variety"])
@pytest.mark.parametrize("version", ["0.0.1", "0.0.2"])
def test_networks(shapes: tuple[Shape, ...], version: str) -> None:
    reference = random_network(np.random.default_rng(1), "power-of-two", shapes=shapes)
    assert agree(compile_network(reference, replace(CONFIG, version=version)), reference)


def test_other_configuration() -> None:
    reference = random_network(np.random.default_rng(2), "power-of-two", shapes=JOINT_MODULES, block=8)
    assert agree(compile_network(reference, SMALL), reference)


CUTS = [
    Tiling(out_blocks=1, rows=1, in_blocks=1),
    Tiling(out_blocks=1, rows=4, in_blocks=2, order="rows", pieces=3),
    Tiling(out_blocks=2, rows=9, in_blocks=1, pieces=5, ahead=2),
    Tiling(out_blocks=3, rows=2, in_blocks=3, buffers=1),
    Tiling(out_blocks=1, rows=5, in_blocks=1, order="rows", ahead=9),
]


@pytest.mark.parametrize("tiling", CUTS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        conv(40),
        conv(33, 3, stride=2),
        depthwise(dilation=5),
        depthwise(stride=2, relu=True),
        Shape(kind="conv", channels=24, kernel=(3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 3)),
    ],
    ids=["pointwise", "convolution", "dilated", "strided", "odd"],
)
def test_cuts(shape: Shape, tiling: Tiling) -> None:
    """Between others, whose values lie in the buffers before and whose stores it waits for."""
    reference = network(depthwise(), shape, conv(20), channels=40)
    assert agree(compile_network(reference, CONFIG, {"layers.1": tiling}), reference)


def test_shifts_beyond_the_hardware() -> None:
    """A shift of more than 15 takes two instructions."""
    reference = network(conv(20), conv(20), channels=300, size=3)
    wide = replace(reference.layers[0], shift=np.full(20, 17, np.int32), bias=np.full(20, 2**23, np.int32))
    reference = replace(reference, layers=(wide, *reference.layers[1:]))
    compiled = compile_network(reference, CONFIG)
    assert agree(compiled, reference)
    assert all(
        it.imm <= 15 for it in compiled.executable.instructions if isinstance(it, Alu) and it.operation.name == "SHR"
    )


@pytest.mark.parametrize(("shift", "bias"), [(29, 2**23), (31, -(2**24)), (20, 2**30), (24, -(2**30))])
def test_large_shifts_and_biases(shift: int, bias: int) -> None:
    """The half that makes a shift of 31 round is 2³⁰; as products of int8 alone it would take 4,438 for each tile."""
    reference = network(conv(20), conv(20), channels=300, size=3)
    biases = np.arange(20) * 12_345 + bias
    wide = replace(reference.layers[0], shift=np.full(20, shift, np.int32), bias=biases.astype(np.int32))
    reference = replace(reference, layers=(wide, *reference.layers[1:]))
    assert prepare(reference, CONFIG)[0].bias_count == 2
    assert agree(compile_network(reference, CONFIG), reference)


CONSTANT = Shape(kind="conv", channels=20, kernel=(1, 2), padding=(0, 1), dilation=(1, 2))
"""Its two taps lie left and right of a map of one column."""


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("bias", [0, 700])
def test_constant_layers_are_layers(kind: str, bias: int) -> None:
    """No tap meets the map, and with a bias of 0 and no shift there is nothing to add."""
    reference = random_network(
        np.random.default_rng(0),
        "power-of-two",
        shapes=(replace(CONSTANT, kind=kind), conv(20)),
        input_shape=(1, 20, 9, 1),
    )
    none = replace(reference.layers[0], bias=np.full(20, bias, np.int32), shift=np.zeros(20, np.int32))
    reference = replace(reference, layers=(none, *reference.layers[1:]))
    works = prepare(reference, CONFIG)
    assert not works[0].taps
    assert not works[0].bias_count
    assert agree(compile_network(reference, CONFIG), reference)
    for tiling in (untiled(works[0], CONFIG), *choices(works[0], CONFIG)):
        assert agree(compile_network(reference, CONFIG, {"layers.0": tiling}), reference)


def test_maps_of_more_than_a_strides_pixels() -> None:
    """Rows of a channel block are 65,536 pixels apart and more, which is beyond an instruction's fields."""
    reference = random_network(
        np.random.default_rng(0),
        "power-of-two",
        shapes=(depthwise(), conv(20, stride=2), conv(20)),
        input_shape=(1, 20, 260, 256),
    )
    assert agree(compile_network(reference, CONFIG), reference)


def test_pools_of_maps_beyond_the_buffer() -> None:
    """Such a map is loaded and summed row by row."""
    reference = network(POOL, dense(10), size=60)
    assert reference.layers[0].input_shape[2] ** 2 > CONFIG.inp_depth
    assert agree(compile_network(reference, CONFIG), reference)


def test_rows_beyond_the_buffers_are_refused_by_name() -> None:
    reference = random_network(np.random.default_rng(0), "power-of-two", shapes=(conv(8),), input_shape=(1, 3, 2, 3000))
    with pytest.raises(UserError, match=r"input has rows of 3,000 pixels; the buffers of .* hold 2,048"):
        compile_network(reference, CONFIG)


def test_no_load_brings_a_whole_buffer() -> None:
    """Chisel's counter of words on their way would wrap: 2,048 INP tiles are 4,096 words of 8 bytes."""
    reference = random_network(
        np.random.default_rng(0), "power-of-two", shapes=(conv(40), conv(20)), input_shape=(1, 30, 32, 32)
    )
    whole = Tiling(out_blocks=1, rows=32, in_blocks=2)
    compiled = compile_network(reference, CONFIG, {"layers.0": whole, "layers.1": whole})
    loads = [it for it in compiled.executable.instructions if isinstance(it, Load) and it.memory == Memory.INP]
    assert max(it.y_size * it.x_size for it in loads) == CONFIG.inp_depth // 2
    assert agree(compiled, reference)


def test_different_shifts_in_a_block_are_refused() -> None:
    reference = network(conv(20))
    layer = replace(reference.layers[0], shift=np.arange(20, dtype=np.int32) % 4 + 6)
    with pytest.raises(UserError, match=r"layers\.0 has more than one shift among 16"):
        compile_network(replace(reference, layers=(layer,)), CONFIG)


def test_other_scheme_is_refused() -> None:
    other = random_network(np.random.default_rng(0), "per-channel", shapes=(conv(8, relu=False),))
    with pytest.raises(UserError, match="power-of-two"):
        compile_network(other, CONFIG)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(Infeasible, match=r"layers\.0 can't be cut"):
        compile_network(network(conv(20), size=64), CONFIG, {"layers.0": Tiling(out_blocks=2, rows=64, in_blocks=2)})


def test_taps_that_read_only_padding_do_not_exist() -> None:
    """Dilated by 5 on a map of 4: only the centre is left; on 9, eight of nine taps read a part of it."""
    small = prepare(network(depthwise(dilation=5), size=4), CONFIG)[0]
    large = prepare(network(depthwise(dilation=5), size=9), CONFIG)[0]
    assert [number for number, _, _ in small.taps] == [4]
    assert small.steps == 2 * 16
    assert large.steps == 2 * (9 + 4 + 4) ** 2


def begun(compiled: Compiled, layer: int) -> int:
    """Accumulators of a layer that are made a constant, or 0, before anything is added."""
    mark, count, kinds = compiled.executable.layers[layer], 0, {Operation.MAX, Operation.MIN}
    before: Instruction | None = None
    for it in compiled.executable.instructions[mark.first : mark.last]:
        if isinstance(it, Gemm) and it.reset:
            count += it.steps
        elif isinstance(it, Gemm) and isinstance(before, Alu) and before.operation in kinds:
            count += before.steps
        before = it if isinstance(it, Gemm | Alu) else before
    return count


@pytest.mark.parametrize("shape", [depthwise(), depthwise(dilation=5), conv(40, 3), conv(33)], ids=str)
def test_outputs_are_added_to_inputs_that_accumulators_hold(shape: Shape) -> None:
    """What ACC holds of the layer before is the input of the same channel and pixel."""
    reference = network(conv(40), shape, channels=40)
    tiling = Tiling(out_blocks=3, rows=9, in_blocks=3)
    compiled = compile_network(reference, CONFIG, {"layers.0": tiling, "layers.1": tiling})
    assert agree(compiled, reference)
    assert begun(compiled, 0) == 3 * 81
    assert begun(compiled, 1) == 0
    other = compile_network(reference, CONFIG, {"layers.0": tiling, "layers.1": replace(tiling, rows=4)})
    assert agree(other, reference)
    assert begun(other, 1) == 3 * 81


def test_lanes_beyond_the_channels_hold_anything() -> None:
    """With one bias for all channels they aren't 0; the next layer has channels there."""
    reference = network(conv(20, relu=False), conv(40), channels=40)
    first = replace(reference.layers[0], bias=np.full(20, 900, np.int32), shift=np.full(20, 5, np.int32))
    reference = replace(reference, layers=(first, *reference.layers[1:]))
    tiling = Tiling(out_blocks=3, rows=9, in_blocks=3)
    for cut in (tiling, replace(tiling, out_blocks=1)):
        assert agree(compile_network(reference, CONFIG, {"layers.0": cut, "layers.1": cut}), reference)


def test_weights_are_loaded_while_loads_would_wait() -> None:
    """Where a layer waits for its input to be stored, the weights of the layers after it are loaded."""
    reference = network(*(conv(64) for _ in range(4)), channels=64, size=12)
    compiled = compile_network(reference, CONFIG)
    loads = [
        number
        for number, it in enumerate(compiled.executable.instructions)
        if isinstance(it, Load) and it.memory == Memory.WGT
    ]
    assert agree(compiled, reference)
    assert loads[-1] < compiled.executable.layers[-1].first


def test_every_other_tile_begins_with_what_is_on_chip() -> None:
    """Nine blocks of 256 pixels don't fit the buffer at once; read in one order, each would be loaded for each tile."""
    reference = network(conv(48), channels=144, size=16)
    compiled = compile_network(reference, CONFIG, {"layers.0": Tiling(out_blocks=1, rows=16, in_blocks=1)})
    loads = [it for it in compiled.executable.instructions if isinstance(it, Load) and it.memory == Memory.INP]
    planes = [it for it in loads if it.x_size == 256]
    assert agree(compiled, reference)
    # of each further tile what the biases' tiles of ones and its own first blocks displace
    assert len(planes) == 9 + 2 * 2


def test_stores_follow_the_alu() -> None:
    """OUT is what the ALU wrote last: nothing else touches the tiles before they are stored."""
    compiled = compile_network(network(conv(40), depthwise(), POOL, dense(10)), CONFIG)
    before = None
    for instruction in compiled.executable.instructions:
        if isinstance(instruction, Store):
            assert isinstance(before, Alu | Store)
        if isinstance(instruction, Alu | Gemm | Store):
            before = instruction


def test_tokens_balance() -> None:
    instructions = compile_network(network(*JOINT_MODULES), CONFIG).executable.instructions
    for module, push, other, pop in (
        ("load", "push_next", "compute", "pop_prev"),
        ("compute", "push_prev", "load", "pop_next"),
        ("compute", "push_next", "store", "pop_prev"),
        ("store", "push_prev", "compute", "pop_next"),
    ):
        pushed = sum(getattr(it, push) for it in instructions if module_of(it) == module)
        popped = sum(getattr(it, pop) for it in instructions if module_of(it) == other)
        assert pushed == popped > 0


def test_single_buffers_transfer_more_in_turns() -> None:
    """With one buffer each load waits for what was computed before it."""
    reference = network(conv(64), size=16, channels=64)
    work = prepare(reference, CONFIG)[0]
    tiling = replace(default_tiling(work, CONFIG), out_blocks=1, rows=4, in_blocks=1)
    loads = {}
    for buffers in (1, 2):
        compiled = compile_network(reference, CONFIG, {"layers.0": replace(tiling, buffers=buffers)})
        assert agree(compiled, reference)
        loads[buffers] = [it for it in compiled.executable.instructions if module_of(it) == "load" and not is_nop(it)]
    waiting = {buffers: sum(it.pop_next for it in them) for buffers, them in loads.items()}
    assert waiting[1] > waiting[2]
    assert {it.sram_base for it in loads[1] if it.memory == Memory.INP} == {0}


def test_biases_as_products() -> None:
    """Any bias, the largest too, is a sum of products of int8."""
    bias = np.array([0, 1, -1, 127, -128, 241_935, -241_936, 2**31 - 2**20, -(2**31) + 2**20], np.int64)
    tiles = bias_tiles(bias, 16)
    assert tiles.dtype == np.int8
    whole = ones_tiles(CONFIG)[ones_at(16, 16), 0]
    products = (tiles.astype(np.int64) @ whole.astype(np.int64)).sum(1).ravel()
    assert np.array_equal(products[: len(bias)], bias)
    assert not products[len(bias) :].any()
    assert ONES == 127


@pytest.mark.parametrize(("most", "lanes"), [(127, 1), (128, 2), (16_129, 2), (16_130, 4), (48_388, 8), (241_935, 16)])
def test_blocks_share_tiles_of_biases(most: int, lanes: int) -> None:
    """As many as a tile has room for; each is multiplied with a tile of ones where its lanes are."""
    bias = np.random.default_rng(most).integers(-most, most + 1, 60)
    bias[7], bias[50] = most, -most
    assert bias_lanes(bias, 16) == lanes
    tiles = shared_bias_tiles(bias, lanes, 16).astype(np.int64)
    each = 16 // lanes
    ones = ones_tiles(CONFIG)[ones_at(lanes, 16) :, 0].astype(np.int64)
    found = np.concatenate([tiles[block // each] @ ones[block % each] for block in range(4)])
    assert len(tiles) == -(-4 // each)
    assert np.array_equal(found[:60], bias)
    assert not found[60:].any()
    assert len(ones_tiles(CONFIG)) == ones_count(16) == ones_at(16, 16) + 1
    assert bias_lanes(np.array([241_936]), 16) is None


def test_pool_with_different_shifts() -> None:
    """The halves that make shifts round differ then, as biases do."""
    reference = network(POOL, channels=48, size=4)
    layer = replace(reference.layers[0], shift=np.repeat(np.array([3, 4, 5], np.int32), 16))
    reference = replace(reference, layers=(layer,))
    assert agree(compile_network(reference, CONFIG), reference)
