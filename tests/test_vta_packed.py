"""Maps of few channels on VTA: several pixels of a row share a tile, and every activation is the reference's."""

from __future__ import annotations

import numpy as np
import pytest
from integer_networks import Shape, conv, depthwise, random_network
from test_vta_compile import CONFIG, SMALL, agree

from tvmflow.integer.network import IntegerNetwork
from tvmflow.targets.vta.compile import compile_network, prepare
from tvmflow.targets.vta.packed import packs_of
from tvmflow.targets.vta.space import choices
from tvmflow.targets.vta.tiles import Work


def network(*shapes: Shape, channels: int = 3, height: int = 9, width: int = 24, seed: int = 0) -> IntegerNetwork:
    return random_network(
        np.random.default_rng(seed), "power-of-two", shapes=shapes, input_shape=(1, channels, height, width)
    )


def odd(kernel: tuple[int, int], padding: tuple[int, int], **others: tuple[int, int]) -> Shape:
    return Shape(kind="depthwise", kernel=kernel, padding=padding, **others)


CHAINS = {
    "the paper's first module": (depthwise(dilation=5), depthwise(), conv(32)),
    "wider filters": (depthwise(size=7), depthwise(size=5, dilation=2), conv(8, 3, relu=True), conv(20)),
    "rows in steps": (depthwise(), odd((3, 3), (1, 1), stride=(2, 1)), conv(40)),
    "even filters": (odd((2, 4), (0, 2)), odd((1, 2), (1, 1)), depthwise(relu=True), conv(17)),
    "dense": (conv(4, 3), conv(4, 3), conv(4, 5), conv(20, 3)),
}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, channels: int) -> None:
    reference = network(*CHAINS[name], channels=channels)
    assert agree(compile_network(reference, CONFIG), reference)


def test_pixels_share_tiles() -> None:
    """Four pixels of three channels take twelve lanes; products and passes of two layers are of a fourth."""
    reference = network(*CHAINS["the paper's first module"])
    assert packs_of(reference, 16) == {"layers.0": 4, "layers.1": 4}
    works = prepare(reference, CONFIG)
    assert [work.target.tiles for work in works] == [9 * 6, 9 * 6, 2 * 9 * 24]
    assert [work.target.unpacked_shape for work in works[:2]] == [(3, 9, 24)] * 2


@pytest.mark.parametrize("number", range(3))
def test_every_tiling(number: int) -> None:
    """However a layer that packs, is packed, or unpacks is cut."""
    reference = network(*CHAINS["the paper's first module"], height=7, width=12)
    work = prepare(reference, CONFIG)[number]
    assert isinstance(work, Work)
    for tiling in choices(work, CONFIG)[number::7]:
        assert agree(compile_network(reference, CONFIG, {work.layer.name: tiling}), reference)


def test_other_configuration() -> None:
    reference = random_network(
        np.random.default_rng(3),
        "power-of-two",
        shapes=CHAINS["the paper's first module"],
        input_shape=(1, 2, 9, 12),
        block=8,
    )
    assert packs_of(reference, 8) == {"layers.0": 4, "layers.1": 4}
    assert agree(compile_network(reference, SMALL), reference)


def test_what_is_not_packed() -> None:
    """Columns in steps, widths that no number of pixels divides, many channels, and what others read, too."""
    assert packs_of(network(depthwise(stride=2), depthwise(stride=2), conv(20)), 16) == {}
    assert packs_of(network(depthwise(), depthwise(), conv(20), width=23), 16) == {}
    assert packs_of(network(depthwise(), depthwise(), conv(20), channels=9), 16) == {}


@pytest.mark.parametrize("seed", range(40))
def test_random_chains(seed: int) -> None:
    """Filters of any size and place, in which rows may go in steps and maps become wider and narrower."""
    rng = np.random.default_rng(seed)
    channels, height, width = int(rng.integers(1, 8)), int(rng.integers(3, 12)), int(rng.choice([12, 24, 30]))
    shapes: list[Shape] = []
    size = np.array([height, width])
    for _ in range(int(rng.integers(2, 5))):
        kernel, dilation = rng.integers(1, (4, 5)), rng.integers(1, (3, 6))
        padding, stride = rng.integers(0, (3, 6)), (int(rng.integers(1, 3)), 1)
        after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        if (after < 1).any():
            continue
        size = after
        shapes.append(
            Shape(
                kind=str(rng.choice(["depthwise", "depthwise", "conv"])),
                channels=int(rng.integers(1, 8)),
                kernel=(int(kernel[0]), int(kernel[1])),
                padding=(int(padding[0]), int(padding[1])),
                dilation=(int(dilation[0]), int(dilation[1])),
                stride=stride,
                relu=bool(rng.integers(2)),
            )
        )
    reference = network(*shapes, conv(int(rng.integers(9, 40))), channels=channels, height=height, width=width)
    assert agree(compile_network(reference, CONFIG), reference)
