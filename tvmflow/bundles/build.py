"""Program + Target → bundle: stages, code generation, linking, verification, and only then a file for the user."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tvmflow import __version__
from tvmflow.bundles import bundle
from tvmflow.bundles.verify import failure_sentence, off_beyond_numbers, tolerances, verify_library
from tvmflow.measure import device
from tvmflow.network.vectors import in_arithmetic
from tvmflow.spec import Best, Program, Target, UserError, VerificationError
from tvmflow.system import interrupt, toolchain

log = logging.getLogger(__name__)

Compiler = Callable[..., Program]
"""`compile_library`, or what a kind of target has in its place."""


def build(
    program: Program,
    target: Target,
    out: Path,
    *,
    linker: str = "auto",
    dump_dir: Path | None = None,
    verify: bool = True,
    runner: bool = False,
    records: Mapping[str, Best] | None = None,
    compiler: Compiler | None = None,
    companions: Sequence[str] = (),
    more_versions: Mapping[str, str] = MappingProxyType({}),
) -> bundle.Bundle:
    """Compile `program` for `target` into a bundle at `out` (a directory, or one file if it ends in .tar).

    The library is run against the golden vectors wherever this computer can run it; a library that computes
    something else is never written. `records` are schedules that a search found (`tvmflow.tune.apply.find_records`);
    one that makes the network compute something else is left out, and the log says so. With `runner`, what devices
    without Python need is added and tested in the same way. A kind with a compiler of its own gives it in place of
    `compile_library`; of what that leaves beside the library, the files and folders named by `companions` go into the
    bundle as well. Raises UserError, MissingDependencyError, VerificationError.
    """
    compiler = compiler or compile_library
    program = replace(program, vectors=in_arithmetic(program.vectors, target.arithmetic))
    chosen = check(target, out, linker, runner=runner)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        _require_space(Path(folder), program)
        library = Path(folder, "model.so")
        log.info(f"Compiling {program.name} for {target.name}")
        verdict: Mapping[str, Any] = {"passed": None, "method": None, "reason": "It was built with --no-verify."}
        left = dict(records or {})
        while True:
            tried = replace(program, records=left)
            compiled = compiler(tried, target, chosen, library, dump_dir=dump_dir)
            interrupt.check()
            toolchain.check_elf(library, target.elf, target.name)
            if not verify:
                break
            log.info(f"Verifying {program.name} on {len(program.vectors)} golden vectors")
            verdict = _verdict(library, target, program, tuned=bool(compiled.records))
            if left_out := off_beyond_numbers(verdict):
                log.warning(
                    f"{program.name} gives other results than the original where inputs are NaN or infinite; these "
                    f"golden vectors are left out: {', '.join(left_out)}."
                )
                kept = tuple(vector for vector in program.vectors if vector.name not in left_out)
                program, compiled = replace(program, vectors=kept), replace(compiled, vectors=kept)
                verdict = {**_verdict(library, target, program, tuned=bool(compiled.records)), "left_out": left_out}
            if verdict["passed"] is not False:
                break
            if not compiled.records:
                raise VerificationError(failure_sentence(verdict, f"{program.name} compiled for {target.name}"))
            culprit = _find_culprit(compiler, program, target, chosen, library, compiled.records)
            log.info(
                f"{culprit.name} by the record {culprit.candidate} makes {program.name} compute something else; "
                "it gets its default schedule."
            )
            left = {key: best for key, best in compiled.records.items() if key != culprit.task}
        write = functools.partial(
            bundle.write,
            program=compiled,
            target=target,
            library=library,
            versions={**versions(chosen), **more_versions},
            memory={**compiled.memory, **toolchain.section_bytes(library), "library_bytes": library.stat().st_size},
            verify=verdict,
            extras={name: library.with_name(name) for name in companions if library.with_name(name).exists()},
        )
        interrupt.check()
        if not runner:
            return write(out)
        made = _make_runner(program, target, chosen, Path(folder))
        if verify:
            log.info(f"Testing the runner for {target.name}")
            tested = write(Path(folder, "bundle"), runner=made).root
            shutil.rmtree(made)  # where it was made, it might find what it lacks elsewhere
            made = tested / made.name
            device.self_test(tested, target)
        return write(out, runner=made)


def _make_runner(program: Program, target: Target, linker: toolchain.Linker, folder: Path) -> Path:
    return device.make_runner(
        target,
        linker,
        folder,
        library=bundle.LIBRARY,
        inputs=program.inputs,
        outputs=program.outputs,
        vectors=bundle.vector_names(program),
        tolerances=tolerances(program.vectors, target.arithmetic),
    )


def _verdict(library: Path, target: Target, program: Program, *, tuned: bool) -> Mapping[str, Any]:
    """`verify_library`; a tuned library that crashes has failed and may have a record to blame."""
    try:
        return verify_library(library, target, program.vectors, program.outputs)
    except VerificationError:
        if not tuned:
            raise
        return {"passed": False}


def _find_culprit(
    compiler: Compiler,
    program: Program,
    target: Target,
    linker: toolchain.Linker,
    library: Path,
    records: Mapping[str, Best],
) -> Best:
    """A record without which `records` may pass: the last of the shortest run of them that fails, by halving."""
    keys = list(records)
    passing, failing = 0, len(keys)
    while failing - passing > 1:
        middle = (passing + failing) // 2
        tried = replace(program, records={key: records[key] for key in keys[:middle]})
        compiler(tried, target, linker, library)
        passed = _verdict(library, target, program, tuned=True)["passed"] is not False
        passing, failing = (middle, failing) if passed else (passing, middle)
    return records[keys[failing - 1]]


def _require_space(folder: Path, program: Program) -> None:
    """LLVM ends the whole process when it can't write its object file, so there has to be room before it starts."""
    needed = 3 * 4 * program.parameters + (8 << 20)  # weights in the object, in the library and in the bundle
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The disk is full: {folder.parent} has {free >> 20} MiB free and this build needs about {needed >> 20}; "
            "make room, or set TMPDIR to another folder."
        )


