"""Whole networks on this computer: tvmflow beside the libraries that one would take instead, in one run.

`python -m benchmarks.peers` (or `make bench`) builds the paper's network, checks that all compute the same, times
single inferences with one thread and with all, and writes medians, spreads and ratios to benchmarks/results/peers.json
and .md, with two plots. The libraries take turns, so that a machine that changes its pace changes it for all; those
that wait are stopped. Beside each layer stands what part it reaches of this computer's own limits, measured with it.
`--dtype int8` does the same for the quantised network, beside float32 (benchmarks/results/peers-int8.json); with
`--cpu znver3`, both are tvmflow's and compiled for that CPU of LLVM's, here one with AVX2 alone, which this one has to
be able to stand in for.
`--libraries tvmflow-library onnxruntime` compares the library for C, which calls the same kernels without TVM's runtime
(to peers-library.json; without layers, which are the same). `--models` takes several networks, or `all` that
benchmarks/networks.py has (to benchmarks/results/peers-all.json), and `--batch 8` that many images at a time (to
peers-batch.json). `pip install .[bench,peers]` brings what is compared; a library that isn't there, or can't run a
network, is listed as absent, and a network that tvmflow can't build is said at the end.

Results are written after each network, whole or not at all, so that a run can be stopped. `--append` keeps what they
have already, measures every network that is named, even if they have it, and takes its new figures; what a run has not
come to is named `missing`: `--models missing --append` goes on with `all`, and says which networks these are.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plots, roofline
from benchmarks.convert import build_bundles, convert, convert_int8
from benchmarks.runners import INT8, LIBRARY, RUNNERS, tolerance

if TYPE_CHECKING:
    from tvmflow.bundles.bundle import Bundle

OURS = {"float32": "tvmflow", "int8": f"tvmflow{INT8}"}
LIBRARIES = {
    "float32": [name for name in RUNNERS if not name.endswith(INT8) and name != LIBRARY],
    "int8": [f"tvmflow{INT8}", "tvmflow", f"onnxruntime{INT8}", "onnxruntime"],
}
"""What is compared by default, ours first."""
RESULTS = Path(__file__).parent / "results" / "peers.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["dilated-net"],
        help="networks of benchmarks/networks.py; or `all` of them; or, with --append, all that are `missing`",
    )
    parser.add_argument("--libraries", nargs="+", choices=RUNNERS, help="beside tvmflow")
    parser.add_argument("--dtype", choices=OURS, default="float32", help="of tvmflow and the like")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=0.6, help="timed seconds of a turn")
    parser.add_argument(
        "--litert-python", default=sys.executable, help="interpreter of an environment with litert-torch"
    )
    parser.add_argument(
        "--append",
        action="store_true",
        help="keep the networks in the results that aren't measured now; those that are named are measured anew",
    )
    parser.add_argument("--cpu", help="with int8: LLVM's name of an older CPU that tvmflow alone is compiled for")
    parser.add_argument("--batch", type=int, default=1, help="images in an inference")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.output is None:
        kind = "-int8" if options.dtype == "int8" else "" if options.batch == 1 else "-batch"
        kind += "-all" if options.models in (["all"], ["missing"]) else ""
        kind += "-library" if LIBRARY in (options.libraries or ()) else ""
        cpu = f"-{options.cpu}" if options.cpu else ""
        options.output = RESULTS.with_stem(f"{RESULTS.stem}{kind}{cpu}")
    if options.dtype == "int8" and (options.batch, options.append) != (1, False):
        parser.error("--dtype int8 goes with neither --batch nor --append")
    if options.cpu and (options.dtype != "int8" or options.libraries):
        parser.error("--cpu goes with --dtype int8 and without --libraries: others choose their code themselves")

    from benchmarks.networks import NETWORKS
    from tvmflow.models import MODELS
    from tvmflow.report import environment

    kept = json.loads(options.output.read_text())["networks"] if options.append and options.output.exists() else []
    compared = list(OURS.values()) if options.cpu else options.libraries or LIBRARIES[options.dtype]
    libraries = list(dict.fromkeys([OURS[options.dtype], *compared]))
    networks = {(network["model"], network.get("batch", 1)): network for network in kept}
    try:
        models = chosen(options.models, list(NETWORKS), [model for model, batch in networks if batch == options.batch])
    except ValueError as error:
        parser.error(str(error))
    if "missing" in options.models:
        if not options.append:
            parser.error("--models missing goes with --append: without it the results are begun anew")
        print(f"Missing from {options.output.name}: {', '.join(models) or 'none'}.", file=sys.stderr)
    if any(network["environment"]["cpu"] != environment({})["cpu"] for network in kept):
        raise SystemExit("What --append keeps was measured on another CPU: these can't stand in one table.")
    many = len({*networks, *((model, options.batch) for model in models)}) >= plots.MANY
    limits = roofline.limits() if options.dtype == "float32" and LIBRARY not in libraries else {}
    failed = []
    for place, model in enumerate(models, 1):
        print(f"{model} ({place} of {len(models)})", file=sys.stderr, flush=True)
        try:
            detailed = not many or model in MODELS
            networks[model, options.batch] = measure(model, limits if detailed else {}, libraries, options)
        except (Exception, RunnerError) as error:  # whatever is wrong with one network, the others can be measured
            traceback.print_exception(error)
            failed.append(model)
            continue
        ordered = [networks[key] for key in sorted(networks, key=lambda key: (list(NETWORKS).index(key[0]), key[1]))]
        write({"basis": "measured", "unit": "ms", "networks": ordered}, options)
    if failed:
        raise SystemExit(f"Not measured, for the reasons above: {', '.join(failed)}.")
    if options.output.exists():
        print(options.output.with_suffix(".md").read_text())


def chosen(models: list[str], known: list[str], measured: list[str]) -> list[str]:
    """The networks that `--models` means, each once. Raises ValueError if there is no such network."""
    groups = {"all": known, "missing": [model for model in known if model not in measured]}
    named = [model for name in models for model in groups.get(name, [name])]
    if unknown := [name for name in named if name not in known]:
        raise ValueError(f"there is no network {', '.join(unknown)}; there are {', '.join(known)}, all, missing")
    return list(dict.fromkeys(named))


def write(document: dict[str, Any], options: argparse.Namespace) -> None:
    """The results as JSON, the page of them, and its plots. A file is whole or as it was before."""
    from tvmflow.report import write_json, write_text
    from tvmflow.system.scratch import replacing

    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, document)
    text = (markdown if options.dtype == "float32" else markdown_int8)(document, options.output.stem)
    write_text(options.output.with_suffix(".md"), text)
    for name in plots.drawn(document) if options.dtype == "float32" else ():
        with replacing(options.output.with_name(f"{options.output.stem}-{name}.svg")) as made:
            plots.PLOTS[name](document, made)


def measure(model: str, limits: dict[str, float], libraries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """One network: rows of latencies by threads, its layers on one thread, and when and where this was measured.

    Layers of float32 are held against `limits`; without them, they aren't timed.
    """
    from benchmarks.networks import NETWORKS, int8_of, program_of
    from tvmflow.report import environment

    with tempfile.TemporaryDirectory(prefix="tvmflow-") as name:
        folder, program = Path(name), program_of(model, options.batch)
        absent = convert(program, folder, options.litert_python, libraries)
        wanted = {"untuned": "tvm-untuned" in libraries, "library": LIBRARY in libraries}
        bundle = build_bundles(program, folder, options.cpu, **wanted)
        if options.dtype == "int8":
            bundle = convert_int8(int8_of(model, program), folder, options.cpu)
        versions: dict[str, str] = {}
        rows = []
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            found = [library for library in libraries if library not in absent]
            rows.append(compare(folder, found, threads, options, versions, absent))
        if options.dtype == "int8":
            layers = integer_layers(bundle)
        else:
            layers = roofline.layers(bundle, limits) if limits else []
        multiply_adds = sum(layer.macs for layer in bundle.layers)
    return {
        "model": model,
        "description": NETWORKS[model].description,
        "input_shape": list(program.inputs[0].shape),
        "multiply_adds": multiply_adds,
        "batch": options.batch,
        "compiled_for": options.cpu,
        "environment": environment(versions),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load_after": round(os.getloadavg()[0], 2),
        "limits": limits,
        "absent": {library: absent[library] for library in libraries if library in absent},
        "rows": rows,
        "layers": layers,
    }


def integer_layers(bundle: Bundle) -> list[dict[str, Any]]:
    """Its layers' times on one thread, and their multiply-adds a second."""
    from tvmflow.measure.local import profile_library

    samples = profile_library(bundle.library, bundle.vectors()[0].inputs, bundle.layers, threads=1, repeats=200)
    times = map(statistics.median, samples)
    return [
        {"modules": layer.modules, "schedule": layer.schedule, "us": us, "gmacs": layer.macs / us / 1e3}
        for layer, us in zip(bundle.layers, times, strict=True)
    ]


