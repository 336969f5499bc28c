"""The readers of files that may come from elsewhere, each with files that the product makes, and some bad ones."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data_sets
import hostile_data
import numpy as np
from PIL import Image

from .mutate import Files


@dataclass(frozen=True, kw_only=True)
class Reader:
    """`read` takes the path `path` in a folder with the files of `corpus`, or the folder itself, and raises UserError.

    `repaired` gives files whose checksums are right again, so that what lies behind those is reached.
    """

    name: str
    read: Callable[[Path], Any]
    corpus: Callable[[], list[Files]]
    path: str = ""
    repaired: Callable[[Files], Files] | None = None


def _files_in(folder: Path) -> Files:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def _made(make: Callable[[Path], Any]) -> Files:
    """What `make` writes into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return _files_in(Path(folder))


def _small(files: dict[str, bytes]) -> list[bytes]:
    """Those of which many can be read in a second."""
    return [content for content in files.values() if len(content) < 1 << 18]


def _named(name: str, contents: Any) -> list[Files]:
    return [{name: content} for content in contents]


# ---------------------------------------------------------------------------------------------------- data and images


def _cifar10() -> list[Files]:
    def archive(folder: Path) -> None:
        data_sets.write_archive(data_sets.write_folder(folder / "data"), folder / "data.tar")

    def batches(folder: Path) -> None:
        root = data_sets.write_batches(folder / "batches")
        members = {path.name: path.read_bytes() for path in root.iterdir()}
        data_sets.archive_of({**members, "data_batch_3": hostile_data.python2_batch()}, folder / "data.tar")

    good = [{"data.tar": _made(make)["data.tar"]} for make in (archive, batches)]
    bad = [_made(lambda folder, content=content: _batch(folder, content)) for content in _small(hostile_data.BATCHES)]  # type: ignore[misc]
    return [*good, *bad, *_named("data.tar", _small(hostile_data.ARCHIVES))]


def _batch(folder: Path, content: bytes) -> None:
    data_sets.archive_of({"data_batch_1": content}, folder / "data.tar")


def _read_cifar10(path: Path) -> None:
    from tvmflow.models.data import load_cifar10

    load_cifar10(path, counts=data_sets.COUNTS)


def _read_batch(path: Path) -> None:
    from tvmflow.models.batches import read_batch

    read_batch("data_batch_1", path.read_bytes())


def _batches() -> list[Files]:
    written = _made(lambda folder: data_sets.write_batches(folder / "batches"))["batches/data_batch_1"]
    return _named("batch", (hostile_data.python2_batch(), written, *_small(hostile_data.BATCHES)))


def _tiny_imagenet() -> list[Files]:
    def make(folder: Path) -> None:
        (folder / "wnids.txt").write_text("n1\nn2\n")
        (folder / "words.txt").write_text("n1\tbird, fowl\nn2\tdog\n")
        (folder / "val" / "images").mkdir(parents=True)
        rows = []
        for number, name in enumerate(("n1", "n2")):
            (folder / "train" / name / "images").mkdir(parents=True)
            Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / "train" / name / "images" / f"{name}_0.JPEG")
            Image.new("L", (64, 64), number).save(folder / "val" / "images" / f"val_{number}.JPEG")
            rows.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n")
        (folder / "val" / "val_annotations.txt").write_text("".join(rows))

    return [_made(make)]


def _read_tiny_imagenet(path: Path) -> None:
    from tvmflow.models.tiny_imagenet import load_tiny_imagenet

    load_tiny_imagenet(path, counts={"train": 2, "val": 2})


def _images() -> list[Files]:
    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        made = io.BytesIO()
        image.save(made, kind, **options)
        return made.getvalue()

    small = hostile_data.NOISE.resize((9, 7))
    grey = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000)
    good = [
        *(saved(small, kind) for kind in ("PNG", "JPEG", "BMP", "PPM", "WEBP")),
        *(saved(small.convert(mode), "PNG") for mode in ("1", "L", "P", "RGBA", "LA")),
        *(saved(small.convert("CMYK"), "JPEG"), saved(small, "JPEG", progressive=True), saved(grey, "PNG")),
    ]
    return _named("image.png", (*good, *_small(hostile_data.IMAGES)))


def _read_image(path: Path) -> None:
    from tvmflow.models.data import read_image

    read_image(path, (1, 3, 32, 32))
    read_image(path, (1, 1, 5, 4))


