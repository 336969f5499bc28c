"""The process that runs a network whose board has no TVM runtime here: the kernels emulated, the rest on this computer.

`python -m tvmflow.measure.emulated_kernels COMMAND LIBRARY RUNS [keep] INPUT…` reads and writes what
`emulated_runner.c` does. TVM's virtual machine for this computer executes the plan inside LIBRARY, whose bytecode is
the same for every board, and hands each kernel call to COMMAND (JSON: `emulated_kernels.c` under its emulator), which
makes it with the board's code.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from elftools.elf.elffile import ELFFile

from tvmflow.measure.emulate import RESERVED_PREFIX, describe, find_kernels, parse_description
from tvmflow.spec import MissingDependencyError
from tvmflow.system import children

PLAN = "relax.VMExecutable"
KEEP = "keep"
"""Before the inputs: what each kernel call leaves is written to call-NUMBER.raw, and said after the outputs."""


def read_library(path: Path) -> tuple[list[str], bytes]:
    """The names of a library's kernels, and the plan that it carries."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        table: Any = elf.get_section_by_name(".dynsym")
        symbols = {symbol.name: symbol for symbol in table.iter_symbols()}
        embedded = symbols[f"{RESERVED_PREFIX}library_bin"]
        section = elf.get_section(embedded["st_shndx"])
        content = section.data()[embedded["st_value"] - section["sh_addr"] :]
    return list(find_kernels(path)), read_plan(content)


def read_plan(content: bytes) -> bytes:
    """Find the plan among the embedded modules: length, two lists (the import tree), then kind and bytes of each."""
    offset = 8

    def number() -> int:
        nonlocal offset
        offset += 8
        return struct.unpack_from("<Q", content, offset - 8)[0]

    def text() -> bytes:
        nonlocal offset
        length = number()
        offset += length
        return content[offset - length : offset]

    lists = [[number() for _ in range(number())] for _ in range(2)]
    for _ in range(len(lists[0]) - 1):
        kind = text().decode()
        if kind == PLAN:
            return text()
        if kind != "_lib":  # the place of the library itself, which has no bytes of its own
            text()
    raise ValueError(f"it carries no {PLAN}")


class Kernels:
    """The emulated process. `kernels[name](*tensors)` runs a kernel and changes the tensors that it changed."""

    def __init__(self, command: list[str]) -> None:
        self.keep = False
        self.calls: list[str] = []
        self.process = subprocess.Popen(
            children.ending_with_us(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout

    def __getitem__(self, name: str) -> Callable[..., None]:
        def call(*tensors: Any) -> None:
            try:
                arrays = [tensor.numpy() for tensor in tensors]
                descriptions = [describe(array) for array in arrays]
            except (AttributeError, MissingDependencyError) as error:
                leave(2, f"the kernel {name} takes what can't be given to emulated code ({error})")
            request = [_text(name.encode()), struct.pack("<I", len(arrays))]
            for array, description in zip(arrays, descriptions, strict=True):
                code, bits, *shape = map(int, description.split(","))
                request += [struct.pack(f"<{3 + len(shape)}I", code, bits, len(shape), *shape), array.tobytes()]
            try:
                self.requests.write(b"".join(request))
                self.requests.flush()
            except BrokenPipeError:
                self.stop(name)
            if struct.unpack("<I", self.read(4, name))[0]:
                message = self.read(struct.unpack("<I", self.read(4, name))[0], name)
                leave(1, f"the kernel {name} failed: {message.decode(errors='replace')}")
            for tensor, array in zip(tensors, arrays, strict=True):
                result = np.frombuffer(self.read(array.nbytes, name), array.dtype).reshape(array.shape)
                if result.tobytes() != array.tobytes():
                    tensor.copyfrom(result)
            if self.keep:
                self.kept(name, tensors[-1].numpy())

        return call

    def kept(self, name: str, array: np.ndarray) -> None:
        """Add what a call has left to the file of that call of each run."""
        with open(f"call-{len(self.calls)}.raw", "ab") as file:
            file.write(array.tobytes())
        self.calls.append(f"{name} {describe(array)}")

    def read(self, count: int, name: str) -> bytes:
        content = self.answers.read(count)
        if len(content) < count:
            self.stop(name)
        return content

    def stop(self, name: str) -> NoReturn:
        """End this process as the emulated one has ended."""
        status = self.process.wait()
        if status < 0:
            leave(1, f"the kernel {name} crashed with {signal.Signals(-status).name}")
        leave(status or 2)  # it has said why


def leave(status: int, message: str = "") -> NoReturn:
    """End this process at once: an exception would have to find its way through TVM's virtual machine."""
    if message:
        print(message, file=sys.stderr, flush=True)
    os._exit(status)


def _text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def main(command: str, library: str, runs: str, *inputs: str) -> None:
    import tvmflow.system.without_compiler  # noqa: F401

    # isort: split
    import tvm
    from tvm.runtime.vm import VirtualMachine

    try:
        names, plan = read_library(Path(library))
        module = tvm.get_global_func(f"ffi.Module.load_from_bytes.{PLAN}")(plan)
    except Exception as error:  # pyelftools, struct and TVM each have their own on a damaged file
        leave(1, f"it can't be read as a library of TVM: {error}")
    kernels = Kernels([*json.loads(command), library])
    if inputs[:1] == (KEEP,):
        kernels.keep, inputs = True, inputs[1:]
    for name in names:
        tvm.register_global_func(name, kernels[name], override=True)
    network = VirtualMachine(module, tvm.cpu())["main"]

    stacks = []
    for index, description in enumerate(inputs):
        dtype, shape = parse_description(description)
        stacks.append(np.fromfile(f"input-{index}.raw", dtype).reshape(-1, *shape))
    for run in range(int(runs)):
        kernels.calls.clear()
        try:
            result = network(*(tvm.runtime.tensor(np.asarray(stack[run])) for stack in stacks))
        except Exception as error:  # whatever TVM says of inputs that don't fit
            leave(1, str(error))
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        for index, output in enumerate(outputs):
            array = output.numpy()
            with open(f"output-{index}.raw", "ab") as file:
                file.write(array.tobytes())
            if run == 0:
                print(describe(array))
        if run == 0 and kernels.keep:
            print(*kernels.calls, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
