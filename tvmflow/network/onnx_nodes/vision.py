"""Operators of images that read at computed places."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import Node

MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}
"""ONNX's names, those of opset 16 and those since 20 → TVM's."""


def grid_sample(node: Node) -> relax.Expr:
    rank = len(node.shape())
    mode = MODES[node.get("mode", "linear")]
    if rank not in (4, 5) or (rank == 5 and mode == "bicubic"):
        raise node.refusal(f"it is {mode} over {rank - 2} dimensions")
    grid = node.bind(op.permute_dims(node.inputs[1], [0, rank - 1, *range(1, rank - 1)]))
    return op.image.grid_sample(
        node.inputs[0],
        grid,
        method=mode,
        layout="NCHW" if rank == 4 else "NCDHW",
        padding_mode=node.get("padding_mode", "zeros"),
        align_corners=bool(node.get("align_corners", 0)),
    )
