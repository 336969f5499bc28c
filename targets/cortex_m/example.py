"""The example in a bundle: a CMake project that links the network and checks the golden vectors on the device."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tvmflow.network.agreement import tolerances
from tvmflow.network.c_interface import CPort, literal, ports
from tvmflow.spec import Program, Target
from tvmflow.system.toolchain import Linker
from tvmflow.targets.cortex_m import integration, memory_map
from tvmflow.targets.cortex_m.facts import Mcu
from tvmflow.targets.cortex_m.machine import ELEMENTS, HERE, KINDS, MACHINES, linker_script
from tvmflow.targets.cortex_m.memory_map import Placed
from tvmflow.targets.cortex_m.options import compiler_options

SHIPPED = ("agrees.h", "startup.c", "startup.h")
VALUES_IN_A_ROW = 32


def write(folder: Path, program: Program, target: Target, name: str) -> None:
    """CMakeLists.txt, main.c, vectors.h, link.ld and the start-up code for qemu's machine."""
    folder.mkdir()
    for file in SHIPPED:
        shutil.copyfile(HERE / file, folder / file)
    gcc = Linker(name="arm-none-eabi-gcc", command=(), version="")
    flags = " ".join(option for option in compiler_options(target, gcc) if option.startswith("-m"))
    machine = Mcu.of(target).machine
    options = "".join(f"{option} " for option in MACHINES[machine].options)
    (folder / "CMakeLists.txt").write_text(_CMAKE.format(name=name, flags=flags, machine=machine, options=options))
    (folder / "main.c").write_text(_main(program, name))
    (folder / "link.ld").write_text(_LINK_NOTE.format(name=name, machine=machine) + linker_script(MACHINES[machine]))
    (folder / "vectors.h").write_text(_vectors(program))


def usage(name: str, program: Program, target: Target, flash_bytes: int) -> str:
    """For the bundle's README: what to do with the files. `flash_bytes` are those of weights and code."""
    board = Mcu.of(target)
    flash = "chip's own flash" if memory_map.fits_inside(board, flash_bytes) else "external flash"
    inputs, outputs = ports(program)
    # side by side where they are of one type
    by_type: dict[str, list[str]] = {}
    for port in (*inputs, *outputs):
        by_type.setdefault(ELEMENTS[port.spec.dtype], []).append(f"{port.parameter}[{name.upper()}_{port.macro}_SIZE]")
    buffers = "\n".join(f"    static {kind} {', '.join(arrays)};" for kind, arrays in by_type.items())
    parameters = ", ".join(port.parameter for port in (*inputs, *outputs))
    placed = memory_map.place(board, flash_bytes, program.memory.get("activations_bytes", 0))
    where = "" if placed is None else f"\n{_where(target, placed)}\n"
    return f"""In a program of yours:

    #include "{name}.h"

{buffers}
    {name}_run({parameters});

Link `model.o` with it. The constants are in the section `.rodata.{name}_weights`: put it into the {flash}. The arena is
in `.bss.{name}_arena`: put it into the fastest RAM that has room.
{where}
`example/` is a whole project for {board.machine}, a machine of qemu's with such a core and memory of its own. It
compares the golden vectors on the device:

    cmake -S example -B build && cmake --build build && ctest --test-dir build

{integration.usage(name)}"""


def _where(target: Target, placed: Placed) -> str:
    weights, arena = (f"{region} at {placed.regions[region].origin:#010x}" for region in (placed.weights, placed.arena))
    return (
        f"`link.ld` is a linker script with the memory of {target.name}, which has the first in {weights} and\n"
        f"the second in {arena}."
    )


