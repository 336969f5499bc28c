"""What lives only for a while gets its place: in one arena, packed by lifetime, or in a thread's own memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tvmflow.passes.arena import pack
from tvmflow.passes.lifetimes import Tensor
from tvmflow.spec import Program, Target
from tvmflow.targets.cpu.library.calls import Calls, Phase, calls_of, lifetimes

ALIGNMENT = 64
"""Bytes, of tensors and weights: a cache line, and no vector is longer."""


def place_in_arena(program: Program, target: Target) -> Program:
    """`Calls.offsets`, and the sizes of the arena and of a thread's memory, go into the calls and `Program.memory`."""
    calls = calls_of(program)
    offsets, arena = pack([*lifetimes(calls), *_scratch(calls)], ALIGNMENT)
    share = max((sum(map(aligned, phase.shares)) for phases in calls.phases.values() for phase in phases), default=0)
    made = replace(calls, offsets=offsets, arena_bytes=arena, share_bytes=share)
    memory = {**program.memory, "activations_bytes": arena + sum(calls.outputs.values())}
    return replace(program, made=made, memory=memory)


def _scratch(calls: Calls) -> Iterator[Tensor]:
    """What a kernel needs for itself, for as long as it runs."""
    for number, step in enumerate(calls.steps):
        sizes: dict[int, int] = {}
        for phase in calls.phases[step.kernel]:
            sizes |= phase.scratch
        for key, size in sizes.items():
            yield Tensor(name=scratch_name(number, key), bytes=size, first=number, last=number)


def scratch_name(step: int, key: int) -> str:
    """The key in `Calls.offsets` of a kernel's scratch memory, by its number in the kernel."""
    return f"{step} scratch {key}"


def share_offsets(phase: Phase) -> list[int]:
    """Where in a thread's own memory each of a phase's buffers lies, in bytes."""
    found, offset = [], 0
    for size in phase.shares:
        found.append(offset)
        offset += aligned(size)
    return found


def aligned(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT
