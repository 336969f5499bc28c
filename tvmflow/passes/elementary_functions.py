"""Exponentials and their kin in arithmetic that vectors have, in place of a call of the C library for each number.

LLVM makes a call of every `expf`, also in the middle of a vector; with polynomials in its place, a kernel that ends in
a GELU, a SiLU or a softmax stays one loop of vectors. Each function is right for all numbers: infinities, NaN, which
stays, zeros and what is too small to be normal. None branches.

Errors in units of the last place, of every 101st number that float32 has (the tests take every 4,099th): exp 1.0,
expm1 1.4, sigmoid 2.3, tanh 2.5, erf 5.9, log 0.9, log1p 1.5.
In nanoseconds for a number, of 65,536 on one core, and those of
glibc's: exp 0.6 (4.0), sigmoid 0.8 (6.3), tanh 1.2 (11), erf 0.6 (14), log 0.8 (9.7), expm1 1.1 (21).
Intel Xeon (AVX-512, 2 virtual cores), TVM 0.27.0, 2026-11-30.

exp is 2ᵏ·eʳ, k the nearest whole number of x / ln 2, which is found by adding 1.5·2²³ and is in the last bits of the
sum, and eʳ − 1 − r is r² times a polynomial. 2ᵏ is two factors, each the exponent of a number, so that what is smaller
than any normal number comes out of the last product. erf is x times a quotient of polynomials of x². The coefficients
have the smallest largest relative error, by Lawson's algorithm in float64.

In a kernel a function is an operator of its own, so that TVM makes vectors of it. When LLVM gets the kernel, that
becomes a call of a function in LLVM's language, which comes with the kernel for each width there may be, and is put in
place of the call. As expressions of TensorIR they would be computed as often as they are read, and with names for what
is read twice TVM takes minutes to simplify a Mish.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvmflow.passes.fuse_operators import kernels
from tvmflow.spec import Program, Target

MAGIC, MAGIC_BITS = 12582912.0, 0x4B400000
"""1.5·2²³: added to a number, it leaves the nearest whole one in its last bits."""
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187e-06
"""ln 2 in two parts, the first of so few bits that its product with an exponent is exact."""
SMALLEST, LARGEST = -104.0, 88.8
"""From where on exp is 0, and infinite."""
EXP = (0.49999993447560137, 0.16666520629439124, 0.04166838809270255, 0.008368717090868536, 0.0013814596382312398)
"""(eʳ − 1 − r) / r² for |r| ≤ ½ ln 2."""
ERF_ABOVE = (
    *(1.1283791392977598, 0.19354604507169362, 0.05310187808667917),
    *(0.00388338719118013, 0.0002845670832391489, 1.986777504898457e-06),
)
ERF_BELOW = (
    *(1.0, 0.5048582717758032, 0.11535040865378365),
    *(0.015207336810873062, 0.0011855820402638967, 3.742018652681403e-05),
)
"""erf(x) / x is the quotient of these polynomials of x²; from 4 on erf is 1."""
SQRT_HALF_BITS = 0x3F3504F3
LOG = (
    *(0.3333333170919439, -0.2500082107299819, 0.20001226732453065, -0.16623355889896518),
    *(0.14201760419067452, -0.13160199054494928, 0.12761567856339773, -0.0763444148904189),
)
"""(log(1 + f) − f + f² / 2) / f³ for 1 + f from √½ to √2."""
SIGN_BIT = -(1 << 31)
INFINITY, NAN = float("inf"), float("nan")

NAMES: Mapping[str, str] = {
    **{f"tirx.{name}": name for name in ("exp", "sigmoid", "tanh", "erf", "log", "log1p")},
    **{f"{name}f": name for name in ("exp", "expm1", "tanh", "erf", "log", "log1p")},
}
"""What TVM calls a function, and what the C library does."""
LANES = (*range(1, 17), 24, 32, 48, 64)
"""The widths of vectors in which they can be computed."""


def elementary_functions(program: Program, target: Target) -> Program:
    """In all kernels of `Program.module`, the first of which that has any brings the functions for all.

    LLVM takes a pass through the whole network for each kernel that brings some.
    """
    module = tvm.IRModule(program.module.functions, attrs=program.module.attrs)
    found = {name: _replaced(func) for name, func in kernels(module).items()}
    names = frozenset().union(*(names for _, names in found.values()))
    for name, (func, own) in found.items():
        module[name] = _bringing(func, names) if own else func
        names = names if not own else frozenset()
    return replace(program, module=module)


def with_arithmetic(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The kernel with operators of this module, and with what they are in LLVM's language."""
    return _bringing(*_replaced(func))


