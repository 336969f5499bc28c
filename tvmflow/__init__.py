"""From a trained PyTorch network to the embedded devices where it has to run, with an honest account of the cost.

    import tvmflow

    compiled = tvmflow.compile(model, example_inputs, board="raspberry-pi-4b")

compiles and verifies a network; `quantize`, `estimate`, `deploy` and `load` are beside it (docs/python.md). Importing
this imports none of what these need, which they import when they are called.
"""

import os
from typing import Any

__version__ = "0.1.0"

_folder = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_folder, "targets")):
    # A checkout keeps schedules/, targets/ and models/ beside this package; a wheel keeps them inside it.
    __path__.append(os.path.dirname(_folder))

from tvmflow.system.moved import keep_old_names  # noqa: E402 (the path has to be whole)

keep_old_names()

_OFFERED = {
    **dict.fromkeys(("compile", "deploy", "estimate", "load", "quantize", "Compiled"), "tvmflow.cli.calls"),
    **dict.fromkeys(
        ("Costs", "Estimate", "Estimates", "Latency", "LayerCost", "QuantisedNetwork", "Verdict"), "tvmflow.cli.results"
    ),
    **dict.fromkeys(
        (
            *("TvmflowError", "UserError", "VerificationError", "MissingDependencyError"),
            *("DeviceError", "UnsupportedOperatorError"),
        ),
        "tvmflow.spec",
    ),
}
"""What can be asked for here, and the module that has it."""

__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _OFFERED:
        raise AttributeError(f"module 'tvmflow' has no attribute {name!r}")
    # not kept here: an old module of that name may be imported later, and then is called in its place
    return getattr(import_module(_OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})
