"""Files that somebody made to do harm, or that are damaged as no tool damages them: small ones, made here in code.

Each function or dict says what kind of reader its files are for. `tests.fuzz` begins with them as well.
"""

from __future__ import annotations

import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

ROWS = 2


def _short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_batch(labels: bytes = b"K\x03K\x07", pixels: bytes = bytes(range(256)) * 24) -> bytes:
    """A batch as cifar-10-python.tar.gz has it: protocol 2 by Python 2, whose text comes as bytes."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01b\x87Rq\n"
        b"(K\x01K" + bytes([ROWS]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0bU\x02u1K\x00K\x01\x87Rq\x0c"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(pixels))
        + pixels
        + b"tb"
    )
    return (
        b"\x80\x02}q\x01(" + _short(b"batch_label") + b"q\x02" + _short(b"training batch 1 of 5") + b"q\x03"
        + _short(b"labels") + b"q\x04]q\x05(" + labels + b"e" + _short(b"data") + b"q\x06" + array
        + _short(b"filenames") + b"q\x0d]q\x0e(" + _short(b"a.png") + _short(b"b.png") + b"eu."
    )  # fmt: skip


def _called(dtype: bytes, shape: bytes, more: bytes, content: bytes) -> bytes:
    """A batch whose data are `numpy.ndarray(shape, dtype, content, …)` itself."""
    made = b"cnumpy\ndtype\n" + _short(dtype) + b"\x85R"
    buffer = b"B" + struct.pack("<I", len(content)) + content
    call = b"cnumpy\nndarray\n(" + shape + made + buffer + more + b"tR"
    return b"\x80\x03}(" + _short(b"labels") + b"](K\x03e" + _short(b"data") + call + b"u."


class _Payload:
    def __reduce__(self):
        return eval, ("1/0",)


def _of_labels(value: bytes) -> bytes:
    return python2_batch(labels=value)


def _encoded(times: int) -> bytes:
    """A text of 1 MiB of which bytes are made `times` times."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
    encoded = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02c_codecs\nencode\nq\x00" + text + b"q\x01](" + encoded * times + b"e."


BATCHES: dict[str, bytes] = {
    "objects over bytes": _called(b"O", b"M\x80\x01\x85", b"", b"AAAAAAAA" * 384),
    "objects in an array's state": python2_batch().replace(b"U\x02u1", b"U\x02O8"),
    "objects by their code": python2_batch().replace(b"U\x02u1", b"U\x01O"),
    "floats": python2_batch().replace(b"U\x02u1", b"U\x02f8"),
    "negative strides": _called(b"u1", b"M\x00\x0c\x85", b"K\x00J\xff\xff\xff\xff\x85", bytes(3072)),
    "huge strides": _called(b"u1", b"K\x01M\x00\x0c\x86", b"K\x00J\x00\x00\x00\x7fK\x01\x86", bytes(3072)),
    "a shape of too few bytes": python2_batch(pixels=bytes(3072)),
    "a shape of too many bytes": python2_batch(pixels=bytes(3 * 3072)),
    "a huge shape": python2_batch().replace(b"K\x01K\x02M\x00\x0c\x86", b"K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "a negative shape": python2_batch().replace(b"K\x01K\x02M\x00\x0c\x86", b"K\x01J\xff\xff\xff\xffM\x00\x0c\x86"),
    "no shape": python2_batch().replace(b"K\x01K\x02M\x00\x0c\x86", b"K\x01N"),
    "other rows": python2_batch().replace(b"K\x02M\x00\x0c\x86", b"M\x00\x0cK\x02\x86"),
    "another function": pickle.dumps(_Payload(), protocol=2),
    "another function by protocol 4": pickle.dumps(_Payload(), protocol=4),
    "numpy's loader": b"\x80\x02cnumpy\nload\n" + _short(b"x") + b"\x85R.",
    "an object built by its class": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a function of a function": b"\x80\x02c_codecs\nencode\n)RR.",
    "a persistent object": b"\x80\x02Pthing\n.",
    "an extension": b"\x80\x02\x84\xff\xff\xff\x7f.",
    "a memo of two billion": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a memo that isn't there": b"\x80\x02h\x05.",
    "text announced and missing": b"\x80\x03T\xff\xff\xff\x7fabc",
    "bytes announced and missing": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc",
    "a list in a list, a hundred thousand deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a tuple in a tuple as a key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "a tuple in a tuple as a dtype": b"\x80\x02cnumpy\ndtype\n)" + b"\x85" * 100_000 + b"K\x00K\x01\x87R.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "two million marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
    "a billion laughs": b"\x80\x02]q\x00" + b"".join(b"]q%c(%se" % (n + 1, b"h%c" % n * 100) for n in range(60)) + b".",
    "text encoded over and over": _encoded(10_000),
    "a number of a million digits": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "labels that are no classes": _of_labels(b"K\x03K\x0a"),
    "labels that are true": _of_labels(b"K\x03\x88"),
    "labels below nought": _of_labels(b"K\x03J\xff\xff\xff\xff"),
    "labels of text": _of_labels(b"K\x03" + _short(b"7")),
    "three million labels": _of_labels(b"K\x03" * 3_000_000),
    "one label": _of_labels(b"K\x03"),
    "no dict": b"\x80\x02]." ,
    "nothing at all": b"\x80\x02.",
    "an empty file": b"",
    "no end": python2_batch()[:-1],
    "control characters in a name": b"\x80\x02cnum\x1b[31mpy\x00\r\nndarray\n.",
}  # fmt: skip
"""Content of a `data_batch_1`, none of which is one."""


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def _member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    return _member(name, size, kind).tobuf(tarfile.GNU_FORMAT)


