"""What a search asks of a candidate for a GPU: machine code; without a GPU a model's time, and whether it is right.

`compile_for_gpu` and `Model` run in processes of `tvmflow.tune.worker`, `check_kernels` by `standin.call`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tvm
from tvm.s_tir.meta_schedule.arg_info import ArgInfo

from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import TvmflowError
from tvmflow.targets.cuda import codegen, counts, model, nvrtc
from tvmflow.targets.cuda.passes.bind_threads import launches
from tvmflow.targets.cuda.passes.plain_names import with_plain_names


class Model:
    """Compiles {"module"}, a scheduled kernel as TVM's JSON, and answers with its modelled time and its resources."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.target = settings["target"]
        self.gpu = Gpu(**settings["gpu"])
        self.constants = model.Constants(**settings["constants"])

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        module = with_plain_names(tvm.ir.load_json(job["module"]))
        source, kernels = counts.lower(module, self.target)
        try:
            code = nvrtc.compile_cuda(source, (self.gpu.architecture,))
        except TvmflowError as error:
            return {"outcome": "failed", "message": str(error)}
        resources = code.resources[self.gpu.architecture]
        time_us = model.modelled_us(self.gpu, kernels, resources, self.constants)
        if not np.isfinite(time_us):
            return {"outcome": "failed", "message": f"no SM of {self.gpu.model} can hold a block of it"}
        taken = {name: asdict(row) for name, row in resources.items()}
        return {"outcome": "ok", "us": time_us, "resources": taken}


def compile_for_gpu(module: tvm.IRModule, target: tvm.target.Target) -> Any:
    """A candidate's library with machine code in it, or that of the unscheduled kernel for the CPU beside the GPU.

    Raises CompileError, and TvmflowError without a driver, for then TVM would embed CUDA C that nobody has compiled.
    """
    if not any(launches(module["main"])):
        return tvm.compile(module, target=target.host)
    if not tvm.cuda(0).exist:
        raise TvmflowError("TVM's CUDA runtime finds no GPU here")
    codegen.use_compiler(lambda source: nvrtc.compile_cuda(source, (str(target.attrs["arch"]),)).image)
    return tvm.compile(with_plain_names(module), target=target)


def check_kernels(pairs: Sequence[tuple[str, str]], target: dict[str, Any]) -> list[str]:
    """By `standin.call`: for each kernel, unscheduled and scheduled (JSON), "" or what is wrong with the latter.

    Each buffer is filled with noise; those that the unscheduled kernel changes, on this computer's CPU, have to be the
    same afterwards.
    """
    from tvmflow.network.agreement import within_tolerance
    from tvmflow.targets.cuda import standin

    standin.use_for_kernels()
    names = [f"kernel{place}" for place in range(len(pairs))]
    references = [tvm.ir.load_json(reference)["main"] for reference, _ in pairs]
    scheduled = [with_plain_names(tvm.ir.load_json(candidate))["main"] for _, candidate in pairs]
    host = tvm.compile(_together(names, references), target="llvm")
    device_code = tvm.compile(_together(names, scheduled), target=tvm.target.Target(target))
    found = []
    for name, reference in zip(names, references, strict=True):
        generator = np.random.default_rng(0)
        before = [_noise(generator, info) for info in ArgInfo.from_prim_func(reference)]
        wanted = [tvm.runtime.tensor(array, tvm.cpu()) for array in before]
        host[name](*wanted)
        after = [tensor.numpy() for tensor in wanted]
        changed = [not np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
        given = [
            tvm.runtime.tensor(
                np.full_like(array, np.nan) if output and array.dtype.kind == "f" else array, tvm.cuda(0)
            )
            for array, output in zip(before, changed, strict=True)
        ]
        try:
            device_code[name](*given)
        except RuntimeError as error:
            found.append(str(error).strip().splitlines()[-1])
            continue
        right = all(within_tolerance(want, got.numpy()) for want, got in zip(after, given, strict=True))
        found.append("" if right else "it computes something else than the unscheduled kernel")
    return found


def _together(names: Sequence[str], functions: Sequence[Any]) -> tvm.IRModule:
    return tvm.IRModule(
        {name: func.with_attr("global_symbol", name) for name, func in zip(names, functions, strict=True)}
    )


def _noise(generator: np.random.Generator, info: Any) -> np.ndarray:
    shape, dtype = [int(dim) for dim in info.shape], np.dtype(str(info.dtype))
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)  # an index of that size is in every table
