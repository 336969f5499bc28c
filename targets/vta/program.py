"""What runs on a VTA: instructions, the memory image they refer to, and where inputs, outputs and layers lie in them.

Kept as three files that any VTA implementation can run, described in docs/vta.md: `program.bin`, `memory.bin` and
`layout.json`. Where layers run on the board's processor, there is `cpu.c` as well, and the program has steps.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tvmflow.spec import UserError
from tvmflow.system import limits, untrusted
from tvmflow.system.untrusted import MalformedError, UnusableFileError
from tvmflow.targets.vta import config as configuration
from tvmflow.targets.vta import isa
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.isa import Instruction, Load, Store

SCHEMA_VERSION, WITH_STEPS = 1, 2
"""Of a layout without and with steps: who knows of none may not run the latter."""
FILES = ("program.bin", "memory.bin", "layout.json")
SOURCE = "cpu.c"
"""Of what runs on the board's processor."""

MAX_MEMORY_BYTES = 1 << 32
"""What a VTA's addresses of 32 bits reach."""

MAX_PORTS = 64
"""Inputs, and outputs, that a program in files has at most."""
MAX_STEPS = 10_000


def _schema() -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0, "maximum": MAX_MEMORY_BYTES}
    text = {"type": "string", "maxLength": 1000}
    properties: dict[str, Any] = {
        "instruction_count": count,
        "image_bytes": count,
        "memory_bytes": count,
        "configuration": {"type": "object"},
        "layers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "first", "last"],
                "properties": {"name": text, "first": count, "last": count},
                "additionalProperties": False,
            },
        },
    }
    for kind in ("input", "output"):
        properties |= _port_schema(kind)
    several: dict[str, Any] = {
        f"{kind}_count": {"type": "integer", "minimum": 1, "maximum": MAX_PORTS} for kind in ("input", "output")
    }
    several["step_count"] = {"type": "integer", "minimum": 1, "maximum": MAX_STEPS}
    return {"type": "object", "required": _required(properties), "properties": {**properties, **several}}


def _step_schema(prefix: str) -> dict[str, Any]:
    """What the keys of a step are held to."""
    count = {"type": "integer", "minimum": 0, "maximum": MAX_MEMORY_BYTES}
    name = {"type": "string", "pattern": "^([a-z_][a-z0-9_]{0,63})?$"}
    properties: dict[str, Any] = {f"{prefix}_{key}": count for key in ("layers", "first", "last", "offset", "bytes")}
    properties[f"{prefix}_function"] = name
    return {"type": "object", "required": list(properties), "properties": properties}


def _port_schema(prefix: str) -> dict[str, Any]:
    size = {"type": "integer", "minimum": 1, "maximum": MAX_MEMORY_BYTES}
    return {
        f"{prefix}_name": {"type": "string", "maxLength": 1000},
        f"{prefix}_offset": {"type": "integer", "minimum": 0, "maximum": MAX_MEMORY_BYTES},
        f"{prefix}_order": {"enum": list(ORDERS)},
        f"{prefix}_shape": {"type": "array", "items": size, "minItems": 1, "maxItems": 8},
        f"{prefix}_dtype": {"enum": list(DTYPES)},
    }


def _port_of(prefix: str) -> dict[str, Any]:
    """What the keys of one input or output are held to."""
    properties = _port_schema(prefix)
    tiled = {
        "if": {"properties": {f"{prefix}_order": {"const": "tiles"}}},
        "then": {"properties": {f"{prefix}_shape": {"minItems": 4, "maxItems": 4}}},
    }
    return {"type": "object", "required": _required(properties), "properties": properties, "allOf": [tiled]}


def _required(properties: Mapping[str, Any]) -> list[str]:
    """All but the dtypes, which are there where they aren't int8."""
    return [key for key in properties if not key.endswith("_dtype")]


def prefixes(kind: str, count: int) -> list[str]:
    """How the keys of the inputs begin, if `kind` is "input": those of the second with "input_2"."""
    return [kind, *(f"{kind}_{number}" for number in range(2, count + 1))]


ORDERS = ("dense", "tiles")
DTYPES = ("int8", "uint8")
LAYOUT = untrusted.Schema(_schema)


