"""Pages that are made of what the code knows: one for each board, and the command line.

The figures are those of `tvmflow.targets`; what a kind of target can is said once, in KINDS. Nothing here depends on
the computer that builds the pages.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from tvmflow import cli, spec, targets
from tvmflow.measure import emulate
from tvmflow.report import estimate
from tvmflow.schedules import registry as rules
from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import Target
from tvmflow.system import runtime
from tvmflow.targets import DEFAULT_BOARD, TARGETS
from tvmflow.targets.cortex_m.facts import Mcu

ROOT = Path(__file__).parents[1]
NETWORK = "dilated-net"

Words = str | Callable[[Target], str]
"""Of all boards of a kind, or of one."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the commands do for boards of a kind, in words, and how they are called; `pages` are those of docs/."""

    pages: tuple[str, ...]
    verify: Words
    time: Words
    deploy: Words
    tune: Words
    commands: tuple[str, ...]


def _emulated(target: Target) -> str:
    if target.deliveries[0] == "library":
        return "`emulated`: a program with the whole library runs under qemu-user, as the board's CPU"
    emulator = emulate.EMULATORS[target.elf]
    if emulator.whole:
        return "`emulated`: the whole network runs under qemu-user, as the board's CPU"
    return "`emulated kernels`: each kernel runs under qemu-user, as the board's CPU; this computer calls them"


def _on_the_board(what: str) -> Words:
    return lambda target: runtime.why_none(target) or what


def _gpu_native(target: Target) -> str:
    cpu = "x86-64" if target.elf[1] == "x64" else target.elf[1]
    return f"with a GPU of {Gpu.of(target).architecture} and its driver in this computer, whose CPU has to be {cpu}"


def _gpu_deploy(target: Target) -> str:
    note = f" {Gpu.of(target).runtime_note}" if Gpu.of(target).runtime_note else ""
    return f"`measured`, by `deploy --rpc` where `tvmflow serve --memory-mib 0` runs. Never tried on a GPU.{note}"


def _mcu_machine(target: Target) -> str:
    return f"`emulated`: under qemu-system-arm, on its machine `{Mcu.of(target).machine}`, which has the same core"


