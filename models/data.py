"""CIFAR-10 from the forms it comes in, an image folder or an archive of one, or the standard `cifar-10-batches-py`.

CIFAR-10's images are decoded once and kept as arrays in the user's cache, under the checksum of what they came from.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow.models import CIFAR10_LABELS, CIFAR10_PREPROCESSING
from tvmflow.models.archives import files_below, read_files
from tvmflow.models.arrays import ARRAY_SUFFIXES
from tvmflow.models.batches import read_batch
from tvmflow.models.images import read_pixels
from tvmflow.spec import Preprocessing, UserError
from tvmflow.system import scratch
from tvmflow.system.limits import ARCHIVE, BATCH, IMAGE, Limits
from tvmflow.system.toolchain import cache_folder
from tvmflow.system.untrusted import shortened

COUNTS = {"train": 50_000, "test": 10_000}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError),
    *(NotImplementedError, zipfile.BadZipFile, zlib.error),
)
"""What numpy raises of a cached file that something has damaged."""
FORMS = "train/<class>/*.jpg and test/<class>/*.jpg (a folder, .tar, .tar.xz or .tar.gz), or cifar-10-batches-py"

TAKEN = f"images, arrays, package.module:function, or CIFAR-10: {FORMS}"


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
    check_path(path, ARCHIVE)
    digest = checksum(path)
    cached = cache_folder() / f"cifar10-{digest[:16]}.npz"
    found = _from_cache(cached)
    splits, note = found or _read(path)
    for name, split in splits.items():
        if len(split.labels) != counts[name]:
            raise UserError(
                f"{path} has {len(split.labels):,} {name} images where CIFAR-10 has {counts[name]:,}; "
                "it is incomplete or another data set."
            )
    if found is None:
        _save(
            cached,
            {f"{name}_x": split.images for name, split in splits.items()}
            | {f"{name}_y": split.labels for name, split in splits.items()}
            | {"note": np.array(note)},
        )
    return Cifar10(train=splits["train"], test=splits["test"], sha256=digest, note=note)


def is_cifar10(path: Path) -> bool:
    """Whether a path is to be read as CIFAR-10, and not as a folder of images or a file of arrays."""
    if not path.is_dir():
        return path.suffix not in ARRAY_SUFFIXES
    marks = (f"train/{CIFAR10_LABELS[0]}", "data_batch_1")
    return any(next(path.glob(f"{above}{mark}"), None) for mark in marks for above in ("", "*/"))


def read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 H×W×C of an image, resized to `shape`, 1×C×H×W; grey for one channel, else RGB. Raises UserError."""
    _, channels, height, width = shape
    pixels = read_pixels(path, str(path), (width, height), grey=channels == 1, resize=True)
    return pixels.reshape(height, width, channels)


def check_path(path: Path, limits: Limits) -> None:
    """Raises UserError for what is neither a folder nor a file within the limits."""
    if not path.exists():
        raise UserError(f"There is nothing at {path}; --data takes {TAKEN}.")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder; --data takes {TAKEN}.")
    if path.is_file() and path.stat().st_size > limits.bytes:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes; {limits.bytes:,} are the most that is read as data "
            f"({limits.remedy('bytes')})."
        )


def _from_cache(path: Path) -> tuple[dict[str, Split], str] | None:
    """What `_save` wrote, or None where nothing was or something has damaged it."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            splits = {name: Split(images=arrays[f"{name}_x"], labels=arrays[f"{name}_y"]) for name in COUNTS}
            note = str(arrays["note"])
    except (OSError, *DAMAGED):
        return None
    for split in splits.values():
        if split.images.shape != (len(split.labels), 32, 32, 3) or split.images.dtype != np.uint8:
            return None
        if split.labels.shape != (len(split.labels),) or split.labels.dtype != np.int64:
            return None
    return splits, note


def _read(path: Path) -> tuple[dict[str, Split], str]:
    images: dict[str, list[tuple[str, int, np.ndarray]]] = {name: [] for name in COUNTS}
    batches: dict[str, list[Split]] = {name: [] for name in COUNTS}
    lossy = False
    for name, content in read_files(path, _most_bytes):
        parts = Path(name).parts
        if _is_batch(parts):
            pixels, labels = read_batch(name, content)
            batches["test" if parts[-1] == "test_batch" else "train"].append(Split(images=pixels, labels=labels))
        else:
            if parts[-2] not in CIFAR10_LABELS:
                raise UserError(
                    f"{path} has a class {shortened(parts[-2])!r}; CIFAR-10's are {', '.join(CIFAR10_LABELS)}."
                )
            pixels = read_pixels(content, name, (32, 32))
            images[parts[-3]].append((name, CIFAR10_LABELS.index(parts[-2]), pixels))
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


def _is_batch(parts: tuple[str, ...]) -> bool:
    return bool(parts) and (parts[-1].startswith("data_batch_") or parts[-1] == "test_batch")


def _most_bytes(name: str) -> int:
    """How large a file of this name may be; 0 for what is neither a batch nor one of the data set's images."""
    parts = Path(name).parts
    if _is_batch(parts):
        return BATCH.bytes
    is_image = len(parts) >= 3 and parts[-3] in COUNTS and parts[-1].lower().endswith(IMAGE_SUFFIXES)
    return IMAGE.bytes if is_image else 0


def checksum(path: Path) -> str:
    """Of an archive's bytes; of a folder's file names, sizes and times, since reading 60,000 files takes a minute."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        for member in files_below(path):
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
