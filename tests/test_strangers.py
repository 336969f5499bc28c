"""Networks of strangers that broke the compiler once: right on this computer, and each kernel knows whose it is."""

from __future__ import annotations

import pytest
from imported import stranger
from strangers import STRANGERS
from tvm import relax

from benchmarks import strangers as benchmark
from tvmflow.bundles.build import build
from tvmflow.network.frontend import from_module
from tvmflow.passes.multiply_adds import multiply_adds
from tvmflow.targets import TARGETS

BROKEN_ONCE = (
    "vgg_bn",  # a bias before the normalisation
    "densenet",  # normalisation first, concatenation
    "resnet_preactivation",
    "shufflenet_v2",  # channels are split: a tuple between kernels
    "autoencoder",  # matrix products and normalisation
    "generator",  # transposed convolutions and normalisation
    "har",  # one dimension
    "video",  # three
    "lstm",
    "shared_normalisation",
)


def macs_on_inputs(main: relax.Function) -> int:
    """Multiply-adds that can't be done while compiling, as a recurrent layer's on its first state can."""
    varying = set(main.params)
    macs = 0
    for binding in (binding for block in main.body.blocks for binding in block.bindings):
        if varying.intersection(relax.analysis.free_vars(binding.value)):
            varying.add(binding.var)
            macs += multiply_adds(binding.value)
    return macs


@pytest.mark.parametrize("name", BROKEN_ONCE)
def test_broken_once(name, tmp_path):
    program = stranger(name)
    bundle = build(program, TARGETS["host"], tmp_path / "out")
    assert bundle.manifest["verify"]["passed"]
    assert "left_out" not in bundle.manifest["verify"]
    assert sum(layer.macs for layer in bundle.layers) == macs_on_inputs(program.module["main"]) > 0
    assert all(layer.modules for layer in bundle.layers if layer.macs)


def test_normalisations_fold():
    """Behind a convolution with a bias, a transposed one in groups, a matrix product: no kernel more.

    The transposed one has a kernel that puts its phases together, in which its activation is.
    """
    from strangers import stranger as entered
    from torch import nn

    @entered("", (1, 3, 6, 6))
    def folding() -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(768, 5), nn.BatchNorm1d(5)),
        )

    made = STRANGERS.pop("folding")
    from tvmflow.pipeline import run_stages

    program = run_stages(from_module(made.make(), "folding", "folding", made.shapes), TARGETS["host"])
    assert [layer.modules for layer in program.layers if layer.macs] == [("0", "2", "3"), ("4",), ("8", "9")]
    assert [layer.modules for layer in program.layers if not layer.macs] == [("4", "5", "6", "7")]
    assert not [layer.kernel for layer in program.layers if "multiply" in layer.kernel]


def test_page_of_the_benchmark():
    right = {"state": "right", "verified": "native", "error": 2e-7}
    rows = {way.name: right for way in benchmark.WAYS}
    rows["factory host int8"] = {"state": "refused", "exit_code": 8, "said": "lenet can't be quantised."}
    text = benchmark.page({"networks": {"lenet": rows}})
    assert "| `lenet` | LeNet-5" in text
    assert "- the network can't be quantised. — lenet (factory host int8)" in text
    assert "Wrong or at fault: 0." in text
