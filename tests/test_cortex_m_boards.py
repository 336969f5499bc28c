"""Boards of microcontrollers: their memory is where their linker scripts say, and the smallest core is served, too."""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import needs_commands
from elftools.elf.elffile import ELFFile
from integer_networks import POOL, VARIETY, Shape, conv, dense, depthwise, random_input, random_network

from tvmflow import targets
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.integer.frontend import integer_program
from tvmflow.network.c_interface import c_name
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.pipeline import run_stages
from tvmflow.report.render import memory_text
from tvmflow.schedules.cortex_m import CORES
from tvmflow.spec import UserError
from tvmflow.system.toolchain import select_linker, tvm_target_dict
from tvmflow.targets import TARGETS
from tvmflow.targets.cortex_m import fit, machine, memory_map
from tvmflow.targets.cortex_m.compile import compile_object

pytestmark = pytest.mark.packages

BOARDS = [board for board in TARGETS.values() if board.kind == "cortex_m"]
MAPPED = [board for board in BOARDS if board.facts.has_map]
PICO = TARGETS["rp2040"]
SMALL = ((conv(4), depthwise(), POOL, dense(3)), (1, 3, 5, 5))


@pytest.fixture(scope="session")
def qemu():
    needs_commands(machine.QEMU)


def compiled(network, board):
    import tvm

    with tvm.target.Target(tvm_target_dict(board)):
        return run_stages(integer_program(network), board)


def drawn(shapes: tuple[Shape, ...], input_shape: tuple[int, ...], scheme: str = "per-channel"):
    return random_network(np.random.default_rng(7), scheme, shapes=shapes, input_shape=input_shape)


@pytest.fixture(scope="module")
def small():
    return drawn(*SMALL)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_boards_say_what_they_are(board):
    assert board.facts.machine in machine.MACHINES
    assert board.facts.core in CORES
    assert set(board.facts.unverified) <= {field.name for field in fields(board.facts)} | {"clock_mhz"}


def test_real_boards_have_a_map():
    emulated = {"mps2-an386", "mps2-an500", "mps3-an547"}
    assert {board.name for board in BOARDS} - {board.name for board in MAPPED} == emulated


@pytest.mark.parametrize("board", MAPPED, ids=lambda board: board.name)
def test_memories_of_a_board_lie_apart(board):
    placed = memory_map.place(board.facts, board.facts.flash_bytes, board.facts.ram_bytes)
    spans = sorted((region.origin, region.origin + region.length) for region in placed.regions.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("board", "flash_bytes", "weights", "arena"),
    [
        ("stm32h743", 6_000, 0x0800_0000, 0x2000_0000),
        ("stm32h743", 3_290_000, 0x9000_0000, 0x2000_0000),
        ("rp2040", 6_000, 0x1000_0100, 0x2000_0000),
        ("nrf5340", 6_000, 0x0, 0x2000_0000),
        ("alif-e7", 6_000, 0x8000_0000, 0x2000_0000),
    ],
)
def test_firmware_lies_where_the_chip_has_memory(tmp_path, small, board, flash_bytes, weights, arena):
    """A program linked with the board's own script: each section lies in one of the board's memories."""
    board = TARGETS[board]
    program = compiled(small, board)
    library = compile_object(program, board, tmp_path, select_linker(board))
    main = tmp_path / "main.c"
    main.write_text(
        '#include "random.h"\nint main(void) { static int8_t input[RANDOM_INPUT_SIZE], output[RANDOM_OUTPUT_SIZE];\n'
        "  random_run(input, output); return output[0]; }\n"
    )
    placed = memory_map.place(board.facts, flash_bytes, program.memory["activations_bytes"])
    script = memory_map.script(board, placed, "random")
    firmware = machine.link_firmware(tmp_path, board, [main, library], [f"-I{tmp_path}"], script)
    with firmware.open("rb") as file:
        found = {section.name: section.header for section in ELFFile(file).iter_sections() if section["sh_flags"] & 2}
    spans = [range(region.origin, region.origin + region.length + 1) for region in placed.regions.values()]
    for name, section in found.items():
        ends = (section["sh_addr"], section["sh_addr"] + section["sh_size"])
        assert any(all(end in span for end in ends) for span in spans), name
    assert weights <= found[".random_weights"]["sh_addr"] < weights + 4096
    assert found[".random_arena"]["sh_addr"] == arena


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize(
    ("board", "scheme"), [("rp2040", "per-channel"), ("rp2040", "power-of-two"), ("nrf5340", "per-channel")]
)
def test_kernels_are_exact(tmp_path, board, scheme):
    """The smallest core stops at words that aren't aligned, has no division, and multiplies 32 bits to 32."""
    board, network = TARGETS[board], drawn(VARIETY, (1, 3, 13, 11), scheme)
    program = compiled(network, board)
    library = compile_object(program, board, tmp_path, select_linker(board))
    inputs = random_input(np.random.default_rng(1), network.input_shape, 3)
    inputs[0], inputs[1] = -128, 127
    expected = network.run(inputs)
    vectors, wanted = ([(row[None],) for row in arrays] for arrays in (inputs, expected))
    done = machine.run(library, board, c_name(network.name), vectors, program.outputs, expected=wanted)
    assert np.array_equal(np.concatenate([output for (output,) in done.outputs]), expected)
    assert done.wrong == 0


