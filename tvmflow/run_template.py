"""Run this network: `python run.py INPUT.npy...`. Needs numpy and apache-tvm=={tvm}.

Without an input it runs the golden vectors, and ends with 3 if one is off.
"""

import json
import pathlib
import sys

import numpy as np
import tvm
from tvm import relax

here = pathlib.Path(__file__).parent
vm = relax.VirtualMachine(tvm.runtime.load_module(str(here / "{library}")), tvm.{device}())


def run(inputs):
    result = vm["main"](*[tvm.runtime.tensor(array, tvm.{device}()) for array in inputs])
    return [output.numpy() for output in ([result] if isinstance(result, tvm.runtime.Tensor) else list(result))]


def golden(vector, kind):
    count = len(manifest[kind + "s"])
    return [np.load(here / "vectors" / vector / (kind + "-%d.npy" % place)) for place in range(count)]


def agrees(output, expected, allowed):
    expected = expected.view(output.dtype)
    same = (output == expected) | ((output != output) & (expected != expected))
    with np.errstate(invalid="ignore"):
        error = np.abs(output.astype(np.float64) - expected.astype(np.float64))
    return bool(np.all(same | (error <= allowed) if allowed else same))


if len(sys.argv) > 1:
    print(*run([np.load(path) for path in sys.argv[1:]]), sep="\n")
    sys.exit()
manifest = json.loads((here / "manifest.json").read_text())
wrong = [
    vector
    for vector, allowed in zip(manifest["vectors"], manifest["tolerances"])
    if not all(map(agrees, run(golden(vector, "input")), golden(vector, "output"), allowed))
]
print(len(manifest["vectors"]) - len(wrong), "of", len(manifest["vectors"]), "golden vectors agree", *wrong)
sys.exit(3 if wrong else 0)
