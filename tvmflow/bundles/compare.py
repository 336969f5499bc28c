"""Where an int8 bundle goes wrong: each of its tensors against the exact integers and against the float network.

The tensors are those of the deployed library itself, taken after each of its kernels by the board's kind: TVM's virtual
machine where this computer or the stand-in for CUDA runs the library, the kernels under qemu-user for ARM boards, a
program around a library for C, VTA's simulator, and a microcontroller's firmware under qemu-system. No network is
compiled for this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.bundles.bundle import Bundle
from tvmflow.bundles.evaluate import is_data_set, is_quantised, snr_db
from tvmflow.integer.network import IntegerNetwork, canonical
from tvmflow.integer.reference import quantize
from tvmflow.models.examples import load_inputs
from tvmflow.network import agreement
from tvmflow.network.agreement import Arrays
from tvmflow.network.shapes import InputShape
from tvmflow.spec import Program, TensorSpec, UserError, Vector
from tvmflow.targets import kind

LIKELY = 8
"""Inputs of normally distributed noise on which signal and noise are taken where none are given: golden vectors are
integers over the whole range, which saturate everything and say nothing of how much is lost on real inputs."""


METHODS = {
    "native": "on this computer",
    "emulated kernels": "kernel by kernel under qemu-user",
    "stand-in": "kernel by kernel on the stand-in for CUDA",
    "simulated": "layer by layer on VTA's simulator",
    "emulated program": "as a program under qemu-user and looked at after each kernel",
    "emulated": "as firmware under qemu-system and stopped after each kernel",
}
"""How a library is run for its tensors, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The networks that a bundle is held against: the quantised one that it was built from, and maybe the float one."""

    quantised: IntegerNetwork
    original: Program | None


def find_sources(
    bundle: Bundle, quantised: str | None, original: str | None, shapes: Sequence[InputShape] = ()
) -> Sources:
    """The quantised network, which the bundle knows where it was, and the float one, that of the registry by default.

    Raises UserError, also where the quantised network isn't the one that the bundle was built from.
    """
    from tvmflow.integer.frontend import is_integer, load_network
    from tvmflow.models import MODELS, comes_quantised
    from tvmflow.models import quantized as known
    from tvmflow.network.frontend import import_model

    quantization = bundle.quantization
    if quantization is None:
        raise UserError(
            f"{bundle.path} holds a float network, and tensors are compared with exact integers; build it with --dtype "
            "int8, or see `tvmflow verify` and `tvmflow evaluate`."
        )
    source = bundle.manifest["model"]["source"]
    if quantised is None and original is not None and is_quantised(original):
        quantised, original = original, None
    if quantised is not None or (Path(source).is_file() and is_integer(source)):
        network = load_network(Path(quantised or source))
    elif comes_quantised(bundle.name) and source == f"tvmflow.models:{bundle.name}":
        network = known(bundle.name, quantization["scheme"])
    else:
        raise UserError(
            f"{bundle.path} was built from {source}, which isn't there; give --quantised with the .safetensors file of "
            "`tvmflow quantize` that it was built from."
        )
    for vector in bundle.vectors():
        same = [tuple(port.shape) for port in network.inputs] == [array.shape for array in vector.inputs]
        given = network.answer(vector.inputs) if same else ()
        if len(given) != len(vector.outputs) or not all(map(agreement.within_tolerance, vector.outputs, given)):
            raise UserError(
                f"{quantised or source} isn't the network that {bundle.path} was built from: it gives other numbers "
                f"for the golden vector {vector.name}; give the right one as --quantised."
            )
    if original is None and bundle.name in MODELS and source == f"tvmflow.models:{bundle.name}":
        original = bundle.name
    if original is None:
        return Sources(quantised=network, original=None)
    if ":" in original and not shapes:
        shapes = [InputShape(name=port.name, shape=tuple(port.shape)) for port in network.inputs]
    program = import_model(original, shapes)
    wanted = [tuple(port.shape) for port in network.inputs]
    if [tuple(spec.shape) for spec in program.inputs] != wanted:
        raise UserError(
            f"--model {original} takes {', '.join(_dims(spec.shape) for spec in program.inputs)}, and {network.name} "
            f"was quantised for {', '.join(map(_dims, wanted))}; give the network that it was quantised from."
        )
    return Sources(quantised=network, original=program)


def compare_tensors(bundle: Bundle, sources: Sources, inputs: str | None = None, count: int = 8) -> dict[str, Any]:
    """A row for each tensor in execution order, the first that differs, and where signal to noise falls most.

    Of what stays in float32, its layers and the verdict on the outputs, which are its.

    `inputs` are as the float network takes them, in a form of `--data`, of which `count` are taken; by default the
    golden vectors. Raises UserError, and MissingDependencyError where the bundle's code can't be run here.
    """
    network = sources.quantised
    note, whole, likely = _given(bundle, network, inputs, count, sources.original is not None)
    method, left = capture(bundle, network, whole)
    captured = {names[-1]: values for names, values in left}
    _, reference = network.run_kept(whole)
    ratios = _ratios(network, sources.original, likely) if sources.original is not None else None
    integer = bundle.layers[: len(left)]  # a tail's come behind them
    kernels = {name: layer for (names, _), layer in zip(left, integer, strict=True) for name in names}
    rows: list[dict[str, Any]] = []
    for layer in network.layers:
        found = captured.get(layer.name)
        difference = None if found is None else int(np.abs(found - reference[layer.name].astype(np.int64)).max())
        before = [value for name in layer.inputs if ratios and (value := ratios.snr.get(name)) is not None]
        own = ratios.snr.get(layer.name) if ratios else None
        rows.append(
            {
                "tensor": layer.name,
                "modules": list(layer.modules),
                "operator": layer.kind,
                "kernel": kernels[layer.name].kernel,
                "schedule": kernels[layer.name].schedule,
                "shape": list(layer.output_shape),
                "dtype": layer.dtype,
                "max_difference": difference,
                "snr_db": own,
                "fall_db": round(min(before) - own, 2) if before and own is not None else None,
            }
        )
    differing = [row for row in rows if row["max_difference"]]
    falling = [row for row in rows if row["fall_db"] is not None]
    worst = max(falling, key=lambda row: row["fall_db"], default=None)
    return {
        "bundle": str(bundle.path),
        "model": bundle.name,
        "target": bundle.target.name,
        "scheme": network.scheme,
        "float_model": sources.original.source if sources.original is not None else None,
        "method": method,
        "inputs": note,
        "tensors": rows,
        "identical": not differing,
        "first_difference": differing[0]["tensor"] if differing else None,
        "largest_fall": worst["tensor"] if worst is not None and worst["fall_db"] > 0 else None,
        "channel_factors": ratios.factors if ratios is not None else None,
        **({"tail": _tail(bundle, network, whole)} if network.tail is not None else {}),
    }


def _tail(bundle: Bundle, network: IntegerNetwork, inputs: Arrays) -> dict[str, Any]:
    """What the bundle's library gives against what stays in float32 makes of the exact integers."""
    assert network.tail is not None
    runs = [tuple(array[place : place + 1] for array in inputs) for place in range(len(inputs[0]))]
    vectors = [Vector(name=str(place), inputs=run, outputs=network.answer(run)) for place, run in enumerate(runs)]
    _, runner = kind.find_runner(bundle.library, bundle.target, bundle.outputs)
    verdict = agreement.compare(vectors, runner(runs))
    return {
        "layers": list(network.tail.layers),
        "passed": verdict["passed"],
        "max_abs_error": verdict["max_abs_error"],
        "max_rel_error": verdict["max_rel_error"],
    }


