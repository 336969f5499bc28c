"""Arithmetic element by element, in the dtype that PyTorch promotes to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from tvmflow.network.aten.call import Call, Converter, dtype_name, dtype_of, is_floating, is_tensor
from tvmflow.network.libm import libm_of


def operands(call: Call, dtype: str | None = None, count: int = 2) -> list[Any]:
    """The first `count` arguments as tensors of one dtype: that of the result, unless another is given."""
    return [call.tensor(value, dtype or call.dtype) for value in call.arguments[:count]]


def promoted(call: Call) -> str:
    """The dtype that the operands of a comparison are compared in."""
    import torch

    def original(value: Any) -> Any:
        return value.meta["val"] if isinstance(value, torch.fx.Node) else value

    first, second = (original(value) for value in call.node.args[:2])
    return dtype_name(torch.result_type(first, second))


def binary(operator: str) -> Converter:
    """A Relax operator of two operands, which have the result's dtype first."""

    def convert(call: Call) -> Any:
        from tvm import relax

        return call.emit(getattr(relax.op, operator)(*operands(call)))

    return convert


def compared(operator: str) -> Converter:
    """A comparison, or another operator whose result isn't of its operands' dtype."""

    def convert(call: Call) -> Any:
        from tvm import relax

        return call.emit(getattr(relax.op, operator)(*operands(call, promoted(call))))

    return convert


def unary(operator: str) -> Converter:
    """A Relax operator of one operand: integers become floats first where the result is one."""

    def convert(call: Call) -> Any:
        from tvm import relax

        return call.emit(getattr(relax.op, operator)(*operands(call, count=1)))

    return convert


def asked(operator: str) -> Converter:
    """isnan, isinf, isfinite: of integers, none is either."""

    def convert(call: Call) -> Any:
        from tvm import relax

        x = call.arguments[0]
        return call.emit(getattr(relax.op, operator)(x if is_floating(dtype_of(x)) else call.tensor(x, "float32")))

    return convert


def elementwise(name: str, function: Callable[..., Any], count: int = 1) -> Converter:
    """A kernel of `function`, which gets TIR values of the result's dtype."""

    def convert(call: Call) -> Any:
        return pointwise(call, name, function, *operands(call, count=count))

    return convert


def pointwise(call: Call, name: str, function: Callable[..., Any], *tensors: Any) -> Any:
    """A kernel of `function` of broadcast tensors, in the result's shape."""
    from tvm import te

    shape = call.shape

    def make(*given: Any) -> Any:
        def value(*index: Any) -> Any:
            return function(*(each(*broadcast_index(each.shape, index)) for each in given))

        return te.compute(shape, value, name=name)

    return call.compute(name, make, *tensors)


def broadcast_index(shape: Any, index: Any) -> tuple[Any, ...]:
    """Where an element of the result is in a tensor that is broadcast to it."""
    last = index[len(index) - len(shape) :]
    return tuple(0 if int(size) == 1 else at for size, at in zip(shape, last, strict=True))


def scaled_sum(sign: int, *, reverse: bool = False) -> Converter:
    """add, sub and rsub: x ± alpha · y, or y − alpha · x."""

    def convert(call: Call) -> Any:
        from tvm import relax

        x, y = operands(call)
        if reverse:
            x, y = y, x
        if call.dtype == "bool":
            return call.emit((relax.op.logical_or if sign > 0 else relax.op.logical_xor)(x, y))
        if (alpha := call.named["alpha"]) != 1:
            y = call.emit(relax.op.multiply(y, relax.const(alpha, call.dtype)))
        return call.emit((relax.op.add if sign > 0 else relax.op.subtract)(x, y))

    return convert


def multiply(call: Call) -> Any:
    """x · 0, which TVM takes for 0, is NaN where x isn't finite."""
    from tvm import relax, tirx

    factor = call.arguments[1]
    if isinstance(factor, int | float) and factor == 0 and is_floating(call.dtype):
        zero, infinity, nan = (tirx.const(value, call.dtype) for value in (0, math.inf, math.nan))

        def vanish(x: Any) -> Any:
            return tirx.Select(tirx.abs(x) < infinity, libm_of("copysign", zero, x), nan)

        return pointwise(call, "times_0", vanish, *operands(call, count=1))
    return call.emit((relax.op.logical_and if call.dtype == "bool" else relax.op.multiply)(*operands(call)))


