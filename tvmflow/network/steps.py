"""What a step of a recurrent layer does behind the products: kernels that the readers of PyTorch and of ONNX share.

Each gets the inputs' shares of the gates in all steps (steps × batch × gates·units, biases of the inputs in them), the
number of the step as a tensor, so that all steps have one kernel and not one each, the state's share (batch ×
gates·units), and what it needs of the state (batch × units). It gives the next state, the hidden one first. Gates lie
in PyTorch's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvmflow.network.libm import libm_of

FACTS = {"tvmflow.step": True}
"""Marks these kernels for `roll_steps`, which makes one of all steps of a layer."""


def number(at: int) -> Any:
    """The number of a step as a tensor."""
    from tvm import relax

    return relax.const(at, "int64")


def lstm(shares: Any, number: Any, recurred: Any, cell: Any) -> list[Any]:
    """Gates i, f, g, o: c′ = σ(f) · c + σ(i) · tanh(g), h′ = σ(o) · tanh(c′)."""
    from tvm import te, tirx

    width = int(cell.shape[1])

    def gate(place: int, row: Any, unit: Any) -> Any:
        return shares[number(), row, place * width + unit] + recurred[row, place * width + unit]

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


def gru(shares: Any, number: Any, recurred: Any, hidden: Any) -> Any:
    """Gates r, z, n: h′ = (1 − z) · tanh(x_n + r · h_n) + z · h, as PyTorch adds it: n + z · (h − n)."""
    from tvm import te, tirx

    width = int(hidden.shape[1])

    def value(row: Any, unit: Any) -> Any:
        def share(gate: int) -> Any:
            return shares[number(), row, gate * width + unit]

        reset, update = (tirx.sigmoid(share(gate) + recurred[row, gate * width + unit]) for gate in range(2))
        new = libm_of("tanh", share(2) + reset * recurred[row, 2 * width + unit])
        return new + update * (hidden[row, unit] - new)

    return te.compute(hidden.shape, value, name="hidden")


def plain(activation: str) -> Callable[[Any, Any, Any], Any]:
    """h′ = activation(x + h), with tanh or relu."""
    from tvm import te, tirx

    made: dict[str, Callable[[Any], Any]] = {
        "tanh": lambda x: libm_of("tanh", x),
        "relu": lambda x: tirx.max(x, tirx.const(0, x.ty.dtype)),
    }

    def step(shares: Any, number: Any, recurred: Any) -> Any:
        total = te.compute(
            recurred.shape, lambda row, unit: shares[number(), row, unit] + recurred[row, unit], name="total"
        )
        return te.compute(recurred.shape, lambda *place: made[activation](total(*place)), name="hidden")

    return step
