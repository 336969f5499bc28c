"""Networks of which VTA has no instructions for some layers: these run on the board's processor, exact and said."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import ROOT, needs_emulator
from vta_graphs import Drawing, split_graph

from tvmflow.bundles import compare
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.integer import file
from tvmflow.integer.frontend import graphless_program
from tvmflow.integer.network import IntegerNetwork
from tvmflow.measure import emulate
from tvmflow.report import collect
from tvmflow.report.render import report_text, rules_text
from tvmflow.report.survey import survey
from tvmflow.spec import UnsupportedOperatorError, VerificationError
from tvmflow.system import children, toolchain
from tvmflow.system.text import to_json
from tvmflow.targets import TARGETS
from tvmflow.targets.kind import find_runner
from tvmflow.targets.vta import cpu, program, timing
from tvmflow.targets.vta.check import check, findings
from tvmflow.targets.vta.compile import Compiled, compile_network
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.simulate import Machine

SMALL = Config(log_block=3, log_inp_buffer=11, log_wgt_buffer=13, log_acc_buffer=12, log_uop_buffer=10)
GRAPHS = 16


def gated() -> IntegerNetwork:
    """Products, functions and a softmax between convolutions and at the end, and a concatenation of both's tensors."""
    drawn = Drawing(rng=np.random.default_rng(4))
    wide = drawn.conv(drawn.input(5, 6, 4), 16, (3, 3), padding=(1, 1, 1, 1))
    product = drawn.product(wide, drawn.table(wide))
    joined = drawn.concat(product, drawn.conv(product, 20))
    pixels = drawn.conv(drawn.resample(joined), 18)
    return drawn.network(drawn.softmax(pixels), pixels)


def wrong_layers(network: IntegerNetwork, compiled: Compiled, seed: int) -> list[str]:
    """Those that aren't the reference's when they have run, for two inputs."""
    machine, rng, found = Machine(compiled.executable), np.random.default_rng(seed), []
    for _ in range(2):
        inputs = tuple(rng.integers(-128, 128, port.shape).astype(np.int8) for port in network.inputs)
        _, kept = network.run_kept(inputs)
        pairs = zip(compiled.executable.inputs, inputs, strict=True)
        for mark in machine.run_layers({region.name: array.reshape(region.shape) for region, array in pairs}):
            values = compiled.regions[mark.name].read(machine.state.dram, compiled.executable.config)
            if values.dtype != kept[mark.name].dtype or not np.array_equal(values, kept[mark.name]):
                found.append(mark.name)
    return found


def test_random_graphs_of_both():
    for seed in range(GRAPHS):
        config = SMALL if seed % 2 else Config()
        network = split_graph(seed, config.block)
        compiled = compile_network(network, config)
        check(compiled.executable)
        assert wrong_layers(network, compiled, seed) == [], f"seed {seed}"
        assert [mark.name for mark in compiled.executable.layers] == [layer.name for layer in network.layers]
        assert timing.simulate(compiled.executable, timing.Hardware()).cycles > 0


def test_the_processor_has_only_what_the_accelerator_lacks(tmp_path):
    """In steps that follow each other, read from files as they were written."""
    compiled = compile_network(gated(), Config())
    steps = compiled.executable.steps
    assert [bool(step.function) for step in steps] == [False, True, True, False, True, False, True]
    program.save(compiled.executable, tmp_path)
    found = program.read(tmp_path)
    assert (found.steps, found.source) == (steps, compiled.executable.source)
    assert [region.dtype for region in found.outputs] == ["uint8", "int8"]


def test_a_step_that_reads_what_none_has_made():
    executable = compile_network(gated(), Config()).executable
    forgotten = replace(executable.steps[2], bytes=0)
    steps = (*executable.steps[:2], forgotten, *executable.steps[3:])
    found = findings(replace(executable, steps=steps))
    assert "neither the image nor an input nor a STORE has filled" in str(found[0])
    assert executable.steps[3].first <= found[0].instruction < executable.steps[3].last


