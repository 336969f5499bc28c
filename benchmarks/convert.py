"""A network in a folder, in the form that each of `benchmarks.runners` takes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.runners import TOLERANCE, save_expected

if TYPE_CHECKING:
    import torch

    from tvmflow.bundles.bundle import Bundle
    from tvmflow.integer.network import IntegerNetwork
    from tvmflow.spec import Program, Vector
    from tvmflow.targets import Target

TO_LITERT = """
    import sys, torch, litert_torch
    network = torch.export.load(sys.argv[1]).module()
    example = torch.zeros([int(dim) for dim in sys.argv[3:]])
    if example.dim() == 4:
        network = litert_torch.to_channel_last_io(network, args=[0])
    litert_torch.convert(network, (example,)).export(sys.argv[2])
"""
"""LiteRT's own converter; a network of images takes them as LiteRT lays them out, N×H×W×C."""

CONVERTED = ("onnxruntime", "ncnn", "litert")
"""What the network is converted for. OpenVINO takes ONNX Runtime's file, PyTorch and TVM the network itself."""


def certain(vectors: Sequence[Vector]) -> Vector:
    """The first vector whose answer rounding moves by less than libraries may be off; the first if there is none.

    A network can be such that some input's answer hangs on the last bits of its values: there nobody is wrong.
    """
    import numpy as np

    from tvmflow.network.agreement import tolerances

    for vector, allowed in zip(vectors, tolerances(vectors), strict=True):
        largest = [np.abs(output).max() for output in vector.outputs]
        if all(error <= TOLERANCE * max(1.0, most) < np.inf for error, most in zip(allowed, largest, strict=True)):
            return vector
    return vectors[0]


def convert(
    program: Program, folder: Path, litert_python: str = sys.executable, libraries: Collection[str] = CONVERTED
) -> dict[str, str]:
    """Put input.npy, expected.npy and the network into `folder` as other libraries take it, for `libraries` alone.

    `litert_python` is the interpreter of an environment that has litert-torch, which can't share one with TVM: it wants
    an older typing-extensions. Returns the runners that have nothing to run, and why: no converter takes everything.
    """
    import numpy as np
    import torch

    from benchmarks.networks import NETWORKS

    vector = certain(program.vectors)
    example = torch.from_numpy(vector.inputs[0])
    np.save(folder / "input.npy", vector.inputs[0])
    save_expected(folder, vector.outputs)
    (folder / "model").write_text(program.name)
    network = NETWORKS[program.name]()
    converters: dict[str, Callable[[], str]] = {
        "onnxruntime": lambda: to_onnx(network, example, folder),
        "ncnn": lambda: to_ncnn(network, example, folder),
        "litert": lambda: to_litert(network, example, folder, litert_python),
    }
    if "openvino" in libraries:
        libraries = {*libraries, "onnxruntime"}
    reasons: dict[str, str] = {}
    for name in converters:
        if name in libraries:
            try:
                reasons[name] = converters[name]()
            except Exception as error:  # those of PyTorch's exporters have no class in common
                reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if "openvino" in libraries:
        reasons["openvino"] = reasons["onnxruntime"]
    return {name: reason for name, reason in reasons.items() if reason}


def to_onnx(network: torch.nn.Module, example: torch.Tensor, folder: Path) -> str:
    """By PyTorch's exporter, for ONNX Runtime and OpenVINO."""
    import torch

    torch.onnx.export(network, (example,), folder / "model.onnx", dynamo=True, verbose=False)
    return ""


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
    shape = map(str, (example.permute(0, 2, 3, 1) if example.dim() == 4 else example).shape)
    script = textwrap.dedent(TO_LITERT)
    return _run([python, "-c", script, "model.pt2", "model.tflite", *shape], folder)


def host(cpu: str | None) -> Target:
    """This computer, or as if it were that CPU of LLVM's."""
    from tvmflow.targets import TARGETS

    known = TARGETS["host"]
    return replace(known, tvm={**known.tvm, "mcpu": cpu}) if cpu else known


def build_bundles(
    program: Program, folder: Path, cpu: str | None = None, *, untuned: bool = True, library: bool = False
) -> Bundle:
    """tvmflow's own bundle of the network for this computer, and, if wanted, one without schedules and a C library."""
    from tvmflow.bundles.build import build
    from tvmflow.targets import deliver_as

    if library:
        build(program, deliver_as(host(cpu), "library"), folder / "library")
    if untuned:
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
