"""Programs on upstream's own simulator and HLS design: `python tests/vta_upstream.py CHECKOUT [--programs N]`.

CHECKOUT is one of apache/tvm-vta. Both are compiled as C++, with stand-ins for the headers of TVM and Xilinx, for two
configurations, and run random legal programs, random graphs, the self-test and, if its weights are there, the paper's
network. What they leave in memory has to be what tvmflow's simulator leaves. C++ shows neither an HLS pipeline's
hazards nor timing.

With `--network FILE --data cifar10.tar.xz [--images N]` a network quantised by powers of two runs on the first test
images instead, on upstream's simulator and on tvmflow's: both have to give the integer reference's logits.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from vta_examples import pointwise  # noqa: E402
from vta_graphs import random_graph  # noqa: E402
from vta_programs import DRAM_BYTES, SMALL, in_series, program  # noqa: E402

from tvmflow.targets.vta import isa, selftest, simulate  # noqa: E402
from tvmflow.targets.vta.compile import compile_network  # noqa: E402
from tvmflow.targets.vta.config import SAMPLES, Config  # noqa: E402
from tvmflow.targets.vta.isa import Alu, Finish, Instruction, Load, Memory, Operation, Store, Uop  # noqa: E402
from tvmflow.targets.vta.program import Executable, relocate  # noqa: E402
from tvmflow.targets.vta.semantics import State  # noqa: E402


def compile_library(name: str, checkout: Path, config: Config, folder: Path) -> ctypes.CDLL:
    """Upstream's "fsim" or "hls" for one configuration."""
    sizes = {key: value for key, value in config.to_json().items() if key.startswith("LOG_")}
    sizes |= {"LOG_OUT_WIDTH": 3, "LOG_BLOCK_IN": config.log_block, "LOG_BLOCK_OUT": config.log_block}
    sizes |= {"LOG_OUT_BUFF_SIZE": config.log_acc_buffer - 2, "LOG_BUS_WIDTH": 6}
    sizes |= {"FETCH_INSN_COUNT_OFFSET": 16, "COMPUTE_DONE_WR_OFFSET": 16}
    path = folder / f"{name}-{config.bitstream}.so"
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-w", "-fpermissive", "-fwrapv", "-o", path]
    command += [f"-DVTA_{key}={value}" for key, value in sizes.items()]
    command += [f"-I{HERE / 'vta_upstream' / name}", f"-I{checkout / 'include'}"]
    if name == "fsim":
        sources = [*(checkout / "src" / "sim").glob("*.cc"), checkout / "src" / "vmem" / "virtual_memory.cc"]
        command += ["-DUSE_FSIM_TLPP", *sources]
    else:
        command += ["-include", checkout / "hardware" / "xilinx" / "src" / "vta.cc", "-x", "c++", "-"]
    entry = """extern "C" void run(unsigned count, void *code, void *memory) {
        vta(count, (insn_T *)code, (uop_T *)memory, (bus_T *)memory, (bus_T *)memory, (bus_T *)memory, (bus_T *)memory);
    }"""
    subprocess.run(command, check=True, input=entry if name == "hls" else "", text=True)
    return ctypes.CDLL(str(path))


def run_fsim(library: ctypes.CDLL, config: Config, instructions: Sequence[Instruction], memory: np.ndarray) -> None:
    """Run on upstream's functional simulator, which has its own memory."""
    for name in ("VTADeviceAlloc", "VTAMemAlloc"):
        getattr(library, name).restype = ctypes.c_void_p
    buffers = []

    def place(content: np.ndarray) -> int:
        buffer = library.VTAMemAlloc(ctypes.c_size_t(content.size), 1)
        ctypes.memmove(buffer, content.ctypes.data, content.size)
        buffers.append(ctypes.c_void_p(buffer))
        return library.VTAMemGetPhyAddr(buffers[-1])

    base = place(memory)
    code = isa.encode_program(relocate(instructions, base, config), config)
    device = ctypes.c_void_p(library.VTADeviceAlloc())
    assert library.VTADeviceRun(device, place(np.frombuffer(code, np.uint8)), len(instructions), 1 << 30) == 0
    library.VTADeviceFree(device)
    ctypes.memmove(memory.ctypes.data, buffers[0], memory.size)
    for buffer in buffers:
        library.VTAMemFree(buffer)


def run_hls(library: ctypes.CDLL, config: Config, instructions: Sequence[Instruction], memory: np.ndarray) -> None:
    """Run on upstream's HLS design, in the order that its own wrapper gives the modules."""
    code = np.frombuffer(bytearray(isa.encode_program(instructions, config)), np.uint8)
    aligned = np.zeros(code.size + 16, np.uint8)
    aligned = aligned[-aligned.ctypes.data % 16 :][: code.size]
    aligned[:] = code
    library.run(len(instructions), ctypes.c_void_p(aligned.ctypes.data), ctypes.c_void_p(memory.ctypes.data))


GRAPHS = 100

UPSTREAM = {"fsim": run_fsim, "hls": run_hls}


