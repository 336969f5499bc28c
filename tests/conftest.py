"""What every test shares: small networks, bundles of them, the command line, and CI's rule that nothing is skipped."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import warm_children
from warm import UNREAD_WHEN_IMPORTING, WarmProcess

if TYPE_CHECKING:
    from tvmflow.spec import Target

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
# What PyTorch and others compute here is too small for a second thread, which would spin as long as it waits, on a core
# that other tests have use for. TVM would take the same variable for the threads of kernels: it keeps its own number.
os.environ.setdefault("TVM_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
os.environ.setdefault("OMP_NUM_THREADS", "1")

INSTALL = "tools/install-system-packages.sh --tests"
skipped: list[str] = []
TOGETHER = {
    # who asks for `emulated`, which takes a minute or two to install
    "emulated": ("test_emulated_board.py", "test_walkthrough.py", "test_on_an_emulated_board"),
    # what tests/imported.py imports and quantises
    "strangers": ("test_strangers.py", "test_strangers_are_exact", "test_networks_of_strangers"),
}
"""Groups of tests that aren't those of one file, and what the names of their tests have in them."""
SECONDS = {
    "test_schedules": 140,
    "test_operators": 125,
    "test_tune": 120,
    "test_passes": 110,
    "emulated": 110,
    "strangers": 105,
    "test_integer_graphs": 100,
    "test_cli": 80,
    "test_onnx": 80,
    "test_integer_kernels": 75,
    "test_serve": 70,
    "test_children": 60,
    "test_cuda_tune": 60,
    "test_cuda_schedules": 55,
    "test_tune_remote": 55,
    "test_cortex_m": 55,
    "test_deploy": 50,
    "test_tflite": 50,
    "test_cuda_build": 45,
    "test_cuda_operators": 45,
    "test_evaluate": 45,
    "test_tflite_float": 45,
    "test_library": 45,
    "test_cortex_m_graphs": 50,
    "test_vta_graphs": 50,
    "test_fuzz": 50,
    "test_elementary_functions": 35,
    "test_examples": 35,
    "test_compare_tensors": 35,
    "test_benchmarks": 35,
    "test_untrusted": 35,
    "test_groups_and_borders": 30,
    "test_winograd": 30,
    "test_rows_as_maps": 30,
    "test_emulate": 30,
    "test_tutorial": 30,
    "test_package": 30,
    "test_interface": 25,
    "test_onnx_nodes": 25,
    "test_quantize": 25,
    "test_exact_floats": 25,
    "test_bare": 25,
    "test_bundle": 25,
    "test_tune_transfer": 25,
    "test_cuda_standin": 25,
    "test_cuda_integer": 25,
    "test_hostile_networks": 25,
    "test_tracker": 20,
    "test_estimate": 20,
}
"""What the longest groups of tests take of a processor, about: in this order they are begun, so that none is left alone
at the end."""
FROM_NOTHING = ("test_children", "test_package", "test_streams")
"""Files that look at how Python children begin and end."""


def needs_emulator(board: Target) -> None:
    """Skip the test, with the reason, where this computer can't run code for `board`."""
    from tvmflow.measure import emulate

    if reason := emulate.available(board):
        pytest.skip(reason)


def needs_commands(*commands: str) -> None:
    """Skip the test where one of these isn't installed."""
    if absent := [command for command in commands if shutil.which(command) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}; {INSTALL} brings what is needed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the texts in tests/goldens anew")
    parser.addoption("--deploys", type=int, default=5, help="how many in a row leave nothing behind")


def pytest_collection_finish() -> None:
    """What was imported by now stays: Python needn't look through these millions of objects for garbage again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    of_a_worker = hasattr(session.config, "workerinput")  # pytest-xdist's; the process that started it speaks for all
    if skipped and os.environ.get("CI") and not of_a_worker:
        print(f"\nIn CI nothing may be skipped; this was: {', '.join(skipped)}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Who asks for these fixtures touches what isn't Python's."""
    for item in items:
        asked_for = set(getattr(item, "fixturenames", ()))
        if {"board", "emulated", "browser"} & asked_for:
            item.add_marker("packages")
        if ("emulated" in asked_for) != (group(item.nodeid) == "emulated"):
            raise pytest.UsageError(f"{item.nodeid}: TOGETHER of conftest.py names who asks for `emulated`")
    if hasattr(config, "workerinput"):  # pytest-xdist's; alone, files are run in the order of their names
        items.sort(key=lambda item: SECONDS.get(group(item.nodeid), 0), reverse=True)


def group(nodeid: str) -> str:
    """Tests of a group are run by one process: a file's share what they build, and those of `TOGETHER` as well."""
    found = (name for name, parts in TOGETHER.items() if any(part in nodeid for part in parts))
    return next(found, Path(nodeid.partition("::")[0]).stem)


