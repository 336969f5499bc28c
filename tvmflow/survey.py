"""What can be found out about a bundle on this computer: open, verify, time, profile, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tvmflow import bundle as bundles
from tvmflow.measure.local import profile_library, time_library
from tvmflow.report import Report, assemble
from tvmflow.spec import VerificationError
from tvmflow.targets import TARGETS
from tvmflow.verify import failure_sentence, verify_bundle


def survey(
    path: Path,
    *,
    threads: int | None = None,
    repeats: int | None = None,
    seconds: float = 3.0,
    timed: bool = True,
    profiled: bool = True,
    must_run: bool = True,
) -> Report:
    """The report on the bundle at `path`: verified anew, `timed` and, in a run of its own, `profiled`.

    `repeats` is of the timed runs or, in a survey that only profiles, of the profiled ones. With `must_run`, a bundle
    of another kind of computer raises UserError and wrong answers raise VerificationError; without, the report says
    so in place of a latency. What computes something else than the original network is never timed.
    """
    with bundles.open_bundle(path) as bundle:
        if must_run:
            bundles.require_native(bundle)
        verdict = verify_bundle(bundle)
        if must_run and not verdict["passed"]:
            raise VerificationError(failure_sentence(verdict, f"{path} ({bundle.name} for {bundle.target.name})"))
        if bundle.target.elf != TARGETS["host"].elf:
            note = f"no {bundle.target.name} was at hand, and emulation checks answers, never speed."
            return assemble(bundle, verdict, note=note)
        if not verdict["passed"]:
            return assemble(bundle, verdict, note="wrong answers aren't timed.")
        inputs = bundle.vectors()[0].inputs
        measurement, layer_us = None, None
        if timed:
            measurement = time_library(bundle.library, inputs, threads=threads, repeats=repeats, seconds=seconds)
            if bundle.target.name != "host":
                warning = f"Built for {bundle.target.name}, timed on this computer ({TARGETS['host'].cpu.model})."
                measurement = replace(measurement, warnings=(*measurement.warnings, warning))
        if profiled:
            runs = (None if timed else repeats) or 50
            layer_us = profile_library(bundle.library, inputs, bundle.layers, threads=threads, repeats=runs)
        return assemble(
            bundle, verdict, measurement=measurement, note="" if timed else "only profiled.", layer_us=layer_us
        )
