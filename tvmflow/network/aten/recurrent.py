"""LSTM, GRU and plain recurrent layers, unrolled over time.

For all steps at once the inputs are multiplied by their weights, in one matrix product. A step is then one more
product, of the state with all gates' weights, and one kernel of all that comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvmflow.network.aten.arithmetic import libm_of
from tvmflow.network.aten.call import Call, Converter, shape_of
from tvmflow.network.aten.indexing import strided

State = tuple[Any, ...]
Step = Callable[[Call, Any, int, Any, State], State]
"""From the inputs' shares of the gates in all steps, the number of this one, the state's share of them, and the state:
the next state, hidden one first."""

STEP = {"tvmflow.step": True}
"""Marks the kernels of steps for `roll_steps`, which makes one of all steps of a layer."""


def recurrent(step: Step, states: int) -> Converter:
    """Layers, each in one or two directions; the result is what the last one gives and the states at the end."""

    def convert(call: Call) -> list[Any]:
        from tvm import relax

        x, initial, weights, biases, layers, _, _, both, batch_first = call.arguments
        given = tuple(initial) if states > 1 else (initial,)
        single = len(shape_of(x)) == 2
        if single:
            x = call.emit(relax.op.expand_dims(x, 1))
            given = tuple(call.emit(relax.op.expand_dims(state, 1)) for state in given)
        elif batch_first:
            x = call.emit(relax.op.permute_dims(x, [1, 0, 2]))
        directions, per = 2 if both else 1, 4 if biases else 2
        cells = len(given)
        projected = len(weights) > layers * directions * per
        if projected:
            per += 1
        finals: list[list[Any]] = [[] for _ in range(cells)]
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                number = layer * directions + direction
                own = weights[number * per : (number + 1) * per]
                start = tuple(_row(call, state, number) for state in given)
                steps, last = _run(call, step, x, start, own, biases, projected, backwards=direction == 1)
                outputs.append(steps)
                for kind, state in enumerate(last):
                    finals[kind].append(state)
            made = [_stacked(call, steps) for steps in outputs]
            x = call.emit(relax.op.concat(made, 2)) if directions > 1 else made[0]
        last_states = [_stacked(call, kind) for kind in finals]
        if single:
            x = call.emit(relax.op.squeeze(x, [1]))
            last_states = [call.emit(relax.op.squeeze(state, [1])) for state in last_states]
        elif batch_first:
            x = call.emit(relax.op.permute_dims(x, [1, 0, 2]))
        return [x, *last_states]

    return convert


def _run(
    call: Call,
    step: Step,
    x: Any,
    state: State,
    weights: Sequence[Any],
    biases: bool,
    projected: bool,
    *,
    backwards: bool,
) -> tuple[list[Any], State]:
    """One direction of one layer. Gives the hidden state of each step, in the order of the input, and the last one."""
    from tvm import relax

    length, batch, features = shape_of(x)
    of_input, of_state = weights[:2]
    flat = call.emit(relax.op.reshape(x, (length * batch, features)))
    shares = _product(call, flat, of_input, weights[2] if biases else None)
    shares = call.emit(relax.op.reshape(shares, (length, batch, shape_of(of_input)[0])))
    transposed = call.emit(relax.op.permute_dims(of_state))
    results: list[Any] = [None] * length
    for at in reversed(range(length)) if backwards else range(length):
        recurred = call.emit(relax.op.matmul(state[0], transposed))
        if biases:
            recurred = call.emit(relax.op.add(recurred, weights[3]))
        state = step(call, shares, at, recurred, state)
        if projected:
            state = (call.emit(relax.op.matmul(state[0], call.emit(relax.op.permute_dims(weights[-1])))), *state[1:])
        results[at] = state[0]
    return results, state


def _product(call: Call, x: Any, weight: Any, bias: Any) -> Any:
    from tvm import relax

    result = call.emit(relax.op.matmul(x, call.emit(relax.op.permute_dims(weight))))
    return result if bias is None else call.emit(relax.op.add(result, bias))


def _number(at: int) -> Any:
    from tvm import relax

    return relax.const(at, "int64")


def _row(call: Call, x: Any, index: int) -> Any:
    from tvm import relax

    return call.emit(relax.op.squeeze(strided(call, x, 0, index, index + 1), [0]))


def _stacked(call: Call, rows: Sequence[Any]) -> Any:
    from tvm import relax

    grown = [call.emit(relax.op.expand_dims(row, 0)) for row in rows]
    return call.emit(relax.op.concat(grown, 0)) if len(grown) > 1 else grown[0]


def _at(shares: Any, number: Any) -> Callable[[Any, Any], Any]:
    """A step's share of the gates. Its number is a tensor, so that all steps have one kernel and not one each."""
    return lambda row, column: shares[number(), row, column]


