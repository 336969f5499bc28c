"""Kernels for Cortex-M, of integer and of float32 layers: functions over plain pointers.

Each takes a layer, or a chain of them, and gives its loops, or None. Tensors are C×H×W without a batch, as the
network's own inputs are. `choose` tries the kernels in order, first match wins. A new one is a file here and a line in
KERNELS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module

from tvmflow.schedules.cortex_m._kernel import AdaptedLayer, AnyLayer, Kernel, Node, settled

__all__ = ["CORES", "KERNELS", "LONGEST_CHAIN", "AdaptedLayer", "AnyLayer", "Kernel", "Node", "choose"]

KERNELS: dict[str, str] = {
    "pointwise": "a whole convolution of integers, 1×1 above all: four pixels at a time, by SMLAD or VMLADAV",
    "convolution_float": "a whole convolution or dense layer of float32: tiles of sums in floating-point registers",
    "depthwise": "one or two depthwise convolutions, plane by plane, in place if there are two",
    "direct": "any layer with weights, by the loops of its definition",
    "node": "any layer without weights, element by element",
}
"""The files of this folder and what they are for."""

CORES = ("plain", "dsp", "mve")
"""What a core can: nothing beyond C, the DSP extension's dual multiply-adds, or the vectors of MVE and DSP both."""

LONGEST_CHAIN = 2

Make = Callable[[Sequence[AnyLayer], Sequence[str], str, Sequence[bool], bool], Kernel | None]
"""A kernel for just these layers, or None: (layers, dtypes of what is read, core, which of that may be overwritten,
whether that is worth copying a part of it first)."""


def choose(
    layers: Sequence[AnyLayer], dtypes: Sequence[str], core: str, writable: Sequence[bool], frugal: bool = False
) -> Kernel:
    """The kernel of the first of `layers`, or of more of them.

    `dtypes` and `writable` are of the tensors that the first reads, each of them once; those that are writable may be
    overwritten, also where that takes more instructions if `frugal`. Of the others, each has to read the one before,
    and nobody else may.
    """
    read = (dtypes[0], *(layer.dtype for layer in layers[:-1]))
    computed = [settled(layer, dtype) for layer, dtype in zip(layers, read, strict=True)]
    for name in KERNELS:
        make: Make = getattr(import_module(f"tvmflow.schedules.cortex_m.{name}"), name)
        for count in range(min(len(layers), LONGEST_CHAIN), 0, -1):
            if kernel := make(computed[:count], dtypes, core, writable, frugal):
                return replace(kernel, layers=tuple(layers[:count]))
    raise AssertionError("direct and node serve every layer")
