"""What only one kind of target knows of its layers, as columns of the layer table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""A layer of a report."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns that a table has if `key` is among the details of any of its layers; `cells` gives one layer's."""

    key: str
    header: tuple[str, ...]
    cells: Callable[[Row], tuple[str, ...]]


def _kernels(layer: Row) -> tuple[str, ...]:
    """Of several kernels, all sizes and the worst of the rest."""
    kernels = layer["details"]["kernels"]
    return (
        " + ".join(f"{row['blocks']} × {row['threads']}" for row in kernels),
        str(max(row["registers"] for row in kernels)),
        f"{max(row['shared_bytes'] for row in kernels) / 1024:.1f}",
        str(sum(row["spill_bytes"] for row in kernels)),
        f"{min(row['occupancy'] for row in kernels):.0%}",
    )


def _instructions(layer: Row) -> tuple[str, ...]:
    count, macs = layer["details"]["instructions"], layer["macs"]
    return f"{count:,}", f"{count / macs:.3f}" if macs else ""


def _cycles(layer: Row) -> tuple[str, ...]:
    cycles = layer["details"]["modelled_cycles"]
    return f"{cycles:,}", f"{layer['macs'] / cycles:.2f}" if layer["macs"] and cycles else ""


COLUMNS: tuple[Columns, ...] = (
    Columns(
        key="kernels",
        header=("blocks × threads", "registers", "shared KiB", "spilled B", "occupancy"),
        cells=_kernels,
    ),
    Columns(
        key="times_bound",
        header=("bound", "× bound"),
        cells=lambda layer: (layer["details"]["bound"], f"{layer['details']['times_bound']:.2f}"),
    ),
    Columns(
        key="processor_share",
        header=("processor's share of elements",),
        cells=lambda layer: (f"{layer['details']['processor_share']:.1%}",),
    ),
    Columns(key="instructions", header=("instructions (emulated)", "per multiply-add"), cells=_instructions),
    Columns(key="modelled_cycles", header=("cycles (modelled)", "multiply-adds in each"), cells=_cycles),
    Columns(key="sqnr_db", header=("SQNR, dB",), cells=lambda layer: (f"{layer['details']['sqnr_db']:.1f}",)),
)


def columns_of(layers: Sequence[Row]) -> tuple[Columns, ...]:
    """Those of COLUMNS that these layers have something for."""
    return tuple(columns for columns in COLUMNS if any(_has(layer, columns) for layer in layers))


def header_of(layers: Sequence[Row]) -> list[str]:
    """Names of the columns that these layers need."""
    return [name for columns in columns_of(layers) for name in columns.header]


def cells_of(layer: Row, layers: Sequence[Row]) -> list[str]:
    """What `layer`, one of `layers`, has in those columns; empty where it has nothing."""
    return [
        cell
        for columns in columns_of(layers)
        for cell in (columns.cells(layer) if _has(layer, columns) else ("",) * len(columns.header))
    ]


def _has(layer: Row, columns: Columns) -> bool:
    return layer.get("details", {}).get(columns.key) not in (None, [])