def lstm_step(call: Call, shares: Any, at: int, recurred: Any, state: State) -> State:
    """Gates i, f, g, o: c′ = σ(f) · c + σ(i) · tanh(g), h′ = σ(o) · tanh(c′)."""
    from tvm import relax, te, tirx

    def make(shares: Any, number: Any, recurred: Any, cell: Any) -> Any:
        width, share = int(cell.shape[1]), _at(shares, number)

        def gate(place: int, row: Any, unit: Any) -> Any:
            return share(row, place * width + unit) + recurred[row, place * width + unit]

        def after(row: Any, unit: Any) -> Any:
            forget = tirx.sigmoid(gate(1, row, unit)) * cell[row, unit]
            return forget + tirx.sigmoid(gate(0, row, unit)) * libm_of("tanh", gate(2, row, unit))

        cells = te.compute(cell.shape, after, name="cell")
        hidden = te.compute(
            cell.shape,
            lambda row, unit: tirx.sigmoid(gate(3, row, unit)) * libm_of("tanh", cells(row, unit)),
            name="hidden",
        )
        return [hidden, cells]

    both = call.compute("lstm_step", make, shares, _number(at), recurred, state[1], facts=STEP)
    return tuple(call.emit(relax.TupleGetItem(both, number)) for number in range(2))


def gru_step(call: Call, shares: Any, at: int, recurred: Any, state: State) -> State:
    """Gates r, z, n: h′ = (1 − z) · tanh(x_n + r · h_n) + z · h, as PyTorch adds it: n + z · (h − n)."""
    from tvm import te, tirx

    def make(shares: Any, number: Any, recurred: Any, hidden: Any) -> Any:
        width, share = int(hidden.shape[1]), _at(shares, number)

        def value(row: Any, unit: Any) -> Any:
            reset, update = (
                tirx.sigmoid(share(row, gate * width + unit) + recurred[row, gate * width + unit]) for gate in range(2)
            )
            new = libm_of("tanh", share(row, 2 * width + unit) + reset * recurred[row, 2 * width + unit])
            return new + update * (hidden[row, unit] - new)

        return te.compute(hidden.shape, value, name="hidden")

    return (call.compute("gru_step", make, shares, _number(at), recurred, state[0], facts=STEP),)


def plain_step(activation: str) -> Step:
    """h′ = activation(x + h)."""

    def step(call: Call, shares: Any, at: int, recurred: Any, state: State) -> State:
        from tvm import te, tirx

        def make(shares: Any, number: Any, recurred: Any) -> Any:
            share = _at(shares, number)
            total = te.compute(recurred.shape, lambda row, unit: share(row, unit) + recurred[row, unit], name="total")
            made = {"tanh": lambda x: libm_of("tanh", x), "relu": lambda x: tirx.max(x, tirx.const(0, x.ty.dtype))}
            return te.compute(recurred.shape, lambda *place: made[activation](total(*place)), name="hidden")

        return (call.compute("rnn_step", make, shares, _number(at), recurred, facts=STEP),)

    return step


OPERATORS: dict[str, Converter] = {
    "lstm.input": recurrent(lstm_step, 2),
    "gru.input": recurrent(gru_step, 1),
    "rnn_tanh.input": recurrent(plain_step("tanh"), 1),
    "rnn_relu.input": recurrent(plain_step("relu"), 1),
}
