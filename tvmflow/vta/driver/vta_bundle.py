"""Tests and times a bundle on the board that it is on; `tvmflow deploy` runs this there. Python 3.6 and NumPy suffice.

As root: `python3 vta_bundle.py --self-test`, or `--samples SECONDS`, in a bundle's folder "driver". Prints JSON.
"""

import json
import os
import sys
import time

import numpy as np
import vta_driver

BOARDS = {"pynq": "pynq-z1", "ultra96": "ultra96", "zcu104": "zcu104"}
"""Upstream's names of the boards that the driver knows."""
WARMUPS = 10


def self_test(device, root, manifest):
    """The golden vectors. Returns what `tvmflow verify` would say of them."""
    rows = []
    for name in manifest["vectors"]:
        folder = os.path.join(root, "vectors", name)
        expected = np.load(os.path.join(folder, "output-0.npy")).astype(np.int64)
        found = device.run(np.load(os.path.join(folder, "input-0.npy"))).reshape(expected.shape).astype(np.int64)
        error = int(np.abs(found - expected).max())
        rows.append(
            {
                "name": name,
                "passed": error == 0,
                "max_abs_error": error,
                "max_rel_error": error / max(1, int(np.abs(expected).max())),
                "same_argmax": bool(found.argmax() == expected.argmax()),
            }
        )
    return {"passed": all(row["passed"] for row in rows), "vectors": rows}


def time_inferences(device, values, seconds):
    """Milliseconds of single inferences, from the input in tiles to the logits."""

    def once():
        begin = time.perf_counter()
        device.run(values)
        return 1e3 * (time.perf_counter() - begin)

    first, warmup, samples = once(), [once() for _ in range(WARMUPS)], [once()]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(once())
    return {"threads": 1, "first": first, "warmup": warmup, "samples": samples, "cycles": device.cycles}


def main(arguments, **hardware):
    """The command. Returns the exit code: 0, 3 if a vector is off, 1 with a sentence on stderr."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        with open(os.path.join(root, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        upstream = manifest["target"]["vta"]["configuration"]["TARGET"]
        if upstream not in BOARDS:
            raise vta_driver.VtaError("The driver knows {}, not {}.".format(", ".join(BOARDS), upstream))
        core, base = vta_driver.BOARDS[BOARDS[upstream]]
        if not hardware:
            vta_driver.check_bitstream()
        vta_driver.self_test(root, core, base, **hardware)
        begin = time.perf_counter()
        with vta_driver.Device(root, core, base, **hardware) as device:
            setup = 1e3 * (time.perf_counter() - begin)
            if arguments[0] == "--self-test":
                result = self_test(device, root, manifest)
            else:
                values = np.load(os.path.join(root, "vectors", manifest["vectors"][0], "input-0.npy"))
                result = dict(time_inferences(device, values, float(arguments[1])), setup=setup)
    except vta_driver.VtaError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0 if result.get("passed", True) else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
