"""Commands that make bundles on this computer and look at them."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tvmflow.cli import calls
from tvmflow.cli.options import (
    DEMO,
    MODEL_HELP,
    Board,
    BundlePath,
    Cycles,
    InputRange,
    InputShapes,
    Json,
    Labels,
    Mean,
    Std,
    Target,
    Threads,
    models_like,
    output_path,
)
from tvmflow.cli.outcome import show, show_report
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
    model: Annotated[
        str | None,
        typer.Option("--model", help=f"{MODEL_HELP} {DEMO}, a demonstration, by default.", autocompletion=models_like),
    ] = None,
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
    input_range: InputRange = None,
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
    from tvmflow.report import assemble
    from tvmflow.targets.kind import Timing

    if model is None:
        model = DEMO
        log.info(f"No --model was given: this builds {DEMO}, the network that comes with tvmflow as a demonstration.")
    built = calls.compile(
        model,
        input_shape,
        target=target,
        board=board,
        out=out,
        dtype=dtype,
        format=delivery,
        scheme=scheme,
        mean=mean,
        std=std,
        input_range=input_range,
        labels=labels,
        arch=arch or (),
        cuda_graph=cuda_graph,
        linker=linker,
        verify=verify,
        runner=runner is not None,
        source=source,
        dump_dir=dump_dir,
        tuned=tuned,
        db=db,
    )
    report = assemble(built.bundle, built.bundle.manifest["verify"], Timing(note=NOT_TIMED))
    show(f"{out}: " + "\n".join(built.lines()), report, json)


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
    from tvmflow.network.agreement import failure_sentence
    from tvmflow.spec import VerificationError
    from tvmflow.system.text import text_table

    opened = calls.load(bundle)
    found = opened.verify(must_pass=False)
    what = f"{bundle} ({opened.name} for {opened.board})"
    rows = [
        [
            row["name"],
            "passed" if row["passed"] else "FAILED",
            f"{row['max_abs_error']:.2e}",
            f"{row['max_rel_error']:.2e}",
        ]
        for row in found.document["vectors"]
    ]
    table = text_table(["vector", "verdict", "max error", "relative"], rows)
    show(f"{table}\n\n{what}: {found!r}", found.document, json)
    if not found:
        raise VerificationError(failure_sentence(found.document, what))


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
    log.info(f"Timing {bundle}")
    found = calls.load(bundle).bench(threads=threads, repeats=repeats, seconds=seconds, cycles=cycles)
    show_report(found.document, json, layers=False)


def profile(
    bundle: BundlePath,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Instrumented runs.")] = 50,
    cycles: Cycles = False,
    json: Json = None,
) -> None:
    """Time each layer of a bundle on this computer, by module name. Use `bench` for the latency of the whole."""
    from tvmflow.spec import MissingDependencyError

    log.info(f"Profiling {bundle}")
    report = calls.load(bundle).profile(threads=threads, repeats=repeats, cycles=cycles).document
    show_report(report, json, layers=True)
    if lacking := [gap["reason"] for gap in report["not_shown"] if gap["what"] == "cycles"]:
        raise MissingDependencyError(f"{bundle} is shown without cycles. {lacking[0]}")


def doctor(json: Json = None) -> None:
    """Say which tools were found, which are missing, what each is for, and the command that installs it."""
    from tvmflow.cli.doctor import examine, in_columns
    from tvmflow.spec import MissingDependencyError, install_sentence

    findings = examine()
    remedies = [f"{finding.name}: {finding.remedy}" for finding in findings if finding.remedy]
    packages = tuple(dict.fromkeys(package for finding in findings for package in finding.packages))
    at_once = [f"All that Debian has of it at once: {install_sentence(packages)}"] if packages else []
    text = "\n".join([*in_columns(findings), "", *remedies, *at_once]).strip()
    show(text, [asdict(finding) for finding in findings], json)
    if problems := [finding.name for finding in findings if finding.status == "problem"]:
        raise MissingDependencyError(f"tvmflow can't work without {', '.join(problems)}; the commands above mend that.")