def _sparse_header(size: int) -> bytes:
    """GNU's old kind: one byte on the disk, `size` in the file."""
    header = bytearray(_header("data_batch_1", 1, tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"00000000000\0" + b"00000000001\0"
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


ZEROS = bytes(1 << 20)


def xz_of_zeros(start: bytes, mebibytes: int) -> bytes:
    """`start` and many zeros: ten thousand times smaller on the disk."""
    packer = lzma.LZMACompressor(preset=0)
    return packer.compress(start) + b"".join(packer.compress(ZEROS) for _ in range(mebibytes)) + packer.flush()


def xz_of_a_large_dictionary() -> bytes:
    """A stream whose decoder is to reserve 4 GiB."""
    packed = bytearray(lzma.compress(_tar((_member("data_batch_1", 0), b"")), preset=0))
    # the block's header begins at 12: size, flags, filter, length of its properties, dictionary, zeros, CRC
    length = 4 * (packed[12] + 1)
    packed[16] = 40
    packed[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(packed[12 : 12 + length - 4]))
    return bytes(packed)


ARCHIVES: dict[str, bytes] = {
    "a sparse member": _sparse_header(1 << 33),
    "a sparse batch": _sparse_header(1 << 20),
    "a member of negative size": _header("data_batch_1", 0).replace(b"0" * 11, b"-0000000001"),
    "a member of 8 GiB": _header("data_batch_1", (1 << 33) - 1) + ZEROS,
    "a member that ends early": _header("data_batch_1", 1 << 20) + bytes(512),
    "a long name of 1 GiB": xz_of_zeros(_header("long", 1 << 30, tarfile.GNUTYPE_LONGNAME), 64),
    "an extended header of 1 GiB": xz_of_zeros(_header("more", 1 << 30, tarfile.XHDTYPE), 64),
    "long names of long names": _header("long", 0, tarfile.GNUTYPE_LONGNAME) * 3000,
    "an image of 2 MiB": _tar((_member("train/bird/1.png", 2 << 20), bytes(2 << 20))),
    "a dictionary of 4 GiB": xz_of_a_large_dictionary(),
    "xz that ends early": lzma.compress(_tar((_member("data_batch_1", 9), bytes(9))))[:-20],
    "xz and then noise": lzma.compress(bytes(10240)) + b"noise",
    "gzip that ends early": b"\x1f\x8b\x08\0\0\0\0\0\0\3" + zlib.compress(bytes(10240))[2:20],
    "gzip of noise": b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"noise" * 100,
    "bzip2 of noise": b"BZh91AY&SY" + b"noise" * 100,
    "only zeros": ZEROS,
    "a name of control characters": _tar((_member("train/bi\x1b[31m\nrd\r/1.png", 1), b"x")),
    "a class that is a path": _tar((_member("train/../1.png", 1), b"x")),
}
"""Files to be read as an archive of CIFAR-10, none of which is one."""


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND", b""))
    )


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def _jpeg_of(width: int, height: int) -> bytes:
    """A JPEG of 8×8 whose header says otherwise."""
    content = bytearray(_saved(Image.new("RGB", (8, 8)), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))

IMAGES: dict[str, bytes] = {
    "a PNG of 65535×65535": png(65535, 65535),
    "a PNG of two billion a side": png(0x7FFFFFFF, 0x7FFFFFFF),
    "a PNG of one row of two billion": png(0x7FFFFFFF, 1),
    "a PNG of no pixels": png(0, 0),
    "a JPEG of 65535×65535": _jpeg_of(65535, 65535),
    "a JPEG of 9000×9000": _jpeg_of(9000, 9000),
    "a truncated PNG": _saved(NOISE, "PNG")[:-200],
    "a truncated JPEG": _saved(NOISE, "JPEG")[:-200],
    "an animated PNG": _saved(NOISE, "PNG", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "an animated WebP": _saved(NOISE, "WEBP", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
    "a text of 100 MB": png(32, 32, _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))),
    "a profile of 100 MB": png(32, 32, _chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(100_000_000)))),
    "a GIF": _saved(NOISE, "GIF"),
    "a TIFF": _saved(NOISE, "TIFF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n",
    "an unknown kind of colour": png(32, 32, colour=5, pixels=bytes(33 * 32)),
    "a chunk of four billion": b"\x89PNG\r\n\x1a\n" + b"\xff\xff\xff\xffIHDR" + bytes(100),
    "floats in a PPM": b"PF\n32 32\n-1.0\n" + bytes(32 * 32 * 12),
    "a PPM of a million digits": b"P6\n" + b"9" * 1_000_000 + b" 1\n255\n",
    "nothing": b"",
}
"""Content of an `.png` or `.jpg` that is to be refused, whatever its name."""


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + content


