"""The backend of boards with a CPU under an operating system: TVM's runtime runs one shared library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tvmflow.bundles.build import build, check, check_network
from tvmflow.measure.local import profile_library, run_vectors, time_library
from tvmflow.measure.roof import measure_roof
from tvmflow.spec import Measurement, Roof, Target, TensorSpec
from tvmflow.targets.cpu.boards import HOST
from tvmflow.targets.kind import Timing, layer_rows

if TYPE_CHECKING:
    from tvmflow.bundles.bundle import Bundle
    from tvmflow.bundles.verify import Runner

__all__ = ["build", "check", "check_network", "find_runner", "time"]


def find_runner(library: Path, target: Target, outputs: Sequence[TensorSpec]) -> tuple[str, Runner]:
    """ "native", or "emulated" or "emulated kernels" under qemu."""
    if target.elf == HOST.elf:
        return "native", lambda inputs: run_vectors(library, inputs, outputs)
    from tvmflow.measure import emulate

    return emulate.method(target), lambda inputs: emulate.run_vectors(library, target, inputs, outputs)


def time(
    bundle: Bundle, *, threads: int | None, repeats: int | None, seconds: float, whole: bool, layers: bool
) -> Timing:
    """Measured where this computer runs the bundle's code itself; each layer in a run of its own."""
    host = HOST
    if bundle.target.elf != host.elf:
        return Timing(note=f"no {bundle.target.name} was at hand, and emulation checks answers, never speed.")
    inputs = bundle.vectors()[0].inputs
    before = _measured_roof(bundle, threads)
    measurement: Measurement | None = None
    layer_us: Sequence[Sequence[float]] = ()
    if whole:
        measurement = time_library(bundle.library, inputs, threads=threads, repeats=repeats, seconds=seconds)
        if bundle.target.name != host.name:
            warning = f"Built for {bundle.target.name}, timed on this computer ({host.cpu.model})."
            measurement = replace(measurement, warnings=(*measurement.warnings, warning))
    if layers:
        runs = (None if whole else repeats) or 50
        layer_us = profile_library(bundle.library, inputs, bundle.layers, threads=threads, repeats=runs)
    return Timing(
        measurement=measurement,
        note="" if whole else "only profiled.",
        layers=layer_rows(layer_us),
        roof=_higher(before, _measured_roof(bundle, threads)),
    )


def _measured_roof(bundle: Bundle, threads: int | None) -> Roof | None:
    memory, host = bundle.manifest["memory"], HOST.cpu
    touched = memory["weights_bytes"] + memory["activations_bytes"]
    return measure_roof(host, bundle.target.arithmetic, threads or host.cores, touched)


def _higher(before: Roof | None, after: Roof | None) -> Roof | None:
    """What was reached before the timed runs or after them: a clock that rose meanwhile rose for both."""
    if before is None or after is None or not before.bytes_per_s or not after.bytes_per_s:
        return after
    return replace(
        after,
        macs_per_s=max(before.macs_per_s, after.macs_per_s),
        bytes_per_s=max(before.bytes_per_s, after.bytes_per_s),
        source=f"{after.source}; before and after the network",
    )
