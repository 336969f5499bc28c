"""What the vector instructions of a CPU do for int8: sums of products of bytes, and products scaled by 2⁻³²."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvmflow.system.toolchain import tvm_target_dict

if TYPE_CHECKING:
    from tvmflow.spec import Target

Expr = Any
"""A tvm.ir.Expr."""
Part = Callable[[int, int], Expr]
"""From a start on, a vector of a length."""

GROUP = 4
"""Neighbouring input channels that meet in one step: four bytes, which are spread over the lanes as one number."""

MACHINE_X64 = (64, "x64")


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """The vector instructions of a CPU. A register has `lanes` of int32.

    `dot(total, inputs, weight)` adds to each lane the products of four inputs with the lane's four weights.
    `inputs(start, length)` gives vectors of the step's four inputs, which must be of the dtype `data`, and
    `weight(start, length)` of its 4·lanes weights. These lie lane by lane, or, with `pairs`, the first two of every
    lane before the last two of every lane.

    `high(total, multiplier, addend)` is (total · multiplier + 2³¹) // 2³² + addend in each lane. `half` says that it
    takes half the multiplier.

    `sums` registers leave enough for the factors; `vectors` is how many weights' registers a tile has at most.
    """

    lanes: int
    data: str
    pairs: bool
    dot: Callable[[Expr, Part, Part], Expr]
    high: Callable[[Expr, Expr, int], Expr]
    half: bool = False
    sums: int
    vectors: int

    def doubled_high(self, total: Expr, multiplier: Expr) -> Expr:
        """(2 · total · multiplier + 2³¹) // 2³² in each lane."""
        high = self.high if self.half else wide_high(self.lanes, doubled=True)
        return high(total, multiplier, 0)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """int8 …×lanes×4 → …×(4·lanes) as `dot` reads them."""
        if self.pairs:
            split = weight.reshape(*weight.shape[:-1], 2, 2)
            weight = np.moveaxis(split, -2, -3)
        return np.ascontiguousarray(weight).reshape(*weight.shape[: -3 if self.pairs else -2], -1)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def spread(value: Expr, lanes: int) -> Expr:
    return T.broadcast(value, lanes)


# --------------------------------------------------------------------------------------------------------------- x86


def dot_products(total: Expr, data: Expr, weight: Expr, lanes: int) -> Expr:
    """VPDPBUSD: to each lane, four unsigned bytes of `data` times four signed ones of `weight`; exact sums."""
    return intrinsic(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total, data, weight)


def _vpdpbusd(lanes: int) -> Callable[..., Expr]:
    def dot(total: Expr, inputs: Part, weight: Part) -> Expr:
        data = T.reinterpret(f"int8x{4 * lanes}", spread(T.reinterpret("int32", inputs(0, GROUP)), lanes))
        return dot_products(total, data, weight(0, 4 * lanes), lanes)

    return dot


MULTIPLY_PAIRS = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}


def _pmaddwd(lanes: int) -> Callable[..., Expr]:
    """Products of 16 bits, added by pairs: PMADDUBSW, of bytes, would saturate at 255 · 127 · 2."""

    def dot(total: Expr, inputs: Part, weight: Part) -> Expr:
        for pair in range(2):
            both = T.reinterpret("int32", inputs(2 * pair, 2))
            data = T.reinterpret(f"int16x{2 * lanes}", spread(both, lanes))
            factors = T.cast(weight(2 * lanes * pair, 2 * lanes), f"int16x{2 * lanes}")
            total = total + intrinsic(f"int32x{lanes}", MULTIPLY_PAIRS[lanes], data, factors)
        return total

    return dot


