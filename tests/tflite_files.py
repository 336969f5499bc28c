"""Small `.tflite` files that the tests make themselves: networks of a few operators, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import flatbuffers
import numpy as np

from tvmflow.integer.tflite.schema import OPERATORS, OPTIONS, TEXTS, TYPES

UNIONS = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "AVERAGE_POOL_2D": 5,
    "MAX_POOL_2D": 5,
    "FULLY_CONNECTED": 8,
    "SOFTMAX": 9,
    "CONCATENATION": 10,
    "ADD": 11,
    "RESIZE_BILINEAR": 15,
    "MUL": 21,
    "MEAN": 27,
    "SUB": 28,
    "STRIDED_SLICE": 32,
    "SPLIT": 35,
    "TRANSPOSE_CONV": 49,
    "RESIZE_NEAREST_NEIGHBOR": 74,
    "LEAKY_RELU": 75,
    "SPLIT_V": 79,
    "L2_NORMALIZATION": 12,
    "SPACE_TO_DEPTH": 19,
    "SUM": 27,
    "REDUCE_MAX": 27,
    "REDUCE_MIN": 27,
    "REDUCE_PROD": 27,
    "DIV": 29,
    "ARG_MAX": 40,
    "ARG_MIN": 57,
    "SHAPE": 55,
    "PACK": 59,
    "UNPACK": 64,
    "MIRROR_PAD": 77,
    "DEPTH_TO_SPACE": 94,
    "BATCH_MATMUL": 101,
    "CUMSUM": 102,
    "GELU": 116,
    "CALL_ONCE": 103,
    "VAR_HANDLE": 111,
}
"""The types of operators' options, by the schema's numbers."""
VERSIONS = {"BROADCAST_TO": 2}
"""Of operators that LiteRT doesn't have in their first one."""
ALIGNMENT = 16
"""Bytes, of constants."""