KINDS: dict[str, Said] = {
    "llvm": Said(
        pages=("tutorial.md", "int8.md", "tune.md"),
        verify="`native`: it runs here",
        time="`measured`",
        deploy="`measured`, over SSH, on a computer with the same CPU",
        tune=_on_the_board("timed here (`--runner local`)"),
        commands=(
            "tvmflow build -o {name}",
            "tvmflow build --dtype int8 -o {name}-int8",
            "tvmflow bench {name} --json {name}.json",
            "tvmflow profile {name}",
            "tvmflow tune",
            "tvmflow report {name} {name}-int8 -o .",
        ),
    ),
    "arm_cpu": Said(
        pages=("walkthrough.md", "deploy.md", "device.md", "library.md", "serve.md", "int8.md", "tune.md"),
        verify=_emulated,
        time=_on_the_board(
            "`measured` on a 64-bit ARM computer; elsewhere none, for time under an emulator says nothing. "
            "`profile --cycles` has modelled cycles, which are no time"
        ),
        deploy=_on_the_board("`measured`, over SSH with the bundle's runner, or over RPC where `tvmflow serve` runs"),
        tune=_on_the_board("timed on boards where `tvmflow serve` runs (`--runner rpc`)"),
        commands=(
            "tvmflow build --target arm_cpu --board {name}{runner} -o {name}.tar",
            "tvmflow build --target arm_cpu --board {name} --dtype int8{runner} -o {name}-int8.tar",
            "tvmflow verify {name}.tar",
            "tvmflow deploy {name}.tar --ssh user@board --json {name}.json",
            "tvmflow tune --target arm_cpu --board {name} --ssh user@board",
            "tvmflow report {name}.json -o .",
        ),
    ),
    "cuda": Said(
        pages=("cuda.md", "cuda-tuning.md", "int8.md", "serve.md"),
        verify=lambda target: (
            f"`stand-in`: TVM's CUDA module and every kernel run on this CPU; `native` {_gpu_native(target)}"
        ),
        time=lambda target: f"`measured` {_gpu_native(target)}; else none",
        deploy=_gpu_deploy,
        tune=(
            "timed on such a GPU here (`--runner local`) or over RPC (`rpc`); without one, `modelled`: "
            "a shortlist ranked by a model, never a latency"
        ),
        commands=(
            "tvmflow build --target cuda --board {name} -o {name}",
            "tvmflow build --target cuda --board {name} --dtype int8 -o {name}-int8",
            "tvmflow verify {name}",
            "tvmflow report {name} -o .",
            "tvmflow deploy {name} --ssh user@board --rpc --json {name}.json",
            "tvmflow tune --target cuda --board {name} --trials 64",
        ),
    ),
    "vta": Said(
        pages=("vta.md", "vta-compiler.md", "int8.md"),
        verify="`simulated`: every instruction, to the bit",
        time="`simulated`: cycle by cycle, with a band for what is assumed of the board's memory",
        deploy=(
            "`measured`, over SSH as root, with the bundle's driver on the board; needs a bitstream, "
            "Python and NumPy there. Never tried on a board"
        ),
        tune="tilings, timed by the simulator",
        commands=(
            "tvmflow tune --target vta --board {name}",
            "tvmflow build --target vta --board {name} -o {name}",
            "tvmflow verify {name}",
            "tvmflow bench {name}",
            "tvmflow profile {name}",
            "tvmflow deploy {name} --ssh root@board --json {name}.json",
        ),
    ),
    "cortex_m": Said(
        pages=("mcu.md", "int8.md"),
        verify=_mcu_machine,
        time="no latency; `profile` counts executed instructions (`emulated`), and with `--cycles` models cycles",
        deploy="no: the bundle is linked with a program of one's own, and has an example of one",
        tune="no",
        commands=(
            "tvmflow estimate --board {name}",
            "tvmflow build --target cortex_m --board {name} -o {name}",
            "tvmflow verify {name}",
            "tvmflow profile {name}",
        ),
    ),
}

UNITS = {
    "bytes": "bytes",
    "mhz": "MHz",
    "gbps": "10⁹ bytes/s",
    "flops": "float32 operations",
    "cycles": "cycles",
    "band": "cycles",
}
"""Of a figure, by a word of its name; what has none is a count or a name."""

BAR = r"\|"
"""As a cell of a table has it."""

NO_FIGURES = ("unverified", "runtime_note", "also", "cuda_graph")
"""Fields that say something about figures, about the board, or what a build was asked for."""

ASSUMED = ("latency_cycles", "latency_band")


