"""What can be found out about a bundle on this computer: open, verify, time, profile, report."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from tvmflow.bundles import bundle as bundles
from tvmflow.bundles.verify import verify_bundle
from tvmflow.measure import cycles as modelling
from tvmflow.measure import latency as modelled_latency
from tvmflow.network.agreement import failure_sentence
from tvmflow.report import Report, assemble
from tvmflow.spec import MissingDependencyError, Target, VerificationError
from tvmflow.system import progress
from tvmflow.system.host import COMPUTER
from tvmflow.targets import KINDS
from tvmflow.targets import kind as backends
from tvmflow.targets.about import Tracer
from tvmflow.targets.kind import Gap, Timing


def survey(
    path: Path,
    *,
    threads: int | None = None,
    repeats: int | None = None,
    seconds: float = 3.0,
    timed: bool = True,
    profiled: bool = True,
    must_run: bool = True,
    cycles: bool = False,
) -> Report:
    """The report on the bundle at `path`: verified anew, `timed` and, in a run of its own, `profiled`.

    `repeats` is of the timed runs or, in a survey that only profiles, of the profiled ones. With `must_run`, a bundle
    of another kind of computer raises MissingDependencyError and wrong answers raise VerificationError; without, the
    report says so in place of a latency. What computes something else than the original network is never timed. With
    `cycles`, those of ARM boards and microcontrollers are modelled; other kinds of target raise UserError with
    `must_run`. Where something isn't installed, `not_shown` of the report says what it lacks.
    """
    with bundles.open_bundle(path) as bundle:
        kind = KINDS[bundle.target.kind]
        if must_run and not cycles and kind.needs_device and bundle.target.elf != COMPUTER.elf:
            raise untimed(path, bundle.target, "it is for another kind of computer.")
        progress.at(f"running the golden vectors of {bundle.name} for {bundle.target.name}")
        verdict = verify_bundle(bundle)
        if must_run and verdict["passed"] is None:
            raise MissingDependencyError(verdict["reason"])
        if must_run and not verdict["passed"]:
            raise VerificationError(failure_sentence(verdict, f"{path} ({bundle.name} for {bundle.target.name})"))
        if verdict["passed"] is False:
            return assemble(bundle, verdict, Timing(note="wrong answers aren't timed."))
        progress.at(f"timing {bundle.name} on this computer" if kind.needs_device else f"running {bundle.name}")
        timing = backends.of(bundle.target).time(
            bundle, threads=threads, repeats=repeats, seconds=seconds, whole=timed, layers=profiled
        )
        if cycles and (must_run or kind.tracer is not None):
            timing = _add_cycles(bundle, timing)
        return assemble(bundle, verdict, timing)


def untimed(path: Path, target: Target, reason: str) -> MissingDependencyError:
    """What is raised where a bundle can't be timed on this computer: why, and where it can."""
    kind = KINDS[target.kind]
    if kind.why_not_deployed:
        advice = f"The bundle {kind.why_not_deployed}"
    else:
        advice = f"`tvmflow deploy {path} --ssh user@board` times it on the board."
    if kind.tracer is not None:
        advice += f" `tvmflow profile {path} --cycles` models its cycles here."
    return MissingDependencyError(f"{path} ({target.name}) can't be timed here: {reason} {advice}")


def _add_cycles(bundle: bundles.Bundle, timing: Timing) -> Timing:
    try:
        trace_calls, emulator = backends.tracing(bundle.target)
        progress.at(f"tracing an inference of {bundle.name} and modelling its cycles")
        found = modelling.profile(bundle, trace_calls, emulator)
    except MissingDependencyError as error:
        gap = Gap(what="cycles", reason=str(error), packages=error.packages)
        return replace(timing, note=f"{timing.note} {error}", gaps=[*timing.gaps, gap])
    facts, words = found.facts, modelling.sentence(found.facts)
    tracer = KINDS[bundle.target.kind].tracer
    if tracer is not None and tracer.follows:
        estimate, said = _model_latency(bundle, tracer)
        if estimate is not None:
            facts = {**facts, "latency": estimate.facts()}
        words += f" {said}"
    return replace(timing, note=f"{timing.note} {words}", details=found.layers, cycles=facts)


def _model_latency(bundle: bundles.Bundle, tracer: Tracer) -> tuple[modelled_latency.Estimate | None, str]:
    """The latency that may be shown, and what it is worth or why there is none. Raises MissingDependencyError."""
    core, cpu = bundle.target.tvm["mcpu"], bundle.target.cpu
    figures = {"clock_mhz": cpu.clock_mhz, "cache_bytes": max(cpu.l2_bytes, cpu.l3_bytes)}
    if reason := modelled_latency.why_not(core, **figures):
        return None, reason
    followed = import_module(tracer.module).follow(bundle, modelled_latency.CORES[core].hierarchy)
    estimate = modelled_latency.predict(followed, core, **figures)
    if estimate.doubt:
        return None, estimate.doubt
    return estimate, modelled_latency.sentence(estimate.facts())