def _arrays() -> list[Files]:
    def saved(write: Callable[..., None], array: np.ndarray) -> bytes:
        made = io.BytesIO()
        write(made, array)
        return made.getvalue()

    array = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    orders = (array, array.astype(np.float16), np.asfortranarray(array.astype(">f8")))
    good = [saved(write, kind) for write in (np.save, np.savez, np.savez_compressed) for kind in orders]
    return _named("inputs.npy", (*good, *_small(hostile_data.ARRAYS)))


def _read_array(path: Path) -> None:
    from tvmflow.models.examples import load_inputs
    from tvmflow.spec import TensorSpec

    inputs = load_inputs(path, (TensorSpec(name="x", shape=(1, 3, 4, 4), dtype="float32"),), None)
    inputs.take(np.arange(inputs.count))


def _several() -> list[Files]:
    """Arrays by name, with labels."""
    rng, made = np.random.default_rng(0), []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        a, b = (rng.standard_normal((3, 5)).astype(np.float32) for _ in range(2))
        write(file, a=a, b=b, labels=np.arange(3))
        made.append(file.getvalue())
    return _named("inputs.npz", made)


def _read_several(path: Path) -> None:
    from tvmflow.models.examples import load_inputs
    from tvmflow.spec import TensorSpec

    inputs = load_inputs(path, [TensorSpec(name=name, shape=(1, 5), dtype="float32") for name in "ab"], None)
    inputs.take(np.arange(inputs.count))


LABELS = (b"cat\ndog\n", b"a,b")


def _read_labels(path: Path) -> None:
    from tvmflow.models.examples import parse_labels

    parse_labels(str(path))


def _read_input(path: Path) -> None:
    from tvmflow.bundles.bundle import load_array
    from tvmflow.spec import TensorSpec

    load_array(path, TensorSpec(name="input", shape=(2, 3, 4, 4), dtype="float32"))


# ------------------------------------------------------------------------------------------- bundles and their reports


@functools.cache
def _tiny() -> Any:
    from tvmflow.network.frontend import import_model, parse_input_shape

    return import_model("networks:tiny", [parse_input_shape("1x3x9x7")])


@functools.cache
def _bundle() -> Files:
    from tvmflow.bundles.build import build
    from tvmflow.targets import TARGETS

    return _made(lambda folder: build(_tiny(), TARGETS["host"], folder / "bundle"))


def _bundles() -> list[Files]:
    return [_bundle()]