@dataclass(frozen=True, kw_only=True)
class Region:
    """An input or output in the memory image: of `shape` and of `dtype`, int8 or uint8, at `offset` bytes.

    `order` "dense" is the array in C order. "tiles" is VTA's own order for a 1×C×H×W array: [C/16][H][W][16], with 16
    the block and zeros in the lanes beyond C; only for batch 1. Of what no file names, as it is neither an input nor an
    output, `pack` pixels of a row may share a tile.
    """

    name: str
    offset: int
    shape: tuple[int, ...]
    order: Literal["dense", "tiles"] = "tiles"
    dtype: str = "int8"
    pack: int = 1

    def bytes(self, config: Config) -> int:
        if self.order == "dense":
            return prod(self.shape)
        channels, height, width = self._packed
        return -(-channels // config.block) * config.block * height * width

    @property
    def _packed(self) -> tuple[int, int, int]:
        _, channels, height, width = self.shape
        return channels * self.pack, height, width // self.pack

    def write(self, memory: np.ndarray, values: np.ndarray, config: Config) -> None:
        """Put `values` into `memory`, uint8. Raises UserError for another shape or dtype."""
        if values.shape != self.shape or values.dtype != self.dtype:
            raise UserError(f"{self.name} is {self.dtype} of shape {self.shape}, not {values.dtype} of {values.shape}.")
        packed = to_tiles(values, config.block) if self.order == "tiles" else np.ascontiguousarray(values)
        memory[self.offset : self.offset + packed.nbytes] = packed.reshape(-1).view(np.uint8)

    def read(self, memory: np.ndarray, config: Config) -> np.ndarray:
        """The values in `memory`, uint8, in their own dtype and shape."""
        found = memory[self.offset : self.offset + self.bytes(config)].view(self.dtype)
        if self.order == "dense":
            return found.reshape(self.shape).copy()
        if self.pack == 1:
            return from_tiles(found, self.shape, config.block)
        _, height, width = self._packed
        pixels = from_tiles(found, (1, *self._packed), config.block).reshape(self.pack, -1, height, width)
        return np.ascontiguousarray(pixels.transpose(1, 2, 3, 0)).reshape(self.shape)


def to_tiles(values: np.ndarray, block: int) -> np.ndarray:
    """1×C×H×W → ⌈C/block⌉×H×W×block of the same dtype, zeros where C ends."""
    _, channels, height, width = values.shape
    blocks = -(-channels // block)
    padded = np.zeros((blocks * block, height, width), values.dtype)
    padded[:channels] = values[0]
    return np.ascontiguousarray(padded.reshape(blocks, block, height, width).transpose(0, 2, 3, 1))


def from_tiles(tiles: np.ndarray, shape: Sequence[int], block: int) -> np.ndarray:
    """The inverse of `to_tiles`, to 1×C×H×W `shape`."""
    _, channels, height, width = shape
    blocks = tiles.reshape(-1, height, width, block).transpose(0, 3, 1, 2).reshape(-1, height, width)
    return np.array(blocks[None, :channels], order="C")  # never a view of the memory


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A layer: its instructions are first … last − 1."""

    name: str
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of a program that begins when the one before has ended, and does its next `layers` layers.

    On the accelerator it is instructions first … last − 1, which end in a FINISH of their own; with a `function`, that
    function of the program's source, on the board's processor, which writes `bytes` from `offset` on.
    """

    layers: int
    first: int
    last: int
    function: str = ""
    offset: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Executable:
    """A program with its memory. dram_base of all instructions is relative to the image, whose base is relocated.

    `image` is uint8, the first bytes of `memory_bytes`; the rest is scratch that no one initialises. `layers` follow
    each other without gaps or overlaps but may leave out instructions at the beginning and at the end. Without `steps`
    there is one, of all instructions; `source` is the C of what steps run on the board's processor.
    """

    config: Config
    instructions: tuple[Instruction, ...]
    image: np.ndarray
    memory_bytes: int
    inputs: tuple[Region, ...]
    outputs: tuple[Region, ...]
    layers: tuple[Mark, ...] = ()
    steps: tuple[Step, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 1 or self.image.size > self.memory_bytes:
            raise UserError("A memory image is a row of bytes, no more of them than the memory has.")
        for region in (*self.inputs, *self.outputs):
            if region.offset < 0 or region.offset + region.bytes(self.config) > self.memory_bytes:
                raise UserError(f"{region.name} lies outside the memory's {self.memory_bytes} bytes.")
        if self.steps:
            follow = [(step.first, step.last) for step in self.steps]
            ends = [0, *(last for _, last in follow)]
            whole = ends[-1] == len(self.instructions) and sum(step.layers for step in self.steps) == len(self.layers)
            if not whole or any(first != end or last < first for (first, last), end in zip(follow, ends, strict=False)):
                raise UserError("A program's steps follow each other, and do all of its layers.")
            if any(step.function and step.first != step.last for step in self.steps):
                raise UserError("A step is either on the accelerator or on the processor.")
            if any(step.offset + step.bytes > self.memory_bytes for step in self.steps):
                raise UserError("A step writes beyond the memory.")
            marks = iter(self.layers)
            for step in self.steps:
                for mark in itertools.islice(marks, step.layers):
                    if not step.first <= mark.first <= mark.last <= step.last:
                        raise UserError(f"The layer {mark.name} has instructions of another step than its own.")

    @property
    def sequence(self) -> tuple[Step, ...]:
        """The steps; where there are none, the only one."""
        return self.steps or (Step(layers=len(self.layers), first=0, last=len(self.instructions)),)

    def parts(self) -> Iterator[tuple[Step, Executable]]:
        """Each step, and what it is by itself: a program that begins with instruction 0, and has no steps."""
        done = 0
        for step in self.sequence:
            marks = self.layers[done : done + step.layers]
            done += step.layers
            yield (
                step,
                replace(
                    self,
                    instructions=self.instructions[step.first : step.last],
                    layers=tuple(
                        replace(mark, first=mark.first - step.first, last=mark.last - step.first) for mark in marks
                    ),
                    steps=(),
                    source="",
                ),
            )

    def with_instructions(self, instructions: Sequence[Instruction]) -> Executable:
        return replace(self, instructions=tuple(instructions))


def relocate(instructions: Sequence[Instruction], base: int, config: Config) -> tuple[Instruction, ...]:
    """The instructions for an image at the physical address `base`. Raises UserError if that isn't aligned.

    Hardware multiplies dram_base with the element's size, so a base between two elements can't be expressed.
    """
    if base % config.alignment:
        raise UserError(f"The memory image is at {base:#x}, which is no multiple of {config.alignment} bytes.")
    moved: list[Instruction] = []
    for instruction in instructions:
        if isinstance(instruction, Load | Store) and not isa.is_nop(instruction):
            memory = instruction.memory if isinstance(instruction, Load) else isa.Memory.OUT
            start = instruction.dram_base + base // isa.element_bytes(memory, config)
            moved.append(replace(instruction, dram_base=start))
        else:
            moved.append(instruction)
    return tuple(moved)


def layout(executable: Executable, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`layout.json`: flat, so that C reads it without a JSON library. `facts` are added under "facts"."""
    config = executable.config
    values: dict[str, Any] = {
        "schema_version": WITH_STEPS if executable.steps else SCHEMA_VERSION,
        "hw_ver": config.version,
        "instruction_count": len(executable.instructions),
        "image_bytes": executable.image.size,
        "memory_bytes": executable.memory_bytes,
        "alignment_bytes": config.alignment,
        "block": config.block,
    }
    ports = {"input": executable.inputs, "output": executable.outputs}
    if not all(1 <= len(regions) <= MAX_PORTS for regions in ports.values()) or config.batch != 1:
        raise UserError(f"A VTA program that is kept as files has 1 to {MAX_PORTS} inputs and outputs, and batch 1.")
    for kind, regions in ports.items():
        if len(regions) > 1:
            values[f"{kind}_count"] = len(regions)
        for prefix, region in zip(prefixes(kind, len(regions)), regions, strict=True):
            values[f"{prefix}_name"] = region.name
            values[f"{prefix}_order"] = region.order
            values[f"{prefix}_offset"] = region.offset
            values[f"{prefix}_bytes"] = region.bytes(config)
            values[f"{prefix}_shape"] = list(region.shape)
            if region.dtype != "int8":
                values[f"{prefix}_dtype"] = region.dtype
    if executable.steps:
        values["step_count"] = len(executable.steps)
        for number, step in enumerate(executable.steps, 1):
            values |= {f"step_{number}_{key}": value for key, value in asdict(step).items()}
    values["configuration"] = config.to_json()
    values["layers"] = [asdict(mark) for mark in executable.layers]
    values["facts"] = dict(facts or {})
    return values


def save(executable: Executable, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write the files into `folder`. Raises UserError for instructions that can't be encoded."""
    described = layout(executable, facts)
    code = isa.encode_program(executable.instructions, executable.config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.bin").write_bytes(code)
    (folder / "memory.bin").write_bytes(executable.image.tobytes())
    (folder / "layout.json").write_text(json.dumps(described, indent=1) + "\n")
    if executable.source:
        (folder / SOURCE).write_text(executable.source, encoding="utf-8")


def _ports(described: Mapping[str, Any], kind: str) -> tuple[Region, ...]:
    """The inputs or the outputs. Raises MalformedError."""
    regions = []
    for prefix in prefixes(kind, described.get(f"{kind}_count", 1)):
        untrusted.Schema(_port_of(prefix)).check(described)
        regions.append(
            Region(
                name=described[f"{prefix}_name"],
                offset=described[f"{prefix}_offset"],
                shape=tuple(described[f"{prefix}_shape"]),
                order=described[f"{prefix}_order"],
                dtype=described.get(f"{prefix}_dtype", "int8"),
            )
        )
    return tuple(regions)


def _steps(described: Mapping[str, Any]) -> tuple[Step, ...]:
    """Raises MalformedError."""
    found = []
    for number in range(1, described.get("step_count", 0) + 1):
        untrusted.Schema(functools.partial(_step_schema, f"step_{number}")).check(described)
        found.append(Step(**{field.name: described[f"step_{number}_{field.name}"] for field in fields(Step)}))
    return tuple(found)


def read(folder: Path) -> Executable:
    """Read the files. Raises UserError for what is missing, damaged or of another version."""
    what, path = "layout of a VTA program", folder / "layout.json"
    described = untrusted.read_json(path, limits.MANIFEST, what=what)
    version = described.get("schema_version") if isinstance(described, dict) else None
    if type(version) is not int or version not in (SCHEMA_VERSION, WITH_STEPS):
        wanted = f"{SCHEMA_VERSION} or {WITH_STEPS}"
        raise UnusableFileError(path, f"has schema_version {untrusted.shown(version)}, where {wanted} belongs")
    code, image = (untrusted.read_bytes(folder / name, limits.MEMBER) for name in FILES[:2])
    try:
        LAYOUT.check(described)
        config = configuration.from_json(described["configuration"], untrusted.printable(str(path)))
        inputs, outputs = (_ports(described, kind) for kind in ("input", "output"))
        instructions = isa.decode_program(code, config)
        if (len(instructions), len(image)) != (described["instruction_count"], described["image_bytes"]):
            raise UnusableFileError(folder, "has a program.bin or memory.bin that is not as long as layout.json says")
        marks = [(mark["first"], mark["last"]) for mark in described["layers"]]
        if any(not first <= last <= len(instructions) for first, last in marks):
            raise UnusableFileError(path, "has a layer whose instructions the program doesn't have")
        steps = _steps(described)
        source = b""
        if any(step.function for step in steps):
            source = untrusted.read_bytes(folder / SOURCE, limits.MEMBER)
        return Executable(
            config=config,
            instructions=instructions,
            image=np.frombuffer(image, np.uint8),
            memory_bytes=described["memory_bytes"],
            inputs=inputs,
            outputs=outputs,
            layers=tuple(Mark(**mark) for mark in described["layers"]),
            steps=steps,
            source=source.decode("utf-8", "replace"),
        )
    except MalformedError as error:
        raise UnusableFileError(path, f"is no {what} that can be read: {error}", "build it again") from error
