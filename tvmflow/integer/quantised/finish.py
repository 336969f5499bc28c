"""The network of layers that a quantised file's operators became, with its outputs as the file has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tvmflow.integer.network import IntegerNetwork, Port
from tvmflow.integer.quantised import operations
from tvmflow.integer.quantised.cores import Elementwise, Given, copied
from tvmflow.integer.quantised.tidy import retyped, tidied
from tvmflow.integer.quantised.values import Constant, Graph, Real, Steps, steps_of
from tvmflow.integer.tflite.values import Refused, check_batch, plain_name
from tvmflow.system import untrusted


def finished(
    name: str, graph: Graph, inputs: Sequence[Port], outputs: Sequence[tuple[str, Real | Constant | None]]
) -> IntegerNetwork:
    """Raises Refused for outputs that aren't quantised, UserError for what isn't exact in int32."""
    ports: list[Port] = []
    wanted: list[Steps] = []
    for label, real in outputs:
        port, steps = _output(graph, label, real, [port.name for port in ports])
        ports.append(port)
        wanted.append(steps)
    layers = list(tidied(graph.layers, ports))
    for number, (port, steps) in enumerate(zip(ports, wanted, strict=True)):
        if steps.dtype != port.dtype:
            ports[number] = _in_type(graph, layers, ports, number, steps)
    return IntegerNetwork(name=name, scheme="tflite", inputs=tuple(inputs), outputs=tuple(ports), layers=tuple(layers))


def _output(graph: Graph, label: str, real: Real | Constant | None, taken: Sequence[str]) -> tuple[Port, Steps]:
    """A port in the order of the file and the type that layers have, and the steps that the file has."""
    if not isinstance(real, Real):
        raise Refused(f"the output {untrusted.shown(label)}, which is a constant")
    if isinstance(real.core, Given):
        raise Refused(f"the output {untrusted.shown(label)}, which is an input")
    if not operations.is_read(real):
        raise Refused(f"the output {untrusted.shown(label)} of {operations.described(real)}, which isn't quantised")
    if not math.prod(real.shape):
        raise Refused("an output without elements")
    check_batch(real.shape)
    value = real.core.value
    steps = real.stored or steps_of(value)
    if real.integers:
        value = replace(value, scale=steps.scale, zero_point=value.zero_point + steps.zero_point)
    name = plain_name(label)
    while name in taken:
        name += ".again"
    source = copied(graph, value, f"{value.source}.output")
    port = Port(
        name=name,
        shape=value.shape,
        scale=value.scale,
        zero_point=value.zero_point,
        dtype=value.dtype,
        source=source,
    )
    return port, steps


def _in_type(graph: Graph, layers: list, ports: Sequence[Port], number: int, steps: Steps) -> Port:
    """A port in the file's type: its layer gives that, or one more does."""
    port = ports[number]
    more = steps.zero_point - port.zero_point
    readers = Counter(name for layer in layers for name in layer.inputs) + Counter(one.source for one in ports)
    place = next(place for place, layer in enumerate(layers) if layer.name == port.source)
    if readers[port.source] == 1 and (made := retyped(layers[place], more, steps.dtype)) is not None:
        layers[place] = made
        return replace(port, dtype=steps.dtype, zero_point=steps.zero_point)
    before = layers[place]
    value = graph.value_of(before.name, before.output_shape, port)
    count = len(graph.layers)
    made_of = Elementwise(value=value).make(graph, steps, _range(steps), (f"{before.name}.{steps.dtype}",))
    layers += graph.layers[count:]
    return replace(port, dtype=steps.dtype, zero_point=steps.zero_point, source=made_of.source)


def _range(steps: Steps) -> tuple[int, int]:
    low, high = steps.limits(-np.inf, np.inf)
    return low, high
