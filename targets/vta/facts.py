"""The facts of a VTA in a board's FPGA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tvmflow.spec import Facts, UserError
from tvmflow.targets.vta.config import BURST_BEATS, Config, from_json


@dataclass(frozen=True, kw_only=True)
class Vta(Facts):
    """The VTA in a board's FPGA: `configuration` has upstream's names, as its JSON files.

    The port to memory carries `bus_bytes` a cycle; `latency_cycles`, from a request to its first data, is an assumption
    for which `latency_band` has what is likely. The core asks for bursts of `burst_beats`. The port takes
    `port_burst_beats`; where these are fewer, something between splits the core's, and what that costs isn't known.
    """

    NAME: ClassVar[str] = "vta"

    configuration: Mapping[str, Any]
    clock_mhz: int
    bus_bytes: int
    latency_cycles: int
    latency_band: tuple[int, int]
    burst_beats: int
    port_burst_beats: int

    def check(self, board: str) -> None:
        self.config(board)
        for name in ("burst_beats", "port_burst_beats"):
            if getattr(self, name) not in BURST_BEATS:
                raise UserError(
                    f"The VTA of {board} has {name} {getattr(self, name)}: bursts have {BURST_BEATS[0]} beats at most "
                    f"(AXI3) or {BURST_BEATS[1]} (AXI4)."
                )

    def config(self, board: str) -> Config:
        """What instructions and buffers follow from. Raises UserError."""
        return from_json(dict(self.configuration), f"The VTA of {board}")
