"""CIFAR-10 from the forms it comes in, an image folder or an archive of one, or the standard `cifar-10-batches-py`;
and inputs of other networks, images or arrays.

CIFAR-10's images are decoded once and kept as arrays in the user's cache, under the checksum of what they came from.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow import scratch
from tvmflow.models import CIFAR10_LABELS, CIFAR10_PREPROCESSING
from tvmflow.spec import Preprocessing, UserError
from tvmflow.toolchain import cache_folder

COUNTS = {"train": 50_000, "test": 10_000}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
ARRAY_SUFFIXES = (".npy", ".npz")
MAX_IMAGE_BYTES = 1 << 20
FORMS = "train/<class>/*.jpg and test/<class>/*.jpg (a folder, .tar, .tar.xz or .tar.gz), or cifar-10-batches-py"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images uint8 N×H×W×3 (RGB), labels int64 N in the order of the data set's."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Both splits, the checksum of what they were read from, and what has to be said beside an accuracy on them."""

    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    test: Split
    sha256: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Cifar10(DataSet):
    """Images of 32×32 pixels, ten classes."""

    name: str = "CIFAR-10"
    labels: tuple[str, ...] = CIFAR10_LABELS
    preprocessing: Preprocessing = CIFAR10_PREPROCESSING


def load_cifar10(path: Path | str, *, counts: dict[str, int] | None = None) -> Cifar10:
    """Read CIFAR-10 from `path`. Raises UserError. `counts` (images per split) is for smaller sets of the same form."""
    path, counts = Path(path), counts or COUNTS
    if not path.exists():
        raise UserError(f"There is nothing at {path}; --data takes {FORMS}.")
    checksum = _checksum(path)
    cached = cache_folder() / f"cifar10-{checksum[:16]}.npz"
    if cached.exists():
        with np.load(cached) as arrays:
            splits = {name: Split(images=arrays[f"{name}_x"], labels=arrays[f"{name}_y"]) for name in COUNTS}
            note = str(arrays["note"])
    else:
        splits, note = _read(path)
    for name, split in splits.items():
        if len(split.labels) != counts[name]:
            raise UserError(
                f"{path} has {len(split.labels):,} {name} images where CIFAR-10 has {counts[name]:,}; "
                "it is incomplete or another data set."
            )
    if not cached.exists():
        _save(
            cached,
            {f"{name}_x": split.images for name, split in splits.items()}
            | {f"{name}_y": split.labels for name, split in splits.items()}
            | {"note": np.array(note)},
        )
    return Cifar10(train=splits["train"], test=splits["test"], sha256=checksum, note=note)


def is_cifar10(path: Path) -> bool:
    """Whether a path is to be read as CIFAR-10, and not as a folder of images or a file of arrays."""
    if not path.is_dir():
        return path.suffix not in ARRAY_SUFFIXES
    marks = (f"train/{CIFAR10_LABELS[0]}", "data_batch_1")
    return any(next(path.glob(f"{above}{mark}"), None) for mark in marks for above in ("", "*/"))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of a network from files of the user's own, read when they are asked for."""

    count: int
    note: str
    sha256: str
    take: Callable[[np.ndarray], np.ndarray]
    """Numbers of inputs → float32 N×C×H×W, as the network takes them."""