def divide(call: Call) -> Any:
    """True division, or rounded down or towards 0; of integers without a detour by floats."""
    from tvm import relax

    rounding = call.named.get("rounding_mode", "floor" if "floor" in call.overload._schema.name else None)
    x, y = operands(call)
    if rounding is None:
        return call.emit(relax.op.divide(x, y))
    if rounding == "floor":
        return _rounded_down(call, x, y)
    if is_floating(call.dtype):
        return call.emit(relax.op.trunc(call.emit(relax.op.divide(x, y))))
    return pointwise(call, "truncated_division", _truncated, x, y)


def _truncated(x: Any, y: Any) -> Any:
    """C's division of integers; by 0 it would end the process, and PyTorch raises."""
    from tvm import tirx

    return tirx.truncdiv(x, _not_zero(y))


def _not_zero(y: Any) -> Any:
    from tvm import tirx

    return tirx.Select(y == 0, tirx.const(1, y.ty.dtype), y)


def _rounded_down(call: Call, x: Any, y: Any) -> Any:
    """c10's div_floor: the exact quotient is ⌊x ÷ y⌋ of the remainder-free part, so 1 // 0.1 is 9 as in Python."""
    from tvm import tirx

    if not is_floating(call.dtype):
        return pointwise(call, "floored_division", lambda x, y: tirx.floordiv(x, _not_zero(y)), x, y)

    def quotient(x: Any, y: Any) -> Any:
        zero, one, half = (tirx.const(value, call.dtype) for value in (0, 1, 0.5))
        rest = fmod_of(x, y)
        exact = (x - rest) / y
        exact = tirx.Select(_other_sign(rest, y), exact - one, exact)
        floor = tirx.floor(exact)
        floor = tirx.Select(exact - floor > half, floor + one, floor)
        signed = tirx.Select(exact == zero, libm_of("copysign", zero, x / y), floor)
        return tirx.Select(y == zero, x / y, signed)

    return pointwise(call, "floored_division", quotient, x, y)


def _other_sign(rest: Any, divisor: Any) -> Any:
    """Whether a remainder that isn't 0 has another sign than the divisor."""
    from tvm import tirx

    zero = tirx.const(0, rest.ty.dtype)
    return tirx.Or(tirx.And(rest < zero, divisor > zero), tirx.And(rest > zero, divisor < zero))


def remainder(call: Call) -> Any:
    """Python's %: with the sign of the divisor. Of floats by fmod, which is exact where x − ⌊x ÷ y⌋ · y isn't."""
    from tvm import tirx

    def rest(x: Any, y: Any) -> Any:
        if not is_floating(call.dtype):
            return tirx.floormod(x, _not_zero(y))
        left = fmod_of(x, y)
        return tirx.Select(_other_sign(left, y), left + y, left)

    return pointwise(call, "remainder", rest, *operands(call))


def fmod_of(x: Any, y: Any) -> Any:
    return libm_of("fmod", x, y)


def fmod(call: Call) -> Any:
    """C's %: with the sign of the dividend."""
    from tvm import tirx

    def rest(x: Any, y: Any) -> Any:
        return fmod_of(x, y) if is_floating(call.dtype) else tirx.truncmod(x, _not_zero(y))

    return pointwise(call, "fmod", rest, *operands(call))


def power(call: Call) -> Any:
    """By multiplications and roots for small exponents, which are exact and cheap; else by TVM's operator."""
    from tvm import relax

    x, y = operands(call)
    exponent = call.arguments[1]
    if not isinstance(exponent, int | float) or isinstance(exponent, bool):
        if is_floating(call.dtype):
            return call.emit(relax.op.power(x, y))
        return pointwise(call, "power", _integer_power, x, y)
    floating = is_floating(call.dtype)
    if (exponent == int(exponent) and 1 <= abs(exponent) <= 4) or (not floating and exponent >= 1):
        result = _multiplied(call, x, abs(int(exponent)))
        return result if exponent > 0 else call.emit(relax.op.divide(relax.const(1, call.dtype), result))
    if exponent == 0:
        return call.emit(relax.op.ones_like(x))
    if floating and exponent in (0.5, -0.5):
        return call.emit((relax.op.sqrt if exponent > 0 else relax.op.rsqrt)(x))
    return call.emit(relax.op.power(x, y))


def _multiplied(call: Call, x: Any, exponent: int) -> Any:
    """x to a whole power by squaring."""
    from tvm import relax

    result = None
    while exponent:
        if exponent % 2:
            result = x if result is None else call.emit(relax.op.multiply(result, x))
        exponent //= 2
        if exponent:
            x = call.emit(relax.op.multiply(x, x))
    return result


