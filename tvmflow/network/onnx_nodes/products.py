"""Matrix products."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import (
    Node,
    constant,
    convert,
    is_constant,
    permute,
    reshape,
    shape_of,
    wide_sums,
)


def product(node: Node, first: relax.Expr, second: relax.Expr) -> relax.Expr:
    sums = wide_sums(node.dtype())
    made = op.matmul(first, second, out_dtype=sums)
    return made if sums is None else convert(node.bind(made), node.dtype())


def matmul(node: Node) -> relax.Expr:
    return product(node, node.inputs[0], node.inputs[1])


def swapped(value: relax.Expr) -> relax.Expr:
    axes = list(range(len(shape_of(value))))
    return permute(value, [*axes[:-2], axes[-1], axes[-2]])


def scaled(node: Node, value: relax.Expr, factor: float) -> relax.Expr:
    if factor == 1:
        return value
    if is_constant(value):
        array = value.value.numpy()
        return constant((array * factor).astype(array.dtype))
    return op.multiply(value, node.like(factor))


def gemm(node: Node) -> relax.Expr:
    """`alpha · A · B + beta · C`; the factors go into weights where these are constant."""
    first, second = node.inputs[0], node.inputs[1]
    first = node.bind(swapped(first)) if node.get("transA", 0) else first
    second = swapped(second) if node.get("transB", 0) else second
    made = product(node, first, scaled(node, second, node.get("alpha", 1.0)))
    if not node.given(2) or node.get("beta", 1.0) == 0:
        return made
    return op.add(made, scaled(node, node.inputs[2], node.get("beta", 1.0)))


def fused_matmul(node: Node) -> relax.Expr:
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        raise node.refusal("it transposes batches")
    first, second = node.inputs[0], node.inputs[1]
    first = node.bind(swapped(first)) if node.get("transA", 0) else first
    second = swapped(second) if node.get("transB", 0) else second
    return scaled(node, product(node, first, second), node.get("alpha", 1.0))


def einsum(node: Node) -> relax.Expr:
    equation = node.get("equation").replace(" ", "")
    if "..." in equation:
        equation = _without_ellipsis(equation, [len(node.shape(index)) for index in range(len(node.inputs))])
    if "->" not in equation:
        letters = sorted({letter for letter in equation if letter.isalpha() and equation.count(letter) == 1})
        equation = f"{equation}->{''.join(letters)}"
    return op.einsum(tuple(node.inputs), equation)


def _without_ellipsis(equation: str, ranks: list[int]) -> str:
    """Letters that are free in place of the dots, the same ones for the last dimensions."""
    left, arrow, right = equation.partition("->")
    free = [letter for letter in "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA" if letter not in equation]
    terms = left.split(",")
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = "".join(free[: max(count for count, term in zip(counts, terms, strict=True) if "..." in term)])
    spelled = [term.replace("...", most[len(most) - count :]) for term, count in zip(terms, counts, strict=True)]
    if not arrow:
        letters = sorted({x for x in left if x.isalpha() and left.count(x) == 1})
        right = "..." + "".join(letters)
    return ",".join(spelled) + "->" + right.replace("...", most)


def matmul_integer(node: Node) -> relax.Expr:
    """`(A − zero points) · (B − zero points)` in int32; A's are one or one for each row, B's one for each column."""
    sides = []
    for index in (0, 1):
        wide = op.astype(node.inputs[index], "int32")
        if node.given(index + 2):
            zero = op.astype(node.inputs[index + 2], "int32")
            if index == 0 and len(node.shape(2)) == 1 and node.shape(2) != (1,):
                zero = reshape(node.bind(zero), (-1, 1))
            wide = op.subtract(wide, zero)
        sides.append(node.bind(wide))
    return op.matmul(*sides, out_dtype="int32")


def is_zero(value: relax.Expr | None) -> bool:
    return value is None or (is_constant(value) and not np.any(value.value.numpy()))
