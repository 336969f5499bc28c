"""Plots of what `benchmarks.peers` has measured: latencies beside tvmflow's, and layers under this computer's roofs.

Of many networks, one plot has them all, and the others show those of the registry.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvmflow.models import MODELS

MANY = 10
"""Networks that are too many to show everything of each."""
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "tvmflow", "font.size": 9}
"""Text stays text, and the same figures give the same file."""


def title(network: dict[str, Any]) -> str:
    """ "dilated-net", or "dilated-net, batch 8"."""
    batch = network.get("batch", 1)
    return network["model"] + (f", batch {batch}" if batch > 1 else "")


def in_detail(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks of which everything is shown: all, or, of many, those of the registry."""
    networks = document["networks"]
    return networks if len(networks) < MANY else [network for network in networks if network["model"] in MODELS]


def rivals(row: dict[str, Any]) -> dict[str, float]:
    """How many times as long as tvmflow each other library takes, the median over rounds."""
    return {
        name: statistics.median(figures["times_tvmflow"])
        for name, figures in row["libraries"].items()
        if name != "tvmflow"
    }


def ranked(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks, those first that another library is best at on one thread, or on what threads there are."""
    return sorted(
        document["networks"], key=lambda network: min(rivals(network["rows"][0]).values(), default=float("inf"))
    )


def drawn(document: dict[str, Any]) -> list[str]:
    """The plots that have something to show."""
    detailed = in_detail(document)
    layers = any(network["layers"] for network in detailed)
    has = {"latency": bool(detailed), "roofline": layers}
    return [name for name in PLOTS if has.get(name, True)]


def ratios(document: dict[str, Any], path: Path) -> None:
    """Dots: how many times as long as tvmflow each library takes, on a logarithmic scale: networks by threads.

    At the bottom is the network that another library is best at, and so on upwards.
    """
    import matplotlib.pyplot as plt

    networks = ranked(document)
    threads = sorted({row["threads"] for network in networks for row in network["rows"]})
    names = list(dict.fromkeys(name for network in networks for row in network["rows"] for name in rivals(row)))
    with plt.rc_context(STYLE):
        size = (4.2 * len(threads) + 2, 0.19 * len(networks) + 1.6)
        figure, axes = plt.subplots(1, len(threads), figsize=size, sharey=True, sharex=True, squeeze=False)
        for axis, count in zip(axes.flat, threads, strict=True):
            for name, marker in zip(names, itertools.cycle("os^DvP*X"), strict=False):
                found = [
                    (rivals(row)[name], place)
                    for place, network in enumerate(networks)
                    for row in network["rows"]
                    if row["threads"] == count and name in row["libraries"]
                ]
                if found:
                    axis.scatter(*zip(*found, strict=True), s=14, marker=marker, alpha=0.7, label=name)
            axis.axvline(1, color="black", linewidth=0.8)
            axis.grid(axis="y", linewidth=0.3)
            axis.set(xscale="log", title=f"{count} thread{'s' * (count > 1)}")
        axes[0, 0].set_yticks(range(len(networks)), [title(network) for network in networks])
        axes[0, 0].set_ylim(-0.7, len(networks) - 0.3)
        if names:
            axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        cpu = networks[0]["environment"]["cpu"]
        figure.supxlabel(f"latency ÷ tvmflow's, measured on {cpu}; left of the line the other is faster", fontsize=9)
        _save(figure, path)


def latency(document: dict[str, Any], path: Path) -> None:
    """Bars: how many times as long as tvmflow each library takes, on a logarithmic scale: networks by threads."""
    import matplotlib.pyplot as plt

    networks = in_detail(document)
    rows = [(title(network), row) for network in networks for row in network["rows"]]
    with plt.rc_context(STYLE):
        columns = len(networks)
        lines = -(-len(rows) // columns)
        size = (2.1 * columns + 1, 2.7 * lines + 0.3)
        figure, axes = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
        names = list(dict.fromkeys(name for _, row in rows for name in row["libraries"]))[::-1]
        every = [ratio for _, row in rows for found in row["libraries"].values() for ratio in found["times_tvmflow"]]
        for axis, (model, row) in zip(axes.T.flat, rows, strict=True):
            for place, name in enumerate(names):
                if name not in row["libraries"]:
                    axis.text(1.1, place, "not measured", va="center", color="tab:gray")
                    continue
                ratios = row["libraries"][name]["times_tvmflow"]
                middle = statistics.median(ratios)
                reach = [[middle - min(ratios)], [max(ratios) - middle]]
                color = "tab:blue" if name == "tvmflow" else "tab:gray" if middle >= 1 else "tab:red"
                axis.barh(place, middle, xerr=reach, color=color)
                axis.text(max(ratios) * 1.1, place, f"{middle:.2f}", va="center")
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set(xscale="log", xlim=(min(every) / 1.5, max(every) * 8))
            axis.set_title(f"{model}\n{row['threads']} thread{'s' * (row['threads'] > 1)}")
        axes[0, 0].set_yticks(range(len(names)), names)
        cpu = networks[0]["environment"]["cpu"]
        figure.supxlabel(f"latency ÷ tvmflow's, measured on {cpu}; bars to the lowest and highest round", fontsize=9)
        _save(figure, path)


def roofline(document: dict[str, Any], path: Path) -> None:
    """Dots: each layer's arithmetic intensity and speed on one thread, under the FMA peak and the caches' bandwidth.

    A layer can be above the peak: its multiply-adds are the original network's, and those with padding are left out.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    networks = [network for network in in_detail(document) if network["layers"]]
    limits = networks[0]["limits"]
    intensities = np.geomspace(0.1, 300, 200)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 5))
        for key, label in (("gbps_l2", "within L2"), ("gbps", "behind L2"), ("gbps_memory", "memory")):
            roof = np.minimum(limits["gflops"], intensities * limits[key])
            axis.plot(intensities, roof, linewidth=1, label=f"{label}, {limits[key]:.0f} GB/s")
        for network, marker in zip(networks, itertools.cycle("os^DvP*X"), strict=False):
            layers = [layer for layer in network["layers"] if layer["intensity"] > 0]
            axis.scatter(
                [layer["intensity"] for layer in layers],
                [layer["gflops"] for layer in layers],
                s=16,
                marker=marker,
                alpha=0.7,
                label=title(network),
            )
        peak = f"FMA peak {limits['gflops']:.0f} GFLOP/s"
        axis.text(intensities[-1], limits["gflops"] * 1.05, peak, ha="right", va="bottom")
        axis.set(xscale="log", yscale="log", ylim=(1, 3 * limits["gflops"]))
        axis.set_xlabel("FLOP for each byte of the layer's tensors")
        axis.set_ylabel("GFLOP/s, one thread, measured; taps on padding count")
        axis.legend(loc="lower right")
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


PLOTS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "ratios": ratios,
    "latency": latency,
    "roofline": roofline,
}
"""By what their files' names end with."""
