"""Boards are values that can be trusted, listed, and replaced by one's own."""

from __future__ import annotations

from dataclasses import fields

import pytest

from tvmflow import rules, targets
from tvmflow.spec import UserError
from tvmflow.targets import DEFAULT_BOARD, TARGETS


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_board_is_complete(target):
    import tvm

    from tvmflow.toolchain import tvm_target_dict

    made = tvm.target.Target(tvm_target_dict(target))
    if target.gpu is None:
        assert made.attrs["num-cores"] == target.cpu.cores
    else:
        assert made.attrs["arch"] == target.gpu.architecture
        assert set(target.gpu.unverified) < {field.name for field in fields(target.gpu)}
    assert target.datasheet
    assert target.description
    assert target.memory_bytes >= 2**19
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
    ],
)
def test_own_board_with_mistakes(tmp_path, text, words):
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        targets.load_toml(path)
