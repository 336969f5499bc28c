"""Boards are values that can be trusted, listed, and replaced by one's own."""

from __future__ import annotations

from dataclasses import fields

import pytest

from tvmflow import targets
from tvmflow.schedules import registry as rules
from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import UserError
from tvmflow.targets import DEFAULT_BOARD, TARGETS


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_board_is_complete(target):
    import tvm

    from tvmflow.system.toolchain import tvm_target_dict

    made = tvm.target.Target(tvm_target_dict(target))
    if not isinstance(target.facts, Gpu):
        assert made.attrs["num-cores"] == target.cpu.cores
    else:
        assert made.attrs["arch"] == target.facts.architecture
        assert set(target.facts.unverified) < {field.name for field in fields(target.facts)}
    assert target.datasheet
    assert target.description
    assert target.memory_bytes >= 2**18
    assert set(target.schedules) <= set(rules.of(target).RULES)


def test_find():
    assert targets.find(None, None).name == "host"
    assert targets.find("arm_cpu", None).name == "raspberry-pi-4b"
    assert targets.find("cuda", None).name == "jetson-agx-orin"
    assert targets.find("arm_cpu", "raspberry-pi-5").cpu.model == "Cortex-A76"
    assert set(DEFAULT_BOARD.values()) <= set(TARGETS)


@pytest.mark.parametrize(
    ("kind", "board", "words"),
    [
        ("gpu", None, "no target 'gpu'; the targets are llvm, arm_cpu, "),
        (None, "raspberry-pi-4", "Did you mean raspberry-pi-4b"),
        ("llvm", "raspberry-pi-4b", "is of target arm_cpu"),
        (None, "missing.toml", "can't be read"),
    ],
)
def test_find_refuses(kind, board, words):
    with pytest.raises(UserError, match=words):
        targets.find(kind, board)


def test_own_board(tmp_path):
    path = tmp_path / "rock.toml"
    path.write_text('extends = "raspberry-pi-4b"\n[cpu]\nmodel = "RK3399"\nclock_mhz = 1800\n[tvm]\nnum-cores = 2\n')
    board = targets.find("arm_cpu", str(path))
    assert board.name == "rock"
    assert (board.cpu.model, board.cpu.clock_mhz, board.cpu.l1d_bytes) == ("RK3399", 1800, 32 << 10)
    assert board.tvm["num-cores"] == 2
    assert board.tvm["mcpu"] == "cortex-a72"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "no valid TOML"),
        ('name = "x"', "needs extends"),
        ('extends = "pdp-11"', "'pdp-11'"),
        ('extends = "host"\ncolour = 3', "'colour'"),
        ('extends = "host"\nkind = "vta"', "'kind'"),
        ('extends = "host"\n[cpu]\ncores = 0', "cpu.cores as 0"),
        ('extends = "host"\n[cpu]\ncores = "four"', "cpu.cores as 'four'"),
        ('extends = "host"\nmemory_bytes = 1.5', "memory_bytes as 1.5"),
        ('extends = ["host"]', "needs extends = .*; it has a list of 1"),
        (
            'extends = "raspberry-pi-4b"\n[cpu]\nmemory_gbps = -1.0',
            r"cpu\.memory_gbps as -1\.0, where a positive number",
        ),
        ('extends = "raspberry-pi-4b"\n[cpu]\nmemory_gbps = nan', r"cpu\.memory_gbps as nan, where a positive number"),
        ('extends = "raspberry-pi-4b"\n[cpu]\nmemory_gbps = inf', r"cpu\.memory_gbps as inf, where a positive number"),
        ('extends = "jetson-agx-orin"\n[gpu]\ndram_gbps = -0.0', r"gpu\.dram_gbps as -0\.0"),
        ('extends = "raspberry-pi-4b"\n[cpu]\nclock_mhz = 99999999999999999999', r"cpu\.clock_mhz as 9999"),
        ('extends = "pynq-z1"\n[vta]\nlatency_band = [-5, 90]', r"vta\.latency_band as a list of 2"),
        ('extends = "pynq-z1"\n[vta]\nlatency_band = [5]', r"vta\.latency_band is a list of 1"),
        ('extends = "pynq-z1"\n[vta.configuration]\nLOG_BLOCK = 99', r"LOG_BLOCK is a base-2 logarithm"),
        ('extends = "pynq-z1"\n[vta.configuration]\nLOG_BLOCK = true', r"LOG_BLOCK is a base-2 logarithm"),
        ('extends = "host"\nschedules = [1, 2]', r"is no board: schedules\[0\] is 1, where text"),
        ('extends = "host"\nelf = ["64", 64]', r"elf\[0\] is '64', where a whole number"),
        ('extends = "host"\ndescription = 2020-01-01', "description as datetime"),
        ('extends = "host"\ngpu = {}', "gpu as an object with nothing, where nothing belongs"),
        ('extends = "host"\ndescription = "a\\u001b[31m"', r"description as 'a\\x1b\[31m'"),
        ('extends = "host"\nname = "../../up"', r"name as '\.\./\.\./up'"),
        ('extends = "host"\narithmetic = "int4"', "arithmetic as 'int4'"),
        ('extends = "host"\n"a\\u001b" = 1', r"unknown key 'a\\x1b'"),
        ('extends = "host"\n[tvm]\nnum-cores = -3', "tvm as an object with 'num-cores'"),
        ('extends = "host"\n' + ".".join("a" * 20_000) + " = 1", "a key of more than 8 parts"),
        ("x = " + "[" * 4000, "no valid TOML"),
        ('extends = "host"\n[cpu]\ncores = 0x' + "f" * 60_000, "cpu.cores as 0xfff"),
        ("extends = 0x" + "f" * 60_000, "it has 0xfff"),
    ],
)
def test_own_board_with_mistakes(tmp_path, text, words):
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        targets.load_toml(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_own_board_with_figures_that_may_be_unknown_or_whole(tmp_path):
    path = tmp_path / "board.toml"
    path.write_text('extends = "raspberry-pi-5"\n[cpu]\nl3_bytes = 0\nmemory_gbps = 4\n')
    board = targets.load_toml(path)
    assert (board.cpu.l3_bytes, board.cpu.memory_gbps) == (0, 4.0)
    path.write_text('extends = "pynq-z1"\n[vta.configuration]\nLOG_BATCH = 0\n')
    assert targets.load_toml(path).facts.configuration["LOG_BATCH"] == 0
