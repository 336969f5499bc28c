"""Between the kernels of quantised networks on CPUs: how tensors lie there, and which layers share a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tvmflow.integer.layers import AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.operators import Sum
from tvmflow.schedules.cpu.integer.depthwise import fuses
from tvmflow.schedules.instructions import instructions_of
from tvmflow.schedules.integer_tasks import Tensor
from tvmflow.schedules.integers import round_up
from tvmflow.spec import Target

OFFSETS = {("int8", "uint8"): 128, ("uint8", "int8"): -128}
"""What is added to values of the first dtype to store them in the second."""


def form(layer: AnyIntegerLayer, readers: Sequence[AnyIntegerLayer], target: Target) -> Tensor:
    """As the readers' instructions want it: pixels × whole vectors of channels."""
    channels, *size = layer.output_shape[1:]
    instructions = instructions_of(target)
    stored = math.prod(size), round_up(channels, instructions.lanes)
    tensor = Tensor(channels=channels, size=(size[0], size[1]), dtype=layer.dtype, shape=stored)
    wanted = instructions.data
    if wanted == "uint8" and layer.minimum >= 0:
        return replace(tensor, dtype=wanted)
    if wanted == layer.dtype or any(isinstance(reader, IntegerLayer) and reader.groups != 1 for reader in readers):
        return tensor
    if not any(isinstance(reader, IntegerLayer) for reader in readers):
        return tensor
    return replace(tensor, dtype=wanted, offset=OFFSETS.get((layer.dtype, wanted), 0))


def joins(group: Sequence[AnyIntegerLayer], layer: AnyIntegerLayer, target: Target) -> bool:
    """A second depthwise layer joins a first one, and a sum the layer with all channels that gives it an operand."""
    if isinstance(layer, IntegerNode):
        return _is_tail(group, layer)
    first, *more = group
    return not more and isinstance(first, IntegerLayer) and fuses(first, layer, target)


def _is_tail(group: Sequence[AnyIntegerLayer], node: IntegerNode) -> bool:
    """Whether a sum can be done on the vectors that a layer gives, because all that it reads lies alike."""
    linear = [layer for layer in group if isinstance(layer, IntegerLayer)]
    return (
        isinstance(node.operator, Sum)
        and [layer.groups for layer in linear] == [1]
        and set(node.input_shapes) == {node.output_shape}
    )
