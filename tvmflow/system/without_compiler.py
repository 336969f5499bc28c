"""Imported before TVM by processes that run libraries and compile nothing: TVM then comes without its compiler.

TVM's runtime is a hundredth of it and is imported in less than half the time, which every verification, measurement
and session of a board's server waits for. Nor is PyTorch imported, which tvm_ffi does wherever it is installed; that
costs 2 s and 250 MB, and running a library needs none of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's second thread would spin at first, beside what is timed
sys.modules["torch"] = None  # type: ignore[assignment]
os.environ["TVM_USE_RUNTIME_LIB"] = "1"

import tvm_ffi  # noqa: E402

_index = tvm_ffi.core._object_type_key_to_index
# TVM asks for the compiler's types, too, and does without. The first question in vain takes half a second, in which the
# debugging information of every library is read for an error that nobody sees.
tvm_ffi.core._object_type_key_to_index = lambda type_key: _index(type_key) if type_key.startswith("ffi.") else None
import tvm  # noqa: E402

tvm_ffi.core._object_type_key_to_index = _index
for _path in sorted(Path(tvm.__file__).parent.glob("lib/libtvm_runtime_*")):  # of GPUs, sorting and such
    with contextlib.suppress(OSError):  # one that needs a driver which isn't here
        ctypes.CDLL(str(_path))
