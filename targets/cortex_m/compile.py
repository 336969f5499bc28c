"""Lowered functions → one object file with the whole network, and a header; or the same as C99 for any compiler."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from tvmflow import __version__
from tvmflow.integer.network import IntegerNetwork
from tvmflow.network.c_interface import CPort, c_name, literal, ports, preprocessing, with_scales
from tvmflow.passes import portable_c
from tvmflow.spec import Program, Target
from tvmflow.system import toolchain
from tvmflow.system.toolchain import Linker
from tvmflow.targets.cortex_m.abi import take_either_convention
from tvmflow.targets.cortex_m.attributes import ARGUMENTS, CONSTANTS
from tvmflow.targets.cortex_m.facts import Mcu
from tvmflow.targets.cortex_m.options import compiler_options
from tvmflow.targets.cortex_m.stack import OUTSIDE_BYTES, Bound, stack_bound
from tvmflow.targets.cortex_m.stages import functions_of

ALIGNMENT = 16
"""Bytes, of each tensor in flash."""

GENERATED_FOR: dict[str, dict[str, Any]] = {
    "dsp": {
        "mtriple": "thumbv7em-none-eabihf",
        "mcpu": "cortex-m7",
        "mattr": ["-fp64", "-fp-armv8d16sp", "+vfp4d16sp"],
    },
    "mve": {"cl-opt": ["-enable-arm-maskedgatscat=0"]},
}
"""What LLVM is told instead of the board's own core, by what the core can.

All cores with DSP execute Armv7E-M and FPv4's single precision, but with its models of Cortex-M4 and M33 LLVM orders
instructions so that more values live at once than there are registers: 1.08 instructions for each multiply-add of the
paper's integer network instead of 0.92.

With MVE it mustn't make vectors of loops over elements that lie apart: of a maximum over a window it makes a loop that
never ends, as it loses the end of a loop whose masks and counter it has to keep on the stack (LLVM 22).
"""

_VALUES_IN_A_ROW = 32

C_TYPES = portable_c.TYPES


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a network is in memory: tensors in flash by their C names, the arena, and the calls of the kernels.

    `parameters` are those of NAME_run, with their types. Calls are written for tensors that are one block of
    bytes, `weights`, or, in `source_calls`, arrays of their own.
    """

    name: str
    parameters: Sequence[str]
    tensors: Mapping[str, np.ndarray]
    weights: bytes
    arena_bytes: int
    calls: Sequence[str]
    source_calls: Sequence[str]
    prototypes: Sequence[str]


def lay_out(program: Program) -> Image:
    """Give every tensor its place in flash, and write every call as C."""
    name = c_name(program.name)
    inputs, outputs = ports(program)
    lie = {f"input {number}": port.parameter for number, port in enumerate(inputs)}
    lie |= {f"output {number}": port.parameter for number, port in enumerate(outputs)}
    tensors: dict[str, np.ndarray] = {}
    weights = bytearray()
    calls: list[str] = []
    source_calls: list[str] = []
    prototypes: list[str] = []
    for kernel, func in functions_of(program).items():
        symbol = f"{name}_{kernel}"
        places, source_places = {}, {}
        for constant, tensor in func.attrs[CONSTANTS].items():
            weights += bytes(-len(weights) % ALIGNMENT)
            places[constant] = f"{name}_weights + {len(weights)}"
            source_places[constant] = f"{symbol}_{constant}"
            tensors[source_places[constant]] = tensor.numpy()
            weights += tensors[source_places[constant]].tobytes()
        types = [C_TYPES[str(param.ty.element_type.dtype)] for param in func.params]
        for lines, found in ((calls, places), (source_calls, source_places)):
            found |= lie
            arguments = [
                f"({kind} *)({found.get(str(where), f'arena + {where}')})"
                for kind, where in zip(types, func.attrs[ARGUMENTS], strict=True)
            ]
            lines.append(f"{symbol}({', '.join(arguments)});")
        prototypes.append(f"void {symbol}({', '.join(f'{kind} *' for kind in types)});")
    return Image(
        name=name,
        parameters=[
            *(f"const {C_TYPES[port.spec.dtype]} *{port.parameter}" for port in inputs),
            *(f"{C_TYPES[port.spec.dtype]} *{port.parameter}" for port in outputs),
        ],
        tensors=tensors,
        weights=bytes(weights),
        arena_bytes=program.memory["activations_bytes"],
        calls=calls,
        source_calls=source_calls,
        prototypes=prototypes,
    )


