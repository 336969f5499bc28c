"""The hardware configuration of a VTA: what its instruction encoding and buffers follow from.

The names and files are upstream's (apache/tvm-vta, config/*.json), which are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tvmflow.spec import UserError
from tvmflow.system import untrusted

INSTRUCTION_SETS = ("0.0.1", "0.0.2")
"""The two encodings. Upstream's name for them is HW_VER; 0.0.2 (of December 2020) has wider opcodes."""

INSTRUCTION_BYTES = 16
SRAM_ADDRESS_BITS, DRAM_ADDRESS_BITS, SIZE_BITS, PAD_BITS = 16, 32, 16, 4
LOOP_BITS, IMMEDIATE_BITS = 14, 16

BURST_BEATS = (16, 256)
"""Words of the bus that a burst has at most: of AXI3, which Chisel's De10Config keeps to, and of AXI4."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One VTA: base-2 logarithms of bit widths, of the tile's sides, and of the buffers' bytes.

    The defaults are upstream's sample for every board. Raises UserError for values that no VTA can have.
    """

    target: str = "pynq"
    version: str = "0.0.2"
    log_inp_width: int = 3
    log_wgt_width: int = 3
    log_acc_width: int = 5
    log_batch: int = 0
    log_block: int = 4
    log_uop_buffer: int = 15
    log_inp_buffer: int = 15
    log_wgt_buffer: int = 18
    log_acc_buffer: int = 17

    def __post_init__(self) -> None:
        if not isinstance(self.target, str) or untrusted.printable(self.target) != self.target:
            raise UserError(f"TARGET is the name of a board, not {untrusted.shown(self.target)}.")
        if self.version not in INSTRUCTION_SETS:
            raise UserError(
                f"HW_VER {untrusted.shown(self.version)} is no VTA instruction set known here; "
                f"known: {', '.join(INSTRUCTION_SETS)}."
            )
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 30:
                raise UserError(
                    f"{_KEYS[field.name]} is a base-2 logarithm from 0 to 30, not {untrusted.shown(value)}."
                )
        if (self.log_inp_width, self.log_wgt_width, self.log_acc_width) != (3, 3, 5):
            raise UserError(
                "Only VTAs with 8-bit inputs and weights and 32-bit accumulators are supported "
                "(LOG_INP_WIDTH 3, LOG_WGT_WIDTH 3, LOG_ACC_WIDTH 5)."
            )
        for memory, depth in (("UOP", self.log_uop_depth), ("INP", self.log_inp_depth), ("WGT", self.log_wgt_depth)):
            if depth < 1:
                raise UserError(f"LOG_{memory}_BUFF_SIZE is too small: the buffer has to hold two elements.")
        if self.log_acc_depth < 1:
            raise UserError("LOG_ACC_BUFF_SIZE is too small: the buffer has to hold two elements.")
        if max(self.log_inp_depth, self.log_wgt_depth, self.log_acc_depth, self.log_uop_depth) > SRAM_ADDRESS_BITS:
            raise UserError(f"A buffer has more than 2^{SRAM_ADDRESS_BITS} elements, which no instruction can address.")
        if self.log_acc_depth + self.log_uop_src + self.log_wgt_depth > 32:
            raise UserError(
                "The buffers are too deep for a 32-bit micro-op: "
                f"{self.log_acc_depth} + {self.log_uop_src} + {self.log_wgt_depth} index bits."
            )

    @cached_property
    def batch(self) -> int:
        """Rows of an INP, ACC or OUT tile."""
        return 1 << self.log_batch

    @cached_property
    def block(self) -> int:
        """Columns of a tile, and both sides of a WGT tile."""
        return 1 << self.log_block

    @cached_property
    def uop_bytes(self) -> int:
        return 4

    @cached_property
    def inp_bytes(self) -> int:
        """Bytes of one INP tile, and of one OUT tile, in memory."""
        return self.batch * self.block

    @cached_property
    def wgt_bytes(self) -> int:
        return self.block * self.block

    @cached_property
    def acc_bytes(self) -> int:
        return self.batch * self.block * 4

    @cached_property
    def out_bytes(self) -> int:
        return self.inp_bytes

    @cached_property
    def alignment(self) -> int:
        """Bytes that a memory image's base has to be a multiple of: the largest element's size."""
        return max(self.wgt_bytes, self.acc_bytes)

    @cached_property
    def log_uop_depth(self) -> int:
        return self.log_uop_buffer - 2

    @cached_property
    def log_inp_depth(self) -> int:
        return self.log_inp_buffer - self.log_batch - self.log_block

    @cached_property
    def log_wgt_depth(self) -> int:
        return self.log_wgt_buffer - 2 * self.log_block

    @cached_property
    def log_acc_depth(self) -> int:
        return self.log_acc_buffer - self.log_batch - self.log_block - 2

    @cached_property
    def log_uop_src(self) -> int:
        """Bits of a micro-op's source index, which is an INP or an ACC index."""
        return max(self.log_acc_depth, self.log_inp_depth)

    @cached_property
    def uop_depth(self) -> int:
        """Micro-ops that the buffer holds. The Chisel core has fewer: `CHISEL_UOP_DEPTH`."""
        return 1 << self.log_uop_depth

    @cached_property
    def inp_depth(self) -> int:
        return 1 << self.log_inp_depth

    @cached_property
    def wgt_depth(self) -> int:
        return 1 << self.log_wgt_depth

    @cached_property
    def acc_depth(self) -> int:
        """Tiles of the ACC buffer, and of its 8-bit shadow OUT."""
        return 1 << self.log_acc_depth

    @cached_property
    def macs_per_cycle(self) -> int:
        """Multiply-adds that the GEMM core does in a cycle."""
        return self.batch * self.block * self.block

    @property
    def bitstream(self) -> str:
        """What upstream calls the bitstream of this configuration, such as "1x16_i8w8a32_15_15_18_17"."""
        widths = "i{}w{}a{}".format(
            *(1 << width for width in (self.log_inp_width, self.log_wgt_width, self.log_acc_width))
        )
        sizes = (self.log_uop_buffer, self.log_inp_buffer, self.log_wgt_buffer, self.log_acc_buffer)
        return "_".join([f"{self.batch}x{self.block}", widths, *map(str, sizes)])

    def to_json(self) -> dict[str, Any]:
        """The configuration as upstream's file has it."""
        return {key: getattr(self, name) for name, key in _KEYS.items()}