@pytest.fixture(autouse=True)
def _numbers_as_they_are() -> Iterator[None]:
    """Training has the processor take the smallest numbers for 0, which no later test expects."""
    yield
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "set_flush_denormal"):
        torch.set_flush_denormal(False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadfile`, with these groups instead of files, in the order in which they were collected."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Groups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Two lines, after all others: which tests couldn't be run here, and the command that brings the rest."""
    yield
    files = Counter(report.nodeid.partition("::")[0] for report in terminalreporter.stats.get("skipped", ()))
    if files:
        named = ", ".join(f"{count} of {Path(file).stem}" for file, count in sorted(files.items()))
        terminalreporter.write_line(f"Not shown: what {files.total()} skipped tests look at ({named}).")
        terminalreporter.write_line(f"`{INSTALL}` brings what they lack, but for what is said otherwise above.")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed_with(self, code: int, *words: str) -> None:
        """Assert the exit code, and one sentence on stderr that has these words in it."""
        assert self.code == code, self.err
        messages = [line for line in self.err.splitlines() if line.startswith("tvmflow: ")]
        assert len(messages) == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in messages[0]


@pytest.fixture(scope="session")
def child_servers(tmp_path_factory) -> warm_children.Servers | None:
    """Where children come from that have their imports done; None where the system can't have them."""
    if not warm_children.possible():
        return None
    return warm_children.Servers(str(tmp_path_factory.mktemp("children")))


@pytest.fixture(autouse=True)
def _warm_children(request: pytest.FixtureRequest, monkeypatch, child_servers) -> None:
    """Children of this process needn't import what they run, but where a test is about that."""
    if child_servers is not None and request.path.stem not in FROM_NOTHING:
        from tvmflow.system import children

        monkeypatch.setattr(children, "python", child_servers.python)


@pytest.fixture(scope="session")
def tvmflow(child_servers) -> Iterator[Callable[..., Finished]]:
    """`tvmflow("build", …)` runs the command line in a process of its own.

    It has its imports done, unless `warm` says no or a variable is given that may be read while importing.
    """
    with contextlib.ExitStack() as stack:
        server: list[WarmProcess] = []

        def call(*arguments: str | Path, cwd: Path | None = None, warm: bool = True, **variables: str) -> Finished:
            words, environment = [*map(str, arguments)], {**os.environ, **variables}
            imports_little = words[:1] in (["boards"], ["deploy"], ["db"])  # it has ended before a server has begun
            if warm and variables.keys() <= UNREAD_WHEN_IMPORTING and (server or not imports_little):
                if not server:
                    server.append(WarmProcess(child_servers.folder if child_servers else None))
                    stack.callback(server[0].close)
                if child_servers is not None:
                    child_servers.start("compiler" if words[:1] == ["tune"] else "libraries")
                code, out, err = server[0].run(words, cwd, environment)
                return Finished(code=code, out=out, err=err)
            done = subprocess.run(
                [sys.executable, "-m", "tvmflow", *words],
                capture_output=True,
                text=True,
                cwd=cwd,
                env=environment,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            return Finished(code=done.returncode, out=done.stdout, err=done.stderr)

        yield call


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`golden(text)` compares with tests/goldens/TEST/PARAMETERS.txt, or writes it if --update-golden is given."""
    name, _, parameters = request.node.name.partition("[")
    path = ROOT / "tests" / "goldens" / name / f"{parameters.rstrip(']') or 'golden'}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        how = "`pytest --update-golden` writes it; review what changes"
        assert path.exists(), f"There is no golden {path.relative_to(ROOT)}: {how}"
        assert text == path.read_text(encoding="utf-8"), f"{path.relative_to(ROOT)} is another: {how}"

    return check


@pytest.fixture(scope="session")
def tiny():
    """The Program of `networks.tiny`, a joint module and a classifier."""
    from tvmflow.network.frontend import import_model, parse_input_shape

    return import_model("networks:tiny", [parse_input_shape("1x3x9x7")])


@pytest.fixture(scope="session")
def host_bundle(tiny, tmp_path_factory) -> Path:
    """`tiny` built for this computer, as a folder. Don't change it: copy it."""
    from tvmflow.bundles.build import build
    from tvmflow.targets import TARGETS

    out = tmp_path_factory.mktemp("host") / "tiny"
    build(tiny, TARGETS["host"], out)
    return out


@pytest.fixture
def board(tmp_path):
    """A board that is reached over SSH."""
    from boards import ssh_board

    with ssh_board(tmp_path / "ssh") as found:
        yield found


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """An emulated board on which tvmflow was installed as docs/walkthrough.md says."""
    from boards import emulated_board

    with emulated_board(tmp_path_factory.mktemp("emulated")) as found:
        found.walk("Install tvmflow on the board")
        yield found


@pytest.fixture
def deploys(request: pytest.FixtureRequest) -> int:
    """How many deploys in a row a test makes: `pytest -k many_deploys --deploys 200` takes a quarter of an hour."""
    return request.config.getoption("--deploys")


@pytest.fixture
def token_file(tmp_path) -> Path:
    """A copy of the token of `boards.running`."""
    from boards import TOKEN

    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path
