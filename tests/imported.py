"""Networks that tests of several files need, imported and quantised once in a process. Nobody changes them."""

from __future__ import annotations

import functools

import numpy as np
from strangers import STRANGERS

from tvmflow.integer.layers import Scheme
from tvmflow.integer.network import IntegerNetwork
from tvmflow.integer.post_training import Method
from tvmflow.models import int8
from tvmflow.network.frontend import from_module, import_model
from tvmflow.spec import Program

registered = functools.cache(import_model)
"""A network of the registry by its name."""


@functools.cache
def stranger(name: str) -> Program:
    """A network of tests/strangers.py."""
    found = STRANGERS[name]
    return from_module(found.make(), name, name, found.shapes)


@functools.cache
def quantised_stranger(name: str, scheme: Scheme) -> IntegerNetwork:
    """The same in int8. In powers of two no test says how near it has to be."""
    return quantised(stranger(name), scheme, *((8, 4) if scheme == "power-of-two" else ()))


def quantised(program: Program, scheme: Scheme, count: int = 24, checked: int = 8) -> IntegerNetwork:
    """A network in int8: `count` inputs of noise calibrate, on `checked` others it is compared."""
    rng = np.random.default_rng(0)
    calibration, others = (
        tuple(rng.standard_normal((number, *spec.shape[1:]), np.float32) for spec in program.inputs)
        for number in (count, checked)
    )
    examples = int8.Examples(calibration=calibration, others=others, facts={})
    return int8.make(program, examples, scheme, Method(count=count))
