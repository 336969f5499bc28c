"""The command line: text into calls, results into text. No compiler logic lives here.

Results go to stdout, progress and errors to stderr. tvm and torch are imported by the commands that need them, so
that help comes at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tvmflow import __version__, interrupt
from tvmflow.spec import TvmflowError, UserError

EPILOG = "Exit codes: 0 ok, 1 internal error, 2 usage, 3 verification failed, 4 unusable input, 5 missing dependency, \
7 device unreachable or lost, 8 unsupported operators, 130 interrupted."

app = typer.Typer(
    name="tvmflow",
    help="Take a trained network to the device where it has to run, and say honestly what it costs there.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Target = Annotated[str | None, typer.Option("--target", help="Kind of target: llvm (this computer) or arm_cpu.")]
Board = Annotated[str | None, typer.Option("--board", help="A board of `tvmflow boards`, or a board's .toml file.")]
ModelName = Annotated[str, typer.Option("--model", help="Registry name, package.module:factory, .pt2 or .onnx file.")]
InputShapes = Annotated[
    list[str] | None, typer.Option("--input-shape", help="1x3x32x32 or name=1x3x32x32; once per input.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder or .tar.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file; - is stdout.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of the network; all cores by default.")]

Tracker = Annotated[str | None, typer.Option("--tracker", help="127.0.0.1:PORT of TVM's RPC tracker, with --key.")]
Key = Annotated[str, typer.Option("--key", help="What kind of board, for --tracker: raspberry-pi-4b, say.")]

log = logging.getLogger("tvmflow.cli")

verbose = False
"""Whether errors show their traceback: -v, anywhere on the line."""


def main() -> None:
    """Entry point of `tvmflow` and `python -m tvmflow`."""
    global verbose
    arguments = [argument for argument in sys.argv[1:] if argument not in ("-v", "--verbose")]
    verbose = len(arguments) < len(sys.argv) - 1
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("tvmflow").setLevel(logging.INFO)
    interrupt.watch()
    app(args=arguments)


db = typer.Typer(
    name="db",
    help="Look after the records of `tvmflow tune`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def command(function: Callable[..., None], group: typer.Typer = app) -> Callable[..., None]:
    """Register a command whose errors become one sentence and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has gone; Python would complain of that at its end
            raise typer.Exit(1) from None
        except (KeyboardInterrupt, Exception) as error:
            if interrupt.noted or isinstance(error, KeyboardInterrupt):
                exec(
                    ""
                )  # Python dies of a SIGINT that hit the exec of a string, unless another exec went well after it
                _fail("interrupted", 130)
            if isinstance(error, TvmflowError):
                _fail(str(error), error.exit_code)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                _fail(f"The disk is full ({error.filename or 'a temporary file'}); make room, or set TMPDIR.", 4)
            _fail(f"{type(error).__name__}: {error}", 1, internal=True)

    return group.command()(guarded)


app.add_typer(db)


def _fail(message: str, code: int, *, internal: bool = False) -> None:
    if verbose:
        traceback.print_exc()
    hint = "" if verbose or not internal else " (a fault of tvmflow itself; -v shows where)"
    print(f"tvmflow: {message}{hint}", file=sys.stderr)
    raise typer.Exit(code)


def _show(text: str, content: Any, json: Path | None) -> None:
    """Print `text`, or write `content` as JSON: to a file beside the text, or to stdout instead of it."""
    from tvmflow.report import to_json, write_json

    if json == Path("-"):
        print(to_json(content))
        return
    print(text)
    if json is not None:
        write_json(json, content)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tvmflow {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say it.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show where an error comes from.")] = False,
) -> None:
    pass


@command
def boards(json: Json = None) -> None:
    """List the boards that can be built for."""
    from tvmflow.report.render import text_table
    from tvmflow.targets import DEFAULT_BOARD, TARGETS

    rows = [
        [
            target.name + (" *" if target.name in DEFAULT_BOARD.values() else ""),
            target.kind,
            target.cpu.model,
            target.cpu.cores,
            target.cpu.clock_mhz or "?",
            target.memory_bytes >> 20,
            target.description,
        ]
        for target in TARGETS.values()
    ]
    table = text_table(["board", "target", "CPU", "cores", "MHz", "MiB", "description"], rows)
    _show(f"{table}\n\n* the default of its target", {name: asdict(target) for name, target in TARGETS.items()}, json)


