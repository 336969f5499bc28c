"""FlatBuffers, the container of `.tflite` files: tables, vectors and text, none of which is read beyond the file.

A table begins with how far before it its own list of fields lies; a field that isn't in the list has its default.
Vectors and text begin with their length. Every position is held to the file before anything is read there, and what is
read is told its largest count, so that a spoiled file costs no more time and memory than a good one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tvmflow.system import limits
from tvmflow.system.untrusted import MalformedError

MAX_COUNT = 1 << 20
"""Elements of a vector of tables or of text, and of a shape: good files have thousands at most."""


@dataclass(frozen=True)
class Table:
    """A table at a place of a file; fields are known by their numbers, counted from 0 as the schema has them."""

    content: bytes
    at: int

    @staticmethod
    def root(content: bytes, identifier: bytes) -> Table:
        """The table that a file consists of. Raises MalformedError."""
        if content[4:8] != identifier:
            raise MalformedError(f"it doesn't have {identifier.decode()} at byte 4, as such files do")
        return Table(content, _number(content, 0, "<I"))

    def number(self, field: int, form: str, default: float = 0) -> float:
        """A number that lies in the table, `form` as in `struct`."""
        place = self._place(field)
        return default if place is None else _number(self.content, place, f"<{form}")

    def integer(self, field: int, form: str = "i", default: int = 0) -> int:
        return int(self.number(field, form, default))

    def table(self, field: int) -> Table | None:
        place = self._place(field)
        return None if place is None else Table(self.content, self._followed(place))

    def text(self, field: int) -> str:
        """UTF-8, with whatever isn't replaced; empty where there is none."""
        start, count = self._vector(field, 1, limits.TEXT_CHARACTERS)
        return self.content[start : start + count].decode("utf-8", "replace")

    def array(self, field: int, dtype: str, most: int = MAX_COUNT) -> np.ndarray:
        """A vector of numbers; empty where there is none."""
        start, count = self._vector(field, np.dtype(dtype).itemsize, most)
        return (
            np.frombuffer(self.content, np.dtype(dtype).newbyteorder("<"), count, start)
            if count
            else np.empty(0, dtype)
        )

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def tables(self, field: int, most: int = MAX_COUNT) -> Iterator[Table]:
        start, count = self._vector(field, 4, most)
        return (Table(self.content, self._followed(start + 4 * number)) for number in range(count))

    def _vector(self, field: int, size: int, most: int) -> tuple[int, int]:
        """Where the elements begin, and how many there are."""
        place = self._place(field)
        if place is None:
            return 0, 0
        start = self._followed(place)
        count = _number(self.content, start, "<I")
        if count > most or start + 4 + count * size > len(self.content):
            raise MalformedError(f"the vector at byte {start} has {count:,} elements, more than it can have")
        return start + 4, count

    def _followed(self, place: int) -> int:
        return place + _number(self.content, place, "<I")

    def _place(self, field: int) -> int | None:
        fields = self.at - _number(self.content, self.at, "<i")
        slot = 4 + 2 * field
        if slot + 2 > _number(self.content, fields, "<H"):
            return None
        offset = _number(self.content, fields + slot, "<H")
        return self.at + offset if offset else None


def _number(content: bytes, place: int, form: str) -> int:
    if not 0 <= place <= len(content) - struct.calcsize(form):
        raise MalformedError(f"it points to byte {place:,} of {len(content):,}")
    (found,) = struct.unpack_from(form, content, place)
    return int(found) if form[-1] not in "fd" else found
