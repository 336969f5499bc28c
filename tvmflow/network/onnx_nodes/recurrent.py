"""Recurrent layers, unrolled: the products with the inputs of all steps are one, each step adds that of its state.

Layers as PyTorch has them are made of the kernels of its reader (`tvmflow.network.steps`), which CPUs roll up again.
Clipped gates, peepholes and other activations are operators of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.network import steps
from tvmflow.network.onnx_nodes.node import Node, constant, dtype_of, piece, reshape, shape_of

MOST_STEPS = 2048
"""Longer sequences would make kernels without end: every step has its own."""


def _activations(node: Node, defaults: Sequence[str], direction: int) -> list[Callable[[relax.Expr], relax.Expr]]:
    names = node.get("activations") or list(defaults) * 2
    chosen = names[direction * len(defaults) : (direction + 1) * len(defaults)]
    known: dict[str, Callable[[relax.Expr], relax.Expr]] = {
        "sigmoid": op.sigmoid,
        "tanh": op.tanh,
        "relu": op.nn.relu,
        "softsign": lambda x: op.divide(x, op.add(op.abs(x), constant(1, dtype_of(x)))),
    }
    for name in chosen:
        if name.lower() not in known or node.get("activation_alpha") or node.get("activation_beta"):
            raise node.refusal(f"its activation is {name}")
    return [known[name.lower()] for name in chosen]


class Layer:
    """What LSTM, GRU and RNN have in common: weights of a direction, the inputs' products, the order of steps."""

    def __init__(self, node: Node, gates: int) -> None:
        self.node, self.gates, self.hidden = node, gates, node.get("hidden_size")
        self.batch_first = bool(node.get("layout", 0))
        data = node.inputs[0]
        if self.batch_first:
            data = node.bind(op.permute_dims(data, [1, 0, 2]))
        self.steps, self.batch, self.features = shape_of(data)
        self.rows = node.bind(reshape(data, (self.steps * self.batch, self.features)))
        if self.steps > MOST_STEPS:
            raise node.refusal(f"it has {self.steps} steps; at most {MOST_STEPS} are unrolled")
        lengths = node.constant(4, "sequence_lens")
        if lengths is not None and (lengths != self.steps).any():
            raise node.refusal("its sequences have lengths of their own")
        direction = node.get("direction", "forward")
        self.backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]

    def weights(self, index: int, direction: int) -> np.ndarray | None:
        value = self.node.constant(index, "weights")
        return None if value is None else value[direction]

    def biases(self, direction: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the inputs and those of the state."""
        given = self.weights(3, direction)
        width = self.gates * self.hidden
        if given is None:
            given = np.zeros(2 * width, self.node.dtype())
        return given[:width], given[width:]

    def state(self, index: int, direction: int) -> relax.Expr:
        if not self.node.given(index):
            return constant(np.zeros((self.batch, self.hidden)), self.node.dtype())
        axis = 1 if self.batch_first else 0
        chosen = self.node.bind(piece(self.node.inputs[index], axis, direction, direction + 1))
        return self.node.bind(reshape(chosen, (self.batch, self.hidden)))

    def projected(self, direction: int, bias: np.ndarray) -> list[relax.Expr]:
        """The inputs' product with their weights and the bias, of each step."""
        weight = self.weights(1, direction)
        assert weight is not None
        product = self.node.bind(op.matmul(self.rows, constant(np.ascontiguousarray(weight.T))))
        shifted = self.node.bind(op.add(product, constant(bias)))
        return [piece(shifted, 0, step * self.batch, (step + 1) * self.batch) for step in range(self.steps)]

    def is_plain(self, defaults: Sequence[str], direction: int) -> bool:
        """Whether a step has the activations that are `defaults`, and clips nothing."""
        names = self.node.get("activations") or list(defaults) * 2
        chosen = [name.lower() for name in names[direction * len(defaults) : (direction + 1) * len(defaults)]]
        own = any(self.node.get(name) for name in ("activation_alpha", "activation_beta", "clip"))
        return not own and chosen == [name.lower() for name in defaults]

    def run(
        self,
        direction: int,
        make: Callable[..., Any],
        order: Sequence[int],
        biases: tuple[np.ndarray, np.ndarray | None],
        state: tuple[relax.Expr, ...],
        given: Sequence[int],
    ) -> tuple[list[relax.Expr], tuple[relax.Expr, ...]]:
        """All steps by a kernel of `tvmflow.network.steps`: the hidden states of all, and the states at the end.

        The gates that the kernel wants are those at `order` of ONNX's; `biases` are of the inputs and of the state; the
        kernel gets the parts of the state at `given`.
        """
        bind = self.node.bind

        def reordered(array: np.ndarray) -> np.ndarray:
            parts = array.reshape(self.gates, self.hidden, -1)[list(order)]
            return np.ascontiguousarray(parts.reshape(self.gates * self.hidden, -1))

        of_input, of_state = self.weights(1, direction), self.weights(2, direction)
        assert of_input is not None
        assert of_state is not None
        first, second = (None if bias is None else constant(reordered(bias).reshape(-1)) for bias in biases)
        product = bind(op.matmul(self.rows, constant(np.ascontiguousarray(reordered(of_input).T))))
        shares = bind(op.add(product, first))
        shares = bind(reshape(shares, (self.steps, self.batch, self.gates * self.hidden)))
        weight = constant(np.ascontiguousarray(reordered(of_state).T))
        made: dict[int, relax.Expr] = {}
        for at in self.order(direction):
            recurred = bind(op.matmul(state[0], weight))
            if second is not None:
                recurred = bind(op.add(recurred, second))
            needed = [state[place] for place in given]
            result = self.node.kernel(make, shares, steps.number(at), recurred, *needed, facts=steps.FACTS)
            several = isinstance(result.ty, relax.TupleType)
            state = tuple(bind(relax.TupleGetItem(result, place)) for place in range(2)) if several else (result,)
            made[at] = state[0]
        return [made[at] for at in range(self.steps)], state

    def order(self, direction: int) -> list[int]:
        return list(range(self.steps))[:: -1 if self.backwards[direction] else 1]

    def gate(self, value: relax.Expr, index: int) -> relax.Expr:
        return piece(value, 1, index * self.hidden, (index + 1) * self.hidden)

    def clipped(self, value: relax.Expr) -> relax.Expr:
        limit = self.node.get("clip")
        return value if not limit else op.clip(value, -limit, limit)

    def outputs(self, sequences: Sequence[Sequence[relax.Expr]], last: Sequence[Sequence[relax.Expr]]) -> tuple:
        """Y of steps × directions × batch × hidden, and the last states of directions × batch × hidden."""
        node, bind = self.node, self.node.bind
        whole = [bind(op.stack(list(steps), 0)) for steps in sequences]
        result = bind(op.stack(whole, 1))
        ends = [bind(op.stack(list(states), 0)) for states in last]
        if self.batch_first:
            result = op.permute_dims(result, [2, 0, 1, 3])
            ends = [bind(op.permute_dims(end, [1, 0, 2])) for end in ends]
        return (result, *ends)[: max(node.results, 1)] if node.results > 1 else result


def lstm(node: Node) -> relax.Expr | tuple:
    """Gates are in the order input, output, forget, cell."""
    layer, bind = Layer(node, 4), node.bind
    sequences, hidden_ends, cell_ends = [], [], []
    for direction in range(len(layer.backwards)):
        first, second = layer.biases(direction)
        peepholes = layer.weights(7, direction)
        hidden, cell = layer.state(5, direction), layer.state(6, direction)
        is_plain = peepholes is None and not node.get("input_forget", 0)
        if is_plain and layer.is_plain(("Sigmoid", "Tanh", "Tanh"), direction):
            states, last = layer.run(direction, steps.lstm, (0, 2, 3, 1), (first + second, None), (hidden, cell), (1,))
            sequences.append(states)
            hidden_ends.append(last[0])
            cell_ends.append(last[1])
            continue
        f, g, h = _activations(node, ("Sigmoid", "Tanh", "Tanh"), direction)
        inputs = layer.projected(direction, first + second)
        weight = layer.weights(2, direction)
        assert weight is not None
        recurrent = constant(np.ascontiguousarray(weight.T))
        made: dict[int, relax.Expr] = {}
        for step in layer.order(direction):
            total = bind(op.add(bind(op.matmul(hidden, recurrent)), inputs[step]))
            i, o, forget, c = (layer.gate(total, index) for index in range(4))
            if peepholes is not None:
                parts = [constant(part) for part in np.split(peepholes, 3)]
                i, forget = op.add(i, op.multiply(parts[0], cell)), op.add(forget, op.multiply(parts[2], cell))
            i = bind(f(layer.clipped(i)))
            forget = op.subtract(node.like(1), i) if node.get("input_forget", 0) else f(layer.clipped(forget))
            cell = bind(op.add(op.multiply(forget, cell), op.multiply(i, g(layer.clipped(c)))))
            if peepholes is not None:
                o = op.add(o, op.multiply(parts[1], cell))
            hidden = made[step] = bind(op.multiply(f(layer.clipped(o)), h(cell)))
        sequences.append([made[step] for step in range(layer.steps)])
        hidden_ends.append(hidden)
        cell_ends.append(cell)
    return layer.outputs(sequences, [hidden_ends, cell_ends])


def gru(node: Node) -> relax.Expr | tuple:
    """Gates are in the order update, reset, hidden."""
    layer, bind = Layer(node, 3), node.bind
    sequences, ends = [], []
    for direction in range(len(layer.backwards)):
        first, second = layer.biases(direction)
        width = 2 * layer.hidden
        linear = bool(node.get("linear_before_reset", 0))
        if linear and layer.is_plain(("Sigmoid", "Tanh"), direction):
            start = (layer.state(5, direction),)
            states, last = layer.run(direction, steps.gru, (1, 0, 2), (first, second), start, (0,))
            sequences.append(states)
            ends.append(last[0])
            continue
        f, g = _activations(node, ("Sigmoid", "Tanh"), direction)
        joint = second.copy() if not linear else np.concatenate([second[:width], np.zeros_like(second[width:])])
        inputs = layer.projected(direction, first + joint)
        weight = layer.weights(2, direction)
        assert weight is not None
        gates, own = constant(np.ascontiguousarray(weight[:width].T)), constant(np.ascontiguousarray(weight[width:].T))
        hidden = layer.state(5, direction)
        made: dict[int, relax.Expr] = {}
        for step in layer.order(direction):
            given = bind(inputs[step])
            both = bind(op.add(bind(op.matmul(hidden, gates)), piece(given, 1, 0, width)))
            both = bind(f(layer.clipped(both)))
            z, r = bind(layer.gate(both, 0)), bind(layer.gate(both, 1))
            if linear:
                state = bind(op.add(bind(op.matmul(hidden, own)), constant(second[width:])))
                state = bind(op.multiply(r, state))
            else:
                state = bind(op.matmul(bind(op.multiply(r, hidden)), own))
            new = bind(g(layer.clipped(op.add(state, layer.gate(given, 2)))))
            kept = op.multiply(z, hidden)
            hidden = made[step] = bind(op.add(op.multiply(op.subtract(node.like(1), z), new), kept))
        sequences.append([made[step] for step in range(layer.steps)])
        ends.append(hidden)
    return layer.outputs(sequences, [ends])


def rnn(node: Node) -> relax.Expr | tuple:
    layer, bind = Layer(node, 1), node.bind
    sequences, ends = [], []
    for direction in range(len(layer.backwards)):
        first, second = layer.biases(direction)
        kind = next((kind for kind in ("tanh", "relu") if layer.is_plain((kind,), direction)), None)
        if kind is not None:
            start = (layer.state(5, direction),)
            states, last = layer.run(direction, steps.plain(kind), (0,), (first + second, None), start, ())
            sequences.append(states)
            ends.append(last[0])
            continue
        (f,) = _activations(node, ("Tanh",), direction)
        inputs = layer.projected(direction, first + second)
        weight = layer.weights(2, direction)
        assert weight is not None
        recurrent = constant(np.ascontiguousarray(weight.T))
        hidden = layer.state(5, direction)
        made: dict[int, relax.Expr] = {}
        for step in layer.order(direction):
            total = op.add(bind(op.matmul(hidden, recurrent)), inputs[step])
            hidden = made[step] = bind(f(layer.clipped(total)))
        sequences.append([made[step] for step in range(layer.steps)])
        ends.append(hidden)
    return layer.outputs(sequences, [ends])