def random_executable(seed: int, config: Config) -> Executable:
    """A random legal program, with tokens, which begins by filling every buffer and ends by storing all of ACC."""
    instructions, dram = program(np.random.default_rng(seed), config)
    begin, end = [], []
    for memory in (Memory.INP, Memory.WGT, Memory.ACC, Memory.UOP):
        count = min(isa.depth(memory, config) // 2, DRAM_BYTES // isa.element_bytes(memory, config))
        for start in range(0, isa.depth(memory, config), count):
            begin.append(Load(memory=memory, sram_base=start, y_size=1, x_size=count, x_stride=count))
    more = np.zeros(8 * config.acc_depth * config.out_bytes, np.uint8)  # a micro-op, and a byte of each lane at a time
    more[:4] = isa.encode_uops([Uop(0, 0)], config).view(np.uint8)
    every = {"iter_in": config.acc_depth, "dst_factor_in": 1, "src_factor_in": 1}
    end.append(Load(memory=Memory.UOP, dram_base=DRAM_BYTES // 4, y_size=1, x_size=1, x_stride=1))
    for byte in range(4):
        shift = Alu(operation=Operation.SHR, use_imm=True, imm=8 if byte else 0, uop_bgn=0, uop_end=1, **every)
        place = DRAM_BYTES // config.out_bytes + (1 + byte) * config.acc_depth
        end += [shift, Store(dram_base=place, y_size=1, x_size=config.acc_depth, x_stride=config.acc_depth)]
    image = np.concatenate([dram, more])
    code = in_series((*begin, *instructions[:-1], *end, Finish()))
    return Executable(
        config=config, instructions=tuple(code), image=image, memory_bytes=image.size, inputs=(), outputs=()
    )


def agree(libraries: dict[str, ctypes.CDLL], executable: Executable, memory: np.ndarray) -> list[str]:
    """Which of upstream's leave something else in memory than tvmflow's simulator."""
    state = State(config=executable.config, dram=memory.copy())
    simulate.run(executable.instructions, state)
    wrong = []
    for name, library in libraries.items():
        found = memory.copy()
        UPSTREAM[name](library, executable.config, executable.instructions, found)
        if not np.array_equal(found, state.dram):
            wrong.append(name)
    return wrong


def run_images(checkout: Path, name: str, data: Path, count: int) -> int:
    """A network on the first test images: 0 if both simulators give the reference's logits for each."""
    from tvmflow.models import quantized
    from tvmflow.models.data import load_cifar10

    config, network = SAMPLES["pynq"], quantized(name, "power-of-two")
    executable = compile_network(network, config).executable
    if executable.steps:
        print(f"{network.name} has layers that run on the board's processor, of which upstream knows nothing.")
        return 1
    assert network.preprocessing is not None
    test = load_cifar10(data).test
    images = network.quantize_input(network.preprocessing.apply(test.images[:count]))
    wanted = network.run(images)
    machine, ((source,), (result,)) = simulate.Machine(executable), (executable.inputs, executable.outputs)
    equal, agreeing = [], []
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library("fsim", checkout, config, Path(folder))
        for image, logits in zip(images, wanted, strict=True):
            (found,) = machine.run({source.name: image[None]}).values()
            equal.append(np.array_equal(found.ravel(), logits.ravel()))
            memory = np.full(executable.memory_bytes, simulate.POWER_UP, np.uint8)
            memory[: executable.image.size] = executable.image
            source.write(memory, image[None], config)
            run_fsim(library, config, executable.instructions, memory)
            agreeing.append(np.array_equal(result.read(memory, config).ravel(), logits.ravel()))
    print(f"{network.name}: logits equal to the reference's on {sum(equal)} of {count} images (tvmflow's simulator)")
    print(f"{network.name}: logits equal to the reference's on {sum(agreeing)} of {count} images (upstream's)")
    right = float((wanted.argmax(1) == test.labels[:count]).mean())
    print(f"{network.name}: {right:.1%} of these images are classed right")
    return 0 if all(equal) and all(agreeing) else 1


def main() -> int:
    """The command. 0 if all agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--network", help="a .safetensors file of `tvmflow quantize --scheme power-of-two`")
    parser.add_argument("--data", type=Path, help="CIFAR-10, for --network")
    parser.add_argument("--images", type=int, default=500)
    given = parser.parse_args()
    if given.network:
        return run_images(given.checkout, given.network, given.data, given.images)
    rng, wrong = np.random.default_rng(0), 0

    def compare(what: str, libraries: dict[str, ctypes.CDLL], cases: list[tuple[Executable, np.ndarray]]) -> int:
        off = [name for executable, memory in cases for name in agree(libraries, executable, memory)]
        print(f"{what}: {len(cases)} runs on {' and '.join(libraries)}, {len(off)} differ")
        return len(off)

    def filled(executable: Executable) -> np.ndarray:
        memory = np.full(executable.memory_bytes, simulate.POWER_UP, np.uint8)
        memory[: executable.image.size] = executable.image
        for region in executable.inputs:
            region.write(memory, rng.integers(-128, 128, region.shape).astype(np.int8), executable.config)
        return memory

    with tempfile.TemporaryDirectory() as folder:
        for config in (SMALL, SAMPLES["pynq"]):
            libraries = {name: compile_library(name, given.checkout, config, Path(folder)) for name in UPSTREAM}
            if config is SMALL:
                programs = [random_executable(seed, config) for seed in range(given.programs)]
                wrong += compare("random programs", libraries, [(made, made.image) for made in programs])
                continue
            graphs = [compile_network(random_graph(seed, config.block), config).executable for seed in range(GRAPHS)]
            wrong += compare("random graphs", libraries, [(made, filled(made)) for made in graphs])
            executables = {"layer": pointwise(config)[0], "self-test": selftest.compute(config)[0]}
            try:
                from tvmflow.models import quantized

                network = quantized("dilated-net", "power-of-two")
                executables["dilated-net"] = compile_network(network, config).executable
            except ImportError as error:
                print(f"dilated-net: not run ({error})")
            for name, executable in executables.items():
                wrong += compare(name, libraries, [(executable, filled(executable)) for _ in range(3)])
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
