"""VTA's compiler on graphs: every operator by itself, random graphs, and networks as users bring them."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import ROOT
from imported import quantised_stranger
from vta_graphs import (
    MOVES,
    Drawing,
    bordered,
    depth_to_space,
    nearest,
    random_graph,
    shuffled,
    space_to_depth,
)

from tvmflow.bundles.build import build
from tvmflow.integer import file
from tvmflow.integer.frontend import graphless_program
from tvmflow.integer.network import IntegerNetwork
from tvmflow.report import collect
from tvmflow.report.survey import survey
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS
from tvmflow.targets.vta import moves, semantics, simulate, timing
from tvmflow.targets.vta.bounds import Bounds
from tvmflow.targets.vta.check import check
from tvmflow.targets.vta.compile import Compiled, compile_network, default_tiling, prepare, untiled
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.emit import Infeasible
from tvmflow.targets.vta.isa import Alu, Operation
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.semantics import State
from tvmflow.targets.vta.tiles import Tiling
from tvmflow.tune import command as tuning
from tvmflow.tune.apply import find_records

CONFIG = Config()
SMALL = Config(log_block=3, log_inp_buffer=11, log_wgt_buffer=13, log_acc_buffer=12, log_uop_buffer=10)
"""Blocks of 8, and buffers in which next to nothing fits."""

SEED = int(os.environ.get("TVMFLOW_VTA_SEED", "0"))
GRAPHS = int(os.environ.get("TVMFLOW_GRAPHS", "200"))


def drawing(*shapes: tuple[int, int, int], seed: int = 0, block: int = 16) -> tuple[Drawing, list[str]]:
    drawn = Drawing(rng=np.random.default_rng(seed), block=block)
    return drawn, [drawn.input(*shape) for shape in shapes]


def wrong_layers(network: IntegerNetwork, compiled: Compiled, seed: int = 7) -> list[str]:
    """The layers of which an activation isn't the reference's, for two inputs; the second finds what the first left."""
    config, rng = compiled.executable.config, np.random.default_rng(seed)
    check(compiled.executable)
    state = State(config=config, dram=np.full(compiled.executable.memory_bytes, simulate.POWER_UP, np.uint8))
    state.dram[: compiled.executable.image.size] = compiled.executable.image
    for name in ("uop", "inp", "wgt", "acc", "out"):
        getattr(state, name).view(np.uint8).fill(simulate.POWER_UP)
    found = set()
    for _ in range(2):
        inputs = [rng.integers(-128, 128, port.shape).astype(np.int8) for port in network.inputs]
        outputs, kept = network.run_kept(tuple(inputs))
        for region, array in zip(compiled.executable.inputs, inputs, strict=True):
            region.write(state.dram, array.reshape(region.shape), config)
        simulate.run(compiled.executable.instructions, state)
        found |= {
            layer.name
            for layer in network.layers
            if not np.array_equal(compiled.regions[layer.name].read(state.dram, config), kept[layer.name])
        }
        for region, array in zip(compiled.executable.outputs, outputs, strict=True):
            assert np.array_equal(region.read(state.dram, config).reshape(array.shape), array)
    return sorted(found)


def compiled_exactly(network: IntegerNetwork, config: Config = CONFIG, **tilings: Tiling) -> Compiled:
    compiled = compile_network(network, config, tilings)
    assert wrong_layers(network, compiled) == []
    return compiled


SIZES = [(1, 1, 1), (16, 5, 7), (19, 6, 3), (40, 9, 9), (3, 33, 31)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize(
    ("factors", "shift"),
    [((1, 1), 0), ((1, -1), 1), ((2, 64), 3), ((-1, 128), 8), ((4096, 1), 13), ((1 << 20, -3), 21), ((1, 2, 4), 2)],
    ids=str,
)
def test_sum(shape: tuple[int, int, int], factors: tuple[int, ...], shift: int) -> None:
    drawn, names = drawing(*[shape] * len(factors))
    compiled_exactly(drawn.network(drawn.add(*names, factors=factors, shift=shift)))


def test_sum_with_itself_and_of_many() -> None:
    drawn, (first, second) = drawing((20, 4, 5), (20, 4, 5))
    twice = drawn.add(first, first, factors=(1, 2), shift=1, limits=(0, 100))
    compiled_exactly(drawn.network(drawn.add(twice, second, twice, second, first, factors=(1, 2, 4, 1, -8), shift=4)))


@pytest.mark.parametrize("shape", [(20, 1, 1), (1, 5, 6), (1, 1, 1), (20, 5, 1), (20, 1, 6)], ids=str)
def test_sum_broadcasts(shape: tuple[int, int, int]) -> None:
    drawn, (first, second) = drawing((20, 5, 6), shape)
    compiled_exactly(drawn.network(drawn.add(second, first, factors=(-2, 1), shift=1)))


def test_largest_shift_of_a_sum() -> None:
    """A half of 2^14 is what an accumulator can begin with; beyond, the ALU adds 1 before the last bit is shifted."""
    for shift in (15, 16, 20):
        drawn, names = drawing((5, 3, 3), (5, 3, 3))
        compiled_exactly(drawn.network(drawn.add(*names, factors=(127, 100), shift=shift)))


WINDOWS = [
    {"kernel": (2, 2), "stride": (2, 2)},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)},
    {"kernel": (3, 3), "padding": (1, 1, 1, 1)},
    {"kernel": (3, 2), "stride": (1, 2), "padding": (2, 0, 0, 1)},
    {"kernel": (1, 1), "stride": (2, 3)},
    {"kernel": (2, 3), "dilation": (3, 2), "padding": (1, 0, 2, 3)},
    {"kernel": (5, 5), "stride": (1, 1), "padding": (2, 2, 2, 2), "limits": (0, 90)},
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", [(16, 7, 9), (37, 8, 6), (3, 30, 31)], ids=str)
def test_max_pool(shape: tuple[int, int, int], window: dict) -> None:
    drawn, (source,) = drawing(shape)
    compiled = compiled_exactly(drawn.network(drawn.max_pool(source, **window)))
    compared = [it for it in compiled.executable.instructions if isinstance(it, Alu) and not it.use_imm]
    assert all(it.operation == Operation.MAX for it in compared)


def test_whole_blocks_are_concatenated_where_they_lie() -> None:
    drawn, (source,) = drawing((20, 5, 5))
    parts = [drawn.conv(source, 32), drawn.conv(source, 16, relu=True), drawn.conv(source, 5)]
    joined = drawn.concat(*parts)
    compiled = compiled_exactly(drawn.network(drawn.conv(joined, 8), parts[1]))
    mark = next(mark for mark in compiled.executable.layers if mark.name == joined)
    assert mark.first == mark.last


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concat(axis: int) -> None:
    """Blocks that begin in the middle of another, and whole ones that are clipped or read twice, are copied."""
    drawn, (source,) = drawing((32, 4, 6))
    parts = [source, drawn.conv(source, 32), source, drawn.conv(source, 32, relu=True)]
    if axis == 1:
        parts.insert(1, drawn.conv(source, 7))
    clipped = drawn.concat(*parts, axis=axis, limits=(-128, 60))
    compiled_exactly(drawn.network(drawn.concat(clipped, clipped, axis=axis), drawn.concat(*parts, axis=axis)))


GATHERS = {
    "slice in a block": lambda x: x[:, 3:9],
    "slice of blocks": lambda x: x[:, 16:32],
    "channel shuffle": lambda x: shuffled(x, 4),
    "reversed": lambda x: x[:, ::-1],
    "repeated channels": lambda x: x.repeat(2, 1),
    "stride": lambda x: x[:, :, ::2, 1::3],
    "border": lambda x: bordered(x, (1, 2), (2, 1), (0, 3)),
    "borders cut away": lambda x: bordered(x[:, :, 1:], (0, 0), (0, 1), (1, 0)),
    "nearest": lambda x: nearest(x, 3),
    "flipped": lambda x: x[:, :, ::-1, ::-1],
    "rolled": lambda x: np.roll(x, (1, 2), (2, 3)),
    "reflected": lambda x: np.pad(x, ((0, 0), (0, 0), (2, 2), (1, 1)), "reflect"),
    "pixel shuffle": depth_to_space,
    "pixel unshuffle": space_to_depth,
    "map to channels": lambda x: x.reshape(1, -1, 1, 1),
    "rows to channels": lambda x: x.reshape(1, -1, 1, x.shape[3]),
    "none of the map": lambda x: bordered(x[:, :, :1, :1], (0, 0), (4, 0), (0, 4)),
}


@pytest.mark.parametrize("name", GATHERS)
def test_gather(name: str) -> None:
    drawn, (source,) = drawing((36, 6, 4))
    moved = drawn.gather(drawn.conv(source, 36), GATHERS[name])
    compiled_exactly(drawn.network(moved, drawn.add(moved, moved, factors=(1, 1), shift=1)))


def test_slices_of_blocks_are_not_copied() -> None:
    drawn, (source,) = drawing((40, 3, 3))
    halves = [drawn.gather(source, lambda x: x[:, :32]), drawn.gather(source, lambda x: x[:, 32:])]
    compiled = compiled_exactly(drawn.network(*(drawn.conv(half, 8) for half in halves), *halves))
    works = [work for work in compiled.works if isinstance(work, NodeWork)]
    assert [work.blocks for work in works] == [(), ()]


def test_borders_of_four_sizes() -> None:
    drawn, (source,) = drawing((20, 7, 6))
    whole = drawn.conv(source, 17, (3, 3), (2, 1), (0, 2, 1, 0))
    compiled_exactly(drawn.network(drawn.conv(whole, 0, (3, 2), (1, 1), (2, 0, 1, 1))))


def test_several_inputs_outputs_and_readers() -> None:
    """An inner tensor is an output, too, one output is given twice, and one input is read by nobody."""
    drawn, (first, second, _) = drawing((3, 8, 8), (20, 8, 8), (1, 2, 2))
    wide = drawn.conv(first, 20, (3, 3), padding=(1, 1, 1, 1))
    both = drawn.add(wide, second, factors=(1, 1), shift=1)
    compiled = compiled_exactly(drawn.network(drawn.max_pool(both, (2, 2), (2, 2)), wide, both, both))
    assert [region.name for region in compiled.executable.inputs] == [first, second, "input-2"]


def test_layer_without_live_taps() -> None:
    """Its outputs are the bias."""
    drawn, (source,) = drawing((16, 1, 1))
    outside = drawn.conv(source, 16, (1, 1), (2, 2), (2, 0, 0, 0))
    cut = drawn.gather(outside, lambda x: x[:, :, :1])
    compiled_exactly(drawn.network(cut))


def random_tilings(network: IntegerNetwork, config: Config, rng: random.Random) -> Mapping[str, Tiling]:
    """Others than the defaults for some of the layers without weights."""
    chosen = {}
    for work in prepare(network, config):
        if isinstance(work, NodeWork) and work.blocks and rng.random() < 0.5:
            chosen[work.layer.name] = Tiling(
                out_blocks=rng.randint(1, 3),
                rows=rng.randint(1, work.target.shape[1]),
                in_blocks=rng.randint(1, 3),
                pieces=rng.randint(1, 4),
                buffers=rng.randint(1, 2),
            )
    return chosen


@pytest.mark.parametrize("part", range(4))
def test_random_graphs(part: int) -> None:
    """Every activation is the reference's, whatever the tilings, and no layer is faster than its bound."""
    found = 0
    for seed in range(SEED + part, SEED + GRAPHS, 4):
        config = SMALL if seed % 8 < 4 else CONFIG
        network, rng = random_graph(seed, config.block), random.Random(seed)
        try:
            compiled = compile_network(network, config, random_tilings(network, config, rng))
        except Infeasible:  # tilings are drawn without a look at the buffers
            compiled = compile_network(network, config)
        assert wrong_layers(network, compiled, seed) == [], f"seed {seed}"
        for timed, work in zip(
            timing.simulate(compiled.executable, timing.Hardware()).layers, compiled.works, strict=True
        ):
            assert max(0, timed.end - timed.begin) >= Bounds.of(work, 8).least, f"seed {seed}: {work.layer.name}"
        found += len(network.layers)
    assert found > GRAPHS / 4 * 3