@command
def build(
    out: Annotated[
        Path, typer.Option("-o", "--output", help="Where the bundle goes: a folder, or a file ending in .tar.")
    ],
    target: Target = None,
    board: Board = None,
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option("--dtype", help="What the network is computed in; float16 on boards whose CPU has it."),
    ] = "float32",
    linker: Annotated[str, typer.Option("--linker", help="auto, zig, cc or the command of a cross compiler.")] = "auto",
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Run it against PyTorch's outputs.")] = True,
    runner: Annotated[
        Literal["c", "c++"] | None,
        typer.Option("--runner", help="Add a program and a C library for devices without Python (c++ means the same)."),
    ] = None,
    dump_dir: Annotated[Path | None, typer.Option("--dump-dir", help="Write each stage's IR there.")] = None,
    tuned: Annotated[
        bool, typer.Option("--tuned/--no-tuned", help="Use the records of `tvmflow tune` for this board.")
    ] = True,
    db: Annotated[
        Path | None, typer.Option("--db", help="Records of `tvmflow tune` to use before others: its --work-dir.")
    ] = None,
    json: Json = None,
) -> None:
    """Compile a network for a board into a bundle, verified against PyTorch wherever its code can run."""
    from tvmflow import build as builder
    from tvmflow import targets
    from tvmflow.frontend import import_model, parse_input_shape
    from tvmflow.report import assemble
    from tvmflow.report.render import memory_text, schedules_text, verdict_text
    from tvmflow.tune import apply

    if db is not None and not tuned:
        raise UserError("--db names records to use and --no-tuned says to use none; give one of them.")
    if db is not None and dtype != "float32":
        raise UserError(f"--db names records of float32 kernels, which --dtype {dtype} has none of; give one of them.")
    found = targets.compute_in(targets.find(target, board), dtype)
    shapes = [parse_input_shape(text) for text in input_shape or []]
    builder.check(found, out, linker, runner=runner is not None)  # before the import, which takes its time
    records = apply.find_records(found, db) if tuned and dtype == "float32" else {}
    log.info(f"Importing {model}")
    program = import_model(model, shapes)
    built = builder.build(
        program,
        found,
        out,
        linker=linker,
        dump_dir=dump_dir,
        verify=verify,
        runner=runner is not None,
        records=records,
    )
    report = assemble(built, built.manifest["verify"], note=NOT_TIMED)
    lines = [
        f"{out}: {built.name} for {found.name}",
        f"verify   {verdict_text(report['verify'])}",
        f"memory   {memory_text(report['memory'])}",
        f"layers   {schedules_text(report['layers'])}",
    ]
    _show("\n".join(lines), report, json)


NOT_TIMED = "It wasn't timed: `tvmflow bench` does that on the device itself."


@command
def tune(
    target: Target = None,
    board: Board = None,
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Schedules to try, those of earlier runs included.")
    ] = 320,
    time_budget: Annotated[
        str, typer.Option("--time-budget", help="90s, 30m or 2h of searching, earlier runs included.")
    ] = "30m",
    runner: Annotated[str, typer.Option("--runner", help="auto, local, rpc or modelled.")] = "auto",
    ssh: Annotated[
        list[str] | None, typer.Option("--ssh", help="A board where `tvmflow serve` runs; several if given again.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="127.0.0.1:PORT that leads to one; several if given again.")
    ] = None,
    tracker: Tracker = None,
    key: Key = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The servers' token, for --host and --tracker.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Of `tvmflow serve`, for --ssh.")] = 9090,
    ssh_config: Annotated[Path | None, typer.Option("--ssh-config", help="In place of ~/.ssh/config.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="'list' shows them; names with commas (and *) tune these alone.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="Where records are kept; where `build` looks by default.")
    ] = None,
    min_gain: Annotated[
        float, typer.Option("--min-gain", min=0, help="Stop when a minute saves less than this percentage.")
    ] = 0.5,
    builders: Annotated[
        str | None,
        typer.Option("--builders", help="A Dask cluster that builds candidates: its scheduler's address."),
    ] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer/--no-transfer", help="Let the cost model start from earlier searches' records.")
    ] = True,
    json: Json = None,
) -> None:
    """Search better schedules for a network on a board. The same command again goes on where it stopped."""
    from tvmflow import targets
    from tvmflow.frontend import parse_input_shape
    from tvmflow.tune import command as tuning
    from tvmflow.tune.remote import Where, listed

    shapes = [parse_input_shape(text) for text in input_shape or []]
    found = targets.find(target, board)
    if tasks == "list":
        _show(*tuning.list_tasks(found, model, shapes), json)
        return
    plan = tuning.prepare(
        found,
        model,
        shapes,
        trials=trials,
        time_budget=time_budget,
        runner=runner,
        seed=seed,
        work_dir=work_dir,
        min_gain=min_gain,
        builders=builders,
        transfer=transfer,
        boards=[
            *(Where(name=name, arguments={"ssh": name, "ssh_config": ssh_config, "port": port}) for name in ssh or []),
            *(Where(name=name, arguments={"address": name, "token_file": token_file}) for name in host or []),
            *(listed(tracker, key, token_file) if tracker is not None else []),
        ],
    )
    _show(*tuning.tune(plan, tasks), json)


