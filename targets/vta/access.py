"""Which elements an instruction touches, in the order in which it does, as index arrays."""

from __future__ import annotations

import numpy as np

from tvmflow.targets.vta.isa import Alu, Gemm, Load, Store


def steps(instruction: Gemm | Alu, uops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dst, src and wgt index of each step, int64, from the decoded micro-ops (N×3) that the instruction names."""
    outer = np.arange(instruction.iter_out)[:, None, None]
    inner = np.arange(instruction.iter_in)[None, :, None]
    wgt_factors = (instruction.wgt_factor_out, instruction.wgt_factor_in) if isinstance(instruction, Gemm) else (0, 0)
    dst = outer * instruction.dst_factor_out + inner * instruction.dst_factor_in + uops[:, 0]
    src = outer * instruction.src_factor_out + inner * instruction.src_factor_in + uops[:, 1]
    wgt = outer * wgt_factors[0] + inner * wgt_factors[1] + uops[:, 2]
    return dst.ravel(), src.ravel(), wgt.ravel()


def buffer_range(instruction: Load | Store) -> slice:
    """The elements that a LOAD writes in its buffer, or a STORE reads from OUT."""
    count = instruction.elements if isinstance(instruction, Load) else instruction.y_size * instruction.x_size
    return slice(instruction.sram_base, instruction.sram_base + count)


def memory_units(instruction: Load | Store, element: int, unit: int) -> np.ndarray:
    """The pieces of `unit` bytes of the host's memory that hold the instruction's elements of `element` bytes."""
    rows = instruction.dram_base + np.arange(instruction.y_size)[:, None] * instruction.x_stride
    if element >= unit:
        each = element // unit
        return (rows * each + np.arange(instruction.x_size * each)).ravel()
    return np.unique((rows + np.arange(instruction.x_size)) * element // unit)
