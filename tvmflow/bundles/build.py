"""Program + Target → bundle: compiled by the board's kind, verified, and only then a file for the user."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvmflow.bundles import bundle
from tvmflow.measure import device
from tvmflow.network.agreement import failure_sentence, off_beyond_numbers, tolerances
from tvmflow.network.vectors import in_arithmetic, vector_names
from tvmflow.spec import Best, Program, Target, UserError, Vector, VerificationError
from tvmflow.system import interrupt, toolchain
from tvmflow.targets import kind
from tvmflow.targets.kind import Artifacts

log = logging.getLogger(__name__)


def build(
    program: Program,
    target: Target,
    out: Path,
    *,
    linker: str = "auto",
    dump_dir: Path | None = None,
    verify: bool = True,
    runner: bool = False,
    source: bool = False,
    records: Mapping[str, Best] | None = None,
) -> bundle.Bundle:
    """Compile `program` for `target` into a bundle at `out` (a directory, or one file if it ends in .tar).

    What is compiled is run against the golden vectors wherever this computer can run it; what computes something else
    is never written. `records` are what a search found (`tvmflow.tune.apply.find_records`); one that makes the network
    compute something else is left out, and the log says so. With `runner`, what devices without Python need is added
    and tested in the same way; with `source`, for kinds that have it, the network's source. Raises UserError,
    MissingDependencyError, VerificationError.
    """
    program = replace(program, vectors=in_arithmetic(program.vectors, target.arithmetic))
    chosen = check(target, out, linker, runner=runner)
    if program.integer is not None:
        kind.of(target).check_network(program, target)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder = Path(name)
        _require_space(folder, program)
        log.info(f"Compiling {program.name} for {target.name}")
        how = _How(target=target, linker=chosen, folder=folder, dump_dir=dump_dir, verify=verify, source=source)
        verdict: Mapping[str, Any] = {"passed": None, "method": None, "reason": "It was built with --no-verify."}
        if verify:
            made, verdict = _right(program, dict(records or {}), how)
        else:
            made = how.compile(program, records)
        interrupt.check()
        for note in made.notes:
            log.warning(note)
        write = functools.partial(
            bundle.write,
            program=made.program,
            target=target,
            library=made.library,
            versions=made.versions,
            memory=made.memory,
            verify=verdict,
            extras=made.extras,
            usage=made.usage,
            c_library=made.c_library,
        )
        if not runner:
            return write(out, runner=made.runner)
        assert chosen is not None
        added = _make_runner(replace(program, vectors=made.program.vectors), target, chosen, folder)
        if verify:
            log.info(f"Testing the runner for {target.name}")
            tested = write(folder / "bundle", runner=added).root
            shutil.rmtree(added)  # where it was made, it might find what it lacks elsewhere
            added = tested / added.name
            device.self_test(added.parent, target)
        return write(out, runner=added)


@dataclass(frozen=True, kw_only=True)
class _How:
    """What stays the same however often a network is compiled for one bundle."""

    target: Target
    linker: toolchain.Linker | None
    folder: Path
    dump_dir: Path | None
    verify: bool
    source: bool

    def compile(self, program: Program, records: Mapping[str, Best] | None, *, aside: bool = False) -> Artifacts:
        """In a folder of its own; with `aside` only to be tried, without the dump and the source."""
        from tvmflow.pipeline import run_stages  # which imports TVM and PyTorch

        made = kind.of(self.target).compile(
            replace(program, records=dict(records or {})),
            self.target,
            Path(tempfile.mkdtemp(dir=self.folder)),
            linker=self.linker,
            run_stages=run_stages,
            dump_dir=None if aside else self.dump_dir,
            verify=self.verify,
            source=self.source and not aside,
        )
        interrupt.check()
        return made

    def judge(self, made: Artifacts, vectors: Sequence[Vector]) -> tuple[Mapping[str, Any], Artifacts]:
        """The verdict. What was tuned and crashes has failed, and may have a record to blame."""
        try:
            return kind.of(self.target).verify(made, self.target, vectors)
        except VerificationError:
            if not made.program.records:
                raise
            return {"passed": False}, made


def _right(program: Program, records: dict[str, Best], how: _How) -> tuple[Artifacts, Mapping[str, Any]]:
    """What was compiled and passed, or can't be run here, and the verdict on it. Raises VerificationError."""
    vectors = program.vectors
    while True:
        made = how.compile(program, records)
        log.info(f"Verifying {program.name} on {len(vectors)} golden vectors")
        verdict, made = how.judge(made, vectors)
        if left_out := off_beyond_numbers(verdict):
            log.warning(
                f"{program.name} gives other results than the original where inputs are NaN or infinite; these "
                f"golden vectors are left out: {', '.join(left_out)}."
            )
            vectors = tuple(vector for vector in vectors if vector.name not in left_out)
            program = replace(program, vectors=vectors)
            verdict, made = how.judge(replace(made, program=replace(made.program, vectors=vectors)), vectors)
            verdict = {**verdict, "left_out": left_out}
        if verdict["passed"] is not False:
            return made, verdict
        used = made.program.records
        if not used:
            raise VerificationError(failure_sentence(verdict, f"{program.name} compiled for {how.target.name}"))
        culprit = _find_culprit(program, used, how)
        log.info(
            f"{culprit.name} by the record {culprit.candidate} makes {program.name} compute something else; "
            "it gets its default schedule."
        )
        records = {key: best for key, best in used.items() if key != culprit.task}


def _find_culprit(program: Program, records: Mapping[str, Best], how: _How) -> Best:
    """A record without which `records` may pass: the last of the shortest run of them that fails, by halving."""
    keys = list(records)
    passing, failing = 0, len(keys)
    while failing - passing > 1:
        middle = (passing + failing) // 2
        made = how.compile(program, {key: records[key] for key in keys[:middle]}, aside=True)
        verdict, _ = how.judge(made, program.vectors)
        passing, failing = (passing, middle) if verdict["passed"] is False else (middle, failing)
    return records[keys[failing - 1]]


def _make_runner(program: Program, target: Target, linker: toolchain.Linker, folder: Path) -> Path:
    return device.make_runner(
        target,
        linker,
        folder,
        library=bundle.LIBRARY,
        inputs=program.inputs,
        outputs=program.outputs,
        vectors=vector_names(program),
        tolerances=tolerances(program.vectors, target.arithmetic),
    )


def _require_space(folder: Path, program: Program) -> None:
    """LLVM ends the whole process when it can't write its object file, so there has to be room before it starts."""
    needed = 3 * 4 * program.parameters + (8 << 20)  # weights in the object, in the library and in the bundle
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The disk is full: {folder.parent} has {free >> 20} MiB free and this build needs about {needed >> 20}; "
            "make room, or set TMPDIR to another folder."
        )


def check(target: Target, out: Path, linker: str = "auto", *, runner: bool = False) -> toolchain.Linker | None:
    """What can go wrong before anything is compiled: the destination, the runner, and the linker, which is returned."""
    chosen = kind.of(target).check(target, linker, runner=runner)
    bundle.check_destination(out)
    return chosen
