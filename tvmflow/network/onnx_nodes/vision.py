"""Operators of images that read at computed places."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op

from tvmflow.network.onnx_nodes.node import Node, convert, dtype_of, reshape

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


def roi_align(node: Node) -> relax.Expr:
    """Regions are x1, y1, x2, y2 of the image that their index names, half a pixel earlier since opset 16."""
    data, regions, images = node.inputs
    if node.get("mode", "avg") != "avg":
        raise node.refusal("it takes maxima; averages are supported")
    scale = node.get("spatial_scale", 1.0)
    half = node.get("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "") == "half_pixel"
    if half:
        regions = node.bind(op.subtract(regions, node.like(0.5 / scale, 1)))
    numbers = reshape(node.bind(convert(images, dtype_of(regions))), (node.shape(2)[0], 1))
    return op.vision.roi_align(
        data,
        node.bind(op.concat([numbers, regions], 1)),
        (node.get("output_height", 1), node.get("output_width", 1)),
        scale,
        node.get("sampling_ratio", 0),
        aligned=half,
    )
