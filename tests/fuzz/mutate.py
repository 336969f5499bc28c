"""A file, spoiled by what it is: what is inside an archive or a header is opened, spoiled and packed again."""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

Files = dict[str, bytes]
"""What a reader is given: contents by their paths in a folder."""

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(10**30, 10**400, 3_000_000, 0.5, -0.0, 1e-320, 1e38, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    *(
        "",
        "\0",
        "\n",
        "a\nb\r",
        "\x1b[31mred\x1b[0m",
        "\u202e",
        "\ud800",
        "../../x",
        "/etc/passwd",
        "C:\\x",
        "a" * 100_000,
    ),
    *(
        "%s%n{0}{x}",
        "NaN",
        "inf",
        "-1",
        "1e999",
        "0x10",
        "true",
        "null",
        "float32",
        "int8",
        "host",
        "pynq-z1",
        "😀",
        ".",
    ),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [0], [None], {"": None}, [1, "a"], {"a": {"a": {}}})
WORDS = (
    b"\0",
    b"\xff" * 8,
    b"\0" * 8,
    b"\n",
    b"'",
    b'"',
    b"{",
    b"[",
    b"}",
    b"]",
    b"=",
    b"NaN",
    b"-",
    b"1e999",
    b"\x80\x02",
)
DEPTHS = (50, 500, 1500, 100_000)
LARGEST = 1 << 20
"""What is read from a packed file to be spoiled; the rest is left out."""


def spoil(files: Files, corpus: list[Files], rng: Random) -> Files:
    """`files` with one to four things wrong. `corpus` is where parts of other files are taken from."""
    spoiled = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(sorted(spoiled))
        if len(spoiled) > 1 and rng.random() < 0.05:
            del spoiled[name]
        else:
            other = rng.choice(corpus)
            spoiled[name] = content(spoiled[name], rng, rng.choice(sorted(other.items()))[1])
    return spoiled


def content(whole: bytes, rng: Random, other: bytes = b"", name: str = "") -> bytes:
    """A file's content with one thing wrong: in most cases by what it is, else in its bytes."""
    if rng.random() < 0.25:
        return _bytes(whole, rng, other)
    for spoiler in (_zip, _packed, _tar, _json, _lines, _safetensors, _npy, _png, _tflite, _onnx, _text):
        try:
            found = spoiler(whole, rng, other)
        except (ValueError, KeyError, OSError, EOFError, RuntimeError, NotImplementedError, struct.error):
            continue
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, MemoryError):
            continue
        if found is not None:
            return found
    return _bytes(whole, rng, other)


def _bytes(whole: bytes, rng: Random, other: bytes) -> bytes:
    """Bits, numbers, cuts, repetitions, and parts of another file."""
    changed = bytearray(whole)
    at = rng.randrange(len(changed) + 1)
    # headers are what readers believe
    at = rng.randrange(min(len(changed), 256) + 1) if rng.random() < 0.4 else at
    length = rng.choice((1, 2, 4, 8, 64, 4096))
    kind = rng.randrange(8)
    if kind == 0 and changed:
        for _ in range(rng.choice((1, 1, 3, 30))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
        value = rng.choice([number for number in NUMBERS if isinstance(number, int)]) % (1 << 8 * size)
        changed[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 100))
    elif kind == 5:
        start = rng.randrange(len(other) + 1)
        changed[at : at + rng.choice((0, length))] = other[start : start + length]
    elif kind == 6:
        changed[at:at] = rng.choice(WORDS) * rng.choice((1, 1, 8, 1000))
    else:
        changed[at : at + length] = rng.randbytes(length)
    return bytes(changed)


def _nested(rng: Random) -> bytes:
    depth = rng.choice(DEPTHS)
    start, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")")))
    return start * depth + rng.choice((b"", b"1")) + end * rng.choice((0, depth))


# ---------------------------------------------------------------------------------------------------------------- JSON


