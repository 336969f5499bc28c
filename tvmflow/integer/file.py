"""The file of a quantised network: safetensors, with the arrays of each layer, and all else as JSON in its metadata.

Format 2 has layers of every operator, inputs and outputs. Format 1, whose networks were chains, converts on loading.
What stays in float32 is an array of the bytes of its ONNX model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.integer.layers import ALL_SCHEMES, RANGES, AnyIntegerLayer, IntegerLayer, IntegerNode
from tvmflow.integer.network import IntegerNetwork, Port, State
from tvmflow.integer.operators import (
    OPERATORS,
    ArgMax,
    AveragePool,
    Concat,
    Gather,
    LogSoftmax,
    MaxPool,
    Normalise,
    Operator,
    Probabilities,
    Resample,
    Softmax,
    Sum,
)
from tvmflow.integer.tail import Tail
from tvmflow.integer.window import Window
from tvmflow.spec import Preprocessing
from tvmflow.system import limits, scratch, untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError

FORMAT = 2
"""Of the files that `save` writes."""

WEIGHTED = ("weight", "bias", "multiplier", "shift")
"""Arrays of an IntegerLayer."""
NODE = ("factors", "table")
"""Arrays of an IntegerNode; those of its operator come to them."""
TAIL = "tail"
"""The array of what stays in float32; those of layers have a dot in their names."""
TABLES = ("row_places", "row_weights", "column_places", "column_weights")
"""Arrays of a Resample."""

MAX_MAP_ELEMENTS = 1 << 24
"""Of a layer's input or output: what a file says is allocated, and no board that runs integers holds more."""


MAX_TERMS = 16
"""Of a sum."""


def _schema(version: int) -> dict[str, Any]:
    """What a file of a format says beside its arrays."""
    text: dict[str, Any] = {"type": "string", "maxLength": 1000, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*\Z"}
    texts: dict[str, Any] = {"type": "array", "items": text}
    numbers: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    size: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 1 << 16}
    border: dict[str, Any] = {**size, "minimum": 0}
    positive: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
    zero_point: dict[str, Any] = {"type": "integer", "minimum": -128, "maximum": 255}
    shape: dict[str, Any] = {"type": "array", "prefixItems": [{"const": 1}], "items": size}
    inside = shape | {"minItems": 4, "maxItems": 4}
    pair: dict[str, Any] = {"type": "array", "items": size, "minItems": 2, "maxItems": 2}
    sides = 2 if version == 1 else 4
    borders: dict[str, Any] = {"type": "array", "items": border, "minItems": sides, "maxItems": sides}
    every: dict[str, Any] = {
        "name": text,
        "modules": texts,
        "inputs": texts | {"minItems": 1, "maxItems": 1 << 10},
        "minimum": {"type": "integer"},
        "maximum": {"type": "integer"},
        "dtype": {"enum": list(RANGES)},
        "scale": positive,
        "zero_point": zero_point,
        "output_shape": inside,
    }

    def record(fields: dict[str, Any], *optional: str) -> dict[str, Any]:
        required = [key for key in fields if key not in optional]
        return {"type": "object", "required": required, "properties": fields, "additionalProperties": False}

    weighted = every | {
        "kind": {"enum": ["conv2d", "pool", "dense"]},
        "stride": pair,
        "padding": borders,
        "dilation": pair,
        "groups": size,
        "input_shape": inside,
    }
    optional = ("stride", "padding", "dilation", "groups", "zero_point")
    window = {"kernel": pair, "stride": pair, "padding": borders, "dilation": pair, "size": pair}
    axis = {"type": "integer", "minimum": 1, "maximum": 3}
    kinds: dict[str, dict[str, Any]] = {
        "add": {"signs": {"type": "array", "items": {"enum": [-1, 1]}, "minItems": 1, "maxItems": MAX_TERMS}},
        "multiply": {},
        "max_pool": {"window": record(window)},
        "average_pool": {"window": record(window)},
        "concat": {"axis": axis},
        "gather": {"outside": {"type": "integer", "minimum": -128, "maximum": 255}},
        "resample": {"away": {"type": "boolean"}},
        "table": {},
        "softmax": {"axis": axis},
        "log_softmax": {"axis": axis},
        "normalise": {"lengths": {"type": "array", "items": size, "minItems": 3, "maxItems": 3}},
        "matmul": {},
        "probabilities": {"axis": axis},
        "argmax": {"axis": axis},
    }
    node = every | {"shift": {"type": "integer", "minimum": 0, "maximum": 31}}
    node["input_shapes"] = {"type": "array", "items": inside, "minItems": 1, "maxItems": 1 << 10}
    nodes = [
        record(node | {"kind": {"const": kind}} | fields, "zero_point", "outside", "away")
        for kind, fields in kinds.items()
    ]
    layer: dict[str, Any] = record(weighted, *optional)
    if version > 1:
        layer = {
            "type": "object",
            "required": ["kind"],
            "if": {"properties": {"kind": {"enum": list(kinds)}}},
            "then": {"oneOf": nodes},
            "else": layer,
        }
    network: dict[str, Any] = {
        "name": text,
        "scheme": {"enum": list(ALL_SCHEMES)},
        "layers": {"type": "array", "minItems": 1, "items": layer},
        "preprocessing": {
            "type": ["object", "null"],
            "required": ["mean", "std"],
            "properties": {"mean": numbers, "std": {**numbers, "items": positive}},
        },
        "labels": texts,
        "facts": {"type": "object", "properties": {"sqnr_db": {"type": "object"}}},
    }
    if version == 1:
        network |= {"input_shape": inside, "input_scale": positive}
    else:
        user = shape | {"minItems": 1, "maxItems": 8}
        given = {
            "name": text,
            "shape": user,
            "scale": positive,
            "zero_point": zero_point,
            "dtype": {"enum": list(RANGES)},
        }
        ports = {"type": "array", "minItems": 1, "maxItems": 1 << 10}
        network |= {
            "inputs": ports | {"items": record(given, "zero_point", "dtype")},
            "outputs": ports | {"items": record(given | {"source": text}, "zero_point", "dtype")},
        }
        network["state"] = {"type": "array", "items": record({"input": text, "output": text, "initial": zero_point})}
    return record(network, "labels", "facts", "state")