def compare(
    folder: Path,
    libraries: list[str],
    threads: int,
    options: argparse.Namespace,
    versions: dict[str, str],
    absent: dict[str, str],
) -> dict[str, Any]:
    """Each library's median latency in each round, their median, and how many times tvmflow's it is in each round.

    What is absent or wrong, or fails while it is timed, goes into `absent` and has no figures. Raises RunnerError if
    that is tvmflow.
    """
    ours = OURS[options.dtype]
    with ExitStack() as stack:
        contestants = {}
        for name in libraries:
            contestant = Contestant(name, stack.enter_context(process(name, folder, threads)))
            said = contestant.hear()
            error = said.get("error", 0.0)
            if reason := said.get("absent") or (error > tolerance(name) and f"its answer is wrong by {error:.2g}"):
                absent[name] = reason
                continue
            versions[name] = said["version"]
            contestants[name] = contestant
        if ours not in contestants:
            raise RunnerError(f"{ours} can't be timed: {absent[ours]}")
        medians: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, contestant in list(contestants.items()):
                try:
                    medians[name].append(contestant.turn(options.seconds))
                except RunnerError as error:
                    if name == ours:
                        raise
                    absent[name] = str(error)
                    del contestants[name], medians[name]
    return {
        "threads": threads,
        "libraries": {
            name: {
                "p50": statistics.median(values),
                "rounds": values,
                "times_tvmflow": [value / own for value, own in zip(values, medians[ours], strict=True)],
            }
            for name, values in medians.items()
        },
    }