def compile_object(program: Program, target: Target, folder: Path, linker: Linker) -> Path:
    """The network as one relocatable object file, beside it its header.

    Raises UserError if the assembler or linker refuses, VerificationError if the stack has no bound.
    """
    image = lay_out(program)
    kernels = folder / "kernels.o"
    _generate(program, target, image.name).write_to_file(str(kernels), "o")
    (folder / "weights.bin").write_bytes(image.weights)
    (folder / f"{image.name}.h").write_text(header(program, target, image))
    (folder / "weights.S").write_text(_WEIGHTS.format(name=image.name, file=folder / "weights.bin", align=ALIGNMENT))
    (folder / "network.c").write_text(network_source(image))
    options = (*compiler_options(target, linker), "-O2", "-g0", "-ffunction-sections", "-c")
    objects = [kernels]
    for source in (folder / "network.c", folder / "weights.S"):
        objects.append(source.with_suffix(".o"))
        standard = ("-std=c99", "-Wall", "-Wextra", "-Werror") if source.suffix == ".c" else ()
        toolchain.link(linker, objects[-1], [source], (*options, *standard))
    library = folder / "model.o"
    toolchain.link(linker, library, objects, (*compiler_options(target, linker), "-nostdlib", "-r"))
    take_either_convention(library)
    stack = stack_bound(library, f"{image.name}_run")
    (folder / f"{image.name}.h").write_text(header(program, target, image, stack))
    return library


def _generate(program: Program, target: Target, name: str) -> Any:
    """Machine code of all kernels, by TVM's LLVM."""
    description = {**toolchain.tvm_target_dict(target), **GENERATED_FOR.get(Mcu.of(target).core, {})}
    return portable_c.generate(_symbols(program, name), "llvm", tvm.target.Target(description))


def _symbols(program: Program, name: str) -> dict[str, tirx.PrimFunc]:
    return {f"{name}_{kernel}": func for kernel, func in functions_of(program).items()}


def write_source(program: Program, target: Target, folder: Path) -> None:
    """The network as C99 for any compiler and processor: its header, NAME.c and NAME_weights.c.

    `program` has been through the stages for a core that is "plain".
    """
    image = lay_out(program)
    name = image.name
    kernels = portable_c.definitions(_symbols(program, name))
    (folder / f"{name}.h").write_text(header(program, target, image, portable=True))
    (folder / f"{name}.c").write_text(portable_source(image, kernels))
    (folder / f"{name}_weights.c").write_text(weights_source(image))


def portable_source(image: Image, kernels: str) -> str:
    """The C of the arena, of the kernels and of the calls."""
    declared = [f"extern const {C_TYPES[str(array.dtype)]} {symbol}[];" for symbol, array in image.tensors.items()]
    own = f"static {image.name.upper()}_ALIGNED uint8_t own_arena[{image.arena_bytes}];"
    return "\n".join(
        [f'#include "{image.name}.h"', "", *declared, "", kernels, "", *_run(image, image.source_calls, own)]
    )


def weights_source(image: Image) -> str:
    """All tensors as arrays of C."""
    lines = ["#include <stdint.h>", ""]
    for symbol, array in image.tensors.items():
        kind, values = C_TYPES[str(array.dtype)], list(map(literal, array.ravel().tolist()))
        lines += [f"extern const {kind} {symbol}[];", f"const {kind} {symbol}[{len(values)}] = {{"]
        for start in range(0, len(values), _VALUES_IN_A_ROW):
            lines.append(",".join(values[start : start + _VALUES_IN_A_ROW]) + ",")
        lines += ["};", ""]
    return "\n".join(lines)


