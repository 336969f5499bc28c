"""A network of the registry in a folder, in the form that each of `benchmarks.runners` takes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tvmflow.bundles.bundle import Bundle
    from tvmflow.integer.network import IntegerNetwork
    from tvmflow.spec import Program
    from tvmflow.targets import Target

TO_LITERT = """
    import sys, torch, litert_torch
    network = litert_torch.to_channel_last_io(torch.export.load(sys.argv[1]).module(), args=[0])
    example = torch.zeros([int(dim) for dim in sys.argv[3:]])
    litert_torch.convert(network, (example,)).export(sys.argv[2])
"""
"""LiteRT's own converter; the network takes images as LiteRT lays them out, N×H×W×C."""


def convert(program: Program, folder: Path, litert_python: str = sys.executable) -> dict[str, str]:
    """Put input.npy, expected.npy and the network into `folder` as other libraries take it.

    `litert_python` is the interpreter of an environment that has litert-torch, which can't share one with TVM: it wants
    an older typing-extensions. Returns the runners that have nothing to run, and why.
    """
    import numpy as np
    import torch

    from benchmarks.networks import NETWORKS

    example = torch.from_numpy(program.vectors[0].inputs[0])
    np.save(folder / "input.npy", program.vectors[0].inputs[0])
    np.save(folder / "expected.npy", program.vectors[0].outputs[0])
    (folder / "model").write_text(program.name)
    network = NETWORKS[program.name]()
    torch.onnx.export(network, (example,), folder / "model.onnx", dynamo=True, verbose=False)
    reasons = {
        "ncnn": to_ncnn(network, example, folder),
        "litert": to_litert(network, example, folder, litert_python),
    }
    return {name: reason for name, reason in reasons.items() if reason}


def to_ncnn(network: torch.nn.Module, example: torch.Tensor, folder: Path) -> str:
    """By pnnx, ncnn's converter. Returns why not, or nothing."""
    import torch

    if importlib.util.find_spec("pnnx") is None:
        return "pnnx is not installed"
    scratch = folder / "pnnx"
    scratch.mkdir()
    torch.jit.trace(network, example).save(scratch / "model.pt")
    program = Path(importlib.util.find_spec("pnnx").origin).with_name("pnnx")  # type: ignore[union-attr, arg-type]
    done = _run([str(program), "model.pt", f"inputshape={list(example.shape)}".replace(" ", ""), "fp16=0"], scratch)
    if not done:
        for name in ("model.ncnn.param", "model.ncnn.bin"):
            shutil.move(scratch / name, folder)
    return done


def to_litert(network: torch.nn.Module, example: torch.Tensor, folder: Path, python: str) -> str:
    """By litert-torch, LiteRT's converter. Returns why not, or nothing."""
    import torch

    torch.export.save(torch.export.export(network, (example,)), folder / "model.pt2")
    script, shape = textwrap.dedent(TO_LITERT), map(str, example.permute(0, 2, 3, 1).shape)
    return _run([python, "-c", script, "model.pt2", "model.tflite", *shape], folder)


def host(cpu: str | None) -> Target:
    """This computer, or as if it were that CPU of LLVM's."""
    from tvmflow.targets import TARGETS

    known = TARGETS["host"]
    return replace(known, tvm={**known.tvm, "mcpu": cpu}) if cpu else known


def build_bundles(program: Program, folder: Path, cpu: str | None = None) -> Bundle:
    """tvmflow's own bundle of the network for this computer, and one without schedules."""
    from tvmflow.bundles.build import build

    build(program, replace(host(cpu), schedules=()), folder / "untuned")
    return build(program, host(cpu), folder / "bundle")


def convert_int8(network: IntegerNetwork, folder: Path, cpu: str | None = None) -> Bundle:
    """Put the quantised network into the folder "int8" of `folder`, as those that run it take it."""
    import numpy as np

    from tvmflow.bundles.build import build
    from tvmflow.integer import qdq
    from tvmflow.integer.frontend import integer_program
    from tvmflow.targets import compute_in

    folder = folder / "int8"
    folder.mkdir()
    program = integer_program(network)
    vector = next(vector for vector in program.vectors if vector.name == "image")
    np.save(folder / "input.npy", vector.inputs[0])
    np.save(folder / "expected.npy", vector.outputs[0])
    qdq.write(network, folder / "model.onnx", integers=True)  # no conversions, and unsigned is faster in ONNX Runtime
    return build(program, compute_in(host(cpu), "int8"), folder / "bundle")


def _run(command: list[str], folder: Path) -> str:
    """The last line that a failed command said, or nothing."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1] if done.returncode else ""