CHISEL_UOP_DEPTH = 2048
"""Micro-ops that the Chisel core's buffer holds whatever the configuration says (CoreConfig.uopMemDepth)."""

_KEYS = {
    "target": "TARGET",
    "version": "HW_VER",
    "log_inp_width": "LOG_INP_WIDTH",
    "log_wgt_width": "LOG_WGT_WIDTH",
    "log_acc_width": "LOG_ACC_WIDTH",
    "log_batch": "LOG_BATCH",
    "log_block": "LOG_BLOCK",
    "log_uop_buffer": "LOG_UOP_BUFF_SIZE",
    "log_inp_buffer": "LOG_INP_BUFF_SIZE",
    "log_wgt_buffer": "LOG_WGT_BUFF_SIZE",
    "log_acc_buffer": "LOG_ACC_BUFF_SIZE",
}


def from_json(values: Any, source: str = "The configuration") -> Config:
    """A configuration from upstream's names. Raises UserError for missing, unknown or impossible values."""
    if not isinstance(values, dict):
        raise UserError(f"{source} is no JSON object with upstream's names, such as LOG_BLOCK.")
    # Upstream derives this one from others; some of its files state it all the same.
    values = {key: value for key, value in values.items() if key != "LOG_OUT_WIDTH"}
    if missing := [key for key in _KEYS.values() if key not in values]:
        raise UserError(f"{source} lacks {', '.join(missing)}.")
    if unknown := sorted(set(values) - set(_KEYS.values())):
        names = ", ".join(map(untrusted.shown, unknown[:3]))
        raise UserError(f"{source} has {names}, which VTA configurations don't have.")
    return Config(**{name: values[key] for name, key in _KEYS.items()})


def read(path: Path) -> Config:
    """Read one of upstream's JSON files. Raises UserError."""
    values = untrusted.read_json(path, what="VTA configuration")
    return from_json(values, untrusted.printable(path.name))


SAMPLES = {name: Config(target=name) for name in ("pynq", "ultra96", "zcu104", "de10nano", "sim", "tsim")}
"""Upstream's sample configurations by TARGET; they differ in nothing else."""
