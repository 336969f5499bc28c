"""Modelled latencies beside those that ncnn's users have measured and published, and the constants that come of it.

`python -m benchmarks.published CHECKOUT` takes a checkout of Tencent/ncnn (a bare one will do). Of each network of its
benchmark and each kind of core, one inference by ncnn's own library for 64-bit ARM, on one thread, is emulated and
followed through simulated caches (`tvmflow.measure.memory`); that takes a minute each, and what is in the results
stays. Latencies are the fastest ones of the tables in benchmark/README.md, for CPUs and one thread. Without CHECKOUT,
the page, the plot and tvmflow/measure/latency.json are made anew from results/published.json.

A row is judged by constants that were fitted without its board and without its network, in float32 as in int8. The
interval of a row comes from the rows of all other boards, of any core, judged so as if its own did not exist. The final
constants are of all rows of a core; the figures that are published with them are those of the judged rows.

Emulation takes `apt-get install --no-install-recommends qemu-user llvm-22`; the ARM system is that of
tools/emulated-board.py, and ncnn's wheel comes by pip.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arm_instructions import GLIBC, run
from tvmflow.measure import cycles, latency, memory

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "published.json"
TABLES, SOURCES, PARAMETERS = "benchmark/README.md", "benchmark/benchncnn.cpp", "benchmark/models"
SECONDS = 3600
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Board:
    """Of the tables: what the heading begins with, the `powersave` of the rows, the core that ran them, its clock as
    the heading has it, and the last cache that it has."""

    name: str
    heading: str
    core: str
    clock_mhz: float
    cache_bytes: int
    powersave: int = 0


BOARDS = (
    Board(
        name="Raspberry Pi 3B+",
        heading="Raspberry Pi 3 Model B+",
        core="cortex-a53",
        clock_mhz=1400,
        cache_bytes=MIB // 2,
    ),
    Board(
        name="Raspberry Pi Zero 2 W",
        heading="Raspberry Pi Zero 2 W",
        core="cortex-a53",
        clock_mhz=1000,
        cache_bytes=MIB // 2,
    ),
    Board(
        name="RK3399, A53",
        heading="Rockchip RK3399",
        core="cortex-a53",
        clock_mhz=1500,
        cache_bytes=MIB // 2,
        powersave=1,
    ),
    Board(name="EAIDK 310, RK3228H", heading="EAIDK 310", core="cortex-a53", clock_mhz=1300, cache_bytes=MIB // 4),
    Board(name="Snapdragon 410", heading="Qualcomm MSM8916", core="cortex-a53", clock_mhz=1200, cache_bytes=MIB // 2),
    Board(
        name="Arduino UNO Q, QRB2210", heading="Arduino UNO Q", core="cortex-a53", clock_mhz=2000, cache_bytes=MIB // 2
    ),
    Board(name="AX630C", heading="AXERA AX630C", core="cortex-a53", clock_mhz=1200, cache_bytes=MIB // 4),
    Board(name="Raspberry Pi 4B", heading="Raspberry Pi 4 Model B", core="cortex-a72", clock_mhz=1800, cache_bytes=MIB),
    Board(
        name="RK3399, A72", heading="Rockchip RK3399", core="cortex-a72", clock_mhz=1800, cache_bytes=MIB, powersave=2
    ),
    Board(name="Orange Pi CM4, RK3566", heading="OrangePicm4", core="cortex-a55", clock_mhz=1800, cache_bytes=MIB // 2),
    Board(name="Station M2, RK3566", heading="Station-M2", core="cortex-a55", clock_mhz=1800, cache_bytes=MIB // 2),
    Board(name="ROCK 3A, RK3568", heading="Rock3A", core="cortex-a55", clock_mhz=2000, cache_bytes=MIB // 2),
    Board(name="Station P2, RK3568", heading="Station P2", core="cortex-a55", clock_mhz=2000, cache_bytes=MIB // 2),
    Board(
        name="RK3588, A55",
        heading="Rockchip RK3588",
        core="cortex-a55",
        clock_mhz=1800,
        cache_bytes=3 * MIB,
        powersave=1,
    ),
    Board(name="Raspberry Pi 5", heading="Raspberry Pi 5", core="cortex-a76", clock_mhz=2400, cache_bytes=2 * MIB),
    Board(
        name="RK3588, A76",
        heading="Rockchip RK3588",
        core="cortex-a76",
        clock_mhz=2400,
        cache_bytes=3 * MIB,
        powersave=2,
    ),
)
"""Those whose tables have one thread of one known core. The last cache is by the chip's data sheet, of the AX630C and
the RK3228H assumed; an L3 that the whole chip shares counts."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """What emulation of a core takes: qemu's CPU with the same instructions, Linux's number of the part and flags."""

    cpu: str
    midr: int
    cache_kib: int
    model: cycles.Core
    flags: str = "fp asimd evtstrm crc32 cpuid"


V82 = "fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CORES: Mapping[str, Core] = {
    "cortex-a53": Core(cpu="cortex-a53", midr=0x410FD034, cache_kib=512, model=cycles.CORES["cortex-a53"]),
    "cortex-a72": Core(cpu="cortex-a72", midr=0x410FD083, cache_kib=1024, model=cycles.CORES["cortex-a72"]),
    "cortex-a55": Core(
        cpu="cortex-a76", midr=0x412FD050, cache_kib=512, model=cycles.Core(mcpu="cortex-a55"), flags=V82
    ),
    "cortex-a76": Core(cpu="cortex-a76", midr=0x414FD0B1, cache_kib=512, model=cycles.CORES["cortex-a76"], flags=V82),
}
"""qemu has no A55; its A76 has the same instructions, of those that ncnn asks for."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published latency, and what the model knows of that network on that core."""

    board: Board
    network: str
    published_ms: float
    quantities: latency.Quantities

    @property
    def family(self) -> str:
        """The network, in whatever it is computed."""
        return self.network.removesuffix("_int8")

    def modelled(self, costs: np.ndarray, assumed: float = 1.0) -> float:
        """In ms, where a cycle of llvm-mca costs `costs[0]` cycles and a line from memory `costs[1]` ns."""
        core, clock = latency.CORES[self.board.core], self.board.clock_mhz
        cycles, line_ns = costs
        return latency.milliseconds(
            self.quantities, core, cycles=cycles, line_ns=line_ns, clock_mhz=clock, assumed=assumed
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A row, and what constants said of it that had seen neither its board nor its network, by `latency.ASSUMED`; with
    the interval of the other boards' rows."""

    row: Row
    modelled: tuple[float, ...]
    interval: tuple[float, float] = (0.0, math.inf)

    @property
    def modelled_ms(self) -> float:
        return self.modelled[1]

    @property
    def ratio(self) -> float:
        return self.row.published_ms / self.modelled_ms

    @property
    def held(self) -> bool:
        return self.interval[0] <= self.row.published_ms <= self.interval[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, nargs="?", help="of Tencent/ncnn; without, nothing is emulated")
    parser.add_argument("--networks", nargs="+", help="those alone; all that the benchmark has by default")
    parser.add_argument("--cores", nargs="+", choices=CORES, default=list(CORES))
    parser.add_argument("--qemu", default="qemu-aarch64", help="an emulator that takes -plugin")
    options = parser.parse_args()
    document = (
        json.loads(RESULTS.read_text()) if RESULTS.exists() else {"environment": {}, "features": {}, "tables": {}}
    )
    if options.checkout is not None:
        collect(document, options)
    write(document)
    print(markdown(document))


def write(document: dict[str, Any]) -> None:
    """The results, the page, the plot, and what tvmflow takes from them."""
    RESULTS.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    document = json.loads(RESULTS.read_text())
    RESULTS.with_suffix(".md").write_text(markdown(document))
    latency.FILE.write_text(json.dumps(constants(document), indent=1) + "\n")
    plot(judge(rows(document)), RESULTS.with_suffix(".svg"))


# ---------------------------------------------------------------------------------------------------------- emulating


def collect(document: dict[str, Any], options: argparse.Namespace) -> None:
    """Put the tables into the document, and what emulation finds of each core and network that isn't there yet."""
    document["tables"] = read_tables(show(options.checkout, TABLES))
    shapes = read_shapes(show(options.checkout, SOURCES))
    document["environment"] = {
        "tables": git(options.checkout, "log", "-1", "--format=%h of %cs", "HEAD").strip(),
        "qemu": run(options.qemu, "--version").splitlines()[0],
        "model": cycles.version(),
    }
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        scratch = Path(name)
        root, wheels = fetch(scratch)
        document["environment"]["ncnn"] = next(wheels.glob("ncnn-*.dist-info")).name.split("-")[1].removesuffix(".dist")
        for network in options.networks or shapes:
            for core in options.cores:
                if network in document["features"].setdefault(core, {}):
                    continue
                file = scratch / f"{network}.param"
                file.write_text(show(options.checkout, f"{PARAMETERS}/{network}.param"))
                prefix = make_prefix(scratch / core, root, core)
                found = follow(options.qemu, core, prefix, wheels, file, shapes[network])
                document["features"][core][network] = {
                    "cycles": round(found.cycles(CORES[core].model)),
                    **found.counts,
                }
                write(document)  # slow: what is done is kept
                print(core, network, flush=True)


def git(checkout: Path, *arguments: str) -> str:
    return run("git", "-C", str(checkout), *arguments)


def show(checkout: Path, path: str) -> str:
    return git(checkout, "show", f"HEAD:{path}")


def read_shapes(text: str) -> dict[str, str]:
    """Width, height and channels of each network's input, as benchncnn.cpp has them."""
    calls = re.finditer(r'^\s*benchmark\("([^"]+)", ncnn::Mat\((\d+), (\d+), (\d+)\)', text, re.MULTILINE)
    return {call[1]: ",".join(call.groups()[1:]) for call in calls}


def read_tables(text: str) -> dict[str, dict[str, float]]:
    """The fastest latency in ms of each network on each of BOARDS, of one thread on the CPU."""
    found: dict[str, dict[str, float]] = {}
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading = part.partition("\n")[0]
        for block in part.split("loop_count = ")[1:]:
            said = dict(re.findall(r"^(num_threads|powersave|gpu_device) = (-?\d+)", block, re.MULTILINE))
            for board in BOARDS:
                asked = {"num_threads": "1", "powersave": str(board.powersave), "gpu_device": "-1"}
                if board.heading in heading and said == asked:
                    fastest = re.findall(r"^\s*(\S+)\s+min =\s*([\d.]+)", block, re.MULTILINE)
                    found.setdefault(board.name, {network: float(value) for network, value in fastest})
    return found


def fetch(scratch: Path) -> tuple[Path, Path]:
    """The ARM system, and a folder with ncnn's wheel for it."""
    root = Path(run(sys.executable, str(HERE.parent / "tools" / "emulated-board.py")).strip(), "root")
    python = next((root / "usr" / "bin").glob("python3.*[0-9]")).name.removeprefix("python")
    platforms = [f"--platform=manylinux_{glibc}_aarch64" for glibc in GLIBC]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    packages = [f"numpy=={version('numpy')}", "ncnn"]
    where = ["--no-deps", "--root-user-action=ignore", "--target", str(scratch / "wheels")]
    run(*pip, f"--python-version={python}", *platforms, "--platform=manylinux2014_aarch64", *where, *packages)
    return root, scratch / "wheels"


def make_prefix(prefix: Path, root: Path, name: str) -> Path:
    """What the emulated program sees in place of this computer's: the ARM system, and what Linux says of the core."""
    core, hierarchy = CORES[name], latency.CORES[name].hierarchy
    if prefix.exists():
        return prefix
    (prefix / "proc").mkdir(parents=True)
    fields = {
        "processor": "0",
        "BogoMIPS": "108.00",
        "Features": core.flags,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": f"{core.midr >> 20 & 15:#x}",
        "CPU part": f"{core.midr >> 4 & 0xFFF:#x}",
        "CPU revision": f"{core.midr & 15}",
    }
    (prefix / "proc" / "cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in fields.items()) + "\n")
    folder = prefix / "sys" / "devices" / "system" / "cpu" / "cpu0"
    (folder / "regs" / "identification").mkdir(parents=True)
    (folder / "regs" / "identification" / "midr_el1").write_text(f"{core.midr:#x}\n")
    first = hierarchy.first[0] >> 10
    for index, (level, kind, kib) in enumerate(
        [(1, "Data", first), (1, "Instruction", first), (2, "Unified", core.cache_kib)]
    ):
        cache = folder / "cache" / f"index{index}"
        cache.mkdir(parents=True)
        for file, value in (("level", level), ("type", kind), ("size", f"{kib}K"), ("shared_cpu_map", 1)):
            (cache / file).write_text(f"{value}\n")
    for part in ("lib", "usr", "etc"):
        (prefix / part).symlink_to(root / part)
    return prefix


def follow(qemu: str, name: str, prefix: Path, wheels: Path, file: Path, shape: str) -> memory.Followed:
    """One inference of a network on a core. Raises SystemExit if it fails."""
    from tvmflow.measure import emulate

    root, out = (prefix / "usr").resolve(), prefix / "run"
    python = next(path for path in (root / "bin").glob("python3.*") if path.name[-1].isdigit())
    plugin = emulate.compile_plugin(memory.PLUGIN, memory.HEADERS)
    libraries = f"LD_LIBRARY_PATH={root / 'lib' / 'aarch64-linux-gnu'}"
    emulated = [qemu, "-cpu", CORES[name].cpu, "-L", str(prefix), "-E", libraries]
    done = subprocess.run(
        [
            *emulated,
            "-plugin",
            f"{plugin},{latency.CORES[name].hierarchy.options(out)}",
            str(python),
            str(HERE / "run_ncnn.py"),
            str(file),
            shape,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={
            "PYTHONHOME": str(prefix / "usr"),
            "PYTHONPATH": str(wheels),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    if done.returncode != 0:
        raise SystemExit(f"ncnn's {file.stem} on a {name} failed with exit code {done.returncode}: {done.stderr}")
    return memory.read(out)


# ------------------------------------------------------------------------------------------------- fitting and judging


def rows(document: Mapping[str, Any]) -> list[Row]:
    """The published latencies of networks that were followed on such a core."""
    return [
        Row(
            board=board,
            network=network,
            published_ms=published,
            quantities=latency.quantities(features, features["cycles"], board.cache_bytes),
        )
        for board in BOARDS
        for network, published in document["tables"].get(board.name, {}).items()
        if (features := document["features"].get(board.core, {}).get(network))
    ]


def fit(given: Sequence[Row]) -> np.ndarray:
    """What a cycle of llvm-mca and a line from memory cost, in cycles and ns.

    It is the least sum of |relative errors|, by least squares whose weights are found anew, ten times. A cycle costs
    one at least, for no core is faster than its pipelines, and a line no less than nothing.
    """
    terms = np.array([[row.modelled(costs, assumed=0) for costs in np.eye(2)] for row in given])
    assumed = np.array([row.modelled(np.zeros(2)) for row in given])
    published = np.array([row.published_ms for row in given])
    weights = 1 / published
    for _ in range(10):
        extra = nonnegative(terms * weights[:, None], (published - assumed - terms[:, 0]) * weights)
        costs = extra + np.array([1.0, 0.0])
        errors = np.abs((terms @ costs + assumed) / published - 1)
        weights = 1 / published / np.sqrt(np.maximum(errors, 0.03))
    return costs


def nonnegative(terms: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Least squares without negative solutions, by trying which of the few unknowns are zero."""
    best, least = np.zeros(terms.shape[1]), float(wanted @ wanted)
    for count in range(1, terms.shape[1] + 1):
        for places in combinations(range(terms.shape[1]), count):
            chosen = list(places)
            found, *_ = np.linalg.lstsq(terms[:, chosen], wanted, rcond=None)
            left = wanted - terms[:, chosen] @ found
            if found.min() >= 0 and left @ left < least:
                least, best = float(left @ left), np.zeros(terms.shape[1])
                best[chosen] = found
    return best


def training(given: Sequence[Row], row: Row) -> list[Row]:
    """The rows that constants may be fitted on which judge `row`: of its core, but of another board and network."""
    return [
        other
        for other in given
        if other.board.core == row.board.core and other.board != row.board and other.family != row.family
    ]


def judge(given: Sequence[Row], fitted: Callable[[Sequence[Row]], np.ndarray] = fit) -> list[Judged]:
    """Each row by constants that know neither its board nor its network, with the interval of the other boards.

    Those are judged in the same way for it, as if the board did not exist.
    """
    return list(_judge(tuple(given), fitted))


@functools.cache
def _judge(given: tuple[Row, ...], fitted: Callable[[Sequence[Row]], np.ndarray]) -> list[Judged]:
    bands = {}
    for board in dict.fromkeys(row.board for row in given):
        others = _points([row for row in given if row.board != board], fitted)
        good = accurate(others)
        bands[board] = band([one.ratio for one in others if one.row.board.core in good])
    return [
        replace(one, interval=(low * one.modelled[0], high * one.modelled[-1]))
        for one in _points(given, fitted)
        for low, high in [bands[one.row.board]]
    ]


def _points(given: Sequence[Row], fitted: Callable[[Sequence[Row]], np.ndarray]) -> list[Judged]:
    """`judge` without intervals. A core of a single board judges nothing."""
    costs: dict[tuple[str, str], np.ndarray] = {}
    judged = []
    for row in given:
        key = (row.board.name, row.family)
        if key not in costs:
            if not (known := training(given, row)):
                continue
            costs[key] = fitted(known)
        judged.append(Judged(row=row, modelled=tuple(row.modelled(costs[key], times) for times in latency.ASSUMED)))
    return judged


def accurate(judged: Sequence[Judged]) -> list[str]:
    """The cores whose errors meet the bars. Others' rows say nothing of what to expect of these."""
    cores = dict.fromkeys(one.row.board.core for one in judged)
    return [core for core in cores if court([one for one in judged if one.row.board.core == core]).accurate]


def band(ratios: Sequence[float]) -> tuple[float, float]:
    """Between which factors of the modelled latency another row is with latency.CONFIDENCE, by equal tails of `ratios`.

    Conformal (Lei et al., Distribution-Free Predictive Inference for Regression, 2018), if rows were exchangeable;
    those of one board are alike, so that the share is judged, board by board, and not taken for granted.
    """
    known, tail = sorted(ratios), (1 - latency.CONFIDENCE) / 2
    below = math.floor((len(known) + 1) * tail + 1e-9)  # which is no whole number in binary
    if below == 0:
        return 0.0, math.inf
    return known[below - 1], known[-below]


def court(judged: Sequence[Judged]) -> latency.Court:
    errors = np.array([abs(one.modelled_ms / one.row.published_ms - 1) for one in judged])
    return latency.Court(
        rows=len(judged),
        networks=len({one.row.network for one in judged}),
        boards=tuple(dict.fromkeys(one.row.board.name for one in judged)),
        median_error=round(float(np.median(errors)), 3),
        p90_error=round(float(np.quantile(errors, 0.9)), 3),
        within=round(float(np.mean(errors <= latency.WITHIN)), 3),
        coverage=round(float(np.mean([one.held for one in judged])), 3),
    )


def constants(document: Mapping[str, Any]) -> dict[str, Any]:
    """What tvmflow takes: of each core the constants of all its rows, the band of all judged rows, and the court."""
    given = rows(document)
    judged = judge(given)
    good = accurate(judged)
    low, high = band([one.ratio for one in judged if one.row.board.core in good])
    cores = {}
    for core in dict.fromkeys(one.row.board.core for one in judged):
        costs = fit([row for row in given if row.board.core == core])
        cores[core] = {
            "cycles": round(float(costs[0]), 3),
            "line_ns": round(float(costs[1]), 3),
            "most_lines": round(
                max(row.quantities.lines / row.quantities.cycles for row in given if row.board.core == core), 4
            ),
            "band": [round(low, 3), round(high, 3)],
            "court": asdict(court([one for one in judged if one.row.board.core == core])),
        }
    tables = f"Tencent/ncnn, {TABLES} at {document['environment'].get('tables', '')}"
    source = f"{tables}, rows of one thread on a CPU, the fastest run"
    return {"source": source, "made_by": "python -m benchmarks.published", "cores": cores}


# ------------------------------------------------------------------------------------------------------------- showing


def markdown(document: Mapping[str, Any]) -> str:
    judged, around = judge(rows(document)), document["environment"]
    known, good = constants(document)["cores"], accurate(judged)
    whole = court([one for one in judged if one.row.board.core in good])
    lines = [
        "# Modelled latencies beside published ones",
        "",
        "*Modelled* by tvmflow; *published* are the fastest runs of ncnn's benchmark that its users measured on their "
        f"boards (Tencent/ncnn, {TABLES} at {around.get('tables')}), on one thread. The same networks ran, with zero "
        f"weights as there, through ncnn {around.get('ncnn')} under {around.get('qemu')}, by {around.get('model')}; "
        "the tables were made with other versions of ncnn, which they don't name. Each row is judged by constants that "
        "were fitted without its board and without its network. Made by `python -m benchmarks.published`; "
        "[the method](../../docs/method.md#modelled-latencies).",
        "",
        "| core | boards | networks | rows | median error | 90 % of errors below | within ±35 % | intervals hold "
        "| milliseconds in tvmflow |",
        "|---" * 9 + "|",
    ]
    for core, found in known.items():
        of = latency.Court(**{**found["court"], "boards": tuple(found["court"]["boards"])})
        verdict = f"no: {missed}" if (missed := of.fails()) else "yes"
        lines.append(f"| {core} {_figures(of)} | {verdict} |")
    lines += [f"| {' and '.join(good)} {_figures(whole)} | |", "", "![modelled and published](published.svg)", ""]
    lines += [
        "| core | cycles for one of llvm-mca's | ns for a line from memory | assumed: cycles for an unforeseen line "
        "| for a mispredicted branch | published ÷ modelled, 90 % |",
        "|---" * 6 + "|",
    ]
    for core, found in known.items():
        lines.append(
            f"| {core} | {found['cycles']:g} | {found['line_ns']:g} | {latency.CORES[core].hit:g} "
            f"| {latency.CORES[core].branch:g} | {found['band'][0]:g} to {found['band'][1]:g} |"
        )
    lines += [
        "",
        "| board | core | rows | median of published ÷ modelled | from | to | intervals hold |",
        "|---" * 7 + "|",
    ]
    for board in BOARDS:
        if ratios := [one.ratio for one in judged if one.row.board == board]:
            held = np.mean([one.held for one in judged if one.row.board == board])
            lines.append(
                f"| {board.name} | {board.core} at {board.clock_mhz:g} MHz | {len(ratios)} | {np.median(ratios):.2f} "
                f"| {min(ratios):.2f} | {max(ratios):.2f} | {held:.0%} |"
            )
    lines += ["", "| board | network | published ms | modelled ms | interval | |", "|---" * 6 + "|"]
    for one in judged:
        low, high = one.interval
        lines.append(
            f"| {one.row.board.name} | {one.row.network} | {one.row.published_ms:.2f} | {one.modelled_ms:.2f} "
            f"| {low:.2f}–{high:.2f} | {'' if one.held else 'outside'} |"
        )
    return "\n".join(lines) + "\n"


def sentence(document: Mapping[str, Any]) -> str:
    """What docs/method.md says of the cores that met the bars."""
    judged = judge(rows(document))
    good = accurate(judged)
    of = court([one for one in judged if one.row.board.core in good])
    return (
        f"Over {of.rows} rows of {of.networks} networks on {len(of.boards)} boards, the median error is "
        f"{of.median_error:.0%}, {of.within:.0%} of the rows are within ±{latency.WITHIN:.0%}, and the intervals hold "
        f"{of.coverage:.0%}."
    ).replace("%", " %")


def _figures(of: latency.Court) -> str:
    return (
        f"| {len(of.boards)} | {of.networks} | {of.rows} | {of.median_error:.1%} | {of.p90_error:.1%} "
        f"| {of.within:.0%} | {of.coverage:.0%}"
    )


def plot(judged: Sequence[Judged], path: Path) -> None:
    """Dots: published by modelled latencies, on logarithmic scales, between the lines of the interval."""
    import matplotlib.pyplot as plt

    from benchmarks.plots import STYLE

    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.5, 6))
        for core, marker in zip(CORES, "osD^", strict=True):
            found = [(one.modelled_ms, one.row.published_ms) for one in judged if one.row.board.core == core]
            if found:
                axis.scatter(*zip(*found, strict=True), s=10, marker=marker, alpha=0.6, label=core)
        ends = np.array([min(one.modelled_ms for one in judged), max(one.modelled_ms for one in judged)])
        good = accurate(judged)
        low, high = band([one.ratio for one in judged if one.row.board.core in good])
        axis.plot(ends, ends, color="black", linewidth=0.8)
        axis.fill_between(ends, low * ends, high * ends, color="gray", alpha=0.15, label="90 % of rows")
        axis.set(
            xscale="log", yscale="log", xlabel="modelled ms, by other networks on other boards", ylabel="published ms"
        )
        axis.legend(loc="upper left")
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
