"""Networks as C libraries without TVM's runtime: the same bits, an interface that holds, nothing that a board lacks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_commands, needs_emulator
from tflite_cases import graphs_of, inputs_of
from tflite_files import file_of

from tvmflow import targets
from tvmflow.bundles import compare
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import Bundle, open_bundle
from tvmflow.bundles.verify import verify_bundle
from tvmflow.integer.frontend import integer_program
from tvmflow.integer.tflite.reader import read
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.report.survey import survey
from tvmflow.spec import UserError, VerificationError
from tvmflow.targets import TARGETS, kind
from tvmflow.targets.cpu.library import objects

HERE = Path(__file__).parent / "library"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def library_for(board: str, program, out: Path) -> Bundle:
    return build(program, targets.deliver_as(TARGETS[board], "library"), out)


@pytest.fixture(scope="module")
def threaded():
    return import_model("networks:threaded", [parse_input_shape("1x8x32x32")])


@pytest.fixture(scope="module")
def bundle(threaded, tmp_path_factory) -> Bundle:
    """`threaded` for this computer."""
    return library_for("host", threaded, tmp_path_factory.mktemp("library") / "threaded")


@pytest.fixture(scope="module")
def facts(bundle, tmp_path_factory) -> dict[str, str]:
    """What check.c says, compiled as any user would."""
    made = tmp_path_factory.mktemp("check") / "check"
    root = bundle.root
    command = [
        "cc",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wl,--wrap=malloc",
        f"-I{root}",
        str(HERE / "check.c"),
    ]
    subprocess.run([*command, str(root / "libthreaded.a"), "-lm", "-pthread", "-o", str(made)], check=True)
    said = subprocess.run([str(made)], capture_output=True, text=True, check=True, timeout=120).stdout
    return dict(line.split("=") for line in said.splitlines())


def test_the_bits_are_those_of_tvms_runtime(bundle):
    assert bundle.manifest["verify"]["same_bits"] is True


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bits_are_those_of_numbers(dtype):
    """Of what is none there are many, and processors give one or the other."""
    import ml_dtypes

    numbers = np.array([0.0, 1.5, np.nan], np.dtype(getattr(ml_dtypes, dtype, dtype)))
    negated = np.array([0.0, 1.5, -np.nan], numbers.dtype)
    assert numbers.tobytes() != negated.tobytes()
    assert kind.digest_of([(numbers,)]) == kind.digest_of([(negated,)])
    assert kind.digest_of([(numbers,)]) != kind.digest_of([(np.array([-0.0, 1.5, np.nan], numbers.dtype),)])
    assert kind.digest_of([(np.arange(3),)]) != kind.digest_of([(np.arange(3)[::-1],)])


def test_a_bundle_is_verified_again_to_the_bit(bundle):
    assert verify_bundle(bundle)["same_bits"] is True


def test_other_bits_than_when_it_was_built_are_refused(bundle):
    changed = dict(bundle.manifest, verify={**bundle.manifest["verify"], "bits": "0" * 64})
    with pytest.raises(VerificationError, match="other bits than TVM's runtime gave"):
        verify_bundle(Bundle(path=bundle.path, root=bundle.root, manifest=changed))


def test_nothing_of_tvm_is_named(bundle):
    with bundle.library.open("rb") as file:
        assert b"TVM" not in file.read().replace(b"TVMMod", b"")  # LLVM's name of the file that kernels are from


def test_what_is_lacking_is_of_the_c_library(bundle):
    assert objects.strangers(bundle.manifest["c_library"]["undefined"], compiler=False) == []


def test_the_shared_library_shows_its_interface_alone(bundle):
    defined, _ = objects.symbols(bundle.root / "libthreaded.so")
    functions = ("big_cores", "free", "hash", "init", "memory_bytes", "reset", "run", "run_timed", "version")
    assert defined == {f"threaded_{name}" for name in functions}


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "belongs": "1",
        "made": "0",
        "ran": "0",
        "null_context": "1",
        "null_output": "1",
        "null_out": "1",
        "others_differ": "1",
        "contexts_apart": "1",
        "serial_same": "1",
        "threads_same": "1",
        "cores_same": "1",
        "own_pool_same": "1",
        "own_pool_used": "1",
        "many_workers_same": "1",
        "lazy_pool": "5",
        "stranger_pool": "5",
        "beyond_pool": "5",
        "side_by_side": "1",
        "timed": "0",
        "timed_apart": "1",
        "timed_same": "1",
        "no_clock": "1",
        "ended": "300",
        "own_memory_same": "1",
        "own_memory_allocations_of_init": "0",
        "serial_allocations": "0",
        "threads_allocations": "0",
        "too_little": "2",
        "shifted_memory_same": "1",
        "never_made": "1",
        "gone": "1",
        "negative": "1",
        "after_failure": "1",
        "too_many": "1",
        "reset": "0",
        "anywhere": "1",
        "not_aligned": "1",
    }.items(),
)
def test_what_a_program_sees(facts, name, value):
    assert facts[name] == value


def test_each_thread_has_memory_of_its_own(bundle):
    """Which is what contexts side by side, and pools of others, could mix up."""
    found = re.search(r"THREADED_THREAD_BYTES (\d+)", (bundle.root / "threaded.h").read_text())
    assert found is not None
    assert int(found[1]) > 0


def test_a_program_computes_what_the_network_does(bundle, tmp_path):
    """By the shared library, called from Python."""
    import ctypes

    loaded = ctypes.CDLL(str(bundle.root / "libthreaded.so"))
    vector = bundle.vectors()[0]
    context, output = ctypes.c_void_p(), np.empty_like(vector.outputs[0])
    assert loaded.threaded_init(ctypes.byref(context), None) == 0
    given = np.ascontiguousarray(vector.inputs[0])
    loaded.threaded_run(context, given.ctypes.data_as(ctypes.c_void_p), output.ctypes.data_as(ctypes.c_void_p))
    loaded.threaded_free(context)
    np.testing.assert_allclose(output, vector.outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_the_calls_compile_as_plain_c99(bundle, tmp_path, threads):
    """For systems without threads, with Linux's and with POSIX's."""
    command = ["cc", *STRICT, f"-DNETWORK_THREADS={threads}", f"-I{bundle.root}", "-c"]
    done = subprocess.run(
        [*command, str(bundle.root / "source/threaded.c"), "-o", str(tmp_path / "calls.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_by_posix_give_the_same(bundle, tmp_path):
    """The calls compiled anew take the place of the archive's own."""
    root, made = bundle.root, tmp_path / "check"
    sources = [str(HERE / "check.c"), str(root / "source/threaded.c"), str(root / "libthreaded.a")]
    options = ["-std=gnu11", "-DNETWORK_THREADS=2", "-Wl,--wrap=malloc", f"-I{root}"]
    subprocess.run(["cc", *options, *sources, "-lm", "-pthread", "-o", str(made)], check=True)
    said = subprocess.run([str(made)], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "threads_same=1" in said.splitlines()


def test_cpp_has_spans(bundle, tmp_path):
    needs_commands("g++")
    root, source = bundle.root, tmp_path / "main.cc"
    source.write_text(CPP)
    include = [f"-I{root}", f"-I{root}/bindings"]
    command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", *include, str(source)]
    subprocess.run([*command, str(root / "libthreaded.a"), "-pthread", "-o", str(tmp_path / "main")], check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 0


CPP = """
#include <array>
#include "threaded.hpp"
int main() {
  threaded_options options{};
  options.threads = 2;
  threaded::network network(options), moved = std::move(network);
  static std::array<float, THREADED_INPUT_SIZE> input;
  std::array<float, THREADED_OUTPUT_SIZE> output;
  return moved.status() + moved.run(input, output) + moved.reset();
}
"""


def test_rust_has_slices(bundle, tmp_path):
    needs_commands("rustc")
    root, source = bundle.root, tmp_path / "main.rs"
    source.write_text(RUST.replace("BINDINGS", str(root / "bindings/threaded.rs")))
    link = ["-L", f"native={root}", "-l", "static=threaded", "-l", "m"]
    subprocess.run(["rustc", "-D", "warnings", str(source), *link, "-o", str(tmp_path / "main")], check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 0


RUST = """
#[allow(dead_code)]
mod threaded { include!("BINDINGS"); }
fn main() {
    let input = [0.5f32; threaded::INPUT_SIZE];
    let mut output = [0f32; threaded::OUTPUT_SIZE];
    let mut network = threaded::Network::new(2).unwrap();
    network.run(&input, &mut output).unwrap();
    network.reset();
    assert!(output.iter().any(|value| *value != 0.0));
}
"""


def test_the_runner_tests_itself(bundle):
    done = subprocess.run([str(bundle.root / "runner/run"), "--self-test"], capture_output=True, check=False)
    assert done.returncode == 0


def test_the_runner_times_each_kernel(bundle):
    done = subprocess.run([str(bundle.root / "runner/run"), "--profile", "7"], capture_output=True, check=True)
    said = json.loads(done.stdout)
    assert (said["basis"], said["unit"]) == ("measured", "us")
    assert [kernel["name"] for kernel in said["kernels"]] == [", ".join(layer.modules) for layer in bundle.layers]
    assert all(len(kernel["samples"]) == 7 and kernel["min"] <= kernel["p50"] for kernel in said["kernels"])


def test_layers_are_profiled(bundle):
    report = survey(bundle.path, threads=1, repeats=5, timed=False)
    assert all(layer["latency"]["basis"] == "measured" for layer in report["layers"])


def test_an_earlier_versions_library_is_to_be_built_again(bundle):
    facts = {name: fact for name, fact in bundle.manifest["c_library"].items() if name != "kernels"}
    old = Bundle(path=bundle.path, root=bundle.root, manifest={**bundle.manifest, "c_library": facts})
    with pytest.raises(UserError, match="build it again"):
        kind.of(bundle.target).time(old, threads=1, repeats=1, seconds=0.1, whole=False, layers=True)


def test_how_kernels_were_cut_is_in_the_manifest(bundle):
    facts = bundle.manifest["c_library"]
    assert (facts["kernels"], facts["serial_loops"]) == (len(bundle.layers), 0)
    assert facts["parallel_loops"] >= 2


def test_a_board_that_has_but_a_shell_can_be_given_it(bundle, board):
    report = board.deploy(bundle.path)
    assert (report["verify"]["method"], report["verify"]["passed"]) == ("device", True)


@pytest.mark.parametrize(
    ("machine", "elf", "possible"),
    [
        ({"machine": "armv7l"}, (32, "ARM"), True),
        ({"machine": "aarch64", "bits": "64"}, (32, "ARM"), True),
        ({"machine": "aarch64", "libc": "musl"}, (64, "AArch64"), True),
        ({"machine": "armv7l"}, (64, "AArch64"), False),
    ],
)
def test_what_runs_alone_asks_for_a_processor_only(machine, elf, possible):
    from tvmflow.remote.deploy import why_incompatible

    assert (why_incompatible(elf, machine, "board", alone=True) is None) == possible


def test_a_runner_of_tvms_is_not_made_beside_it(tiny, tmp_path):
    with pytest.raises(UserError, match="has a runner anyway"):
        build(tiny, targets.deliver_as(TARGETS["host"], "library"), tmp_path / "out", runner=True)


def test_boards_with_a_runtime_take_modules_by_default():
    assert targets.deliver_as(TARGETS["raspberry-pi-4b"], None).delivery == "module"


@pytest.mark.parametrize("board", ["android-arm64", "raspberry-pi-3b-32bit", "musl-arm64", "qnx-arm64"])
def test_boards_without_a_runtime_take_libraries_by_default(board):
    assert targets.deliver_as(TARGETS[board], None).delivery == "library"


def test_a_microcontroller_has_its_own_form():
    with pytest.raises(UserError, match="isn't made for mps3-an547"):
        targets.deliver_as(TARGETS["mps3-an547"], "library")


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> tuple[Bundle, list[np.ndarray], list[np.ndarray]]:
    """A network that keeps state, the inputs of its calls, and what exact integers make of them one after the other."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "streaming.tflite").write_bytes(file_of(*graphs_of("streaming")))
    network = read(folder / "streaming.tflite")
    board = targets.deliver_as(targets.compute_in(TARGETS["host"], "int8"), "library")
    kept = {state.input: state for state in network.state}
    given = {name: np.full(_shape(network, name), state.initial, np.int8) for name, state in kept.items()}
    calls, answers = [], []
    for arrays in inputs_of("streaming"):
        states = [given[port.name] for port in network.inputs[1:]]
        wanted = dict(zip((port.name for port in network.outputs), network.run_all((arrays[0], *states)), strict=True))
        given = {name: wanted[state.output] for name, state in kept.items()}
        calls.append(arrays[0])
        answers.append(wanted[network.outputs[0].name])
    assert {port.name for port in network.outputs[1:]} == {state.output for state in kept.values()}
    return build(integer_program(network), board, folder / "out"), calls, answers


def test_a_stream_keeps_its_state(stream):
    """In int8: every call is what exact integers make of its input and of the state that they left before."""
    import ctypes

    built, calls, answers = stream
    name = built.manifest["c_library"]["name"]
    loaded, context = ctypes.CDLL(str(built.root / f"lib{name}.so")), ctypes.c_void_p()
    assert getattr(loaded, f"{name}_init")(ctypes.byref(context), None) == 0
    for _ in range(2):
        for given, wanted in zip(calls, answers, strict=True):
            output = np.empty_like(wanted)
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (given, output)]
            assert getattr(loaded, f"{name}_step")(context, *pointers) == 0
            np.testing.assert_array_equal(output, wanted)
        getattr(loaded, f"{name}_reset")(context)  # the same again from the beginning


def test_tensors_are_compared(stream, tmp_path):
    """Those of the library itself, after each of its kernels."""
    built, _, _ = stream
    found = compare.compare_tensors(
        built, compare.find_sources(built, str(built.path.parent / "streaming.tflite"), None)
    )
    assert found["identical"] is True
    assert len(found["tensors"]) == len(built.layers)


@pytest.mark.emulated
def test_tensors_are_compared_under_emulation(tmp_path):
    board = targets.compute_in(TARGETS["musl-arm64"], "int8")
    needs_emulator(board)
    (tmp_path / "streaming.tflite").write_bytes(file_of(*graphs_of("streaming")))
    built = build(integer_program(read(tmp_path / "streaming.tflite")), board, tmp_path / "out")
    found = compare.compare_tensors(built, compare.find_sources(built, str(tmp_path / "streaming.tflite"), None))
    assert "as a program under qemu-user" in compare.text(found)
    assert found["identical"] is True


def test_rust_has_streams(stream, tmp_path):
    needs_commands("rustc")
    built, calls, answers = stream
    name = built.manifest["c_library"]["name"]
    bindings = built.root / "bindings" / f"{name}.rs"
    sizes = re.findall(r"const (\w+_SIZE)", bindings.read_text())
    names = {"BINDINGS": str(bindings), "INPUT": sizes[0], "OUTPUT": sizes[len(sizes) // 2]}
    source = RUST_STREAM
    for word, meant in names.items():
        source = source.replace(f"<{word}>", meant)
    (tmp_path / "main.rs").write_text(source)
    for file, arrays in (("calls", calls), ("answers", answers)):
        np.stack(arrays).tofile(tmp_path / file)
    link = ["-L", f"native={built.root}", "-l", f"static={name}", "-l", "m"]
    command = ["rustc", "-D", "warnings", str(tmp_path / "main.rs"), *link, "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 0


RUST_STREAM = """
use std::convert::TryInto;
#[allow(dead_code)]
mod network { include!("<BINDINGS>"); }
fn as_i8(bytes: &[u8]) -> Vec<i8> { bytes.iter().map(|byte| *byte as i8).collect() }
fn main() {
    let calls = as_i8(include_bytes!("calls"));
    let answers = as_i8(include_bytes!("answers"));
    let mut network = network::Network::new(1).unwrap();
    for _ in 0..2 {
        let wanted = answers.chunks(network::<OUTPUT>);
        for (call, answer) in calls.chunks(network::<INPUT>).zip(wanted) {
            let mut output = [0i8; network::<OUTPUT>];
            network.step(call.try_into().unwrap(), &mut output).unwrap();
            assert_eq!(&output[..], answer);
        }
        network.reset();
    }
}
"""


def _shape(network, name):
    return next(port.shape for port in network.inputs if port.name == name)


def test_several_inputs_and_outputs_keep_their_order(tmp_path):
    program = import_model("networks:two_in_two_out", [parse_input_shape("2x6"), parse_input_shape("2x5")])
    assert library_for("host", program, tmp_path / "out").manifest["verify"]["same_bits"] is True


@pytest.mark.emulated
def test_in_float16_the_bits_are_those_of_tvms_runtime(tiny, tmp_path):
    board = targets.compute_in(TARGETS["raspberry-pi-5"], "float16")
    needs_emulator(board)
    built = build(tiny, targets.deliver_as(board, "library"), tmp_path / "out")
    assert built.manifest["verify"]["same_bits"] is True


def test_a_kernel_is_split_at_its_parallel_loops_and_its_memory_is_the_arenas():
    import tvm
    from tvm import s_tir, te

    from tvmflow.targets.cpu.library.phases import _Kernel, lower_loops

    given = te.placeholder((7, 1000), name="given")
    inner = te.compute(given.shape, lambda i, j: given[i, j] * 2 + i, name="inner")
    outer = te.compute(given.shape, lambda i, j: inner[i, j] - inner[i, 999 - j], name="outer")
    schedule = s_tir.Schedule(te.create_prim_func([given, outer]))
    for name in ("inner", "outer"):
        schedule.parallel(schedule.get_loops(schedule.get_sblock(name))[0])
    func = schedule.mod["main"].without_attr("global_symbol")
    with tvm.target.Target("llvm"):
        lowered = lower_loops(tvm.IRModule({"fold": func}))["fold"]
    found = [phase for phase, _ in _Kernel("fold", lowered).split()]
    assert [phase.extent for phase in found] == [7, 7]
    assert [set(phase.scratch.values()) for phase in found] == [{28000}, {28000}]


@pytest.fixture(scope="module")
def on_a_board(request, tiny, tmp_path_factory) -> Bundle:
    """`tiny` for a board that is emulated."""
    needs_emulator(TARGETS[request.param])
    return library_for(request.param, tiny, tmp_path_factory.mktemp("library") / "tiny")


ON_BOARDS = pytest.mark.parametrize("on_a_board", ["musl-arm64", "raspberry-pi-3b-32bit"], indirect=True)


@pytest.mark.emulated
@ON_BOARDS
def test_under_emulation_the_bits_are_those_of_tvms_runtime(on_a_board):
    assert on_a_board.manifest["verify"]["same_bits"] is True


@pytest.mark.emulated
def test_android_finds_all_that_a_library_needs(tiny, tmp_path):
    needs_emulator(TARGETS["android-arm64"])
    made = library_for("android-arm64", tiny, tmp_path / "tiny")
    shared = made.manifest["c_library"]["shared"]
    assert (shared["needed"], shared["page_bytes"]) == (["libc.so", "libm.so"], 16384)


@pytest.mark.emulated
def test_without_a_system_copies_are_all_that_is_needed(tiny, tmp_path):
    needs_emulator(TARGETS["bare-arm64"])
    made = library_for("bare-arm64", tiny, tmp_path / "tiny")
    assert set(made.manifest["c_library"]["undefined"]) <= {"memcpy", "memset"}


def test_archives_are_read_by_linkers_and_by_us(bundle):
    with open_bundle(bundle.path) as opened:
        assert opened.target.elf == TARGETS["host"].elf
