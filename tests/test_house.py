"""Where things live: few rooms, public doors, and a kind of target that is one folder and two lines."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

from abacus import backend as abacus
from abacus import boards
from abacus.boards import ABACUS
from conftest import ROOT

from tvmflow import pipeline, targets
from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.bundles.verify import verify_bundle
from tvmflow.report.survey import survey
from tvmflow.system import moved

FOLDERS = ("tvmflow", "schedules", "targets", "models")
KINDS = {"arm_cpu", "cuda", "vta", "cortex_m"}
ROOMS = ("targets/", "schedules/", "tvmflow/pipeline.py")
"""Where kinds are at home."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of all that is imported, anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_has_few_rooms():
    names = {path.name for path in (ROOT / "tvmflow").iterdir() if path.name != "__pycache__"}
    assert len(names) <= 14, sorted(names)


def test_what_a_folder_keeps_to_itself_is_imported_in_it_alone():
    """A module whose name begins with an underscore belongs to its folder and to the folders in it."""
    for name, tree in sources():
        own = name if name.startswith("tvmflow/") else f"tvmflow/{name}"
        for imported in imports(tree):
            parts = imported.split(".")
            private = next((place for place, part in enumerate(parts) if part[0] == "_" and part[:2] != "__"), None)
            if parts[0] == "tvmflow" and private is not None and (ROOT / _path(parts[: private + 1])).exists():
                assert own.startswith("/".join(parts[:private]) + "/"), f"{name} imports {imported}"


def _path(parts: list[str]) -> str:
    beside = parts[1] in ("schedules", "targets", "models")
    return "/".join(parts[1:] if beside else parts) + ".py"


def test_kinds_of_target_are_named_in_their_rooms():
    naming = {
        name
        for name, tree in sources()
        if not name.startswith(ROOMS)
        and any(isinstance(node, ast.Constant) and node.value in KINDS for node in ast.walk(tree))
    }
    assert not naming
    own = [f"tvmflow.{room}.{kind}." for room in ("targets", "schedules") for kind in KINDS]
    importing = {
        name
        for name, tree in sources()
        if not name.startswith(ROOMS) and any(imported.startswith(tuple(own)) for imported in imports(tree))
    }
    assert not importing


def test_a_kind_is_one_folder_and_two_lines(tiny, tmp_path, monkeypatch):
    """The third line is its list of stages; the commands ask for no more."""
    monkeypatch.setitem(targets.KINDS, ABACUS.kind, boards.KIND)
    monkeypatch.setitem(targets.TARGETS, ABACUS.name, ABACUS)
    monkeypatch.setitem(pipeline.STAGES, ABACUS.kind, (*pipeline.CPU, abacus.count_beads))
    built = build(tiny, targets.find(None, ABACUS.name), tmp_path / "tiny")
    assert built.manifest["verify"]["method"] == "by hand"
    assert (built.manifest["target"]["frame"], built.manifest["target"]["gpu"]) == ({"rods": 13}, None)
    with open_bundle(tmp_path / "tiny") as bundle:
        assert (bundle.target.name, bundle.target.kind) == ("abacus-1", "abacus")
        assert boards.Rods.of(bundle.target).rods == 13
        assert [layer.details["beads"] for layer in bundle.layers] == [9 * layer.macs for layer in bundle.layers]
        assert verify_bundle(bundle)["passed"] is True
    report = survey(tmp_path / "tiny", seconds=0.1)
    assert report["latency"] is None
    own = tmp_path / "small.toml"
    own.write_text('extends = "abacus-1"\n[frame]\nrods = 9\n')
    assert targets.load_toml(own).facts == boards.Rods(rods=9)
    assert "counted so long" in json.dumps(report)


OLD = """
import sys
from tvmflow import backends, targets
from tvmflow.build import build
from tvmflow.bundle import open_bundle
from tvmflow.frontend import from_module, import_model, parse_input_shape
from tvmflow.infer import infer
from tvmflow.integer import load, save
from tvmflow.integer_frontend import import_quantized
from tvmflow.quantize import Method
from tvmflow.schedules.integer import RULES
from tvmflow.survey import survey
from tvmflow.toolchain import select_linker
from tvmflow.verify import compare, find_runner, verify_bundle
assert backends.of(targets.TARGETS["host"]).build is build
assert backends.of(targets.TARGETS["host"]).find_runner
try:
    from tvmflow.verify import nothing
except ImportError as error:
    print(error)
"""


def test_old_names_of_documented_modules_go_on_working():
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot import name 'nothing'" in done.stdout


def test_nothing_here_uses_old_names():
    old = {f"tvmflow.{name}" for name in moved.MOVED}
    for name, tree in sources():
        used = {imported for imported in imports(tree) if imported in old or imported.rpartition(".")[0] in old}
        assert not used, name
