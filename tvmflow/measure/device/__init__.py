"""A network on a device without Python: `run`, a program, and `libtvmflow.so`, for programs of one's own.

Both are C over the C interface of TVM's runtime, whose two libraries come along; docs/device.md shows them at work.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmflow.spec import MissingDependencyError, Target, TensorSpec, UserError, VerificationError
from tvmflow.system import runtime, toolchain
from tvmflow.system.host import COMPUTER

HERE = Path(__file__).parent
FOLDER, PROGRAM = "runner", "runner/run"
SECONDS = 600.0
"""After which a self-test is given up; under emulation it is slow."""

COMPILE = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-s")
# The runtime's own need of libstdc++ is the device's business: the linker has none of the board's.
LINK = ("-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN")


def check(target: Target) -> None:
    """Raises MissingDependencyError where there is no runtime that the runner could stand on."""
    if reason := runtime.why_none(target):
        raise MissingDependencyError(f"No runner for {target.name}: {reason}")


def make_runner(
    target: Target,
    linker: toolchain.Linker,
    folder: Path,
    *,
    library: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    vectors: Sequence[str],
    tolerances: Sequence[Sequence[float]],
) -> Path:
    """Make the folder "runner" of a bundle in `folder`. `tolerances` has for each vector that of each output.

    Raises MissingDependencyError, UserError.
    """
    check(target)
    made = folder / FOLDER
    made.mkdir()
    runtimes = [Path(shutil.copy(path, made)) for path in runtime.fetch(target.elf)]
    for name in ("tvmflow.h", "example.c"):
        shutil.copy(HERE / name, made)
    include = (f"-I{runtime.include_folder()}", f"-I{HERE}")
    shared = made / "libtvmflow.so"
    options = (*COMPILE, *include, "-shared", "-fPIC", f"-Wl,-soname,{shared.name}")
    toolchain.link(linker, shared, [HERE / "tvmflow.c", runtimes[0], *LINK, "-ldl"], options)
    toolchain.link(linker, made / "run", [HERE / "run.c", shared, *LINK, "-lm"], (*COMPILE, *include))
    for path in (shared, made / "run"):
        toolchain.check_elf(path, target.elf, target.name)
    described = describe_network(library, inputs, outputs, vectors, tolerances)
    (made / "network.txt").write_text(described, encoding="utf-8")
    return made


def describe_network(
    library: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    vectors: Sequence[str] = (),
    tolerances: Sequence[Sequence[float]] = (),
) -> str:
    """network.txt: what libtvmflow.so has to know, a line each. Raises UserError for names that don't fit a line."""

    def tensor(spec: TensorSpec) -> str:
        if not spec.name or any(character.isspace() for character in spec.name) or len(spec.name) > 255:
            raise UserError(f"A runner can't name the tensor {spec.name!r}; give it a name without spaces.")
        return " ".join(map(str, (spec.name, spec.dtype, *spec.shape)))

    lines = [f"library {library}"]
    lines += [f"input {tensor(spec)}" for spec in inputs] + [f"output {tensor(spec)}" for spec in outputs]
    for name, allowed in zip(vectors, tolerances, strict=True):
        lines += [f"vector {name}", *(f"tolerance {limit!r}" for limit in allowed)]
    return "\n".join(lines) + "\n"


def self_test(root: Path, target: Target) -> dict[str, Any] | None:
    """What `run --self-test` of the bundle at `root` finds; None where this computer can't run it.

    Raises VerificationError if it crashes or finds a wrong answer.
    """
    command: list[str] = []
    if target.elf != COMPUTER.elf:
        from tvmflow.measure import emulate

        try:
            command = emulate.command(target)
        except MissingDependencyError:
            return None
    what = f"The runner for {target.name}"
    try:
        done = subprocess.run(
            [*command, str(root / PROGRAM), "--self-test"], capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"{what} didn't end its self-test in {SECONDS:g} s.") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise VerificationError(f"{what} failed its self-test with exit code {done.returncode}: {said}")
    return json.loads(done.stdout)