def _integer_power(x: Any, y: Any) -> Any:
    """By way of float64, which holds every product that an int32 can be; larger ones wrap in PyTorch and not here."""
    from tvm import tirx

    return tirx.pow(x.astype("float64"), y.astype("float64")).astype(x.ty.dtype)


def clamp(call: Call) -> Any:
    """min(max(x, low), high), where bounds are numbers, tensors or missing; NaN stays, and a bound of NaN gives NaN."""
    from tvm import relax

    x = call.tensor(call.arguments[0], call.dtype)
    low, high = call.named.get("min"), call.named.get("max")
    for bound, operator in ((low, relax.op.maximum), (high, relax.op.minimum)):
        if bound is not None:
            x = call.emit(operator(x, call.tensor(bound, call.dtype)))
    return x


def clip(call: Call) -> Any:
    """Bounds that are both numbers, which is TVM's operator; with 0 below alone it is ReLU."""
    from tvm import relax

    x, low, high = call.arguments[0], call.named.get("min", None), call.named.get("max", None)
    if "hardtanh" in call.overload._schema.name:
        low, high = call.named["min_val"], call.named["max_val"]
    if any(is_tensor(bound) or (bound is not None and math.isnan(bound)) for bound in (low, high)):
        return clamp(call)
    x = call.tensor(x, call.dtype)
    if not is_floating(call.dtype):
        return clamp(call)
    if low == 0 and (high is None or high == math.inf):
        return call.emit(relax.op.nn.relu(x))
    return call.emit(relax.op.clip(x, -math.inf if low is None else low, math.inf if high is None else high))


def where(call: Call) -> Any:
    from tvm import relax

    condition, x, y = call.arguments
    condition = call.tensor(condition, "bool")
    return call.emit(relax.op.where(condition, call.tensor(x, call.dtype), call.tensor(y, call.dtype)))


def logical(operator: str) -> Converter:
    """Of any dtype: what isn't 0 is true."""

    def convert(call: Call) -> Any:
        from tvm import relax

        count = 1 if operator == "logical_not" else 2
        return call.emit(getattr(relax.op, operator)(*(truth(call, value) for value in call.arguments[:count])))

    return convert


def truth(call: Call, value: Any) -> Any:
    """Whether elements aren't 0, as NaN isn't. A cast to bool would cut the fraction off first."""
    from tvm import te, tirx

    if dtype_of(value) == "bool":
        return value
    zero = tirx.const(0, dtype_of(value))

    def make(x: Any) -> Any:
        return te.compute(x.shape, lambda *index: differ(x(*index), zero), name="truth")

    return call.compute("truth", make, value)


def differ(x: Any, y: Any) -> Any:
    """x ≠ y, also where one is NaN, of which TVM's comparison says that it isn't unequal."""
    from tvm import tirx

    if str(x.ty.dtype) == "bool":
        return tirx.Or(tirx.And(x, tirx.Not(y)), tirx.And(tirx.Not(x), y))
    odd = [tirx.isnan(value) for value in (x, y) if is_floating(str(value.ty.dtype)) and not _is_number(value)]
    return functools.reduce(tirx.Or, odd, tirx.NE(x, y))


def _is_number(value: Any) -> bool:
    from tvm import tirx

    return isinstance(value, tirx.FloatImm)


def equal(call: Call) -> Any:
    """Also of a tensor with itself, which TVM takes for true where it is NaN."""
    from tvm import tirx

    return pointwise(call, "equal", lambda x, y: tirx.Not(differ(x, y)), *operands(call, promoted(call)))


def not_equal(call: Call) -> Any:
    return pointwise(call, "not_equal", differ, *operands(call, promoted(call)))


def bitwise(operator: str) -> Converter:
    """&, | and ^ of integers or bools."""

    def convert(call: Call) -> Any:
        from tvm import relax

        prefix = "logical" if call.dtype == "bool" else "bitwise"
        return call.emit(getattr(relax.op, f"{prefix}_{operator}")(*operands(call)))

    return convert


def cast(call: Call) -> Any:
    """_to_copy: to bool by comparison with 0, else as C does it."""
    x = call.arguments[0]
    return truth(call, x) if call.dtype == "bool" else call.tensor(x, call.dtype)


def _sign(x: Any) -> Any:
    """(0 < x) − (x < 0), which is 0 for NaN."""
    from tvm import tirx

    dtype = x.ty.dtype
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
    return tirx.Select(x > zero, one, tirx.Select(x < zero, -one, zero))


def exp_minus_1(x: Any) -> Any:
    return libm_of("expm1", x)