@pytest.mark.parametrize("seed", range(SEED, SEED + 6))
def test_the_oracle_computes_the_same(seed: int) -> None:
    """The simulators agree on the instructions that graphs need, two tiles of the ALU above all."""
    network = random_graph(seed, SMALL.block)
    executable = compile_network(network, SMALL).executable
    rng, states = np.random.default_rng(seed), []
    memory = np.zeros(executable.memory_bytes, np.uint8)
    memory[: executable.image.size] = executable.image
    for region in executable.inputs:
        region.write(memory, rng.integers(-128, 128, region.shape).astype(np.int8), SMALL)
    for run in (semantics.run, simulate.run):
        states.append(State(config=SMALL, dram=memory.copy()))
        run(executable.instructions, states[-1])
    assert np.array_equal(states[0].dram, states[1].dram)


def test_untiled() -> None:
    """One block after the other, in single buffers."""
    network = random_graph(3, CONFIG.block)
    works = prepare(network, CONFIG)
    compiled = compile_network(network, CONFIG, {work.layer.name: untiled(work, CONFIG) for work in works})
    assert wrong_layers(network, compiled) == []


def test_maps_larger_than_the_buffers_are_cut() -> None:
    drawn, (source,) = drawing((16, 70, 66))
    pooled = drawn.max_pool(source, (3, 3), (2, 2), (1, 1, 1, 1))
    total = drawn.add(source, source, factors=(1, 2), shift=2)
    network = drawn.network(pooled, total)
    works = prepare(network, CONFIG)
    assert all(default_tiling(work, CONFIG).rows < work.target.shape[1] for work in works)
    compiled_exactly(network)


