"""Commands that make bundles on this computer and look at them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from tvmflow import spec
from tvmflow.cli.options import (
    Board,
    BundlePath,
    Cycles,
    InputShapes,
    Json,
    Labels,
    Mean,
    ModelName,
    Std,
    Target,
    Threads,
    output_path,
)
from tvmflow.cli.outcome import show, show_report
from tvmflow.network.shapes import InputShape
from tvmflow.spec import UserError

log = logging.getLogger("tvmflow.cli")


NOT_TIMED = "It wasn't timed: `tvmflow bench` does that on the device itself."


def boards(json: Json = None) -> None:
    """List the boards that can be built for."""
    from tvmflow.system.text import text_table
    from tvmflow.targets import DEFAULT_BOARD, TARGETS, form

    rows = [
        [
            target.name + (" *" if target.name in DEFAULT_BOARD.values() else ""),
            target.kind,
            target.processor.model,
            target.processor.cores,
            target.processor.clock_mhz or "?",
            f"{target.memory_bytes / 2**20:.{0 if target.memory_bytes >= 2**24 else 1}f}",
            target.description,
        ]
        for target in TARGETS.values()
    ]
    table = text_table(["board", "target", "processor", "cores", "MHz", "MiB", "description"], rows)
    show(
        f"{table}\n\n* the default of its target; of a GPU, cores are its SMs",
        {name: form.figures(target) for name, target in TARGETS.items()},
        json,
    )


def build(
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            parser=output_path,
            metavar="<path>",
            help="Where the bundle goes: a folder, or a file ending in .tar.",
        ),
    ],
    target: Target = None,
    board: Board = None,
    model: ModelName = "dilated-net",
    input_shape: InputShapes = None,
    dtype: Annotated[
        Literal["float32", "float16", "int8"] | None,
        typer.Option("--dtype", help="What the network is computed in; float16 on boards whose CPU has it."),
    ] = None,
    delivery: Annotated[
        Literal["module", "library"] | None,
        typer.Option("--format", help="A module for TVM's runtime, or a C library that needs none; by the board."),
    ] = None,
    scheme: Annotated[
        Literal["per-channel", "power-of-two"] | None,
        typer.Option("--scheme", help="With --dtype int8: how the network was quantised."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    arch: Annotated[
        list[str] | None,
        typer.Option("--arch", help="Also compile for this GPU architecture: sm_90, or compute_90 for PTX."),
    ] = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Launch a network's inner kernels as one CUDA graph, on NVIDIA GPUs.")
    ] = False,
    linker: Annotated[str, typer.Option("--linker", help="auto, zig, cc or the command of a cross compiler.")] = "auto",
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Run it against PyTorch's outputs.")] = True,
    runner: Annotated[
        Literal["c", "c++"] | None,
        typer.Option("--runner", help="Add a program and a C library for devices without Python (c++ means the same)."),
    ] = None,
    source: Annotated[
        bool, typer.Option("--source", help="Add the network as portable C99, for target cortex_m.")
    ] = False,
    dump_dir: Annotated[Path | None, typer.Option("--dump-dir", help="Write each stage's IR there.")] = None,
    tuned: Annotated[
        bool, typer.Option("--tuned/--no-tuned", help="Use the records of `tvmflow tune` for this board.")
    ] = True,
    db: Annotated[
        Path | None, typer.Option("--db", help="Records of `tvmflow tune` to use before others: its --work-dir.")
    ] = None,
    json: Json = None,
) -> None:
    """Compile a network for a board into a bundle, verified against PyTorch wherever its code can run.

    A file of `tvmflow quantize` is computed in int8, and the bundle has to match exact integer arithmetic bit for bit;
    so is a quantised .tflite file, and an .onnx or .pt2 file that others quantised. --dtype int8 asks for that of a
    network of the registry that comes quantised. --mean, --std and --labels go into the bundle, for `tvmflow run` on
    images, in place of what the network says of itself.
    """
    from dataclasses import replace

    from tvmflow import targets
    from tvmflow.bundles.build import build as build_bundle
    from tvmflow.bundles.build import check
    from tvmflow.integer.frontend import is_integer
    from tvmflow.models.examples import check_described, parse_labels, parse_preprocessing
    from tvmflow.network.frontend import import_model, parse_input_shape
    from tvmflow.report import assemble
    from tvmflow.report.render import memory_text, rules_text, schedules_text, verdict_text
    from tvmflow.targets.kind import Timing
    from tvmflow.targets.search import tuned_in
    from tvmflow.tune import apply

    if db is not None and not tuned:
        raise UserError("--db names records to use and --no-tuned says to use none; give one of them.")
    found = targets.find(target, board)
    if dtype is None and is_integer(model):
        dtype = "int8"
    dtype = dtype or cast(Literal["float32", "float16", "int8"], found.arithmetic)
    searched = tuned_in(found)
    if db is not None and dtype != searched:
        raise UserError(
            f"--db names records of {searched} kernels, which --dtype {dtype} has none of; give one of them."
        )
    if dtype == "int8" and input_shape and not model.endswith(".onnx"):
        raise UserError("--input-shape can't be chosen for a quantised network, which has one.")
    if dtype != "int8" and scheme is not None:
        raise UserError(f"--scheme says how a network was quantised, and --dtype {dtype} has none; give one of them.")
    if source and not targets.KINDS[found.kind].writes_source:
        raise UserError(f"--source writes the C of a network for microcontrollers, and {found.name} is none.")
    found = targets.compile_also(targets.compute_in(found, dtype), arch or [])
    if cuda_graph:
        found = targets.capture_graph(found)
    found = targets.deliver_as(found, delivery)
    shapes = [parse_input_shape(text) for text in input_shape or []]
    seen, named = parse_preprocessing(mean, std), parse_labels(labels) if labels is not None else ()
    check(found, out, linker, runner=runner is not None)  # before the import, which takes its time
    records = apply.find_records(found, db) if tuned and dtype == searched else {}
    log.info(f"Importing {model}")
    program = _quantised(model, found, scheme, shapes) if dtype == "int8" else import_model(model, shapes)
    check_described(program.inputs, program.outputs, seen, named)
    seen, named = seen or program.preprocessing, named or program.labels
    program = replace(program, preprocessing=seen, labels=named)
    built = build_bundle(
        program,
        found,
        out,
        linker=linker,
        dump_dir=dump_dir,
        verify=verify,
        runner=runner is not None,
        source=source,
        records=records,
    )
    report = assemble(built, built.manifest["verify"], Timing(note=NOT_TIMED))
    lines = [
        f"{out}: {built.name} for {found.name}",
        f"verify   {verdict_text(report['verify'])}",
        f"memory   {memory_text(report['memory'])}",
        f"layers   {schedules_text(report['layers'])}",
        *([f"rules    {rules_text(report['layers'])}"] if dtype == "int8" else []),
    ]
    show("\n".join(lines), report, json)


def _quantised(
    model: str,
    target: spec.Target,
    scheme: Literal["per-channel", "power-of-two"] | None,
    shapes: Sequence[InputShape],
) -> spec.Program:
    """A quantised network, or what stands in the way: all such operators of a float one, and that it is one."""
    from tvmflow.integer.frontend import import_quantized, is_integer
    from tvmflow.models import MODELS, comes_quantised
    from tvmflow.network.frontend import READERS, import_model
    from tvmflow.targets import KINDS, kind

    preferred = KINDS[target.kind].scheme
    is_float = model.endswith(tuple(READERS)) and not is_integer(model)
    if is_float or (model in MODELS and not comes_quantised(model)):
        kind.of(target).check_network(import_model(model, shapes), target)
        how = f" --scheme {scheme or preferred}" if scheme or preferred != "per-channel" else ""
        raise UserError(
            f"{model} isn't quantised yet: `tvmflow quantize --data … --model {model}{how}` makes a .safetensors file "
            "of it, to be given as --model."
        )
    return import_quantized(model, scheme, shapes, preferred=preferred)


def run(
    bundle: BundlePath,
    inputs: Annotated[list[Path], typer.Option("--input", help="A .npy file or an image; once per input.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also write the outputs, (calls, …) each, to this .npz file."),
    ] = None,
    json: Json = None,
) -> None:
    """Run a bundle on an input of yours, or on the inputs of many calls: a stream keeps its state between them."""
    from tvmflow.bundles.bundle import open_bundle
    from tvmflow.bundles.infer import call, described, save_outputs

    if output is not None and (output.suffix != ".npz" or not output.parent.is_dir()):
        raise UserError(f"Outputs are written to a .npz file in a folder that is there, which {output} is not.")
    with open_bundle(bundle) as opened:
        method, calls = call(opened, inputs)
        result = described(opened, method, calls)
        if output is not None:
            save_outputs(output, opened, calls)
    texts = [_call_text(one) for one in result.get("calls", [result])]
    if len(texts) > 1:
        texts = [f"call {number}\n{text}" for number, text in enumerate(texts)]
    show("\n".join(texts), result, json)


def _call_text(result: dict[str, Any]) -> str:
    if "classes" in result:
        return "\n".join(f"{row['probability']:7.2%}  {row['label']}" for rows in result["classes"] for row in rows)
    return "\n".join(f"{name}: {values}" for name, values in result["outputs"].items())


def verify(bundle: BundlePath, json: Json = None) -> None:
    """Check a bundle's files, run it on its golden vectors and compare with what PyTorch gave."""
    from tvmflow.bundles.bundle import open_bundle
    from tvmflow.bundles.verify import verify_bundle
    from tvmflow.network.agreement import failure_sentence
    from tvmflow.report.render import verdict_text
    from tvmflow.spec import MissingDependencyError, VerificationError
    from tvmflow.system.text import text_table

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
    show(f"{table}\n\n{what}: {verdict_text(verdict)}", verdict, json)
    if not verdict["passed"]:
        raise VerificationError(failure_sentence(verdict, what))


