"""The paper's Table 1 with the columns that it lacks: its network and four others, on several boards.

`python -m benchmarks.table1` (or `make table1`) builds all five for this computer, where they are timed on one thread,
and for a Raspberry Pi 4B, where qemu verifies them; what other boards would take is estimated. It writes
benchmarks/results/table1.md and .csv, made of the same tables as `tvmflow report`, and that report beside the bundles.
`--keep` builds only what is missing there: to go on, or to time once more on a machine that has become quiet.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tvmflow import targets
from tvmflow.bundles import build as building
from tvmflow.bundles.bundle import open_bundle
from tvmflow.network.frontend import import_model
from tvmflow.report import Report, assemble, collect, environment, estimate, networks, write_json, write_text
from tvmflow.report.render import render_html
from tvmflow.report.survey import survey
from tvmflow.targets.kind import Timing

NETWORKS = ("dilated-net", "mobilenet-v1", "googlenet", "squeezenet", "vgg16")
VERIFIED = "raspberry-pi-4b"
ESTIMATED = (VERIFIED, "raspberry-pi-3b", "raspberry-pi-5", "jetson-orin-nano", "gtx-1080ti", "pynq-z1", "mps3-an547")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("dist/table1"), help="where bundles are built")
    parser.add_argument("--keep", action="store_true", help="build only what isn't there")
    parser.add_argument("--threads", type=int, default=1, help="of the timed runs")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each network is timed")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    for model in NETWORKS:
        if not options.keep or not (options.work_dir / f"{model}.json").exists():
            build(model, options.work_dir)

    reports, estimates = [], []
    for model in NETWORKS:
        reports += [time(options, model), verified(options.work_dir / f"{model}-{VERIFIED}")]
        estimates.append(json.loads((options.work_dir / f"{model}.json").read_text()))
    document = collect(reports, estimates=estimates)
    text = markdown(document, reports[0]["environment"]["versions"])
    write_text(RESULTS / "table1.md", text)
    write_text(RESULTS / "table1.csv", networks.to_csv(document))
    write_text(options.work_dir / "report.html", render_html(document))
    print(text)


def build(model: str, folder: Path) -> None:
    """Bundles for both boards, and the estimates, as `tvmflow build` and `tvmflow estimate --json` make them."""
    program = import_model(model)
    for board in ("host", VERIFIED):
        target = targets.find(None, board)
        building.build(program, target, folder / f"{model}-{board}")
    network = estimate.analyse(program)
    rows = [estimate.estimate(network, targets.find(None, board)) for board in ESTIMATED]
    write_json(folder / f"{model}.json", {"model": estimate.describe_model(program), "estimates": rows})


def time(options: argparse.Namespace, model: str) -> Report:
    """Verified once more and timed on this computer."""
    bundle = options.work_dir / f"{model}-host"
    return survey(bundle, threads=options.threads, seconds=options.seconds, profiled=False)


def verified(path: Path) -> Report:
    """By the build; nothing runs anew."""
    with open_bundle(path) as bundle:
        return assemble(bundle, bundle.manifest["verify"], Timing(note="It wasn't timed: no such board was there."))


def markdown(document: dict[str, Any], versions: dict[str, str]) -> str:
    """The tables, and where this was measured."""
    around = environment(versions)
    lines = [
        "# The paper's Table 1, with what each network costs",
        "",
        f"`host` is {around['cpu']}, {around['cores']} cores, load {os.getloadavg()[0]:.1f}; TVM {versions['tvm']}, "
        f"{around['date'][:10]}. Batch 1, images of 3×32×32, ten classes. The paper's network is trained, the others "
        "have random weights, so they have no accuracy of ours; they are in the forms of "
        "[models/baselines.py](../../models/baselines.py) for small images, whose published forms have the published "
        "numbers of parameters (tests/test_models.py). Made by `python -m benchmarks.table1`.",
    ]
    return "\n".join([*lines, *networks.to_markdown(document), ""])


if __name__ == "__main__":
    main()
