"""Variables that a file keeps from one call to the next: each becomes an input and an output of the network.

Nobody but the network reads them, so that they lie as its own tensors do, 1×C×H×W, and no call has to move them.

A file has a graph that is run once, which gives every variable its first values. These are a single number each, as
streaming networks have them: the zero point, silence.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvmflow.integer.network import Port, State
from tvmflow.integer.tflite.model import FileGraph, FileOperator
from tvmflow.integer.tflite.values import Network, Refused, Value, check_batch, inside
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError

KINDS = ("CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")


class Variables:
    """What of a file's variables is known while its operators are read, by the variables' names."""

    def __init__(self, network: Network, graphs: tuple[FileGraph, ...]) -> None:
        self.network, self.graphs = network, graphs
        self.names: dict[int, str] = {}
        self.ports: dict[str, Port] = {}
        self.current: dict[str, Value] = {}
        self.first: dict[str, int] = {}

    def convert(self, operator: FileOperator) -> None:
        if operator.kind == "CALL_ONCE":
            number = operator.integer("init_subgraph_index")
            if not 0 < number < len(self.graphs):
                raise MalformedError(f"CALL_ONCE runs the graph {number} of {len(self.graphs)}")
            self.first |= _first_values(self.graphs[number])
        elif operator.kind == "VAR_HANDLE":
            self.names |= _handle(operator)
        elif operator.kind == "READ_VARIABLE":
            self._read(operator)
        else:
            self._assign(operator)

    def _read(self, operator: FileOperator) -> None:
        name, tensor = _named(self.names, operator), self.network.result(operator)
        check_batch(tensor.shape)
        if name not in self.current:
            self.ports[name] = self.network.input(name, replace(tensor, shape=inside(tensor.shape)))
            self.current[name] = Value(
                shape=tensor.shape,
                source=self.ports[name].name,
                places=None,
                dtype=tensor.dtype,
                scale=tensor.scale,
                zero_point=tensor.zero_point,
            )
        value = self.current[name]
        if (tensor.dtype, tensor.scale, tensor.zero_point) != (value.dtype, value.scale, value.zero_point):
            raise Refused(f"the variable {untrusted.shown(name)}, which is read in other steps than it has")
        self.network.set(operator, value)

    def _assign(self, operator: FileOperator) -> None:
        name, value = _named(self.names, operator), self.network.value(operator, 1)
        port = self.ports.get(name)
        if port is None:
            raise Refused(f"the variable {untrusted.shown(name)}, which is assigned before it is read")
        given = (value.shape, value.dtype, value.scale, value.zero_point)
        if given != (self.current[name].shape, port.dtype, port.scale, port.zero_point):
            raise Refused(f"the variable {untrusted.shown(name)}, which gets another shape or other steps than it has")
        self.current[name] = value

    def states(self) -> list[tuple[State, Port, Value]]:
        """Each variable with its input, and what it is after a call. Raises Refused."""
        found = []
        for name, port in self.ports.items():
            if name not in self.first:
                raise Refused(f"the variable {untrusted.shown(name)} without first values")
            state = State(input=port.name, output=f"{port.name}.next", initial=self.first[name])
            found.append((state, port, self.current[name]))
        return found


def _first_values(graph: FileGraph) -> dict[str, int]:
    names: dict[int, str] = {}
    found: dict[str, int] = {}
    for operator in graph.operators:
        if operator.kind == "VAR_HANDLE":
            names |= _handle(operator)
        elif operator.kind == "ASSIGN_VARIABLE" and len(operator.inputs) == 2:
            data = graph.tensors[operator.inputs[1]].data
            name = _named(names, operator)
            if data is None or not data.size or data.dtype not in (np.int8, np.uint8) or (data != data.flat[0]).any():
                raise Refused(f"the variable {untrusted.shown(name)}, whose first values aren't one number of int8")
            found[name] = int(data.flat[0])
        else:
            raise Refused(f"{operator.kind} in the graph that is run once")
    return found


def _handle(operator: FileOperator) -> dict[int, str]:
    if len(operator.outputs) != 1:
        raise MalformedError("VAR_HANDLE gives no variable")
    name = f"{operator.options['container']}/{operator.options['shared_name']}".strip("/")
    return {operator.outputs[0]: untrusted.shortened(name)}


def _named(names: dict[int, str], operator: FileOperator) -> str:
    if not operator.inputs or operator.inputs[0] not in names:
        raise MalformedError(f"{operator.kind} names no variable")
    return names[operator.inputs[0]]
