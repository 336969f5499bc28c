"""The facts of a VTA in a board's FPGA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvmflow.spec import Facts
from tvmflow.targets.vta.config import Config, from_json


@dataclass(frozen=True, kw_only=True)
class Vta(Facts):
    """The VTA in a board's FPGA: `configuration` has upstream's names, as its JSON files.

    The port to memory carries `bus_bytes` a cycle; `latency_cycles`, from a request to its first data, is an assumption
    for which `latency_band` has what is likely.
    """

    NAME: ClassVar[str] = "vta"

    configuration: Mapping[str, Any]
    clock_mhz: int
    bus_bytes: int
    latency_cycles: int
    latency_band: tuple[int, int]

    def check(self, board: str) -> None:
        self.config(board)

    def config(self, board: str) -> Config:
        """What instructions and buffers follow from. Raises UserError."""
        return from_json(dict(self.configuration), f"The VTA of {board}")
