"""int8 on GPUs: whole networks against the integer reference on the stand-in, bit for bit, by tiles of all kinds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from integer_networks import POOL, VARIETY, Shape, conv, dense, depthwise, random_network

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.integer.frontend import integer_program
from tvmflow.schedules.cuda.integer import RULES, form, product
from tvmflow.schedules.integer_tasks import Task, Tensor
from tvmflow.targets import TARGETS, compute_in
from tvmflow.targets.cuda import backend

ODD = (
    *(depthwise(dilation=5), depthwise(stride=2, relu=True), conv(33)),
    Shape(kind="depthwise", kernel=(3, 2), stride=(1, 2), padding=(2, 3), dilation=(2, 3)),
    *(conv(70, relu=False), conv(50, 3), POOL, dense(10)),
)
"""Taps that are never on the map, channels that fill no word, inputs of either sign."""

ONE_PIXEL = (conv(16), conv(5, 3, relu=False))
"""Of nine taps eight are never on the map, behind a ReLU, whose bytes are stored with an offset."""

TILES = {
    "the rule's own": lambda found: found[0],  # with so small maps as many threads as there can be
    "few threads": lambda found: max(found, key=lambda tile: (tile.pixels, -tile.splits)),
    "pixels and splits": lambda found: min(found, key=lambda tile: (tile.pixels != 4, abs(tile.splits - 2))),
}


@pytest.mark.parametrize(
    ("board", "scheme", "shapes", "size", "tile"),
    [
        ("t4", "per-channel", ODD, (3, 13, 11), "the rule's own"),
        ("gtx-1080ti", "per-channel", VARIETY, (7, 19, 16), "pixels and splits"),
        ("jetson-orin-nano", "per-channel", ONE_PIXEL, (8, 1, 1), "the rule's own"),
        ("jetson-nano", "power-of-two", ODD, (3, 13, 11), "few threads"),
    ],
)
def test_networks_are_exact(board, scheme, shapes, size, tile, tmp_path, monkeypatch):
    rule = product.tiles
    monkeypatch.setattr(product, "tiles", lambda *task: [TILES[tile](rule(*task))])
    network = random_network(np.random.default_rng(3), scheme, shapes=shapes, input_shape=(1, *size))
    target = compute_in(TARGETS[board], "int8")
    build(integer_program(network), target, tmp_path / "bundle")
    with open_bundle(tmp_path / "bundle") as bundle:
        assert bundle.manifest["verify"]["method"] == "stand-in"
        assert bundle.manifest["verify"]["max_abs_error"] == 0
        assert [len(layer.details["kernels"]) for layer in bundle.layers] == [1] * len(network.layers)
        assert ("__dp4a" in (bundle.root / backend.SOURCE).read_text()) is (board != "jetson-nano")


def test_sums_that_could_leave_int32_are_made_without_an_offset():
    """Of inputs that end below 255 a bias may leave less room than bytes need."""
    rng, board = np.random.default_rng(1), TARGETS["t4"]
    network = random_network(rng, "per-channel", shapes=(conv(8), conv(8, relu=False)), input_shape=(1, 8, 5, 5))
    first, last = network.layers
    first = replace(first, maximum=100)

    def rule_of(bias: int) -> str:
        layer = replace(last, weight=np.full_like(last.weight, 100), bias=np.full_like(last.bias, bias))
        plain = Tensor(channels=8, size=(5, 5), dtype="int8", shape=(1, 8, 5, 5))
        task = Task(layers=(layer,), sources=(form(first, [layer], board),), result=plain)
        return next(name for name, rule in RULES.items() if rule(task, board) is not None)

    assert form(first, [last], board).offset == -128
    assert rule_of(0) == "product"
    assert rule_of(2**31 - 1 - 8 * 100 * first.maximum) == "plain"
