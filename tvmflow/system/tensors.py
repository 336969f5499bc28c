"""Tensors of every dtype as NumPy arrays and in .npy files, bfloat16 among them, which NumPy hasn't.

`ml_dtypes`, which TVM brings, registers bfloat16 with NumPy by that name. A .npy file can't say it and holds its bytes
as `|V2`, as `numpy.save` writes them by itself; no other dtype of a network is written so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from tvmflow.system import untrusted

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""NumPy itself doesn't count bfloat16 among its floating types."""


DTYPES = (*FLOATS, "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool")
"""What inputs and outputs of networks can be."""

ARITHMETICS = ("float32", "float16", "int8")
"""What networks are computed in."""


def load(path: Path | str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array of a .npy file, with bfloat16 as such. Raises OSError, and MalformedError, which is a ValueError."""
    array = untrusted.read_array(path, mmap_mode)
    return array.view(BFLOAT16) if array.dtype == np.dtype("V2") else array


def is_floating(dtype: str) -> bool:
    return dtype in FLOATS
