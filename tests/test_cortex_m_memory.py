"""The arena of microcontrollers: kernels that work in place, copies that nobody makes, and what checks the plan."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import needs_commands
from integer_networks import VARIETY, Shape, conv, depthwise, random_input, random_network
from test_cortex_m_graphs import assert_same, natively

from tvmflow.integer.frontend import integer_program
from tvmflow.integer.layers import IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.operators import OUTSIDE, Gather
from tvmflow.network.c_interface import c_name
from tvmflow.passes import arena
from tvmflow.passes.lifetimes import Tensor, live_bytes
from tvmflow.pipeline import run_stages
from tvmflow.spec import Program, Target, TensorSpec, VerificationError
from tvmflow.system.toolchain import link, select_linker, tvm_target_dict
from tvmflow.targets import TARGETS
from tvmflow.targets.cortex_m import example, machine, stages
from tvmflow.targets.cortex_m.attributes import ARGUMENTS, IN_PLACE, SCRATCH
from tvmflow.targets.cortex_m.check import check_arena
from tvmflow.targets.cortex_m.compile import compile_object
from tvmflow.targets.cortex_m.options import compiler_options

pytestmark = pytest.mark.packages

BOARDS = ["mps2-an386", "mps3-an547"]
"""A core with DSP instructions, and one with vectors."""


def depthwise_to_a_pixel(height: int, width: int) -> Shape:
    return Shape(kind="depthwise", kernel=(height, width), relu=True)


CHAINS: dict[str, tuple[tuple[Shape, ...], tuple[int, ...]]] = {
    # more and fewer channels than before, on 143 pixels, of which four at a time leave three
    "channels": ((conv(20), conv(7), depthwise(5), conv(33), conv(34, relu=False)), (1, 5, 13, 11)),
    # rows that four divide, and that they don't; an even number of taps; a stride, which isn't in place
    "rows": (
        (
            *(conv(9, 3), conv(12, 5), conv(6, 3, stride=2)),
            Shape(kind="conv", channels=7, kernel=(1, 5), padding=(0, 2), relu=True),
            *(conv(8, 3, relu=False), depthwise(stride=2), conv(3, 3, relu=False)),
        ),
        (1, 3, 14, 12),
    ),
    "variety": (VARIETY, (1, 3, 13, 11)),
    # windows that two rows of pixels meet with columns between them, a row of five pixels, rows of one
    "windows": (
        (
            Shape(kind="conv", channels=6, kernel=(4, 3), stride=(2, 2), padding=(1, 2), relu=True),
            Shape(kind="conv", channels=17, kernel=(3, 3), padding=(2, 4), dilation=(2, 4), relu=True),
            Shape(kind="conv", channels=5, kernel=(2, 3), stride=(3, 1), relu=False),
        ),
        (1, 3, 19, 12),
    ),
    "one column": (
        (
            Shape(kind="conv", channels=9, kernel=(5, 1), stride=(2, 1), padding=(2, 0), relu=True),
            Shape(kind="conv", channels=6, kernel=(3, 1), padding=(4, 0), dilation=(4, 1), relu=False),
        ),
        (1, 7, 23, 1),
    ),
    # more taps than cuts may have code for
    "many taps": ((conv(5), depthwise(7), depthwise(9, stride=2), conv(3, relu=False)), (1, 3, 21, 18)),
    # maps of one pixel, of channels that neither 4 nor 16 divide, and a window that is the whole map
    "one pixel": (
        (
            Shape(kind="conv", channels=19, kernel=(5, 3), relu=True),
            *(conv(37), conv(2), conv(66), conv(13, relu=False)),
        ),
        (1, 3, 5, 3),
    ),
    # depthwise to one pixel, of fewer taps than a vector has lanes and of more
    "one pixel each": ((depthwise_to_a_pixel(4, 5), conv(10, relu=False)), (1, 21, 4, 5)),
    "few taps each": ((conv(22), depthwise_to_a_pixel(3, 1), conv(5, relu=False)), (1, 6, 3, 1)),
}


def drawn(name: str) -> IntegerNetwork:
    shapes, given = CHAINS[name]
    return random_network(np.random.default_rng(3), "per-channel", shapes=shapes, input_shape=given)


def answers(network: IntegerNetwork, board: Target, folder) -> tuple[Program, np.ndarray, np.ndarray]:
    """What the board's code makes of three inputs, and what is right."""
    import tvm

    program = integer_program(network)
    with tvm.target.Target(tvm_target_dict(board)):
        made = run_stages(program, board)
    library = compile_object(made, board, folder, select_linker(board))
    inputs = random_input(np.random.default_rng(1), network.input_shape, 3)
    inputs[0], inputs[1] = -128, 127
    expected = network.run(inputs)
    vectors = [(row[None],) for row in inputs]
    done = machine.run(library, board, c_name(network.name), vectors, made.outputs)
    return made, np.concatenate([output for (output,) in done.outputs]), expected


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", CHAINS)
def test_kernels_in_place_are_exact(tmp_path, monkeypatch, name, board):
    """All that can be: also those that a smaller arena isn't worth."""
    needs_commands(machine.QEMU)
    monkeypatch.setattr(stages, "_spared", lambda functions, frugal: {**functions, **frugal})
    made, found, expected = answers(drawn(name), TARGETS[board], tmp_path)
    # of few layers, some of which have strides, and the last of which writes into the caller's memory
    least = {
        "windows": 1,
        "one column": 0,
        "many taps": 2,
        "one pixel": 0,
        "one pixel each": 0,
        "few taps each": 0,
    }.get(name, 3)
    assert sum(int(func.attrs[IN_PLACE]) >= 0 for func in made.module.functions.values()) >= least
    np.testing.assert_array_equal(found, expected)


