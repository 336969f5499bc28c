"""The C of a library: its header, and what calls the kernels, in C99 that any compiler takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmflow import __version__
from tvmflow.network.c_interface import CPort, c_name, ports, preprocessing, with_scales
from tvmflow.spec import Program, Target, UserError
from tvmflow.targets.cpu.library.calls import Calls, Phase, calls_of
from tvmflow.targets.cpu.library.places import ALIGNMENT, aligned, scratch_name, share_offsets

HERE = Path(__file__).parent
POOL = HERE / "pool.h"

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "uint16_t",
    "bfloat16": "uint16_t",
    "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""Of inputs and outputs; of numbers that C99 has no type for their bits."""

MOST_THREADS = 64


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A tensor that a network keeps between the calls of a stream: its input, its output, and what it begins with."""

    before: CPort
    after: CPort
    initial: int


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network's names in C, and what of its inputs and outputs a stream keeps."""

    name: str
    inputs: Sequence[CPort]
    outputs: Sequence[CPort]
    kept: Sequence[Kept]

    @property
    def prefix(self) -> str:
        """What macros begin with."""
        return self.name.upper()

    @property
    def parameters(self) -> list[str]:
        """Those of NAME_run behind the context."""
        return [*(_input(port) for port in self.inputs), *(_output(port) for port in self.outputs)]

    @property
    def stepped(self) -> list[str]:
        """Those of NAME_step behind the context."""
        names = {port.parameter for state in self.kept for port in (state.before, state.after)}
        return [
            *(_input(port) for port in self.inputs if port.parameter not in names),
            *(_output(port) for port in self.outputs if port.parameter not in names),
        ]


def _input(port: CPort) -> str:
    return f"const {C_TYPES[port.spec.dtype]} *{port.parameter}"


def _output(port: CPort) -> str:
    return f"{C_TYPES[port.spec.dtype]} *{port.parameter}"


def interface_of(program: Program) -> Interface:
    """Raises UserError for dtypes that C can't point to."""
    inputs, outputs = ports(program)
    for port in (*inputs, *outputs):
        if port.spec.dtype not in C_TYPES:
            raise UserError(
                f"{program.name} can't be a library: C has nothing for {port.spec.name}, {port.spec.dtype}."
            )
    network: Any = program.integer
    sides = [{port.spec.name: port for port in side} for side in (inputs, outputs)]
    kept = [
        Kept(before=sides[0][state.input], after=sides[1][state.output], initial=state.initial)
        for state in (network.state if network is not None else ())
    ]
    return Interface(name=c_name(program.name), inputs=inputs, outputs=outputs, kept=kept)


def header(program: Program, target: Target, digest: str) -> str:
    """NAME.h. `digest` is the SHA-256 of kernels and weights, which the library can be asked for."""
    interface, calls = interface_of(program), calls_of(program)
    name, prefix = interface.name, interface.prefix
    comment = " ".join((program.name if program.name.isprintable() and "*/" not in program.name else name).split())
    return _HEADER.format(
        title=f"{comment}: {_arithmetic(program, target)} for {target.cpu.model}, made by tvmflow {__version__}.",
        name=name,
        prefix=prefix,
        ports="\n".join(_constants(program, interface)),
        preprocessing=preprocessing(program, prefix),
        weights=program.memory["weights_bytes"],
        arena=calls.arena_bytes,
        share=calls.share_bytes,
        most=MOST_THREADS,
        kernels=len(calls.steps),
        kernel_names=", ".join(map(quoted, kernel_names(program))),
        version=__version__,
        digest=digest,
        parameters=", ".join(interface.parameters),
        step=_step_declaration(interface),
    )


def kernel_names(program: Program) -> list[str]:
    """Of each kernel in the order of calls, the modules whose work it does, or its own name where none is known."""
    calls = calls_of(program)
    if [layer.kernel for layer in program.layers] != [step.kernel for step in calls.steps]:
        return [step.kernel for step in calls.steps]
    return [", ".join(layer.modules) or layer.kernel for layer in program.layers]


def _arithmetic(program: Program, target: Target) -> str:
    return "an integer network" if program.integer is not None else f"a network in {target.arithmetic}"


