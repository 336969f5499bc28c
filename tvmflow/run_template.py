"""Run this network: `python run.py INPUT.npy...`. Needs numpy and apache-tvm=={tvm}.

Without an input it runs the golden vectors, and ends with 3 if one is off.
"""

import json
import pathlib
import sys

import numpy as np

sys.modules["torch"] = None  # where it is installed, TVM would import it, which takes seconds
import tvm
from tvm import relax

here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text())
vm = relax.VirtualMachine(tvm.runtime.load_module(str(here / "{library}")), tvm.{device}())


def run(inputs):
    result = vm["main"](*[tvm.runtime.tensor(array, tvm.{device}()) for array in inputs])
    return [output.numpy() for output in ([result] if isinstance(result, tvm.runtime.Tensor) else list(result))]


def read(paths, kind):
    # bfloat16 is two bytes without a meaning in a .npy file, or the uint16 that PyTorch makes of it
    arrays = [np.load(path) for path in paths]
    narrow = [spec["dtype"] == "bfloat16" for spec in manifest[kind + "s"]]
    return [array.view("bfloat16") if is_narrow else array for array, is_narrow in zip(arrays, narrow)]


def golden(vector, kind):
    count = len(manifest[kind + "s"])
    return read([here / "vectors" / vector / (kind + "-%d.npy" % place) for place in range(count)], kind)


def agrees(output, expected, allowed):
    same = (output == expected) | ((output != output) & (expected != expected))
    with np.errstate(invalid="ignore"):
        error = np.abs(output.astype(np.float64) - expected.astype(np.float64))
    return bool(np.all(same | (error <= allowed) if allowed else same))


if len(sys.argv) > 1:
    if len(sys.argv) - 1 != len(manifest["inputs"]):
        sys.exit("run.py takes a .npy file for each of " + ", ".join(spec["name"] for spec in manifest["inputs"]))
    outputs = run(read(sys.argv[1:], "input"))
    for spec, output in zip(manifest["outputs"], outputs):
        print(*([spec["name"] + ":"] if len(outputs) > 1 else []), output, sep="\n")
    sys.exit()
wrong = [
    vector
    for vector, allowed in zip(manifest["vectors"], manifest["tolerances"])
    if not all(map(agrees, run(golden(vector, "input")), golden(vector, "output"), allowed))
]
print(len(manifest["vectors"]) - len(wrong), "of", len(manifest["vectors"]), "golden vectors agree", *wrong)
sys.exit(3 if wrong else 0)
