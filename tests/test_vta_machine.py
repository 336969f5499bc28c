"""The VTA machine: configuration, encodings, meaning, simulators, checks, timing and drivers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import chain
from xml.etree import ElementTree

import numpy as np
import pytest
from vta_examples import pointwise, reference
from vta_programs import BLOCK_16, BUFFERS, SMALL, copy, in_series, program, spoil
from vta_programs import state as random_state

from tvmflow.spec import TvmflowError, UserError
from tvmflow.targets.vta import check, config, isa, semantics, simulate
from tvmflow.targets.vta.config import SAMPLES, Config
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Load, Memory, Operation, Store, Uop
from tvmflow.targets.vta.program import Executable, read, relocate, save
from tvmflow.targets.vta.semantics import RefusedError, State
from tvmflow.targets.vta.timeline import COLOURS, SLICES, occupancy, picture
from tvmflow.targets.vta.timing import Hardware, band, time_instructions
from tvmflow.targets.vta.timing import simulate as simulate_time

PYNQ = SAMPLES["pynq"]
OLD = Config(version="0.0.1")


# Configuration


def test_upstreams_sample_is_read_as_it_is(tmp_path):
    file = tmp_path / "pynq_sample.json"
    file.write_text(
        '{"TARGET": "pynq", "HW_VER": "0.0.2", "LOG_INP_WIDTH": 3, "LOG_WGT_WIDTH": 3, "LOG_ACC_WIDTH": 5,'
        ' "LOG_BATCH": 0, "LOG_BLOCK": 4, "LOG_UOP_BUFF_SIZE": 15, "LOG_INP_BUFF_SIZE": 15, "LOG_WGT_BUFF_SIZE": 18,'
        ' "LOG_ACC_BUFF_SIZE": 17}'
    )
    read = config.read(file)
    assert read == PYNQ
    assert config.from_json(read.to_json()) == read
    assert (read.uop_depth, read.wgt_depth, read.inp_depth, read.acc_depth) == (8192, 1024, 2048, 2048)
    assert (read.uop_bytes, read.wgt_bytes, read.inp_bytes, read.acc_bytes, read.out_bytes) == (4, 256, 16, 64, 16)
    assert (read.macs_per_cycle, read.bitstream) == (256, "1x16_i8w8a32_15_15_18_17")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"LOG_BLOCK": None}, "lacks LOG_BLOCK"),
        ({"LOG_COLOUR": 1}, "LOG_COLOUR"),
        ({"HW_VER": "0.0.3"}, "0.0.3"),
        ({"LOG_BLOCK": "4"}, "LOG_BLOCK is a base-2 logarithm"),
        ({"LOG_ACC_WIDTH": 4}, "32-bit accumulators"),
        ({"LOG_WGT_BUFF_SIZE": 8}, "LOG_WGT_BUFF_SIZE is too small"),
        ({"LOG_INP_BUFF_SIZE": 21}, "no instruction can address"),
        ({"LOG_ACC_BUFF_SIZE": 20}, "too deep for a 32-bit micro-op"),
    ],
)
def test_configurations_that_no_vta_has_are_refused(change, words):
    values = {key: value for key, value in {**PYNQ.to_json(), **change}.items() if value is not None}
    with pytest.raises(UserError, match=words):
        config.from_json(values)


# Encodings

EXAMPLES = [
    Load(memory=Memory.INP, sram_base=5, dram_base=0x12345678, y_size=3, x_size=7, x_stride=9, y_pad_0=1, x_pad_1=15),
    Load(memory=Memory.WGT, dram_base=1, y_size=1, x_size=1, x_stride=1, pop_next=True, push_next=True),
    Store(sram_base=63, dram_base=77, y_size=2, x_size=2, x_stride=65535, pop_prev=True, push_prev=True),
    Gemm(
        uop_bgn=1,
        uop_end=63,
        iter_out=16383,
        iter_in=2,
        dst_factor_out=15,
        src_factor_in=3,
        wgt_factor_in=9,
        reset=True,
    ),
    Alu(operation=Operation.SHR, uop_bgn=0, uop_end=1, use_imm=True, imm=-16, dst_factor_in=1, src_factor_in=1),
    Alu(operation=Operation.ADD, uop_bgn=0, uop_end=64, src_factor_out=15),
    isa.nop("load", push_next=True),
    isa.nop("compute", pop_prev=True, pop_next=True),
    isa.nop("store", push_prev=True),
    Finish(pop_prev=True),
]


def test_the_bits_are_where_hardware_looks_for_them():
    # Positions from compiling upstream's hw_spec.h for the PYNQ sample.
    word = int.from_bytes(isa.encode(EXAMPLES[0], PYNQ), "little")
    assert [word >> low & mask for low, mask in ((0, 7), (7, 7), (10, 0xFFFF), (26, 0xFFFFFFFF))] == [
        0,
        2,
        5,
        0x12345678,
    ]
    assert [word >> low & 0xFFFF for low in (64, 80, 96)] == [3, 7, 9]
    assert [word >> low & 0xF for low in (112, 116, 120, 124)] == [1, 0, 0, 15]
    word = int.from_bytes(isa.encode(EXAMPLES[0], OLD), "little")
    assert [word >> low & mask for low, mask in ((7, 3), (9, 0xFFFF), (25, 0xFFFFFFFF), (64, 0xFFFF))] == [
        2,
        5,
        0x12345678,
        3,
    ]
    store = int.from_bytes(isa.encode(EXAMPLES[2], PYNQ), "little")
    assert [store & 7, store >> 3 & 15, store >> 7 & 7] == [1, 0b0101, 4]
    assert int.from_bytes(isa.encode(EXAMPLES[2], OLD), "little") >> 7 & 3 == 0
    gemm = int.from_bytes(isa.encode(EXAMPLES[3], PYNQ), "little")
    assert [gemm >> low & mask for low, mask in ((7, 1), (8, 0x1FFF), (21, 0x3FFF), (35, 0x3FFF), (49, 0x3FFF))] == [
        1, 1, 63, 16383, 2,
    ]  # fmt: skip
    assert [gemm >> low & mask for low, mask in ((63, 1), (64, 0x7FF), (97, 0x7FF), (118, 0x3FF))] == [0, 15, 3, 9]
    alu = int.from_bytes(isa.encode(EXAMPLES[4], PYNQ), "little")
    assert [alu & 7, alu >> 108 & 7, alu >> 111 & 1, alu >> 112] == [4, 3, 1, 0xFFF0]
    alu = int.from_bytes(isa.encode(EXAMPLES[4], OLD), "little")
    assert [alu >> 108 & 3, alu >> 110 & 1, alu >> 111] == [3, 1, 0xFFF0]
    assert isa.encode_uops([Uop(2047, 1, 1023)], PYNQ).tolist() == [2047 | 1 << 11 | 1023 << 22]


@pytest.mark.parametrize("machine", [PYNQ, OLD, SMALL], ids=["0.0.2", "0.0.1", "small"])
def test_what_is_encoded_decodes_to_the_same(machine):
    assert isa.decode_program(isa.encode_program(EXAMPLES, machine), machine) == tuple(EXAMPLES)
    uops = np.random.default_rng(0).integers(0, [machine.acc_depth, machine.inp_depth, machine.wgt_depth], (50, 3))
    assert (isa.decode_uops(isa.encode_uops(uops, machine), machine) == uops).all()


@pytest.mark.parametrize(
    ("instruction", "machine", "words"),
    [
        (Gemm(uop_bgn=0, uop_end=16384), PYNQ, r"Instruction 0: GEMM: uop_end is 16384, .* 14 bits"),
        (Alu(operation=Operation.ADD, uop_bgn=0, uop_end=1, use_imm=True, imm=32768), PYNQ, r"imm is 32768"),
        (Alu(operation=Operation.MUL, uop_bgn=0, uop_end=1), OLD, r"operation is 4, .* 2 bits"),
        (Load(memory=Memory.INP, dram_base=-1), PYNQ, r"dram_base is -1"),
        (Load(memory=Memory.ACC_8BIT, x_size=1, y_size=1), OLD, r"memory is 5, .* 2 bits"),
    ],
)
def test_values_that_do_not_fit_are_named(instruction, machine, words):
    with pytest.raises(UserError, match=words):
        isa.encode_program([instruction], machine)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"\5" + bytes(15), "Instruction 0: Opcode 5"),
        (bytes(15), "no whole number"),
        (b"\3" + bytes(14) + b"\1", "bits are set"),
        ((4 << 7).to_bytes(16, "little"), "memory type 4"),
    ],
)
def test_what_is_no_program_is_refused(code, words):
    with pytest.raises(UserError, match=words):
        isa.decode_program(code, PYNQ)


def test_disassembly(golden):
    golden(isa.disassemble(EXAMPLES))


# Meaning


def machine_state(memory: int = 4096) -> State:
    """A PYNQ whose ACC[i] holds i in every lane and whose micro-ops 0 … 15 are (i, i, i)."""
    state = State(config=PYNQ, dram=np.zeros(memory, np.uint8))
    state.uop[:16] = isa.encode_uops([(i, i, i) for i in range(16)], PYNQ)
    state.acc[:] = np.arange(2048)[:, None, None]
    return state


def test_a_convolution_computed_by_hand():
    rng = np.random.default_rng(1)
    state = State(config=PYNQ, dram=np.zeros(4096, np.uint8))
    inputs, weights, bias = rng.integers(-128, 128, 16), rng.integers(-128, 128, (16, 16)), rng.integers(-999, 999, 16)
    state.dram[:16] = inputs.astype(np.int8).view(np.uint8)
    state.dram[256:512] = weights.astype(np.int8).view(np.uint8).reshape(-1)
    state.dram[512:576] = bias.astype(np.int32).view(np.uint8)
    state.dram[576:580] = isa.encode_uops([Uop(3, 1, 2)], PYNQ).view(np.uint8)
    one = {"y_size": 1, "x_size": 1, "x_stride": 1}
    loops = {"uop_bgn": 0, "uop_end": 1}
    program = (
        Load(memory=Memory.UOP, dram_base=144, **one),
        Load(memory=Memory.INP, sram_base=1, dram_base=0, **one),
        Load(memory=Memory.WGT, sram_base=2, dram_base=1, **one),
        Load(memory=Memory.ACC, sram_base=3, dram_base=8, **one),
        Gemm(**loops),
        Load(memory=Memory.UOP, dram_base=145, **one),
        Alu(operation=Operation.ADD, use_imm=True, imm=32, **loops),
        Alu(operation=Operation.SHR, use_imm=True, imm=6, **loops),
        Alu(operation=Operation.MAX, use_imm=True, imm=0, **loops),
        Alu(operation=Operation.MIN, use_imm=True, imm=127, **loops),
        Store(sram_base=3, dram_base=50, **one),
        Finish(),
    )
    state.dram[580:584] = isa.encode_uops([Uop(3, 3)], PYNQ).view(np.uint8)
    fast = State(config=PYNQ, dram=state.dram.copy())
    semantics.run(program, state)
    simulate.run(program, fast)
    expected = np.clip((weights @ inputs + bias + 32) >> 6, 0, 127)
    assert state.dram[800:816].tolist() == fast.dram[800:816].tolist() == expected.tolist()


def one_op(operation, imm):
    return Alu(operation=operation, use_imm=True, imm=imm, uop_bgn=0, uop_end=1)


REFUSED = {
    "MUL": (Alu(operation=Operation.MUL, uop_bgn=0, uop_end=1), "MUL exists in upstream's functional simulator"),
    "ACC_8BIT": (Load(memory=Memory.ACC_8BIT, y_size=1, x_size=1, x_stride=1), "ACC_8BIT is ignored"),
    "shift": (one_op(Operation.SHR, 16), "SHR by 16: the HLS core shifts by -16 … 15"),
    "shift by tile": (Alu(operation=Operation.SHR, uop_bgn=0, uop_end=1), "SHR by ACC"),
    "stale": (Store(sram_base=3, y_size=1, x_size=1, x_stride=1), r"OUT\[3\], which is stale"),
    "src": (
        Alu(operation=Operation.ADD, use_imm=True, uop_bgn=0, uop_end=2, iter_in=2, dst_factor_in=1),
        "src 0 and dst 1: the Chisel core reads src",
    ),
    "index": (Gemm(uop_bgn=0, uop_end=1, iter_in=3, dst_factor_in=1024), r"uses ACC\[2048\], beyond the buffer's 2048"),
    "weights": (Gemm(uop_bgn=0, uop_end=1, iter_in=3, wgt_factor_in=512), r"uses WGT\[1024\], beyond"),
    "load": (Load(memory=Memory.INP, sram_base=2047, y_size=1, x_size=2, x_stride=2), "INP writes beyond the buffer's"),
    "whole buffer": (
        Load(memory=Memory.INP, y_size=32, x_size=64, x_stride=64),
        "INP of all 2048 tiles of the buffer: the Chisel core's counter",
    ),
    "memory": (Load(memory=Memory.WGT, dram_base=16, y_size=1, x_size=1, x_stride=1), "reads beyond the memory's 4096"),
    "padding": (Load(memory=Memory.WGT, y_size=1, x_size=1, x_stride=1, x_pad_0=1), "does not pad WGT"),
    "rows": (Load(memory=Memory.UOP, y_size=2, x_size=1, x_stride=1), "HLS core ignores y_size"),
    "nothing": (Gemm(uop_bgn=3, uop_end=3), "without a single step"),
}


@pytest.mark.parametrize("run", [semantics.run, simulate.run], ids=["oracle", "fast"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_hardware_would_do_wrongly_is_refused(run, case):
    instruction, words = REFUSED[case]
    with pytest.raises(RefusedError, match=f"Instruction 1: .*{words}"):
        run((isa.nop("load"), instruction), machine_state())


@pytest.mark.parametrize("run", [semantics.run, simulate.run], ids=["oracle", "fast"])
def test_out_is_a_buffer_of_its_own(run):
    store = Store(sram_base=3, y_size=1, x_size=1, x_stride=1)
    write = Alu(operation=Operation.ADD, use_imm=True, uop_bgn=3, uop_end=4)
    state = machine_state()
    run((write, store), state)
    assert state.dram[:16].tolist() == [3] * 16
    for spoiler in (
        Load(memory=Memory.ACC, sram_base=3, y_size=1, x_size=1, x_stride=1),
        Gemm(uop_bgn=3, uop_end=4, reset=True),
    ):
        with pytest.raises(RefusedError, match="stale"):
            run((write, spoiler, store), machine_state())


PROGRAMS = 10_000
"""Random legal programs on which the oracle and the fast simulator have to agree."""


def both(machine, instructions, dram, rng) -> str:
    """Run a program on both, see that buffers and memory are the same, and return the sentence if both refuse it."""
    slow = random_state(machine, dram, rng)
    fast = copy(slow)
    said = []
    for run, state in ((semantics.run, slow), (simulate.run, fast)):
        try:
            run(instructions, state)
            said.append("")
        except RefusedError as error:
            said.append(str(error))
    assert said[0] == said[1]
    if not said[0]:
        for name in ("dram", *BUFFERS, "fresh"):
            assert getattr(slow, name).tobytes() == getattr(fast, name).tobytes(), name
    return said[0]


def test_the_fast_simulator_does_what_the_instructions_mean():
    refused = set()
    for seed in range(PROGRAMS):
        rng = np.random.default_rng(seed)
        machine = (SMALL, BLOCK_16)[seed % 2]
        instructions, dram = program(rng, machine)
        assert not both(machine, instructions, dram, rng), seed
        if seed % 10 == 0:
            assert isa.decode_program(isa.encode_program(instructions, machine), machine) == instructions
            refused.add(re.sub("[0-9]+", "N", both(machine, spoil(rng, instructions), dram, rng)))
    assert len(refused) > 15  # different sentences


# A program as a compiler makes it


@pytest.fixture(scope="module")
def layer():
    return pointwise()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, (count, 1, 32, 8, 6)).astype(np.int8)


def test_a_program_runs_and_is_read_back(layer, tmp_path):
    executable, weight, bias = layer
    save(executable, tmp_path, {"board": "none"})
    again = read(tmp_path)
    assert again.instructions == executable.instructions
    assert (again.image == executable.image).all()
    assert replace(again, image=executable.image) == executable
    machine = simulate.Machine(again)
    for image in images(3):
        assert (machine.run({"input": image})["output"] == reference(image, weight, bias)).all()
    with pytest.raises(UserError, match="input is int8 of shape"):
        machine.run({"input": np.zeros((1, 32, 8, 6))})


def test_relocation(layer):
    executable, weight, bias = layer
    moved = relocate(executable.instructions, 0x4000, PYNQ)
    state = State(config=PYNQ, dram=np.zeros(0x8000, np.uint8))
    state.dram[0x4000 : 0x4000 + executable.image.size] = executable.image
    executable.inputs[0].write(state.dram[0x4000:], images(1)[0], PYNQ)
    simulate.run(moved, state)
    found = executable.outputs[0].read(state.dram[0x4000:], PYNQ)
    assert (found == reference(images(1)[0], weight, bias)).all()
    with pytest.raises(UserError, match="no multiple of 256"):
        relocate(executable.instructions, 0x4040, PYNQ)


def relaid(folder, **changes):
    path = folder / "layout.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "layout.json").unlink(), "can't be read: No such file"),
        (lambda folder: (folder / "layout.json").write_text("{}"), "schema_version"),
        (lambda folder: (folder / "layout.json").write_text("[" * 40_000), "nested too deeply"),
        (lambda folder: relaid(folder, schema_version=True), "schema_version True"),
        (lambda folder: relaid(folder, memory_bytes=1 << 40), "memory_bytes is 1099511627776, where"),
        (lambda folder: relaid(folder, memory_bytes="8"), "memory_bytes is '8', where a whole number"),
        (lambda folder: relaid(folder, memory_bytes=1), "no more of them than the memory has"),
        (lambda folder: relaid(folder, input_shape=[1, 3]), r"input_shape is a list of 2, where 4 or more"),
        (lambda folder: relaid(folder, input_shape=[1, -3, 8, 8]), r"input_shape\[1\] is -3"),
        (lambda folder: relaid(folder, input_order="spiral"), "input_order is 'spiral'"),
        (lambda folder: relaid(folder, output_offset=-1), "output_offset is -1"),
        (lambda folder: relaid(folder, output_offset=1 << 31), "lies outside the memory"),
        (lambda folder: relaid(folder, configuration=[]), "configuration is a list of 0"),
        (lambda folder: relaid(folder, configuration={"LOG_BLOCK": 4}), "lacks TARGET"),
        (
            lambda folder: relaid(folder, layers=[{"name": "a", "first": 5, "last": 2}]),
            "has a layer whose instructions",
        ),
        (lambda folder: relaid(folder, layers=[{"name": "a"}]), r"layers\[0\] lacks 'first', 'last'"),
        (lambda folder: (folder / "memory.bin").write_bytes(b"1"), "not as long as layout.json says"),
        (lambda folder: (folder / "program.bin").write_bytes(b"1"), "no whole number"),
    ],
)
def test_damaged_files_are_refused(layer, tmp_path, damage, words):
    save(layer[0], tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path)
    assert str(caught.value).isprintable()


# Checks


def changed(executable, number, **fields):
    instructions = list(executable.instructions)
    instructions[number] = replace(instructions[number], **fields)
    return executable.with_instructions(instructions)


def test_a_right_program_passes(layer):
    assert check.findings(layer[0]) == ()
    check.check(layer[0])


WRONG = {
    "token left over": ((3, {"pop_prev": False}), 26, "1 of the tokens from load to compute are never taken"),
    "waits forever": ((4, {"push_prev": False}), 26, "waits forever for a token from compute to load"),
    "reads too early": ((2, {"push_next": False}, 3, {"pop_prev": False}), 4, "may read INP tiles before"),
    "overwrites INP": ((12, {"push_prev": False}, 26, {"pop_next": False}), 26, "may overwrite INP tiles"),
    "overwrites OUT": ((9, {"push_prev": False}, 19, {"pop_next": False}), 20, "may overwrite OUT tiles"),
    "stores too early": ((8, {"push_next": False}, 9, {"pop_prev": False}), 9, "may read OUT tiles before"),
    "finishes too early": ((33, {"push_prev": False}, 35, {"pop_next": False}), 35, "doesn't wait for the last 1"),
    "no module there": ((2, {"pop_prev": True}), 2, "load module has no prev neighbour"),
    "no ALU": ((*chain(*((n, {"uop_end": 3}) for n in range(5, 9))),), 9, r"OUT\[12\] was last written by no ALU"),
    "src": ((5, {"src_factor_in": 0}), 5, "immediate and src ≠ dst"),
    "near": ((4, {"dst_factor_in": 0}), 4, "distance of 2 in its steps; the HLS core needs 20"),
    "depth": ((4, {"src_factor_out": 2047}), 4, r"uses INP\[2058\], beyond"),
    "nothing there": ((4, {"wgt_factor_out": 7}), 4, r"reads WGT\[7\], never loaded"),
    "nothing in ACC": ((3, {"y_size": 0, "x_size": 0}), 4, r"reads ACC\[0\], which holds nothing"),
    "no micro-op": ((4, {"uop_end": 20}), 4, "Micro-op 8 was never loaded"),
    "chisel's micro-ops": ((0, {"sram_base": 2048}), 0, "Chisel core's buffer holds 2048"),
    "unfilled memory": ((0, {"dram_base": 2056}), 0, "neither the image nor an input nor a STORE"),
    "outside": ((2, {"dram_base": 1000}), 2, "of a memory of 16384"),
    "micro-ops made": (
        (9, {"dram_base": 512}, 11, {"memory": Memory.UOP, "dram_base": 2048}),
        11,
        "made by the program itself",
    ),
    "not stored": ((33, {"x_size": 11}), 35, "output isn't stored whole"),
    "form": ((6, {"imm": 16}), 6, "SHR by 16"),
    "whole buffer": ((2, {"sram_base": 0, "y_size": 2, "x_size": 1024}), 2, "counter of words on their way wraps to 0"),
    "field": ((6, {"imm": 1 << 15}), 6, "has 16 bits"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found(layer, case):
    changes, number, words = WRONG[case]
    executable = layer[0]
    for at, fields in zip(changes[::2], changes[1::2], strict=True):
        executable = changed(executable, at, **fields)
    found = check.findings(executable)
    assert any(finding.instruction == number and re.search(words, finding.sentence) for finding in found), found
    with pytest.raises(RefusedError, match=r"^Instruction \d+: "):
        check.check(executable)


def test_compute_begins_without_waiting(layer):
    waiting = [isa.nop("load", push_next=True), isa.nop("compute", pop_prev=True), Finish()]
    executable = replace(layer[0], outputs=(), instructions=tuple(waiting))
    assert check.findings(executable, ["chisel"]) == ()
    (found,) = check.findings(executable)
    assert "HLS may seem to have finished already" in found.sentence


def test_what_only_one_core_minds(layer):
    near = changed(layer[0], 4, dst_factor_in=0)
    assert check.findings(near, ["chisel"]) == ()
    far = changed(layer[0], 0, sram_base=2048)
    assert not any("Chisel" in finding.sentence for finding in check.findings(far, ["hls"]))
    twice = changed(layer[0], 5, dst_factor_in=0, src_factor_in=0, uop_end=3)
    assert [finding.sentence for finding in check.findings(twice, ["chisel"])] == [
        "It uses an ACC tile again at a distance of 1 in its steps; the Chisel core needs 2."
    ]


def queue_of(count, module, **tokens):
    return [isa.nop(module, **tokens)] * count


def test_queues_and_counters_have_ends(layer):
    nothing = replace(layer[0], outputs=())
    ends = [Finish()]

    def sentences(*parts):
        return [finding.sentence for finding in check.findings(nothing.with_instructions([*chain(*parts)]))]

    give, take = {"push_next": True}, {"pop_prev": True}
    begin = queue_of(1, "compute")
    assert sentences(begin, queue_of(255, "load", **give), queue_of(255, "compute", **take), ends) == []
    (found,) = sentences(begin, queue_of(256, "load", **give), queue_of(256, "compute", **take), ends)
    assert found.startswith("256 tokens from load to compute can be outstanding")
    waiting = queue_of(1, "compute", **take) + queue_of(511, "compute")
    assert sentences(begin, waiting, queue_of(1, "load", **give), ends) == []
    (found,) = sentences(begin, waiting, queue_of(1, "compute"), queue_of(1, "load", **give), ends)
    assert found == (
        "It waits forever for a token from load to compute while compute has 512 waiting, so that no more is fetched."
    )
    assert sentences(ends, queue_of(1, "load"))[0].startswith("A program ends in its only FINISH")


def shuffled(rng, instructions):
    """The instructions in a random order that modules and tokens allow; None if they deadlock."""
    queues = [[it for it in instructions if isa.module_of(it) == module] for module in isa.MODULES]
    tokens, order = {}, []
    while any(queues):
        ready = []
        for module, queue in enumerate(queues):
            pops = [
                module + step
                for step, side in ((-1, "prev"), (1, "next"))
                if queue and getattr(queue[0], f"pop_{side}")
            ]
            if queue and all(tokens.get((other, module)) for other in pops):
                ready.append((module, pops))
        if not ready:
            return None
        module, pops = ready[rng.integers(len(ready))]
        done = queues[module].pop(0)
        for other in pops:
            tokens[other, module] -= 1
        for step, side in ((-1, "prev"), (1, "next")):
            if getattr(done, f"push_{side}"):
                tokens[module, module + step] = tokens.get((module, module + step), 0) + 1
        order.append(done)
    return order


def test_what_passes_does_not_depend_on_the_pace_of_the_modules():
    passed = raced = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        instructions, dram = program(rng, SMALL)
        code = in_series(instructions)
        pops = [(n, side) for n, it in enumerate(code) for side in ("prev", "next") if getattr(it, f"pop_{side}")]
        for n, side in pops:  # leave out some tokens: each is given by the instruction before
            if rng.random() < 0.4:
                back = "next" if side == "prev" else "prev"
                code[n] = replace(code[n], **{f"pop_{side}": False})
                code[n - 1] = replace(code[n - 1], **{f"push_{back}": False})
        executable = Executable(
            config=SMALL, instructions=tuple(code), image=dram, memory_bytes=len(dram), inputs=(), outputs=()
        )
        said = [f.sentence for f in check.findings(executable, ["chisel"])]
        start = random_state(SMALL, dram, rng)
        results = []
        for attempt in range(4):
            order = code if attempt == 0 else shuffled(rng, code)
            state = copy(start)
            for instruction in order:
                # A LOAD ACC between an ALU instruction and its STORE does no harm: OUT is a buffer of its own.
                state.fresh[:] = 1
                simulate.run([instruction], state)
            results.append(state.dram.tobytes())
        if any("may" in sentence for sentence in said):
            raced += len(set(results)) > 1
        else:
            passed += 1
            assert len(set(results)) == 1, seed
    assert passed > 30
    assert raced > 30


# Timing


def only(*instructions, **hardware):
    """Cycles from the beginning to the end of the last of these instructions."""
    timing = time_instructions(instructions, PYNQ, Hardware(**hardware))
    return int(timing.end[-1] - timing.begin[-1])


def rows(memory, y_size, x_size, **fields):
    return Load(memory=memory, y_size=y_size, x_size=x_size, x_stride=x_size + 3, **fields)


@pytest.mark.parametrize("latency", [5, 30, 79])
def test_the_cycles_of_single_instructions_are_those_of_rtl(latency):
    memory = {"read_latency": latency, "write_latency": 7}
    loops = {"uop_bgn": 2, "uop_end": 5, "iter_out": 7, "iter_in": 2}
    assert only(Gemm(**loops), **memory) == only(Gemm(reset=True, **loops), **memory) == 42 + 7
    assert only(Alu(operation=Operation.MIN, use_imm=True, **loops), **memory) == 42 + 7
    assert only(Alu(operation=Operation.ADD, **loops), **memory) == 2 * 42 + 7
    assert only(rows(Memory.INP, 4, 9), **memory) == latency + 72 + 5
    assert only(rows(Memory.WGT, 1, 3), **memory) == latency + 96 + 5
    assert only(rows(Memory.ACC, 2, 5), **memory) == latency + 80 + 5
    padded = rows(Memory.INP, 1, 1, y_pad_0=15, y_pad_1=15, x_pad_0=5)
    assert only(padded, **memory) == max(latency + 2 + 5, 2 + 30 * 6 + 5 + 3)
    assert only(rows(Memory.UOP, 1, 9), **memory) == latency + 5 + 4
    assert only(Store(dram_base=120, y_size=3, x_size=20, x_stride=64), **memory) == 180 + 5 * 8 + 1
    assert only(isa.nop("store"), **memory) == only(Finish(), **memory) == 2
    assert only(Alu(operation=Operation.MIN, use_imm=True, **loops), core="hls", **memory) == 2 * 42 + 7
    assert only(rows(Memory.INP, 4, 9), core="hls", **memory) == 4 * (latency + 18) + 5


def test_short_bursts_cost_stores_and_fetch(layer):
    # AXI3 and Chisel's De10Config: 16 beats, so that each of these rows of 20 tiles, of 320 bytes, is three bursts, and
    # Fetch brings 8 instructions at a time.
    store = Store(dram_base=120, y_size=3, x_size=20, x_stride=65)
    assert only(store, write_latency=7, burst_beats=16) == 180 + 9 * 8 + 1
    chunks = [Hardware(burst_beats=beats, bus_bytes=bus).fetch_chunk for beats, bus in ((16, 8), (256, 8), (256, 16))]
    assert chunks == [8, 128, 256]
    assert only(rows(Memory.WGT, 1, 3), burst_beats=16) == only(rows(Memory.WGT, 1, 3))  # reads follow each other
    idle = [isa.nop("compute")] * 256
    ends = [int(time_instructions(idle, PYNQ, Hardware(burst_beats=beats)).end[-1]) for beats in (16, 256)]
    # Fetch waits 30 times more for memory, with 3 cycles around; NOPs take 2 cycles and are dispatched one a cycle, so
    # that the last 128 end 120 cycles later than the last 8.
    assert ends[0] - ends[1] == 30 * (30 + 3) - 120
    with pytest.raises(UserError, match="16 or 256 beats at most, not 64"):
        Hardware(burst_beats=64)


def test_modules_overlap_as_far_as_tokens_and_the_port_let_them(layer):
    # By the formulas: fetch ends after 2 + 30 + 36 * 2 = 104, the first instruction begins a cycle later.
    timing = simulate_time(layer[0], Hardware())
    assert timing.begin[:4].tolist() == [105, 106, 272, timing.end[2]]
    assert timing.end[0] == 105 + 30 + 4 + 4
    # WGT asks a cycle after UOP, and waits for the rest of its four beats.
    assert timing.end[1] == 106 + 30 + 128 + 5 + 3
    for before, after in ((2, 3), (4, 18), (8, 9), (9, 19), (25, 34), (33, 35)):
        assert timing.begin[after] >= timing.end[before]
    assert timing.begin[10] < timing.end[4]
    assert timing.cycles == timing.end[-1] == sum(layer.cycles for layer in timing.layers)
    for module, waits in timing.waits.items():
        number = isa.MODULES.index(module)
        busy = (timing.end - timing.begin)[timing.module == number].sum()
        assert busy + sum(waits.values()) == timing.cycles
    assert sum(timing.busy.values()) == (timing.end - timing.begin).sum()
    assert timing.read_bytes == 8 * 4 + 4 * 256 + 4 * 24 * (16 + 64)
    assert timing.written_bytes == 4 * 24 * 16
    assert sum(layer.gemm_steps for layer in timing.layers) * 256 == 32 * 32 * 8 * 6
    assert timing.latency_ms == timing.cycles / 100_000


@pytest.mark.parametrize(("read", "write", "cycles"), [(5, 2, 1933), (10, 4, 1972), (30, 15, 2134), (79, 29, 2505)])
def test_a_program_takes_the_cycles_of_the_model_that_was_held_against_rtl(layer, read, write, cycles):
    # That model is another, simpler one; docs/vta.md says how far it was from RTL.
    assert simulate_time(layer[0], Hardware(read_latency=read, write_latency=write)).cycles == cycles


def test_memory_latency_only_ever_costs(layer):
    cycles = [simulate_time(layer[0], Hardware().with_latency(latency)).cycles for latency in (5, 20, 30, 60, 200)]
    assert cycles == sorted(cycles)
    assert band(layer[0], Hardware()) == (cycles[1], cycles[3])
    assert simulate_time(layer[0], Hardware(core="hls")).cycles > cycles[2]
    assert simulate_time(layer[0], Hardware(bus_bytes=16)).cycles < cycles[2]
    with pytest.raises(UserError, match="no VTA core"):
        Hardware(core="systolic")


def test_a_full_queue_stops_fetch():
    # 600 instructions of compute wait behind a token that load gives after them: more than the queue holds.
    code = [isa.nop("load", push_next=True), isa.nop("compute", pop_prev=True)]
    long = Gemm(uop_bgn=0, uop_end=1, iter_out=10_000)
    timing = time_instructions([*code, long, *[isa.nop("compute")] * 600, isa.nop("load")], PYNQ, Hardware())
    assert timing.begin[-1] > timing.end[2]
    with pytest.raises(TvmflowError, match="deadlocks"):
        time_instructions([isa.nop("compute", pop_prev=True)], PYNQ, Hardware())


def test_occupancy_adds_up(layer):
    timing = simulate_time(layer[0], Hardware())
    found = occupancy(timing)
    queues = found["queues"]
    assert (found["end"], len(found["layers"])) == (timing.cycles, len(timing.layers))
    busy = {kind: sum(shares) for queue in queues.values() for kind, shares in queue.items()}
    for kind, shares in busy.items():
        assert shares * timing.cycles / (1000 * SLICES) == pytest.approx(timing.busy[kind], abs=0.01 * timing.cycles)
    for queue in queues.values():
        assert all(0 <= sum(shares) <= 1000 + len(queue) for shares in zip(*queue.values(), strict=True))


def test_the_picture_of_a_layer(layer):
    timing = simulate_time(layer[0], Hardware())
    lower = timing.layers[1]
    # The second strip of the first layer is still on its way when the second layer begins: pale there.
    for drawn, count, pale in ((picture(timing), 4, 0), (picture(timing, lower, "module.1 <pointwise>"), 3, 1)):
        root = ElementTree.fromstring(drawn)
        colours = [shape.get("fill") for shape in root.iter("{http://www.w3.org/2000/svg}rect")]
        assert colours.count(COLOURS["gemm"]) == count + 1  # one is the legend's
        assert drawn.count(f'fill="{COLOURS["gemm"]}" fill-opacity="0.3"') == pale
    span = lower.end - lower.begin
    assert f"module.1 &lt;pointwise&gt;: {span:,} cycles, {span / 100:.1f} µs at 100 MHz; simulated, chisel" in drawn
