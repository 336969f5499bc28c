"""A bundle is whole or isn't there, and nothing that was tampered with is opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tvmflow.bundles import bundle as bundles
from tvmflow.bundles.build import build
from tvmflow.spec import UserError
from tvmflow.system import limits
from tvmflow.targets import TARGETS


@pytest.fixture
def copy(host_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(host_bundle, tmp_path / "copy"))


@pytest.fixture(scope="module")
def packed(tiny, tmp_path_factory) -> Path:
    """`tiny` built as an archive. Don't change it: ask for `archive`."""
    path = tmp_path_factory.mktemp("packed") / "tiny.tar"
    build(tiny, TARGETS["host"], path)
    return path


@pytest.fixture
def archive(packed, tmp_path) -> Path:
    return Path(shutil.copy(packed, tmp_path))


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words), bundles.open_bundle(path):
        pass


def change_manifest(root: Path, **changes) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_what_is_written_is_read(host_bundle, tiny):
    with bundles.open_bundle(host_bundle) as bundle:
        assert bundle.inputs == tiny.inputs
        assert bundle.outputs == tiny.outputs
        assert bundle.target.name == "host"
        assert bundle.target.tvm["mcpu"] != "native"
        for ours, theirs in zip(bundle.vectors(), tiny.vectors, strict=True):
            np.testing.assert_array_equal(ours.inputs[0], theirs.inputs[0])
            np.testing.assert_array_equal(ours.outputs[0], theirs.outputs[0])


def test_archive_holds_the_same(archive, host_bundle):
    with bundles.open_bundle(archive) as packed, bundles.open_bundle(host_bundle) as folder:
        assert packed.manifest["layers"] == folder.manifest["layers"]
        assert set(packed.manifest["members"]) == set(folder.manifest["members"])


def test_manifest_names_every_file(host_bundle):
    manifest = json.loads((host_bundle / "manifest.json").read_text())
    files = {path.relative_to(host_bundle).as_posix() for path in host_bundle.rglob("*") if path.is_file()}
    assert files == {*manifest["members"], "manifest.json"}
    for name, entry in manifest["members"].items():
        assert hashlib.sha256((host_bundle / name).read_bytes()).hexdigest() == entry["sha256"]


def test_runner_gives_and_checks_the_golden_outputs(host_bundle, copy):
    script, vector = copy / "run.py", next(iter(sorted((copy / "vectors").iterdir())))
    done = subprocess.run(
        [sys.executable, script, vector / "input-0.npy"], capture_output=True, text=True, check=True, cwd="/"
    )
    expected = np.load(vector / "output-0.npy")
    shown = np.array(done.stdout.replace("[", " ").replace("]", " ").split(), float)
    np.testing.assert_allclose(shown, expected.ravel(), atol=1e-5)
    expected[0, 0] += 4e-5 * np.abs(expected).max()
    np.save(vector / "output-0.npy", expected)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stdout) == (3, f"11 of 12 golden vectors agree {vector.name}\n")


# ----------------------------------------------------------------------------------------------------------- attacks


@pytest.mark.parametrize("name", ["model.so", "README.md", "run.py", "vectors/000-noise-0/output-0.npy"])
def test_changed_member(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    refused(copy, "has been changed")


def test_missing_member(copy):
    (copy / "run.py").unlink()
    refused(copy, "lacks run.py")


def test_extra_member(copy):
    (copy / "extra.so").write_bytes(b"")
    refused(copy, "extra.so")


def test_what_a_newer_format_adds_is_left_alone(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for record in (manifest["layers"][0], manifest["target"], manifest["target"]["cpu"]):
        record["added_later"] = 1
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": "1.99", "added_later": {}}))
    with bundles.open_bundle(copy) as bundle:
        assert bundle.layers[0].macs == manifest["layers"][0]["macs"]
        assert bundle.target.name == "host"


def test_link_in_a_folder(copy):
    (copy / "run.py").unlink()
    (copy / "run.py").symlink_to("/etc/hostname")
    refused(copy, "no links")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "no bundle of tvmflow"),
        ({"schema_version": "9.0"}, "bundle format 9.0"),
        ({"layers": 3}, "layers is 3, where a list belongs"),
        ({"inputs": [{"name": "x"}]}, r"inputs\[0\] lacks 'shape', 'dtype'"),
        ({"members": {"model.so": 5}}, r"members.model.so is 5, where an object belongs"),
        ({"members": {"../up": {"bytes": 1, "sha256": ""}}}, "leads out"),
        ({"vectors": ["../../etc"], "tolerances": None}, "leads out"),
        ({"library": "/bin/true"}, "isn't among its members"),
        ({"target": {"name": "host"}}, "target lacks 'kind'"),
    ],
)
def test_manifest_that_lies(copy, changes, words):
    change_manifest(copy, **changes)
    refused(copy, words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1e999}'])