def _given(
    bundle: Bundle, network: IntegerNetwork, inputs: str | None, count: int, with_noise: bool
) -> tuple[str, Arrays, Arrays]:
    """In words what is computed on, int8 arrays of it, and the real ones on which signal and noise are taken."""
    if inputs is None:
        vectors = bundle.vectors()
        whole = tuple(
            np.concatenate([vector.inputs[place] for vector in vectors]) for place in range(len(network.inputs))
        )
        rng = np.random.default_rng(0)
        likely = tuple(rng.standard_normal((LIKELY, *port.shape[1:]), np.float32) for port in network.inputs)
        words = f", signal to noise by {LIKELY} inputs of normal noise" if with_noise else ""
        return f"{len(vectors)} golden vectors{words}", whole, likely
    if is_data_set(inputs):
        raise UserError(
            f"--inputs takes a .npy or .npz file, a folder of images or package.module:function, not {inputs}."
        )
    specs = [TensorSpec(name=port.name, shape=tuple(port.shape), dtype="float32") for port in network.inputs]
    found = load_inputs(inputs, specs, bundle.preprocessing or network.preprocessing, most=count)
    real = found.take(np.arange(min(count, found.count)))
    pairs = zip(real, network.inputs, strict=True)
    return f"{len(real[0])} {found.note}", tuple(quantize(array, port.scale) for array, port in pairs), real


# --------------------------------------------------------------------------------------------------- the deployed ones


def capture(bundle: Bundle, network: IntegerNetwork, inputs: Arrays) -> tuple[str, kind.Left]:
    """How the bundle's library was run, in a word, and what its kernels leave.

    Raises UserError, MissingDependencyError, VerificationError.
    """
    runs = [tuple(array[place : place + 1] for array in inputs) for place in range(len(inputs[0]))]
    calls = [layer.kernel for layer in bundle.layers]
    return kind.of(bundle.target).capture(bundle.library, bundle.target, network, runs, calls)


# ----------------------------------------------------------------------------------------------------- signal and noise