def with_copies(network: IntegerNetwork, border: int, interleaved: bool) -> IntegerNetwork:
    """The network with borders of another number, made by layers of their own, and with its input as H×W×C."""
    layers: list[IntegerLayer | IntegerNode] = []
    (port,), before = network.inputs, "int8"
    for number, layer in enumerate(network.layers):
        turned = interleaved and number == 0
        if layer.kind == "conv2d" and (any(layer.padding) or turned):
            _, channels, height, width = shape = layer.input_shape
            places = np.arange(channels * height * width, dtype=np.int32)
            shape = (1, height, width, channels) if turned else shape
            plain = np.moveaxis(places.reshape(shape), 3, 1) if turned else places.reshape(shape)
            top, left, below, right = layer.padding
            plain = np.pad(plain, ((0, 0), (0, 0), (top, below), (left, right)), constant_values=OUTSIDE)
            lowest, highest = (0, 255) if before == "uint8" else (-128, 127)
            node = IntegerNode(
                name=f"{layer.name} copy",
                modules=(f"{layer.name} copy",),
                operator=Gather(places=np.ascontiguousarray(plain), outside=border),
                inputs=layer.inputs,
                minimum=lowest,
                maximum=highest,
                dtype=before,
                scale=1.0,
                input_shapes=(shape,),
                output_shape=plain.shape,
            )
            layers.append(node)
            layer = replace(layer, padding=(0, 0, 0, 0), inputs=(node.name,), input_shape=plain.shape)
            port = replace(port, shape=shape) if turned else port
        layers.append(layer)
        before = layer.dtype
    return replace(network, inputs=(port,), layers=tuple(layers))


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize(("name", "interleaved"), [("channels", False), ("rows", True), ("variety", True)])
def test_borders_and_layouts_need_no_copy(tmp_path, monkeypatch, name, interleaved, board):
    needs_commands(machine.QEMU)
    monkeypatch.setattr(stages, "_spared", lambda functions, frugal: {**functions, **frugal})
    network = with_copies(drawn(name), 5, interleaved)
    made, found, expected = answers(network, TARGETS[board], tmp_path)
    assert "node" not in {layer.schedule for layer in made.layers}
    assert {module for layer in network.layers for module in layer.modules} == {
        module for layer in made.layers for module in layer.modules
    }
    np.testing.assert_array_equal(found, expected)


