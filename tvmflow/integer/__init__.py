"""Quantised networks: exact integer arithmetic, how a float network becomes one, and how one becomes a Program.

What `network` offers can be imported from here, too.
"""

from __future__ import annotations

from typing import Any

OFFERED = {
    **dict.fromkeys(("IntegerLayer", "IntegerNetwork", "Scheme", "quantize", "requantize", "run_layer"), "network"),
    **dict.fromkeys(("load", "save"), "file"),
}


def __getattr__(name: str) -> Any:
    if name in OFFERED:
        from importlib import import_module

        return getattr(import_module(f"tvmflow.integer.{OFFERED[name]}"), name)
    raise AttributeError(f"there is no {name} in {__name__}")
