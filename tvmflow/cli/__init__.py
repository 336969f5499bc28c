"""The command line: text into calls, results into text. No compiler logic lives here.

Results go to stdout, progress and errors to stderr. tvm and torch are imported by the commands that need them, so
that help comes at once. COMMANDS lists every command but those for programs of single kinds of target.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from tvmflow import __version__
from tvmflow.cli import (
    bundles,
    devices,
    examples,
    learning,
    listing,
    outcome,
    quantizing,
    reporting,
    streams,
    tuning,
    waiting,
)
from tvmflow.spec import UserError
from tvmflow.system import children, limits
from tvmflow.targets import KINDS

HELP = "Take a trained network to the device where it has to run, and say honestly what it costs there."
EPILOG = "Exit codes: 0 ok, 1 internal error, 2 usage, 3 verification failed, 4 unusable input, 5 missing dependency \
or device, 6 slower than allowed, 7 device unreachable or lost, 8 unsupported operators, 9 too noisy to judge, 130 \
interrupted (Ctrl-C), 141 nobody reads the output, 143 ended (SIGTERM)."

COMMANDS: dict[str, Callable[..., None]] = {
    "boards": bundles.boards,
    "build": bundles.build,
    "tune": tuning.tune,
    "run": bundles.run,
    "verify": bundles.verify,
    "compare": bundles.compare,
    "bench": bundles.bench,
    "profile": bundles.profile,
    "deploy": devices.deploy,
    "serve": devices.serve,
    "report": reporting.report,
    "report diff": reporting.diff,
    "estimate": reporting.estimate,
    "train": learning.train,
    "quantize": quantizing.quantize,
    "export": quantizing.export,
    "evaluate": learning.evaluate,
    "doctor": bundles.doctor,
}
DB_COMMANDS: dict[str, Callable[..., None]] = {
    "show": tuning.show_records,
    "merge": tuning.merge,
    "export": tuning.export,
    "prune": tuning.prune,
}


VERBOSE, QUIET = ("-v", "--verbose"), ("-q", "--quiet")
"""Taken anywhere on the line."""


def main() -> None:
    """Entry point of `tvmflow` and `python -m tvmflow`."""
    children.forget_current_folder()
    said = sys.argv[1:]
    arguments = [argument for argument in said if argument not in (*VERBOSE, *QUIET)]
    outcome.verbose = any(argument in VERBOSE for argument in said)
    quiet = any(argument in QUIET for argument in said)
    streams.adapt()
    shown = waiting.Waiting()
    outcome.before_results = shown.stop
    logging.basicConfig(format="%(message)s", handlers=[shown])
    logging.getLogger("tvmflow").setLevel(logging.WARNING if quiet else logging.INFO)

    def command() -> None:
        if not quiet:
            shown.start()  # a thread, so after signals are watched: `outcome.run` does that first
        _app()(args=_as_command(_with_limits_lifted(_without_empty(arguments))))

    outcome.run(command)


def _without_empty(arguments: list[str]) -> list[str]:
    """The arguments, of which none may be empty: a path of no characters would be the current folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = argument.removesuffix("=") if argument.startswith("--") and argument.endswith("=") else before
        if not argument or option != before:
            after = f" after {option}" if option.startswith("-") else ""
            outcome.fail(f"There is an empty argument{after}; a variable of the shell may be unset.", 2)
    return arguments


def _with_limits_lifted(arguments: list[str]) -> list[str]:
    """The arguments without `--limit NAME=VALUE`, which is taken anywhere, once it has been done."""
    rest: list[str] = []
    try:
        limits.lift_as_the_environment_says()
        words = iter(arguments)
        for word in words:
            if word == "--limit" or word.startswith("--limit="):
                limits.lift(word.partition("=")[2] if "=" in word else next(words, ""))
            else:
                rest.append(word)
    except UserError as error:
        outcome.fail(str(error), 2)
    return rest


def _as_command(arguments: list[str]) -> list[str]:
    """Two words that name a command become one; a folder called `diff` is `./diff`."""
    name = " ".join(arguments[:2])
    return [name, *arguments[2:]] if name in COMMANDS else arguments


def _app() -> typer.Typer:
    app = _group("tvmflow", HELP)
    app.callback()(root)
    for name, function in COMMANDS.items():
        app.command(name, epilog=examples.epilog(examples.EXAMPLES[name]))(outcome.guarded(function))
    db = _group("db", "Look after the records of `tvmflow tune`.")
    for name, function in DB_COMMANDS.items():
        epilog = examples.epilog(examples.EXAMPLES[f"db {name}"])
        db.command(name, epilog=epilog)(outcome.guarded(function))
    app.add_typer(db)
    for kind in KINDS.values():
        if kind.disassembly is not None:
            programs = _group(kind.name, f"Look into programs for {kind.disassembly.of}.")
            lines = tuple(line.format(kind=kind.name) for line in examples.DISASSEMBLY)
            programs.command("disasm", epilog=examples.epilog(lines))(outcome.guarded(listing.disassembler(kind)))
            app.add_typer(programs)
    return app


def _group(name: str, what: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=what,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tvmflow {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show where an error comes from.")] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Leave out what says how far a command is; warnings and errors stay.")
    ] = False,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Lift a limit of what is read: tensor.elements=1G."),
    ] = None,
) -> None:
    pass
