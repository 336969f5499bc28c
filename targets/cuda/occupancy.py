"""How many threads of a kernel an SM holds at once, and what keeps it from holding more.

The rules are those of NVIDIA's occupancy calculator (cuda_occupancy.h of CUDA 12.9): registers go to warps in pieces of
256 and within one of four partitions of the SM, shared memory to blocks in pieces of 256 or, from sm_80 on, 128 bytes,
where each block also takes 1 KiB for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvmflow.schedules.gpu import Gpu

WARP, PARTITIONS, REGISTER_PIECE = 32, 4, 256


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """`fraction` of the warps that an SM can hold, in `blocks_per_sm` blocks; `limit` is what ends first."""

    blocks_per_sm: int
    fraction: float
    limit: str


def occupancy(gpu: Gpu, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of a kernel with blocks of `threads` threads; registers of a thread, bytes of shared memory of a block."""
    warps = _up(threads, WARP) // WARP
    most_warps = gpu.threads_per_sm // WARP
    new = int(gpu.architecture.removeprefix("sm_")) >= 80
    per_warp = _up(max(registers, 1) * WARP, REGISTER_PIECE)
    warps_by_registers = gpu.registers_per_sm // PARTITIONS // per_warp * PARTITIONS
    blocks = {"blocks": gpu.blocks_per_sm, "threads": most_warps // warps, "registers": warps_by_registers // warps}
    taken = _up(shared_bytes, 128 if new else 256) + (1024 if new else 0)
    if taken:
        blocks["shared memory"] = gpu.shared_bytes_per_sm // taken
    limit = min(blocks, key=lambda name: blocks[name])
    return Occupancy(blocks_per_sm=blocks[limit], fraction=min(1.0, blocks[limit] * warps / most_warps), limit=limit)


def _up(value: int, piece: int) -> int:
    return (value + piece - 1) // piece * piece
