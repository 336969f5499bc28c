"""Files that others may have made: read within limits, checked against a schema, or refused in one sentence.

Every reader of JSON, TOML, tar, .npy and safetensors goes through here (ruff's banned-api in pyproject.toml has the
rule and its exceptions), so that no file can take this process down, fill its memory, or be half believed: sizes are
looked at before anything is allocated, numbers are finite and fit 64 bits, and what a file says about itself is shown
with its control characters escaped. Importing this costs nothing; jsonschema, numpy and safetensors come when needed.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, get_args, get_origin, get_type_hints

from tvmflow.spec import UserError
from tvmflow.system import limits as limited
from tvmflow.system.limits import Limits

if TYPE_CHECKING:
    import numpy as np

# ----------------------------------------------------------------------------------------------------------- errors


class UnusableFileError(UserError):
    """A file can't be used. One sentence: the file, what is wrong and was seen, and after a semicolon what to do."""

    def __init__(self, path: Path | str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{printable(str(path))} {problem}{f'; {remedy}' if remedy else ''}.")
        self.problem = problem


class MalformedError(ValueError):
    """Content that isn't what it should be, as a clause such as "layers[0].macs is 'x', where an integer belongs"."""


_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, those that turn the direction of text or aren't seen, line separators, and lone surrogates."""


def printable(text: str) -> str:
    """`text` on one line, with all that a terminal could obey, or that no encoding has, as \\x1b or \\u202e."""
    return _UNPRINTABLE.sub(lambda found: _escaped(found[0]), text)


def _escaped(letter: str) -> str:
    return f"\\x{code:02x}" if (code := ord(letter)) < 0x100 else f"\\u{code:04x}"


def printable_document(content: Any) -> Any:
    """A copy of what JSON held, every string `printable`."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, Mapping):
        return {printable_document(key): printable_document(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [printable_document(value) for value in content]
    return content


def shown(value: Any) -> str:
    """A value of a file for a sentence: as Python spells it, on one line, and shortened."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(shown, list(value)[:3])) or 'nothing'}{' …' * (len(value) > 3)}"
    if isinstance(value, int) and value.bit_length() > 1000:  # Python has decimals only of those that aren't too long
        text = hex(value)
    else:
        text = repr(value if not isinstance(value, str) else value[: limited.SHOWN_CHARACTERS + 1])
    return shortened(text)


def shortened(words: object, most: int = limited.SHOWN_CHARACTERS) -> str:
    """What a file, a peer or an error says, for a message: printable, on one line, of at most so many characters."""
    text = "".join(
        letter if letter.isprintable() else _escaped(letter) for letter in " ".join(str(words)[: 4 * most].split())
    )
    return text if len(text) <= most else f"{text[: most - 1]}…"


def reason(error: BaseException) -> str:
    """What a library says is wrong, on one line and without its stop."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError | MemoryError):
        return "it is nested too deeply"
    return shortened(str(error) or type(error).__name__).rstrip(".")


# ------------------------------------------------------------------------------------------------------------ bytes


PART = 1 << 20
"""Bytes that are read at once."""


def read_bytes(path: Path, limits: Limits = limited.DOCUMENT) -> bytes:
    """All of a file, or of a pipe. Raises UnusableFileError, also where it is longer than `limits.bytes`."""
    try:
        with path.open("rb") as file:
            # in parts, for Python allocates all that it is asked to read
            parts: list[bytes] = []
            while (left := limits.bytes + 1 - sum(len(part) for part in parts)) and (
                part := file.read(min(left, PART))
            ):
                parts.append(part)
            content = b"".join(parts)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise UnusableFileError(path, f"can't be read: {reason(error)}") from error
    if len(content) > limits.bytes:
        raise UnusableFileError(path, f"is over {limits.bytes:,} bytes, the most that is read", limits.remedy("bytes"))
    return content


def read_text(path: Path, limits: Limits = limited.DOCUMENT) -> str:
    """All of a text file in UTF-8. Raises UnusableFileError."""
    try:
        return _decoded(read_bytes(path, limits)).removeprefix("\ufeff")
    except MalformedError as error:
        raise UnusableFileError(path, f"is no text: {error}") from error


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"it isn't UTF-8 at byte {error.start}") from error


# ------------------------------------------------------------------------------------------------------------- JSON


def parse_json(
    content: bytes | str, limits: Limits = limited.DOCUMENT, *, surrogates: bool = False, non_finite: bool = False
) -> Any:
    """What JSON says. Raises MalformedError.

    Refused, beside what is over the limits or no JSON: infinities and NaN, unless `non_finite` has them be None,
    integers beyond 64 bits, an object with two keys of the same name, and strings with halves of surrogate pairs,
    unless `surrogates` are taken.
    """
    if len(content) > limits.bytes:
        raise MalformedError(f"it is over {limits.bytes:,} bytes ({limits.remedy('bytes')})")
    text = _decoded(content) if isinstance(content, bytes) else content
    # no more values than separators and brackets, so that this needs no parsing; strings may hold some, and seldom many
    if text.count(",") + text.count("[") + text.count("{") > limits.elements:
        raise MalformedError(f"it has over {limits.elements:,} values ({limits.remedy('elements')})")
    try:
        found = (_LENIENT_DECODER if non_finite else _DECODER).decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(reason(error)) from error
    _check_values(found, limits.depth, surrogates)
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > limited.INTEGER_DIGITS or abs(value := int(digits)) >> 64:
        raise MalformedError(f"the number {digits[:24]}{'…' * (len(digits) > 24)} is beyond 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MalformedError(f"the number {text[:24]} is too large")
    return value


def _no_number(text: str) -> Any:
    raise MalformedError(f"{text} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise MalformedError(f"{shown(twice)} is there twice")
    return found


_DECODER, _LENIENT_DECODER = (
    json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=of_others, object_pairs_hook=_object)
    for of_others in (_no_number, lambda _: None)
)


def _check_values(content: Any, depth: int, surrogates: bool) -> None:
    """Nesting and strings; Python's own stack isn't used for the way down."""
    level: list[Any] = [content]
    for _ in range(depth + 1):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper += value
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str) and not surrogates and not value.isascii() and _has_surrogates(value):
                raise MalformedError(f"{shown(value)} has half of a surrogate pair")
        if not deeper:
            return
        level = deeper
    raise MalformedError(f"it is nested deeper than {depth} levels")


def _has_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def read_json(
    path: Path,
    limits: Limits = limited.DOCUMENT,
    *,
    what: str = "JSON",
    remedy: str = "",
    schema: Schema | None = None,
    surrogates: bool = False,
) -> Any:
    """What a JSON file says, as `parse_json` takes it and `schema` wants it. Raises UnusableFileError."""
    content = read_bytes(path, limits)
    try:
        found = parse_json(content, limits, surrogates=surrogates)
        if schema is not None:
            schema.check(found)
        return found
    except MalformedError as error:
        raise UnusableFileError(path, f"is no {what} that can be read: {error}", remedy) from error


# ---------------------------------------------------------------------------------------------------------- schemas


class Schema:
    """A JSON schema, of draft 2020-12, that the contents of files are held to."""

    def __init__(self, source: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """`source` is the schema, or gives it when it is first needed."""
        self._source = source

    @functools.cached_property
    def _validator(self) -> Any:
        import jsonschema

        # JSON has no difference between 1.0 and 1, but what counts things must not become a float
        checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
            "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
        )
        kind = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=checker)
        return kind(self._source() if callable(self._source) else self._source)

    def check(self, content: Any) -> None:
        """Raises MalformedError, about the first thing that isn't as the schema has it."""
        from jsonschema.exceptions import best_match

        # the first alone: of a long file that is wrong throughout, looking for all would take long
        first = next(self._validator.iter_errors(content), None)
        if first is not None:
            raise MalformedError(_sentence(best_match([first])))


_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _sentence(error: Any) -> str:
    """What a schema's check found, as a clause."""
    where, value, wanted = _place(error.absolute_path), shown(error.instance), error.validator_value
    if error.validator == "type":
        names = [_NAMES[name] for name in ([wanted] if isinstance(wanted, str) else wanted)]
        return f"{where} is {value}, where {' or '.join(names)} belongs"
    if error.validator == "required":
        lacking = [name for name in wanted if name not in error.instance]
        return f"{where} lacks {', '.join(map(shown, lacking[:3]))}"
    if error.validator == "additionalProperties":
        unknown = [name for name in error.instance if name not in error.schema.get("properties", ())]
        return f"{where} has {', '.join(map(shown, unknown[:3]))}, which isn't known"
    if error.validator in ("enum", "const"):
        allowed = wanted if error.validator == "enum" else [wanted]
        return f"{where} is {value}, not {' or '.join(map(shown, allowed))}"
    if error.validator in _BOUNDS:
        return f"{where} is {value}, where {_BOUNDS[error.validator].format(wanted)} belongs"
    if error.validator == "pattern":
        return f"{where} is {value}, which isn't spelled as it should be"
    return f"{where} is {value}, which isn't as it should be"


_BOUNDS = {
    "minimum": "{} or more",
    "maximum": "{} or less",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "minItems": "{} or more",
    "maxItems": "{} or fewer",
    "minLength": "text of {} or more characters",
    "maxLength": "text of {} or fewer characters",
    "maxProperties": "an object of {} or fewer",
}


def _place(path: Iterable[str | int]) -> str:
    """layers[0].latency.p50."""
    place = ""
    for step in path:
        place += (
            f"[{step}]"
            if isinstance(step, int)
            else f"{'.' * bool(place)}{printable(step[: limited.SHOWN_CHARACTERS])}"
        )
    return place or "it"


def schema_of(kind: type) -> dict[str, Any]:
    """The schema of a dataclass as `dataclasses.asdict` and JSON have it.

    Fields with a default may be missing, and others are left alone. Texts are of at most 10,000 characters.
    """
    hints = get_type_hints(kind)
    return {
        "type": "object",
        "properties": {field.name: schema_of_type(hints[field.name]) for field in fields(kind)},
        "required": [
            field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
        ],
    }


def schema_of_type(hint: Any) -> dict[str, Any]:
    """The schema of a type as dataclasses of tvmflow.spec have them."""
    plain: dict[Any, dict[str, Any]] = {
        str: {"type": "string", "maxLength": 10_000},
        int: {"type": "integer"},
        float: {"type": "number"},
        bool: {"type": "boolean"},
        Any: {},
        type(None): {"type": "null"},
    }
    if hint in plain:
        return plain[hint]
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return schema_of(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": schema_of_type(arguments[0])}
    if origin is tuple:
        items = [schema_of_type(argument) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object"}
    return {"oneOf": [schema_of_type(argument) for argument in arguments]}


# ------------------------------------------------------------------------------------------------------------- TOML

_DOTTED = re.compile(r"""(?<![\w"'.-])(?:[\w"'-]+[ \t]*\.[ \t]*){9}""")
"""A key of ten parts, for which `tomllib` would make as many tables; its time grows with their square."""


def read_toml(path: Path, limits: Limits = limited.BOARD, *, what: str = "TOML") -> dict[str, Any]:
    """What a TOML file says. Raises UnusableFileError."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]

    content = read_bytes(path, limits)
    try:
        text = _decoded(content)
        if text.count("[") + text.count("{") + text.count("=") + text.count(",") > limits.elements:
            raise MalformedError(f"it has over {limits.elements:,} values ({limits.remedy('elements')})")
        if _DOTTED.search(text):
            raise MalformedError(f"it has a key of more than {limits.depth} parts")
        found = tomllib.loads(text)
        _check_values(found, limits.depth, surrogates=False)
        return found
    except (ValueError, RecursionError) as error:
        raise UnusableFileError(path, f"is no valid {what}: {reason(error)}") from error


# ----------------------------------------------------------------------------------------------------------- arrays


def read_array(path: Path | str, mmap_mode: Literal["r"] | None = None, limits: Limits = limited.ARRAY) -> np.ndarray:
    """A .npy file's array of numbers, bfloat16 as `|V2`. Raises MalformedError, and OSError where it can't be read.

    The header is checked before anything is allocated: the file has exactly the bytes that shape and dtype ask for.
    """
    import numpy as np

    with open(path, "rb") as file:
        shape, fortran, dtype = _array_header(file)
        if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
            raise MalformedError(f"its dtype is {shown(str(dtype))}, which are no numbers")
        if dtype.kind not in "biufcV" or (dtype.kind == "V" and dtype.itemsize != 2):
            raise MalformedError(f"its dtype is {shown(str(dtype))}, which are no numbers")
        if len(shape) > limits.depth or any(type(size) is not int or size < 0 for size in shape):
            raise MalformedError(f"its shape is {reason(ValueError(str(shape)))}")
        count = math.prod(shape)
        begin, size = file.tell(), os.fstat(file.fileno()).st_size
        if count > limits.elements or count * dtype.itemsize > limits.bytes:
            raise MalformedError(
                f"it says that it has {count:,} elements of {dtype}; the most is {limits.bytes:,} bytes "
                f"({limits.remedy('bytes')})"
            )
        if size - begin != count * dtype.itemsize:
            raise MalformedError(
                f"it has {size - begin:,} bytes of data where {dtype} {'×'.join(map(str, shape)) or 'scalar'} "
                f"takes {count * dtype.itemsize:,}"
            )
        order: Literal["F", "C"] = "F" if fortran else "C"
        if mmap_mode is not None and count:
            return np.memmap(file, dtype, mmap_mode, begin, shape, order)
        return np.fromfile(file, dtype, count).reshape(shape, order=order)


def _array_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    import numpy as np

    begin = file.read(12)
    if not begin.startswith(b"\x93NUMPY") or len(begin) < 12:
        if begin.startswith(b"PK"):
            raise MalformedError("it is an archive of arrays, not one array")
        raise MalformedError("it doesn't begin as a .npy file")
    version = (begin[6], begin[7])
    if version not in ((1, 0), (2, 0)):
        raise MalformedError(f"it is of version {version[0]}.{version[1]} of the format, and 1.0 and 2.0 are read")
    (length,) = struct.unpack("<H" if version == (1, 0) else "<I", begin[8 : 10 if version == (1, 0) else 12])
    if length > limited.ARRAY_HEADER_BYTES:
        raise MalformedError(f"its header has {length:,} bytes; the most is {limited.ARRAY_HEADER_BYTES:,}")
    file.seek(8)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # its dtype is built from any literal, in which numpy raises what it likes
        raise MalformedError(f"its header can't be read: {reason(error)}") from error


def read_tensors(path: Path, limits: Limits = limited.WEIGHTS) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and arrays of a safetensors file. Raises UnusableFileError."""
    from safetensors import SafetensorError, safe_open

    try:
        if (size := path.stat().st_size) > limits.bytes:
            raise UnusableFileError(path, f"has {size:,} bytes; the most is {limits.bytes:,}", limits.remedy("bytes"))
        with safe_open(path, "numpy") as file:
            # the format has no array that isn't in the file, so that they are no larger together than it is
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it can't be iterated)
            return dict(file.metadata() or {}), arrays
    except FileNotFoundError as error:
        raise UserError(f"There is no file {printable(str(path))}.") from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise UnusableFileError(path, f"is no intact safetensors file: {reason(error)}") from error


# ------------------------------------------------------------------------------------------------------------- tars

_BLOCK = tarfile.BLOCKSIZE
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_UNFIT_PAX = re.compile(rb"(?:^|\n)\d+ (size|GNU\.sparse\.[^=\n]*)=")
"""What gives a member another size than its header has, so that a few bytes stand for any number of them."""


def unpack(
    path: Path,
    root: Path,
    admit: Callable[[str, int, int, int], None],
    limits: Limits = limited.BUNDLE,
    *,
    what: str = "tar",
) -> None:
    """The members of an uncompressed tar as files in `root`, whose folder is there and empty. Raises UnusableFileError.

    Refused are members that aren't plain files, two of the same name, and sparse ones. `admit` is given each member's
    name, its bytes, those of all up to it, and how many these are, before it is written, and raises for what may not
    be; names that lead out of `root` are its business.
    """
    try:
        _scan(path, limits)
        with tarfile.open(path, "r:") as archive:
            seen: set[Path] = set()
            total = 0
            for member in archive:
                total += member.size
                admit(member.name, member.size, total, len(seen) + 1)
                destination = root / member.name
                if not member.isreg() or member.issparse():
                    raise UnusableFileError(path, f"has a member {shown(member.name)} that is no plain file")
                if destination in seen:
                    raise UnusableFileError(path, f"has two members named {shown(member.name)}")
                seen.add(destination)
                destination.parent.mkdir(parents=True, exist_ok=True)
                _copy(path, archive, member, destination)
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise UnusableFileError(path, f"is no intact {what}: {reason(error)}") from error
    except OSError as error:
        raise UnusableFileError(path, f"can't be unpacked: {reason(error)}") from error


def _copy(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, destination: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None
    left = member.size
    with destination.open("xb") as file:
        while left and (block := content.read(min(left, limited.MIB))):
            left -= file.write(block)
    if left:
        raise UnusableFileError(path, f"ends in the middle of {shown(member.name)}", "it is incomplete")


def members(path: Path, limits: Limits = limited.BUNDLE) -> Iterator[tuple[str, IO[bytes] | None]]:
    """The names of an uncompressed tar's members with what is in them, None of what is no file.

    Raises UnusableFileError, OSError. A header that can't be read ends the tar, as other programs have it.
    """
    try:
        _scan(path, limits)
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                yield member.name, archive.extractfile(member) if member.isfile() else None
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise UnusableFileError(path, f"is no intact tar: {reason(error)}") from error


def _scan(path: Path, limits: Limits) -> None:
    """Look at the headers themselves, before `tarfile` does what they say. Raises what `unpack` does."""
    size, count, place = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while len(block := file.read(_BLOCK)) == _BLOCK and block.strip(b"\0"):
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            count += 1
            if count > 3 * limits.elements:  # each may have two extensions
                raise UnusableFileError(path, f"is over {limits.elements:,} members", limits.remedy("elements"))
            if member.size < 0:
                raise UnusableFileError(path, f"has a member {shown(member.name)} of {member.size:,} bytes")
            if member.type in _EXTENSIONS:
                if member.size > limited.EXTENSION_BYTES:
                    raise UnusableFileError(
                        path,
                        f"has a name or pax header of {member.size:,} bytes; the most is {limited.EXTENSION_BYTES:,}",
                    )
                if found := _UNFIT_PAX.search(file.read(member.size)):
                    raise UnusableFileError(path, f"has a pax header with {shown(found[1].decode('latin-1'))}")
            elif member.type not in tarfile.REGULAR_TYPES or member.type in (
                tarfile.CONTTYPE,
                tarfile.GNUTYPE_SPARSE,
            ):
                raise UnusableFileError(path, f"has a member {shown(member.name)} that is no plain file")
            place += _BLOCK + -(-member.size // _BLOCK) * _BLOCK
            if place > size + _BLOCK:
                return  # torn; the reading of members says where
            file.seek(place)
