"""CIFAR-10's pickled batches, read without unpickling anything.

A pickle is a program, and the one that a batch is needs few instructions: it puts bytes, text and numbers together to
lists, tuples and dicts, and calls three functions of NumPy and of Python, by name, for its pixels. `pickletools` takes
the program apart; what it would build is kept here as plain data, nothing that it names is imported or called, and
the one array that a batch has is made from its bytes by this file.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmflow.spec import UserError
from tvmflow.system.limits import BATCH
from tvmflow.system.untrusted import shortened

CLASSES = 10
PIXELS = 3 * 32 * 32

NDARRAY, DTYPE, ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def read_batch(name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """uint8 N×32×32×3 images (RGB) and int64 N labels of the batch that a pickle of protocol 2 to 4 holds.

    Raises UserError for all else; `name` is what the message calls it.
    """
    try:
        batch = _Reader(content).read()
        pixels, labels = _pixels(batch.get("data")), _labels(batch.get("labels"))
        if len(pixels) != len(labels):
            raise ValueError(f"it has {len(pixels):,} images and {len(labels):,} labels")
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        # pickletools raises ValueError, a stack or memo that lacks something IndexError and KeyError
        reason = f"its pickle lacks {error}" if isinstance(error, IndexError | KeyError) else error
        raise UserError(f"{shortened(name)} is no CIFAR-10 batch: {shortened(reason)}.") from error
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _pixels(found: Any) -> np.ndarray:
    if not isinstance(found, _Array) or found.content is None:
        raise ValueError("its data are no array")
    rows = len(found.content) // PIXELS
    if found.shape != (rows, PIXELS) or len(found.content) != rows * PIXELS:
        raise ValueError(f"its data are {len(found.content):,} bytes and not rows of {PIXELS:,}")
    return np.frombuffer(found.content, np.uint8).reshape(found.shape, order=found.order)


def _labels(found: Any) -> np.ndarray:
    if not isinstance(found, list) or not all(type(label) is int and 0 <= label < CLASSES for label in found):
        raise ValueError(f"its labels are no list of numbers from 0 to {CLASSES - 1}")
    return np.array(found, np.int64)


@dataclass(frozen=True)
class _Name:
    """What a pickle refers to by module and name, which stays a name."""

    text: str


class _Byte:
    """NumPy's dtype of unsigned bytes, the only one there is."""


class _Array:
    """An array of unsigned bytes: its shape, the order of its elements and they themselves, once they were given."""

    shape: tuple[int, ...] = ()
    order: Any = "C"
    content: bytes | None = None


class _Reader:
    """The instructions of a batch's pickle, carried out on plain data. Raises ValueError, IndexError and KeyError.

    No value is compared, hashed or printed before it is known to be text, bytes or a number, however deep it is.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def read(self) -> dict[str, Any]:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(self.content))):
            if count >= BATCH.elements:
                raise ValueError(f"its pickle has over {BATCH.elements:,} instructions ({BATCH.remedy('elements')})")
            if opcode.name == "STOP":
                break
            if opcode.name not in _STEPS:
                raise ValueError(f"its pickle has the instruction {opcode.name}, which no CIFAR-10 batch needs")
            _STEPS[opcode.name](self, argument)
        found = self.stack.pop()
        if not isinstance(found, dict):
            raise ValueError("its pickle is no dict")
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("what a tuple is made of")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values)

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise ValueError("it puts items into what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Python 2 wrote keys as bytes
            self.stack[-1][_text(key)] = value

    def name(self, argument: str) -> None:
        self.push(_known(".".join(argument.split(" ", 1))))

    def stack_name(self, _: Any) -> None:
        name, module = _text(self.stack.pop()), _text(self.stack.pop())
        self.push(_known(f"{module}.{name}"))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        if function.text in RECONSTRUCT and len(arguments) == 3 and arguments[0] == _Name(NDARRAY):
            self.push(_Array())
        elif function.text == DTYPE and len(arguments) == 3 and arguments[0] in ("u1", b"u1"):
            self.push(_Byte())
        elif function.text == ENCODE and len(arguments) == 2 and isinstance(arguments[0], str):
            # this is how Python 3 writes bytes in protocol 2; the memo could have the same text encoded over and over
            self.encoded += len(arguments[0])
            if arguments[1] != "latin1" or self.encoded > len(self.content):
                raise ValueError("it encodes text otherwise than bytes are written")
            self.push(arguments[0].encode("latin-1"))
        else:
            raise ValueError(f"it calls {function.text} otherwise than for rows of unsigned bytes")

    def build(self, _: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, _Byte):
            return  # byte order, fields and alignment, of which a byte has none
        if (
            not isinstance(built, _Array)
            or built.content is not None
            or not isinstance(state, tuple)
            or len(state) != 5
        ):
            raise ValueError("it gives a state to what has none")
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Byte) or not isinstance(content, bytes) or type(fortran) not in (bool, int):
            raise ValueError("its array isn't one of unsigned bytes")
        if not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
            raise ValueError("its array has no shape")
        built.shape, built.order, built.content = shape, "F" if fortran else "C", content


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError("it has a key or name that is no text")
    return value if isinstance(value, str) else value.decode("latin-1")


def _known(name: str) -> _Name:
    if name not in (NDARRAY, DTYPE, ENCODE, *RECONSTRUCT):
        raise ValueError(f"it wants {name}, which no CIFAR-10 batch needs")
    return _Name(name)


def _put(reader: _Reader, index: int) -> None:
    reader.memo[index] = reader.stack[-1]


def _push(reader: _Reader, argument: Any) -> None:
    reader.push(argument)


_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "PROTO": lambda reader, version: None,
    "FRAME": lambda reader, length: None,
    "MARK": _Reader.mark,
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2"), _push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE"), _push),
    # Python 2's text, which pickletools gives as Latin-1, is bytes
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), lambda reader, argument: reader.push(argument.encode("latin-1"))),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.since_mark())),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "APPEND": lambda reader, _: reader.append([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.append(reader.since_mark()),
    "SETITEM": lambda reader, _: reader.set_items(_pair(reader)),
    "SETITEMS": lambda reader, _: reader.set_items(reader.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda reader, _: _put(reader, len(reader.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda reader, index: reader.push(reader.memo[index])),
    "GLOBAL": _Reader.name,
    "STACK_GLOBAL": _Reader.stack_name,
    "REDUCE": _Reader.call,
    "BUILD": _Reader.build,
}
"""What is done for each instruction that a batch needs; there are no others."""


def _pair(reader: _Reader) -> list[Any]:
    value, key = reader.stack.pop(), reader.stack.pop()
    return [key, value]