MISALIGNED = """#include "random.h"
#include "startup.h"

static int8_t input[RANDOM_INPUT_SIZE + 4], output[RANDOM_OUTPUT_SIZE + 4];

int main(void) {
  static const int8_t golden[RANDOM_OUTPUT_SIZE] = {%s};
  for (int apart = 0; apart < 4; apart++) {
    for (int place = 0; place < RANDOM_INPUT_SIZE; place++) input[apart + place] = (int8_t)(place * 5);
    random_run(input + apart, output + apart);
    for (int place = 0; place < RANDOM_OUTPUT_SIZE; place++)
      if (output[apart + place] != golden[place]) return 1;
  }
  return 0;
}
"""


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize("board", ["rp2040", "mps3-an547"])
def test_tensors_may_lie_at_any_address(tmp_path, small, board):
    board = TARGETS[board]
    library = compile_object(compiled(small, board), board, tmp_path, select_linker(board))
    given = (np.arange(75) * 5).astype(np.uint8).view(np.int8).reshape(1, 3, 5, 5)
    main = tmp_path / "main.c"
    main.write_text(MISALIGNED % ", ".join(map(str, small.run(given).ravel())))
    firmware = machine.link_firmware(tmp_path, board, [main, library], [f"-I{tmp_path}"])
    done = machine.start(machine.find_qemu(), board.facts.machine, firmware, tmp_path, (), 60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("qemu")
def test_the_emulated_smallest_core_stops_at_words_that_are_not_aligned(tmp_path):
    """Otherwise the tests above would show nothing."""
    main = tmp_path / "main.s"
    main.write_text(
        ".syntax unified\n.thumb\n.text\n.globl main\n.thumb_func\n.type main, %function\nmain:\n"
        "  mov r1, sp\n  subs r1, #3\n  ldr r0, [r1]\n  movs r0, #0\n  bx lr\n"
    )
    firmware = machine.link_firmware(tmp_path, PICO, [main])
    done = machine.start(machine.find_qemu(), PICO.facts.machine, firmware, tmp_path, (), 60)
    assert "the processor met a fault" in done.stderr + done.stdout
    assert done.returncode == 2


def test_the_smallest_core_needs_arms_runtime_functions_only(tmp_path, small):
    """By the names of its run-time interface, which every compiler's library for it has."""
    library = compile_object(compiled(small, PICO), PICO, tmp_path, select_linker(PICO))
    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab").iter_symbols()
        missing = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name}
    assert missing
    assert all(name.startswith("__aeabi_") for name in missing)