def wide_high(lanes: int, doubled: bool = False) -> Callable[[Expr, Expr, int], Expr]:
    """PMULDQ multiplies the even lanes; the odd ones are copied there, and the results' high halves put together.

    With `doubled` it is twice the product whose high half is taken.
    """

    def high(total: Expr, multiplier: Expr, addend: int) -> Expr:
        wide = f"int64x{lanes // 2}"

        def number(value: int) -> Expr:
            return spread(T.int64(value), lanes // 2)

        def product(odd: bool) -> Expr:
            def even_lanes(value: Expr) -> Expr:
                # of a shift to the right, LLVM would make three products of unsigned numbers before AVX-512
                moved = T.Shuffle([value], [lane | 1 for lane in range(lanes)]) if odd else value
                # a sign extension, of which it makes nothing before PMULDQ
                return (T.reinterpret(wide, moved) << number(32)) >> number(32)

            found = even_lanes(total) * even_lanes(multiplier)
            if doubled:
                found = found << number(1)
            return found + number((1 << 31) + (addend << 32))

        low = T.reinterpret(f"uint64x{lanes // 2}", product(False)) >> spread(T.uint64(32), lanes // 2)
        odd = (product(True) >> number(32)) << number(32)
        return T.reinterpret(f"int32x{lanes}", T.reinterpret(wide, low) | odd)

    return high


PACK = {
    64: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512", "llvm.x86.avx512.packsswb.512"),
    32: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb", "llvm.x86.avx2.packsswb"),
    16: ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128", "llvm.x86.sse2.packsswb.128"),
}
"""By bytes of a vector: 32 bits to 16, and those to unsigned and to signed bytes."""

RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


def packing_order(vectors: int, lanes: int) -> np.ndarray:
    """Which bytes that many vectors have to give, one after the other, for `pack_bytes` to put all in order."""
    return np.array(
        [4 * (vectors * part + j) + i for j in range(vectors) for part in range(lanes // 4) for i in range(4)]
    )


def pack_bytes(values: Sequence[Expr], low: int, high: int, dtype: str, lanes: int) -> Expr:
    """Four or two vectors of int32 as bytes from `low` to `high`. Saturation, which packing has, does for clipping."""
    to_words, to_unsigned, to_signed = PACK[4 * lanes]
    count = 2 * lanes
    words = [intrinsic(f"int16x{count}", to_words, *values[at : at + 2]) for at in range(0, len(values), 2)]
    if (low, high) != RANGES[dtype] or len(words) == 1:
        ends = [spread(T.int16(end), count) for end in (low, high)]
        words = [tirx.max(tirx.min(word, ends[1]), ends[0]) for word in words]
    if len(words) == 1:
        return T.cast(words[0], f"{dtype}x{count}")
    packed = intrinsic(f"int8x{4 * lanes}", to_unsigned if dtype == "uint8" else to_signed, *words)
    return T.reinterpret(f"{dtype}x{4 * lanes}", packed)


# --------------------------------------------------------------------------------------------------------------- ARM


def _sdot(total: Expr, inputs: Part, weight: Part) -> Expr:
    """SDOT of Armv8.2: signed inputs and weights, exact sums."""
    data = T.reinterpret("int8x16", spread(T.reinterpret("int32", inputs(0, GROUP)), 4))
    return intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, data, weight(0, 16))


def _smlal(add_pairs: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr]:
    """SMULL, SMLAL: two products of bytes in 16 bits, which 2 · −128 · 127 doesn't overflow; then pairs of these."""

    def dot(total: Expr, inputs: Part, weight: Part) -> Expr:
        halves = T.reinterpret("int16x4", spread(T.reinterpret("int32", inputs(0, GROUP)), 2))
        products = None
        for pair in range(2):
            data = T.cast(T.reinterpret("int8x8", T.Shuffle([halves], [pair] * 4)), "int16x8")
            product = data * T.cast(weight(8 * pair, 8), "int16x8")
            products = product if products is None else products + product
        return add_pairs(total, products)

    return dot


def _sadalp(total: Expr, products: Expr) -> Expr:
    return total + intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)


def _vpadal(total: Expr, products: Expr) -> Expr:
    return intrinsic("int32x4", "llvm.arm.neon.vpadals.v4i32.v8i16", total, products)


def _doubling_high(name: str) -> Callable[[Expr, Expr, int], Expr]:
    """(V)SQRDMULH: (2 · a · b + 2³¹) // 2³²; it saturates for −2³¹ times itself only."""

    def high(total: Expr, multiplier: Expr, addend: int) -> Expr:
        product = intrinsic("int32x4", name, total, multiplier)
        return product + spread(T.int32(addend), 4) if addend else product

    return high


def _x86(lanes: int, *, dots: bool, sums: int, vectors: int) -> Instructions:
    return Instructions(
        lanes=lanes,
        data="uint8" if dots else "int16",
        pairs=not dots,
        dot=_vpdpbusd(lanes) if dots else _pmaddwd(lanes),
        high=wide_high(lanes),
        sums=sums,
        vectors=vectors,
    )


AVX512_VNNI = _x86(16, dots=True, sums=24, vectors=4)
AVX_VNNI = _x86(8, dots=True, sums=12, vectors=2)
AVX512 = _x86(16, dots=False, sums=24, vectors=4)
AVX2 = _x86(8, dots=False, sums=8, vectors=2)
SSE = _x86(4, dots=False, sums=8, vectors=2)

NEON_DOT = Instructions(
    lanes=4,
    data="int8",
    pairs=False,
    dot=_sdot,
    high=_doubling_high("llvm.aarch64.neon.sqrdmulh.v4i32"),
    half=True,
    sums=20,
    vectors=4,
)
NEON = Instructions(
    lanes=4,
    data="int8",
    pairs=True,
    dot=_smlal(_sadalp),
    high=_doubling_high("llvm.aarch64.neon.sqrdmulh.v4i32"),
    half=True,
    sums=16,
    vectors=4,
)
NEON_32BIT = Instructions(
    lanes=4,
    data="int8",
    pairs=True,
    dot=_smlal(_vpadal),
    high=_doubling_high("llvm.arm.neon.vqrdmulh.v4i32"),
    half=True,
    sums=8,
    vectors=2,
)

X86 = (
    (("avx512vnni", "avx512bw"), AVX512_VNNI),
    (("avxvnni",), AVX_VNNI),
    (("avx512bw",), AVX512),
    (("avx2",), AVX2),
    ((), SSE),
)
"""The features that instructions of x86 need, the best first."""


def instructions_of(target: Target) -> Instructions:
    """The vector instructions of a board's CPU."""
    described = tvm.target.Target(tvm_target_dict(target))
    has = tvm.target.codegen.target_has_features
    if target.elf == MACHINE_X64:
        return next(found for features, found in X86 if all(has(feature, described) for feature in features))
    if target.elf[0] == 32:
        return NEON_32BIT
    return NEON_DOT if has("dotprod", described) else NEON


# ------------------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True, kw_only=True)
class Tables:
    """`emit(index, entries)` looks `lanes` bytes up; `entries(start, length)` gives vectors of the table of 256."""

    lanes: int
    emit: Callable[[Expr, Part], Expr]


def _vpermi2b(index: Expr, entries: Part) -> Expr:
    """Two halves of 128 entries each, by the lower seven bits; the highest says which."""

    def half(first: int) -> Expr:
        pair = entries(first, 64), entries(first + 64, 64)
        return intrinsic("int8x64", "llvm.x86.avx512.vpermi2var.qi.512", pair[0], index, pair[1])

    return tirx.Select(index < spread(T.int8(0), 64), half(128), half(0))


def _tbl(index: Expr, entries: Part) -> Expr:
    """64 entries at a time; TBX keeps what it doesn't find."""
    found = None
    for first in range(0, 256, 64):
        vectors = [entries(first + 16 * number, 16) for number in range(4)]
        moved = index ^ spread(tirx.const(first - 256 * (first > 127), "int8"), 16) if first else index
        if found is None:
            found = intrinsic("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *vectors, moved)
        else:
            found = intrinsic("int8x16", "llvm.aarch64.neon.tbx4.v16i8", found, *vectors, moved)
    return found


def tables_of(target: Target) -> Tables | None:
    """How a board's CPU looks bytes up in vectors, if it does so in few instructions."""
    described = tvm.target.Target(tvm_target_dict(target))
    if target.elf == MACHINE_X64:
        has_bytes = tvm.target.codegen.target_has_features("avx512vbmi", described)
        return Tables(lanes=64, emit=_vpermi2b) if has_bytes else None
    return None if target.elf[0] == 32 else Tables(lanes=16, emit=_tbl)
