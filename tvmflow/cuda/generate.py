"""Code for a board with an NVIDIA GPU, made where TVM's CUDA runtime sees the stand-in: real machine code, no source.

Without a driver TVM quietly embeds CUDA C that nobody has compiled. Under the stand-in it builds its real CUDA module,
which asks for machine code and gets it from NVIDIA's compiler. `generate` therefore runs by `standin.call`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmflow import toolchain
from tvmflow.cuda import nvrtc
from tvmflow.spec import TvmflowError


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library to link: TVM's target with its host, who links it, and where it goes."""

    tvm: Mapping[str, Any]
    linker: toolchain.Linker
    path: Path


@dataclass(frozen=True, kw_only=True)
class Generated:
    """CUDA C of the kernels ("" if there are none) and what each takes, by architecture and name."""

    source: str
    resources: Mapping[str, Mapping[str, nvrtc.Resources]] = field(default_factory=dict)


def generate(module: str, libraries: tuple[Library, ...], architectures: tuple[str, ...]) -> Generated:
    """A lowered Relax module, as JSON, → libraries that hold the same machine code. Raises CompileError."""
    import tvm
    import tvm_ffi
    from tvm import relax
    from tvm.support import nvcc  # noqa: F401 - it registers a compiler of its own when it is imported

    compiled: dict[str, nvrtc.Code] = {}
    failure: list[TvmflowError] = []

    def compile_source(source: str) -> bytes:
        try:
            if source not in compiled:
                compiled[source] = nvrtc.compile_cuda(source, architectures)
        except TvmflowError as error:
            failure.append(error)  # what comes out of TVM is another error, with a traceback in its message
            raise
        return compiled[source].image

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_source, override=True)
    if not tvm.cuda(0).exist:
        raise TvmflowError(
            "TVM's CUDA runtime doesn't take the stand-in for a device, so it would embed no machine code."
        )
    for library in libraries:
        try:
            target = tvm.target.Target(dict(library.tvm))
            with target:
                executable = relax.build(tvm.ir.load_json(module), target, relax_pipeline=None)
        except Exception:
            if failure:
                raise failure[0] from None
            raise
        executable.export_library(
            str(library.path), fcompile=toolchain.fcompile(library.linker, library.tvm["host"]["mtriple"])
        )
    if len(compiled) > 1:
        raise TvmflowError("The libraries of one build have different kernels, which is a fault of tvmflow.")
    for source, code in compiled.items():
        return Generated(source=source, resources=code.resources)
    return Generated(source="")