class RunnerError(SystemExit):
    """A runner can't be timed, said in a sentence, which ends the command unless someone goes on without it."""


class Contestant:
    """A runner in a process of its own, which stands still but for its turns."""

    def __init__(self, name: str, runner: subprocess.Popen[str]) -> None:
        self.name, self.runner = name, runner

    def hear(self) -> dict[str, Any]:
        """Its next answer; it stands still from then on."""
        assert self.runner.stdout is not None
        line = self.runner.stdout.readline()
        self.runner.send_signal(signal.SIGSTOP)
        return json.loads(line) if line else {"absent": f"it ended with exit code {self.runner.wait()}"}

    def turn(self, seconds: float) -> float:
        """The median of the single inferences that it does in that time, in ms."""
        assert self.runner.stdin is not None
        self.runner.send_signal(signal.SIGCONT)
        print(seconds, file=self.runner.stdin, flush=True)
        answer = self.hear()
        if "p50" not in answer:
            raise RunnerError(f"{self.name} failed while it was timed: {answer['absent']}")
        return answer["p50"]


@contextmanager
def process(name: str, folder: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    runner = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.runners", name, str(folder), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
    )
    with runner:
        try:
            yield runner
        finally:
            runner.kill()


BY_PYTHON = (
    f"{LIBRARY} is the library for C with the same kernels. Python calls it by ctypes and the module by TVM's "
    "interface for Python, whose share is in the figures; `python -m benchmarks.library_calls` has both called from C.",
    "",
)


