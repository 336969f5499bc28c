"""Expressions inside a `.pt2` file: PyTorch evaluates both kinds as Python, so what is no arithmetic is refused before.

Dimensions that were left open are written as SymPy writes them, `Mul(Integer(2), Symbol('s77', integer=True))`, or as
`2*s77`; guards are comparisons of the inputs' sizes, `L['x'].size()[0] > 4`. Python's parser builds a tree of either,
which may hold what is named here and nothing else, and PyTorch is given that tree's text.
"""

from __future__ import annotations

import ast
import re

from tvmflow.system import limits

SYMBOL = re.compile(r"[a-z]{1,6}\d{1,6}")
"""What PyTorch calls an open dimension: `s77`, `u0`, `zuf3`."""
FUNCTIONS = {
    *("Add", "Mul", "Pow", "Integer", "Rational", "Float", "Max", "Min", "And", "Or", "Not", "Eq", "Ne", "Lt", "Le"),
    *("Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
    *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"),
    *("IntTrueDiv", "FloatTrueDiv", "TruncToInt", "TruncToFloat", "RoundToInt", "ToFloat", "Identity"),
    *("IsNonOverlappingAndDenseIndicator", "PowByNatural"),
}
POWERS = {"Pow", "PowByNatural"}
LARGEST_EXPONENT = 8
LARGEST = 1 << 63
DEEPEST = 30
SIZES = {"size", "stride", "storage_offset"}
"""Methods of tensors in guards, called without arguments."""
OPERATIONS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.Not, ast.And, ast.Or),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
QUOTING = re.compile(r"['\"\\{}\x00-\x1f\x7f]")
TEXT_IN_QUOTES = re.compile(f"(?!.*{QUOTING.pattern}).*", re.DOTALL)
"""Texts go into Python code that PyTorch's tracer generates, some of them between quotes that it doesn't escape."""


def dimension(text: object) -> str:
    """The text of an expression of integers and symbols. Raises ValueError."""
    return ast.unparse(_dimension(_parsed(text), DEEPEST, within_power=False))


def guard(text: object) -> str:
    """The text of a condition of the inputs' sizes. Raises ValueError."""
    return ast.unparse(_guard(_parsed(text), DEEPEST))


def _parsed(text: object) -> ast.expr:
    if not isinstance(text, str) or len(text) > limits.EXPRESSION_CHARACTERS:
        raise ValueError(f"an expression of more than {limits.EXPRESSION_CHARACTERS} characters, or none")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text) from error


def _refused(what: object) -> ValueError:
    shown = ast.unparse(what) if isinstance(what, ast.AST) else str(what)
    return ValueError(f"the expression {shown[:80]!r}, which is no arithmetic of sizes")


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and abs(node.value) <= LARGEST


def _dimension(node: ast.expr, depth: int, *, within_power: bool) -> ast.expr:
    """The same node. Powers of powers could be numbers of any length, so a power holds none, and a small exponent."""
    if depth == 0:
        raise ValueError("an expression that is nested too deeply")

    def inside(part: ast.expr, power: bool = within_power) -> None:
        _dimension(part, depth - 1, within_power=power)

    if _number(node) or (isinstance(node, ast.Name) and (SYMBOL.fullmatch(node.id) or node.id in {"true", "false"})):
        return node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, OPERATIONS):
        inside(node.operand)
        return node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not within_power:
        inside(node.left, True)
        if _exponent(node.right):
            return node
    if isinstance(node, ast.BinOp) and isinstance(node.op, OPERATIONS):
        inside(node.left)
        inside(node.right)
        return node
    if isinstance(node, ast.Compare) and all(isinstance(operation, OPERATIONS) for operation in node.ops):
        for part in (node.left, *node.comparators):
            inside(part)
        return node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Symbol" and _symbol(node):
            return node
        if node.func.id == "Float" and _float(node):
            return node
        if node.func.id in POWERS and not within_power and not node.keywords and len(node.args) == 2:
            inside(node.args[0], True)
            if _exponent(node.args[1]):
                return node
        if node.func.id in FUNCTIONS - POWERS and not node.keywords:
            for part in node.args:
                inside(part)
            return node
    raise _refused(node)


def _exponent(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer":
        return len(node.args) == 1 and not node.keywords and _exponent(node.args[0])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _exponent(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value <= LARGEST_EXPONENT


def _symbol(node: ast.Call) -> bool:
    """`Symbol('s77', positive=True, integer=True)`"""
    return (
        len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and SYMBOL.fullmatch(node.args[0].value) is not None
        and all(
            word.arg is not None and isinstance(word.value, ast.Constant) and isinstance(word.value.value, bool)
            for word in node.keywords
        )
    )


def _float(node: ast.Call) -> bool:
    """`Float('0.5', precision=53)`"""
    return (
        len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and re.fullmatch(r"-?\d{1,20}(\.\d{1,40})?(e[-+]?\d{1,3})?", str(node.args[0].value)) is not None
        and all(
            word.arg == "precision" and isinstance(word.value, ast.Constant) and word.value.value in {24, 53}
            for word in node.keywords
        )
    )


def _guard(node: ast.expr, depth: int) -> ast.expr:
    if depth == 0:
        raise ValueError("an expression that is nested too deeply")
    parts: list[ast.expr] = []
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, OPERATIONS):
        parts = [node.operand]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, OPERATIONS):
        parts = [node.left, node.right]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.Compare) and all(isinstance(operation, OPERATIONS) for operation in node.ops):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in (FUNCTIONS - POWERS) | {"min", "max"}:
            raise _refused(node)
        parts = node.args
    elif not _number(node) and not _size(node):
        raise _refused(node)
    for part in parts:
        _guard(part, depth - 1)
    return node


def _size(node: ast.expr) -> bool:
    """`L['x'].size()[0]`, and `L['n']` for a number among the inputs."""
    if not isinstance(node, ast.Subscript) and not isinstance(node, ast.Call):
        return False
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
        if not isinstance(node.slice, ast.Constant) or type(node.slice.value) is not int:
            return False
        node = node.value
    if isinstance(node, ast.Call):
        if node.args or node.keywords or not isinstance(node.func, ast.Attribute) or node.func.attr not in SIZES:
            return False
        node = node.func.value
    for _ in range(limits.GRAPH.depth):
        if not isinstance(node, ast.Subscript):
            break
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if not (type(key) is int or (isinstance(key, str) and TEXT_IN_QUOTES.fullmatch(key))):
            return False
        node = node.value
    return isinstance(node, ast.Name) and node.id == "L"