def compare(
    bundle: BundlePath,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The float network, in any form that `build` takes; the registry's by default."),
    ] = None,
    input_shape: InputShapes = None,
    quantised: Annotated[
        str | None,
        typer.Option("--quantised", help="The .safetensors file that the bundle was built from, if it was moved."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", help="Inputs as the float network takes them: .npz, .npy, or as `evaluate --data`."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=1000, help="Take the first so many of --inputs.")] = 8,
    json: Json = None,
) -> None:
    """Say where an int8 bundle goes wrong: tensor by tensor against exact integers and against the float network.

    The tensors are the deployed library's own, after each of its kernels: natively, emulated, on the stand-in for CUDA
    or on VTA's simulator. By default the golden vectors are computed; --inputs says more of signal and noise.
    """
    from tvmflow.bundles import compare as tensors
    from tvmflow.bundles.bundle import open_bundle
    from tvmflow.network.frontend import parse_input_shape
    from tvmflow.spec import VerificationError

    log.info(f"Comparing {bundle}")
    with open_bundle(bundle) as opened:
        shapes = [parse_input_shape(text) for text in input_shape or []]
        sources = tensors.find_sources(opened, quantised, model, shapes)
        found = tensors.compare_tensors(opened, sources, inputs, count)
    show(tensors.text(found), found, json)
    if not found["identical"]:
        raise VerificationError(f"{bundle} differs from its exact integers from {found['first_difference']} on.")
    if not found.get("tail", {"passed": True})["passed"]:
        raise VerificationError(f"{bundle} differs in what it computes in float32, behind integers that are right.")


def bench(
    bundle: BundlePath,
    threads: Threads = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Timed runs; as many as fit --seconds by default.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long to time steady runs.")] = 3.0,
    cycles: Cycles = False,
    json: Json = None,
) -> None:
    """Time a bundle on this computer: set-up, first, warm and steady latency.

    With --cycles, the latency of an ARM board is modelled instead, on cores whose model published latencies bear out.
    """
    from tvmflow.report.survey import survey
    from tvmflow.report.views import modelled_latency
    from tvmflow.spec import MissingDependencyError

    log.info(f"Timing {bundle}")
    report = survey(bundle, threads=threads, repeats=repeats, seconds=seconds, profiled=False, cycles=cycles)
    if report["latency"] is None and modelled_latency(report) is None:
        raise MissingDependencyError(f"{bundle} can't be timed here: {report['latency_note']}")
    show_report(report, json, layers=False)


def profile(
    bundle: BundlePath,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Instrumented runs.")] = 50,
    cycles: Cycles = False,
    json: Json = None,
) -> None:
    """Time each layer of a bundle on this computer, by module name. Use `bench` for the latency of the whole."""
    from tvmflow.report.survey import survey
    from tvmflow.spec import MissingDependencyError

    log.info(f"Profiling {bundle}")
    report = survey(bundle, threads=threads, repeats=repeats, timed=False, cycles=cycles)
    if report["layers"] and not any(
        layer["latency"] or "instructions" in layer["details"] for layer in report["layers"]
    ):
        raise MissingDependencyError(f"{bundle} can't be timed here: {report['latency_note']}")
    show_report(report, json, layers=True)
    if lacking := [gap["reason"] for gap in report["not_shown"] if gap["what"] == "cycles"]:
        raise MissingDependencyError(f"{bundle} is shown without cycles. {lacking[0]}")


def doctor(json: Json = None) -> None:
    """Say which tools were found, which are missing, what each is for, and the command that installs it."""
    from tvmflow.cli.doctor import examine
    from tvmflow.spec import MissingDependencyError, install_sentence
    from tvmflow.system.text import text_table

    findings = examine()
    table = text_table(
        ["", "tool", "found", "needed for"],
        [[finding.status, finding.name, finding.detail, finding.needed_for] for finding in findings],
    )
    remedies = [f"{finding.name}: {finding.remedy}" for finding in findings if finding.remedy]
    packages = tuple(dict.fromkeys(package for finding in findings for package in finding.packages))
    at_once = [f"All that Debian has of it at once: {install_sentence(packages)}"] if packages else []
    text = "\n".join([table, "", *remedies, *at_once]).strip()
    show(text, [asdict(finding) for finding in findings], json)
    if problems := [finding.name for finding in findings if finding.status == "problem"]:
        raise MissingDependencyError(f"tvmflow can't work without {', '.join(problems)}; the commands above mend that.")
