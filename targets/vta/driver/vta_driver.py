#!/usr/bin/env python3
"""Runs a VTA program on a board with PYNQ: registers through /dev/mem, memory that is contiguous, and nothing else.

This file, Python 3.6 or newer and NumPy are enough on the board. In a bundle it is runner/run; as root:

    runner/run --self-test                  the golden vectors; exit code 3 if one is off
    runner/run input.npy                    one inference; a file for each input
    runner/run --bench [SECONDS]            latency

What it says on standard output is JSON. Hardware is written through the two functions of a register window and those of
a memory, so that the driver runs as it is on a fake board.
"""

import argparse
import ctypes
import importlib
import json
import mmap
import os
import sys
import time

import numpy as np

WINDOW_BYTES = 0x1000
INSTRUCTION_BYTES = 16
SCHEMA_VERSIONS = (1, 2)
LIBRARY = "cpu.so"
TIMEOUT_S = 10.0
PROBE_S = 0.2
PAUSE_S = 1e-6
LOOKS = 100
FPGA_STATE = "/sys/class/fpga_manager/fpga0/state"

# HLS: four blocks of registers; their offsets are in HlsCore. Chisel: one block, the VCR.
BOARDS = {
    "pynq-z1": ("hls", 0x43C00000),
    "ultra96": ("hls", 0xA0000000),
    "zcu104": ("hls", 0xA0000000),
}


class VtaError(Exception):
    """What went wrong, in one sentence."""