def markdown(document: dict[str, Any], stem: str) -> str:
    """The document as tables: all networks beside each other, then each one's latencies, and layers unless it is long.

    Of many networks, layers are shown of the registry's alone (`plots.in_detail`).
    """
    lines = [
        "# Whole networks beside other libraries",
        "",
        "Batch 1 where no other is named, float32, *measured*: the median over rounds of each round's median latency, "
        "and in brackets the lowest and the highest round. × is how many times as long as tvmflow it takes, by the "
        "same rule over the ratios of each round. Made by `python -m benchmarks.peers`.",
        "",
        *(
            BY_PYTHON
            if any(LIBRARY in row["libraries"] for each in document["networks"] for row in each["rows"])
            else ()
        ),
        *(f"![{name}]({stem}-{name}.svg)" for name in plots.drawn(document)),
        *(summary(document) if len(document["networks"]) > 1 else []),
    ]
    detailed = plots.in_detail(document)
    for network in document["networks"]:
        limits = network["limits"]
        lines += latency_table(network)
        if network not in detailed or not network["layers"]:
            continue
        lines += [
            f"One core does {limits['gflops']:.0f} GFLOP/s of fused multiply-adds, and reads {limits['gbps_l2']:.0f} "
            f"GB/s within its L2 cache, {limits['gbps']:.0f} from behind it, {limits['gbps_memory']:.0f} from memory. "
            "Layers on one thread, instrumented; bytes are counted once for each tensor, and multiply-adds as the "
            "original network has them, so that a layer of which taps meet nothing but padding can exceed the peak.",
            "",
            "| modules | rule | µs | GFLOP/s | of peak | GB/s | of read limit behind L2 |",
            "|---" * 7 + "|",
        ]
        lines += [
            f"| {', '.join(layer['modules'])} | {layer['schedule']} | {layer['us']:.1f} | {layer['gflops']:.1f} "
            f"| {layer['of_peak']:.0%} | {layer['gbps']:.1f} | {layer['of_bandwidth']:.0%} |"
            for layer in network["layers"]
        ]
    return "\n".join(lines) + "\n"


def markdown_int8(document: dict[str, Any], stem: str) -> str:
    """The same for int8."""
    compiled_for = document["networks"][0].get("compiled_for")
    cpu = f" --cpu {compiled_for}" if compiled_for else ""
    lines = [
        "# The quantised network beside float32 and ONNX Runtime's int8",
        "",
        "Batch 1, *measured*: the median over rounds of each round's median latency, and in brackets the lowest and "
        "the highest round. × is how many times as long as tvmflow's int8 it takes, by the same rule over the ratios "
        "of each round. ONNX Runtime, where it is compared, has the same int8 weights and scales (QDQ, fused to "
        f"QLinearConv). Made by `python -m benchmarks.peers --dtype int8{cpu}`.",
    ]
    for network in document["networks"]:
        lines += latency_table(network)
        lines += ["Layers on one thread, instrumented.", "", "| modules | rule | µs | G multiply-adds a second |"]
        lines += ["|---" * 4 + "|"]
        lines += [
            f"| {', '.join(layer['modules'])} | {layer['schedule']} | {layer['us']:.1f} | {layer['gmacs']:.1f} |"
            for layer in network["layers"]
        ]
    return "\n".join(lines) + "\n"


