"""What a layer takes at least, whatever its tiling: by the GEMM core, the compute queue, and each port to memory.

The GEMM core and the ALU share one queue, one tile a cycle. A finished tile costs one pass to begin it with a constant
(two with a bias), one to shift it and one or two to saturate it, so a layer with few products for each output is far
from the GEMM core's peak on any program: both bounds are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvmflow.targets.vta.cpu import CpuWork
from tvmflow.targets.vta.nodes import NodeWork
from tvmflow.targets.vta.tiles import Work

AnyWork = Work | NodeWork | CpuWork


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Cycles. `gemm` are the products alone, `compute` those and the ALU's passes, `read` and `write` the ports'."""

    gemm: int
    compute: int
    read: int
    write: int

    @staticmethod
    def of(work: Work | NodeWork, bus_bytes: int) -> Bounds:
        """Weights, biases and inputs are read once, a tile is written in one cycle more than it has bus words."""
        block = work.block
        read = -(-(work.weight_count * block**2 + work.read_tiles * block) // bus_bytes)
        write = work.tiles * (-(-block // bus_bytes) + 1)
        return Bounds(gemm=work.steps, compute=work.compute_cycles, read=read, write=write)

    @property
    def peak(self) -> int:
        """What the GEMM core and the read port allow, the ALU's passes left out."""
        return max(self.gemm, self.read)

    @property
    def least(self) -> int:
        """What no program can be faster than."""
        return max(self.compute, self.read, self.write)

    @property
    def holds(self) -> str:
        """Which bound `least` is: "memory", "store", and of the compute queue the larger part, "gemm" or "alu"."""
        if self.least == self.read:
            return "memory"
        if self.least == self.write:
            return "store"
        return "gemm" if 2 * self.gemm >= self.compute else "alu"

    def details(self) -> dict[str, Any]:
        """For `Layer.details`."""
        return {
            "bound": self.holds,
            "bound_cycles": self.least,
            "gemm_cycles": self.gemm,
            "compute_cycles": self.compute,
            "read_cycles": self.read,
            "write_cycles": self.write,
        }