KERNELS = {
    "resnet8": {"vta_add": 3, "vta_convolution": 9, "vta_pool": 1, "vta_dense": 1},
    "squeezenet": {"vta_concat": 2, "vta_max_pool": 2, "vta_convolution": 8, "vta_pool": 1},
    "inception": {"vta_concat": 1, "vta_max_pool": 2, "vta_convolution": 7, "vta_pool": 1, "vta_dense": 1},
    "densenet": {"vta_concat": 3, "vta_convolution": 8, "vta_depthwise": 6, "vta_pool": 1, "vta_dense": 1},
    "vgg_bn": {"vta_max_pool": 3, "vta_convolution": 4, "vta_dense": 1},
    "mobilenet_v2": {"vta_add": 1, "vta_convolution": 6, "vta_depthwise": 2, "vta_pool": 1, "vta_dense": 1},
    "shufflenet_v2": {
        "vta_concat": 2,
        "vta_gather": 5,
        "vta_max_pool": 1,
        "vta_convolution": 6,
        "vta_depthwise": 2,
        "vta_pool": 1,
        "vta_dense": 1,
    },
}


@pytest.mark.parametrize("name", KERNELS)
def test_networks_of_strangers(name: str, tmp_path: Path) -> None:
    """Quantised, built for a board, and verified on the simulator: all of their layers run on the accelerator."""
    made = build(graphless_program(quantised_stranger(name, "power-of-two")), TARGETS["pynq-z1"], tmp_path / name)
    report = survey(tmp_path / name)
    assert report["verify"]["passed"] is True
    assert report["latency"]["basis"] == "simulated"
    assert report["latency"]["simulation"]["accelerator_share"] == 1
    assert Counter(layer.kernel for layer in made.layers) == KERNELS[name]
    document = json.loads(to_json(collect([report])))
    jsonschema.validate(document, json.loads((ROOT / "docs" / "report.schema.json").read_text()))