def _constants(program: Program, interface: Interface) -> list[str]:
    """Macros for each input and output: name, elements, shape, bytes, and of integers what they mean."""
    lines: list[str] = []
    zero_points = program.integer is not None and program.integer.scheme == "tflite"
    for port, (scale, zero_point) in with_scales(program):
        spec, macro = port.spec, f"{interface.prefix}_{port.macro}"
        shown = "×".join(map(str, spec.shape)) or "one value"
        lines += [
            f"#define {macro}_NAME {quoted(spec.name)}",
            f"#define {macro}_SIZE {math.prod(spec.shape)} /* {spec.dtype}, {shown} */",
            f"#define {macro}_RANK {len(spec.shape)}",
            f"#define {macro}_SHAPE {{{', '.join(map(str, spec.shape)) or '0'}}}",
        ]
        if scale is not None:
            lines.append(f"#define {macro}_SCALE {scale!r}")
        if zero_points:
            lines.append(f"#define {macro}_ZERO_POINT {zero_point} /* real = scale * (value - zero point) */")
    return lines


def quoted(value: str) -> str:
    """A string of C, of bytes that every compiler reads alike."""
    return (
        '"'
        + "".join(
            chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in value.encode()
        )
        + '"'
    )


def _step_declaration(interface: Interface) -> str:
    if not interface.kept:
        return ""
    name = interface.name
    return f"""
/* {name}_run for the next call of a stream: what the network keeps is the context's, from {name}_reset on. */
{interface.prefix}_API int {name}_step({", ".join((f"{name}_context *context", *interface.stepped))});
"""


def caller(program: Program) -> str:
    """NAME.c: the calls of the kernels, and the context that they work in."""
    interface, calls = interface_of(program), calls_of(program)
    name, prefix = interface.name, interface.prefix
    fields = [
        *(f"  const void *in{number};" for number in range(len(interface.inputs))),
        *(f"  void *out{number};" for number in range(len(interface.outputs))),
    ]
    passed = [
        "frame_.arena = context->arena;",
        "frame_.shares = context->shares;",
        *(f"frame_.in{number} = {port.parameter};" for number, port in enumerate(interface.inputs)),
        *(f"frame_.out{number} = {port.parameter};" for number, port in enumerate(interface.outputs)),
    ]
    functions, runs = _steps(name, calls)
    return _CALLER.format(
        name=name,
        prefix=prefix,
        alignment=ALIGNMENT,
        share=aligned(calls.share_bytes),
        state=aligned(_state_bytes(interface)),
        arena=aligned(calls.arena_bytes),
        fields="\n".join(fields),
        prototypes="\n".join(_prototypes(name, calls)),
        functions="\n".join(functions),
        parameters=", ".join(interface.parameters),
        checks=" || ".join(map(_refused, (*interface.inputs, *interface.outputs))),
        passed="\n  ".join(passed),
        runs="\n  ".join(runs),
        reset=_reset(interface),
        step=_step(interface),
    )


def _refused(port: CPort) -> str:
    """The condition of C under which a pointer can't be one to such a tensor."""
    kind, name = C_TYPES[port.spec.dtype], port.parameter
    return f"!{name}" if kind.endswith("int8_t") else f"!{name} || (uintptr_t){name} % sizeof({kind})"


def _prototypes(name: str, calls: Calls) -> list[str]:
    weights = [f"extern const uint8_t {name}_weights[];"] if calls.constants else []
    taken = {step.kernel: len(step.arguments) for step in calls.steps}
    found = []
    for kernel, count in taken.items():
        for phase in calls.phases[kernel]:
            pointers = ["void *"] * (count + len(phase.scratch) + len(phase.shares))
            bounds = [] if phase.extent is None else ["int32_t", "int32_t"]
            found.append(f"void {name}_{phase.function}({', '.join((*pointers, *bounds))});")
    return [*weights, *found]


def weight_offsets(calls: Calls) -> tuple[dict[str, int], int]:
    """Where each constant lies among the weights, in bytes, and how many these are."""
    found, offset = {}, 0
    for place, array in calls.constants.items():
        found[place] = offset
        offset += aligned(array.nbytes)
    return found, offset