SCHEMAS = {version: untrusted.Schema(functools.partial(_schema, version)) for version in (1, FORMAT)}


def save(network: IntegerNetwork, path: Path) -> None:
    """Write a safetensors file: the arrays as LAYER.weight, …, all else as JSON in its metadata. Atomic."""
    from safetensors.numpy import save as to_bytes

    layers: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for layer in network.layers:
        fields, own = _parts(layer)
        layers.append(fields)
        arrays |= {f"{layer.name}.{key}": np.ascontiguousarray(array) for key, array in own.items()}
    content = {**vars(network), "format": FORMAT, "layers": layers}
    if (tail := content.pop("tail")) is not None:
        arrays[TAIL] = np.frombuffer(tail.content, np.uint8)
    for key in ("inputs", "outputs"):
        ports = [{name: value for name, value in vars(port).items() if value != ""} for port in content[key]]
        content[key] = [_said(port, zero_point=0, dtype="int8") for port in ports]
    content["state"] = [vars(state) for state in network.state]
    if not network.state:
        del content["state"]
    if network.preprocessing is not None:
        content["preprocessing"] = dataclasses.asdict(network.preprocessing)
    with scratch.replacing(path) as made:
        made.write_bytes(to_bytes(arrays, {"tvmflow": json.dumps(content, ensure_ascii=False, sort_keys=True)}))