def test_search_on_a_graph(tmp_path: Path) -> None:
    """Layers with weights are searched, each after what comes before it in the program; others keep their tilings."""
    drawn, (source,) = drawing((16, 8, 8))
    left, right = drawn.conv(source, 16, (3, 3), padding=(1, 1, 1, 1)), drawn.conv(source, 20)
    joined = drawn.concat(right, left)
    network = drawn.network(drawn.conv(drawn.max_pool(joined, (2, 2), (2, 2)), 8))
    file.save(network, tmp_path / "graph.safetensors")
    board = TARGETS["pynq-z1"]
    plan = tuning.prepare(
        board, str(tmp_path / "graph.safetensors"), [], trials=12, time_budget="5m", runner="auto", seed=0,
        work_dir=tmp_path / "db", min_gain=0.0, builders=None, transfer=True,
    )  # fmt: skip
    _, content = tuning.tune(plan, None)
    assert content["trials"] == 12
    assert len(content["tasks"]) == 3
    records = find_records(board, tmp_path / "db")
    built = build(graphless_program(network), board, tmp_path / "out", records=records)
    assert [layer.schedule.endswith(", searched") for layer in built.layers] == [True, True, False, False, True]
    assert survey(tmp_path / "out")["latency"]["p50"] == pytest.approx(content["network_ms"])


def test_digits_add_up_to_the_factors() -> None:
    factors = [1, -1, 127, 128, -128, 4096, -(2**30), 12345, -54321]
    for first, second in itertools.product(factors, repeat=2):
        levels = moves.digits([first, second])
        assert all(abs(digit) <= 127 for level in levels for digit in level)
        totals = [0, 0]
        for level in levels:
            totals = [(total << moves.DIGIT) + digit for total, digit in zip(totals, level, strict=True)]
        assert totals == [first, second]


@pytest.mark.parametrize("name", MOVES)
def test_moves_are_few_instructions(name: str) -> None:
    """Elements that move regularly are loops of GEMM, not an instruction each."""
    drawn, (source,) = drawing((32, 8, 6))
    moved = drawn.gather(source, lambda x: MOVES[name](np.random.default_rng(1), x))
    compiled = compile_network(drawn.network(moved), CONFIG)
    assert len(compiled.executable.instructions) < 130
