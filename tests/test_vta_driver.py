"""The VTA drivers in Python and C, on a fake board: registers and memory behind which the simulators run."""

from __future__ import annotations

import ctypes
import json
import math
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
from vta_examples import pointwise, reference
from vta_graphs import Drawing

from tvmflow.system.toolchain import link, select_linker
from tvmflow.targets import TARGETS
from tvmflow.targets.vta import check, cpu, program, selftest, simulate
from tvmflow.targets.vta.compile import compile_network
from tvmflow.targets.vta.config import SAMPLES, Config
from tvmflow.targets.vta.driver import make_runner, vta_driver
from tvmflow.targets.vta.driver.fake import FakeBoard
from tvmflow.targets.vta.driver.vta_driver import VtaError

NEW, OLD = SAMPLES["pynq"], Config(version="0.0.1")
BASE = 0x43C00000
SOURCES = Path(vta_driver.__file__).parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A program's files with their self-test, for each instruction set."""
    made = {}
    for config in (NEW, OLD):
        folder = tmp_path_factory.mktemp(config.version)
        program.save(pointwise(config)[0], folder)
        selftest.save(config, folder / "runner" / "selftest")
        made[config.version] = folder
    return made


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The C driver, as a shared library."""
    path = tmp_path_factory.mktemp("driver") / "vta_driver.so"
    options = ("-shared", "-fPIC", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
    link(select_linker(TARGETS["host"]), path, [SOURCES / "vta_driver.c"], options)
    found = ctypes.CDLL(str(path))
    found.vta_open.restype = ctypes.c_void_p
    found.vta_open.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_double]
    found.vta_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    found.vta_self_test.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64]
    found.vta_error.restype = ctypes.c_char_p
    found.vta_cycles.restype = ctypes.c_uint32
    for name in ("vta_cycles", "vta_close"):
        getattr(found, name).argtypes = [ctypes.c_void_p]
    return found


class _Memory(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("physical", ctypes.c_uint64), ("bytes", ctypes.c_size_t))


_POINTER = ctypes.POINTER(_Memory)
_FUNCTIONS = (
    ("read", ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)),
    ("write", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32)),
    ("allocate", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, _POINTER)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.c_void_p, _POINTER)),
    ("flush", ctypes.CFUNCTYPE(None, ctypes.c_void_p, _POINTER)),
    ("invalidate", ctypes.CFUNCTYPE(None, ctypes.c_void_p, _POINTER)),
    ("seconds", ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)),
    ("pause", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
)


class _Board(ctypes.Structure):
    _fields_ = (("context", ctypes.c_void_p), *_FUNCTIONS)


class InC:
    """The C driver, with the Python driver's functions."""

    def __init__(self, library, board):
        self.library, self.board = library, board

        def allocate(_, size, memory):
            try:
                made = board.allocate(size)
            except MemoryError:
                return -1
            memory.contents.data, memory.contents.physical = made.data.ctypes.data, made.physical
            memory.contents.bytes = size
            return 0

        def nothing(*_):
            return None

        functions = {
            "read": lambda _, address: board.read(address),
            "write": lambda _, address, value: board.write(address, value),
            "allocate": allocate,
            "release": nothing,
            "flush": nothing,
            "invalidate": nothing,
            "seconds": lambda _: time.perf_counter(),
            "pause": nothing,
        }
        self.struct = _Board(None, *(kind(functions[name]) for name, kind in _FUNCTIONS))

    def run(self, folder, images, timeout_s=10.0):
        return self._run(folder, images, (1, 32, 8, 6), timeout_s)

    def run_several(self, folder, arrays, shapes):
        """Several inputs and outputs, which lie one behind the other."""
        inputs = np.concatenate([array.ravel() for array in arrays])
        sizes = [math.prod(shape) for shape in shapes]
        ((found,), _) = self._run(folder, [inputs], (sum(sizes),), 10.0)
        parts = np.split(found, np.cumsum(sizes)[:-1])
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def _run(self, folder, images, shape, timeout_s):
        core = ("hls", "chisel").index(self.board.core)
        device = self.library.vta_open(ctypes.byref(self.struct), str(folder).encode(), core, BASE, timeout_s)
        if not device:
            raise VtaError(self.library.vta_error().decode())
        try:
            outputs = []
            for image in images:
                output = np.empty(shape, np.int8)
                if self.library.vta_run(device, image.ctypes.data, output.ctypes.data):
                    raise VtaError(self.library.vta_error().decode())
                outputs.append(output)
            return outputs, self.library.vta_cycles(device) or None
        finally:
            self.library.vta_close(device)

    def self_test(self, folder):
        core = ("hls", "chisel").index(self.board.core)
        if self.library.vta_self_test(
            ctypes.byref(self.struct), str(folder / "runner" / "selftest").encode(), core, BASE
        ):
            raise VtaError(self.library.vta_error().decode())