def _json(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    if whole[:1] not in (b"{", b"["):
        return None
    value = json.loads(whole)
    if rng.random() < 0.05:
        return _deep_json(whole, rng)
    return json.dumps(tree(value, rng, other)).encode()


def _deep_json(whole: bytes, rng: Random) -> bytes:
    """Nesting in place of a value, or a field twice, which a tree of Python's can't say."""
    fields = list(re.finditer(rb'"[^"]*":\s*', whole))
    if not fields:
        return _nested(rng)
    field = rng.choice(fields)
    if rng.random() < 0.5:
        return whole[: field.end()] + _nested(rng) + b"," + whole[field.start() :]
    return (
        whole[: field.start()]
        + field[0]
        + rng.choice((b"0", b"[]", b'""', b"9" * 5000))
        + b","
        + whole[field.start() :]
    )


def tree(value: Any, rng: Random, other: bytes = b"") -> Any:
    """What JSON holds, with one value, key or element changed, removed or repeated."""
    places: list[tuple[Any, Any]] = []
    _places(value, places)
    if not places:
        return copy.deepcopy(rng.choice(OTHERS))
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25:
        if isinstance(holder, dict):
            holder[rng.choice((*TEXTS, f"{key}x"))] = holder.pop(key)
        else:
            holder[key:key] = [holder[key]] * rng.choice((1, 2, 50))
    elif kind < 0.35:
        elsewhere, name = rng.choice(places)
        holder[key] = copy.deepcopy(elsewhere[name])
    else:
        holder[key] = _value(holder[key], rng, other)
    return value


def _places(value: Any, places: list[tuple[Any, Any]]) -> None:
    """All that a tree has below its root, by what holds it; long rows by their first elements."""
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:20] if isinstance(value, list) else ()
    for key, inner in items:
        places.append((value, key))
        _places(inner, places)


def _value(old: Any, rng: Random, other: bytes) -> Any:
    if isinstance(old, str) and old[:1] in ("{", "[") and rng.random() < 0.9:
        return content(old.encode("utf-8", "surrogatepass"), rng, other).decode("utf-8", "replace")
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.7:
        return rng.choice((*NUMBERS, -old, old + 1, old - 1, old * 2, str(old)[:4000]))
    if isinstance(old, str) and rng.random() < 0.7:
        return rng.choice((*TEXTS, old + old, old[:-1], old.upper(), [old]))
    return copy.deepcopy(rng.choice((*OTHERS, *NUMBERS[:12], *TEXTS[:6], [old], {"a": old})))


