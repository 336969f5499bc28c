"""Code for a board with an NVIDIA GPU, made where TVM's CUDA runtime sees the stand-in: real machine code, no source.

Without a driver TVM quietly embeds CUDA C that nobody has compiled. Under the stand-in it builds its real CUDA module,
which asks for machine code and gets it from NVIDIA's compiler. `generate` therefore runs by `standin.call`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmflow.spec import TvmflowError
from tvmflow.system import toolchain
from tvmflow.targets.cuda import codegen, nvrtc, standin

LOWERING = "tvmflow.targets.cuda"
"""What `lower_once` is called in TVM's table of pipelines."""


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


def generate(
    module: str, libraries: tuple[Library, ...], architectures: tuple[str, ...], *, verify: bool = False
) -> Generated:
    """A lowered Relax module, as JSON, → libraries that hold the same machine code. Raises CompileError.

    With `verify`, the stand-in's host code of the kernels is compiled meanwhile, for it takes as long as all the rest.
    """
    import tvm
    from tvm import relax
    from tvm.tirx.compilation_pipeline import register_tir_pipeline
    from tvm_ffi.serialization import from_json_graph_str

    compiled: dict[str, nvrtc.Code] = {}
    failure: list[TvmflowError] = []
    pool = ThreadPoolExecutor(1)

    def compile_source(source: str) -> bytes:
        try:
            if source not in compiled:
                if verify:
                    pool.submit(standin.compile_kernels, source)  # into the cache; who verifies hears what is wrong
                compiled[source] = nvrtc.compile_cuda(source, architectures)
        except TvmflowError as error:
            failure.append(error)  # what comes out of TVM is another error, with a traceback in its message
            raise
        return compiled[source].image

    codegen.use_compiler(compile_source)
    if not tvm.cuda(0).exist:
        raise TvmflowError(
            "TVM's CUDA runtime doesn't take the stand-in for a device, so it would embed no machine code."
        )
    register_tir_pipeline(LOWERING, lower_once())
    # tvm.ir.load_json would write all of it anew in Python, looking for what older versions wrote: many seconds
    loaded = from_json_graph_str(module)
    for library in libraries:
        try:
            target = tvm.target.Target(dict(library.tvm))
            with target:
                executable = relax.build(loaded, target, relax_pipeline=None, tir_pipeline=LOWERING)
        except Exception:
            if failure:
                raise failure[0] from None
            raise
        executable.export_library(
            str(library.path), fcompile=toolchain.fcompile(library.linker, library.tvm["host"]["mtriple"])
        )
    pool.shutdown()
    if len(compiled) > 1:
        raise TvmflowError("The libraries of one build have different kernels, which is a fault of tvmflow.")
    for source, code in compiled.items():
        return Generated(source=source, resources=code.resources)
    return Generated(source="")


def lower_once() -> Callable[[], tuple[Any, Any, Any]]:
    """A TIR pipeline for libraries of the same kernels and different hosts: TVM's own, run for the first only.

    Nothing that it does until host and device are split depends on the host, and it takes seconds for unrolled kernels.
    """
    import tvm
    from tvm.s_tir.pipeline import default_s_tir_pipeline

    lower, finalize_host, finalize_device = default_s_tir_pipeline()
    lowered: list[tvm.IRModule] = []

    def run(module: tvm.IRModule) -> tvm.IRModule:
        if not lowered:
            lowered.append(lower(module))
        host = tvm.target.Target.current().host
        functions = {
            name: func.with_attr("target", host) if func.attrs["target"].kind.name == host.kind.name else func
            for name, func in lowered[0].functions.items()
        }
        return tvm.IRModule(functions, attrs=lowered[0].attrs)

    return lambda: (run, finalize_host, finalize_device)
