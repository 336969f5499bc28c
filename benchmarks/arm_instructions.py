"""Instructions that a 64-bit ARM CPU executes for one inference: tvmflow beside the libraries that have ARM wheels.

`python -m benchmarks.arm_instructions` runs each of them on one thread under qemu's user-mode emulation of the board's
CPU, with a plugin that counts. Runs of two, four and six inferences are the same but for their number, so that their
differences are what an inference takes. Answers are checked. A count is no latency: it knows nothing of caches, of
memory or of how many instructions a core does in a cycle.

It takes a C compiler and `apt-get install --no-install-recommends qemu-user` (the static emulators know no plugins).
The ARM system is that of tools/emulated-board.py, unless `--root` names another, and the wheels come by pip.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.convert import convert
from benchmarks.runners import TOLERANCE, error_of

if TYPE_CHECKING:
    from tvmflow.spec import Target

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "arm_instructions.json"
OURS = "tvmflow"
WHEELS = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert", "ncnn": "ncnn"}
"""Runners whose libraries have wheels for 64-bit ARM → the package, in the version that is installed here."""
GLIBC = ("2_28", "2_27", "2_24", "2_17")
INFERENCES = (1, 3, 5)  # beside the first, which is checked
SECONDS = 600
CPU_INFO = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""What Linux says of a Cortex-A72; qemu shows this computer's own, of which libraries for ARM understand nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["dilated-net"], help="networks of the registry")
    parser.add_argument("--board", default="raspberry-pi-4b")
    parser.add_argument("--dtype", default="float32", help="what tvmflow computes in")
    parser.add_argument("--libraries", nargs="*", default=list(WHEELS), choices=WHEELS, help="beside tvmflow")
    parser.add_argument("--qemu", default="qemu-aarch64", help="an emulator that takes -plugin")
    parser.add_argument("--root", type=Path, help="a 64-bit ARM system with Python")
    parser.add_argument("--litert-python", default=sys.executable, help="Python of an environment with litert-torch")
    parser.add_argument(
        "--append", action="store_true", help="keep the networks in the results that aren't counted now"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if shutil.which(options.qemu) is None:
        parser.error(f"{options.qemu} is not there: apt-get install --no-install-recommends qemu-user")

    from tvmflow.report import environment, write_json

    versions = {library: version(WHEELS[library]) for library in options.libraries}
    networks: list[dict[str, Any]] = []
    document = {
        "basis": "emulated",
        "unit": "instructions per inference",
        "threads": 1,
        "board": options.board,
        "dtype": options.dtype,
        "environment": environment({OURS: version("tvmflow"), "tvm": version("apache-tvm"), **versions}),
        "qemu": run(options.qemu, "--version").splitlines()[0],
        "networks": networks,
    }
    if options.append and options.output.exists():
        kept = json.loads(options.output.read_text())
        if conditions(kept) != conditions(document):
            parser.error("What --append keeps was counted in another way: these can't stand in one table.")
        networks += [network for network in kept["networks"] if network["model"] not in options.models]
    options.output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        emulation = prepare(Path(name), options)
        for model in options.models:  # slow: what is done is written
            networks.append(count_network(model, emulation, options))
            write_json(options.output, document)
            options.output.with_suffix(".md").write_text(markdown(document))
    print(markdown(document))


def conditions(document: dict[str, Any]) -> tuple[Any, ...]:
    """What has to be the same for counts to be compared."""
    return *(document[key] for key in ("board", "dtype", "qemu")), document["environment"]["versions"]


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """How a program for the board is run and counted: it finds its files in `prefix`, Python's packages in `wheels`."""

    command: tuple[str, ...]
    scratch: Path
    prefix: Path
    wheels: Path

    def count(self, *program: str, **environment: str) -> tuple[int, str]:
        """Instructions that the program executes, and what it prints. Raises CalledProcessError."""
        counted = self.scratch / "count"
        counted.unlink(missing_ok=True)
        plugin = ["-plugin", f"{self.scratch / 'count_instructions.so'},out={counted}"]
        done = subprocess.run(
            [*self.command, *plugin, *program],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env={"TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **environment},
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(program[:4])} failed with exit code {done.returncode}: {done.stderr}")
        return int(counted.read_text()), done.stdout

    def count_python(self, *arguments: str) -> tuple[int, str]:
        """`count` of the ARM system's Python with the wheels and this package."""
        python = next(path for path in (self.prefix / "usr" / "bin").glob("python3.*") if path.name[-1].isdigit())
        paths = os.pathsep.join(map(str, (HERE.parent, self.wheels)))
        environment = {"PYTHONHOME": str(self.prefix / "usr"), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        return self.count(str(python), *arguments, **environment)


def prepare(scratch: Path, options: argparse.Namespace) -> Emulation:
    """Compile the plugin, and put together what the emulated programs see."""
    from tvmflow.measure import emulate

    plugin = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(scratch / "count_instructions.so")]
    run(os.environ.get("CC", "cc"), *plugin, str(HERE / "count_instructions.c"))
    root = options.root or Path(run(sys.executable, str(HERE.parent / "tools" / "emulated-board.py")).strip(), "root")
    prefix = scratch / "prefix"
    (prefix / "proc").mkdir(parents=True)
    (prefix / "proc" / "cpuinfo").write_text(
        "".join(CPU_INFO.format(number=core) for core in range(os.cpu_count() or 1))
    )
    for name in ("lib", "usr", "etc"):
        (prefix / name).symlink_to(root / name)
    python = next((root / "usr" / "bin").glob("python3.*[0-9]")).name.removeprefix("python")
    platforms = [part for glibc in GLIBC for part in ("--platform", f"manylinux_{glibc}_aarch64")]
    packages = [f"{name}=={version(name)}" for name in ("numpy", *(WHEELS[library] for library in options.libraries))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    run(
        *pip,
        "--root-user-action",
        "ignore",
        "--python-version",
        python,
        *platforms,
        "--platform",
        "manylinux2014_aarch64",
        "--target",
        str(scratch / "wheels"),
        *packages,
    )
    libraries = f"LD_LIBRARY_PATH={root / 'usr' / 'lib' / 'aarch64-linux-gnu'}"
    command = (
        options.qemu,
        "-cpu",
        emulate.cpu_model(options.qemu, board_of(options)),
        "-L",
        str(prefix),
        "-E",
        libraries,
    )
    return Emulation(command=command, scratch=scratch, prefix=prefix, wheels=scratch / "wheels")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command[:4])}… failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def count_network(model: str, emulation: Emulation, options: argparse.Namespace) -> dict[str, Any]:
    """Instructions of one inference by each library, and the two estimates that this is the mean of."""
    from tvmflow.network.agreement import tolerance
    from tvmflow.network.frontend import import_model

    program = import_model(model)
    with tempfile.TemporaryDirectory(dir=emulation.scratch) as name:
        folder = Path(name)
        absent = convert(program, folder, options.litert_python)
        macs = build_ours(program, folder, board_of(options))
        counts = {}
        for library in (OURS, *(library for library in options.libraries if library not in absent)):
            found = [
                count_ours(emulation, folder, inferences)
                if library == OURS
                else count_peer(emulation, folder, library, inferences)
                for inferences in INFERENCES
            ]
            few, some, many = (count for count, _ in found)
            error = max(error for _, error in found)
            if error > (tolerance("float32", options.dtype) if library == OURS else TOLERANCE):
                absent[library] = f"its answer is wrong by {error:.2g}"
                continue
            halves = [(some - few) / 2, (many - some) / 2]
            counts[library] = {"instructions": sum(halves) / 2, "estimates": halves, "error": error}
    ours = counts[OURS]["instructions"]
    for figures in counts.values():
        figures["times_tvmflow"] = figures["instructions"] / ours
    wanted = {library: absent[library] for library in options.libraries if library in absent}
    return {"model": model, "multiply_adds": macs, "counts": counts, "absent": wanted}


