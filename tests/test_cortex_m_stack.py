"""The bound of a network's stack: of instructions, of calls, and against what emulation measures."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import needs_commands
from integer_networks import POOL, conv, dense, depthwise, random_input, random_network

from tvmflow.bundles.build import build
from tvmflow.integer.frontend import integer_program
from tvmflow.pipeline import run_stages
from tvmflow.spec import VerificationError
from tvmflow.system.toolchain import link, select_linker, tvm_target_dict
from tvmflow.targets import TARGETS
from tvmflow.targets.cortex_m import backend, machine
from tvmflow.targets.cortex_m.compile import compile_object
from tvmflow.targets.cortex_m.options import compiler_options
from tvmflow.targets.cortex_m.stack import ALIGNMENT, OUTSIDE_BYTES, Bound, stack_bound

pytestmark = pytest.mark.packages

M0, M55 = TARGETS["rp2040"], TARGETS["mps3-an547"]
HEAD = ".syntax unified\n.thumb\n.text\n"


def function(name: str, *lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f".globl {name}\n.thumb_func\n.type {name}, %function\n{name}:\n{body}\n.size {name}, . - {name}\n"


def bound(folder, board, *functions: str) -> Bound:
    """Of the first of some functions in assembly."""
    source, linker = folder / "code.s", select_linker(board)
    source.write_text(HEAD + "".join(functions))
    link(linker, folder / "code.o", [source], (*compiler_options(board, linker), "-c"))
    return stack_bound(folder / "code.o", functions[0].partition(" ")[2].partition("\n")[0])


FRAMES = {
    "push": (M0, ["push {r4-r7, lr}", "pop {r4-r7, pc}"], 20),
    "sub": (M0, ["sub sp, #508", "add sp, #508", "bx lr"], 508),
    "a word of the code": (M0, ["ldr r3, =-1000", "add sp, r3", "ldr r3, =1000", "add sp, r3", "bx lr"], 1000),
    "push of upper registers": (M55, ["push.w {r4-r11, lr}", "pop.w {r4-r11, pc}"], 36),
    "one register": (M55, ["str lr, [sp, #-8]!", "ldr pc, [sp], #8"], 8),
    "two registers": (M55, ["strd r4, r5, [sp, #-16]!", "ldrd r4, r5, [sp], #16", "bx lr"], 16),
    "double registers": (M55, ["vpush {d8-d15}", "vpop {d8-d15}", "bx lr"], 64),
    "single registers": (M55, ["vpush {s16-s18}", "vpop {s16-s18}", "bx lr"], 12),
    "a modified immediate": (M55, ["sub.w sp, sp, #4096", "add.w sp, sp, #4096", "bx lr"], 4096),
    "a plain immediate": (M55, ["subw sp, sp, #1028", "addw sp, sp, #1028", "bx lr"], 1028),
    "a register": (M55, ["movw r3, #0x1230", "movt r3, #1", "sub.w sp, sp, r3", "bx lr"], 0x11230),
    "what looks like it": (M55, ["usat r1, #8, r1", "sub.w r2, r12, lr, lsl #8", "tst.w r0, #1", "bx lr"], 0),
}


@pytest.mark.parametrize("shown", FRAMES)
def test_frames(tmp_path, shown):
    board, lines, frame = FRAMES[shown]
    assert bound(tmp_path, board, function("probe", *lines)).bytes == -(-frame // ALIGNMENT) * ALIGNMENT


def test_calls_add_up(tmp_path):
    """Of two calls the deeper one counts; a jump at the end is one; what is elsewhere gets its share."""
    caller = function("caller", "push {r4, lr}", "bl shallow", "bl deep", "pop {r4, pc}")
    shallow = function("shallow", "push {r4-r7}", "pop {r4-r7}", "bx lr")
    deep = function("deep", "sub sp, #64", "add sp, #64", "b.w elsewhere")
    assert bound(tmp_path, M55, caller, shallow, deep) == Bound(bytes=8 + 64 + OUTSIDE_BYTES, outside=("elsewhere",))


def test_a_far_jump_is_no_call(tmp_path):
    """Armv6-M has BL for it, also within a function."""
    lines = ["push {r4, lr}", "cmp r0, #0", "bne 1f", "bl 2f", "1:", ".space 3000", "2:", "pop {r4, pc}"]
    assert bound(tmp_path, M0, function("probe", *lines)).bytes == 8


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["push {r4, lr}", "bl probe", "pop {r4, pc}"], "probe in code.o calls itself"),
        (["push {r4, lr}", "blx r3", "pop {r4, pc}"], "probe calls a function by its address"),
        (["mov sp, r3", "bx lr"], "moves its stack pointer at 0x0 by what isn't a constant"),
        (["movs r2, #8", "sub.w sp, sp, r3", "bx lr"], "moves its stack pointer at 0x2"),
        (["add sp, r3", "bx lr"], "moves its stack pointer"),
        (["msr msp, r0", "bx lr"], "moves its stack pointer"),
    ],
)
def test_what_has_no_bound(tmp_path, lines, words):
    with pytest.raises(VerificationError, match=words):
        bound(tmp_path, M55, function("probe", *lines))


@pytest.fixture(scope="module")
def network():
    shapes = (conv(4), depthwise(), depthwise(stride=2), conv(9), POOL, dense(3))
    return random_network(np.random.default_rng(7), "per-channel", shapes=shapes, input_shape=(1, 3, 9, 9))


@pytest.mark.parametrize("board", ["rp2040", "mps2-an386", "mps3-an547"])
def test_the_bound_is_what_is_measured(network, tmp_path, board):
    """Of the program with all that it calls to a few words, and never less. The object's bound is no lower."""
    import tvm

    needs_commands(machine.QEMU)
    board = TARGETS[board]
    with tvm.target.Target(tvm_target_dict(board)):
        program = run_stages(integer_program(network), board)
    library = compile_object(program, board, tmp_path, select_linker(board))
    given = [(random_input(np.random.default_rng(1), network.input_shape, 1),)]
    firmware = machine.prepare(tmp_path, library, board, "random", given, program.outputs)
    measured = machine.run(library, board, "random", given, program.outputs).stack_bytes
    linked = stack_bound(firmware, "random_run")
    assert linked.outside == ()
    assert linked.bytes - 4 * ALIGNMENT < measured <= linked.bytes
    stated = stack_bound(library, "random_run")
    assert linked.bytes <= stated.bytes
    assert f"#define RANDOM_STACK_BYTES {stated.bytes} " in (tmp_path / "random.h").read_text()


def test_what_goes_beyond_the_bound_is_never_written(network, tmp_path, monkeypatch):
    needs_commands(machine.QEMU)
    monkeypatch.setattr(backend, "stack_bound", lambda library, name: Bound(bytes=8, outside=()))
    with pytest.raises(VerificationError, match="bytes of the stack or more, which were to be 8 at most"):
        build(integer_program(network), M55, tmp_path / "out")
    assert not (tmp_path / "out").exists()