def _described(descr: str = "'<f4'", shape: str = "(2, 3, 4, 4)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def _encrypted(content: bytes) -> bytes:
    """The flag alone, which is all that is looked at."""
    changed = bytearray(content)
    changed[6] |= 1
    changed[changed.index(b"PK\1\2") + 8] |= 1
    return bytes(changed)


FULL = bytes(2 * 3 * 4 * 4 * 4)
GOOD = npy(_described(), FULL)

ARRAYS: dict[str, bytes] = {
    "a huge shape": npy(_described(shape="(2305843009213693951, 3, 4, 4)"), FULL),
    "a shape beyond memory": npy(_described(shape="(100000000, 3, 4, 4)"), FULL),
    "a shape beyond the file": npy(_described(shape="(3, 3, 4, 4)"), FULL),
    "a negative shape": npy(_described(shape="(-2, 3, 4, 4)"), FULL),
    "a shape of truths": npy(_described(shape="(True, 3, 4, 4)"), FULL[: 3 * 4 * 4 * 4]),
    "a shape of floats": npy(_described(shape="(2.0, 3, 4, 4)"), FULL),
    "no number of sides": npy(_described(shape="3"), FULL),
    "no elements of a huge shape": npy(_described(shape="(0, 3, 4, 4, 99999999999999)")),
    "objects": npy(_described("'|O'"), FULL),
    "objects in a record": npy(_described("[('a', '|O'), ('b', '<f4')]"), FULL),
    "elements of no bytes": npy(_described("'|V0'"), FULL),
    "elements of 2 GiB": npy(_described("'|S2147483647'"), FULL),
    "no dtype": npy(_described("'nonsense'"), FULL),
    "a dtype of control characters": npy(_described("'\\x1b[31m\\n'"), FULL),
    "deep nesting": npy(_described(shape="(" * 4000 + ")" * 4000), FULL),
    "minus, over and over": npy(_described(shape="(" + "-" * 8000 + "1,)"), FULL),
    "a header of 4 GiB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + FULL,
    "a long header": npy(_described() + " " * 100_000, FULL, version=2),
    "an unknown version": npy(_described(), FULL, version=9),
    "Python 2's numbers": npy(_described(shape="(2L, 3L, 4L, 4L"), FULL),
    "no header's end": npy("{'descr': '<f4'", FULL),
    "too few bytes": GOOD[:-1],
    "two arrays one after the other": GOOD + GOOD,
    "no numbers": npy(_described(), struct.pack("<f", float("nan")) * 96),
    "infinity": npy(_described("'<f8'"), struct.pack("<d", 1e300) * 96),
    "nothing": b"",
    "an archive of two": npz(("a.npy", GOOD), ("b.npy", GOOD)),
    "an archive of none": npz(),
    "an archive of zeros without end": npz(("a.npy", npy(_described(shape="(8000000, 3, 4, 4)"), bytes(64 << 20)))),
    "an archive with a password": _encrypted(npz(("a.npy", GOOD))),
    "a torn archive": npz(("a.npy", GOOD))[:100],
    "an archive with another checksum": npz(("a.npy", GOOD), method=zipfile.ZIP_STORED).replace(FULL, b"\1" + FULL[1:]),
    "an archive's long list": npz(("a.npy", GOOD))[:-22] + b"PK\5\6" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(6),
    "an archive with a name of control characters": npz(("\x1b[31m\n.npy", GOOD), ("b.npy", GOOD)),
}
"""Content of a .npy or .npz file for a network of 1×3×4×4, all to be refused."""