def libm(name: str, count: int = 1) -> Converter:
    return elementwise(name, lambda *values: libm_of(name, *values), count)


def signbit(call: Call) -> Any:
    """Whether the sign is −, of 0 and NaN too."""
    from tvm import tirx

    x = call.arguments[0]
    if not is_floating(dtype_of(x)):
        return pointwise(call, "signbit", lambda x: x < tirx.const(0, x.ty.dtype), x)
    return pointwise(call, "signbit", lambda x: libm_of("copysign", tirx.const(1, x.ty.dtype), x) < 0, x)


def round_decimals(call: Call) -> Any:
    """Rounded to so many decimals, halves to even; negative ones are of whole digits."""
    from tvm import relax

    x, decimals = call.arguments[0], call.named.get("decimals", 0)
    x = call.tensor(x, call.dtype)
    if not is_floating(call.dtype):
        return x
    if decimals == 0:
        return call.emit(relax.op.round(x))
    scale = relax.const(10.0 ** abs(decimals), call.dtype)
    there, back = (relax.op.multiply, relax.op.divide)[:: 1 if decimals > 0 else -1]
    return call.emit(back(call.emit(relax.op.round(call.emit(there(x, scale)))), scale))


def _shifted(left: bool) -> Converter:
    def convert(call: Call) -> Any:
        from tvm import relax

        return call.emit((relax.op.left_shift if left else relax.op.right_shift)(*operands(call)))

    return convert


def _scalar_or_tensor(name: str, converter: Converter) -> dict[str, Converter]:
    return {f"{name}.Tensor": converter, f"{name}.Scalar": converter}


OPERATORS: dict[str, Converter] = {
    **_scalar_or_tensor("add", scaled_sum(1)),
    **_scalar_or_tensor("sub", scaled_sum(-1)),
    **_scalar_or_tensor("rsub", scaled_sum(-1, reverse=True)),
    **_scalar_or_tensor("mul", multiply),
    **_scalar_or_tensor("div", divide),
    "div.Tensor_mode": divide,
    "div.Scalar_mode": divide,
    "floor_divide.default": divide,
    **_scalar_or_tensor("remainder", remainder),
    **_scalar_or_tensor("fmod", fmod),
    "pow.Tensor_Scalar": power,
    "pow.Tensor_Tensor": power,
    "pow.Scalar": power,
    "maximum.default": binary("maximum"),
    "minimum.default": binary("minimum"),
    **{
        key: compared(operator)
        for short, operator in {
            "lt": "less",
            "le": "less_equal",
            "gt": "greater",
            "ge": "greater_equal",
        }.items()
        for key in (f"{short}.Tensor", f"{short}.Scalar")
    },
    **_scalar_or_tensor("eq", equal),
    **_scalar_or_tensor("ne", not_equal),
    **{f"logical_{name}.default": logical(f"logical_{name}") for name in ("and", "or", "xor", "not")},
    **{
        key: bitwise(name)
        for name in ("and", "or", "xor")
        for key in (f"bitwise_{name}.Tensor", f"bitwise_{name}.Scalar", f"__{name}__.Tensor", f"__{name}__.Scalar")
    },
    **{
        f"{name}.{kind}": _shifted(left)
        for left, names in (
            (True, ("bitwise_left_shift", "__lshift__")),
            (False, ("bitwise_right_shift", "__rshift__")),
        )
        for name in names
        for kind in ("Tensor", "Scalar", "Tensor_Scalar")
    },
    "clamp.default": clip,
    "clamp_min.default": clip,
    "clamp_max.default": clip,
    "clamp.Tensor": clamp,
    "hardtanh.default": clip,
    "where.self": where,
    "_to_copy.default": cast,
    "isnan.default": asked("isnan"),
    "isinf.default": asked("isinf"),
    "signbit.default": signbit,
    "sign.default": elementwise("sign", _sign),
    "round.default": round_decimals,
    "round.decimals": round_decimals,
    "neg.default": unary("negative"),
    **{
        f"{name}.default": unary(name)
        for name in ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tan", "sinh", "cosh", "sigmoid", "erf")
    },
    **{
        f"{name}.default": libm(name)
        for name in ("log1p", "expm1", "log2", "log10", "asin", "acos", "atan", "asinh", "acosh", "atanh", "tanh")
    },
    "exp2.default": libm("exp2"),
    "erfc.default": libm("erfc"),
    "lgamma.default": libm("lgamma"),
    "atan2.default": libm("atan2", 2),
    "hypot.default": libm("hypot", 2),
    "copysign.Tensor": libm("copysign", 2),
}