def test_a_copy_that_others_read_stays(tmp_path):
    """An output of the network is one."""
    network = with_copies(drawn("channels"), 5, interleaved=False)
    copy = next(layer for layer in network.layers if isinstance(layer, IntegerNode))
    output = replace(network.outputs[0], name="copy", source=copy.name, shape=copy.output_shape)
    both = replace(network, outputs=(*network.outputs, output))
    program = stages.choose_kernels(integer_program(both), TARGETS["mps2-an386"])
    assert [layer.schedule for layer in program.layers].count("node") == 1


def placed(name: str = "channels", board: str = "mps2-an386") -> Program:
    target = TARGETS[board]
    return stages.place_tensors(stages.choose_kernels(integer_program(drawn(name)), target), target)


@pytest.mark.parametrize(("name", "board"), [*itertools.product(CHAINS, BOARDS)])
def test_arenas_are_as_small_as_what_lives_together(name, board):
    program = placed(name, board)
    assert program.memory["activations_bytes"] == stages.least_arena(program)


@pytest.mark.parametrize("name", CHAINS)
def test_portable_c_is_exact(tmp_path, name):
    """Of the same layers, for a core of which nothing is known."""
    program = integer_program(drawn(name))
    found = natively(program, tmp_path, [vector.inputs for vector in program.vectors])
    assert_same(found, [vector.outputs for vector in program.vectors])


def test_memory_costs_no_instructions_in_vain(monkeypatch):
    """Each kernel that copies something first, for memory alone, makes the arena smaller."""
    program = placed("channels", "mps2-an386")
    functions = stages.functions_of(program)
    plain, frugal = kernels_for_memory(monkeypatch, "channels", "mps2-an386")
    taken = [kernel for kernel in frugal if int(functions[kernel].attrs[IN_PLACE]) >= 0]
    assert taken
    for kernel in taken:
        without = {**functions, kernel: plain[kernel]}
        assert stages._arena_bytes(without) > program.memory["activations_bytes"]


@pytest.mark.parametrize("name", CHAINS)
def test_vectors_copy_nothing_for_memory_alone(monkeypatch, name):
    """What they copy they need anyway, so that there is nothing to choose."""
    _, frugal = kernels_for_memory(monkeypatch, name, "mps3-an547")
    assert frugal == {}


@pytest.mark.parametrize("board", BOARDS)
def test_windows_are_in_place_at_no_cost(board):
    """Convolutions that keep the size of the map hold the rows that they need of it, wherever the result lies."""
    functions = stages.functions_of(placed("rows", board))
    assert [int(func.attrs[IN_PLACE]) for func in functions.values()].count(0) >= 3


def kernels_for_memory(monkeypatch, name: str, board: str) -> tuple[dict, dict]:
    """The functions if memory cost nothing, and those that take less memory and more instructions."""
    found: list = []
    monkeypatch.setattr(stages, "_spared", lambda functions, frugal: found.append((functions, frugal)) or functions)
    stages.choose_kernels(integer_program(drawn(name)), TARGETS[board])
    ((plain, frugal),) = found
    return plain, frugal


def test_places_are_shared():
    """In place, a result may be larger than what it overwrites: that much is needed only from then on."""
    tensors = [
        Tensor(name="a", bytes=32, first=0, last=1),
        Tensor(name="b", bytes=96, first=1, last=2, place="a"),
        Tensor(name="c", bytes=64, first=0, last=0),
        Tensor(name="d", bytes=16, first=2, last=3),
    ]
    assert live_bytes(tensors, 4) == [96, 96, 112, 16]
    offsets, size = arena.pack(tensors)
    assert offsets["a"] == offsets["b"]
    assert size == arena.least(tensors) == 112