@pytest.mark.usefixtures("qemu")
def test_float32_on_the_smallest_core(tmp_path):
    """By the compiler's functions for floats, whose instructions are those of the layers that call them."""
    program = import_model("networks:chain", [parse_input_shape("1x3x13x11")])
    built = build(program, replace(PICO, arithmetic="float32"), tmp_path / "out")
    assert built.manifest["verify"]["method"] == "emulated"
    assert built.manifest["verify"]["passed"] is True
    assert all(layer.details["instructions"] > 20 * layer.live_macs for layer in built.layers if layer.live_macs)


@pytest.mark.usefixtures("qemu")
def test_bundle_of_a_pico(tmp_path, small):
    """With a linker script of the chip and an example that the bare-metal compiler builds for its core."""
    needs_commands("cmake", "arm-none-eabi-gcc")
    build(integer_program(small), PICO, tmp_path / "out", source=True)
    with open_bundle(tmp_path / "out") as opened:
        assert "RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 264K" in (opened.root / "link.ld").read_text()
        assert "external flash" in (opened.root / "README.md").read_text()
        assert "RAM at 0x20000000" in (opened.root / "README.md").read_text()
    for source in ("OFF", "ON"):
        for command in (
            ["cmake", "-S", tmp_path / "out" / "example", "-B", tmp_path / source, f"-DFROM_SOURCE={source}"],
            ["cmake", "--build", tmp_path / source],
            ["ctest", "--test-dir", tmp_path / source, "--verbose"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        assert "golden vectors agree" in done.stdout


def test_own_board_has_a_map_of_its_own(tmp_path):
    path = tmp_path / "rt1064.toml"
    path.write_text(
        'extends = "imx-rt1062"\n[mcu]\nflash_bytes = 4194304\nexternal_flash = false\nflash_origin = 0x70000000\n'
        "boot_bytes = 0\n[mcu.other_memory]\nDTCM = [0x20000000, 131072]\n"
    )
    board = targets.load_toml(path)
    placed = memory_map.place(board.facts, 1000, 1000)
    assert placed.regions["FLASH"] == memory_map.Region(origin=0x7000_0000, length=4 << 20)
    assert placed.arena == "DTCM"


@pytest.mark.parametrize("region", ["5", "[1]", '"all of it"', '[1, "x"]'])
def test_own_board_with_a_map_that_is_none(tmp_path, region):
    path = tmp_path / "board.toml"
    path.write_text(f'extends = "imx-rt1062"\n[mcu.other_memory]\nDTCM = {region}\n')
    with pytest.raises(UserError, match=r"mcu\.other_memory\.DTCM"):
        targets.load_toml(path)


def test_the_part_of_the_boot_loader_of_the_flash_is_no_room(small):
    """The second stage of an RP2040's lies at the beginning, so that the last bytes of a network would be beyond."""
    program = compiled(small, PICO)
    memory = fit.check_fit(program, PICO)
    just = replace(PICO, facts=replace(PICO.facts, flash_bytes=memory["flash_bytes"] + 256))
    assert fit.check_fit(program, just)["flash_bytes"] == memory["flash_bytes"]
    with pytest.raises(UserError, match="doesn't fit the flash of rp2040"):
        fit.check_fit(program, replace(PICO, facts=replace(PICO.facts, flash_bytes=memory["flash_bytes"] + 255)))


def test_what_is_needed_stands_beside_what_the_board_has(small):
    memory = fit.check_fit(compiled(small, PICO), PICO)
    assert (memory["flash_available_bytes"], memory["ram_available_bytes"]) == ((2 << 20) - 256, 264 << 10)
    words = memory_text(memory)
    assert " of 2,048 KiB, ram " in words
    assert " of 264 KiB, library" in words
    assert "available" not in words