def write(folder: Path) -> None:
    """Write all pages into `folder`, which is docs/generated."""
    boards = folder / "boards"
    boards.mkdir(parents=True, exist_ok=True)
    (folder / "boards.md").write_text(board_index(), encoding="utf-8")
    network = _analysed()
    for target in TARGETS.values():
        (boards / f"{target.name}.md").write_text(board_page(target, network), encoding="utf-8")
    (folder / "cli.md").write_text(command_line(), encoding="utf-8")
    (folder / "operators.md").write_text(operators(), encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- operators


def operators() -> str:
    """PyTorch's operators that the reader knows, by the kind of converter."""
    from tvmflow.network import aten
    from tvmflow.network.pytorch_operators import torch_importer

    kinds = (
        *(aten.arithmetic, aten.activations, aten.products, aten.norms, aten.pooling, aten.resizing, aten.sampling),
        *(aten.reductions, aten.indexing, aten.recurrent),
    )
    known = [name for name in torch_importer()().convert_map if isinstance(name, str) and name not in aten.OPERATORS]
    lines = [
        "# Operators of PyTorch",
        "",
        "What an exported network may consist of, by the names of PyTorch's operators (aten). Others are taken apart",
        "into these where PyTorch can do that, and else refused by name. [Networks](../networks.md#operators) says",
        "more.",
    ]
    for kind in kinds:
        title = kind.__name__.rpartition(".")[2].capitalize()
        lines += ["", f"## {title}", "", _names(kind.OPERATORS)]
    lines += ["", "## By TVM's importer", "", _names(known), ""]
    return "\n".join(lines)


def _names(operators: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(operators))


WEIGHTED = {
    "conv2d": "convolution of any stride, dilation, groups and borders; of one dimension as well",
    "dense": "product with weights",
    "pool": "average of the whole map",
}
"""Layers of quantised networks that have weights, which every kind computes."""

NODES = {
    "add": "sum and difference of two tensors, broadcast",
    "multiply": "product of two tensors, broadcast",
    "max_pool": "largest of a window",
    "average_pool": "mean of what lies in a window and on the map, of `.tflite` files",
    "concat": "tensors one after the other",
    "gather": "moved elements: slices, borders, transposes, shuffled channels, repeated pixels",
    "resample": "interpolation, averages of windows",
    "table": "any function of single elements: sigmoid, hard-swish, GELU, …",
    "softmax": "softmax along an axis",
    "log_softmax": "its logarithm",
    "normalise": "normalisation over layers, instances and groups, each by its own mean and variance",
    "matmul": "product of two computed matrices, as in attention",
    "probabilities": "softmax of `.tflite` files",
    "argmax": "where the largest along an axis is, of `.tflite` files",
}
"""What an operator without weights does, in words."""

EVERYTHING = "all else that can be [imported](networks.md#operators)"

COLUMNS: dict[str, str] = {
    "llvm": "`llvm`, `arm_cpu`",
    "cuda": "`cuda`",
    "vta": "`vta`",
    "cortex_m": "`cortex_m`",
}
"""Kinds that differ, each with those that it stands for."""


def integer_operators() -> str:
    """Which operators each kind of target computes, in which arithmetic: the table of docs/int8.md.

    Of int8 the rules stand there that make kernels of the operator, where the kind has several.
    """
    from tvmflow.integer.operators import OPERATORS

    if set(OPERATORS) != set(NODES):
        raise ValueError(f"NODES of docs/generate.py has to name {', '.join(OPERATORS)}.")
    rows = []
    for name, what in (WEIGHTED | NODES).items():
        cells = [_in_int8(kind, name) for kind in COLUMNS]
        rows.append([f"`{name}`", what, "yes", *cells])
    rows.append(["", EVERYTHING, "yes", *["no"] * len(COLUMNS)])
    floats = "float32, float16 on `llvm`, `arm_cpu`, `cuda`"
    return _table(["operator", "what it does", floats, *(f"int8 on {kinds}" for kinds in COLUMNS.values())], rows)


def _in_int8(kind: str, operator: str) -> str:
    """The rules by which a kind computes an operator in int8, yes, or that an accelerator leaves it to others."""
    from tvmflow.schedules.cpu.integer import RULES
    from tvmflow.schedules.cuda.integer import RULES as GPU_RULES

    if operator in targets.KINDS[kind].on_the_processor:
        return "processor"
    names = {"llvm": RULES, "cuda": GPU_RULES}.get(kind)
    if names is None:
        return "yes"
    if operator in NODES:
        return _names(name for name in names if name in ("node", operator))
    return _names(name for name in names if name != "node" and name not in NODES)


ON_A_PC = {
    "llvm": "running it",
    "arm_cpu": "qemu-user, as the board's CPU; 32-bit modules kernel by kernel",
    "cuda": "a stand-in for the driver: TVM's CUDA module and every kernel run on the CPU",
    "vta": "a simulator that is exact to the bit",
    "cortex_m": "qemu's machine of the same core",
}
"""How a network for boards of a kind is verified on a computer that is none of them."""


def operators_in_short() -> str:
    """The README's table of operators: those that every kind treats alike share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in WEIGHTED | NODES:
        cells = tuple("processor" if _in_int8(kind, name) == "processor" else "yes" for kind in COLUMNS)
        groups.setdefault(cells, []).append(f"`{name}`")
    rows = [[", ".join(names), "yes", *cells] for cells, names in groups.items()]
    rows.append(["everything else that can be [imported](docs/networks.md#operators)", "yes", *["no"] * len(COLUMNS)])
    header = ["operators", "float32 on `llvm`, `arm_cpu`, `cuda`", *(f"int8 on {kinds}" for kinds in COLUMNS.values())]
    return _table(header, rows)


def boards_in_short() -> str:
    """The README's table of boards: a row for each kind of target, the default board first."""
    rows = []
    for kind in KINDS:
        boards = sorted(
            (board for board in TARGETS.values() if board.kind == kind), key=lambda one: not _is_default(one)
        )
        dtypes = dict.fromkeys(dtype for board in boards for dtype in board.arithmetics)
        names = ", ".join(f"`{board.name}`" for board in boards)
        rows.append([f"`{kind}`", names, ", ".join(dtypes), ON_A_PC[kind]])
    return _table(["target", "boards, the default first", "computes in", "verified on a PC by"], rows)


# ------------------------------------------------------------------------------------------------------------ boards


def board_index() -> str:
    """All boards in the order of the registry."""
    rows = [
        [
            f"[{target.name}](boards/{target.name}.md)" + (" *" if _is_default(target) else ""),
            f"`{target.kind}`",
            "this computer's" if target.name == "host" else target.processor.model,
            ", ".join(target.arithmetics),
            target.description,
        ]
        for target in TARGETS.values()
    ]
    names = "\n".join(f"boards/{name}" for name in TARGETS)
    return (
        "# Boards\n\n"
        + _table(["board", "target", "processor", "computes in", "description"], rows)
        + "\n\n\\* the default of its target (`--target` without `--board`). `tvmflow boards --json -` prints every "
        "figure; a board of your own is a `.toml` file, see [development](../development.md#a-board).\n\n"
        f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def board_page(target: Target, network: estimate.Network) -> str:
    """What works on a board, how, and what is known of it."""
    kind = KINDS[target.kind]
    default = ", of which it is the default board" if _is_default(target) else ""
    parts = [
        f"# {target.name}\n\n{_sentence(target.description)} Its target is `{target.kind}`{default}.",
        f"## What works\n\n{_what_works(target, kind)}",
        "More: " + ", ".join(f"[{_title(page)}](../../{page})" for page in kind.pages) + ".",
        f"## Commands\n\n{_commands(target, kind)}",
        f"## {NETWORK} on it, at best\n\n{_at_best(target, network)}",
        f"## Figures\n\n{_figures(target)}",
        f"## What the compiler is told\n\n{_compiler(target)}",
    ]
    return "\n\n".join(parts) + "\n"


def _is_default(target: Target) -> bool:
    return DEFAULT_BOARD[target.kind] == target.name


def _what_works(target: Target, kind: Said) -> str:
    rows = [
        ["`build`", f"in {', '.join(target.arithmetics)}" + (" by default" if len(target.arithmetics) == 1 else "")],
        *([["`build --format`", _formats(target)]] if "library" in target.deliveries else []),
        ["`verify`", _said(kind.verify, target)],
        ["`bench`, `profile`", _said(kind.time, target)],
        ["`deploy`", _said(kind.deploy, target)],
        ["`tune`", _said(kind.tune, target)],
        ["`estimate`", "`modelled`: a lower bound by the figures below"],
    ]
    return _table(["command", "on this board"], rows)


def _formats(target: Target) -> str:
    """How a network is delivered, the default first."""
    return ", ".join(f"`{delivery}`" for delivery in target.deliveries) + (
        " (the first by default)" if len(target.deliveries) > 1 else ""
    )


def _said(words: Words, target: Target) -> str:
    return words if isinstance(words, str) else words(target)


def _commands(target: Target, kind: Said) -> str:
    served = runtime.why_none(target) is None or target.kind != "arm_cpu"
    if "module" not in target.deliveries:
        return f"```sh\ntvmflow build --board {target.name} -o {target.name}.tar\ntvmflow verify {target.name}.tar\n```"
    lines = [
        line.format(name=target.name, runner=" --runner c" if served else "")
        for line in kind.commands
        if served or line.split()[1] in ("build", "verify")
    ]
    return "```sh\n" + "\n".join(lines) + "\n```"


def _analysed() -> estimate.Network:
    from tvmflow.network.frontend import import_model

    return estimate.analyse(import_model(NETWORK))


def _at_best(target: Target, network: estimate.Network) -> str:
    if target.name == "host":
        return "`tvmflow estimate --board host` says it on the computer itself."
    found = estimate.estimate(network, target)
    rows = [
        [name, f"{part['needed_bytes']:,} bytes", f"{part['available_bytes']:,} bytes"]
        for name, part in found["fits"]["parts"].items()
    ]
    fits = "it fits" if found["fits"]["fits"] else "it doesn't fit"
    bound = (
        f"An inference takes at least {estimate.least_text(found['latency_ms'])} ms (*modelled*, a lower bound; "
        f"figures: {found['figures']}). "
        if found["latency_ms"] is not None
        else ""
    )
    return (
        f"By `tvmflow estimate`, in {found['arithmetic']}, {fits}. {bound}[Method](../../method.md#modelled) says what "
        f"is left out.\n\n{_table(['', 'needed', 'on the board'], rows)}"
    )


def _figures(target: Target) -> str:
    if target.name == "host":
        return f"Source: {target.datasheet}. `tvmflow boards --json -` prints them."
    boards = import_module(f"{targets.KINDS[target.kind].backend.rpartition('.')[0]}.boards")
    notes = inspect.getdoc(boards).partition("\n\n")[2]
    rows = list(_figure_rows(target))
    words = [
        f"Source: {target.datasheet}. What was *not looked up* there is known from elsewhere; "
        "– is what the board lacks or what isn't known.",
        notes,
        _table(["figure", "value", "unit", "source"], rows),
        "What each figure means: "
        + ", ".join(f"{{py:class}}`~{type(value).__module__}.{type(value).__name__}`" for _, value in _parts(target))
        + ".",
    ]
    return "\n\n".join(filter(None, words))


def _parts(target: Target) -> Iterator[tuple[str, Any]]:
    yield "cpu", target.cpu
    if target.facts.NAME:
        yield target.facts.NAME, target.facts


def _figure_rows(target: Target) -> Iterator[list[str]]:
    unknown = _not_looked_up(target)
    yield _figure_row("memory_bytes", target.memory_bytes, unknown)
    for part, owner in _parts(target):
        for field in fields(owner):
            if field.name in NO_FIGURES:
                continue
            value = getattr(owner, field.name)
            if isinstance(value, Mapping):
                for key, entry in value.items():
                    yield _figure_row(f"{part}.{field.name}.{key}", entry, unknown)
            else:
                begins_at_0 = field.name == "flash_origin" and isinstance(owner, Mcu) and owner.has_map
                yield _figure_row(f"{part}.{field.name}", value, unknown, zero=begins_at_0)


def _not_looked_up(target: Target) -> set[str]:
    """Figures, by their full names, that are not from the data sheet that the board cites."""
    found = {f"{part}.{name}" for part, owner in _parts(target) for name in getattr(owner, "unverified", ())}
    if isinstance(target.facts, Mcu):  # its clock is its CPU's, its RAM its memory
        found |= {f"cpu.{name}" for name in target.facts.unverified}
        found |= {"memory_bytes"} if "ram_bytes" in target.facts.unverified else set()
    return found


def _figure_row(name: str, value: Any, unknown: set[str], *, zero: bool = False) -> list[str]:
    """`zero` says whether 0 is a figure, and not one that is missing."""
    words = name.rpartition(".")[2].split("_")
    unit = next((UNITS[word] for word in words if word in UNITS), "")
    if "per" in words:
        unit = f"{unit or words[0]} per {words[words.index('per') + 1].replace('sm', 'SM')}"
    if value in (0, "", ()) and not zero:
        return [f"`{name}`", "–", unit, ""]
    if name.endswith("_origin") or isinstance(value, list):  # an address, alone or with what lies there
        first, *rest = value if isinstance(value, list) else [value]
        shown = ", ".join([f"{first:#010x}", *(f"{part:,} bytes" for part in rest)])
    elif isinstance(value, tuple):
        shown = " to ".join(map(str, value))
    else:
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    source = "not looked up" if name in unknown else "assumed" if words and "_".join(words) in ASSUMED else "cited"
    return [f"`{name}`", shown, unit, source]


def _compiler(target: Target) -> str:
    if target.name == "host":
        told = "LLVM's name of the computer's CPU and its features, found when a network is built."
    else:
        told = f"`tvm.target.Target` is made of\n\n```json\n{json.dumps(target.tvm, indent=1)}\n```\n\n" + (
            f"and the linker is given `{target.triple}`."
        )
    registry = rules.PACKAGES.get(target.kind, "tvmflow.schedules.cpu").removeprefix("tvmflow.").replace(".", "/")
    if not target.schedules:
        return told
    chosen = ", ".join(f"[{name}](../../../{registry}/{name}.py)" for name in target.schedules)
    return f"{told}\n\nA float kernel gets the first schedule that fits it, of {chosen}."


# ------------------------------------------------------------------------------------------------------ command line


def command_line() -> str:
    """Every command with its arguments, options and defaults, and the exit codes."""
    parts = [
        f"# Commands\n\n{cli.HELP} `tvmflow COMMAND --help` says the same. `python -m tvmflow` is `tvmflow`.",
        f"## Exit codes\n\n{_exit_codes()}",
        "An error is one sentence on stderr; `-v`, anywhere on the line, adds the traceback.",
    ]
    parts += [_command(name, command) for name, command in commands().items()]
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, Any]:
    """Click's commands by their full names, groups left out."""
    import typer

    return dict(_leaves("", typer.main.get_command(cli._app())))


def _leaves(prefix: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, found in command.commands.items():
        if hasattr(found, "commands"):
            yield from _leaves(f"{prefix}{name} ", found)
        else:
            yield f"{prefix}{name}", found


def _exit_codes() -> str:
    errors = {
        error.exit_code: (error.__name__, inspect.getdoc(error) or "")
        for error in vars(spec).values()
        if inspect.isclass(error) and issubclass(error, spec.TvmflowError) and error is not spec.TvmflowError
    }
    rows = []
    for code, meaning in re.findall(r"(\d+) ([^,.]+)", cli.EPILOG):
        name, text = errors.get(int(code), ("", ""))
        rows.append([code, meaning, f"{{py:class}}`~tvmflow.spec.{name}`" if name else "", text.partition("\n")[0]])
    return _table(["code", "", "error", ""], rows)


def _command(name: str, command: Any) -> str:
    context = command.make_context(f"tvmflow {name}", [], resilient_parsing=True)
    usage = " ".join([context.info_name, *command.collect_usage_pieces(context)])
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [[f"`{spelled}`", described.replace("*", r"\*")] for spelled, described in filter(None, records)]
    parts = [
        f"## {context.info_name}",
        f"```text\n{usage}\n```",
        inspect.cleandoc(command.help or ""),
        _table(["", ""], rows),
        f"```sh\n{_examples(command)}\n```",
    ]
    return "\n\n".join(parts).rstrip()


def _examples(command: Any) -> str:
    """The commands below a command's help."""
    return "\n".join(line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  "))


# -------------------------------------------------------------------------------------------------------------- text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |" for cells in lines)


def _title(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
