"""CUDA C → machine code for any NVIDIA GPU, by NVIDIA's own compiler from the Python package index.

The wheel nvidia-cuda-nvrtc-cu12 brings a whole compiler as one library: no CUDA toolkit, no driver and no GPU is
needed. Its 12.9 is the last that compiles for Maxwell, Pascal and Volta (sm_50 to sm_72), and it knows everything from
there to Blackwell. Three more wheels bring headers (float16) and the packing of fat binaries.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvmflow.spec import MissingDependencyError, TvmflowError

PACKAGES: dict[str, str] = {
    "cuda_nvrtc": "nvidia-cuda-nvrtc-cu12",
    "nvfatbin": "nvidia-nvfatbin-cu12",
    "cuda_runtime": "nvidia-cuda-runtime-cu12",
    "cuda_cccl": "nvidia-cuda-cccl-cu12",
}
"""The wheels, by their folders in `nvidia`: the compiler, the packer, float16's header and what that includes."""

HEADERS: dict[str, str] = {
    # TVM includes these two for a few names. Reading NVIDIA's own versions takes 0.8 s, eight times the compilation.
    "cuda/std/cstdint": """#pragma once
namespace cuda { namespace std {
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned uint32_t;
typedef unsigned long long uint64_t;
} }
""",
    "cuda/std/type_traits": """#pragma once
namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class T, class... Others> constexpr bool is_one_of = (is_same_v<T, Others> || ...);
template <class T> struct is_floating_point { static constexpr bool value = is_one_of<T, float, double>; };
template <class T> struct is_unsigned {
  static constexpr bool value = is_one_of<T, bool, unsigned char, unsigned short, unsigned, unsigned long,
                                          unsigned long long>;
};
template <class T> struct is_integral {
  static constexpr bool value = is_unsigned<T>::value ||
                                is_one_of<T, char, signed char, short, int, long, long long>;
};
template <class T> struct is_signed {
  static constexpr bool value = is_floating_point<T>::value || (is_integral<T>::value && !is_unsigned<T>::value);
};
template <bool, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
""",
}

ARCHITECTURE = re.compile(r"(sm|compute)_\d{2,3}")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the assembler says of one kernel: registers and bytes of a thread, bytes of shared memory of a block."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    barriers: int


@dataclass(frozen=True, kw_only=True)
class Code:
    """What a compilation made: `image` for `cuModuleLoadData`, and what each kernel takes on each architecture."""

    image: bytes
    resources: Mapping[str, Mapping[str, Resources]] = field(default_factory=dict)


class CompileError(TvmflowError):
    """CUDA C that doesn't compile. The message names the kernel and has the compiler's first error."""


def compile_cuda(source: str, architectures: Sequence[str]) -> Code:
    """Machine code for one architecture ("sm_87"), or a fat binary for several, "compute_90" standing for PTX.

    PTX is what later GPUs translate for themselves; alone it comes as text that a zero ends. `source` is C++17 as TVM
    writes it. Raises CompileError, MissingDependencyError, and ValueError for names that are no architectures.
    """
    if not architectures:
        raise ValueError("no architecture was given")
    for name in architectures:
        if not ARCHITECTURE.fullmatch(name):
            raise ValueError(f"{name!r} is no architecture: they are called sm_87 or, for PTX, compute_87")
    images, resources = {}, {}
    for name in dict.fromkeys(architectures):
        images[name], log = _compile(source, name)
        if name.startswith("sm_"):
            resources[name] = read_resources(log)
    image = next(iter(images.values())) if len(images) == 1 else pack(images)
    if folder := os.environ.get("TVMFLOW_STANDIN_IMAGES"):
        from tvmflow.targets.cuda import standin

        standin.remember(image, source, Path(folder))
    return Code(image=image, resources=resources)


