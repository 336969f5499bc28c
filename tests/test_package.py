"""What is shipped is complete, every registry knows its files, and importing costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = {
    "schedules": "tvmflow/schedules",
    "targets": "tvmflow/targets",
    "models": "tvmflow/models",
    "tvmflow": "tvmflow",
}
SHIPPED = {".in", ".py", ".c", ".h", ".j2", ".typed", ".safetensors", ".json", ".jsonl", ".md"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and sdist, the wheel built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True, text=True
    )
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def sources() -> set[str]:
    """Every file of the four folders that belongs to the product, by its name in a wheel."""
    return {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED and "__pycache__" not in path.parts
    }


def test_wheel_holds_every_file_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "tvmflow = tvmflow.cli:main" in wheel.read(metadata).decode()
    assert names == sources()


def test_sdist_can_be_built_from(distributions):
    """The wheel was built from it; tests, docs and licence come along."""
    with tarfile.open(distributions[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "docs/report.schema.json"} <= names


@pytest.mark.parametrize("form", ["wheel", "checkout"])
def test_it_works_as(distributions, tmp_path, form):
    """Unpacked as an installer would, and as a bare checkout, each away from the other."""
    if form == "wheel":
        with zipfile.ZipFile(distributions[0]) as wheel:
            wheel.extractall(tmp_path)
    root = tmp_path if form == "wheel" else ROOT
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import tvmflow, tvmflow.schedules, tvmflow.targets, tvmflow.models, tvmflow.cli\n"
        "print(tvmflow.__file__, tvmflow.models.__file__, len(tvmflow.models.MODELS))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    files = done.stdout.split()
    assert all(Path(file).is_relative_to(root) for file in files[:2])
    assert int(files[2]) > 0


@pytest.mark.packages
def test_an_installed_wheel_builds_and_reports_a_network_of_the_current_folder(distributions, tmp_path):
    """In an environment of its own that sees what this one has installed, so that nothing is downloaded."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", distributions[0]], check=True, env=environment)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    present = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "present.pth").write_text("\n".join(present))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mynet.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 4)).eval()\n"
    )

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run(python, "-c", "import tvmflow; print(tvmflow.__file__)").strip()).is_relative_to(packages)
    tvmflow = tmp_path / "env" / "bin" / "tvmflow"
    built = run(tvmflow, "build", "--model", "mynet:make", "--input-shape", "1x3x9x9", "-o", "bundle")
    assert "passed (native, 12 vectors)" in built
    run(tvmflow, "report", "bundle", "--seconds", "0.1", "-o", ".")
    (report,) = json.loads((tmp_path / "here" / "report.json").read_text())["reports"]
    assert report["model"]["source"] == "mynet:make"
    assert report["verify"]["passed"] is True
    assert report["latency"]["basis"] == "measured"
    assert (tmp_path / "here" / "report.html").is_file()


def test_schedules_are_all_registered():
    from tvmflow.schedules import cpu, cuda
    from tvmflow.schedules.cpu import integer
    from tvmflow.schedules.cuda import integer as integer_cuda

    registries = {"cpu": cpu, "cpu/integer": integer, "cuda": cuda, "cuda/integer": integer_cuda}
    for folder, rules in ((f"schedules/{name}", registry.RULES) for name, registry in registries.items()):
        files = {path.stem for path in (ROOT / folder).glob("*.py") if not path.name.startswith("_")}
        assert files == set(rules)


def test_targets_are_all_registered():
    from tvmflow import targets
    from tvmflow.spec import Target

    kinds = [path.parent.name for path in ROOT.glob("targets/*/boards.py")]
    assert len(kinds) == 4
    for name in kinds:
        module = import_module(f"tvmflow.targets.{name}.boards")
        named = [value for key, value in vars(module).items() if isinstance(value, Target) and key != "COMPUTER"]
        assert module.BOARDS
        assert all(targets.TARGETS[board.name] is board for board in (*named, *module.BOARDS))


@pytest.mark.parametrize(
    "module",
    [
        "tvmflow",
        "tvmflow.cli",
        "tvmflow.spec",
        "tvmflow.targets",
        "tvmflow.models",
        "tvmflow.bundles.bundle",
        "tvmflow.tune.command",
        "tvmflow.tune.database",
    ],
)
def test_importing_is_cheap(module):
    program = f"import sys, {module}; print([name for name in ('tvm', 'torch', 'onnx') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_versions_are_pinned_where_it_matters():
    tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "apache-tvm==0.27.0.post1" in project["dependencies"]
    assert any(entry.startswith("apache-tvm-ffi==0.1.14") for entry in project["dependencies"])


def test_the_citation_names_this_version_and_the_paper():
    import tvmflow

    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(line.split(": ", 1) for line in text.splitlines() if line[:1].isalpha() and ": " in line)
    assert fields["version"] == tvmflow.__version__
    assert fields["license"] == "Apache-2.0"
    (doi,) = (line.split(": ")[1] for line in text.splitlines() if line.strip().startswith("doi: "))
    assert f"https://doi.org/{doi}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_wheel_says_what_it_is_for(distributions):
    with zipfile.ZipFile(distributions[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    assert "Classifier: Topic :: Software Development :: Embedded Systems" in metadata
    assert "Keywords: compiler" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_schema_is_valid():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(json.loads((ROOT / "docs" / "report.schema.json").read_text()))