Records = Annotated[Path, typer.Argument(metavar="DIR", help="A --work-dir of `tvmflow tune`, or one board's folder.")]


@functools.partial(command, group=db)
def show(folder: Records, json: Json = None) -> None:
    """List tasks, trials and best schedules."""
    from tvmflow.tune import database

    text, content = database.show(folder)
    _show(text, content, json)


@functools.partial(command, group=db)
def merge(
    folder: Records,
    sources: Annotated[list[Path], typer.Argument(metavar="FROM…", help="Records, or a database of MetaSchedule.")],
) -> None:
    """Add records of the same board from elsewhere."""
    from tvmflow.tune import database

    print(database.merge(folder, sources))


@functools.partial(command, group=db)
def export(
    folder: Records,
    out: Annotated[Path, typer.Option("-o", "--output", help="An empty or new folder.")],
) -> None:
    """Copy each task's best record alone, for another computer or for schedules/tuned/."""
    from tvmflow.tune import database

    print(database.export(folder, out))


@functools.partial(command, group=db)
def prune(
    folder: Records,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Records to keep of each task, the fastest.")] = 5,
) -> None:
    """Forget slow records; the trials they cost stay counted."""
    from tvmflow.tune import database

    print(database.prune(folder, keep))


@command
def run(
    bundle: BundlePath,
    inputs: Annotated[list[Path], typer.Option("--input", help="A .npy file or an image; once per input.")],
    json: Json = None,
) -> None:
    """Run a bundle on an input of yours."""
    from tvmflow.bundle import open_bundle
    from tvmflow.infer import infer

    with open_bundle(bundle) as opened:
        result = infer(opened, inputs)
    if "classes" in result:
        text = "\n".join(f"{row['probability']:7.2%}  {row['label']}" for rows in result["classes"] for row in rows)
    else:
        text = "\n".join(f"{name}: {values}" for name, values in result["outputs"].items())
    _show(text, result, json)


@command
def verify(bundle: BundlePath, json: Json = None) -> None:
    """Check a bundle's files, run it on its golden vectors and compare with what PyTorch gave."""
    from tvmflow.bundle import open_bundle
    from tvmflow.report.render import text_table, verdict_text
    from tvmflow.spec import MissingDependencyError, VerificationError
    from tvmflow.verify import failure_sentence, verify_bundle

    with open_bundle(bundle) as opened:
        verdict = verify_bundle(opened)
        what = f"{bundle} ({opened.name} for {opened.target.name})"
    if verdict["passed"] is None:
        raise MissingDependencyError(f"{what} can't be verified here: {verdict['reason']}")
    rows = [
        [
            row["name"],
            "passed" if row["passed"] else "FAILED",
            f"{row['max_abs_error']:.2e}",
            f"{row['max_rel_error']:.2e}",
        ]
        for row in verdict["vectors"]
    ]
    table = text_table(["vector", "verdict", "max error", "relative"], rows)
    _show(f"{table}\n\n{what}: {verdict_text(verdict)}", verdict, json)
    if not verdict["passed"]:
        raise VerificationError(failure_sentence(verdict, what))


@command
def bench(
    bundle: BundlePath,
    threads: Threads = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Timed runs; as many as fit --seconds by default.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs.")] = 3.0,
    json: Json = None,
) -> None:
    """Time a bundle on this computer: set-up, first, warm and steady latency."""
    from tvmflow.survey import survey

    log.info(f"Timing {bundle}")
    report = survey(bundle, threads=threads, repeats=repeats, seconds=seconds, profiled=False)
    _finish(report, json, layers=False)


