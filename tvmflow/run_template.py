"""Run this network: `python run.py [input.npy]`. Needs numpy and apache-tvm=={tvm}; checks itself without an input."""

import pathlib
import sys

import numpy as np
import tvm
from tvm import relax

here = pathlib.Path(__file__).parent
vm = relax.VirtualMachine(tvm.runtime.load_module(str(here / "{library}")), tvm.{device}())
paths = sys.argv[1:] or sorted((here / "vectors" / "{vector}").glob("input-*.npy"))
result = vm["main"](*[tvm.runtime.tensor(np.load(path), tvm.{device}()) for path in paths])
for output in [result] if isinstance(result, tvm.runtime.Tensor) else list(result):
    print(output.numpy())