class InPython:
    """The Python driver."""

    def __init__(self, _, board):
        self.board = board
        self.hardware = {"window": board.window, "memory": board.allocate}

    def run(self, folder, images, timeout_s=10.0):
        with vta_driver.Device(str(folder), self.board.core, BASE, timeout_s=timeout_s, **self.hardware) as device:
            return [device.run(image) for image in images], device.cycles

    def run_several(self, folder, arrays, shapes):
        with vta_driver.Device(str(folder), self.board.core, BASE, **self.hardware) as device:
            return device.run(*arrays)

    def self_test(self, folder):
        vta_driver.self_test(str(folder / "runner" / "selftest"), self.board.core, BASE, **self.hardware)


@pytest.fixture(params=[InPython, InC], ids=["python", "c"])
def driver(request, library):
    """`driver(board)` is either driver on a fake board."""
    return lambda board: request.param(library, board)


def images(count):
    return np.random.default_rng(5).integers(-128, 128, (count, 1, 32, 8, 6)).astype(np.int8)


@pytest.mark.parametrize("core", ["hls", "chisel"])
@pytest.mark.parametrize("config", [NEW, OLD], ids=["0.0.2", "0.0.1"])
def test_the_driver_runs_programs(driver, folders, core, config):
    board = FakeBoard(config, core, BASE)
    found = driver(board)
    found.self_test(folders[config.version])
    launches = board.launches
    _, weight, bias = pointwise(config)
    outputs, cycles = found.run(folders[config.version], images(3))
    for image, output in zip(images(3), outputs, strict=True):
        assert (output == reference(image, weight, bias)).all()
    assert board.launches == launches + 3
    assert cycles == (board.cycles if core == "chisel" else None)


def test_several_inputs_and_outputs(driver, tmp_path):
    """Of a graph, from files; what one of them is given twice, the other has two names for."""
    drawn = Drawing(rng=np.random.default_rng(0))
    names = drawn.input(20, 4, 3), drawn.input(20, 4, 3)
    total = drawn.add(*names, factors=(1, 2), shift=1)
    network = drawn.network(total, drawn.max_pool(total, (2, 2)), total)
    program.save(compile_network(network, NEW).executable, tmp_path)
    rng = np.random.default_rng(1)
    arrays = tuple(rng.integers(-128, 128, (1, 20, 4, 3)).astype(np.int8) for _ in names)
    expected = network.run_all(arrays)
    found = driver(FakeBoard(NEW, "hls", BASE)).run_several(tmp_path, arrays, [array.shape for array in expected])
    assert [np.array_equal(*pair) for pair in zip(found, expected, strict=True)] == [True, True, True]


def test_the_accelerator_and_the_processor_take_turns(driver, tmp_path):
    """On one memory, whose functions the driver finds beside the program."""
    drawn = Drawing(rng=np.random.default_rng(2))
    wide = drawn.conv(drawn.input(7, 5, 4), 20)
    network = drawn.network(drawn.softmax(drawn.conv(drawn.product(wide, drawn.table(wide)), 18)), wide)
    program.save(compile_network(network, NEW).executable, tmp_path)
    arrays = (np.random.default_rng(1).integers(-128, 128, (1, 7, 5, 4)).astype(np.int8),)
    expected = network.run_all(arrays)
    board = FakeBoard(NEW, "hls", BASE)
    with pytest.raises(VtaError, match="can't be loaded"):
        driver(board).run_several(tmp_path, arrays, [array.shape for array in expected])
    link(select_linker(TARGETS["host"]), tmp_path / cpu.LIBRARY, [tmp_path / program.SOURCE], cpu.OPTIONS)
    found = driver(board).run_several(tmp_path, arrays, [array.shape for array in expected])
    assert [pair[0].tobytes() == pair[1].tobytes() for pair in zip(found, expected, strict=True)] == [True, True]
    assert board.launches == 2


def test_another_instruction_set_is_found_out_before_anything_is_stored(driver, folders):
    for config, other in ((NEW, OLD), (OLD, NEW)):
        board = FakeBoard(config, "hls", BASE)
        found = driver(board)
        found.self_test(folders[config.version])  # so that the flag of a run that has ended is still there
        launches = board.launches
        with pytest.raises(VtaError, match=r"does not speak the program's instruction set.*probe got no answer"):
            found.self_test(folders[other.version])
        assert board.launches == launches + 1


def test_a_core_that_computes_otherwise_is_found_out(driver, folders, tmp_path):
    np.save(tmp_path / "expected.npy", np.zeros((1, 16, 1, 1), np.int8))
    folder = tmp_path / "runner" / "selftest"
    selftest.save(NEW, folder)
    (tmp_path / "expected.npy").rename(folder / "expected.npy")
    with pytest.raises(VtaError, match="self-test gave other values"):
        driver(FakeBoard(NEW, "chisel", BASE)).self_test(tmp_path)


def test_a_core_that_never_ends(driver, folders):
    with pytest.raises(VtaError, match=r"did not finish within 0\.05 s; load the bitstream again"):
        driver(FakeBoard(NEW, "hls", BASE, stuck=True)).run(folders["0.0.2"], images(1), timeout_s=0.05)