@command
def profile(
    bundle: BundlePath,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Instrumented runs.")] = 50,
    json: Json = None,
) -> None:
    """Time each layer of a bundle on this computer, by module name. Use `bench` for the latency of the whole."""
    from tvmflow.survey import survey

    log.info(f"Profiling {bundle}")
    report = survey(bundle, threads=threads, repeats=repeats, timed=False)
    _finish(report, json, layers=True)


def _finish(report: dict[str, Any], json: Path | None, *, layers: bool) -> None:
    from tvmflow.report.render import report_text

    _show(report_text(report, layers=layers), report, json)


@command
def deploy(
    bundle: BundlePath,
    ssh: Annotated[
        str | None, typer.Option("--ssh", help="The board: user@host, or a name of your SSH configuration.")
    ] = None,
    rpc: Annotated[bool, typer.Option("--rpc", help="Through `tvmflow serve` there, in place of the runner.")] = False,
    host: Annotated[
        str | None,
        typer.Option("--host", help="127.0.0.1:PORT of `tvmflow serve`, or of a tunnel to it; implies --rpc."),
    ] = None,
    tracker: Tracker = None,
    key: Key = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The server's token, for --host and --tracker.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Of `tvmflow serve`, for --ssh with --rpc.")] = 9090,
    to: Annotated[
        str | None, typer.Option("--to", help="Folder on the board; one of its own in .cache by default.")
    ] = None,
    ssh_config: Annotated[Path | None, typer.Option("--ssh-config", help="In place of ~/.ssh/config.")] = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs there.")] = 3.0,
    sustained: Annotated[
        str | None, typer.Option("--sustained", help="30m, say: time for so long, and watch clock and temperature.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="With --rpc: also time each layer, in another run.")
    ] = False,
    json: Json = None,
) -> None:
    """Carry a bundle to a board, verify and time it there.

    Over SSH alone, the bundle's own runner does it (`build --runner c`) and nothing has to be installed on the board.
    With --rpc, TVM there does it, in a session of `tvmflow serve`.
    """
    times: dict[str, Any] = {"threads": threads, "seconds": seconds}
    if sustained is not None:
        from tvmflow.tune.command import parse_duration

        times = {"threads": threads, "seconds": parse_duration(sustained, "--sustained"), "sustained": True}
    if rpc or host is not None or tracker is not None:
        from tvmflow.rpc import deploy as carry_by_rpc

        where: dict[str, Any] = {
            "ssh": ssh,
            "ssh_config": ssh_config,
            "address": host,
            "token_file": token_file,
            "port": port,
            "tracker": tracker,
            "key": key,
        }
        report = carry_by_rpc(bundle, profiled=profile, **times, **where)
    else:
        from tvmflow.deploy import deploy as carry

        if profile:
            raise UserError("--profile needs TVM on the board: --rpc, with `tvmflow serve` there.")
        if ssh is None:
            raise UserError("Say where the board is: --ssh user@host, or --host 127.0.0.1:PORT.")
        report = carry(bundle, ssh, folder=to, ssh_config=ssh_config, **times)
    _finish(report, json, layers=profile)


@command
def serve(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 9090,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Made if it isn't there; in ~/.config/tvmflow by default.")
    ] = None,
    session_seconds: Annotated[
        float, typer.Option("--session-seconds", min=1, help="What a session may take.")
    ] = 600.0,
    memory_mib: Annotated[int, typer.Option("--memory-mib", min=512, help="Address space of a session.")] = 2048,
    tracker: Tracker = None,
    key: Key = "",
) -> None:
    """On a board: let `tvmflow deploy --rpc` and TVM's RPC clients in, through SSH and with a token."""
    from tvmflow import serve as server

    limits = server.Limits(seconds=session_seconds, cpu_seconds=int(8 * session_seconds), memory_bytes=memory_mib << 20)
    server.serve(token_file or server.default_token_file(), port=port, limits=limits, tracker=tracker, key=key)