@dataclass
class Graph:
    """A subgraph as it grows; tensors are known by their numbers."""

    tensors: list[dict] = field(default_factory=list)
    operators: list[tuple[str, list[int], list[int], dict]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def tensor(
        self,
        shape: Sequence[int],
        scale: float | Sequence[float] | None = None,
        zero: int = 0,
        data: np.ndarray | None = None,
        dtype: str = "int8",
        axis: int = 0,
        name: str = "",
    ) -> int:
        given = [] if scale is None else list(np.atleast_1d(np.asarray(scale, np.float32)))
        self.tensors.append(
            {
                "shape": list(shape),
                "dtype": dtype if data is None else str(data.dtype),
                "scales": given,
                "zeros": [zero] * len(given),
                "axis": axis,
                "data": data,
                "name": name or f"t{len(self.tensors)}",
            }
        )
        return len(self.tensors) - 1

    def constant(
        self, data: np.ndarray, scale: float | Sequence[float] | None = None, zero: int = 0, axis: int = 0
    ) -> int:
        return self.tensor(data.shape, scale, zero, data, axis=axis)

    def input(self, shape: Sequence[int], scale: float, zero: int = 0, dtype: str = "int8") -> int:
        self.inputs.append(self.tensor(shape, scale, zero, dtype=dtype, name=f"input_{len(self.inputs)}"))
        return self.inputs[-1]

    def add(self, kind: str, inputs: Sequence[int], output: int | Sequence[int], **options: float | str) -> int:
        """Returns the first result."""
        outputs = [output] if isinstance(output, int) else list(output)
        self.operators.append((kind, list(inputs), outputs, options))
        return outputs[0] if outputs else -1

    def result(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        scale: float,
        zero: int = 0,
        **options: float | str,
    ) -> int:
        """An operator and the one int8 tensor that it gives."""
        return self.add(kind, inputs, self.tensor(shape, scale, zero), **options)


def file_of(*graphs: Graph) -> bytes:
    """The bytes of a file with these subgraphs, of which the first is run."""
    builder = flatbuffers.Builder(1024)
    kinds = list(dict.fromkeys(kind for graph in graphs for kind, *_ in graph.operators))
    buffers: list[np.ndarray | None] = [None]
    made = [_graph(builder, graph, kinds, buffers) for graph in graphs]
    codes = []
    for kind in kinds:
        number = OPERATORS.index(kind)
        codes.append(
            _table(
                builder, 4, {0: ("Int8", min(number, 127)), 2: ("Int32", VERSIONS.get(kind, 1)), 3: ("Int32", number)}
            )
        )
    blobs = []
    for array in buffers:
        fields = {}
        if array is not None:
            builder.StartVector(1, array.nbytes, ALIGNMENT)
            builder.head -= array.nbytes
            builder.Bytes[builder.head : builder.head + array.nbytes] = array.tobytes()
            fields[0] = ("UOffsetTRelative", builder.EndVector())
        blobs.append(_table(builder, 3, fields))
    vectors = {number: _offsets(builder, offsets) for number, offsets in ((1, codes), (2, made), (4, blobs))}
    fields = {0: ("Uint32", 3)} | {number: ("UOffsetTRelative", vector) for number, vector in vectors.items()}
    builder.Finish(_table(builder, 8, fields), b"TFL3")
    return bytes(builder.Output())


def _graph(builder: flatbuffers.Builder, graph: Graph, kinds: list[str], buffers: list) -> int:
    tensors = []
    for tensor in graph.tensors:
        number = 0
        if tensor["data"] is not None:
            buffers.append(tensor["data"])
            number = len(buffers) - 1
        name = builder.CreateString(tensor["name"])
        shape = _numbers(builder, tensor["shape"], 4, builder.PrependInt32)
        fields = {0: ("UOffsetTRelative", shape), 2: ("Uint32", number), 3: ("UOffsetTRelative", name)}
        fields[1] = ("Int8", next(at for at, dtype in TYPES.items() if dtype == tensor["dtype"]))
        if tensor["scales"]:
            scales = _numbers(builder, tensor["scales"], 4, builder.PrependFloat32)
            zeros = _numbers(builder, tensor["zeros"], 8, builder.PrependInt64)
            how = {2: ("UOffsetTRelative", scales), 3: ("UOffsetTRelative", zeros), 6: ("Int32", tensor["axis"])}
            fields[4] = ("UOffsetTRelative", _table(builder, 7, how))
        tensors.append(_table(builder, 8, fields))
    operators = [_operator(builder, kinds, *operator) for operator in graph.operators]
    lists = [_numbers(builder, numbers, 4, builder.PrependInt32) for numbers in (graph.inputs, graph.outputs)]
    vectors = [_offsets(builder, tensors), *lists, _offsets(builder, operators)]
    return _table(builder, 5, {place: ("UOffsetTRelative", vector) for place, vector in enumerate(vectors)})


def _operator(
    builder: flatbuffers.Builder, kinds: list[str], kind: str, inputs: list[int], outputs: list[int], options: dict
) -> int:
    fields = {0: ("Uint32", kinds.index(kind))}
    fields[1] = ("UOffsetTRelative", _numbers(builder, inputs, 4, builder.PrependInt32))
    fields[2] = ("UOffsetTRelative", _numbers(builder, outputs, 4, builder.PrependInt32))
    if kind in UNIONS:
        texts = {TEXTS[kind][name]: builder.CreateString(text) for name, text in options.items() if kind in TEXTS}
        forms = {"b": "Int8", "i": "Int32", "f": "Float32"}
        own = {place: ("UOffsetTRelative", text) for place, text in texts.items()}
        for name, value in options.items():
            if name in OPTIONS.get(kind, {}):
                place, form, _ = OPTIONS[kind][name]
                own[place] = (forms[form], value)
        fields[3] = ("Uint8", UNIONS[kind])
        fields[4] = ("UOffsetTRelative", _table(builder, 8, own))
    return _table(builder, 11, fields)


def _table(builder: flatbuffers.Builder, count: int, fields: dict) -> int:
    builder.StartObject(count)
    for place, (form, value) in fields.items():
        # what is as by default is written too: readers of options take no default for granted
        getattr(builder, f"Prepend{form}Slot")(place, value, 0 if form.startswith("UOffset") else None)
    return builder.EndObject()


def _numbers(builder: flatbuffers.Builder, numbers: Sequence, size: int, prepend: Callable) -> int:
    builder.StartVector(size, len(numbers), size)
    for number in reversed(numbers):
        prepend(number)
    return builder.EndVector()


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    return _numbers(builder, offsets, 4, builder.PrependUOffsetTRelative)