def test_manifest_that_is_none(copy, text):
    (copy / "manifest.json").write_text(text)
    refused(copy, r"manifest|no bundle")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("target.kind", "toaster", r"target\.kind is 'toaster', not 'llvm' or"),
        ("target.kind", "vta", r"target is of kind vta and lacks 'vta'"),
        ("target.kind", "cuda", r"target is of kind cuda and lacks 'gpu'"),
        ("target.gpu", {"model": 5}, r"target\.gpu"),
        ("target.cpu.cores", "4", r"target\.cpu\.cores is '4', where a whole number belongs"),
        ("target.cpu.cores", True, r"target\.cpu\.cores is True"),
        ("target.name", "../up", r"target\.name is '\.\./up'"),
        ("target.name", "board\n", r"target\.name is 'board\\n'"),
        ("target.elf.bits", 65, r"target\.elf\.bits is 65"),
        ("target.schedules", "rule", r"target\.schedules is 'rule', where a list belongs"),
        ("target.tvm", [], r"target\.tvm is a list of 0"),
        ("target.arithmetic", "int4", r"target\.arithmetic is 'int4'"),
        ("model.name", ["x"], r"model\.name is a list of 1"),
        ("model.name", "\ud800", r"half of a surrogate pair"),
        ("model.macs", 1.5, r"model\.macs is 1\.5"),
        ("labels", [1], r"labels\[0\] is 1, where text belongs"),
        ("inputs.0.shape", [-1, 3], r"inputs\[0\]\.shape\[0\] is -1"),
        ("inputs.0.shape", "3", r"inputs\[0\]\.shape is '3'"),
        ("inputs.0.dtype", "object", r"inputs\[0\]\.dtype is 'object'"),
        ("inputs", [], r"inputs is a list of 0, where 1 or more"),
        ("layers.0.modules", "abc", r"layers\[0\]\.modules is 'abc'"),
        ("layers.0.macs", -5, r"layers\[0\]\.macs is -5"),
        ("layers.0.details", [], r"layers\[0\]\.details is a list of 0"),
        ("memory.weights_bytes", "many", r"memory\.weights_bytes is 'many'"),
        ("verify", {}, r"verify lacks 'passed', 'method'"),
        ("versions", {}, r"versions lacks 'tvmflow'"),
        ("vectors", [3], r"vectors\[0\] is 3, where text belongs"),
        ("tolerances", [], r"tolerances aren't one for each output"),
        ("tolerances", {"a": 1}, r"tolerances is an object"),
        ("tolerances.0.0", "small", r"tolerances\[0\]\[0\] is 'small'"),
        ("preprocessing", {"mean": [0.5], "std": [0]}, r"preprocessing"),
        ("preprocessing", {"mean": [0.5, 0.5], "std": [1]}, r"aren't as long as each other"),
        ("quantization", {"scheme": "x"}, r"quantization"),
        ("schema_version", 1, r"bundle format 1;"),
        ("library", ["model.so"], r"library is a list of 1"),
        ("members.model\x1bso", {"bytes": 1, "sha256": ""}, r"no name for a file"),
    ],
)
def test_manifests_that_lie_below_the_top(copy, path, value, words):
    """All hashes are right: whoever writes a manifest writes these as well."""
    manifest = json.loads((copy / "manifest.json").read_text())
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    holder = manifest
    for step in steps:
        holder = holder[step]
    holder[last] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=words) as caught, bundles.open_bundle(copy) as bundle:
        bundle.vectors()
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_relative_error_of_zero_is_infinite(copy):
    """Builds wrote it so once, which strict JSON has no word for."""
    manifest = json.loads((copy / "manifest.json").read_text())
    change_manifest(copy, verify={**manifest["verify"], "max_rel_error": float("inf")})
    with bundles.open_bundle(copy) as bundle:
        assert bundle.manifest["verify"]["max_rel_error"] is None
    change_manifest(copy, model={**manifest["model"], "macs": float("nan")})
    refused(copy, r"model\.macs is None")