def test_random_plans_never_overlap():
    rng = np.random.default_rng(0)
    for _ in range(60):
        tensors = []
        for number in range(int(rng.integers(1, 30))):
            first = int(rng.integers(0, 12))
            place = f"t{rng.integers(0, number)}" if number and rng.random() < 0.3 else ""
            last, size = first + int(rng.integers(0, 5)), int(rng.integers(1, 300))
            tensors.append(Tensor(name=f"t{number}", bytes=size, first=first, last=last, place=place))
        offsets, size = arena.pack(tensors)
        assert arena.least(tensors) <= size
        for one, other in itertools.combinations(tensors, 2):
            if one.lies_at == other.lies_at:
                assert offsets[one.name] == offsets[other.name]
            elif one.meets(other):
                apart = offsets[one.name] + one.bytes <= offsets[other.name]
                assert apart or offsets[other.name] + other.bytes <= offsets[one.name]
        assert max(offsets[tensor.name] + tensor.bytes for tensor in tensors) <= size


def _moved(program: Program, kernel: int, argument: int, to: str) -> Program:
    """One call of which a pointer points elsewhere."""
    name = program.layers[kernel].kernel
    arguments = list(program.module[name].attrs[ARGUMENTS])
    arguments[argument] = to
    functions = stages.functions_of(program)
    functions[name] = functions[name].with_attr(ARGUMENTS, arguments)
    check_arena(functions, program.memory["activations_bytes"])
    return program


def test_the_second_opinion_finds_what_is_wrong():
    program = placed("rows")
    size = program.memory["activations_bytes"]
    functions = stages.functions_of(program)
    check_arena(functions, size)
    with pytest.raises(VerificationError, match=rf"of an arena of {size - 16}, in steps of 16"):
        check_arena(functions, size - 16)
    with pytest.raises(VerificationError, match="isn't in the arena any more where it is read"):
        check_arena(dict(reversed(functions.items())), size)
    first = next(iter(functions.values()))
    assert first.attrs[SCRATCH], "what the next lines move"
    with pytest.raises(VerificationError, match="overlap"):
        _moved(program, 0, 2, str(first.attrs[ARGUMENTS][1]))
    with pytest.raises(VerificationError, match="in steps of 16"):
        _moved(program, 0, 1, "8")


@pytest.mark.parametrize("depth", [8, 256, 2048])
def test_the_stack_is_measured_to_the_word(tmp_path, depth):
    """From where the caller's stack ends to the bound; what is less than the measuring itself takes is that much."""
    needs_commands(machine.QEMU)
    board = TARGETS["mps2-an386"]
    source = tmp_path / "probe.s"
    source.write_text(
        ".syntax unified\n.thumb\n.text\n.globl probe_run\n.thumb_func\n.type probe_run, %function\nprobe_run:\n"
        f"  ldrb r2, [r0]\n  strb r2, [r1]\n  movw r3, #{depth}\n  sub sp, sp, r3\n  str r3, [sp]\n"
        "  add sp, sp, r3\n  bx lr\n.size probe_run, . - probe_run\n"
    )
    linker = select_linker(board)
    link(linker, tmp_path / "probe.o", [source], (*compiler_options(board, linker), "-c"))
    byte = TensorSpec(name="byte", shape=(1, 1), dtype="int8")
    done = machine.run(tmp_path / "probe.o", board, "probe", [(np.array([[7]], np.int8),)], [byte])
    assert done.outputs[0][0] == 7
    assert done.stack_bytes == depth if depth > 60 else done.stack_bytes <= 80


@pytest.mark.parametrize(
    ("board", "flash_bytes", "where"),
    [
        ("stm32h743", 6_000, "chip's own flash"),
        ("stm32h743", 3_290_000, "external flash"),
        ("imx-rt1062", 6_000, "external flash"),  # the chip has none
        ("stm32u5a9", 3_290_000, "chip's own flash"),
    ],
)
def test_weights_go_where_they_fit(board, flash_bytes, where):
    program = integer_program(drawn("channels"))
    assert f"put it into the {where}" in example.usage("net", program, TARGETS[board], flash_bytes)
