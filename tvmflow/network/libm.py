"""Functions of C's library in kernels that are written as te."""

from __future__ import annotations

from typing import Any


def libm_of(name: str, *values: Any) -> Any:
    """A function of C's library, which CUDA C has as well."""
    from tvm import tirx

    dtype = str(values[0].ty.dtype)
    suffix = "" if dtype == "float64" else "f"
    wide = "float64" if dtype == "float64" else "float32"
    called = tirx.call_pure_extern(wide, name + suffix, *(value.astype(wide) for value in values))
    return called if dtype == wide else called.astype(dtype)
