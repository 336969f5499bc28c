"""Tiny ImageNet's standard folder, in miniature: read, trained on and evaluated; what is none is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tvmflow.bundles.evaluate import evaluate
from tvmflow.models import tiny_imagenet, train
from tvmflow.spec import UserError

WNIDS = ("n02000002", "n01000001", "n03000003")
COUNTS = {"train": 6, "val": 3}


@pytest.fixture
def folder(tmp_path):
    """Each class has a shade of its own; its second training image is grey, as some of the real ones are."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01000001\tgoldfish, Carassius auratus\nn02000002\tbullfrog\nn09999999\tunused\n")
    annotations = []
    for number, wnid in enumerate(WNIDS):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        shade = 60 * (number + 1)
        Image.new("RGB", (64, 64), (shade, 0, 0)).save(images / f"{wnid}_0.JPEG")
        Image.new("L", (64, 64), shade).save(images / f"{wnid}_1.JPEG")
        Image.new("RGB", (64, 64), (shade, 0, 0)).save(root / "val" / "images" / f"val_{number}.JPEG")
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(annotations))
    return root


def load(folder):
    return tiny_imagenet.load_tiny_imagenet(folder, counts=COUNTS)


def test_images_labels_and_names(folder):
    data = load(folder)
    assert data.labels == ("bullfrog", "goldfish", "n03000003")
    assert data.train.images.shape == (6, 64, 64, 3)
    for split in (data.train, data.test):
        assert (np.abs(split.images[:, 32, 32, 0].astype(int) - 60 * (split.labels + 1)) < 4).all()
    grey = data.train.images[1, 32, 32]
    assert grey.min() == grey.max()
    assert load(folder).sha256 == data.sha256


def test_damaged_folders_are_refused(folder):
    def without(path):
        copy = folder.with_name("damaged")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        (copy / path).unlink()
        return copy

    for path, words in (
        ("words.txt", "words.txt can't be read"),
        ("train/n01000001/images/n01000001_0.JPEG", "5 train images where Tiny ImageNet has 6"),
        ("val/images/val_1.JPEG", "val_1.JPEG can't be read"),
    ):
        with pytest.raises(UserError, match=words):
            load(without(path))
    damaged = without("wnids.txt")
    (damaged / "wnids.txt").write_text("\n".join((*WNIDS[:2], "n07000007")))
    with pytest.raises(UserError, match="4 train images"):
        load(damaged)
    Image.new("RGB", (32, 32)).save(folder / "val" / "images" / "val_0.JPEG")
    with pytest.raises(UserError, match="32×32 pixels"):
        load(folder)


COMMAND_LINE = f"""
from tvmflow.cli import main
from tvmflow.models import tiny_imagenet
tiny_imagenet.COUNTS = {COUNTS}
main()
"""


def test_train_and_evaluate(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "COUNTS", COUNTS)
    out = tmp_path / "out"
    options = ["--data", str(folder), "--epochs", "1", "--work-dir", str(tmp_path / "work"), "-o", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, "train", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((out / "dilated-net.json").read_text())
    assert (facts["data_set"], facts["config"]["network"]["classes"]) == ("Tiny ImageNet", 3)
    assert "1×3×64×64" in (out / "dilated-net.md").read_text()
    weights = str(out / "dilated-net.safetensors")
    assert evaluate(folder, weights)["accuracy"] == facts["accuracy"]


def test_networks_of_other_classes_are_refused(folder, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "COUNTS", COUNTS)
    with pytest.raises(UserError, match=r"has 10 classes; Tiny ImageNet, at .* has 3"):
        evaluate(folder)
    with pytest.raises(UserError, match="doesn't say which network"):
        evaluate(folder, str(folder / "no.safetensors"))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"classes": 3e6}, "classes is 3000000.0, where a whole number belongs"),
        ({"classes": 3_000_000}, "classes is 3000000, where 1048576 or less belongs"),
        ({"classes": 65_000}, r"has 6\d,\d+,\d+ parameters, for which big.safetensors is too small"),
        ({"widths": [1], "strides": []}, "strides is a list of 0"),
        ({"widths": "wide"}, "widths is 'wide', where a list belongs"),
        ([], "network is a list of 0, where an object belongs"),
    ],
)
def test_cards_that_would_fill_the_memory_or_are_none(tmp_path, network, words):
    weights = tmp_path / "big.safetensors"
    weights.write_bytes(b"")
    weights.with_suffix(".json").write_text(json.dumps({"config": {"network": network}}))
    with pytest.raises(UserError, match=rf"doesn't say which network big\.safetensors is.*{words}"):
        train.exported(weights)