def board_of(options: argparse.Namespace) -> Target:
    from tvmflow import targets

    return targets.compute_in(targets.find(None, options.board), options.dtype)


def build_ours(program: Any, folder: Path, board: Target) -> int:
    """The bundle with its runner, and the program that counts run. Returns the network's multiply-adds."""
    from tvmflow.bundles.build import build
    from tvmflow.measure import device
    from tvmflow.system import toolchain

    bundle = build(program, board, folder / "bundle", runner=True)
    runner = folder / "bundle" / device.FOLDER
    linker = toolchain.select_linker(board, "auto")
    options = ("-std=gnu11", "-O2", f"-I{device.HERE}", "-Wl,--allow-shlib-undefined", f"-Wl,-rpath,{runner}")
    toolchain.link(linker, folder / "run_bundle", [HERE / "run_bundle.c", runner / "libtvmflow.so"], options)
    return sum(layer.macs for layer in bundle.layers)


def count_ours(emulation: Emulation, folder: Path, inferences: int) -> tuple[int, float]:
    """Instructions of a run, start included, and the answer's error."""
    import numpy as np

    program = [str(folder / "run_bundle"), str(folder / "bundle"), str(folder / "input.npy"), str(inferences)]
    count, said = emulation.count(*program)
    expected = np.load(folder / "expected.npy")
    return count, error_of(np.array(said.split(), np.float32).reshape(expected.shape), expected)


def count_peer(emulation: Emulation, folder: Path, library: str, inferences: int) -> tuple[int, float]:
    """As `count_ours`. Calling the library from Python is part of it."""
    arguments = [library, str(folder), "1", "--inferences", str(inferences)]
    count, said = emulation.count_python("-m", "benchmarks.runners", *arguments)
    answer = json.loads(said)
    if "absent" in answer:
        raise SystemExit(f"{library} can't run under emulation: {answer['absent']}")
    return count, answer["error"]


def markdown(document: dict[str, Any]) -> str:
    around = document["environment"]
    lines = [
        "# Instructions of one inference on 64-bit ARM",
        "",
        "*Emulated instruction counts, not latencies*: what a core makes of them depends on its pipelines and caches, "
        f"of which the emulator knows nothing. {document['board']}, one thread, batch 1, {document['dtype']}, "
        f"{document['qemu']} with a counting plugin; the mean of two differences between runs of more and of fewer "
        "inferences, so that starting cancels out. The others are called from Python, which is part of their count. A "
        "vector instruction does four multiply-adds, so that less than 0.25 for each is of another algorithm than the "
        "direct one. "
        f"Made by `python -m benchmarks.arm_instructions` on {around['date'][:10]}.",
        "",
        "| network | library | version | million instructions | the two differences | ÷ tvmflow | per multiply-add |",
        "|---" * 7 + "|",
    ]
    for network in document["networks"]:
        for library, figures in network["counts"].items():
            differences = " and ".join(f"{1e-6 * value:.2f}" for value in figures["estimates"])
            lines.append(
                f"| {network['model']} | {library} | {around['versions'][library]} "
                f"| {1e-6 * figures['instructions']:.2f} | {differences} | {figures['times_tvmflow']:.2f} "
                f"| {figures['instructions'] / network['multiply_adds']:.3f} |"
            )
    missing = [
        f"{network['model']}: {library} was not counted ({reason})."
        for network in document["networks"]
        for library, reason in network["absent"].items()
    ]
    return "\n".join([*lines, *(["", *missing] if missing else [])]) + "\n"


if __name__ == "__main__":
    main()
