"""A network's tensors, out of its firmware while it runs: qemu stops it after each kernel, and memory is looked at.

What runs is the library as it is, by its own calls, in one arena whose places are used again and again. qemu is asked
over the protocol that GDB speaks with it, of which six packets are enough.
"""

from __future__ import annotations

import math
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow.spec import Program, Target, VerificationError
from tvmflow.system import children
from tvmflow.targets.cortex_m import machine
from tvmflow.targets.cortex_m.attributes import IN_PLACE, LAYERS, NOTHING, READS, RESULT
from tvmflow.targets.cortex_m.facts import Mcu
from tvmflow.targets.cortex_m.machine import Arrays
from tvmflow.targets.cortex_m.stages import choose_kernels, functions_of

SP, LR, PC = 13, 14, 15
ARGUMENTS_IN_REGISTERS = 4
MOST_BYTES = 1024
"""Of memory, that one packet asks for."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A kernel as it is called: its name, its layers', which argument points to the result, and the result's bytes."""

    kernel: str
    layers: tuple[str, ...]
    argument: int
    size: int


def calls_of(program: Program, target: Target) -> list[Call]:
    """The calls of an integer network's firmware in their order, by the rules that made it."""
    found = []
    for kernel, func in functions_of(choose_kernels(program, target)).items():
        reads, overwritten = len(func.attrs[READS]), int(func.attrs[IN_PLACE])
        found.append(
            Call(
                kernel=kernel,
                layers=tuple(map(str, func.attrs[LAYERS])),
                argument=reads if overwritten == NOTHING else overwritten,
                size=int(func.attrs[RESULT]),
            )
        )
    return found


def capture(
    library: Path, target: Target, name: str, program: Program, calls: Sequence[Call], runs: Sequence[Arrays]
) -> list[list[bytes]]:
    """What each of the `calls` leaves in each of the runs. Raises MissingDependencyError, VerificationError."""
    qemu = machine.find_qemu()
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as scratch:
        folder = Path(scratch)
        firmware = machine.prepare(folder, library, target, name, runs, program.outputs)
        functions = machine.functions_of(firmware)
        command = machine.command(qemu, Mcu.of(target).machine, firmware)
        left: list[list[bytes]] = [[] for _ in calls]
        with _stopped(command, folder, machine.SECONDS_PER_INFERENCE, f"{library.name} for {target.name}") as debugger:
            for _ in runs:
                for call, found in zip(calls, left, strict=True):
                    debugger.run_to(functions[f"{name}_{call.kernel}"].start)
                    registers = debugger.registers()
                    if call.argument < ARGUMENTS_IN_REGISTERS:
                        result = registers[call.argument]
                    else:
                        place = registers[SP] + 4 * (call.argument - ARGUMENTS_IN_REGISTERS)
                        result = int.from_bytes(debugger.read(place, 4), "little")
                    debugger.run_to(registers[LR] & ~1)
                    found.append(debugger.read(result, call.size))
        return left


class _Debugger:
    """Of a machine that stands still."""

    def __init__(self, connection: socket.socket, what: str) -> None:
        self._connection, self._what, self._buffer = connection, what, b""

    def run_to(self, address: int) -> None:
        """Until the instruction at `address` comes next. Raises VerificationError if the firmware stops elsewhere."""
        self._accepted(f"Z0,{address:x},2")
        said = self._ask("c")
        self._accepted(f"z0,{address:x},2")
        if not said.startswith(("S05", "T05")) or self.registers()[PC] != address:
            raise VerificationError(f"The firmware of {self._what} doesn't make the calls that its kernels are for.")

    def registers(self) -> list[int]:
        """r0 to r15."""
        content = bytes.fromhex(self._ask("g")[: 2 * 4 * (PC + 1)])
        return [int.from_bytes(content[4 * number : 4 * number + 4], "little") for number in range(PC + 1)]

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory."""
        parts = []
        for begin in range(0, size, MOST_BYTES):
            count = min(MOST_BYTES, size - begin)
            said = self._ask(f"m{address + begin:x},{count:x}")
            if len(said) != 2 * count:
                raise VerificationError(f"A kernel of {self._what} has its result where there is no memory.")
            parts.append(bytes.fromhex(said))
        return b"".join(parts)

    def _accepted(self, packet: str) -> None:
        if (said := self._ask(packet)) != "OK":
            raise VerificationError(f"{machine.QEMU} refuses a breakpoint ({said or 'it knows none'}).")

    def _ask(self, packet: str) -> str:
        """A packet's answer; what is said while the machine ran is none."""
        self._connection.sendall(f"${packet}#{sum(packet.encode()) & 255:02x}".encode())
        while True:
            while b"#" not in self._buffer[:-2]:
                if not (more := self._connection.recv(1 << 16)):
                    raise VerificationError(f"The firmware of {self._what} ended before all of its kernels had run.")
                self._buffer += more
            content, _, rest = self._buffer.partition(b"#")
            self._buffer = rest[2:]
            self._connection.sendall(b"+")
            return content.lstrip(b"+").removeprefix(b"$").decode("ascii", "replace")


@contextmanager
def _stopped(command: Sequence[str], folder: Path, seconds: float, what: str) -> Iterator[_Debugger]:
    """A machine that has not begun yet, and ends with the `with`."""
    ours, theirs = socket.socketpair()
    options = ["-S", "-chardev", f"socket,id=debugger,fd={theirs.fileno()}", "-gdb", "chardev:debugger"]
    with ours, theirs:
        process = subprocess.Popen(
            children.ending_with_us([*command, *options]),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        try:
            theirs.close()
            ours.settimeout(seconds)
            yield _Debugger(ours, what)
        except TimeoutError:
            raise VerificationError(
                f"The firmware of {what} was stopped: no kernel was done in {seconds:g} s."
            ) from None
        except OSError as error:
            raise VerificationError(f"{machine.QEMU} can't be asked for the tensors of {what}: {error}.") from error
        finally:
            process.kill()
            process.wait()


def tensor_of(stack: Sequence[bytes], shape: Sequence[int], dtype: str) -> np.ndarray:
    """Results of all runs as int64 N×C×H×W; in memory they lie as C×H×W."""
    values = np.frombuffer(b"".join(stack), dtype).astype(np.int64)
    return values.reshape(-1, math.prod(shape)).reshape(-1, *shape[1:])