def _parts(layer: AnyIntegerLayer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A layer's numbers and words, and its arrays."""
    if isinstance(layer, IntegerLayer):
        fields = {key: value for key, value in _said(vars(layer), zero_point=0).items() if key not in WEIGHTED}
        arrays = {key: getattr(layer, key) for key in WEIGHTED if key != "weight" or layer.kind != "pool"}
        return fields, {key: array for key, array in arrays.items() if array is not None}
    fields = {key: value for key, value in _said(vars(layer), zero_point=0).items() if key not in (*NODE, "operator")}
    arrays = {key: getattr(layer, key) for key in NODE if getattr(layer, key) is not None}
    operator = layer.operator
    if isinstance(operator, Sum):
        fields["signs"] = operator.signs
    elif isinstance(operator, MaxPool | AveragePool):
        fields["window"] = vars(operator.window)
    elif isinstance(operator, Concat | Softmax | LogSoftmax | Probabilities | ArgMax):
        fields["axis"] = operator.axis
    elif isinstance(operator, Normalise):
        fields["lengths"] = operator.lengths
    elif isinstance(operator, Gather):
        arrays["places"] = operator.places
        if operator.outside:
            fields["outside"] = operator.outside
    elif isinstance(operator, Resample):
        if operator.away:
            fields["away"] = True
        arrays |= dict(zip(TABLES, (*operator.rows, *operator.columns), strict=True))
    return fields | {"kind": layer.kind}, arrays


def _said(fields: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Without what is as it is by default, which older versions don't know."""
    return {key: value for key, value in fields.items() if key not in defaults or value != defaults[key]}


def load(path: Path) -> IntegerNetwork:
    """Read what `save` wrote, in this format or an older one. Raises UserError."""
    metadata, arrays = untrusted.read_tensors(path)
    try:
        content = untrusted.parse_json(metadata.get("tvmflow", "{}"), limits.MANIFEST, non_finite=True)
        version = content.pop("format", None) if isinstance(content, dict) else None
        if type(version) is not int or version not in SCHEMAS:
            raise UnusableFileError(path, "is no quantised network of this version of tvmflow")
        SCHEMAS[version].check(content)
        layers = tuple(_layer(fields, arrays) for fields in content.pop("layers"))
        given = content.pop("preprocessing")
        preprocessing = given and Preprocessing(mean=tuple(given["mean"]), std=tuple(given["std"]))
        if version == 1:
            return IntegerNetwork.chain(**_tuples(content), layers=layers, preprocessing=preprocessing)
        for key in ("inputs", "outputs"):
            content[key] = [Port(**_tuples(port)) for port in content[key]]
            for port in content[key]:
                _check_elements(port.shape, key, port.name)
        content["state"] = [State(**state) for state in content.pop("state", ())]
        tail = _tail(arrays[TAIL]) if TAIL in arrays else None
        return IntegerNetwork(**_tuples(content), layers=layers, preprocessing=preprocessing, tail=tail)
    except MalformedError as error:
        raise UnusableFileError(path, f"is damaged: {error}", "quantise the network again") from error


def _tail(array: np.ndarray) -> Tail:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise MalformedError("what stays in float32 is no row of bytes")
    return Tail(content=array.tobytes())


def _layer(fields: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> AnyIntegerLayer:
    own = {key: arrays.get(f"{fields['name']}.{key}") for key in (*WEIGHTED, *NODE, "places", *TABLES)}
    for key in ("input_shape", "output_shape"):
        if key in fields:
            _check_elements(fields[key], key, fields["name"])
    for shape in fields.get("input_shapes", ()):
        _check_elements(shape, "input_shape", fields["name"])
    if fields["kind"] in OPERATORS:
        return _node(fields, own)
    if fields["kind"] == "pool":
        _, channels, height, width = fields["input_shape"]
        own["weight"] = np.ones((channels, 1, height, width), np.int8)
    _require(own, fields["name"], ("weight", np.int8, 4), ("bias", np.int32, 1))
    return IntegerLayer(**_tuples(fields), **{key: own[key] for key in WEIGHTED})  # type: ignore[arg-type]


def _node(fields: dict[str, Any], own: Mapping[str, np.ndarray | None]) -> IntegerNode:
    kind, name = fields.pop("kind"), fields["name"]
    operator: Operator
    if kind == "add":
        operator = Sum(signs=tuple(fields.pop("signs")))
    elif kind in ("max_pool", "average_pool"):
        operator = OPERATORS[kind](window=Window(**_tuples(fields.pop("window"))))
    elif kind in ("concat", "softmax", "log_softmax", "probabilities", "argmax"):
        operator = OPERATORS[kind](axis=fields.pop("axis"))
    elif kind == "normalise":
        channels, rows, columns = fields.pop("lengths")
        operator = Normalise(lengths=(channels, rows, columns))
    elif kind == "gather":
        _require(own, name, ("places", np.int32, 4))
        operator = Gather(places=own["places"], outside=fields.pop("outside", 0))  # type: ignore[arg-type]
    elif kind == "resample":
        _require(own, name, *((key, np.int32 if "places" in key else np.float64, 2) for key in TABLES))
        operator = _resample({key: own[key] for key in TABLES}, name, fields.pop("away", False))  # type: ignore[misc]
    else:
        operator = OPERATORS[kind]()
    fields["input_shapes"] = tuple(tuple(shape) for shape in fields["input_shapes"])
    return IntegerNode(**_tuples(fields), operator=operator, factors=own["factors"], table=own["table"])


def _resample(tables: dict[str, np.ndarray], name: str, away: bool) -> Resample:
    places, weights = (tables[f"{axis}_places"] for axis in ("row", "column")), tables
    for axis, table in zip(("row", "column"), places, strict=True):
        factor = weights[f"{axis}_weights"]
        if table.shape != factor.shape or table.min() < 0 or not (np.abs(factor) <= 256).all():
            raise MalformedError(f"the {axis}s of {untrusted.shown(name)} aren't places and their weights")
    return Resample(
        rows=(tables["row_places"], tables["row_weights"]),
        columns=(tables["column_places"], tables["column_weights"]),
        away=away,
    )


def _require(own: Mapping[str, np.ndarray | None], name: str, *wanted: tuple[str, Any, int]) -> None:
    for key, kind, ndim in wanted:
        array = own[key]
        if array is None or array.dtype != kind or array.ndim != ndim or not array.size:
            raise MalformedError(
                f"the {key} of {untrusted.shown(name)} is no array of {np.dtype(kind)} of {ndim} dimensions"
            )


def _check_elements(shape: Any, what: str, name: str) -> None:
    if (elements := math.prod(shape)) > MAX_MAP_ELEMENTS:
        raise MalformedError(f"the {what} of {untrusted.shown(name)} has {elements:,} elements of {MAX_MAP_ELEMENTS:,}")


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