def test_a_vector_that_claims_terabytes(copy):
    name = "vectors/000-noise-0/input-0.npy"
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
    (copy / name).write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["members"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with (
        bundles.open_bundle(copy) as bundle,
        pytest.raises(UserError, match=r"can't be read as a \.npy file: .* 1,000,000,000,000 elements of float32"),
    ):
        bundle.vectors()


def test_foreign_architecture(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["target"]["elf"] = {"bits": 64, "machine": "RISC-V"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(copy, "needs 64-bit RISC-V")


def test_no_bundle_at_all(tmp_path):
    refused(tmp_path / "nothing", "no bundle at")
    refused(tmp_path, "no manifest.json")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "no intact bundle")


def repack(archive: Path, out: Path, change=lambda member, content: (member, content), extra=()) -> Path:
    with tarfile.open(archive) as old, tarfile.open(out, "w") as new:
        for member in old:
            new.addfile(*change(member, io.BytesIO(old.extractfile(member).read())))
        for member, content in extra:
            new.addfile(member, io.BytesIO(content))
    return out


def entry(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (entry("/tmp/absolute"), "leads out"),
        (entry("../escape"), "leads out"),
        (entry("vectors/../../escape"), "leads out"),
        (entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file"),
        (entry("hard", type=tarfile.LNKTYPE, linkname="model.so"), "no plain file"),
        (entry("device", type=tarfile.CHRTYPE), "no plain file"),
        (entry("model.so", b"other"), "two members"),
        (entry("extra", b"?"), "extra"),
        (entry("sparse", type=tarfile.GNUTYPE_SPARSE), "no plain file"),
        (entry("fifo", type=tarfile.FIFOTYPE), "no plain file"),
        (entry("folder", type=tarfile.DIRTYPE), "no plain file"),
        (entry("./model.so", b"other"), "two members"),
        (entry("x" * 300, b"other"), "no name for a file"),
        (entry("a\x1b[31m", b"other"), "no name for a file"),
        (entry("model.so/below", b"other"), "can't be unpacked"),
        (entry("pax", b"", pax_headers={"GNU.sparse.size": "999999999999", "path": "x" * 101}), "pax header"),
    ],
)
def test_hostile_archives(archive, tmp_path, extra, words):
    before = sorted(tmp_path.iterdir())
    refused(repack(archive, tmp_path / "bad.tar", extra=[extra]), words)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "bad.tar"])


