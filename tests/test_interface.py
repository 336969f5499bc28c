"""What networks of PyTorch take and give becomes named tensors of any dtype; the rest is a constant or refused."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import load_array, open_bundle
from tvmflow.bundles.infer import infer
from tvmflow.network.frontend import import_model, parse_input_shape
from tvmflow.network.interface import nest_named, unique
from tvmflow.spec import Program, TensorSpec, UserError
from tvmflow.targets import TARGETS

HOST = TARGETS["host"]


def shapes(*texts: str) -> list:
    return [parse_input_shape(text) for text in texts]


def exported(tmp_path: Path, network: nn.Module, arguments: tuple, by_keyword: dict | None = None, **more) -> str:
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(network.eval(), arguments, by_keyword, **more), path)
    return str(path)


def passes(program: Program, tmp_path: Path, target: str = "host", **more) -> Path:
    """Build; build() raises where the answers differ from PyTorch's."""
    out = tmp_path / f"built-{target}"
    verified = build(program, TARGETS[target], out, **more).manifest["verify"]
    if verified["passed"] is None:
        pytest.skip(verified["reason"])
    assert verified["passed"] is True
    return out


class Nested(nn.Module):
    """Arguments and results of every kind and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.offsets = nn.Parameter(torch.arange(3.0))
        self.words = nn.Embedding(9, 4)

    def forward(self, x, state, ids, n=2, *, options, scale, unused=None):
        y = self.linear(x) * scale + state[0] + self.words(ids).mean(1) * n
        y = torch.where(options["mask"], y, state[1].to(y.dtype))
        return {
            "logits": y,
            "best": y.argmax(1),
            "over": y > 0.1,
            "pair": (y.t(), y.bfloat16()),
            "narrow": [y.half(), (y * 10).to(torch.int8), ids.int()],
            "double": y.double(),
            "total": y.sum(),
            "count": (y > 0).sum(),
            "offsets": self.offsets,
            "x": x,
            "again": y,
            "nothing": None,
            "three": 3,
            "a b/c": y + 1,
            "a b:c": y - 1,
        }


def nested() -> nn.Module:
    torch.manual_seed(0)
    return Nested()


@pytest.fixture(scope="module")
def many() -> Program:
    given = ("2x6", "state.0=4", "state.1=2x4:bfloat16", "ids=2x3:int64", "options.mask=2x4:bool", "scale=scalar")
    return import_model("test_interface:nested", shapes(*given, "unused=1:int16"))


def test_arguments_are_named_by_where_they_are(many):
    assert [(spec.name, spec.dtype, spec.shape) for spec in many.inputs] == [
        ("x", "float32", (2, 6)),
        ("state.0", "float32", (4,)),
        ("state.1", "bfloat16", (2, 4)),
        ("ids", "int64", (2, 3)),
        ("options.mask", "bool", (2, 4)),
        ("scale", "float32", ()),
        ("unused", "int16", (1,)),
    ]


def test_results_are_named_by_where_they_are(many):
    assert [(spec.name, spec.dtype, spec.shape) for spec in many.outputs] == [
        ("logits", "float32", (2, 4)),
        ("best", "int64", (2,)),
        ("over", "bool", (2, 4)),
        ("pair.0", "float32", (4, 2)),
        ("pair.1", "bfloat16", (2, 4)),
        ("narrow.0", "float16", (2, 4)),
        ("narrow.1", "int8", (2, 4)),
        ("narrow.2", "int32", (2, 3)),
        ("double", "float64", (2, 4)),
        ("total", "float32", ()),
        ("count", "int64", ()),
        ("offsets", "float32", (3,)),
        ("x", "float32", (2, 6)),
        ("again", "float32", (2, 4)),
        ("a_b_c", "float32", (2, 4)),
        ("a_b_c_2", "float32", (2, 4)),
    ]


def test_every_dtype_runs_here(many, tmp_path):
    out = passes(many, tmp_path, runner=True)
    with open_bundle(out) as bundle:
        folder = out / "vectors" / bundle.manifest["vectors"][1]
        result = infer(bundle, [folder / f"input-{place}.npy" for place in range(len(bundle.inputs))])["outputs"]
        vector = bundle.vectors()[1]
    assert list(result) == [spec.name for spec in many.outputs]
    for values, expected, spec in zip(result.values(), vector.outputs, many.outputs, strict=True):
        assert str(expected.dtype) == spec.dtype
        exact = np.asarray(values, np.float64)
        np.testing.assert_allclose(
            exact, expected.astype(np.float64), atol=1e-5, rtol=1e-2 if "16" in spec.dtype else 1e-5
        )
    inputs = [folder / f"input-{place}.npy" for place in range(len(many.inputs))]
    done = subprocess.run([sys.executable, out / "run.py", *inputs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.emulated
@pytest.mark.parametrize("board", ["raspberry-pi-4b", "raspberry-pi-3b-32bit"])
def test_every_dtype_runs_on_boards(board, many, tmp_path):
    passes(many, tmp_path, board)


def test_bfloat16_is_read_as_numpy_and_as_pytorch_have_it(tmp_path):
    values = np.array([1.5, -2, 3e38], ml_dtypes.bfloat16)
    spec = TensorSpec(name="x", shape=(3,), dtype="bfloat16")
    np.save(tmp_path / "numpy.npy", values)
    np.save(tmp_path / "pytorch.npy", torch.tensor([1.5, -2, 3e38]).bfloat16().view(torch.uint16).numpy())
    for name in ("numpy.npy", "pytorch.npy"):
        read = load_array(tmp_path / name, spec)
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values)
    np.save(tmp_path / "float.npy", np.zeros(3, np.float32))
    with pytest.raises(UserError, match="holds float32 3, but x is bfloat16 3"):
        load_array(tmp_path / "float.npy", spec)


def test_names_are_unique_and_fit_a_line():
    assert unique(["x", "x", "a b", "a/b", "ä", "", "x_2"]) == ["x", "x_2", "a_b", "a_b_2", "_", "__2", "x_2_2"]
    assert nest_named({"0": 1, "1.a": 2, "1.b": 3}) == (1, {"a": 2, "b": 3})
    assert nest_named({"1": 1}) == {"1": 1}


Point = namedtuple("Point", "row column")


class Results(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(x)


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1, x * 2, x - 1), ["output", "output1", "output2"]),
        (lambda x: [x + 1, None, x * 2, 7], ["output", "output2"]),
        (lambda x: (x + 1, (x, {"a": x * 2})), ["output", "output1.0", "output1.1.a"]),
        (lambda x: Point(x + 1, x), ["row", "column"]),
        (lambda x: x.max(1), ["output", "output1"]),
    ],
)
def test_names_of_results(give, names, tmp_path):
    import tvmflow.network.frontend as frontend

    program = frontend.from_module(Results(give).eval(), "net", "net", [(2, 3)])
    assert [spec.name for spec in program.outputs] == names


def test_integers_of_sorting_are_exact(tmp_path):
    network = Results(lambda x: (x.argmax(1), *x.topk(3), *x.sort(1, descending=True), x > 0, x.to(torch.uint8)))
    program = import_model(exported(tmp_path, network, (torch.zeros(2, 7),)))
    out = passes(program, tmp_path)
    with open_bundle(out) as bundle:
        np.save(tmp_path / "x.npy", np.float32([[5, 1, 4, 2, 0, 3, 6], [0, -1, 9, 3, 8, 2, 7]]))
        outputs = list(infer(bundle, [tmp_path / "x.npy"])["outputs"].values())
    assert outputs[0] == [6, 2]
    assert outputs[2] == [[6, 0, 2], [2, 4, 6]]
    assert outputs[4] == [[6, 0, 2, 5, 3, 1, 4], [2, 4, 6, 3, 5, 0, 1]]
    assert outputs[5][1] == [False, False, True, True, True, True, True]


# ------------------------------------------------------------------------------------------------- arguments of .pt2


class Options(nn.Module):
    def forward(self, x, n, mode="twice", flag=None):
        return x * n * (2 if mode == "twice" else 1)


@pytest.mark.parametrize(
    ("arguments", "by_keyword"),
    [((torch.ones(2, 3), 3), {"mode": "once"}), ((torch.ones(2, 3), 0.5, "twice", None), {})],
)
def test_numbers_and_texts_are_constants(arguments, by_keyword, tmp_path):
    program = import_model(exported(tmp_path, Options(), arguments, by_keyword))
    assert [spec.name for spec in program.inputs] == ["x"]
    factor = arguments[1] * (1 if by_keyword else 2)
    np.testing.assert_allclose(program.vectors[0].outputs[0], program.vectors[0].inputs[0] * np.float32(factor))
    passes(program, tmp_path)


def test_open_batch_is_closed_by_a_shape(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    batch = torch.export.Dim("batch", min=1, max=8)
    path = exported(tmp_path, network, (torch.zeros(2, 3, 9, 9),), dynamic_shapes={"input": {0: batch}})
    with pytest.raises(UserError, match=r"dynamic shape \?×3×9×9; give the shape .* --input-shape input="):
        import_model(path)
    with pytest.raises(UserError, match=r"of \?×3×9×9; --input-shape 1x3x8x8 doesn't fit"):
        import_model(path, shapes("1x3x8x8"))
    with pytest.raises(UserError, match="can't be had for 9x3x9x9"):
        import_model(path, shapes("9x3x9x9"))
    program = import_model(path, shapes("1x3x9x9"))
    assert program.inputs[0].shape == (1, 3, 9, 9)
    out = passes(program, tmp_path)
    with open_bundle(out) as bundle:
        assert [layer.modules for layer in bundle.layers if layer.macs] == [("0", "1")]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nosuch=2x6"], "no input 'nosuch'; its inputs are"),
        (["2x6", "state.0=4", "state.0=4"], "given twice for the input 'state.0'"),
        (["2x6"], r"takes x, state, ids, options, scale, and --input-shape says nothing of state, ids, options, scale"),
        (["2x6", "state.0=4", "state.1=2x4", "2x3", "options.mask=2x4:bool", "scale=1"], "ids=1x16:int64"),
    ],
)
def test_shapes_that_a_factory_can_not_be_called_with(given, words):
    with pytest.raises(UserError, match=words):
        import_model("test_interface:nested", shapes(*given))


@pytest.mark.parametrize("text", ["1x3:float", "1x3:", "x=1:complex64", "ids=:int64", "scalars"])
def test_dtypes_that_are_none(text):
    if text == "1x3:":
        with pytest.raises(UserError, match="'' is none of them"):
            parse_input_shape(text)
        return
    with pytest.raises(UserError, match=r"is none of them|--input-shape takes"):
        parse_input_shape(text)


def test_dtype_of_a_file_is_not_changed(tmp_path):
    path = exported(tmp_path, Options(), (torch.ones(2, 3), 3))
    with pytest.raises(UserError, match="takes float32 for its input 'x', not int64"):
        import_model(path, shapes("x=2x3:int64"))


@pytest.mark.parametrize(
    ("give", "arguments", "words"),
    [
        (lambda x: 3, (torch.ones(2),), "gives no tensor"),
        (lambda x: torch.ones(2) * x, (3,), "takes no tensor"),
        (lambda x: torch.complex(x, x), (torch.ones(2),), "a complex64 tensor of 2"),
        (lambda x: torch.view_as_real(x), (torch.ones(2, dtype=torch.complex64),), "takes 'x', a complex64 tensor"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_refused(give, arguments, words, tmp_path):
    with pytest.raises(UserError, match=words):
        import_model(exported(tmp_path, Results(give), arguments))


# ----------------------------------------------------------------------------------------------------------- weights


class Weights(nn.Module):
    """Weights that aren't plain contiguous parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.third = nn.Linear(6, 6)
        self.third.weight = self.first.weight
        self.spread = nn.Parameter(torch.randn(1, 6).expand(4, 6))
        self.register_buffer("kept_back", torch.arange(4.0), persistent=False)
        self.plain = torch.linspace(0, 1, 4, requires_grad=True)

    def forward(self, x):
        y = self.third(torch.relu(self.second(self.first(x))))
        return nn.functional.linear(y, self.spread) + self.kept_back + self.plain + torch.tensor([1.0, 2.0, 3.0, 4.0])


def weights() -> nn.Module:
    torch.manual_seed(0)
    return Weights()


def test_weights_of_every_kind(tmp_path):
    passes(import_model("test_interface:weights", shapes("2x6")), tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_networks_of_other_dtypes(dtype, tmp_path):
    """A sum of 2,048 terms is far off if it is kept in bfloat16."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 2048),
        nn.Sigmoid(),
    )
    network.append(nn.Linear(2048, 3)).append(nn.Softmax(1))
    network[1].running_mean.uniform_(0.5, 1)
    kind = getattr(torch, dtype)
    program = import_model(exported(tmp_path, network.to(kind), (torch.zeros(1, 3, 9, 9, dtype=kind),)))
    assert (program.inputs[0].dtype, program.outputs[0].dtype) == (dtype, dtype)
    passes(program, tmp_path)
