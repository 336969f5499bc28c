"""Plots of what `benchmarks.peers` has measured: latencies beside tvmflow's, and layers under this computer's roofs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "tvmflow", "font.size": 9}
"""Text stays text, and the same figures give the same file."""


def title(network: dict[str, Any]) -> str:
    """ "dilated-net", or "dilated-net, batch 8"."""
    batch = network.get("batch", 1)
    return network["model"] + (f", batch {batch}" if batch > 1 else "")


def latency(document: dict[str, Any], path: Path) -> None:
    """Bars: how many times as long as tvmflow each library takes, on a logarithmic scale: networks by threads."""
    import matplotlib.pyplot as plt

    rows = [(title(network), row) for network in document["networks"] for row in network["rows"]]
    with plt.rc_context(STYLE):
        columns = len(document["networks"])
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
        cpu = document["networks"][0]["environment"]["cpu"]
        figure.supxlabel(f"latency ÷ tvmflow's, measured on {cpu}; bars to the lowest and highest round", fontsize=9)
        _save(figure, path)


def roofline(document: dict[str, Any], path: Path) -> None:
    """Dots: each layer's arithmetic intensity and speed on one thread, under the FMA peak and the caches' bandwidth.

    A layer can be above the peak: its multiply-adds are the original network's, and those with padding are left out.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    limits = document["networks"][0]["limits"]
    intensities = np.geomspace(0.1, 300, 200)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 5))
        for key, label in (("gbps_l2", "within L2"), ("gbps", "behind L2"), ("gbps_memory", "memory")):
            roof = np.minimum(limits["gflops"], intensities * limits[key])
            axis.plot(intensities, roof, linewidth=1, label=f"{label}, {limits[key]:.0f} GB/s")
        for network, marker in zip(document["networks"], itertools.cycle("os^DvP*X"), strict=False):
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
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


PLOTS: dict[str, Callable[[dict[str, Any], Path], None]] = {"latency": latency, "roofline": roofline}
"""By what their files' names end with."""
