"""The VTA machine: configuration, encodings, meaning, simulators, checks, timing and drivers."""

from __future__ import annotations

import numpy as np
import pytest

from tvmflow.spec import UserError
from tvmflow.vta import config, isa
from tvmflow.vta.config import SAMPLES, Config
from tvmflow.vta.isa import Alu, Finish, Gemm, Load, Memory, Operation, Store, Uop

PYNQ = SAMPLES["pynq"]
OLD = Config(version="0.0.1")
SMALL = Config(log_batch=1, log_block=2, log_uop_buffer=8, log_inp_buffer=8, log_wgt_buffer=8, log_acc_buffer=9)


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
