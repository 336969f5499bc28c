"""A CUDA driver without a GPU: TVM's real CUDA runtime runs on it, and kernels run as host code, slowly and strictly.

Device memory is this computer's memory; each kernel is compiled from TVM's CUDA C for this computer, its threads being
fibers with real barriers. driver.c has the driver, kernels.h what CUDA C means here and what it refuses. What this
shows is that kernels compute the right numbers; how long that takes says nothing about a GPU and is never shown.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tvmflow.spec import MissingDependencyError, TvmflowError, VerificationError
from tvmflow.system import cache, children, limits, toolchain
from tvmflow.targets.cuda import codegen, nvrtc

HERE = Path(__file__).parent
MAGIC = b"TVMFLOW STANDIN\n"
FLAGS = ("-shared", "-fPIC", "-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-fno-exceptions", "-fno-rtti")
CHECKS = ("-fsanitize=array-bounds,alignment", "-fno-sanitize-recover=all", "-fno-sanitize-trap=all")
"""What kernels.h has its own answers for."""
SANITIZER = (
    "-fsanitize=address,bounds,alignment",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=standin_shared",
    "-g1",
    "-nostdinc++",
)
"""The same in GCC's words, and AddressSanitizer, shared memory included. TVM's text has a `std` of its own."""
SANITIZER_OPTIONS = "detect_leaks=0:redzone=512:abort_on_error=1"
"""Python leaks, and device memory has that many bytes around it that nobody may touch, or more."""

CUDART_VERSION = "libcudart.so.13 { global: cuda*; local: *; };\n"
"""TVM's CUDA runtime wants the functions with this version; in the linker's language."""

HEADERS: dict[str, str] = {
    "cuda/std/cstdint": """#pragma once
#include <stdint.h>
namespace cuda { namespace std {
using ::int8_t; using ::int16_t; using ::int32_t; using ::int64_t;
using ::uint8_t; using ::uint16_t; using ::uint32_t; using ::uint64_t;
} }
""",
    "cuda/std/type_traits": nvrtc.HEADERS["cuda/std/type_traits"],
}

Result = TypeVar("Result")


def call(
    function: Callable[..., Result],
    *arguments: Any,
    architecture: str = "sm_87",
    kernels: Path | None = None,
    order: str = "forward",
    sanitized: bool = False,
    **keywords: Any,
) -> Result:
    """`function(*arguments, **keywords)` in a new process in which TVM finds the stand-in as `tvm.cuda(0)`.

    The function has to be importable, and what it takes and returns picklable; PyTorch isn't there for it. The device
    says that it is of `architecture`. `kernels` is the host code (`compile_kernels`) of whatever machine code is
    loaded; without it, `use_for_kernels` has to be called before a module is built. `order`, of threads in a block, is
    "forward", "reverse" or "shuffled": a race shows in some orders only. `sanitized` has AddressSanitizer watch every
    access to device, shared and local memory, at the first stray one of which the process ends; it takes GCC. Raises
    what the function raises, VerificationError if its process dies, and MissingDependencyError.
    """
    with tempfile.TemporaryDirectory(prefix="tvmflow-standin-") as folder:
        job, answer = Path(folder, "job"), Path(folder, "answer")
        # the path comes first, for the function can't be found without it
        job.write_bytes(pickle.dumps(sys.path) + pickle.dumps((function, arguments, keywords)))
        command = children.python("tvmflow.targets.cuda.standin", job, answer)
        variables = environment(architecture, kernels, order, sanitized=sanitized)
        done = children.finished(command, limits.WORKER, "A process with the stand-in for CUDA", env=variables)
        if not answer.exists():
            raise VerificationError(f"A process with the stand-in for CUDA {_ending(done)}.")
        failed, value = pickle.loads(answer.read_bytes())
    if failed:
        raise value
    return value


def environment(
    architecture: str, kernels: Path | None = None, order: str = "forward", *, sanitized: bool = False
) -> dict[str, str]:
    """The variables with which a new process finds the stand-in; for the arguments see `call`."""
    more = {}
    if sanitized:
        preloaded = os.pathsep.join(map(str, sanitizer_libraries()))
        more = {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": SANITIZER_OPTIONS, "TVMFLOW_STANDIN_SANITIZED": "1"}
    return {
        **children.environment(),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(driver()), os.environ.get("LD_LIBRARY_PATH")])),
        "TVMFLOW_STANDIN_ARCH": architecture.partition("_")[2],
        "TVMFLOW_STANDIN_KERNELS": str(kernels or ""),
        "TVMFLOW_STANDIN_ORDER": order,
        **more,
    }


def sanitizer_libraries() -> tuple[Path, Path]:
    """What a sanitized process loads before all else: AddressSanitizer, and what it wants to find loaded by then.

    Raises MissingDependencyError.
    """
    command = children.which("g++")
    found = []
    for name in ("libasan.so", "libstdc++.so.6") if command else ():
        done = subprocess.run([str(command), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        found.append(Path(done.stdout.strip()))
    if len(found) != 2 or not all(path.is_absolute() for path in found):
        raise MissingDependencyError("AddressSanitizer for the stand-in for CUDA needs GCC: `apt-get install g++`.")
    return found[0], found[1]


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if "ERROR: AddressSanitizer: " in done.stderr:
        return f"was ended by AddressSanitizer: {stray_access(done.stderr)}"
    how = f"died of {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"ended with {done.returncode}"
    last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
    return f"{how}: {last[0].rstrip('.')}" if last else how


def stray_access(report: str) -> str:
    """What AddressSanitizer found, where in which kernel, and beside what, of its report."""
    parts = {
        r"ERROR: AddressSanitizer: ([\w-]+)": r"\1",
        r"(?m)^((?:READ|WRITE) of size \d+)": r"\1",
        r"(?m)^ *#0 \w+ in (\w+).*kernels\.cu:(\d+)": r"\1, line \2",
        r"(?m)is located (.*?)(?: [\[(]0x.*)?$": r"\1",
    }
    found = [(re.search(pattern, report), words) for pattern, words in parts.items()]
    return ", ".join(match.expand(words) for match, words in found if match)


def use_for_kernels() -> None:
    """Let TVM in this process, which `call` made, compile its CUDA C for the stand-in."""
    sanitized = "TVMFLOW_STANDIN_SANITIZED" in os.environ
    codegen.use_compiler(lambda source: image(compile_kernels(source, sanitized=sanitized)))


def image(kernels: Path) -> bytes:
    """What the stand-in takes in place of machine code: the path of host code."""
    return MAGIC + str(kernels).encode() + b"\0"


def remember(code: bytes, source: str, folder: Path) -> None:
    """Let the stand-in run machine code that was made of `source`: where $TVMFLOW_STANDIN_IMAGES is `folder`.

    So a whole way to a GPU can be rehearsed, a search's candidates included, without its knowing of the stand-in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = _digest(code)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        Path(scratch, "host").symlink_to(compile_kernels(source))
        Path(scratch, "image").write_bytes(code)
        os.replace(Path(scratch, "host"), folder / f"{name}.so")
        os.replace(Path(scratch, "image"), folder / f"{name}.image")