def header(
    program: Program, target: Target, image: Image, stack: Bound | None = None, *, portable: bool = False
) -> str:
    """The C99 header of the library, or of `portable` source, of whose stack nothing is known."""
    network: IntegerNetwork | None = program.integer
    memory = program.memory
    prefix = image.name.upper()
    constants: list[str] = []
    read = network is not None and network.scheme == "tflite"
    for number, (port, (scale, zero_point)) in enumerate(with_scales(program)):
        order, meaning = (
            (": channel, row, column", " /* real = scale * int8; the zero point is 0 */") if not number else ("", "")
        )
        if read:
            order, meaning = (
                (": as in the .tflite file", " /* real = scale * (value - zero point) */") if not number else ("", "")
            )
        kind = f"{port.spec.dtype}, {'×'.join(map(str, port.spec.shape[1:]))}{order}"
        constants.append(f"#define {prefix}_{port.macro}_SIZE {math.prod(port.spec.shape)} /* {kind} */")
        if scale is not None:
            constants.append(f"#define {prefix}_{port.macro}_SCALE {scale!r}{meaning}")
        if read:
            constants.append(f"#define {prefix}_{port.macro}_ZERO_POINT {zero_point}")
    macros = {port.spec.name: port.macro for port, _ in with_scales(program)}
    for state in network.state if network is not None else ():
        before, after = macros[state.input], macros[state.output]
        constants.append(f"#define {prefix}_{before}_INITIAL {state.initial} /* then what {after} gave */")
    sizes = "\n".join(constants)
    apart = "\n * Inputs and outputs must not overlap." if len(image.parameters) > 2 else ""
    arithmetic = "a float32" if network is None else "an integer"
    kept = (
        f"no state between calls but in {image.name}_stream and {image.name}_context"
        if "_INITIAL" in sizes
        else "no state between calls"
    )
    # what a core without DSP has no instructions for
    others = ", and of Arm's run-time interface (__aeabi_…)" if Mcu.of(target).core == "plain" and not portable else ""
    deepest, bounded = "", ""
    if stack is not None:
        called = f" {OUTSIDE_BYTES} of them for {', '.join(stack.outside)}" if stack.outside else " of the calls"
        deepest = f"#define {prefix}_STACK_BYTES {stack.bytes} /*{called} */\n"
        bounded = "; the stack is an upper bound"
    form = "in portable C99" if portable else f"for {target.cpu.model}"
    return f"""/* {program.name}: {arithmetic} network {form}, made by tvmflow {__version__}.
 *
 * No allocation, {kept}, nothing of a C library but memcpy and memset{others}.
 * Calls of {image.name}_run must not overlap: they share one arena. Those of {image.name}_run_in may, each in its own.
 * The bytes in flash and RAM are those of the network alone{bounded}.{apart}
 */
#ifndef {prefix}_H
#define {prefix}_H

#include <stdint.h>

{sizes}
#define {prefix}_WEIGHTS_BYTES {len(image.weights)} /* in flash */
#define {prefix}_ARENA_BYTES {memory["activations_bytes"]} /* in RAM */
#define {prefix}_ARENA_ALIGNMENT {ALIGNMENT}
{deepest}{preprocessing(program, prefix)}
#if defined(__GNUC__) || defined(__ICCARM__) || defined(__ARMCC_VERSION)
#define {prefix}_ALIGNED __attribute__((aligned({prefix}_ARENA_ALIGNMENT)))
#else
#define {prefix}_ALIGNED /* as your compiler has it */
#endif

#ifdef __cplusplus
extern "C" {{
#endif

void {image.name}_run({", ".join(image.parameters)});

/* The same in an arena of the caller's, of {prefix}_ARENA_BYTES at an address that is a multiple of
 * {prefix}_ARENA_ALIGNMENT. Nothing in it has to be kept between calls, or set before the first. */
void {image.name}_run_in(void *arena, {", ".join(image.parameters)});
{_stream(program, image)}{_context(program, image)}
#ifdef __cplusplus
}}
#endif

#endif
"""


def _stream(program: Program, image: Image) -> str:
    """What keeps the state of a network between its calls. It is there twice: a call reads one and writes the other."""
    network: IntegerNetwork | None = program.integer
    if network is None or not network.state:
        return ""
    name, prefix = image.name, image.name.upper()
    kept, given, arguments = _stepped(program, image)
    fields = "\n".join(
        f"  {C_TYPES[port.spec.dtype]} {port.parameter}[2][{prefix}_{port.macro}_SIZE];" for port in kept
    )
    first = "\n".join(
        f"  for (uint32_t place = 0; place < {prefix}_{port.macro}_SIZE; place++)\n"
        f"    stream->{port.parameter}[0][place] = {prefix}_{port.macro}_INITIAL;"
        for port in kept
    )
    return f"""
/* What a stream keeps between its calls. {name}_reset begins one, {name}_step is {name}_run for its next call. */
typedef struct {{
{fields}
  uint8_t turn;
}} {name}_stream;

static inline void {name}_reset({name}_stream *stream) {{
{first}
  stream->turn = 0;
}}

static inline void {name}_step({name}_stream *stream, {given}) {{
  {name}_run({arguments});
  stream->turn = !stream->turn;
}}
"""