def summary(document: dict[str, Any]) -> list[str]:
    """A row for each network, the one first that another library is best at; then what the libraries come to in all."""
    networks = plots.ranked(document)
    threads = sorted({row["threads"] for network in networks for row in network["rows"]})
    names = list(dict.fromkeys(name for network in networks for row in network["rows"] for name in plots.rivals(row)))
    rows = [{row["threads"]: row for row in network["rows"]} for network in networks]
    ratios = [{count: plots.rivals(by_threads[count]) for count in by_threads} for by_threads in rows]
    lines = [
        "",
        f"## {len(networks)} networks",
        "",
        f"On {' and '.join(map(str, threads))} threads: tvmflow's latency in ms, and × of each other library, in bold "
        "where that one is faster. What another is best at on one thread comes first; – wasn't measured, and the "
        "network's own table says why.",
        "",
        f"| network | tvmflow, ms | {' | '.join([*names, FASTEST])} |",
        "|---" * (3 + len(names)) + "|",
    ]
    for network, by_threads, found in zip(networks, rows, ratios, strict=True):
        ours = [by_threads[count]["libraries"]["tvmflow"]["p50"] if count in by_threads else None for count in threads]
        cells = [" / ".join("–" if value is None else f"{value:.3f}" for value in ours)]
        for name in names:
            cells.append(" / ".join(bold(found.get(count, {}).get(name)) for count in threads))
        cells.append(" / ".join(bold(min(found.get(count, {}).values(), default=None)) for count in threads))
        lines.append(f"| {plots.title(network)} | {' | '.join(cells)} |")
    each = " | ".join(f"{count} thr., mean | faster than tvmflow" for count in threads)
    lines += [
        "",
        "× as geometric mean over the networks that a library was measured on, and on how many of them it is faster.",
        "",
        f"| library | {each} |",
        "|---" * (1 + 2 * len(threads)) + "|",
    ]
    for name in [*names, FASTEST]:
        cells = []
        for count in threads:
            values = [
                min(others.values()) if name == FASTEST else others[name]
                for others in (found.get(count, {}) for found in ratios)
                if others and (name == FASTEST or name in others)
            ]
            faster = sum(value < 1 for value in values)
            cells += [bold(statistics.geometric_mean(values) if values else None), f"{faster} of {len(values)}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


FASTEST = "fastest of them"


def bold(ratio: float | None) -> str:
    """With two digits; bold if tvmflow takes longer."""
    return "–" if ratio is None else f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"


def latency_table(network: dict[str, Any]) -> list[str]:
    """The heading of a network, and its latencies by library and threads."""
    around, threads = network["environment"], [row["threads"] for row in network["rows"]]
    about = []
    if "description" in network:  # older results have none
        shape = "×".join(map(str, network["input_shape"]))
        about = [f"{network['description']}; {shape}, {network['multiply_adds'] / 1e6:.1f} M multiply-adds.", ""]
    lines = [
        "",
        f"## {plots.title(network)}",
        "",
        *about,
        f"{around['cpu']}, {around['cores']} cores, {around['date']}; {network['rounds']} rounds of "
        f"{network['seconds']} s, load after them {network['load_after']}."
        + (f" Compiled for {network['compiled_for']} in LLVM's names." if network.get("compiled_for") else ""),
        "",
        "| library | version | " + " | ".join(f"{count} thr., ms | ×" for count in threads) + " |",
        "|---" * (2 + 2 * len(threads)) + "|",
    ]
    for name in network["rows"][0]["libraries"]:
        cells = []
        for row in network["rows"]:
            figures = row["libraries"].get(name)
            cells += [spread(figures["rounds"], 3), spread(figures["times_tvmflow"], 2)] if figures else ["–", "–"]
        lines.append(f"| {name} | {around['versions'][name]} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"Not measured: {name} ({reason}).\n" for name, reason in network["absent"].items())]


def spread(values: list[float], digits: int) -> str:
    """ "1.27 (1.26–1.30)": median, lowest, highest."""
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()
