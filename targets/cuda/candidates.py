"""What a search of kernels asks of this kind: where candidates run, how they are compiled, their modelled time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import MissingDependencyError, Target

if TYPE_CHECKING:
    import tvm

    from tvmflow.targets.cuda.model import Constants


def choose_runner(choice: str, target: Target) -> tuple[str, str]:
    """The runner for a board, no other computer being named, and the reason: a GPU is here, or a model ranks them.

    Raises MissingDependencyError.
    """
    from tvmflow.targets.cuda import nvrtc
    from tvmflow.targets.cuda.backend import missing_device

    nvrtc.require()
    if choice == "modelled":
        return "modelled", "candidates are compiled and ranked by a model; nothing is measured"
    missing = missing_device(target)
    if missing is None:
        return "local", "its GPU is in this computer"
    if choice == "local":
        raise MissingDependencyError(f"--runner local times on a GPU in this computer, and {missing}.")
    return "modelled", (
        f"{missing}. Candidates are compiled and ranked by a model; a GPU would let them be measured, and is the only "
        "way to know which is fastest"
    )


def environment(target: Target) -> dict[str, str]:
    """The variables of a process that compiles candidates: TVM needs a driver to embed machine code, the stand-in."""
    from tvmflow.targets.cuda import standin

    return standin.environment(Gpu.of(target).architecture)


def compile_kernel(module: tvm.IRModule, target: tvm.target.Target) -> Any:
    """`rank.compile_for_gpu`, in a process with that environment."""
    from tvmflow.targets.cuda.rank import compile_for_gpu

    return compile_for_gpu(module, target)


def model(settings: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`rank.Model`, whose answers have a modelled time."""
    from tvmflow.targets.cuda.rank import Model

    return Model(settings)


def constants(path: Path | None) -> Constants:
    """What the model of a GPU's time is steered by, which a calibration has measured. Raises UserError."""
    from tvmflow.targets.cuda.model import Constants, load_constants

    return Constants() if path is None else load_constants(path)


def save_constants(constants: Constants, path: Path) -> None:
    """Write a calibration."""
    from tvmflow.targets.cuda.model import save_constants as save

    save(constants, path)


def check(pairs: Sequence[tuple[str, str]], target: Target) -> list[str]:
    """`rank.check_kernels`, in a process of its own, on the stand-in for a GPU."""
    from tvmflow.system.host import COMPUTER
    from tvmflow.targets.cuda import standin
    from tvmflow.targets.cuda.rank import check_kernels

    tvm_target = {**target.tvm, "host": {"kind": "llvm", "mtriple": COMPUTER.triple}}
    return standin.call(check_kernels, pairs, tvm_target, architecture=Gpu.of(target).architecture)