def test_weights_on_numbers_without_a_sign_are_refused():
    drawn = Drawing(rng=np.random.default_rng(0))
    network = drawn.network(drawn.conv(drawn.softmax(drawn.input(4, 3, 3)), 4))
    with pytest.raises(UnsupportedOperatorError, match="inputs are signed: conv-1") as raised:
        compile_network(network, Config())
    assert raised.value.operators == {"conv2d": ("conv-1",)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("gated")
    file.save(gated(), root / "gated.safetensors")
    build(graphless_program(gated(), str(root / "gated.safetensors")), TARGETS["pynq-z1"], root / "gated")
    return root / "gated"


def test_a_bundle_says_what_runs_where(bundle):
    """Verified with both; and as nobody knows what the processor takes, there is no latency."""
    report = survey(bundle)
    assert (report["verify"]["passed"], report["verify"]["method"]) == (True, "simulated")
    assert report["latency"] is None
    assert "the accelerator's part takes" in report["latency_note"]
    assert "and so the sum, isn't known. 4 of 8 layers, which give" in report["latency_note"]
    assert "run on the Cortex-A9" in report["latency_note"]
    own = [row for row in report["layers"] if row["schedule"] == "processor"]
    assert [row["kernel"] for row in own] == ["cpu_table", "cpu_multiply", "cpu_resample", "cpu_softmax"]
    assert 0.1 < sum(row["details"]["processor_share"] for row in own) < 0.9
    assert [row["bound"] for row in own] == [None] * 4
    assert "the sum, isn't known" in report_text(report)
    named = "processor 4 layers (0.0% of multiply-adds): table-1, multiply-2, resample-5, softmax-7"
    assert named in rules_text(report["layers"])
    document = json.loads(to_json(collect([report])))
    jsonschema.validate(document, json.loads((ROOT / "docs" / "report.schema.json").read_text()))


def test_each_tensor_of_both_is_compared(bundle):
    with open_bundle(bundle) as opened:
        found = compare.compare_tensors(opened, compare.find_sources(opened, None, None))
    assert found["identical"]
    assert "VTA's simulator, the processor's layers by the same C on this computer: " in compare.text(found)
    assert {row["max_difference"] for row in found["tensors"]} == {0}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{ *(volatile uint8_t *)1 = 0; }", r"cpu\.c crashed with SIGSEGV"),
        ("", r"has no function layer_002|cpu\.c"),
    ],
    ids=["crashes", "is no longer there"],
)
def test_a_function_that_spoils_its_process(bundle, tmp_path, body, words):
    """It's said in a sentence; nothing else comes to harm."""
    for name in (*program.FILES, program.SOURCE):
        (tmp_path / name).write_bytes((bundle / name).read_bytes())
    lines = (tmp_path / program.SOURCE).read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("void layer_002("))
    lines[place] = f"void layer_002(uint8_t *memory) {body}" if body else ""
    (tmp_path / program.SOURCE).write_text("\n".join(lines))
    _, run = find_runner(tmp_path / "program.bin", TARGETS["pynq-z1"], ())
    with pytest.raises(VerificationError, match=words):
        run([(np.zeros((1, 5, 6, 4), np.int8),)])


def test_the_bundle_s_own_driver(bundle):
    """With the golden vectors, on the fake board, whose processor is this computer's."""
    done = subprocess.run(
        [sys.executable, bundle / "runner" / "run", "--self-test"],
        capture_output=True,
        text=True,
        check=False,
        env={
            **children.environment(),
            "VTA_HARDWARE": "tvmflow.targets.vta.driver.fake:rehearsal",
            "PYTHONPATH": ":".join(sys.path),
        },
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True


RUN_FUNCTIONS = """
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
static uint8_t memory[1 << 20];
int main(int count, char **names) {
  size_t bytes = fread(memory, 1, sizeof memory, stdin);
  void *library = dlopen(names[1], RTLD_NOW);
  if (!library) return 3;
  for (int n = 2; n < count; n++) ((void (*)(uint8_t *))dlsym(library, names[n]))(memory);
  return fwrite(memory, 1, bytes, stdout) != bytes;
}
"""


@pytest.mark.parametrize(("board", "kin"), [("pynq-z1", "raspberry-pi-3b-32bit"), ("ultra96", "raspberry-pi-4b")])
def test_the_board_s_own_code(board, kin, tmp_path):
    """Under qemu-user, on the memory that the network leaves: every function gives what this computer's gives."""
    needs_emulator(TARGETS[kin])
    executable = compile_network(split_graph(5), Config()).executable
    machine = Machine(executable)
    rng = np.random.default_rng(0)
    machine.run({port.name: rng.integers(-128, 128, port.shape).astype(np.int8) for port in executable.inputs})
    program.save(executable, tmp_path)
    cpu.board_library(tmp_path / program.SOURCE, TARGETS[board], tmp_path / cpu.LIBRARY)
    (tmp_path / "main.c").write_text(RUN_FUNCTIONS)
    main = tmp_path / "main"
    toolchain.link(toolchain.select_linker(TARGETS[kin]), main, [tmp_path / "main.c"], ("-O1", "-ldl"))
    names = [step.function for step in executable.steps if step.function]
    memory = machine.state.dram.copy()
    for step in executable.steps:
        memory[step.offset : step.offset + step.bytes] ^= 0x55
    command = [*emulate.command(TARGETS[kin]), str(main), str(tmp_path / cpu.LIBRARY), *names]
    done = subprocess.run(command, input=memory.tobytes(), capture_output=True, check=True)
    for name in names:
        cpu.functions_of(cpu.library_here(executable.source))(name)(memory.ctypes.data)
    assert len(names) > 1
    assert done.stdout == memory.tobytes()
