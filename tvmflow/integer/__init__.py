"""Quantised networks: exact integer arithmetic, how a float network becomes one, and how one becomes a Program.

What `network` offers can be imported from here, too.
"""

from __future__ import annotations

from typing import Any

OFFERED = frozenset({"IntegerLayer", "IntegerNetwork", "Scheme", "load", "quantize", "requantize", "run_layer", "save"})


def __getattr__(name: str) -> Any:
    if name in OFFERED:
        from tvmflow.integer import network

        return getattr(network, name)
    raise AttributeError(f"there is no {name} in {__name__}")