def check(target: Target, out: Path, linker: str = "auto", *, runner: bool = False) -> toolchain.Linker:
    """What can go wrong before anything is compiled: the destination, the runner, and the linker, which is returned."""
    if runner:
        device.check(target)
    bundle.check_destination(out)
    return toolchain.select_linker(target, linker)


def check_network(program: Program, target: Target) -> None:
    """In float32 and float16 everything is taken that can be imported, in int8 chains; else UserError is raised."""
    if target.arithmetic == "int8":
        from tvmflow.integer.chain import float_chain

        float_chain(program)


def compile_library(
    program: Program,
    target: Target,
    linker: toolchain.Linker,
    library: Path,
    *,
    dump_dir: Path | None = None,
) -> Program:
    """Run the stages, generate machine code and link it into `library`. Returns the Program as the stages left it."""
    import tvm
    from tvm import relax

    from tvmflow.pipeline import run_stages

    tvm_target = tvm.target.Target(toolchain.tvm_target_dict(target))
    with tvm_target:
        compiled = run_stages(program, target, dump_dir)
        executable = relax.build(compiled.module, tvm_target, relax_pipeline=None)
    executable.export_library(
        str(library), fcompile=toolchain.fcompile(linker, target.tvm.get("mtriple", target.triple))
    )
    return compiled


def versions(linker: toolchain.Linker) -> dict[str, str]:
    """What the library was made with: enough to make it again."""
    import tvm

    return {
        "tvmflow": __version__,
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
        "torch": importlib.metadata.version("torch"),
        "llvm": str(tvm.target.codegen.llvm_version_major()),
        "linker": f"{linker.name} {linker.version}".strip(),
    }