@dataclass(frozen=True, kw_only=True)
class _Ratios:
    """Signal to noise in dB of every tensor that the float network has, and where channels' factors are from."""

    snr: Mapping[str, float]
    factors: str


RESCALED = ".rescale"
"""What comes behind the name of a layer whose result is only brought into other steps."""


def _ratios(network: IntegerNetwork, original: Program, real: Arrays) -> _Ratios:
    """Raises UserError if the float network has other layers than the quantised one."""
    from tvmflow.integer.reader import float_graph

    graph = float_graph(original)
    _, kept = network.run_kept(
        tuple(quantize(array, port.scale) for array, port in zip(real, network.inputs, strict=True))
    )
    floats = {name: tensor.double().numpy() for name, tensor in graph.tensors_of(real).items()}
    floats |= {layer.name: passed.double().numpy() for layer, _, passed in graph.run(graph.tensors_of(real))}
    recorded: Mapping[str, Sequence[float]] | None = network.facts.get("channel_factors")
    snr = {}
    for own, port in zip(graph.inputs, network.inputs, strict=True):
        wanted = floats[own.name]
        q = quantize(wanted, port.scale).reshape(-1, *canonical(port.shape)[1:]) * port.scale
        snr[port.name] = _snr(wanted.reshape(q.shape), q)
    for layer in network.layers:
        name = layer.name.removesuffix(RESCALED)
        if name not in floats:
            continue
        wanted = floats[name]
        if wanted.shape != kept[layer.name].shape:
            raise UserError(
                f"{name} of the float network has another shape than in {network.name}; give the right --model."
            )
        found = kept[layer.name] * layer.scale
        factor = _fitted(wanted, found) if recorded is None else np.asarray(recorded.get(name, 1.0), np.float64)
        snr[layer.name] = _snr(wanted, found * factor.reshape(-1, 1, 1))
    if not any(layer.name in snr for layer in network.layers):
        raise UserError(f"The float network has none of the layers of {network.name}; give the one that was quantised.")
    return _Ratios(snr=snr, factors="recorded" if recorded is not None else "fitted")


def _fitted(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """By which factor each channel comes nearest: files of before don't say by what channels were equalised."""
    products, squares = ((wanted * found).sum((0, 2, 3)), np.square(found).sum((0, 2, 3)))
    return np.where(squares > 0, products / np.where(squares > 0, squares, 1), 1.0)


def _snr(wanted: np.ndarray, found: np.ndarray) -> float:
    return snr_db(float(np.square(wanted).sum()), float(np.square(wanted - found).sum()))


def text(found: Mapping[str, Any]) -> str:
    """The comparison for a terminal."""
    from tvmflow.system.text import text_table

    rows = []
    for row in found["tensors"]:
        difference = "in the next" if row["max_difference"] is None else row["max_difference"]
        snr, fall = (f"{row[key]:.1f}" if row[key] is not None else "" for key in ("snr_db", "fall_db"))
        rows.append([row["tensor"], row["operator"], row["schedule"], _dims(row["shape"][1:]), difference, snr, fall])
    header = ["tensor", "operator", "kernel", "shape", "off by", "dB", "falls by"]
    lines = [text_table(header, rows), ""]
    where = METHODS[found["method"]]
    if any(row["schedule"] == "processor" for row in found["tensors"]):
        where += ", the processor's layers by the same C on this computer"
    lines.append(
        f"{found['bundle']} ({found['model']} for {found['target']}), its own library, run {where}: {found['inputs']}."
    )
    if found["first_difference"] is None:
        lines.append("Every tensor is that of the exact integers, bit for bit.")
    else:
        row = next(row for row in found["tensors"] if row["tensor"] == found["first_difference"])
        lines.append(
            f"The first tensor that differs from the exact integers is {row['tensor']}, by up to "
            f"{row['max_difference']} steps, made by the kernel {row['kernel']} ({row['schedule']})."
        )
    if tail := found.get("tail"):
        lines.append(
            f"The outputs, of layers that stay in float32 ({', '.join(tail['layers'])}), are "
            f"{'right but for rounding' if tail['passed'] else 'wrong'}: off by up to {tail['max_abs_error']:.2g}, "
            f"relatively {tail['max_rel_error']:.2g}."
        )
    if found["float_model"] is None:
        lines.append("Signal to noise takes the float network: give it as --model.")
    elif found["largest_fall"] is not None:
        row = next(row for row in found["tensors"] if row["tensor"] == found["largest_fall"])
        before = row["snr_db"] + row["fall_db"]
        lines.append(
            f"Signal to noise against the float network falls most in {row['tensor']}, from {before:.1f} to "
            f"{row['snr_db']:.1f} dB."
        )
    if found["channel_factors"] == "fitted":
        lines.append("The file doesn't say by what channels were equalised; the factors that fit best were taken.")
    return "\n".join(lines)


def _dims(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
