"""The VTA machine: configuration, encodings, meaning, simulators, checks, timing and drivers."""

from __future__ import annotations

import numpy as np
import pytest
from vta_programs import BLOCK_16, SMALL, program, spoil
from vta_programs import state as random_state

from tvmflow.spec import UserError
from tvmflow.vta import config, isa, semantics, simulate
from tvmflow.vta.config import SAMPLES, Config
from tvmflow.vta.isa import Alu, Finish, Gemm, Load, Memory, Operation, Store, Uop
from tvmflow.vta.semantics import RefusedError, State

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
"""Random programs that the oracle and the fast simulator have to agree on; some of them are refused by both."""


def test_the_fast_simulator_does_what_the_instructions_mean():
    refused = 0
    for seed in range(PROGRAMS):
        rng = np.random.default_rng(seed)
        machine = (SMALL, BLOCK_16)[seed % 2]
        instructions, dram = program(rng, machine)
        if seed % 10 == 1:
            assert isa.decode_program(isa.encode_program(instructions, machine), machine) == instructions
        if seed % 10 == 0:
            instructions = spoil(rng, instructions)
        slow = random_state(machine, dram, rng)
        fast = State(config=machine, dram=dram.copy())
        for name in ("inp", "wgt", "out", "acc", "uop"):
            getattr(fast, name)[:] = getattr(slow, name)
        said = []
        for run, state in ((semantics.run, slow), (simulate.run, fast)):
            try:
                run(instructions, state)
                said.append("")
            except RefusedError as error:
                said.append(str(error))
        assert said[0] == said[1], seed
        assert seed % 10 == 0 or not said[0], (seed, said[0])
        refused += bool(said[0])
        if not said[0]:
            for name in ("dram", "inp", "wgt", "out", "acc", "uop", "fresh"):
                assert np.array_equal(getattr(slow, name), getattr(fast, name)), (seed, name)
    assert refused > PROGRAMS // 50
