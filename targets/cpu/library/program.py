"""A library as the C interface of runners knows networks (`tvmflow.h`), so that these run, test and time it as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmflow.network.c_interface import CPort
from tvmflow.spec import Program, UserError
from tvmflow.targets.cpu.library.calls import Calls, calls_of
from tvmflow.targets.cpu.library.source import C_TYPES, Interface, interface_of, quoted

HERE = Path(__file__).parent
_ADAPTER = (HERE / "adapter.c.in").read_text(encoding="utf-8")


def adapter(program: Program, vectors: Sequence[str], tolerances: Sequence[Sequence[float]]) -> str:
    """The C that implements `tvmflow.h` by the library. Raises UserError for tensors that it has no room for."""
    interface = interface_of(program)
    arguments = [
        *(f"inputs[{number}]" for number in range(len(interface.inputs))),
        *(f"outputs[{number}]" for number in range(len(interface.outputs))),
    ]
    rows = [
        "{" + ", ".join([quoted(name), "{" + ", ".join(map(repr, map(float, allowed))) + "}"]) + "}"
        for name, allowed in zip(vectors, tolerances, strict=True)
    ]
    return _ADAPTER.format(
        name=interface.name,
        prefix=interface.prefix,
        inputs=_tensors(interface, interface.inputs),
        outputs=_tensors(interface, interface.outputs),
        input_count=len(interface.inputs),
        output_count=len(interface.outputs),
        vectors="".join(f"  {row},\n" for row in rows),
        arguments=", ".join(arguments),
        results="".join(f"  {{{', '.join(map(str, result))}}},\n" for result in _results(calls_of(program))),
    )


def _results(calls: Calls) -> list[tuple[int, int, int]]:
    """Of each kernel the number of the output that its last argument is, or -1, its offset in the arena, its bytes."""
    found = []
    for place in (step.arguments[-1] for step in calls.steps):
        if place in calls.outputs:
            found.append((int(place.removeprefix("output ")), 0, calls.outputs[place]))
        else:
            found.append((-1, calls.offsets[place], calls.tensors[place]))
    return found


MOST_DIMS = 8
"""TVMFLOW_MAX_DIMS of tvmflow.h."""


def _tensors(interface: Interface, ports: Sequence[CPort]) -> str:
    lines = []
    for port in ports:
        spec = port.spec
        if len(spec.shape) > MOST_DIMS:
            raise UserError(
                f"{interface.name}'s {spec.name} has {len(spec.shape)} dimensions; a runner takes {MOST_DIMS}."
            )
        shape = ", ".join(map(str, spec.shape)) or "0"
        size = f"sizeof({C_TYPES[port.spec.dtype]}) * {interface.prefix}_{port.macro}_SIZE"
        lines.append(f"  {{{quoted(spec.name)}, {quoted(spec.dtype)}, {len(spec.shape)}, {{{shape}}}, {size}}},\n")
    return "".join(lines)
