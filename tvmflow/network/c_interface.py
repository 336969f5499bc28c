"""A network's interface in C: its name, those of its inputs and outputs, and what the latter mean."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvmflow.spec import Program, TensorSpec


def c_name(name: str) -> str:
    """A network's name as an identifier of C."""
    found = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return found if found and not found[0].isdigit() else f"network_{found}".rstrip("_")


@dataclass(frozen=True, kw_only=True)
class CPort:
    """An input or output in C: the parameter of NAME_run, what begins its macros behind NAME_, and what it is."""

    parameter: str
    macro: str
    spec: TensorSpec


WORDS = """
alignas alignof and arena asm auto bitand bitor bool break case catch char class compl const constexpr continue
decltype default delete do double else enum explicit export extern false float for friend goto if inline int long
mutable namespace new noexcept not nullptr operator or private protected public register restrict return short
signed sizeof static struct switch template this thread_local throw true try typedef typeid typename union unsigned
using virtual void volatile while xor int8_t uint8_t int16_t uint16_t int32_t uint32_t int64_t uint64_t
context given own_arena place stream turn
"""
RESERVED = frozenset(WORDS.split())
"""What no parameter is called: words of C and C++, and what generated code calls something else."""


def ports(program: Program) -> tuple[Sequence[CPort], Sequence[CPort]]:
    """The inputs and outputs in C. One alone is `input` or `output`; several have their own names."""
    sides = {"input": program.inputs, "output": program.outputs}
    taken = {kind for kind, specs in sides.items() if len(specs) == 1}
    found: dict[str, list[CPort]] = {"input": [], "output": []}
    for kind, specs in sides.items():
        if len(specs) == 1:
            found[kind].append(CPort(parameter=kind, macro=kind.upper(), spec=specs[0]))
            continue
        for number, spec in enumerate(specs):
            plain = re.sub(r"\W+", "_", spec.name, flags=re.ASCII).strip("_").lower()
            if not plain or plain[0].isdigit() or plain in RESERVED or plain.startswith(f"{c_name(program.name)}_"):
                plain = f"{kind}_{plain or number}"
            for name in itertools.chain([plain], (f"{plain}_{again}" for again in itertools.count(2))):
                macro = f"{kind}_{name.removeprefix(f'{kind}_')}".upper()
                if taken.isdisjoint((name, macro)):
                    break
            taken |= {name, macro}
            found[kind].append(CPort(parameter=name, macro=macro, spec=spec))
    return found["input"], found["output"]


def with_scales(program: Program) -> list[tuple[CPort, tuple[float | None, int]]]:
    """The inputs and outputs in order; those of an integer network with the real value of one step, and zero points."""
    inputs, outputs = ports(program)
    network: Any = program.integer
    if network is None:
        return [(port, (None, 0)) for port in (*inputs, *outputs)]
    scales = [(port.scale, port.zero_point) for port in (*network.inputs, *network.outputs)]
    return list(zip((*inputs, *outputs), scales, strict=True))


def preprocessing(program: Program, prefix: str) -> str:
    """How a byte of an image becomes an element of the input, channel by channel."""
    pre = program.preprocessing
    if pre is None:
        return ""
    scale, formula = 1.0, "float = pixel * FACTOR[channel] + TERM[channel]"
    if program.integer is not None:
        scale = program.integer.input_scale
        formula = "int8 = clip(round(pixel * FACTOR[channel] + TERM[channel]), -128, 127)"
    factors = [1 / (255 * deviation * scale) for deviation in pre.std]
    terms = [-mean / (deviation * scale) for mean, deviation in zip(pre.mean, pre.std, strict=True)]
    lines = [
        "",
        f"/* {formula}, with RGB pixels from 0 to 255 */",
        f"#define {prefix}_PIXEL_FACTORS {{{', '.join(f'{value:.9g}f' for value in factors)}}}",
        f"#define {prefix}_PIXEL_TERMS {{{', '.join(f'{value:.9g}f' for value in terms)}}}",
        "",
    ]
    return "\n".join(lines)


def literal(value: float) -> str:
    """A number in C: an integer with all of its digits, of a float32 as many as tell it from its neighbours."""
    if isinstance(value, int):
        return str(value)
    if math.isfinite(value):
        return f"{value:.9g}"
    return '__builtin_nanf("")' if math.isnan(value) else f"{'-' * (value < 0)}__builtin_inff()"