def _replaced(func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, frozenset[str]]:
    """The kernel with operators of this module, and which."""
    found: set[str] = set()

    def replaced(call: tvm.ir.Call) -> Any:
        name, arguments = getattr(call.op, "name", ""), list(call.args)
        if name == "tirx.call_pure_extern":
            name, *arguments = (getattr(arguments[0], "value", ""), *arguments[1:])
        if name not in NAMES:
            return call
        dtype = str(call.ty.dtype)
        kind, by, lanes = dtype.partition("x")
        if kind not in ("float32", "float16") or int(lanes or 1) not in LANES:
            return call
        found.add(NAMES[name])
        operator, wide = _operator(NAMES[name]), f"float32{by}{lanes}"
        if kind == "float32":
            return tvm.ir.Call(operator, arguments, ret_ty=dtype)
        return tirx.Cast(dtype, tvm.ir.Call(operator, [tirx.Cast(wide, arguments[0])], ret_ty=wide))

    body = tvm_ffi.structural_map(func.body, [(tvm.ir.Call, replaced), (tirx.Div, _of_limited)], order="post")
    return (func if body.same_as(func.body) else _of_body(func, body)), frozenset(found)


def _of_limited(quotient: tirx.Div) -> Any:
    """A number that is limited to n and divided by n, as in a hard-swish, is multiplied by 1/n.

    That may differ in the last place, and takes a tenth of the time.
    """
    value = quotient.b.value if isinstance(quotient.b, tirx.Broadcast) else quotient.b
    if not isinstance(value, tirx.FloatImm) or "float32" not in str(quotient.ty.dtype):
        return quotient
    if not 1e-30 < abs(value.value) < 1e30:  # its inverse is no normal number
        return quotient
    limits: list[tirx.Min] = []
    tvm_ffi.structural_walk(quotient.a, (tirx.Min, limits.append))
    numbers = [number for limit in limits for number in (limit.a, limit.b)]
    numbers = [number.value if isinstance(number, tirx.Broadcast) else number for number in numbers]
    if not any(isinstance(number, tirx.FloatImm) and number.value == value.value for number in numbers):
        return quotient
    return quotient.a * tirx.const(1 / value.value, str(quotient.b.ty.dtype))


def _bringing(func: tirx.PrimFunc, names: frozenset[str]) -> tirx.PrimFunc:
    if not names:
        return func
    text = tvm.ir.StringImm(_module(names))
    return _of_body(func, tirx.AttrStmt(tirx.const(0), "pragma_import_llvm", text, func.body))


def _of_body(func: tirx.PrimFunc, body: Any) -> tirx.PrimFunc:
    return tirx.PrimFunc(func.params, body, func.ret_type, attrs=func.attrs)


@functools.cache
def _operator(name: str) -> tvm.ir.Op:
    operator = f"tvmflow.{name}"
    PURE = 1  # CallEffectKind of TVM's C++
    for key, value in {"TVectorizable": True, "TCallEffectKind": PURE, "TScriptPrinterName": operator}.items():
        tvm.ir.register_op_attr(operator, key, value)
    tirx.register_intrin_lowering(operator, target="llvm", f=functools.partial(_lowered, name))
    return tvm.ir.Op.get(operator)


def _lowered(name: str, call: tvm.ir.Call) -> Any:
    dtype = str(call.ty.dtype)
    return tirx.call_pure_extern(dtype, _symbol(name, int(dtype.partition("x")[2] or 1)), call.args[0])


def _symbol(name: str, lanes: int) -> str:
    return f"tvmflow.{name}.{lanes}"