def _vectors(program: Program) -> str:
    """Inputs and outputs of the golden vectors, and by how much an output may differ, as arrays of C."""

    def array(name: str, rows: list[np.ndarray]) -> list[str]:
        lines = [f"static const {ELEMENTS[str(rows[0].dtype)]} {name}[{len(rows)}][{rows[0].size}] = {{"]
        for row in rows:
            values = [literal(value) for value in row.ravel().tolist()]
            parts = [values[start : start + VALUES_IN_A_ROW] for start in range(0, len(values), VALUES_IN_A_ROW)]
            lines += ["    {", *("     " + ",".join(part) + "," for part in parts), "    },"]
        return [*lines, "};", ""]

    inputs, outputs = ports(program)
    arrays: list[str] = []
    for number, port in enumerate(inputs):
        arrays += array(_golden(port), [vector.inputs[number] for vector in program.vectors])
    limits = tolerances(program.vectors)
    for number, port in enumerate(outputs):
        arrays += array(_golden(port), [vector.outputs[number] for vector in program.vectors])
        allowed = ", ".join(f"{row[number]:.9e}f" for row in limits)
        arrays.append(f"static const float {_golden(port)}_tolerances[{len(limits)}] = {{{allowed}}};\n")
    return "\n".join(["#include <stdint.h>", "", f"#define VECTORS {len(limits)}", "", *arrays])


def _golden(port: CPort) -> str:
    return f"golden_{port.macro.lower()}"


def _main(program: Program, name: str) -> str:
    inputs, outputs = ports(program)
    prefix = name.upper()
    buffers = [f"static {ELEMENTS[port.spec.dtype]} {port.parameter}[{prefix}_{port.macro}_SIZE];" for port in outputs]
    arguments = [*(f"{_golden(port)}[vector]" for port in inputs), *(port.parameter for port in outputs)]
    checks = [
        f"agrees({port.parameter}, {_golden(port)}[vector], {KINDS[port.spec.dtype]}, {prefix}_{port.macro}_SIZE, "
        f"{_golden(port)}_tolerances[vector])"
        for port in outputs
    ]
    joined = " &&\n                        ".join(checks)
    return _MAIN.format(name=name, buffers="\n".join(buffers), arguments=", ".join(arguments), checks=joined)


_CMAKE = """# Built by a cross compiler, run by qemu-system-arm:
#   cmake -S example -B build && cmake --build build && ctest --test-dir build
cmake_minimum_required(VERSION 3.18)
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
if(NOT CMAKE_C_COMPILER)
  set(CMAKE_C_COMPILER arm-none-eabi-gcc)
endif()
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
project({name}_example C)
enable_testing()

option(FROM_SOURCE "Compile ../source instead of linking ../model.o" OFF)
set(TVMFLOW_FROM_SOURCE ${{FROM_SOURCE}} CACHE BOOL "" FORCE)
add_subdirectory(.. network)

add_executable(example main.c startup.c)
set_target_properties(example PROPERTIES C_STANDARD 99 C_EXTENSIONS ON)
set_target_properties(example PROPERTIES LINK_DEPENDS ${{CMAKE_CURRENT_SOURCE_DIR}}/link.ld)
target_include_directories(example PRIVATE ${{CMAKE_CURRENT_SOURCE_DIR}})
target_compile_options(example PRIVATE {flags} -ffreestanding -O2 -Wall -Wextra)
target_link_options(example PRIVATE {flags} -nostdlib -Wl,--gc-sections -Wl,-z,noexecstack
                    -T${{CMAKE_CURRENT_SOURCE_DIR}}/link.ld)
target_link_libraries(example PRIVATE tvmflow::{name} gcc)

add_test(NAME golden_vectors COMMAND qemu-system-arm -machine {machine} -nographic -monitor none -serial none
         {options}-semihosting-config enable=on,target=native -kernel $<TARGET_FILE:example>)
"""

_MAIN = """/* Compares the network with its golden vectors, on the device. Exit code 0 if all agree. */
#include "{name}.h"
#include "agrees.h"
#include "startup.h"
#include "vectors.h"

{buffers}

int main(void) {{
  uint32_t wrong = 0;
  for (uint32_t vector = 0; vector < VECTORS; vector++) {{
    {name}_run({arguments});
    wrong += (uint32_t)!({checks});
  }}
  say_number(VECTORS - wrong);
  say(" of ");
  say_number(VECTORS);
  say(" golden vectors agree\\n");
  return wrong != 0;
}}
"""

_LINK_NOTE = """/* Where {machine} has memory, a machine of qemu's. On a board of yours, .rodata.{name}_weights goes
 * into flash and .bss.{name}_arena into RAM, and both keep their alignment of 16 bytes. */
"""