def load_inputs(path: Path, shape: tuple[int, ...], preprocessing: Preprocessing | None) -> Inputs:
    """A folder of images, of whatever size and in whatever folders, or a .npy or .npz file with an array N×C×H×W.

    `shape` is 1×C×H×W; images are resized to it and preprocessed, arrays are taken as they are. Raises UserError.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}; --data takes images, an array, or CIFAR-10: {FORMS}.")
    if not path.is_dir():
        array = _load_array(path)
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32) if array.dtype.kind == "f" else array
        if array.shape[1:] != shape[1:] or array.dtype.kind != "f" or not np.isfinite(narrow).all():
            raise UserError(
                f"{path} holds {array.dtype} {'×'.join(map(str, array.shape))}; the network takes finite float32 "
                f"N×{'×'.join(map(str, shape[1:]))}."
            )
        note = f"inputs of {path.name}"
        return Inputs(count=len(array), note=note, sha256=_checksum(path), take=lambda which: narrow[which])
    files = [file for file in _files(path) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UserError(f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    if preprocessing is None:
        raise UserError(
            "The network doesn't say how it sees images: give --mean and --std, or arrays in a .npz file as --data."
        )
    if len(preprocessing.mean) != shape[1] or shape[1] not in (1, 3):
        raise UserError(f"The network takes {shape[1]} channels, for which {path} and its preprocessing don't fit.")
    seen = preprocessing

    def take(which: np.ndarray) -> np.ndarray:
        return seen.apply(np.stack([read_image(files[number], shape) for number in which]))

    return Inputs(count=len(files), note=f"images of {path.name}", sha256=_checksum(path), take=take)


def read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 H×W×C of an image, resized to `shape`, 1×C×H×W; grey for one channel, else RGB. Raises UserError."""
    from PIL import Image

    _, channels, height, width = shape
    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(pixels).reshape(height, width, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no image that can be read: {error}.") from error


def _load_array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if len(names) != 1:
                raise UserError(f"{path} has {len(names)} arrays ({', '.join(names)}); one is needed, N×C×H×W.")
            return loaded[names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} can't be read as a .npy or .npz file: {error}.") from error


def _read(path: Path) -> tuple[dict[str, Split], str]:
    members = _folder_members(path) if path.is_dir() else _archive_members(path)
    images: dict[str, list[tuple[str, int, np.ndarray]]] = {name: [] for name in COUNTS}
    batches: dict[str, list[Split]] = {name: [] for name in COUNTS}
    lossy = False
    for name, content in members:
        parts = Path(name).parts
        if parts[-1].startswith("data_batch_") or parts[-1] == "test_batch":
            batches["test" if parts[-1] == "test_batch" else "train"].append(_unpickle(name, content))
        elif len(parts) >= 3 and parts[-3] in COUNTS and parts[-1].lower().endswith(IMAGE_SUFFIXES):
            if parts[-2] not in CIFAR10_LABELS:
                raise UserError(f"{path} has a class {parts[-2]!r}; CIFAR-10's are {', '.join(CIFAR10_LABELS)}.")
            images[parts[-3]].append((name, CIFAR10_LABELS.index(parts[-2]), _decode(name, content)))
            lossy = lossy or not parts[-1].lower().endswith(".png")
    if any(batches.values()):
        splits = {
            name: Split(
                images=np.concatenate([part.images for part in parts] or [np.zeros((0, 32, 32, 3), np.uint8)]),
                labels=np.concatenate([part.labels for part in parts] or [np.zeros(0, np.int64)]),
            )
            for name, parts in batches.items()
        }
        return splits, "original CIFAR-10 batches"
    if not any(images.values()):
        raise UserError(f"{path} holds no CIFAR-10 images; --data takes {FORMS}.")
    splits = {}
    for name, rows in images.items():
        rows.sort(key=lambda row: row[0])
        splits[name] = Split(
            images=np.stack([row[2] for row in rows]) if rows else np.zeros((0, 32, 32, 3), np.uint8),
            labels=np.array([row[1] for row in rows], np.int64),
        )
    note = "JPEG re-encoded images: accuracy can differ a little from the original data" if lossy else "PNG images"
    return splits, note


def _folder_members(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in _files(path):
        yield (
            file.relative_to(path).as_posix() if len(file.relative_to(path).parts) > 1 else file.name,
            file.read_bytes(),
        )


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _archive_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    if member.size > 64 * MAX_IMAGE_BYTES:
                        raise UserError(
                            f"{path} has a member of {member.size:,} bytes ({member.name}); none is so large."
                        )
                    content = archive.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
    except (tarfile.TarError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{path} can't be read as an archive ({error}); --data takes {FORMS}.") from error


def _decode(name: str, content: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (32, 32):
                raise UserError(f"{name} is {image.width}×{image.height} pixels; CIFAR-10's images are 32×32.")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise UserError(f"{name} can't be decoded: {error}.") from error


class _BatchUnpickler(pickle.Unpickler):
    """The standard batches are pickles; only what they are made of is let in, so that none can run code."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no CIFAR-10 batch needs")
        return super().find_class(module, name)


def _unpickle(name: str, content: bytes) -> Split:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.int64)
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError, AttributeError, IndexError) as error:
        raise UserError(f"{name} is no CIFAR-10 batch: {error}.") from error
    return Split(images=np.ascontiguousarray(images), labels=labels)


def _checksum(path: Path) -> str:
    """Of an archive's bytes; of a folder's file names, sizes and times, since reading 60,000 files takes a minute."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        for member in _files(path):
            status = member.stat()
            digest.update(f"{member.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The cache is a convenience: where it can't be written, the data are simply read again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.replacing(path) as made, made.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError:
        pass