class DevMem:
    """A window of physical memory, read and written in words of 32 bits."""

    def __init__(self, base):
        try:
            handle = os.open("/dev/mem", os.O_RDWR | os.O_SYNC)
        except OSError as error:
            raise VtaError(f"/dev/mem can't be opened ({error.strerror}); the driver runs as root.") from error
        try:
            self._memory = mmap.mmap(handle, WINDOW_BYTES, mmap.MAP_SHARED, offset=base)
        finally:
            os.close(handle)
        self._words = memoryview(self._memory).cast("I")

    def read(self, offset):
        return self._words[offset // 4]

    def write(self, offset, value):
        self._words[offset // 4] = value


class PynqMemory:
    """Contiguous memory by pynq.allocate. `data` is uint8, `physical` its address for the accelerator."""

    def __init__(self, size):
        from pynq import allocate

        self._buffer = allocate(shape=(size,), dtype=np.uint8)
        self.data = np.asarray(self._buffer)
        self.physical = getattr(self._buffer, "physical_address", None) or self._buffer.device_address

    def flush(self):
        self._buffer.flush()

    def invalidate(self):
        self._buffer.invalidate()

    def close(self):
        self._buffer.freebuffer()


class CmaMemory:
    """The same by libcma.so, of PYNQ images up to 2.6."""

    def __init__(self, size):
        self._library = ctypes.CDLL("libcma.so")
        self._library.cma_alloc.restype = ctypes.c_void_p
        self._library.cma_get_phy_addr.restype = ctypes.c_ulong
        self._library.cma_get_phy_addr.argtypes = self._library.cma_free.argtypes = [ctypes.c_void_p]
        for name in ("cma_flush_cache", "cma_invalidate_cache"):
            getattr(self._library, name).argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
        address = self._library.cma_alloc(ctypes.c_uint32(size), ctypes.c_uint32(0))
        if address in (None, 0, ctypes.c_void_p(-1).value):
            raise VtaError(f"libcma has no {size} contiguous bytes left.")
        self._address, self._size = address, size
        self.data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        self.physical = self._library.cma_get_phy_addr(address)

    def flush(self):
        self._library.cma_flush_cache(self._address, self.physical, self._size)

    def invalidate(self):
        self._library.cma_invalidate_cache(self._address, self.physical, self._size)

    def close(self):
        self._library.cma_free(self._address)


def allocate(size):
    """Contiguous memory, by whatever this board has."""
    try:
        return PynqMemory(size)
    except ImportError:
        pass
    try:
        return CmaMemory(size)
    except OSError:
        raise VtaError("Neither the Python package pynq nor libcma.so is here to allocate contiguous memory.") from None


class HlsCore:
    """The registers of upstream's HLS design: a block each for fetch, load, compute and store."""

    name = "hls"

    def __init__(self, window, base):
        self._fetch, self._load, self._compute, self._store = (
            window(base + number * WINDOW_BYTES) for number in range(4)
        )

    def start(self, address, count):
        self._fetch.write(0x10, count)
        self._fetch.write(0x18, address)
        # Instructions hold whole addresses, so the bases that hardware adds are 0.
        self._load.write(0x10, 0)
        self._load.write(0x18, 0)
        self._compute.write(0x20, 0)
        self._compute.write(0x28, 0)
        self._store.write(0x10, 0)
        self._fetch.write(0x00, 0x01)
        for block in (self._load, self._compute, self._store):
            block.write(0x00, 0x81)  # start, and again and again

    def done(self):
        # "done" is the last run's until compute has an instruction of this one: fetch must be idle (bit 2), too.
        return bool(self._fetch.read(0x00) & 0x04) and self._compute.read(0x18) == 1

    def cycles(self):
        return None


class ChiselCore:
    """The registers of upstream's Chisel design, in one block."""

    name = "chisel"

    def __init__(self, window, base):
        self._block = window(base)

    def start(self, address, count):
        self._block.write(0x08, count)
        self._block.write(0x0C, address)
        for offset in (0x10, 0x14, 0x18, 0x1C, 0x20):
            self._block.write(offset, 0)
        self._block.write(0x00, 1)

    def done(self):
        return self._block.read(0x00) & 2 == 2

    def cycles(self):
        return self._block.read(0x04)


class Files:
    """The three files of a program."""

    def __init__(self, folder):
        try:
            with open(os.path.join(folder, "layout.json")) as file:
                self.layout = json.load(file)
            self.code = np.fromfile(os.path.join(folder, "program.bin"), np.uint8)
            self.image = np.fromfile(os.path.join(folder, "memory.bin"), np.uint8)
        except (OSError, ValueError) as error:
            raise VtaError(f"{folder} holds no VTA program: {error}.") from error
        layout = self.layout
        if layout.get("schema_version") not in SCHEMA_VERSIONS:
            known = " or ".join(map(str, SCHEMA_VERSIONS))
            raise VtaError(f"layout.json is of version {layout.get('schema_version')}, not {known}.")
        if layout["hw_ver"] not in ("0.0.1", "0.0.2"):
            raise VtaError(f"The program is for HW_VER {layout['hw_ver']}; this driver knows 0.0.1 and 0.0.2.")
        if (
            self.code.size != layout["instruction_count"] * INSTRUCTION_BYTES
            or self.image.size != layout["image_bytes"]
        ):
            raise VtaError("program.bin or memory.bin is not as long as layout.json says.")


def ports(layout, kind):
    """The inputs, or outputs, as layout.json has them: keys of the second begin with input_2."""
    count = layout.get(kind + "_count", 1)
    prefixes = [kind] + [f"{kind}_{number}" for number in range(2, count + 1)]
    keys = ("name", "offset", "bytes", "order", "shape")
    found = [{key: layout[f"{prefix}_{key}"] for key in keys} for prefix in prefixes]
    for port, prefix in zip(found, prefixes):  # noqa: B905 (Python 3.6)
        port["dtype"] = layout.get(prefix + "_dtype", "int8")
    return found


def steps(layout):
    """What runs one after the other: the first instruction and how many there are, or the name of a function."""
    if "step_count" not in layout:
        return [(0, layout["instruction_count"], "")]
    found = []
    for number in range(1, layout["step_count"] + 1):
        first, last, function = (layout[f"step_{number}_{key}"] for key in ("first", "last", "function"))
        found.append((first, last - first, function))
    return found


def load_functions(folder):
    """The functions of this board's processor that are beside the program, each by its name."""
    path = os.path.join(folder, LIBRARY)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise VtaError(f"{path} can't be loaded: {error}.") from error

    def find(name):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p], None
        return function

    return find


def relocated(code, base, layout):
    """The instructions for an image at the physical address `base`: each dram_base grows by base / element."""
    if base % layout["alignment_bytes"]:
        raise VtaError(f"The memory is at {base:#x}, which is no multiple of {layout['alignment_bytes']} bytes.")
    block = layout["block"]
    sizes = {0: 4, 1: block * block, 2: block, 3: 4 * block, 4: block, 5: block}
    new = layout["hw_ver"] != "0.0.1"
    low, types = (26, 7) if new else (25, 3)
    words = code.view("<u8").reshape(-1, 2).copy()
    for row in words:
        first, second = int(row[0]), int(row[1])
        opcode = first & 7
        if opcode > 1 or not second & 0xFFFFFFFF:  # no LOAD or STORE, or one of no elements
            continue
        size = sizes[first >> 7 & types] if opcode == 0 else block
        dram = (first >> low & 0xFFFFFFFF) + base // size
        if dram >> 32:
            raise VtaError(f"The memory at {base:#x} lies beyond what instructions can address.")
        row[0] = first & ~(0xFFFFFFFF << low) | dram << low
    return words.reshape(-1).view(np.uint8)


class Device:
    """A board with one program in its memory, which is given back at the end of a `with`.

    `window(base)` gives registers, `memory(size)` contiguous memory, `functions(folder)` those of the processor; the
    defaults are the board's own.
    """

    def __init__(
        self, folder, core, base, window=DevMem, memory=allocate, functions=load_functions, timeout_s=TIMEOUT_S
    ):
        self._files = Files(folder)
        self._core = HlsCore(window, base) if core == "hls" else ChiselCore(window, base)
        self._timeout_s = timeout_s
        layout = self._files.layout
        self._steps = steps(layout)
        names = [name for _, _, name in self._steps if name]
        self._functions = dict(zip(names, map(functions(folder), names))) if names else {}  # noqa: B905 (Python 3.6)
        self._image = memory(layout["memory_bytes"])
        self._image.data[: self._files.image.size] = self._files.image
        code = relocated(self._files.code, self._image.physical, layout)
        self._code = memory(max(code.size, INSTRUCTION_BYTES))
        if self._code.physical % INSTRUCTION_BYTES or self._code.physical >> 32:
            raise VtaError(f"The instructions are at {self._code.physical:#x}, where fetch can't read them.")
        self._code.data[: code.size] = code
        self._code.flush()
        self._inputs, self._outputs = ports(layout, "input"), ports(layout, "output")
        self.input_shapes = [tuple(port["shape"]) for port in self._inputs]
        self.output_names = [port["name"] for port in self._outputs]
        self.seconds = None
        self.cycles = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._image.close()
        self._code.close()

    def run(self, *arrays):
        """One inference: int8 of the inputs' shapes to int8 of the output's, a tuple if there are several.

        Lengths of 1 may be left out of a shape. Raises VtaError.
        """
        if len(arrays) != len(self._inputs):
            raise VtaError(f"The program takes {len(self._inputs)} inputs, not {len(arrays)}.")
        for number, port in enumerate(self._inputs):
            values = np.asarray(arrays[number])
            if values.dtype != np.int8 or _without_ones(values.shape) != _without_ones(port["shape"]):
                raise VtaError(f"The input is int8 of shape {tuple(port['shape'])}.")
            begin = port["offset"]
            self._image.data[begin : begin + port["bytes"]] = self._pack(port, values.reshape(port["shape"]))
        self.launch()
        found = tuple(
            self._unpack(port, self._image.data[port["offset"] : port["offset"] + port["bytes"]].copy())
            for port in self._outputs
        )
        return found if len(found) > 1 else found[0]

    def launch(self):
        """Run the program on what is in memory. `seconds`, and `cycles` where the core counts them, tell how long.

        `seconds` are of all steps, `cycles` of the accelerator's.
        """
        begin, cycles = time.perf_counter(), []
        for first, count, function in self._steps:
            if function:
                self._functions[function](self._image.data.ctypes.data)
            else:
                self._run(first, count)
                cycles.append(self._core.cycles())
        self.seconds = time.perf_counter() - begin
        self.cycles = None if None in cycles or not cycles else sum(cycles)

    def _run(self, first, count):
        self._image.flush()
        begin = time.perf_counter()
        self._core.start(self._code.physical + first * INSTRUCTION_BYTES, count)
        time.sleep(PAUSE_S)
        looks = 0
        while not self._core.done():
            looks += 1  # time alone may have passed while this process had to wait
            if looks > LOOKS and time.perf_counter() - begin > self._timeout_s:
                raise VtaError(
                    f"VTA did not finish within {self._timeout_s:g} s; load the bitstream again before the next try."
                )
            time.sleep(PAUSE_S)
        self._image.invalidate()

    def _pack(self, port, values):
        if port["order"] == "tiles":
            block, (_, channels, height, width) = self._files.layout["block"], values.shape
            blocks = -(-channels // block)
            padded = np.zeros((blocks * block, height, width), np.int8)
            padded[:channels] = values[0]
            values = padded.reshape(blocks, block, height, width).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def _unpack(self, port, found):
        values, shape = found.view(port["dtype"]), port["shape"]
        if port["order"] == "tiles":
            _, channels, height, width = shape
            tiles = values.reshape(-1, height, width, self._files.layout["block"]).transpose(0, 3, 1, 2)
            values = tiles.reshape(-1, height, width)[:channels]
        return np.ascontiguousarray(values).reshape(shape)


def _without_ones(shape):
    return [length for length in shape if length != 1]


def check_bitstream(state=FPGA_STATE):
    """Raise VtaError where the kernel says that the FPGA is not configured: reading its registers would hang."""
    try:
        with open(state) as file:
            found = file.read().strip()
    except OSError:
        return  # an older kernel, which doesn't say
    if found != "operating":
        raise VtaError(f"No bitstream is loaded (the FPGA is {found!r}); give one with --bitstream.")


def load_bitstream(path):
    """Load a bitstream through the package pynq."""
    if not os.path.exists(path):
        raise VtaError(f"There is no bitstream {path}.")
    try:
        from pynq import Bitstream
    except ImportError as error:
        raise VtaError("Loading a bitstream needs the Python package pynq, which the board's image has.") from error
    Bitstream(path).download()


def self_test(place, core, base, **hardware):
    """Run the two small programs in `place`. Raises VtaError if the core speaks another instruction set.

    The first writes no memory, since a core of the other instruction set would write it at the wrong address. It only
    ends on a core that reads the memory type of a LOAD where the program has put it. The second computes.
    """
    wrong = f"The bitstream does not speak the program's instruction set, HW_VER {Files(place).layout['hw_ver']}: "
    if core == "hls":  # Chisel's decoder does not know the LOAD that the probe uses
        with Device(os.path.join(place, "probe"), core, base, timeout_s=PROBE_S, **hardware) as device:
            try:
                device.launch()
            except VtaError as error:
                raise VtaError(f"{wrong}the probe got no answer.") from error
    inputs = np.load(os.path.join(place, "input.npy"))
    expected = np.load(os.path.join(place, "expected.npy"))
    with Device(place, core, base, **hardware) as device:
        found = device.run(inputs)
    if not np.array_equal(found, expected):
        raise VtaError(f"{wrong}the self-test gave other values.")


def vectors(device, folder):
    """The golden vectors of a bundle: for each its name, and whether the outputs are the same to the bit."""
    rows, place = [], os.path.join(folder, "vectors")
    for name in sorted(os.listdir(place)):
        inputs = (f"input-{number}.npy" for number in range(len(device.input_shapes)))
        found = device.run(*(np.load(os.path.join(place, name, file)) for file in inputs))
        errors = []
        for number, values in enumerate(found if isinstance(found, tuple) else (found,)):
            expected = np.load(os.path.join(place, name, f"output-{number}.npy"))
            off = values.reshape(expected.shape).astype(np.int32) - expected.astype(np.int32)
            errors.append(float(np.max(np.abs(off))))
        rows.append({"name": name, "passed": not any(errors), "abs_errors": errors})
    return {"vectors": rows, "passed": bool(rows) and all(row["passed"] for row in rows)}


def measure(device, arrays, seconds, window, setup_ms):
    """Latency of inferences, in ms, from writing the input to reading the output; of the first, and of `samples`.

    With `window` seconds, there are also figures for each such part of the time.
    """

    def once():
        begin = time.perf_counter()
        device.run(*arrays)
        return 1e3 * (time.perf_counter() - begin)

    first = once()
    warmup = [once() for _ in range(3)]
    samples: list = []
    windows: list = []
    begin = time.perf_counter()
    while not samples or time.perf_counter() - begin < seconds:
        at_s = time.perf_counter() - begin
        part: list = []
        while not part or time.perf_counter() - begin < min(at_s + (window or seconds), seconds):
            part.append(once())
        samples += part
        windows.append({"at_s": at_s, **summary(part)})
    said = {"basis": "measured", "unit": "ms", "threads": 1, "setup": setup_ms, "first": first, "warmup": warmup}
    said["samples"] = samples
    if window:
        said["windows"] = windows
    return said


def summary(samples):
    """The figures of a row of latencies."""
    p50, p90, p99 = (float(np.percentile(samples, part)) for part in (50, 90, 99))
    figures = {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(samples))}
    return dict(figures, min=min(samples), max=max(samples), repeats=len(samples))


def load_input(path):
    """The array in a .npy file. Raises VtaError."""
    try:
        return np.load(path)
    except (OSError, ValueError) as error:
        raise VtaError(f"{path} can't be read as a .npy file: {error}.") from error


def main(arguments=None):
    """The command. Returns the exit code: 0, 3 for a vector that is off, or 7 with a sentence on stderr."""
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(prog="runner/run", description="Run a VTA program on a board with PYNQ.")
    parser.add_argument("input", nargs="*", help="int8, .npy, one for each input: one inference")
    parser.add_argument("--self-test", action="store_true", help="the golden vectors")
    parser.add_argument("--bench", nargs="?", type=float, const=3.0, metavar="SECONDS", help="latency")
    parser.add_argument("--samples", nargs="+", type=float, metavar="SECONDS", help="latency of each inference")
    parser.add_argument(
        "--folder", default=os.path.dirname(here), help="where program.bin, memory.bin, layout.json are"
    )
    parser.add_argument("--core", choices=("hls", "chisel"), help="where the bitstream isn't the published HLS one")
    parser.add_argument("--base", type=lambda text: int(text, 0), help="address of the registers")
    parser.add_argument("--bitstream", help="file to load first, through the package pynq")
    parser.add_argument("--no-probe", action="store_true", help="don't look for the right instruction set first")
    given = parser.parse_args(arguments)
    if bool(given.input) + given.self_test + bool(given.bench) + bool(given.samples) != 1:
        parser.error("give an input, --self-test, --bench or --samples")
    try:
        begin = time.perf_counter()
        layout = Files(given.folder).layout
        board = layout["facts"].get("board")
        core, base = BOARDS.get(board, ("chisel", given.base))
        core, base = given.core or core, base if given.base is None else given.base
        if base is None:
            raise VtaError(f"The registers of {board} are not known; give their address with --base.")
        hardware, stand_in = {}, os.environ.get("VTA_HARDWARE", "")
        if stand_in:  # for rehearsals: MODULE:FUNCTION gives the window and memory of another board than this
            module, _, function = stand_in.partition(":")
            hardware = getattr(importlib.import_module(module), function)(layout, core, base)
        else:
            if given.bitstream:
                load_bitstream(given.bitstream)
            check_bitstream()
        if not given.no_probe:
            self_test(os.path.join(here, "selftest"), core, base, **hardware)
        with Device(given.folder, core, base, **hardware) as device:
            setup_ms = 1e3 * (time.perf_counter() - begin)
            said = answer(given, device, setup_ms)
        if stand_in:
            said["stand_in"] = stand_in
        print(json.dumps(said))
        return 3 if said.get("passed") is False else 0
    except VtaError as error:
        print(f"vta: {error}", file=sys.stderr)
        return 7


def answer(given, device, setup_ms):
    """What the command says."""
    if given.self_test:
        return vectors(device, given.folder)
    if given.input:
        found = device.run(*map(load_input, given.input))
        latency = {"unit": "ms", "first": 1e3 * device.seconds}
        if device.cycles is not None:
            latency["cycles"] = device.cycles
        found = found if isinstance(found, tuple) else (found,)
        outputs = {name: found[number].reshape(-1).tolist() for number, name in enumerate(device.output_names)}
        return {"outputs": outputs, "latency": latency}
    random = np.random.RandomState(0)
    arrays = [random.randint(-128, 128, shape).astype(np.int8) for shape in device.input_shapes]
    seconds, window = (given.bench, 0.0) if given.bench else (*given.samples, 0.0)[:2]
    said = measure(device, arrays, seconds, window, setup_ms)
    if given.bench:
        samples = said.pop("samples")
        del said["warmup"]
        said.update(summary(samples))
    return said


if __name__ == "__main__":
    sys.exit(main())