def driver() -> Path:
    """The folder with libcuda.so.1 and libcudart.so.13, compiled at first use. Raises MissingDependencyError."""
    source = HERE / "driver.c"
    options = ("-shared", "-fPIC", "-O2", "-fvisibility=default")
    key = _digest(source.read_bytes(), CUDART_VERSION, *options)

    def make(made: Path) -> None:
        cuda, cudart = made / "libcuda.so.1", made / "libcudart.so.13"
        toolchain.link(_compiler(), cuda, [source], (*options, "-Wl,-soname,libcuda.so.1"))
        script = made / "cudart.map"
        script.write_text(CUDART_VERSION)
        version = f"-Wl,--version-script,{script}"
        names = ("-Wl,-soname,libcudart.so.13", version, "-DCUDART")
        toolchain.link(_compiler(), cudart, [source, cuda], (*options, *names))

    return cache.entry("cuda-standin", f"driver-{key}", ["libcuda.so.1", "libcudart.so.13"], make)


def compile_kernels(source: str, *, sanitized: bool = False) -> Path:
    """CUDA C, as TVM writes it → host code of the same kernels, kept in the cache. `sanitized` is as in `call`.

    Raises CompileError for what the stand-in can't do: inline PTX above all, and what only newer GPUs have.
    """
    from tvmflow.system.host import COMPUTER

    text = _host_source(source)
    parts = (HERE / "kernels.h", *sorted((HERE / "include").rglob("*")))
    headers = b"".join(path.read_bytes() for path in parts if path.is_file())
    compiler = toolchain.select_linker(COMPUTER, "g++") if sanitized else _compiler()
    options = (*FLAGS, *(SANITIZER if sanitized else CHECKS))
    key = _digest(text, headers, *HEADERS.values(), compiler.version, *compiler.command, *options)

    def make(made: Path) -> None:
        for name, content in HEADERS.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(content)
        kernels = made / "kernels.cpp"
        kernels.write_text(text)
        includes = (f"-I{made}", f"-I{HERE / 'include'}", f"-I{HERE}")
        try:
            toolchain.link(compiler, made / "kernels.so", [kernels], (*options, *includes))
        except TvmflowError as error:
            raise nvrtc.CompileError(f"The stand-in for CUDA can't run these kernels: {error}") from error

    return cache.entry("cuda-standin", f"kernels-{key}", ["kernels.so"], make) / "kernels.so"


def _compiler() -> toolchain.Linker:
    """zig's clang, the same everywhere."""
    from tvmflow.system.host import COMPUTER

    return toolchain.select_linker(COMPUTER, "zig")


def _host_source(source: str) -> str:
    """The text that is compiled: TVM's own after kernels.h, then a launcher for each kernel."""
    dynamic = re.sub(
        r"extern\s+__shared__\s+(?:(?:__align__|alignas)\(\d+\)\s*)?([\w ]+?)\s+(\w+)\[\];",
        r"\1* const \2 = (\1*)standin::dynamic_shared;",
        source,
    )
    launchers = []
    bodies = re.split(r'(?=extern "C" __global__ void )', dynamic)
    for name in nvrtc.kernel_names(dynamic):
        body = next(text for text in bodies if re.search(rf"\b{name}\([^;{{]*\)\s*\{{", text))
        synchronises = re.search(r"__sync|__shfl|__ballot|__any_|__all_", body) is not None
        launchers.append(f"STANDIN_KERNEL({name}, {str(synchronises).lower()})")
    return '#include "kernels.h"\n#line 1 "kernels.cu"\n' + dynamic + "\n" + "\n".join(launchers) + "\n"


def _digest(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
