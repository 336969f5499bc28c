"""The documentation: its commands can be given, its figures are the code's, and each board has its page."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from conftest import ROOT

from tvmflow.measure import noise
from tvmflow.network.agreement import TOLERANCE
from tvmflow.report import BINS
from tvmflow.report.estimate import Network, Work
from tvmflow.spec import Layer, Tile, TvmflowError
from tvmflow.system import limits, runtime
from tvmflow.targets import DEFAULT_BOARD, TARGETS
from tvmflow.tune.measure import choose_runner

sys.path.insert(0, str(ROOT / "docs"))

import generate

LAYER = Layer(kernel="k", modules=("m",), macs=8, live_macs=8, bytes=8)
NETWORK = Network(
    program=None, works=(Work(layer=LAYER, tile=Tile(), weights=1, inputs=1, output=1),), weights=1, activations=1
)
BOARDS = {name: generate.board_page(target, NETWORK) for name, target in TARGETS.items()}
PAGES = {
    **{path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))},
    **BOARDS,
}


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_can_be_given(page):
    """Lines of code, as the command line would parse them."""
    commands = generate.commands()
    for line in re.findall(r"^(?: {4,7}|)((?:tvmflow|python -m tvmflow)[. ].*)", PAGES[page], re.MULTILINE):
        line = re.sub(r"[\[\]]| --limit \S+", "", line)  # brackets are around what may be left out; all take --limit
        words = shlex.split(line.removeprefix("python -m ").replace("tvmflow.", "tvmflow ", 1), comments=True)[1:]
        name = " ".join(words[:2])
        name, arguments = (name, words[2:]) if name in commands else (words[0], words[1:])
        commands[name].make_context(name, arguments)


def test_the_commands_page_has_every_option_and_exit_code():
    page = generate.command_line()
    for name, command in generate.commands().items():
        assert f"## tvmflow {name}\n" in page
        assert all(option in page for parameter in command.params for option in parameter.opts if option[0] == "-")
    codes = {error.exit_code for error in TvmflowError.__subclasses__()}
    assert all(f"\n| {code} | " in page for code in codes | {0, 1, 2, 130})


def test_the_page_of_security_has_every_limit():
    row = r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$"
    rows = re.findall(row, PAGES["security.md"], re.MULTILINE)
    factors = {"KiB": limits.KIB, "MiB": limits.MIB, "GiB": limits.GIB}
    assert [name for name, *_ in rows] == list(limits.KINDS)
    for name, size, elements, depth, seconds in rows:
        known = limits.KINDS[name]
        if size.strip():
            number, unit = size.split()
            assert int(number) * factors[unit] == known.bytes
        assert int(elements.replace(",", "").strip() or known.elements) == known.elements
        assert int(depth.strip() or known.depth) == known.depth
        assert int(seconds.replace(",", "").strip() or known.seconds) == known.seconds


def test_every_board_says_where_its_figures_are_from():
    assert set(generate.KINDS) == set(DEFAULT_BOARD)
    for name, target in TARGETS.items():
        assert target.datasheet in BOARDS[name]
        for part in filter(None, (target.cpu, target.facts)):
            for field in getattr(part, "unverified", ()):
                assert re.search(rf"`\w+\.{field}` \|.*\| not looked up \|", BOARDS[name]), (name, field)


def test_what_a_board_is_said_to_do_is_what_it_does():
    for name, target in TARGETS.items():
        if target.kind == "arm_cpu":
            assert ("--runner c" in BOARDS[name]) == (runtime.why_none(target) is None)
        if target.kind in ("llvm", "arm_cpu"):
            try:
                runner, _ = choose_runner("auto", target)
            except TvmflowError:
                runner, _ = choose_runner("auto", target, ["a board"])
            assert (f"--runner {runner}" in BOARDS[name]) == (runtime.why_none(target) is None)


def test_the_method_has_the_figures_of_the_code():
    page = PAGES["method.md"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", sys.modules.get("torch"))  # a worker keeps it out of its process
        from tvmflow.measure import worker
    assert f"at least {worker.WARMUP_RUNS} runs and {worker.WARMUP_SECONDS} s" in page
    assert f"p90 is more than {noise.NOISY_SPREAD} times p50" in page
    assert f"{BINS} bins" in page
    assert f"p50 is more than {noise.SLOWED} times the fastest inference, of {noise.ENOUGH} samples" in page
    assert f"cut into {noise.BLOCKS} blocks" in page
    for dtype in ("float32", "float64", "bfloat16"):
        assert f"| {dtype} | {TOLERANCE[dtype]:.0e} |".replace("e-0", "e-") in page


TABLE = re.compile(r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def test_the_tables_of_the_readme_are_made_of_what_the_code_knows(request):
    """`--update-golden` writes them anew."""
    made = TABLE.sub(lambda found: f"{found[1]}{getattr(generate, found[2])()}\n", PAGES["README.md"])
    if request.config.getoption("--update-golden"):
        (ROOT / "README.md").write_text(made, encoding="utf-8")
        return
    assert len(TABLE.findall(made)) == 2
    assert PAGES["README.md"] == made
