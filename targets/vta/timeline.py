"""The three queues over time as a picture: what each module did while a layer, or the whole program, ran."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import numpy as np

from tvmflow.targets.vta.isa import MODULES
from tvmflow.targets.vta.timing import KINDS, LayerTiming, Timing

COLOURS = {
    "gemm": "#1b7837",
    "alu": "#a6dba0",
    "load inp": "#2166ac",
    "load wgt": "#67a9cf",
    "load acc": "#8073ac",
    "load uop": "#d8daeb",
    "store": "#e08214",
    "nop": "#999999",
}
WIDTH, LEFT, RIGHT, TOP, LANE, GAP = 960, 70, 16, 46, 34, 8
"""Pixels."""
RESOLUTION = 0.5
"""Pixels below which pieces of one kind that follow each other are drawn as one."""


SLICES = 240
"""Of a program's time in a report."""


def occupancy(timing: Timing) -> dict[str, Any]:
    """What each module did in each of `SLICES` equal parts of the time, as `timeline` in docs/report.schema.json.

    A share is of 1000; what is missing to 1000 the module stood still.
    """
    edges = np.linspace(0, timing.cycles, SLICES + 1)
    lengths = timing.end - timing.begin

    def shares(chosen: np.ndarray) -> list[int]:
        done = np.clip(edges[:, None] - timing.begin[chosen], 0, lengths[chosen]).sum(axis=1)
        return np.rint(1000 * np.diff(done) * SLICES / timing.cycles).astype(int).tolist()

    return {
        "basis": "simulated",
        "unit": "cycles",
        "end": timing.cycles,
        "queues": {
            module: {
                KINDS[kind]: shares((timing.module == number) & (timing.kind == kind))
                for kind in np.unique(timing.kind[timing.module == number])
            }
            for number, module in enumerate(MODULES)
        },
        "layers": [{"begin": layer.begin, "end": layer.end} for layer in timing.layers],
    }


def picture(timing: Timing, layer: LayerTiming | None = None, title: str = "") -> str:
    """An SVG document: a lane a module, time from left to right in cycles, colours by `KINDS`.

    In the picture of a layer, what its neighbours do meanwhile is pale.
    """
    begin, end = (layer.begin, layer.end) if layer else (0, timing.cycles)
    span = max(end - begin, 1)
    scale = (WIDTH - LEFT - RIGHT) / span
    height = TOP + len(MODULES) * (LANE + GAP) + 34
    hardware = timing.hardware
    title = title or (layer.name if layer else "program")
    microseconds = span / hardware.clock_mhz
    caption = (
        f"{title}: {span:,} cycles, {microseconds:,.1f} µs at {hardware.clock_mhz:g} MHz; simulated, "
        f"{hardware.core} core, memory latency {hardware.read_latency} cycles"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(caption)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="16">{escape(caption)}</text>',
    ]
    x = LEFT
    for kind in KINDS:
        parts.append(f'<rect x="{x}" y="26" width="10" height="10" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 14}" y="35">{kind}</text>')
        x += 30 + 7 * len(kind)
    for number, module in enumerate(MODULES):
        y = TOP + number * (LANE + GAP)
        parts.append(f'<text x="{LEFT - 8}" y="{y + LANE / 2 + 4:g}" text-anchor="end">{module}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{span * scale:.1f}" height="{LANE}" fill="#f2f2f2"/>')
        for piece in _pieces(timing, layer, number, begin, end, RESOLUTION / scale):
            left, width = LEFT + (piece.begin - begin) * scale, max((piece.end - piece.begin) * scale, 0.1)
            pale = "" if piece.ours else ' fill-opacity="0.3"'
            colour = COLOURS[piece.kind]
            parts.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{LANE}" fill="{colour}"{pale}/>')
    bottom = TOP + len(MODULES) * (LANE + GAP)
    for tick in _ticks(begin, end):
        x_tick = LEFT + (tick - begin) * scale
        parts.append(f'<line x1="{x_tick:.1f}" y1="{TOP}" x2="{x_tick:.1f}" y2="{bottom}" stroke="#00000033"/>')
        parts.append(f'<text x="{x_tick:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:,}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 29}" text-anchor="end">cycles</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Piece(NamedTuple):
    kind: str
    ours: bool
    begin: int
    end: int


def _pieces(
    timing: Timing, layer: LayerTiming | None, module: int, begin: int, end: int, least: float
) -> Iterator[_Piece]:
    """A module's instructions between two times, joined where the gap can't be seen."""
    last: _Piece | None = None
    for number in np.flatnonzero((timing.module == module) & (timing.end > begin) & (timing.begin < end)):
        ours = layer is None or bool(layer.first <= number < layer.last)
        start, stop = max(int(timing.begin[number]), begin), min(int(timing.end[number]), end)
        piece = _Piece(KINDS[timing.kind[number]], ours, start, stop)
        if last and last[:2] == piece[:2] and start - last.end < least:
            last = last._replace(end=stop)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _ticks(begin: int, end: int) -> range:
    step = 1
    while (end - begin) / step > 8:
        step *= 5 if str(step)[0] == "2" or str(step)[0] == "1" else 2
    return range(-(-begin // step) * step, end + 1, step)
