"""Data sets, images and arrays that were made to do harm end in one sentence, and never in a crash or without memory.

Each file is read by a child with little memory, as the command line would: what it says and how it ends is held against
what is documented.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import data_sets
import hostile_data
import numpy as np
import pytest
from PIL import Image

from tvmflow.models.batches import read_batch
from tvmflow.models.data import load_cifar10, read_image
from tvmflow.models.examples import load_inputs
from tvmflow.models.tiny_imagenet import load_tiny_imagenet
from tvmflow.spec import TensorSpec, UserError
from tvmflow.system import limits
from tvmflow.system.untrusted import shortened

SECONDS = 20
MEMORY_BYTES = 2 << 30

CHILD = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
from pathlib import Path
from PIL import Image
from tvmflow.cli import outcome
from tvmflow.models import data, examples
from tvmflow.spec import TensorSpec
import typer

def read(kind, path):
    if kind == "cifar10":
        data.load_cifar10(path)
    elif kind == "array":
        examples.load_inputs(path, (TensorSpec(name="x", shape=(1, 3, 4, 4), dtype="float32"),), None)
    else:
        data.read_image(path, (1, 3, 32, 32))

for line in sys.stdin:
    kind, path, said = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        try:
            outcome.guarded(read)(kind, Path(path))
        except typer.Exit as end:
            os._exit(end.exit_code)
        except BaseException:
            os._exit(99)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Iterator[subprocess.Popen[str]]:
    """A process that has a child of its own read each file, and says how that ended."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "OPENBLAS_NUM_THREADS": "1",  # each of its threads reserves memory
    }
    command = [sys.executable, "-c", CHILD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def refused(reader, tmp_path) -> Callable[[str, Path], str]:
    """`refused(kind, path)` gives the sentence with which a child refuses a file, and asserts that it is one."""

    def call(kind: str, path: Path) -> str:
        message = tmp_path / "said"
        began = time.monotonic()
        print(kind, path, message, sep="\t", file=reader.stdin, flush=True)
        code = int(reader.stdout.readline())
        said = message.read_text()
        assert code == 4, (code, said)
        assert said.startswith("tvmflow: "), said
        assert said.endswith(".\n"), said
        assert said[:-1].isprintable(), said
        assert len(said) < 1000, said
        assert time.monotonic() - began < SECONDS
        return said

    return call


def parameters(files: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("content", files.values(), ids=list(files))


def test_batch_of_python_2():
    """As the archive of CIFAR-10's own page has it."""
    images, labels = read_batch("data_batch_1", hostile_data.python2_batch())
    assert labels.tolist() == [3, 7]
    assert images.shape == (2, 32, 32, 3)
    planes = np.frombuffer(bytes(range(256)) * 24, np.uint8).reshape(2, 3, 32, 32)
    np.testing.assert_array_equal(images[1, :, :, 2], planes[1, 2])


@parameters(hostile_data.BATCHES)
def test_hostile_batches(content, refused, tmp_path):
    said = refused("cifar10", data_sets.archive_of({"data_batch_1": content}, tmp_path / "data.tar"))
    assert "data_batch_1 is no CIFAR-10 batch" in said


@parameters(hostile_data.ARCHIVES)
def test_hostile_archives(content, refused, tmp_path):
    path = tmp_path / "data.tar.xz"
    path.write_bytes(content)
    refused("cifar10", path)


def test_archive_without_end(refused, tmp_path):
    """Over a gibibyte of zeros in 160 kB, as a member that nothing needs."""
    path = tmp_path / "data.tar.xz"
    path.write_bytes(hostile_data.xz_of_zeros(hostile_data._header("readme", 1 << 31), 1030))
    assert "unpacks to over" in refused("cifar10", path)


def test_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(limits.ARCHIVE, "elements", 10)
    path = data_sets.archive_of({f"{number}": b"" for number in range(11)}, tmp_path / "data.tar")
    with pytest.raises(UserError, match="over 10 members"):
        load_cifar10(path)


@parameters(hostile_data.IMAGES)
def test_hostile_images(content, refused, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    refused("image", path)


@pytest.mark.parametrize("name", ["a PNG of 65535×65535", "an animated PNG", "a text of 100 MB"])
def test_hostile_images_in_an_archive(name, refused, tmp_path):
    members = {"train/bird/1.png": hostile_data.IMAGES[name]}
    refused("cifar10", data_sets.archive_of(members, tmp_path / "data.tar"))


@parameters(hostile_data.ARRAYS)
def test_hostile_arrays(content, refused, tmp_path):
    path = tmp_path / "inputs.npy"
    path.write_bytes(content)
    refused("array", path)


@pytest.mark.parametrize("name", ["inputs.npy", "inputs.npz"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_are_read_in_every_order(name, dtype, tmp_path):
    values = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(dtype)
    for array in (values, np.asfortranarray(values), values.astype(values.dtype.newbyteorder())):
        (np.save if name.endswith("npy") else np.savez_compressed)(tmp_path / name, array)
        inputs = load_inputs(tmp_path / name, (TensorSpec(name="x", shape=(1, 3, 4, 4), dtype="float32"),), None)
        (taken,) = inputs.take(np.array([4, 0]))
        assert taken.dtype == np.float32
        np.testing.assert_array_equal(taken, values[[4, 0]].astype(np.float32))


def test_a_target_beyond_memory(tmp_path):
    hostile_data.NOISE.save(tmp_path / "image.png")
    with pytest.raises(UserError, match="no image"):
        read_image(tmp_path / "image.png", (1, 3, 1 << 20, 1 << 20))


def test_grey_of_16_bits_isn_t_all_white(tmp_path):
    """Pillow's own conversion makes white of all that is above 255."""
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", (1, 1, 32, 32))[:, :, 0], values >> 8)


def test_a_photograph_with_a_preview_is_the_photograph(tmp_path):
    hostile_data.NOISE.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    hostile_data.NOISE.save(tmp_path / "alone.jpg")
    expected = read_image(tmp_path / "alone.jpg", (1, 3, 32, 32))
    np.testing.assert_array_equal(read_image(tmp_path / "photo.jpg", (1, 3, 32, 32)), expected)


def test_a_pipe_is_no_data(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in refused("cifar10", tmp_path / "pipe")
    assert "neither a file nor a folder" in refused("array", tmp_path / "pipe")


def test_a_file_of_a_terabyte_is_not_read(refused, tmp_path):
    with (tmp_path / "data.tar").open("wb") as file:
        file.truncate(1 << 40)
    assert "the most" in refused("cifar10", tmp_path / "data.tar")


def test_a_large_file_among_the_images(refused, tmp_path):
    folder = data_sets.write_folder(tmp_path / "folder")
    with (folder / "train" / "bird" / "9999.png").open("wb") as file:
        file.truncate(1 << 40)
    assert "no file of this data set is so large" in refused("cifar10", folder)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 torn", b"\x93NUMPY"])
def test_a_damaged_cache_is_made_anew(content, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = data_sets.write_folder(tmp_path / "folder")
    first = load_cifar10(folder, counts=data_sets.COUNTS)
    (cached,) = (tmp_path / "cache" / "tvmflow").iterdir()
    cached.write_bytes(content)
    second = load_cifar10(folder, counts=data_sets.COUNTS)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert cached.stat().st_size > 1000


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("\n".join(f"n{number}" for number in range(10_001)), "lists 10,001 classes"),
        ("n1 n1", "lists 2 classes"),
        ("", "lists 0 classes"),
        ("../../etc", "lists a class"),
        ("n\0", "lists a class"),
    ],
)
def test_hostile_lists_of_classes(listed, words, tmp_path):
    (tmp_path / "wnids.txt").write_text(listed)
    (tmp_path / "words.txt").write_text("")
    with pytest.raises(UserError, match=words):
        load_tiny_imagenet(tmp_path)


def test_a_list_of_classes_of_a_terabyte(tmp_path):
    with (tmp_path / "wnids.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="no file of this data set is so large"):
        load_tiny_imagenet(tmp_path)


def test_words_of_a_file_are_one_line():
    assert shortened("a\x1b[31m\n\tb\0") == r"a\x1b[31m b\x00"
    assert len(shortened("x" * 10_000)) == 160
    assert shortened("é") == "é"