def _bundle_repaired(files: Files) -> Files:
    """With the sizes and sums of the members as they are."""
    try:
        manifest = json.loads(files["bundle/manifest.json"])
        for name, content in files.items():
            member = name.removeprefix("bundle/")
            if member in manifest["members"]:
                about = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                manifest["members"][member].update(about)
        return {**files, "bundle/manifest.json": json.dumps(manifest).encode()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return files


def _bundle_archives() -> list[Files]:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(_bundle().items()):
            member = tarfile.TarInfo(name.removeprefix("bundle/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return _named("bundle.tar", (made.getvalue(), *_small(hostile_data.ARCHIVES)))


def _read_bundle(path: Path) -> None:
    from tvmflow.bundles.bundle import open_bundle

    with open_bundle(path) as bundle:
        vectors = bundle.vectors()
        bundle.tolerances(vectors)
        _ = bundle.layers, bundle.labels, bundle.preprocessing, bundle.quantization


def _reports() -> list[Files]:
    from tvmflow.report import collect
    from tvmflow.report.survey import survey
    from tvmflow.system.text import to_json

    with tempfile.TemporaryDirectory() as folder:
        for name, content in _bundle().items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        report = survey(Path(folder, "bundle"), repeats=5)
    return _named("report.json", (to_json(report).encode(), to_json(collect([report, report])).encode()))


def _read_report(path: Path) -> None:
    from tvmflow.report import collect, read_document
    from tvmflow.report.render import FORMATS, report_text

    reports, estimates = read_document(path)
    document = collect(reports, [], estimates)
    for row in document["reports"]:
        report_text(row, layers=True)
    for write in FORMATS.values():
        write(document)


def _compare_reports(path: Path) -> None:
    from tvmflow.report import compare, read_reports

    for pair in compare.pairs(read_reports(path), read_reports(path)):
        compare.text(compare.compare(*pair, any_basis=True))


# ------------------------------------------------------------------------------------------------- boards and searches


BOARD = b"""extends = "raspberry-pi-4b"
name = "rock"
description = "Rock Pi 4, big cores"
datasheet = "RK3399 datasheet 2.1"
memory_bytes = 4000000000
schedules = ["depthwise_nchw", "pointwise_nchw"]

[cpu]
model = "Cortex-A72"
cores = 2
clock_mhz = 1800
memory_gbps = 3.2

[tvm]
num-cores = 2
"""

BOARDS = (
    BOARD,
    b'extends = "jetson-nano"\n[gpu]\nsms = 2\nalso = ["sm_90"]\n',
    b'extends = "pynq-z1"\n[vta]\nbus_bytes = 8\nlatency_band = [20, 60]\n[vta.configuration]\nLOG_BLOCK = 4\n',
    b'extends = "stm32h743"\n[mcu]\nflash_bytes = 2097152\nram_bytes = 524288\n',
)


def _read_board(path: Path) -> None:
    from tvmflow.targets import KINDS, find

    assert find(None, str(path)).kind in KINDS


def _stores() -> list[Files]:
    from test_tune_store import IDENTITY, TASK, trial

    from tvmflow.tune.store import Store

    def make(folder: Path) -> None:
        with Store(folder / "store", IDENTITY, writable=True) as opened:
            opened.append([{"kind": "run", "run": 1, "options": {}}, TASK])
            opened.append([trial("rule()", 2), trial("a", 3), trial("b", 1), trial("c", None)])
            winner = {
                "kind": "winner",
                "run": 1,
                "task": TASK["task"],
                "candidate": "b",
                "ms": [1.0],
                "default_ms": [2.0],
            }
            opened.append([winner, {"kind": "end", "run": 1, "reason": "done"}])

    return [_made(make)]


def _read_store(path: Path) -> None:
    from tvmflow.tune.store import Store

    opened = Store(path)
    for task in opened.tasks:
        opened.best(task)
        opened.failures([task])


def _merge_store(path: Path) -> None:
    """Into a store of the user's own."""
    from test_tune_store import IDENTITY

    from tvmflow.tune.exchange import merge
    from tvmflow.tune.store import Store

    with Store(path.parent / "mine", IDENTITY, writable=True) as mine:
        merge(mine, path)


def _databases() -> list[Files]:
    return [{name: content for name, content in files.items() if "database" in name} for files in _stores()]


def _show_search(path: Path) -> None:
    from tvmflow.report.search import search_of
    from tvmflow.tune.store import Store

    search_of(Store(path))


# ------------------------------------------------------------------------------------------------------------ networks


def _int8() -> list[Files]:
    from integer_graphs import KINDS as DRAWN
    from integer_graphs import random_graph, together
    from integer_networks import POOL, conv, dense, depthwise, random_network

    from tvmflow.integer import file
    from tvmflow.integer.graph import FloatGraph, FloatNode
    from tvmflow.integer.keep_float import tail_of
    from tvmflow.integer.network import Port
    from tvmflow.integer.operators import Softmax

    def make(folder: Path) -> None:
        shapes = (conv(5, 3), depthwise(), POOL, dense(4))
        drawn = random_network(np.random.default_rng(0), "per-channel", shapes=shapes, input_shape=(1, 3, 6, 5))
        file.save(drawn, folder / "network.safetensors")

    def make_graph(folder: Path) -> None:
        """Every operator."""
        rng = np.random.default_rng(0)
        graphs = [random_graph(rng, "per-channel", prefix=f"{kind}.", layers=2, kinds=(kind,)) for kind in DRAWN]
        file.save(together(graphs), folder / "network.safetensors")

    def make_tail(folder: Path) -> None:
        """What stays in float32 is a softmax."""
        drawn = random_network(np.random.default_rng(0), "per-channel", shapes=(dense(4),), input_shape=(1, 3, 1, 1))
        last = drawn.layers[-1]
        read = Port(name=last.name, shape=last.output_shape, scale=last.scale)
        given = Port(name="output", shape=(1, 4), scale=1.0, source="softmax")
        softmax = FloatNode(
            name="softmax",
            modules=(),
            operator=Softmax(axis=1),
            inputs=(last.name,),
            input_shapes=(last.output_shape,),
            output_shape=last.output_shape,
        )
        end = FloatGraph(name="end", inputs=(read,), outputs=(given,), layers=(softmax,))
        tail = tail_of(end, [last.scale], [last.dtype])
        file.save(replace(drawn, outputs=(replace(read, source=last.name),), tail=tail), folder / "network.safetensors")

    return [_made(make), _made(make_graph), _made(make_tail)]


def _read_int8(path: Path) -> None:
    from tvmflow.integer import file

    network = file.load(path)
    assert network.layers


def _weights() -> list[Files]:
    from tvmflow.models import WEIGHTS

    facts = json.loads((WEIGHTS / "dilated-net.json").read_text())
    from networks import tiny
    from safetensors.torch import save

    facts["config"]["network"].update(widths=[5], strides=[2], classes=4)
    return [
        {"net.safetensors": save(tiny().state_dict()), "net.json": json.dumps({"config": facts["config"]}).encode()}
    ]


def _read_weights(path: Path) -> None:
    from tvmflow.models.train import exported

    exported(path)


def _recipe() -> Any:
    from tvmflow.models.dilated_net import DilatedNetConfig
    from tvmflow.models.train import TrainConfig

    return TrainConfig(network=DilatedNetConfig(widths=(3, 4), strides=(2, 2)), epochs=1)


def _checkpoints() -> list[Files]:
    from tvmflow.models import train

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pt")
        train._State(_recipe(), 4).save(path)
        return _named("state.pt", (path.read_bytes(),))


def _read_checkpoint(path: Path) -> None:
    from tvmflow.models import train

    train._State(_recipe(), 4).load(path)


def _pt2() -> list[Files]:
    import torch
    from networks import tiny

    made = io.BytesIO()
    torch.export.save(torch.export.export(tiny(), (torch.zeros(1, 3, 9, 7),)), made)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pt2")
        path.write_bytes(made.getvalue())
        _read_archive(path)  # what is spoiled where nothing is read needs no second reading
    return _named("network.pt2", (made.getvalue(),))


_CLEAN: set[str] = set()
"""Hashes of what PyTorch was given of archives that were read."""


def _read_archive(path: Path) -> None:
    """What is hostile in a .pt2 file ends here, in a thirtieth of the time that making a network of the rest takes.

    Three quarters are refused by our own reading. PyTorch reads what is left of the others, the same content once.
    """
    from tvmflow.network import pt2_archive

    try:
        with zipfile.ZipFile(pt2_archive._clean(path)) as clean:
            content = hashlib.sha256(repr([(entry.filename, clean.read(entry)) for entry in clean.infolist()]).encode())
    except (ValueError, KeyError, RecursionError):
        pass  # which `load` makes a sentence of
    else:
        if content.hexdigest() in _CLEAN:
            return
        _CLEAN.add(content.hexdigest())
    pt2_archive.load(path)


def _onnx() -> list[Files]:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(4).astype(np.float32),
        "shape": np.array([1, -1]),
        "dense": rng.standard_normal((80, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "dense"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return _named("network.onnx", (model.SerializeToString(),))


def _onnx_quantised() -> list[Files]:
    # no input is to wait for what these import
    from onnx_quantised import CASES, model_of

    return _named("network.onnx", [model_of(name).SerializeToString() for name in CASES])


def _pt2_quantised() -> list[Files]:
    import torch
    from pt2_quantised import SHAPE, Converted, saved

    return _named("network.pt2", [saved(Converted(), torch.zeros(SHAPE))])


def _tflite() -> list[Files]:
    from tflite_cases import CASES, graphs_of
    from tflite_files import file_of

    import tvmflow.network.tflite.operators
    import tvmflow.network.tflite.reference  # noqa: F401  # once, and not in each process that reads

    return [*_named("network.tflite", [file_of(*graphs_of(name)) for name in CASES]), *_float_tflite()]


def _float_tflite() -> list[Files]:
    from tflite_files import file_of
    from tflite_float_cases import CASES

    return _named("network.tflite", [file_of(make()) for make in CASES.values()])


def _read_integers(path: Path) -> None:
    from tvmflow.integer.frontend import load_network

    load_network(path)


def _read_tflite(path: Path) -> None:
    """By the reader that the file is for; float networks are run once, where the command makes a dozen vectors."""
    from tvmflow.integer.frontend import load_network
    from tvmflow.network.tflite.file import read_graph
    from tvmflow.network.tflite.graph import is_float

    if not is_float(path):
        load_network(path)
        return
    inputs, _, run = read_graph(path)
    with contextlib.suppress(Exception):  # what operands that don't fit make PyTorch raise, `from_tflite` words
        run(*(np.zeros(spec.shape, spec.dtype) for spec in inputs))


def _read_network(path: Path) -> None:
    from tvmflow.network.frontend import import_model

    import_model(str(path))


# ----------------------------------------------------------------------------------------------------------------- VTA


def _vta_programs() -> list[Files]:
    from vta_examples import pointwise

    from tvmflow.targets.vta import program

    (one, *_) = pointwise()
    several = replace(one, inputs=one.inputs * 2, outputs=one.outputs * 3)
    end = len(one.instructions)
    steps = (
        program.Step(layers=len(one.layers), first=0, last=end),
        program.Step(layers=0, first=end, last=end, function="layer_001", offset=0, bytes=16),
    )
    split = replace(one, steps=steps, source="void layer_001(unsigned char *memory) { *memory = 0; }")
    return [_made(lambda folder, made=made: program.save(made, folder)) for made in (one, several, split)]


def _read_vta_program(path: Path) -> None:
    from tvmflow.targets.vta import isa, program

    executable = program.read(path)
    for mark in executable.layers:
        for number in range(mark.first, mark.last):
            isa.text(executable.instructions[number])
    assert sum(len(part.layers) for _, part in executable.parts()) == len(executable.layers)


def _vta_configurations() -> list[Files]:
    from tvmflow.targets.vta.config import SAMPLES

    return _named("vta.json", (json.dumps(SAMPLES["pynq"].to_json()).encode(),))


def _read_vta_configuration(path: Path) -> None:
    from tvmflow.targets.vta import config

    config.read(path)


# -------------------------------------------------------------------------------------------------------------- others


def _read_token(path: Path) -> None:
    from tvmflow.remote.serve import read_token

    read_token(path)


def _calibrations() -> list[Files]:
    from dataclasses import fields

    from tvmflow.targets.cuda.model import Constants

    return _named("model.json", (json.dumps({field.name: 1.5 for field in fields(Constants)}).encode(),))


def _read_calibration(path: Path) -> None:
    from tvmflow.targets.cuda.model import load_constants

    load_constants(path)


READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader(name="cifar10", read=_read_cifar10, corpus=_cifar10, path="data.tar"),
        Reader(name="batch", read=_read_batch, corpus=_batches, path="batch"),
        Reader(name="tiny-imagenet", read=_read_tiny_imagenet, corpus=_tiny_imagenet),
        Reader(name="image", read=_read_image, corpus=_images, path="image.png"),
        Reader(name="array", read=_read_array, corpus=_arrays, path="inputs.npy"),
        Reader(name="arrays", read=_read_several, corpus=_several, path="inputs.npz"),
        Reader(
            name="labels",
            read=_read_labels,
            corpus=lambda: _named("labels.txt", [b"cat\ndog\n", b"a,b"]),
            path="labels.txt",
        ),
        Reader(name="input", read=_read_input, corpus=_arrays, path="inputs.npy"),
        Reader(name="bundle", read=_read_bundle, corpus=_bundles, path="bundle", repaired=_bundle_repaired),
        Reader(name="bundle-tar", read=_read_bundle, corpus=_bundle_archives, path="bundle.tar"),
        Reader(name="report", read=_read_report, corpus=_reports, path="report.json"),
        Reader(name="report-diff", read=_compare_reports, corpus=_reports, path="report.json"),
        Reader(name="board", read=_read_board, corpus=lambda: _named("board.toml", BOARDS), path="board.toml"),
        Reader(name="ledger", read=_read_store, corpus=_stores, path="store"),
        Reader(name="ledger-report", read=_show_search, corpus=_stores, path="store"),
        Reader(name="ledger-merge", read=_merge_store, corpus=_stores, path="store"),
        Reader(name="database-merge", read=_merge_store, corpus=_databases, path="store"),
        Reader(name="int8", read=_read_int8, corpus=_int8, path="network.safetensors"),
        Reader(name="weights", read=_read_weights, corpus=_weights, path="net.safetensors"),
        Reader(name="checkpoint", read=_read_checkpoint, corpus=_checkpoints, path="state.pt"),
        Reader(name="pt2", read=_read_archive, corpus=_pt2, path="network.pt2"),
        Reader(name="pt2-network", read=_read_network, corpus=_pt2, path="network.pt2"),
        Reader(name="tflite", read=_read_tflite, corpus=_tflite, path="network.tflite"),
        Reader(name="float-tflite", read=_read_network, corpus=_float_tflite, path="network.tflite"),
        Reader(name="pt2-quantised", read=_read_integers, corpus=_pt2_quantised, path="network.pt2"),
        Reader(name="onnx-quantised", read=_read_integers, corpus=_onnx_quantised, path="network.onnx"),
        Reader(name="onnx", read=_read_network, corpus=_onnx, path="network.onnx"),
        Reader(name="vta-program", read=_read_vta_program, corpus=_vta_programs),
        Reader(name="vta-configuration", read=_read_vta_configuration, corpus=_vta_configurations, path="vta.json"),
        Reader(
            name="token",
            read=_read_token,
            corpus=lambda: _named("token", (b"0123456789abcdef" * 2 + b"\n",)),
            path="token",
        ),
        Reader(name="cuda-calibration", read=_read_calibration, corpus=_calibrations, path="model.json"),
    )
}

SLOW = ("float-tflite", "pt2", "pt2-network", "pt2-quantised", "onnx")
"""Readers that the tests leave to the command, for an input may take a second."""
