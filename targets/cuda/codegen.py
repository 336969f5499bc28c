"""TVM's generator of CUDA C: which compiler it hands its text to, and what the text has before the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EXTREMES = """
// Of NaN and a number these give NaN, as PyTorch does; CUDA's own max and min give the number. Integers lose nothing.
template <class A, class B> __forceinline__ __device__ auto max_or_nan(A a, B b) {
  return a > b || !(a == a) ? a : b;
}
template <class A, class B> __forceinline__ __device__ auto min_or_nan(A a, B b) {
  return a < b || !(a == a) ? a : b;
}
#define max max_or_nan
#define min min_or_nan
"""
"""A comparison that is false for NaN chooses `b`, so a NaN there stays. Where `b` is a constant it is two instructions;
of integers NVIDIA's compiler makes its one."""

KERNEL = 'extern "C" __global__ '


def use_compiler(compile_source: Callable[[str], bytes]) -> None:
    """Let TVM in this process hand CUDA C to `compile_source`, which gives machine code for it."""
    import tvm_ffi
    from tvm.support import nvcc  # noqa: F401 - it registers a compiler of its own when it is imported

    tvm_ffi.register_global_func("tvm_callback_cuda_postproc", complete, override=True)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_source, override=True)


def complete(source: str, target: Any = None) -> str:
    """CUDA C as TVM wrote it, with what its kernels need of us before them."""
    head, kernel, rest = source.partition(KERNEL)
    return f"{head}{EXTREMES}\n{kernel}{rest}" if kernel else source
