"""A float `.tflite` file's graph: which files have one, what its constants are in float32, and its operators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow.integer.tflite.model import ABSENT, FileOperator, FileTensor, read_model
from tvmflow.integer.tflite.schema import ACTIVATIONS, SAME, SUFFIX
from tvmflow.system import untrusted
from tvmflow.system.untrusted import MalformedError

Shape = tuple[int, ...]
Pair = tuple[int, int]
QUANTISED = ("int8", "uint8", "int16")
"""What quantised values are stored as."""
VALUES = ("float32", "int32", "int64", "bool")
"""What inputs and results of operators may be."""
MOST_INTEGERS = 1 << 12
"""Of a shape, a list of axes, and the like."""


class Refused(Exception):
    """What of a network isn't taken, as a clause."""


def is_float(path: Path) -> bool:
    """Whether a `.tflite` file's network computes in floating point: nothing that it computes is quantised.

    Its weights may be. Raises UserError if the file can't be read.
    """
    graph = read_model(path)[0]
    computed = [number for operator in graph.operators for number in operator.outputs]
    return not any(
        tensor.dtype in QUANTISED and len(tensor.scales) and tensor.data is None
        for tensor in (graph.tensors[number] for number in (*graph.inputs, *computed))
    )


def is_quantised_tflite(model: str) -> bool:
    """Whether --model is a `.tflite` file of a quantised network; one that isn't there is left to its reader."""
    return model.endswith(SUFFIX) and not (Path(model).is_file() and is_float(Path(model)))


def real_constant(tensor: FileTensor) -> np.ndarray:
    """A constant's values: quantised and float16 ones in float32, all others as they are. Raises MalformedError."""
    assert tensor.data is not None
    if tensor.dtype in QUANTISED and len(tensor.scales):
        return _dequantised(tensor, tensor.data)
    return tensor.data.astype(np.float32) if tensor.dtype == "float16" else tensor.data


