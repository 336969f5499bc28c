"""What the placed calls do to the arena, byte by byte: a second opinion on lifetimes, which knows none.

The calls are followed in their order. Each byte of the arena belongs to the function whose result was written there
last, or to nobody, once a scratch buffer has lain there. What a call reads has to be all of the result that it asks
for, as it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tvm import tirx

from tvmflow.passes.arena import ALIGNMENT
from tvmflow.spec import VerificationError
from tvmflow.targets.cortex_m.attributes import ARGUMENTS, IN_PLACE, NOTHING, OUTPUT, READS, RESULT, SCRATCH

NOBODY = -1


@dataclass(frozen=True)
class _Region:
    """Bytes of the arena from `begin` up to before `end`, and what they are for."""

    begin: int
    end: int
    what: str

    def meets(self, other: _Region) -> bool:
        return self.begin < other.end and other.begin < self.end


@dataclass
class _Arena:
    """Whose each byte is, by the number of the function."""

    size: int
    owner: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.owner = np.full(self.size, NOBODY, np.int64)

    def region(self, argument: str, length: int, what: str) -> _Region:
        begin = int(argument)
        if begin < 0 or begin % ALIGNMENT or begin + length > self.size:
            raise VerificationError(
                f"{what} is placed at bytes {begin} to {begin + length} of an arena of {self.size}, in steps of "
                f"{ALIGNMENT}."
            )
        return _Region(begin, begin + length, what)

    def check_whole(self, region: _Region, number: int) -> None:
        found = self.owner[region.begin : region.end]
        if (found != number).any():
            raise VerificationError(f"{region.what} isn't in the arena any more where it is read.")

    def write(self, region: _Region, number: int) -> None:
        self.owner[region.begin : region.end] = number


def check_arena(functions: Mapping[str, tirx.PrimFunc], size: int) -> None:
    """`functions` in execution order, with ARGUMENTS. Raises VerificationError: then a stage is wrong."""
    arena, numbers = _Arena(size), {name: number for number, name in enumerate(functions)}
    for name, func in functions.items():
        arguments, reads = list(func.attrs[ARGUMENTS]), list(func.attrs[READS])
        given, rest = arguments[: len(reads)], arguments[len(reads) :]
        sources: list[_Region | None] = []
        for read, argument in zip(reads, given, strict=True):
            made = functions.get(read)
            elsewhere = read if made is None else f"output {int(made.attrs[OUTPUT])}"
            if made is None or int(made.attrs[OUTPUT]) != NOTHING:
                if argument != elsewhere:
                    raise VerificationError(f"{name} reads {argument} for {elsewhere}.")
                sources.append(None)
                continue
            region = arena.region(argument, int(made.attrs[RESULT]), f"The result of {read}, which {name} reads,")
            arena.check_whole(region, numbers[read])
            sources.append(region)
        overwritten, result = int(func.attrs[IN_PLACE]), None
        what, length = f"The result of {name}", int(func.attrs[RESULT])
        if overwritten != NOTHING:
            source = sources[overwritten]
            if source is None:
                raise VerificationError(f"{name} overwrites {given[overwritten]}, which isn't in the arena.")
            result = arena.region(given[overwritten], length, what)
            arena.write(source, NOBODY)
        else:
            argument, *rest = rest
            if int(func.attrs[OUTPUT]) == NOTHING:
                result = arena.region(argument, length, what)
            elif argument != f"output {int(func.attrs[OUTPUT])}":
                raise VerificationError(f"{what} is written to {argument}.")
        sizes = func.attrs[SCRATCH].items()
        scratch = [
            arena.region(argument, int(length), f"The buffer {key} of {name}")
            for (key, length), argument in zip(sizes, rest, strict=False)
        ]
        read_only = [region for number, region in enumerate(sources) if number != overwritten]
        used = [region for region in (*read_only, sources[overwritten] if overwritten >= 0 else None) if region]
        _check_apart([*scratch, *([result] if result else [])], [region for region in read_only if region])
        _check_apart(scratch, used)
        for region in scratch:
            arena.write(region, NOBODY)
        if result is not None:
            arena.write(result, numbers[name])


def _check_apart(written: list[_Region], read: list[_Region]) -> None:
    """What a call writes meets neither what it reads nor anything else that it writes."""
    for number, region in enumerate(written):
        for other in (*written[:number], *read):
            if region.meets(other):
                raise VerificationError(f"{region.what} and {other.what} overlap.")