def pack(images: Mapping[str, bytes]) -> bytes:
    """A fat binary of machine code ("sm_…") and PTX ("compute_…"), from which a driver takes what fits its GPU."""
    library = ctypes.CDLL(str(_find("nvfatbin", "libnvfatbin.so.*")))
    handle = ctypes.c_void_p()

    def call(function: str, *arguments: object) -> None:
        if code := getattr(library, function)(*arguments):
            raise TvmflowError(f"NVIDIA's packer of fat binaries failed in {function} with code {code}.")

    call("nvFatbinCreate", ctypes.byref(handle), None, ctypes.c_size_t(0))
    try:
        for name, image in images.items():
            number = name.partition("_")[2].encode()
            common = (handle, image, ctypes.c_size_t(len(image)), number, b"kernels")
            if name.startswith("sm_"):
                call("nvFatbinAddCubin", *common)
            else:
                call("nvFatbinAddPTX", *common, b"")
        size = ctypes.c_size_t()
        call("nvFatbinSize", handle, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call("nvFatbinGet", handle, buffer)
        return buffer.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


@functools.cache
def supported() -> tuple[str, ...]:
    """Numbers of the architectures that the compiler knows: "50", "52", …. Raises MissingDependencyError."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(numbers))
    return tuple(str(number) for number in numbers)


def version() -> str:
    """Version of the compiler's package. Raises MissingDependencyError."""
    _find("cuda_nvrtc", "libnvrtc.so.*")
    return importlib.metadata.version(PACKAGES["cuda_nvrtc"])


def kernel_names(source: str) -> tuple[str, ...]:
    """The kernels that a CUDA C source of TVM defines, in order."""
    return tuple(match.group(1) for match in _DEFINITION.finditer(source))


def require() -> None:
    """Raises MissingDependencyError unless everything that compiling takes is installed."""
    _library()
    _find("nvfatbin", "libnvfatbin.so.*")
    _include_folders()


def _find(folder: str, pattern: str) -> Path:
    try:
        found = importlib.util.find_spec(f"nvidia.{folder}")
    except ModuleNotFoundError:
        found = None
    for root in (found.submodule_search_locations or ()) if found else ():
        for kind in ("lib", "include"):
            for path in sorted(Path(root, kind).glob(pattern)):
                return path
    raise MissingDependencyError(
        f"Compiling for CUDA needs the Python package {PACKAGES[folder]}, part of `pip install 'tvmflow[cuda]'`."
    )


@functools.cache
def _library() -> ctypes.CDLL:
    # the compiler opens its built-ins by their name, which the loader knows only if they are loaded already
    ctypes.CDLL(str(_find("cuda_nvrtc", "libnvrtc-builtins.so.*")), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(_find("cuda_nvrtc", "libnvrtc.so.*")))


def _include_folders() -> tuple[Path, Path]:
    return _find("cuda_runtime", "cuda_fp16.h").parent, _find("cuda_cccl", "nv/target").parents[1]


def _check(code: int) -> None:
    if code:
        _library().nvrtcGetErrorString.restype = ctypes.c_char_p
        raise TvmflowError(f"NVIDIA's compiler failed: {_library().nvrtcGetErrorString(code).decode()}.")


def _compile(source: str, architecture: str) -> tuple[bytes, str]:
    library, program = _library(), ctypes.c_void_p()
    names = (ctypes.c_char_p * len(HEADERS))(*(name.encode() for name in HEADERS))
    texts = (ctypes.c_char_p * len(HEADERS))(*(text.encode() for text in HEADERS.values()))
    arguments = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
        "--define-macro=INFINITY=__int_as_float(0x7f800000)",  # <math.h> isn't there
        *(f"--include-path={folder}" for folder in _include_folders()),
        *(() if architecture.startswith("compute_") else ("--ptxas-options=-v",)),
        # and without TVM's own --use_fast_math: sin, pow and others would be off by more than any bound, and no check
        # that needs no GPU could see it
    ]
    encoded = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
    _check(
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", len(HEADERS), texts, names)
    )
    try:
        failed = library.nvrtcCompileProgram(program, len(arguments), encoded)
        log = _read(program, "ProgramLog").decode(errors="replace").replace("\0", "")
        if failed:
            raise CompileError(_sentence(source, architecture, log))
        return _read(program, "PTX" if architecture.startswith("compute_") else "CUBIN"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


_ENTRY = re.compile(r"Compiling entry function '(\w+)'.*?(?=Compiling entry function|\Z)", re.DOTALL)
_DEFINITION = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\([^;{]*\)\s*\{')
_ERROR = re.compile(r"kernels\.cu\((\d+)\): (?:catastrophic )?error[^:]*: (.*)")


def read_resources(log: str) -> dict[str, Resources]:
    """What the assembler wrote about each kernel."""

    def number(pattern: str, text: str) -> int:
        found = re.search(pattern, text)
        return int(found.group(1)) if found else 0

    return {
        entry.group(1): Resources(
            registers=number(r"Used (\d+) registers", entry.group()),
            shared_bytes=number(r"(\d+) bytes smem", entry.group()),
            stack_bytes=number(r"(\d+) bytes stack frame", entry.group()),
            spill_bytes=number(r"(\d+) bytes spill stores", entry.group())
            + number(r"(\d+) bytes spill loads", entry.group()),
            barriers=number(r"used (\d+) barriers", entry.group()),
        )
        for entry in _ENTRY.finditer(log)
    }


def _sentence(source: str, architecture: str, log: str) -> str:
    found = _ERROR.search(log)
    if refused := re.search(r"ptxas error\s*: Entry function '(\w+)' (.*)", log):
        return f"The CUDA kernel {refused.group(1)} doesn't compile for {architecture}: it {refused.group(2)}."
    if not found:
        lines = [line.strip() for line in log.splitlines() if "error" in line.lower()] or [log.strip() or "no reason"]
        return f"The CUDA kernels don't compile for {architecture}: {lines[0].rstrip('.')}."
    line, reason = int(found.group(1)), found.group(2).strip().rstrip(".")
    start = sum(len(text) for text in source.splitlines(keepends=True)[: line - 1])
    before = [match.group(1) for match in _DEFINITION.finditer(source) if match.start() <= start]
    kernel = f"The CUDA kernel {before[-1]}" if before else "What the CUDA kernels have in common"
    return f"{kernel} doesn't compile for {architecture}: {reason} (line {line})."
