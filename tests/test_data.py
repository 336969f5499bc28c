"""CIFAR-10 is the same in every form, and what is none is refused."""

from __future__ import annotations

import pickle

import data_sets
import numpy as np
import pytest

from tvmflow.models import CIFAR10_LABELS
from tvmflow.models.data import load_cifar10
from tvmflow.spec import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tvmflow"


def as_expected(data) -> None:
    for split, loaded in (("train", data.train), ("test", data.test)):
        assert loaded.images.shape == (data_sets.COUNTS[split], 32, 32, 3)
        for image, label in zip(data_sets.images(split), data_sets.labels(split), strict=True):
            matches = [index for index, other in enumerate(loaded.images) if np.array_equal(image, other)]
            assert [loaded.labels[index] for index in matches] == [label]


def test_folder_archive_and_batches_hold_the_same(tmp_path):
    folder = data_sets.write_folder(tmp_path / "folder")
    for path in (
        folder,
        data_sets.write_archive(folder, tmp_path / "cifar.tar.xz"),
        data_sets.write_batches(tmp_path / "cifar-10-batches-py"),
    ):
        as_expected(load_cifar10(path, counts=data_sets.COUNTS))


def test_second_time_comes_from_the_cache(tmp_path, cache, monkeypatch):
    path = data_sets.write_archive(data_sets.write_folder(tmp_path / "folder"), tmp_path / "cifar.tar.xz")
    first = load_cifar10(path, counts=data_sets.COUNTS)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("tvmflow.models.data._read", None)
    second = load_cifar10(path, counts=data_sets.COUNTS)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert (first.sha256, first.note) == (second.sha256, second.note)


def test_jpeg_is_said_to_be_re_encoded(tmp_path):
    data = load_cifar10(data_sets.write_folder(tmp_path / "folder", "jpg"), counts=data_sets.COUNTS)
    assert "JPEG re-encoded" in data.note


def test_incomplete(tmp_path):
    with pytest.raises(UserError, match=r"40 train images where CIFAR-10 has 50,000"):
        load_cifar10(data_sets.write_folder(tmp_path / "folder"))


def test_unusable(tmp_path):
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(1000))
    (tmp_path / "empty").mkdir()
    bird = f"train/{CIFAR10_LABELS[2]}/1.png"
    cases = {
        tmp_path / "missing": "nothing at",
        tmp_path / "noise": "can't be read as an archive",
        tmp_path / "empty": "no CIFAR-10 images",
        data_sets.archive_of({"train/dragon/1.png": b"x"}, tmp_path / "class.tar"): "'dragon'",
        data_sets.archive_of({bird: b"\x89PNG broken"}, tmp_path / "image.tar"): "can't be decoded",
        data_sets.archive_of({"data_batch_1": b"\x80\x02nonsense"}, tmp_path / "batch.tar"): "no CIFAR-10 batch",
    }
    for path, words in cases.items():
        with pytest.raises(UserError, match=words):
            load_cifar10(path, counts=data_sets.COUNTS)


def test_batches_run_no_code(tmp_path):
    trace = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (trace.write_text, ("ran",))

    path = data_sets.archive_of({"data_batch_1": pickle.dumps(Payload(), protocol=2)}, tmp_path / "evil.tar")
    with pytest.raises(UserError, match="no CIFAR-10 batch needs"):
        load_cifar10(path, counts=data_sets.COUNTS)
    assert not trace.exists()
