"""What a kind of target is to the commands: how a network is built for it, run on this computer, and timed there.

A new kind is one module with the functions of Backend and one line in MODULES, besides its boards and its stages.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from tvmflow.measure.noise import median_interval
from tvmflow.spec import Measurement, Program, Roof, Target, TensorSpec

if TYPE_CHECKING:
    from tvmflow.bundles.bundle import Bundle
    from tvmflow.bundles.verify import Runner
    from tvmflow.spec import Best


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What a report can't say because something isn't installed: of what, why, and Debian's packages that bring it."""

    what: Literal["answers", "instructions", "cycles"]
    reason: str
    packages: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is known of a bundle's latency here: a measurement, or a note that says why there is none.

    `layers` has for each layer its latency as the report gives it, {"basis", "unit", "p50", …}, or is empty. `details`
    has what else was found of each layer, merged into `Layer.details`, or is empty. `roof` is this computer's, where it
    was measured. `timeline` is what the queues of an accelerator did, as `timeline` in docs/report.schema.json, and
    `cycles` are modelled ones of the whole, as docs/report.md has them. `gaps` are what could be told elsewhere.
    """

    measurement: Measurement | None = None
    note: str = ""
    layers: Sequence[Mapping[str, Any]] = ()
    details: Sequence[Mapping[str, Any]] = ()
    roof: Roof | None = None
    timeline: Mapping[str, Any] | None = None
    cycles: Mapping[str, Any] | None = None
    gaps: Sequence[Gap] = ()


def layer_rows(times_us: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Measured times of layers in µs, of each inference, as `Timing.layers` has them."""
    return [
        {
            "basis": "measured",
            "unit": "us",
            "p50": statistics.median(times),
            "min": min(times),
            "interval": median_interval(times),
        }
        for times in times_us
    ]


class Backend(Protocol):
    """The functions of a kind's module."""

    def check(self, target: Target, out: Path, linker: str = "auto", *, runner: bool = False) -> Any:
        """Raise what `build` would raise, before a network is imported."""

    def check_network(self, program: Program, target: Target) -> None:
        """Raise what a build, or quantising before it, says of a float32 network that can't be had on the board."""

    def build(
        self,
        program: Program,
        target: Target,
        out: Path,
        *,
        linker: str = "auto",
        dump_dir: Path | None = None,
        verify: bool = True,
        runner: bool = False,
        records: Mapping[str, Best] | None = None,
    ) -> Bundle:
        """Compile into a bundle, verified wherever this computer can run it."""

    def find_runner(self, library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
        """How `library` is run on this computer, in a word, and the function. Raises MissingDependencyError."""

    def time(
        self, bundle: Bundle, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
    ) -> Timing:
        """What this computer can say of the latency of the `whole` and of the `layers` of a bundle that is right."""


MODULES: dict[str, str] = {
    "llvm": "tvmflow.targets.cpu.backend",
    "arm_cpu": "tvmflow.targets.cpu.backend",
    "cuda": "tvmflow.targets.cuda.backend",
    "vta": "tvmflow.targets.vta.backend",
    "cortex_m": "tvmflow.targets.cortex_m.backend",
}
"""The module of each kind of target."""

NEED_NO_DEVICE = ("vta", "cortex_m")
"""Kinds whose `time` needs no device: their latency is simulated, or there is none and instructions are counted."""


def of(target: Target) -> Backend:
    """The backend of a board's kind."""
    return cast(Backend, import_module(MODULES[target.kind]))
