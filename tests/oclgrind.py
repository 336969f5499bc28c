"""GPU kernels under Oclgrind: a schedule in its OpenCL form runs thread by thread; races and stray reads are told."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import tirx

from tvmflow.targets.cuda.passes.bind_threads import launches

LIMITS = ("max_num_threads", "max_threads_per_block", "max_shared_memory_per_block", "thread_warp_size")
FOUND = re.compile(r"^((?:Read-write|Write-write) data race|Invalid (?:read|write)).*", re.MULTILINE)
KERNEL = re.compile(r"^__kernel void (?:__attribute__\(\([^)]*\)\)\) )?(\w+)\(([^)]*)\) \{", re.MULTILINE)


def complaints(
    func: tirx.PrimFunc, target: dict, folder: Path, mutate: Callable[[str], str] = lambda source: source
) -> list[str]:
    """What Oclgrind says of a scheduled kernel, each once; its float32 parameters are filled with ones."""
    opencl = {"kind": "opencl", "host": {"kind": "llvm"}, **{key: target[key] for key in LIMITS}}
    built = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm.target.Target(opencl))
    module = getattr(built, "mod", built)
    while module.imports:
        module = module.imports[0]
    source = mutate(module.inspect_source(""))
    (folder / "kernels.cl").write_text(source)
    sizes = {f"{param.name}_ptr": 4 * math.prod(map(int, param.shape)) for param in func.params}
    said = []
    found = list(KERNEL.finditer(source))
    assert len(found) == len(launches(func)), source
    for (name, parameters), axes in zip((match.groups() for match in found), launches(func), strict=True):
        local = [axes.get(f"threadIdx.{axis}", 1) for axis in "xyz"]
        whole = [axes.get(f"blockIdx.{axis}", 1) * size for axis, size in zip("xyz", local, strict=True)]
        names = [text.split()[-1] for text in parameters.split(",")]
        arguments = [f"<size={sizes[name]} float fill=1>" for name in names]
        job = ["kernels.cl", name, " ".join(map(str, whole)), " ".join(map(str, local)), "", *arguments]
        (folder / "job.sim").write_text("\n".join(job) + "\n")
        done = subprocess.run(
            ["oclgrind-kernel", "--data-races", "--max-errors", "50", "job.sim"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said += [match.group(1) for match in FOUND.finditer(done.stdout + done.stderr)]
    return sorted(set(said))
