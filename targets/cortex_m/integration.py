"""What lets projects of others take a bundle as it is: CMake, Zephyr, and what takes Arduino's libraries."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from tvmflow import __version__
from tvmflow.network.c_interface import CPort, ports
from tvmflow.spec import Program, Target
from tvmflow.targets.cortex_m.facts import Mcu

OBJECT = "model.o"

NAMES_OF_ARDUINO: Mapping[str, str] = {"imx-rt1062": "imxrt1062"}
"""What Arduino's board packages call the processor (`build.mcu`), of boards where that isn't the core's name."""

GUARDS: Mapping[str, tuple[str, str]] = {
    "plain": ("defined(__arm__)", "a Cortex-M"),
    "dsp": ("defined(__ARM_FEATURE_DSP)", "a Cortex-M with DSP instructions"),
    "mve": ("defined(__ARM_FEATURE_MVE)", "a Cortex-M with MVE"),
}
"""By what a core can: what its compiler defines, and the core in words."""


def write(folder: Path, name: str, program: Program, target: Target, library: Path, *, source: bool) -> dict[str, Path]:
    """The files, in `folder`, by their names in the bundle's root; with `source` they also offer the portable C."""
    zephyr, src, examples = (folder / part for part in ("zephyr", "src", "examples"))
    (folder / "CMakeLists.txt").write_text(_cmake(name, source=source))
    zephyr.mkdir()
    (zephyr / "module.yml").write_text(_MODULE.format(name=name))
    (zephyr / "Kconfig").write_text(_kconfig(name, target, source=source))
    (zephyr / "CMakeLists.txt").write_text(_zephyr(name, source=source))
    (folder / "library.properties").write_text(
        _PROPERTIES.format(name=name, version=__version__, core=target.cpu.model)
    )
    for processor in dict.fromkeys([str(target.tvm["mcpu"]), *filter(None, [NAMES_OF_ARDUINO.get(target.name)])]):
        (src / processor).mkdir(parents=True)
        (src / processor / f"lib{name}.a").write_bytes(thin_archive(library, f"../../{OBJECT}"))
    guard, core = GUARDS[Mcu.of(target).core]
    (src / f"{name}.h").write_text(_FORWARD.format(name=name, check="" if source else _check(guard, core)))
    for part in (f"{name}.c", f"{name}_weights.c") if source else ():
        (src / part).write_text(f'#include "../source/{part}"\n')
    sketch = examples / name / f"{name}.ino"
    sketch.parent.mkdir(parents=True)
    sketch.write_text(_sketch(name, program))
    made = ("CMakeLists.txt", "zephyr", "library.properties", "src", "examples")
    return {part: folder / part for part in made}


def thin_archive(library: Path, member: str) -> bytes:
    """An archive for linkers that has an object elsewhere, at a path relative to its own, so that it is there once."""
    with library.open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".symtab")
        shown = [
            symbol.name.encode()
            for symbol in table.iter_symbols()
            if symbol["st_info"]["bind"] != "STB_LOCAL" and symbol["st_shndx"] != "SHN_UNDEF"
        ]
    names = f"{member}/\n".encode()
    names += b"\n" * (len(names) % 2)
    symbols = b"".join(name + b"\0" for name in shown)
    size = 4 + 4 * len(shown) + len(symbols)
    place = len(THIN) + MEMBER_BYTES + size + size % 2 + MEMBER_BYTES + len(names)
    index = struct.pack(f">{1 + len(shown)}I", len(shown), *[place] * len(shown)) + symbols + b"\0" * (size % 2)
    parts = _member("/", len(index)), index, _member("//", len(names)), names, _member("/0", library.stat().st_size)
    return THIN + b"".join(parts)


THIN, MEMBER_BYTES = b"!<thin>\n", 60


