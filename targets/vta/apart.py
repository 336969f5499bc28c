"""A program with functions of the board's processor, simulated in a process of its own, which these may crash.

`python -m tvmflow.targets.vta.apart PROGRAM LIBRARY FOLDER` is that process: it runs the program in the folder PROGRAM
on the input-NUMBER.npy of FOLDER, whose first axis is the runs, and leaves found-NUMBER.npy there for each row of its
wanted.npy: bytes of the memory when a layer has run, by the layer's number, or at the end, if that is −1.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tvmflow.spec import TvmflowError, VerificationError
from tvmflow.system import children
from tvmflow.system.tensors import load
from tvmflow.targets.vta import program as programs
from tvmflow.targets.vta.cpu import library_here
from tvmflow.targets.vta.program import Executable, Region
from tvmflow.targets.vta.simulate import Machine

END = -1
"""In place of a layer's number."""


def run(
    folder: Path, executable: Executable, wanted: Sequence[tuple[int, Region]], runs: Sequence[tuple[np.ndarray, ...]]
) -> list[list[np.ndarray]]:
    """What lies in each region behind the layer of that number, or at the END, of each run.

    `folder` has the program's files. Raises VerificationError if it crashes or is refused, and what compiling its
    functions raises.
    """
    config, library = executable.config, library_here(executable.source)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        place = Path(name)
        for number, arrays in enumerate(zip(*runs, strict=True)):
            np.save(place / f"input-{number}.npy", np.stack(arrays))
        rows = [(layer, region.offset, region.bytes(config)) for layer, region in wanted]
        np.save(place / "wanted.npy", np.array(rows, np.int64))
        command = children.python("tvmflow.targets.vta.apart", folder.resolve(), library, place)
        done = subprocess.run(command, env=children.environment(), capture_output=True, text=True, check=False)
        if done.returncode == -signal.SIGINT:
            raise KeyboardInterrupt
        if done.returncode < 0:
            crash = signal.Signals(-done.returncode).name
            raise VerificationError(f"{programs.SOURCE} crashed with {crash} when it was run on this computer.")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise VerificationError(f"The program can't be run on this computer: {lines[-1]}")
        found = [load(place / f"found-{number}.npy") for number in range(len(wanted))]
    return [
        [replace(region, offset=0).read(content, config) for content in stack]
        for (_, region), stack in zip(wanted, found, strict=True)
    ]


def main(folder: str, library: str, place: str) -> None:
    """The process itself."""
    executable = programs.read(Path(folder))
    machine, inputs = Machine(executable, Path(library)), executable.inputs
    stacks = [load(Path(place, f"input-{number}.npy"), mmap_mode="r") for number in range(len(inputs))]
    wanted = load(Path(place, "wanted.npy")).tolist()
    found: list[list[np.ndarray]] = [[] for _ in wanted]

    def look(behind: int) -> None:
        for (layer, offset, size), stack in zip(wanted, found, strict=True):
            if layer == behind:
                stack.append(machine.state.dram[offset : offset + size].copy())

    for index in range(len(stacks[0])):
        given = zip(inputs, stacks, strict=True)
        arrays = {port.name: np.asarray(stack[index]).reshape(port.shape) for port, stack in given}
        for number, _ in enumerate(machine.run_layers(arrays)):
            look(number)
        look(END)
    for number, stack in enumerate(found):
        np.save(Path(place, f"found-{number}.npy"), np.stack(stack))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TvmflowError as error:
        sys.exit(str(error))