def _steps(name: str, calls: Calls) -> tuple[list[str], list[str]]:
    """A function of C for each phase of each step, and what NAME_run does one after the other."""
    weights, _ = weight_offsets(calls)

    def pointer(place: str) -> str:
        kind, _, number = place.partition(" ")
        if kind == "constant":
            return f"(void *)({name}_weights + {weights[place]})"
        if kind == "input":
            return f"(void *)frame->in{number}"
        if kind == "output":
            return f"frame->out{number}"
        return f"frame->arena + {calls.offsets[place]}"

    functions, runs = [], []
    for number, step in enumerate(calls.steps):
        for part, phase in enumerate(calls.phases[step.kernel]):
            arguments = [*map(pointer, step.arguments)]
            arguments += [f"frame->arena + {calls.offsets[scratch_name(number, key)]}" for key in phase.scratch]
            arguments += [f"frame->shares + (size_t)worker * SHARE_BYTES + {offset}" for offset in share_offsets(phase)]
            function = f"step_{number:03}_{part}"
            functions.append(_function(function, f"{name}_{phase.function}", arguments, phase))
            if phase.extent is None:
                runs.append(f"{function}(frame, 0, 0, 0);")
            else:
                runs.append(f"STEP(in_parallel(context, {function}, frame, {phase.extent}));")
        runs.append(f"TICK({number + 1});")
    for source, output in calls.copies:
        runs.append(f"memcpy({pointer(output)}, {pointer(source)}, {calls.outputs[output]});")
    return functions, runs


def _function(function: str, kernel: str, arguments: Sequence[str], phase: Phase) -> str:
    bounds = [] if phase.extent is None else ["begin", "end"]
    unused = [] if phase.shares else ["worker"]
    unused += ["begin", "end"] if phase.extent is None else []
    if not any("frame->" in argument for argument in arguments):
        unused.append("frame")
    lines = [
        f"static void {function}(const void *closure, int32_t worker, int32_t begin, int32_t end) {{",
        "  const frame *frame = closure;",
        *(f"  (void){name};" for name in unused),
        f"  {kernel}({', '.join((*arguments, *bounds))});",
        "}",
        "",
    ]
    return "\n".join(lines)


def _state_bytes(interface: Interface) -> int:
    """Of what is kept: there twice, as a call reads one and writes the other."""
    return sum(2 * aligned(_bytes(state.before)) for state in interface.kept)


def _bytes(port: CPort) -> int:
    width = {"float64": 8, "float32": 4, "bool": 1, "float16": 2, "bfloat16": 2}.get(port.spec.dtype)
    return math.prod(port.spec.shape) * (width or int(port.spec.dtype.lstrip("uint")) // 8)


def _slots(interface: Interface) -> list[tuple[Kept, int, int]]:
    """Of each kept tensor where its first half lies, and how far from it the second does."""
    found, offset = [], 0
    for state in interface.kept:
        half = aligned(_bytes(state.before))
        found.append((state, offset, half))
        offset += 2 * half
    return found


def _reset(interface: Interface) -> str:
    lines = []
    for state, offset, _ in _slots(interface):
        kind, count = C_TYPES[state.before.spec.dtype], math.prod(state.before.spec.shape)
        lines += [
            f"  for (size_t place_ = 0; place_ < {count}; place_++)",
            f"    (({kind} *)(context->state + {offset}))[place_] = {state.initial};",
        ]
    return "\n".join([*lines, "  context->turn = 0;"])


def _step(interface: Interface) -> str:
    if not interface.kept:
        return ""
    name = interface.name
    passed: dict[str, str] = {}
    for state, offset, half in _slots(interface):
        kind = C_TYPES[state.before.spec.dtype]
        passed[state.before.parameter] = f"({kind} *)(context->state + {offset} + context->turn * {half})"
        passed[state.after.parameter] = f"({kind} *)(context->state + {offset} + !context->turn * {half})"
    arguments = [passed.get(port.parameter, port.parameter) for port in (*interface.inputs, *interface.outputs)]
    return f"""
int {name}_step({", ".join((f"{name}_context *context", *interface.stepped))}) {{
  int status_;
  if (!context || context->made != MADE) return {interface.prefix}_ERROR_ARGUMENT;
  status_ = {name}_run({", ".join(("context", *arguments))});
  if (status_ == {interface.prefix}_OK) context->turn = !context->turn;
  return status_;
}}
"""


_HEADER = (HERE / "header.h.in").read_text(encoding="utf-8")
_CALLER = (HERE / "caller.c.in").read_text(encoding="utf-8")