def test_oversize_member(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(limits.MEMBER, "bytes", 10_000)
    refused(archive, "the most is 10,000")


@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_truncated_archive(archive, kept):
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    refused(archive, r"tiny\.tar")


# ----------------------------------------------------------------------------------------------------------- writing


def test_only_bundles_are_replaced(tiny, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="left as it is"):
        build(tiny, TARGETS["host"], tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_bundle_replaces_bundle(tiny, copy):
    before = (copy / "manifest.json").read_bytes()
    build(tiny, TARGETS["host"], copy)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    assert (copy / "manifest.json").read_bytes() == before, "the same build gives the same bytes"


def test_nothing_is_left_when_writing_fails(tiny, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles.os, "rename", full)
    with pytest.raises(UserError, match="disk is full"):
        build(tiny, TARGETS["host"], tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_no_folder_to_write_into(tiny, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        build(tiny, TARGETS["host"], tmp_path / "a" / "b")


# ------------------------------------------------------------------------------------------------------ destinations


@pytest.fixture
def write(tiny, host_bundle):
    """`write(out)` writes the bundle again, without compiling."""

    def again(out: Path, library: Path = host_bundle / "model.so") -> bundles.Bundle:
        with bundles.open_bundle(host_bundle) as opened:
            manifest = opened.manifest
        facts = {key: manifest[key] for key in ("versions", "memory", "verify")}
        return bundles.write(out, program=tiny, target=TARGETS["host"], library=library, **facts)

    return again


def whole(folder: Path) -> bool:
    with bundles.open_bundle(folder) as bundle:
        return bundle.name == "tiny" and not list(folder.parent.glob(".tvmflow-*"))


@pytest.mark.parametrize("given", [".", "../this", "{}", "{}/", "../link"])
def test_a_folder_that_exists_is_filled(write, host_bundle, tmp_path, monkeypatch, given):
    """Empty first, then with a bundle in it: the folder stays the same, be it the current one or a link's."""
    folder = tmp_path / "this"
    folder.mkdir(mode=0o750)
    (tmp_path / "link").symlink_to(folder)
    before = folder.stat()
    monkeypatch.chdir(folder)
    for _ in range(2):
        write(Path(given.format(folder)))
        assert whole(folder)
        (folder / ".tvmflow-0123456789ab").mkdir()  # what a build that was killed may leave
    assert (folder.stat().st_ino, folder.stat().st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "link").is_symlink()
    assert Path("manifest.json").exists()


def test_a_mounted_folder_is_filled(write, tmp_path):
    folder = tmp_path / "mounted"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("a tmpfs can be mounted by root only")
    try:
        write(folder)
        write(folder)
        assert whole(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_what_is_of_no_bundle_stays(write, copy, tmp_path):
    (copy / "notes").mkdir()
    (copy / "notes" / "of mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for out, words in (
        (copy, "holds 'notes/of mine.txt', which is of no bundle"),
        (tmp_path / "file", "exists and is no bundle"),
        (tmp_path / "dangling", "is a link to nothing"),
        (tmp_path / "no" / "where", "There is no folder"),
    ):
        with pytest.raises(UserError, match=words):
            bundles.check_destination(out)
        with pytest.raises(UserError, match=words):
            write(out)
    assert (copy / "notes" / "of mine.txt").read_text() == (tmp_path / "file").read_text() == "keep"
    shutil.rmtree(copy / "notes")
    manifest = json.loads((copy / "manifest.json").read_text())
    change_manifest(copy, members={**manifest["members"], "../file": {"bytes": 4, "sha256": ""}})
    write(copy)
    assert (tmp_path / "file").read_text() == "keep"
    assert whole(copy)


def test_what_was_changed_since_stays(write, copy, archive, tmp_path):
    """A file of ours that was edited, a link in its place, and archives that merely begin with a manifest.json."""
    (copy / "README.md").write_text("notes of mine")
    with pytest.raises(UserError, match=r"holds 'README\.md', which isn't as tvmflow wrote it"):
        write(copy)
    assert (copy / "README.md").read_text() == "notes of mine"
    (copy / "README.md").unlink()
    (tmp_path / "mine.md").write_text("notes of mine")
    (copy / "README.md").symlink_to(tmp_path / "mine.md")
    with pytest.raises(UserError, match=r"holds 'README\.md', which isn't as tvmflow wrote it"):
        write(copy)
    assert (copy / "README.md").is_symlink()
    (copy / "README.md").unlink()
    (copy / ".tvmflow-notes").mkdir()
    (copy / ".tvmflow-notes" / "mine").write_text("keep")
    with pytest.raises(UserError, match=r"holds '\.tvmflow-notes/mine', which is of no bundle"):
        write(copy)
    assert (copy / ".tvmflow-notes" / "mine").read_text() == "keep"


@pytest.mark.parametrize("kind", ["foreign", "with a photo", "changed", "broken"])
def test_archives_that_are_not_ours_stay(write, archive, tmp_path, kind):
    if kind == "foreign":
        (tmp_path / "manifest.json").write_text('{"name": "an extension"}')
        (tmp_path / "photo.jpg").write_bytes(b"the only one")
        with tarfile.open(archive, "w") as made:
            made.add(tmp_path / "manifest.json", "manifest.json")
            made.add(tmp_path / "photo.jpg", "photo.jpg")
    elif kind == "with a photo":
        (tmp_path / "photo.jpg").write_bytes(b"the only one")
        with tarfile.open(archive, "a") as made:
            made.add(tmp_path / "photo.jpg", "photo.jpg")
    else:
        content = bytearray(archive.read_bytes())
        with tarfile.open(archive) as made:
            member = made.getmember("README.md")
        content[member.offset_data if kind == "changed" else member.offset] ^= 1
        archive.write_bytes(content)
    before = archive.read_bytes()
    words = {"foreign": "no bundle", "with a photo": "'photo.jpg'", "changed": "'README.md'", "broken": "a damaged one"}
    with pytest.raises(UserError, match=re.escape(words[kind])):
        write(archive)
    assert archive.read_bytes() == before


def test_an_archive_of_ours_is_replaced(write, archive):
    write(archive)
    with bundles.open_bundle(archive) as bundle:
        assert bundle.name == "tiny"


def test_a_write_that_fails_leaves_the_old_bundle(write, copy, tmp_path, monkeypatch):
    rename, renamed = os.rename, []

    def fail_at_the_last(source, destination):
        if Path(destination) == copy / "manifest.json" and not renamed:
            renamed.append(destination)
            raise OSError(5, "Input/output error")
        rename(source, destination)

    before = hashlib.sha256((copy / "manifest.json").read_bytes()).hexdigest()
    other = tmp_path / "model.so"
    other.write_bytes((copy / "model.so").read_bytes() + b"\0")
    monkeypatch.setattr(os, "rename", fail_at_the_last)
    with pytest.raises(UserError, match=r"can't be written .*Input/output error; it was left as it was"):
        write(copy, other)
    assert renamed
    with bundles.open_bundle(copy) as bundle:
        assert bundle.digest == before
    assert not list(copy.glob(".tvmflow-*"))


def test_an_archive_comes_back_if_a_folder_cannot_take_its_place(write, archive, tmp_path, monkeypatch):
    place, rename = tmp_path / "without-suffix", os.rename
    shutil.copyfile(archive, place)
    before = place.read_bytes()

    def fail(source, destination):
        if Path(destination) == place and Path(source).name == "bundle":
            raise OSError(5, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="it was left as it was"):
        write(place)
    assert place.read_bytes() == before


def test_names_as_long_as_they_may_be(write, tmp_path):
    write(tmp_path / ("x" * 255))
    write(tmp_path / ("y" * 251 + ".tar"))
    with bundles.open_bundle(tmp_path / ("y" * 251 + ".tar")) as bundle:
        assert bundle.name == "tiny"
