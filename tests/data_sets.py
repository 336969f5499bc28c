"""A CIFAR-10 in miniature, in the forms that the loader takes."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tvmflow.models import CIFAR10_LABELS

COUNTS = {"train": 40, "test": 20}


def images(split: str) -> np.ndarray:
    """uint8 N×32×32×3: each class has a colour of its own, so that a network can learn it."""
    rng = np.random.default_rng(len(split))
    shades = np.random.default_rng(5).integers(30, 220, (10, 1, 1, 3))
    noise = rng.integers(-20, 20, (COUNTS[split], 32, 32, 3))
    return (shades[labels(split)] + noise).clip(0, 255).astype(np.uint8)


def labels(split: str) -> np.ndarray:
    return np.arange(COUNTS[split]) % 10


def write_folder(root: Path, suffix: str = "png") -> Path:
    for split in COUNTS:
        for index, (image, label) in enumerate(zip(images(split), labels(split), strict=True)):
            folder = root / split / CIFAR10_LABELS[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:04}.{suffix}")
    return root


def write_archive(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.add(file, f"cifar10/{file.relative_to(root)}")
    return path


def write_batches(root: Path) -> Path:
    root.mkdir()
    for name, split, rows in (
        ("data_batch_1", "train", slice(0, 20)),
        ("data_batch_2", "train", slice(20, 40)),
        ("test_batch", "test", slice(None)),
    ):
        planes = images(split)[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
        content = {b"data": planes, b"labels": labels(split)[rows].tolist()}
        (root / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


def archive_of(members: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