def test_memory_that_no_instruction_can_name(driver, folders):
    with pytest.raises(VtaError, match="memory is at 0x16800040, which is no multiple of 256 bytes"):
        driver(FakeBoard(NEW, "hls", BASE, misaligned=0x40)).run(folders["0.0.2"], images(1))
    with pytest.raises(VtaError, match="lies beyond what instructions can address"):
        driver(FakeBoard(NEW, "hls", BASE, memory_base=1 << 36)).run(folders["0.0.2"], images(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 3}, "layout.json is of version 3, not 1 or 2"),
        ({"hw_ver": "0.0.9"}, "this driver knows 0.0.1 and 0.0.2"),
        ({"instruction_count": 1}, "not as long as layout.json says"),
    ],
)
def test_files_that_do_not_fit(driver, folders, tmp_path, change, words):
    for name in program.FILES:
        (tmp_path / name).write_bytes((folders["0.0.2"] / name).read_bytes())
    layout = json.loads((tmp_path / "layout.json").read_text()) | change
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    with pytest.raises(VtaError, match=words):
        driver(FakeBoard(NEW, "hls", BASE)).run(tmp_path, images(1))
    (tmp_path / "layout.json").unlink()
    with pytest.raises(VtaError, match=r"holds no VTA program|layout\.json can't be read"):
        driver(FakeBoard(NEW, "hls", BASE)).run(tmp_path, images(1))


@pytest.fixture
def command(folders, tmp_path, monkeypatch, capsys):
    """`command(…)` is runner/run of a bundle in `tmp_path`, on a fake board: the exit code, and what it says."""
    executable, weight, bias = pointwise()
    program.save(executable, tmp_path, {"board": "pynq-z1"})
    make_runner(tmp_path, NEW)
    for number, image in enumerate(images(2)):
        place = tmp_path / "vectors" / f"{number:03}-random"
        place.mkdir(parents=True)
        np.save(place / "input-0.npy", image)
        np.save(place / "output-0.npy", reference(image, weight, bias))
    monkeypatch.setenv("VTA_HARDWARE", "tvmflow.targets.vta.driver.fake:rehearsal")
    loader = SourceFileLoader("vta_runner", str(tmp_path / "runner" / "run"))
    run = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(run)

    def call(*arguments):
        code = run.main(list(map(str, arguments)))
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else said.err

    return call


def test_the_command_on_the_board(command, tmp_path):
    vector = tmp_path / "vectors" / "001-random"
    code, said = command(vector / "input-0.npy")
    assert code == 0
    assert said["outputs"]["output"] == np.load(vector / "output-0.npy").ravel().tolist()
    assert said["stand_in"] == "tvmflow.targets.vta.driver.fake:rehearsal"
    assert "cycles" in command(vector / "input-0.npy", "--core", "chisel")[1]["latency"]
    _, said = command("--samples", "0.1", "0.02")
    assert len(said["samples"]) == sum(window["repeats"] for window in said["windows"])
    assert command("--bench", "0.02")[1]["repeats"] >= 1
    code, said = command("--self-test")
    assert (code, said["passed"]) == (0, True)
    np.save(vector / "output-0.npy", np.load(vector / "output-0.npy") ^ 1)
    code, said = command("--self-test")
    assert code == 3
    assert [row["passed"] for row in said["vectors"]] == [True, False]


def test_what_the_command_refuses(command, tmp_path, monkeypatch, capsys):
    code, said = command("none.npy")
    assert code == 7
    assert said.startswith("vta: none.npy can't be read")
    with pytest.raises(SystemExit, match="2"):
        command()
    assert "give an input, --self-test" in capsys.readouterr().err
    monkeypatch.delenv("VTA_HARDWARE")
    (tmp_path / "state").write_text("unknown\n")
    monkeypatch.setattr(vta_driver.check_bitstream, "__defaults__", (str(tmp_path / "state"),))
    for given, words in (
        ([], "No bitstream is loaded (the FPGA is 'unknown'); "),
        (["--bitstream", "x"], "There is no"),
    ):
        assert vta_driver.main(["--folder", str(tmp_path), "--bench", *given]) == 7
        assert capsys.readouterr().err.startswith(f"vta: {words}")


def test_the_command_in_c_compiles(tmp_path):
    sources = [SOURCES / name for name in ("vta_run.c", "vta_driver.c", "vta_linux.c")]
    options = ("-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-ldl")
    link(select_linker(TARGETS["host"]), tmp_path / "vta_run", sources, options)


def test_the_self_test_is_a_right_program():
    for config in (NEW, OLD, Config(log_block=3, log_inp_buffer=14, log_wgt_buffer=14, log_acc_buffer=16)):
        executable, inputs, expected = selftest.compute(config)
        assert check.findings(executable) == ()
        assert (simulate.Machine(executable).run({"input": inputs})["output"] == expected).all()
        assert len(np.unique(expected)) > 2
        assert {-20, 20} < set(expected.ravel().tolist())