def _dequantised(tensor: FileTensor, data: np.ndarray) -> np.ndarray:
    scales, zeros, shape = tensor.scales, tensor.zero_points, [1] * data.ndim
    if len(scales) > 1:
        if not 0 <= tensor.axis < data.ndim or data.shape[tensor.axis] != len(scales):
            raise MalformedError(f"the constant {untrusted.shown(tensor.name)} has {len(scales)} scales")
        shape[tensor.axis] = len(scales)
    if len(zeros) not in (0, 1, len(scales)) or not np.isfinite(scales).all():
        raise MalformedError(f"the constant {untrusted.shown(tensor.name)} has scales and zero points that don't fit")
    offsets = np.resize(zeros if len(zeros) else [0], len(scales)).reshape(shape)
    whole = data.astype(np.int64) - offsets
    return (whole * scales.astype(np.float32).reshape(shape)).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """An operator with what its parameters are; all of it raises MalformedError or Refused where that doesn't fit.

    `constants` has the values of the inputs that are known, None for the others and for those that are left out.
    """

    operator: FileOperator
    shapes: tuple[Shape | None, ...]
    constants: tuple[np.ndarray | None, ...]
    result: FileTensor

    @property
    def kind(self) -> str:
        return self.operator.kind

    def option(self, name: str) -> int:
        return self.operator.integer(name)

    def number(self, name: str) -> float:
        return float(self.operator.options[name])

    def given(self, place: int) -> bool:
        return place < len(self.operator.inputs) and self.operator.inputs[place] != ABSENT

    def shape(self, place: int = 0) -> Shape:
        found = self.shapes[place] if self.given(place) else None
        if found is None:
            raise MalformedError(f"{self.kind} lacks a tensor that it needs")
        return found

    def map_shape(self, place: int = 0) -> Shape:
        """Of a map: batch, rows, columns, channels, none of which is empty."""
        shape = self.shape(place)
        if len(shape) != 4 or 0 in shape:
            raise MalformedError(f"{self.kind} reads a tensor of {sizes(shape)} where a map belongs")
        return shape

    def constant(self, place: int, what: str) -> np.ndarray:
        found = self.constants[place] if self.given(place) else None
        if found is None:
            if self.given(place):
                raise Refused(f"{self.kind} that computes its {what}, where constants are taken")
            raise MalformedError(f"{self.kind} has no {what}")
        return found

    def integers(self, place: int, what: str) -> list[int]:
        found = self.constant(place, what)
        if found.dtype not in (np.int32, np.int64) or found.size > MOST_INTEGERS:
            raise MalformedError(f"the {what} of {self.kind} is no list of integers")
        return [int(number) for number in found.reshape(-1)]

    def axes(self, place: int, rank: int) -> list[int]:
        """Axes of a tensor of that many dimensions, in order and once each; -1 is the last."""
        found = self.integers(place, "axes")
        if any(not -rank <= axis < rank for axis in found):
            raise MalformedError(f"{self.kind} goes along the axes {found} of {rank}")
        return sorted({axis % rank for axis in found})

    def axis(self, rank: int, place: int | None = None, *, more: int = 0) -> int:
        """The one axis that is an input, or an option; `more` are those that the result has beyond its operands."""
        found = [self.option("axis")] if place is None else self.integers(place, "axis")
        if len(found) != 1 or not -rank - more <= found[0] < rank + more:
            raise MalformedError(f"{self.kind} goes along the axis {found} of {rank}")
        return found[0] % (rank + more)

    def positive(self, name: str) -> int:
        value = self.option(name)
        if not 1 <= value <= 1 << 16:
            raise MalformedError(f"the {name} of {self.kind} is {value}")
        return value

    def pair(self, first: str, second: str) -> Pair:
        """Along rows and columns."""
        return self.positive(first), self.positive(second)

    @property
    def same(self) -> bool:
        """Whether the border is such that there are as many outputs as inputs, divided by the stride."""
        return self.option("padding") == SAME

    @property
    def fused(self) -> str:
        number = self.option("fused") if "fused" in self.operator.options else 0
        name = ACTIVATIONS.get(number, f"activation {number}")
        if name not in ("NONE", "RELU", "RELU_N1_TO_1", "RELU6"):  # kernels of LiteRT pass over TANH
            raise Refused(f"the fused activation {name}")
        return name

    def permutation(self, rank: int) -> list[int]:
        order = self.integers(1, "order")
        if sorted(axis % rank if -rank <= axis < rank else -1 for axis in order) != list(range(rank)):
            raise MalformedError(f"{self.kind} has the order {order} for {rank} dimensions")
        return [axis % rank for axis in order]

    def widths(self, rank: int) -> list[Pair]:
        """What lies before and after each axis."""
        found = self.integers(1, "widths")
        if len(found) != 2 * rank or min(found, default=0) < 0 or max(found, default=0) > 1 << 24:
            raise MalformedError(f"{self.kind} has {len(found)} widths for {rank} dimensions, or one that is none")
        return list(zip(found[::2], found[1::2], strict=True))

    def parts(self, length: int, count: int) -> list[int]:
        """How long each part is that an axis is split into."""
        found = [length // max(count, 1)] * count
        if self.kind == "SPLIT_V":
            found = self.integers(1, "sizes")
            if found.count(-1) == 1:
                found[found.index(-1)] = length - sum(found) - 1
        if len(found) != count or sum(found) != length or min(found, default=0) < 0:
            raise MalformedError(f"{self.kind} makes {count} parts of {length} that don't fit")
        return found

    def slices(self, shape: Shape) -> tuple[list[range], Shape]:
        """Which places are taken along each axis, and the shape that the result then gets."""
        if self.kind == "SLICE":
            begins, counts = self.integers(1, "begin"), self.integers(2, "size")
            if not len(begins) == len(counts) == len(shape):
                raise MalformedError("SLICE has places that don't fit")
            ends = [
                length if count == -1 else begin + count
                for begin, count, length in zip(begins, counts, shape, strict=True)
            ]
            if any(not 0 <= b <= e <= length for b, e, length in zip(begins, ends, shape, strict=True)):
                raise MalformedError("SLICE goes beyond its tensor")
            taken = [range(begin, end) for begin, end in zip(begins, ends, strict=True)]
            return taken, tuple(map(len, taken))
        return self._strided(shape)

    def _strided(self, shape: Shape) -> tuple[list[range], Shape]:
        begins, ends, steps = (self.integers(place, "places") for place in (1, 2, 3))
        if not len(begins) == len(ends) == len(steps) <= 16 or 0 in steps or self.option("offset"):
            raise MalformedError("STRIDED_SLICE has places that don't fit")
        masks = {name: self.option(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
        of = [{name for name, mask in masks.items() if mask >> place & 1} for place in range(len(begins))]
        plain = sum(not flags & {"ellipsis", "new_axis"} for flags in of)
        if plain > len(shape) or sum("ellipsis" in flags for flags in of) > 1:
            raise MalformedError("STRIDED_SLICE has places for more dimensions than there are")
        taken: list[range] = []
        made: list[int] = []
        whole = [range(length) for length in shape]
        for begin, end, step, flags in zip(begins, ends, steps, of, strict=True):
            axis = len(taken)
            if "ellipsis" in flags:
                more = whole[axis : axis + len(shape) - plain]
                taken, made = taken + more, made + list(map(len, more))
            elif "new_axis" in flags:
                made.append(1)
            elif "shrink_axis" in flags:
                if not -shape[axis] <= begin < shape[axis]:
                    raise MalformedError("STRIDED_SLICE takes a place that isn't there")
                taken.append(range(begin % shape[axis], begin % shape[axis] + 1))
            else:
                first, last = None if "begin" in flags else begin, None if "end" in flags else end
                taken.append(range(shape[axis])[slice(first, last, step)])
                made.append(len(taken[-1]))
        rest = whole[len(taken) :]
        return taken + rest, (*made, *map(len, rest))

    def blocks(self, rank: int) -> tuple[list[int], list[Pair]]:
        """Of BATCH_TO_SPACE_ND and SPACE_TO_BATCH_ND: the blocks along the axes behind the batch, and the borders."""
        blocks, borders = self.integers(1, "blocks"), self.integers(2, "borders")
        fits = 0 < len(blocks) < rank and len(borders) == 2 * len(blocks)
        if not fits or min(blocks) < 1 or max(blocks) > 1 << 16 or min(borders) < 0 or max(borders) > 1 << 24:
            raise MalformedError(f"{self.kind} has blocks {blocks} and borders {borders} for {rank} dimensions")
        return blocks, list(zip(borders[::2], borders[1::2], strict=True))

    def size(self) -> Pair:
        """Rows and columns of a map that is resized."""
        found = self.integers(1, "size")
        if len(found) != 2 or min(found) < 1 or max(found) > 1 << 16:
            raise MalformedError(f"{self.kind} makes a map of {found}")
        return found[0], found[1]


def sizes(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "one number"
