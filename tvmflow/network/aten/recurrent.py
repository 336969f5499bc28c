"""LSTM, GRU and plain recurrent layers, unrolled over time.

For all steps at once the inputs are multiplied by their weights, in one matrix product. A step is then one more
product, of the state with all gates' weights, and one kernel of all that comes after it (`tvmflow.network.steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvmflow.network import steps
from tvmflow.network.aten.call import Call, Converter, shape_of
from tvmflow.network.aten.indexing import strided

State = tuple[Any, ...]
Step = Callable[[Call, Any, int, Any, State], State]
"""From the inputs' shares of the gates in all steps, the number of this one, the state's share of them, and the state:
the next state, hidden one first."""


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
                made, last = _run(call, step, x, start, own, biases, projected, backwards=direction == 1)
                outputs.append(made)
                for kind, state in enumerate(last):
                    finals[kind].append(state)
            stacked = [_stacked(call, rows) for rows in outputs]
            x = call.emit(relax.op.concat(stacked, 2)) if directions > 1 else stacked[0]
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


def _row(call: Call, x: Any, index: int) -> Any:
    from tvm import relax

    return call.emit(relax.op.squeeze(strided(call, x, 0, index, index + 1), [0]))


def _stacked(call: Call, rows: Sequence[Any]) -> Any:
    from tvm import relax

    grown = [call.emit(relax.op.expand_dims(row, 0)) for row in rows]
    return call.emit(relax.op.concat(grown, 0)) if len(grown) > 1 else grown[0]


def _lstm(call: Call, shares: Any, at: int, recurred: Any, state: State) -> State:
    from tvm import relax

    both = call.compute("lstm_step", steps.lstm, shares, steps.number(at), recurred, state[1], facts=steps.FACTS)
    return tuple(call.emit(relax.TupleGetItem(both, place)) for place in range(2))


def _gru(call: Call, shares: Any, at: int, recurred: Any, state: State) -> State:
    return (call.compute("gru_step", steps.gru, shares, steps.number(at), recurred, state[0], facts=steps.FACTS),)


def _plain(activation: str) -> Step:
    def step(call: Call, shares: Any, at: int, recurred: Any, state: State) -> State:
        make = steps.plain(activation)
        return (call.compute("rnn_step", make, shares, steps.number(at), recurred, facts=steps.FACTS),)

    return step


OPERATORS: dict[str, Converter] = {
    "lstm.input": recurrent(_lstm, 2),
    "gru.input": recurrent(_gru, 1),
    "rnn_tanh.input": recurrent(_plain("tanh"), 1),
    "rnn_relu.input": recurrent(_plain("relu"), 1),
}