def _member(name: str, size: int) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{size:<10}`\n".encode()


def usage(name: str) -> str:
    """For the bundle's README: how each takes it."""
    return f"""The folder is a library as it is:

- CMake: `add_subdirectory(FOLDER {name})`, then `target_link_libraries(YOURS PRIVATE tvmflow::{name})`.
- Zephyr: a module. `west build … -- -DZEPHYR_EXTRA_MODULES=FOLDER`, and `CONFIG_TVMFLOW_{name.upper()}=y`, its default.
- Arduino and PlatformIO: a library. Put the folder among your libraries; `examples/{name}` is a sketch.
"""


def _cmake(name: str, *, source: bool) -> str:
    # an object comes before all libraries, so that those behind it have what it calls
    linked = f"target_sources(tvmflow_{name} INTERFACE ${{CMAKE_CURRENT_LIST_DIR}}/{OBJECT})\n"
    included = f"target_include_directories(tvmflow_{name} INTERFACE ${{CMAKE_CURRENT_LIST_DIR}})\n"
    if source:
        listed = "\n".join(
            f"    ${{CMAKE_CURRENT_LIST_DIR}}/source/{part}" for part in (f"{name}.c", f"{name}_weights.c")
        )
        indented = "".join(f"  {line}\n" for line in (included + linked).splitlines())
        included, linked = (
            "",
            (
                f"if(TVMFLOW_FROM_SOURCE)\n"
                f"  target_include_directories(tvmflow_{name} INTERFACE ${{CMAKE_CURRENT_LIST_DIR}}/source)\n"
                f"  target_sources(tvmflow_{name} INTERFACE\n{listed})\nelse()\n{indented}endif()\n"
            ),
        )
    option = 'option(TVMFLOW_FROM_SOURCE "Compile source/ instead of linking the object" OFF)\n' if source else ""
    return (
        f"# A library that others link: target_link_libraries(YOURS PRIVATE tvmflow::{name})\n"
        f"cmake_minimum_required(VERSION 3.13)\n{option}add_library(tvmflow_{name} INTERFACE)\n{included}{linked}"
        f"add_library(tvmflow::{name} ALIAS tvmflow_{name})\n"
    )


def _zephyr(name: str, *, source: bool) -> str:
    symbol = f"CONFIG_TVMFLOW_{name.upper()}"
    root = "${CMAKE_CURRENT_LIST_DIR}/.."
    linked = f"zephyr_include_directories({root})\nzephyr_link_libraries({root}/{OBJECT})\n"
    if source:
        indented = "".join(f"  {line}\n" for line in linked.splitlines())
        linked = (
            f"if({symbol}_FROM_SOURCE)\n  zephyr_include_directories({root}/source)\n"
            f"  zephyr_library_named(tvmflow_{name})\n"
            f"  zephyr_library_sources({root}/source/{name}.c {root}/source/{name}_weights.c)\n"
            f"else()\n{indented}endif()\n"
        )
    inside = "".join(f"  {line}\n" for line in linked.splitlines())
    return f"if({symbol})\n{inside}endif()\n"


def _kconfig(name: str, target: Target, *, source: bool) -> str:
    symbol = f"TVMFLOW_{name.upper()}"
    floating = "\timply FPU\n" if target.tvm["mfloat-abi"] == "hard" else ""
    text = (
        f'config {symbol}\n\tbool "{name}, a neural network"\n\tdefault y\n\tdepends on CPU_CORTEX_M\n'
        f"{floating}\thelp\n\t  Link {name}, which was compiled for {target.cpu.model}.\n"
    )
    if source:
        text += (
            f'\nconfig {symbol}_FROM_SOURCE\n\tbool "Compile its portable C instead"\n\tdepends on {symbol}\n\thelp\n'
            f"\t  Slower, and for any processor.\n"
        )
    return text


def _check(guard: str, core: str) -> str:
    return f'#if !({guard})\n#error "{OBJECT} is code for {core}; build with --source for other processors"\n#endif\n'


def _sketch(name: str, program: Program) -> str:
    inputs, outputs = ports(program)
    states = program.integer.state if program.integer is not None else ()
    kept = {state.input for state in states} | {state.output for state in states}
    shown: Sequence[CPort] = [port for port in (*inputs, *outputs) if port.spec.name not in kept]
    types = {"int8": "int8_t", "uint8": "uint8_t", "float32": "float"}
    buffers = "\n".join(
        f"static {types[port.spec.dtype]} {port.parameter}[{name.upper()}_{port.macro}_SIZE];" for port in shown
    )
    return _SKETCH.format(name=name, buffers=buffers, arguments=", ".join(port.parameter for port in shown))


_MODULE = """name: tvmflow_{name}
build:
  cmake: zephyr
  kconfig: zephyr/Kconfig
"""

_PROPERTIES = """name=tvmflow_{name}
version={version}
author=tvmflow
maintainer=tvmflow
sentence=The neural network {name}, compiled for {core}.
paragraph=One call, no allocation. Processors without a folder in src take portable C, if the bundle was built with it.
category=Data Processing
url=
architectures=*
includes={name}.h
precompiled=full
ldflags=-l{name}
"""

_FORWARD = """#pragma once
{check}#include "../{name}.h"
"""

_SKETCH = """#include <{name}.h>

static {name}_context context;
{buffers}

void setup() {{
  Serial.begin(115200);
  {name}_init(&context);
}}

void loop() {{
  /* what the network reads comes here */
  const unsigned long begin = micros();
  {name}_infer(&context, {arguments});
  Serial.print("one inference, us: ");
  Serial.println(micros() - begin);
  delay(1000);
}}
"""
