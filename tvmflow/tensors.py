"""Tensors of every dtype as NumPy arrays and in .npy files, bfloat16 among them, which NumPy hasn't.

`ml_dtypes`, which TVM brings, registers bfloat16 with NumPy by that name. A .npy file can't say it and holds its bytes
as `|V2`, as `numpy.save` writes them by itself; no other dtype of a network is written so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""NumPy itself doesn't count bfloat16 among its floating types."""


def load(path: Path | str, mmap_mode: Literal["r"] | None = None) -> Any:
    """What `numpy.load` gives of a file that holds no pickle, with bfloat16 as such. Raises as it does."""
    array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    return array.view(BFLOAT16) if isinstance(array, np.ndarray) and array.dtype == np.dtype("V2") else array


def is_floating(dtype: str) -> bool:
    return dtype in FLOATS
