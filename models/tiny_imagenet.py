"""Tiny ImageNet from its standard folder: 200 classes of 500 images for training and 50 for validation, 64×64 pixels.

`wnids.txt` lists the classes, `words.txt` says what they are called, training images are in `train/<class>/images`,
those for validation in `val/images` with their classes in `val/val_annotations.txt`. The test images have no labels;
as is usual, the validation images stand in for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmflow.models.archives import read_within
from tvmflow.models.data import DataSet, Split, load_cifar10
from tvmflow.models.images import read_pixels
from tvmflow.spec import Preprocessing, UserError
from tvmflow.system.limits import IMAGE, LISTING
from tvmflow.system.untrusted import shortened

SIDE = 64
COUNTS = {"train": 100_000, "val": 10_000}

PREPROCESSING = Preprocessing(mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821))
"""Per-channel mean and standard deviation of the training images, as they are commonly given."""


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(DataSet):
    """`test` has the validation images; classes are numbered in the order of wnids.txt."""

    name: str = "Tiny ImageNet"
    preprocessing: Preprocessing = PREPROCESSING


def load_data_set(path: Path | str) -> DataSet:
    """Tiny ImageNet where `path` is a folder with wnids.txt, otherwise CIFAR-10. Raises UserError."""
    return load_tiny_imagenet(path) if Path(path, "wnids.txt").exists() else load_cifar10(path)


def load_tiny_imagenet(path: Path | str, *, counts: dict[str, int] | None = None) -> TinyImageNet:
    """Read the folder, which takes about a minute. Raises UserError. `counts` is for smaller sets of the same form."""
    path, counts = Path(path), counts or COUNTS
    classes = _classes(path / "wnids.txt")
    words = dict(line.split("\t", 1) for line in _text(path / "words.txt").splitlines() if "\t" in line)
    numbers = {name: number for number, name in enumerate(classes)}
    digest = hashlib.sha256()
    splits = {}
    for name, listed in (("train", _train_files(path, classes)), ("val", _val_files(path))):
        files = sorted(listed)
        if len(files) != counts[name]:
            raise UserError(
                f"{path} has {len(files):,} {name} images where Tiny ImageNet has {counts[name]:,}; it is incomplete "
                "or another data set."
            )
        if unknown := {wnid for _, wnid in files} - set(numbers):
            raise UserError(f"{path / name} has a class {shortened(min(unknown))!r}, which wnids.txt doesn't list.")
        images = np.empty((len(files), SIDE, SIDE, 3), np.uint8)
        for image, (file, _) in zip(images, files, strict=True):
            content = read_within(file, IMAGE.bytes)
            digest.update(content)
            image[:] = read_pixels(content, str(file), (SIDE, SIDE))
        splits[name] = Split(images=images, labels=np.array([numbers[wnid] for _, wnid in files], np.int64))
    return TinyImageNet(
        labels=tuple(words.get(name, name).split(",")[0].strip() for name in classes),
        train=splits["train"],
        test=splits["val"],
        sha256=digest.hexdigest(),
        note="validation images of Tiny ImageNet",
    )


def _train_files(path: Path, classes: list[str]) -> Iterator[tuple[Path, str]]:
    for name in classes:
        for file in (path / "train" / name / "images").glob("*.JPEG"):
            yield file, name


def _val_files(path: Path) -> Iterator[tuple[Path, str]]:
    listed = path / "val" / "val_annotations.txt"
    for number, line in enumerate(_text(listed).splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise UserError(f"Line {number} of {listed} isn't a file name, a tab and a class.")
        yield path / "val" / "images" / Path(fields[0]).name, fields[1]


def _classes(path: Path) -> list[str]:
    """The classes that wnids.txt lists, each the name of a folder. Raises UserError."""
    classes = _text(path).split()
    if not classes or len(classes) > LISTING.elements or len(set(classes)) != len(classes):
        raise UserError(
            f"{path} lists {len(classes):,} classes, where 1 to {LISTING.elements:,} different ones belong."
        )
    for name in classes:
        if not re.fullmatch(r"\w{1,64}", name, re.ASCII):
            raise UserError(f"{path} lists a class {shortened(name)!r}; they are called n01443537 and the like.")
    return classes


def _text(path: Path) -> str:
    try:
        return read_within(path, LISTING.bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} can't be read, which Tiny ImageNet's folder has: {error}.") from error