def _lines(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    """JSON in lines."""
    rows = whole.splitlines()
    if len(rows) < 2 or not whole.startswith((b"{", b"[")):
        return None
    number = rng.randrange(len(rows))
    kind = rng.random()
    if kind < 0.1:
        del rows[number]
    elif kind < 0.2:
        rows[number:number] = [rows[number]] * rng.choice((1, 100))
    elif kind < 0.3:
        rng.shuffle(rows)
    else:
        rows[number] = content(rows[number], rng, other)
    return b"\n".join(rows) + b"\n"


# ------------------------------------------------------------------------------------------------------------ archives


def _members(members: dict[str, bytes], rng: Random, other: bytes) -> list[tuple[str, bytes]]:
    rows = list(members.items())
    if not rows:
        return [("a", other[:LARGEST])]
    number = rng.randrange(len(rows))
    name, inner = rows[number]
    kind = rng.random()
    if kind < 0.08:
        del rows[number]
    elif kind < 0.16:
        rows.append((name, rng.choice((inner, other[:LARGEST], b""))))
    elif kind < 0.24:
        rows[number] = (
            rng.choice((*TEXTS[:-1], f"{name}/a", f"../{name}", f"/{name}", name.upper(), f"a/{name}")),
            inner,
        )
    else:
        rows[number] = (name, content(inner, rng, other))
    return rows


def _zip(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    if not whole.startswith(b"PK"):
        return None
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {}
        for member in archive.infolist():
            with archive.open(member) as file:
                members[member.filename] = file.read(LARGEST)
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", rng.choice((0, 0, 0, 8, 14))) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, inner in _members(members, rng, other):
            entry = zipfile.ZipInfo("a")
            entry.filename = name.encode("utf-8", "replace").decode()[:60_000] or "a"
            archive.writestr(entry, inner)
    return made.getvalue()


def _packed(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    for start, unpack, pack in (
        (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file), gzip.compress),
        (b"BZh", bz2.BZ2File, bz2.compress),
        (b"\xfd7zXZ", lzma.LZMAFile, lambda data: lzma.compress(data, preset=0)),
    ):
        if whole.startswith(start):
            inner = unpack(io.BytesIO(whole)).read(4 * LARGEST)
            return pack(content(inner, rng, other))  # type: ignore[operator]
    return None


def _tar(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    if whole[257:262] != b"ustar":
        return None
    members = {}
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            members[member.name] = file.read(4 * LARGEST) if file else b""
    made = io.BytesIO()
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.GNUTYPE_SPARSE,
    )
    with tarfile.open(fileobj=made, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for name, inner in _members(members, rng, other):
            entry = tarfile.TarInfo(name.encode("utf-8", "replace").decode() or "a")
            entry.size = len(inner)
            if rng.random() < 0.01:
                entry.type, entry.linkname = (
                    rng.choice(kinds),
                    rng.choice(TEXTS[:10]).encode("utf-8", "replace").decode(),
                )
            archive.addfile(entry, io.BytesIO(inner))
    return made.getvalue()


# ------------------------------------------------------------------------------------------------------- other formats


def _safetensors(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    if len(whole) < 10 or whole[8:9] != b"{":
        return None
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    about = header.get("__metadata__", {})
    told = about.items() if isinstance(about, dict) else ()
    inner = next((name for name, text in told if isinstance(text, str) and text.startswith("{")), None)
    if inner is not None and rng.random() < 0.7:
        about[inner] = json.dumps(tree(json.loads(about[inner]), rng, other))
    else:
        header = tree(header, rng, other)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def _npy(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    if not whole.startswith(b"\x93NUMPY\1\0"):
        return None
    length = int.from_bytes(whole[8:10], "little")
    header = _text(whole[10 : 10 + length], rng, other) or b""
    header = header[:60_000]
    return whole[:8] + len(header).to_bytes(2, "little") + header + whole[10 + length :]


def _png(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    """Chunks, each with the checksum that it has to have."""
    if not whole.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    chunks, at = [], 8
    while at + 12 <= len(whole):
        length = int.from_bytes(whole[at : at + 4], "big")
        chunks.append((whole[at + 4 : at + 8], whole[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, inner = chunks[number]
    known = (b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"IDAT", b"IEND")
    choice = rng.random()
    if choice < 0.1:
        del chunks[number]
    elif choice < 0.3:
        chunks.insert(number, (rng.choice(known), rng.choice((b"", inner, rng.randbytes(20), inner[:-1]))))
    else:
        chunks[number] = (kind, _bytes(inner, rng, other))
    made = b"".join(
        struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
        for kind, inner in chunks
    )
    return whole[:8] + made


def _tflite(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    """Numbers of 32 bits in a FlatBuffer, wherever they lie: offsets, lengths, shapes; most of the file is such."""
    if whole[4:8] != b"TFL3":
        return None
    made = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = 4 * rng.randrange(len(made) // 4)
        (old,) = struct.unpack_from("<i", made, place)
        new = rng.choice((0, 1, -1, old + 1, old - 1, old ^ (1 << rng.randrange(32)), rng.getrandbits(31), len(made)))
        struct.pack_into("<i", made, place, (new + (1 << 31)) % (1 << 32) - (1 << 31))
    return bytes(made)


def _onnx(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    """A field somewhere in a model of ONNX; what is no model is none of the others either."""
    if whole[:1] != b"\x08" or whole[2:4] == b"\0\0":
        return None
    import onnx
    from google.protobuf.message import DecodeError, Message

    model = onnx.ModelProto()
    try:
        model.ParseFromString(whole)
    except DecodeError:
        return None
    found: list[tuple[Message, Any]] = []

    def walk(message: Message) -> None:
        for field, value in message.ListFields():
            found.append((message, field))
            if field.type == field.TYPE_MESSAGE:
                for inner in value if _repeats(value) else [value]:
                    walk(inner)

    walk(model)
    if not found:
        return None
    message, field = rng.choice(found)
    value = getattr(message, field.name)
    numeric = field.cpp_type not in (field.CPPTYPE_MESSAGE, field.CPPTYPE_STRING)
    kind = rng.random()
    if kind < 0.2:
        message.ClearField(field.name)
    elif _repeats(value):
        at = rng.randrange(len(value))
        if kind < 0.4:
            del value[at]
        elif kind < 0.6:
            value.extend([value[at]] * rng.choice((1, 2, 50)))
        elif numeric:
            value[at] = _fitting(field, rng)
        elif field.cpp_type == field.CPPTYPE_STRING:
            value[at] = _text_for(field, value[at], rng)
        else:
            value[at].CopyFrom(rng.choice(list(value)))
    elif numeric:
        setattr(message, field.name, _fitting(field, rng))
    elif field.cpp_type == field.CPPTYPE_STRING:
        setattr(message, field.name, _text_for(field, value, rng))
    else:
        message.ClearField(field.name)
    return model.SerializeToString()


def _repeats(value: Any) -> bool:
    """Whether a field has several values; how its descriptor says so differs between versions of protobuf."""
    return hasattr(value, "extend")


def _fitting(field: Any, rng: Random) -> Any:
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return float(rng.choice((0.0, 1.0, -1.0, 1e38, float("inf"), float("nan"))))
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32, field.CPPTYPE_ENUM) else 64
    signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return rng.choice([number for number in NUMBERS if isinstance(number, int) and low <= number <= high])


def _text_for(field: Any, old: Any, rng: Random) -> Any:
    if isinstance(old, bytes):
        return _bytes(old, rng, old)
    return rng.choice((*TEXTS, old + "x")).encode("utf-8", "replace").decode()


def _text(whole: bytes, rng: Random, other: bytes) -> bytes | None:
    """A number, a text, a line or a key of what people can read: TOML, NumPy's header, a list."""
    if b"\0" in whole[:512]:
        return None
    text = whole.decode("utf-8")
    found = list(re.finditer(r"-?\d+(\.\d+)?|\"[^\"\n]*\"|'[^'\n]*'|\[[^]\n]*\]|\([^)\n]*\)|[^\s=]+", text))
    if not found:
        return None
    token = rng.choice(found)
    kind = rng.random()
    if kind < 0.1:
        rows = text.splitlines(keepends=True)
        number = rng.randrange(len(rows))
        rows[number : number + 1] = rng.choice(([], [rows[number]] * 2, [rows[number]] * 1000))
        return "".join(rows).encode()
    new: str
    if kind < 0.15:
        new = _nested(rng).decode()
    elif token[0][0].isdigit() or token[0][0] == "-":
        new = str(rng.choice(NUMBERS))[:4000]
    elif token[0][0] in "\"'":
        quote = token[0][0]
        new = f"{quote}{rng.choice(TEXTS)}{quote}"
    else:
        new = rng.choice((*TEXTS, "[]", "{}", "true", "1979-05-27", "(1,)", "nan", str(rng.choice(NUMBERS))[:4000]))
    return (text[: token.start()] + new + text[token.end() :]).encode("utf-8", "surrogatepass")
