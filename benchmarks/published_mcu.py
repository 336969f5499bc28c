"""`python -m benchmarks.published_mcu FILE.tflite…`: what others publish of the same networks.

The published figures are of boards, by their clocks; none of these was at hand. What is counted here are instructions
under emulation, which are no cycles: the two stand side by side and no quotient is made of them.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MLPERF = (
    "MLPerf Tiny v1.1, closed division, Krai "
    "([results](https://github.com/mlcommons/tiny_results_v1.1/tree/main/closed/Krai))"
)
TINYENGINE = "[TinyEngine's README](https://github.com/mit-han-lab/tinyengine), measured 2022-12"
BENCHMARKS: Mapping[str, str] = {
    "mlperf_ad01_int8": "anomaly detection",
    "mlperf_pretrainedResnet_quant": "image classification",
    "mlperf_kws_ref_model": "keyword spotting",
    "mlperf_vww_96_int8": "person detection",
}
"""What MLPerf calls the networks of these files."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Inferences per second on a board at `clock_mhz`, as its system description states it, in BENCHMARKS' order."""

    board: str
    ours: str
    clock_mhz: int
    library: str
    per_second: tuple[float, float, float, float]


SUBMISSIONS: Sequence[Submission] = (
    Submission(
        board="NUCLEO-L4R5ZI",
        ours="stm32l4r5",
        clock_mhz=120,
        library="X-CUBE-AI 8.0.0",
        per_second=(131.950, 4.505, 13.759, 4.522),
    ),
    Submission(
        board="NUCLEO-L4R5ZI",
        ours="stm32l4r5",
        clock_mhz=120,
        library="microTVM with CMSIS-NN",
        per_second=(116.212, 2.567, 10.019, 3.324),
    ),
    Submission(
        board="nRF5340 DK",
        ours="nrf5340",
        clock_mhz=128,
        library="microTVM with CMSIS-NN",
        per_second=(159.020, 3.146, 13.074, 4.286),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a table of others has of one network: latency in ms and the peak of RAM in kB, as they state it."""

    network: str
    library: str
    latency_ms: int
    ram_kb: int


STM32H743: Sequence[Measured] = (
    Measured(network="mcunet-vww1", library="TF-Lite Micro @713b6ed", latency_ms=1120, ram_kb=220),
    Measured(network="mcunet-vww1", library="CMSIS-NN @011bf32", latency_ms=97, ram_kb=220),
    Measured(network="mcunet-vww1", library="X-CUBE-AI 7.3.0", latency_ms=57, ram_kb=113),
    Measured(network="mcunet-vww1", library="TinyEngine @0363956", latency_ms=51, ram_kb=92),
)
"""Of the STM32H743, whose clock isn't stated there."""


def count(path: Path, board: str) -> dict[str, int]:
    """Instructions of one inference on a board's core, under emulation, and bytes of RAM."""
    import math

    import numpy as np

    from tvmflow import targets
    from tvmflow.bundles.build import build
    from tvmflow.integer.frontend import import_quantized
    from tvmflow.targets.cortex_m import backend

    program = import_quantized(str(path))
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        made = build(program, targets.find("cortex_m", board), Path(folder, "bundle"), verify=False)
        inputs = made.vectors()[0].inputs
        counted = backend.count(made.library, made.target, made.layers, inputs, made.outputs)
        memory = made.manifest["memory"]
    specs = (*program.inputs, *program.outputs)
    ends = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)
    return {"instructions": counted.total, "ram_bytes": memory["activations_bytes"] + ends}


def mlperf_section(counts: Mapping[tuple[str, str], Mapping[str, int]]) -> list[str]:
    """A row for each benchmark and submission."""
    lines = [
        "## MLPerf Tiny",
        "",
        f"Inferences per second as submitted: {MLPERF}. The clock is that of the system's description there, the "
        "cycles are the one divided by the other. The last column is counted here, on qemu's model of the same core.",
        "",
        "| benchmark | board, clock | library | inferences per second | million cycles "
        "| tvmflow, million instructions (emulated) |",
        "|---" * 6 + "|",
    ]
    for number, (stem, benchmark) in enumerate(BENCHMARKS.items()):
        for one in SUBMISSIONS:
            rate, found = one.per_second[number], counts.get((stem, one.ours))
            shown = f"{1e-6 * found['instructions']:.2f}" if found else "–"
            lines.append(
                f"| {benchmark} | {one.board}, {one.clock_mhz} MHz | {one.library} | {rate} "
                f"| {one.clock_mhz / rate:.2f} | {shown} |"
            )
    return lines


def mcunet_section(counts: Mapping[tuple[str, str], Mapping[str, int]]) -> list[str]:
    """The published rows, and ours without a latency."""
    lines = [
        "## MCUNet's network for visual wake words",
        "",
        f"On an STM32H743, from {TINYENGINE}: latency and peak of RAM. The clock isn't stated there. tvmflow's RAM is "
        "the arena with input and output, in thousand bytes; what the others' peak is made of isn't stated. The file "
        "is taken for that network as it reads images of 80×80 pixels and as TFLM's arena for it is of 220 KiB.",
        "",
        "| network | library | latency | RAM | million instructions (emulated) |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {one.network} | {one.library} | {one.latency_ms} ms | {one.ram_kb} kB | – |" for one in STM32H743]
    if found := counts.get(("mcunet_vww", "stm32h743")):
        instructions, ram = 1e-6 * found["instructions"], 1e-3 * found["ram_bytes"]
        lines.append(f"| mcunet-vww1 | tvmflow | – | {ram:.0f} kB | {instructions:.2f} |")
    return lines


def page(counts: Mapping[tuple[str, str], Mapping[str, int]]) -> str:
    lines = [
        "# Published figures of microcontrollers",
        "",
        "*No latency of tvmflow stands here*: no board was at hand, and an emulator's instructions are no cycles. Of "
        f"others nothing was measured here; each table cites its source. Counted {datetime.date.today()}; made by "
        "`python -m benchmarks.published_mcu`.",
        "",
        *mlperf_section(counts),
        "",
        *mcunet_section(counts),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published_mcu", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help=f".tflite files: {', '.join(BENCHMARKS)}, mcunet_vww")
    parser.add_argument("--output", type=Path, default=RESULTS / "published_mcu.md")
    options = parser.parse_args()
    boards: dict[str, Any] = {stem: tuple(dict.fromkeys(one.ours for one in SUBMISSIONS)) for stem in BENCHMARKS}
    boards["mcunet_vww"] = ("stm32h743",)
    unknown = [path.stem for path in options.files if path.stem not in boards]
    if unknown:
        parser.error(f"of {', '.join(unknown)} nothing is known; there are {', '.join(boards)}")
    text = page({(path.stem, board): count(path, board) for path in options.files for board in boards[path.stem]})
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