@functools.cache
def _module(names: frozenset[str]) -> str:
    """LLVM's text of these functions. As `linkonce_odr`, one that is called nowhere is in no library."""
    declared = [Code(lanes).declaration for lanes in LANES]
    return "\n".join([*declared, *(_function(name, lanes) for name in sorted(names) for lanes in LANES)])


def _function(name: str, lanes: int) -> str:
    code = Code(lanes)
    result = FUNCTIONS[name](code, "%x")
    head = f"define linkonce_odr hidden {code.float} @{_symbol(name, lanes)}({code.float} %x) alwaysinline nounwind"
    return "\n".join([f"{head} {{", *code.lines, f"ret {code.float} {result}", "}"])


class Code:
    """Lines of LLVM's language, of vectors of so many lanes. Values are names and constants, as they stand there."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.float, self.int, self.bool = (self._type(kind) for kind in ("float", "i32", "i1"))
        self.muladd = "llvm.fmuladd.f32" if lanes == 1 else f"llvm.fmuladd.v{lanes}f32"
        self.declaration = f"declare {self.float} @{self.muladd}({', '.join([self.float] * 3)})"
        self.lines: list[str] = []

    def _type(self, kind: str) -> str:
        return kind if self.lanes == 1 else f"<{self.lanes} x {kind}>"

    def _constant(self, kind: str, text: str) -> str:
        return text if self.lanes == 1 else f"<{', '.join([f'{kind} {text}'] * self.lanes)}>"

    def _add(self, line: str) -> str:
        name = f"%v{len(self.lines)}"
        self.lines.append(f"{name} = {line}")
        return name

    def number(self, value: float) -> str:
        (single,) = struct.unpack("<f", struct.pack("<f", value))
        (bits,) = struct.unpack("<Q", struct.pack("<d", single))
        return self._constant("float", f"0x{bits:016X}")

    def whole(self, value: int) -> str:
        return self._constant("i32", str(value))

    def plus(self, a: str, b: str) -> str:
        return self._add(f"fadd {self.float} {a}, {b}")

    def minus(self, a: str, b: str) -> str:
        return self._add(f"fsub {self.float} {a}, {b}")

    def times(self, a: str, b: str) -> str:
        return self._add(f"fmul {self.float} {a}, {b}")

    def over(self, a: str, b: str) -> str:
        return self._add(f"fdiv {self.float} {a}, {b}")

    def times_plus(self, a: str, b: str, c: str) -> str:
        """a · b + c, in one step where the processor has one."""
        return self._add(f"call {self.float} @{self.muladd}({self.float} {a}, {self.float} {b}, {self.float} {c})")

    def ints(self, operation: str, a: str, b: str) -> str:
        return self._add(f"{operation} {self.int} {a}, {b}")

    def bits(self, a: str) -> str:
        return self._add(f"bitcast {self.float} {a} to {self.int}")

    def of_bits(self, a: str) -> str:
        return self._add(f"bitcast {self.int} {a} to {self.float}")

    def to_float(self, a: str) -> str:
        return self._add(f"sitofp {self.int} {a} to {self.float}")

    def select(self, comparison: str, a: str, b: str, then: str, otherwise: str) -> str:
        """`comparison` (olt, ogt, oeq) doesn't hold if a or b is NaN."""
        condition = self._add(f"fcmp {comparison} {self.float} {a}, {b}")
        return self._add(f"select {self.bool} {condition}, {self.float} {then}, {self.float} {otherwise}")

    def within(self, x: str, least: float, largest: float) -> str:
        """x, or the nearest number from `least` to `largest`. NaN stays."""
        below = self.select("ogt", x, self.number(largest), self.number(largest), x)
        return self.select("olt", x, self.number(least), self.number(least), below)

    def polynomial(self, coefficients: Sequence[float], x: str) -> str:
        """Of coefficients from the constant one on."""
        total = self.number(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = self.times_plus(total, x, self.number(coefficient))
        return total

    def power(self, exponent: str) -> str:
        """2 to a whole number from −126 to 127."""
        return self.of_bits(self.ints("shl", self.ints("add", exponent, self.whole(127)), self.whole(23)))


# ------------------------------------------------------------------------------------------------------ the functions


def exp(code: Code, x: str) -> str:
    rest, first, second, _ = _exponential(code, x)
    return code.times(code.times_plus(rest, first, first), second)


def expm1(code: Code, x: str) -> str:
    """eˣ − 1, exact to the last places for small numbers, too."""
    rest, first, second, inverse = _exponential(code, x)
    return code.times(code.times_plus(first, rest, code.minus(first, inverse)), second)


def _exponential(code: Code, x: str) -> tuple[str, str, str, str]:
    """eˣ = (1 + rest) · first · second; the last is the inverse of the second."""
    x = code.within(x, SMALLEST, LARGEST)
    rounded = code.times_plus(x, code.number(LOG2_E), code.number(MAGIC))
    exponent = code.minus(rounded, code.number(MAGIC))
    r = code.times_plus(exponent, code.number(-LN2_HIGH), x)
    r = code.times_plus(exponent, code.number(-LN2_LOW), r)
    rest = code.times_plus(code.times(r, r), code.polynomial(EXP, r), r)
    whole = code.ints("sub", code.bits(rounded), code.whole(MAGIC_BITS))
    half = code.ints("ashr", whole, code.whole(1))
    other = code.ints("sub", whole, half)
    inverse = code.power(code.ints("sub", code.whole(0), other))
    return rest, code.power(half), code.power(other), inverse


def sigmoid(code: Code, x: str) -> str:
    zero, one = code.number(0), code.number(1)
    e = exp(code, code.select("olt", x, zero, x, code.minus(code.number(-0.0), x)))
    return code.over(code.select("olt", x, zero, e, one), code.plus(one, e))


def tanh(code: Code, x: str) -> str:
    """By that of |x|, with the sign of x: of −0 it is −0."""
    sign = code.ints("and", code.bits(x), code.whole(SIGN_BIT))
    size = code.of_bits(code.ints("and", code.bits(code.within(x, -10, 10)), code.whole(~SIGN_BIT)))
    t = expm1(code, code.times(size, code.number(2)))
    found = code.over(t, code.plus(t, code.number(2)))
    return code.of_bits(code.ints("or", code.bits(found), sign))


def erf(code: Code, x: str) -> str:
    x = code.within(x, -4, 4)
    square = code.times(x, x)
    found = code.over(code.times(x, code.polynomial(ERF_ABOVE, square)), code.polynomial(ERF_BELOW, square))
    return code.within(found, -1, 1)  # a GELU multiplies what is left of 1 by any number


def log(code: Code, x: str) -> str:
    least = code.number(2.0**-126)  # what is smaller isn't normal
    normal = code.select("olt", x, least, code.times(x, code.number(2.0**23)), x)
    above = code.ints("sub", code.bits(normal), code.whole(SQRT_HALF_BITS))
    shift = code.select("olt", x, least, code.number(-23), code.number(0))
    exponent = code.plus(code.to_float(code.ints("ashr", above, code.whole(23))), shift)
    fraction = code.ints("add", code.ints("and", above, code.whole(0x7FFFFF)), code.whole(SQRT_HALF_BITS))
    f = code.minus(code.of_bits(fraction), code.number(1))
    square = code.times(f, f)
    small = code.times_plus(code.times(f, square), code.polynomial(LOG, f), code.times(exponent, code.number(LN2_LOW)))
    small = code.times_plus(square, code.number(-0.5), small)
    found = code.times_plus(exponent, code.number(LN2_HIGH), code.plus(f, small))
    found = code.select("olt", x, code.number(INFINITY), found, x)
    of_none = code.select("oeq", x, code.number(0), code.number(-INFINITY), code.number(NAN))
    return code.select("ogt", x, code.number(0), found, of_none)


def log1p(code: Code, x: str) -> str:
    """log(1 + x), exact to the last places for small numbers, too: what 1 + x has lost is made good."""
    whole = code.plus(code.number(1), x)
    lost = code.over(code.minus(x, code.minus(whole, code.number(1))), whole)
    near = log(code, whole)
    found = code.select("oeq", whole, code.number(0), near, code.plus(near, lost))
    return code.select("olt", x, code.number(INFINITY), found, x)


FUNCTIONS: Mapping[str, Callable[[Code, str], str]] = {
    function.__name__: function for function in (exp, expm1, sigmoid, tanh, erf, log, log1p)
}