def _stepped(program: Program, image: Image) -> tuple[list[CPort], str, str]:
    """The inputs that a stream keeps, the parameters of a call that has the others, and what it passes on."""
    network: IntegerNetwork | None = program.integer
    inputs, outputs = ports(program)
    by_name = [{port.spec.name: port for port in side} for side in (inputs, outputs)]
    states = network.state if network is not None else ()
    kept = [(by_name[0][state.input], by_name[1][state.output]) for state in states]
    passed = {port.parameter: f"stream->{port.parameter}[stream->turn]" for port, _ in kept}
    passed |= {after.parameter: f"stream->{port.parameter}[!stream->turn]" for port, after in kept}
    sides = list(zip((*inputs, *outputs), image.parameters, strict=True))
    given = ", ".join(text for port, text in sides if port.parameter not in passed)
    arguments = ", ".join(passed.get(port.parameter, port.parameter) for port, _ in sides)
    return [port for port, _ in kept], given, arguments


def _context(program: Program, image: Image) -> str:
    """All that one user of the network needs, of whom there may be several at a time."""
    name, prefix = image.name, image.name.upper()
    kept, given, arguments = _stepped(program, image)
    stream = f"  {name}_stream stream;\n" if kept else ""
    begin = f"{name}_reset(&context->stream);" if kept else "(void)context;"
    call = f"  {name}_run_in(context->arena, {arguments});"
    if kept:
        call = f"  {name}_stream *stream = &context->stream;\n{call}\n  stream->turn = !stream->turn;"
    return f"""
/* One user of the network: {name}_init comes first, then {name}_infer as often as there are inputs.
 * Users with contexts of their own may interrupt each other. */
typedef struct {{
  {prefix}_ALIGNED uint8_t arena[{prefix}_ARENA_BYTES + ({prefix}_ARENA_BYTES == 0)];
{stream}}} {name}_context;

static inline void {name}_init({name}_context *context) {{ {begin} }}

static inline void {name}_infer({name}_context *context, {given}) {{
{call}
}}
"""


def network_source(image: Image) -> str:
    """The C of the arena and of the calls, for the compiler that makes the object."""
    name = image.name
    own = (
        f'__attribute__((aligned({ALIGNMENT}), section(".bss.{name}_arena")))\n'
        f"static uint8_t own_arena[{image.arena_bytes}];"
    )
    lines = [
        f'#include "{name}.h"',
        "",
        f"extern const uint8_t {name}_weights[];",
        "",
        *image.prototypes,
        "",
        "/* The kernels' tables for unwinding name these, which a program without exceptions has no use for. */",
        *(f"__attribute__((weak)) void __aeabi_unwind_cpp_pr{number}(void) {{}}" for number in range(2)),
        "",
        *_run(image, image.calls, own),
    ]
    return "\n".join(lines)


def _run(image: Image, calls: Sequence[str], own: str) -> list[str]:
    """The two functions of the network: in an arena of the caller's, and in one of its `own`, which is declared so."""
    name = image.name
    parameters, arguments = (
        ", ".join(image.parameters),
        ", ".join(re.findall(r"\w+(?=,|$)", ",".join(image.parameters))),
    )
    return [
        f"void {name}_run_in(void *given, {parameters}) {{",
        *(["  uint8_t *arena = given;"] if image.arena_bytes else ["  (void)given;"]),
        *(f"  {call}" for call in calls),
        "}",
        "",
        *([own, ""] if image.arena_bytes else []),
        f"void {name}_run({parameters}) {{ {name}_run_in({'own_arena' if image.arena_bytes else '0'}, {arguments}); }}",
        "",
    ]


_WEIGHTS = """    .section .rodata.{name}_weights, "a", %progbits
    .balign {align}
    .global {name}_weights
    .hidden {name}_weights
    .type {name}_weights, %object
{name}_weights:
    .incbin "{file}"
    .size {name}_weights, . - {name}_weights
"""