@command
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE|REPORT.json|RECORDS…",
            help="Bundles, reports that --json wrote, or work dirs of `tvmflow tune`.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for report.json and report.html.")],
    threads: Threads = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs.")] = 3.0,
) -> None:
    """Verify bundles, time those that this computer can run, and write report.json and report.html.

    Reports that were made elsewhere, as by `deploy` on a board, are put beside them as they are; records of `tvmflow
    tune` are shown as the course of the search.
    """
    from tvmflow.report import collect, read_report, write_json, write_text
    from tvmflow.report.render import render_html, report_text
    from tvmflow.report.search import search_of
    from tvmflow.spec import VerificationError
    from tvmflow.survey import survey
    from tvmflow.tune.store import Store, find_stores

    if not out.is_dir():
        raise UserError(f"There is no folder {out} for the report.")
    reports, searches = [], []
    for path in sources:
        if path.suffix == ".json":
            reports.append(read_report(path))
        elif records := list(find_stores(path)):
            searches += [search_of(Store(folder)) for folder in records]
            continue
        else:
            log.info(f"Surveying {path}")
            reports.append(survey(path, threads=threads, seconds=seconds, must_run=False))
        print(report_text(reports[-1], layers=False), end="\n\n")
    document = collect(reports, searches)
    write_json(out / "report.json", document)
    write_text(out / "report.html", render_html(document))
    print(f"{out / 'report.json'}\n{out / 'report.html'}")
    failed = [row["target"]["name"] for row in reports if row["verify"]["passed"] is False]
    if failed:
        raise VerificationError(f"The bundles for {', '.join(failed)} don't compute what the network computes.")


@command
def train(
    data: Annotated[Path, typer.Option("--data", help="CIFAR-10: an archive or folder of images, or its batches.")],
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Checkpoints; started again, the run goes on.")] = Path(
        "runs/dilated-net"
    ),
    out: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for weights and model card; the work dir by default.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 16,
    batch: Annotated[int, typer.Option("--batch", min=1)] = 128,
    rate: Annotated[float, typer.Option("--rate", help="Peak of the learning rate.")] = 4e-3,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    delta: Annotated[int, typer.Option("--delta", min=0, help="The paper's dilated rate δ.")] = 2,
    joint: Annotated[
        Literal["separate", "merged"], typer.Option("--joint", help="Reading of the joint module.")
    ] = "separate",
) -> None:
    """Train the paper's network on CIFAR-10. A run that was stopped goes on where it was."""
    import shlex

    from tvmflow.models import train as trainer
    from tvmflow.models.data import load_cifar10
    from tvmflow.models.dilated_net import DilatedNetConfig

    network = DilatedNetConfig(delta=delta, joint=joint)
    config = trainer.TrainConfig(network=network, epochs=epochs, batch=batch, peak_rate=rate, seed=seed)
    log.info(f"Reading {data}")
    cifar = load_cifar10(data)
    try:
        finished = trainer.train(config, cifar, work_dir)
    except KeyboardInterrupt:
        log.info(f"\nThe same command goes on from the last checkpoint in {work_dir}.")
        raise
    name = "dilated-net" if joint == "separate" else "dilated-net-merged"
    trainer.export(finished, cifar, out or work_dir, name, shlex.join(["tvmflow", *sys.argv[1:]]))
    print(f"{(out or work_dir) / name}.safetensors: accuracy {finished.curve[-1].test_accuracy:.2%} ({cifar.note})")


@command
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="CIFAR-10: an archive or folder of images, or its batches.")],
    model: Annotated[str, typer.Option("--model", help="A network of the registry.")] = "dilated-net",
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Also evaluate this bundle and compare.")] = None,
    json: Json = None,
) -> None:
    """Accuracy on the 10,000 test images of CIFAR-10, in PyTorch and, with --bundle, compiled."""
    from tvmflow.evaluate import evaluate as run_evaluation

    log.info(f"Evaluating {model} on {data}")
    result = run_evaluation(data, model, bundle)
    lines = [f"{result['accuracy']:.2%} of {result['images']:,} images in PyTorch ({result['data']})"]
    if compiled := result.get("compiled"):
        lines.append(
            f"{compiled['accuracy']:.2%} compiled for {compiled['target']}, agreeing on {compiled['agreement']:.2%}"
        )
    _show("\n".join(lines), result, json)


@command
def doctor(json: Json = None) -> None:
    """Say which tools were found, which are missing, what each is for, and the command that installs it."""
    from tvmflow.doctor import examine
    from tvmflow.report.render import text_table
    from tvmflow.spec import MissingDependencyError

    findings = examine()
    table = text_table(
        ["", "tool", "found", "needed for"],
        [[finding.status, finding.name, finding.detail, finding.needed_for] for finding in findings],
    )
    remedies = [f"{finding.name}: {finding.remedy}" for finding in findings if finding.remedy]
    text = "\n".join([table, "", *remedies]).strip()
    _show(text, [asdict(finding) for finding in findings], json)
    if problems := [finding.name for finding in findings if finding.status == "problem"]:
        raise MissingDependencyError(f"tvmflow can't work without {', '.join(problems)}; the commands above mend that.")
