"""How much is read of what others made: the bytes, elements and levels of every kind of file, stated in one place.

So are the seconds that other programs may work on it. Each limit of size is compared before the memory is taken, and
lies well above what good files have. Who has a larger one lifts
it: `tvmflow --limit tensor.elements=1G …`, or the variable TVMFLOW_LIMITS, by which child processes know of it too.
The constants at the end can't be lifted: what is beyond them is no file of its format.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvmflow.spec import UserError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
VARIABLE = "TVMFLOW_LIMITS"
"""The environment variable: `NAME=VALUE`, several after commas."""


@dataclass(kw_only=True)
class Limits:
    """What one kind of file may have at most. There is one object a kind, which `lift` changes for all readers.

    `elements` are what the kind is made of: values, members, nodes, pixels; `depth` are levels of nesting; `seconds`
    are of time as a clock on the wall shows it.
    """

    name: str
    bytes: int = 1 << 62
    elements: int = 1 << 62
    depth: int = 64
    seconds: int = 1 << 30

    def remedy(self, what: str) -> str:
        """How `what`, the name of a field, is lifted: the end of a sentence that refuses."""
        return f"--limit {self.name}.{what}=N takes more"


NETWORK = Limits(name="network", bytes=8 * GIB)
"""A network's file, and an ONNX file together with its external data."""
GRAPH = Limits(name="graph", bytes=256 * MIB, elements=1_000_000, depth=100)
"""The text of a .pt2 file's graph; an ONNX graph's nodes, with functions in place of the nodes that call them."""
INPUTS = Limits(name="inputs", elements=1 << 25)
"""All inputs of a run together: 128 MiB of float32, more than an image of 4K in colour; a dozen vectors are made."""
TENSOR = Limits(name="tensor", elements=1 << 28)
"""One weight, and one result of an operator: 1 GiB of float32."""
WEIGHTS = Limits(name="weights", bytes=2 * GIB)
"""A safetensors file."""
ARRAY = Limits(name="array", bytes=2 * GIB, elements=1 << 31, depth=32)
"""The array in a .npy or .npz file, packed or not; `depth` are its dimensions."""
MANIFEST = Limits(name="manifest", bytes=16 * MIB, elements=500_000)
BUNDLE = Limits(name="bundle", bytes=4 * GIB, elements=4096)
"""A bundle's members together."""
MEMBER = Limits(name="member", bytes=2 * GIB, elements=1)
"""One member of a bundle."""
REPORT = Limits(name="report", bytes=64 * MIB, elements=1_000_000)
BOARD = Limits(name="board", bytes=64 * KIB, elements=5_000, depth=8)
"""A board in TOML."""
DOCUMENT = Limits(name="document", bytes=1 * MIB, elements=50_000)
"""Any other JSON: an identity, a configuration, a layout."""
LEDGER = Limits(name="ledger", bytes=1 * GIB, elements=1_000_000)
"""The records of searches; `elements` are the lines, each of which is held to LINE."""
LINE = Limits(name="line", bytes=4 * MIB, elements=200_000)
IMAGE = Limits(name="image", bytes=1 * MIB, elements=1 << 26)
"""`bytes` of an image file in a data set, whose images have 32 or 64 pixels a side; `elements` are the pixels of any
image, and of what it is resized to."""
BATCH = Limits(name="batch", bytes=64 * MIB, elements=250_000)
"""A pickled batch of CIFAR-10, and its pickle's instructions; the real ones have 31 MB and about 60,000."""
ARCHIVE = Limits(name="archive", bytes=1 * GIB, elements=200_000)
"""A data set's archive unpacked, and as it lies on the disk; members of it, or files in a folder: thrice CIFAR-10's."""
LISTING = Limits(name="listing", bytes=16 * MIB, elements=10_000)
"""Each of Tiny ImageNet's text files, the largest of which has 2.7 MB; the classes that one lists."""
PEER = Limits(name="peer", bytes=1 * MIB)
"""What a board may say to a question: of itself, of its files, of what went wrong."""
RESULT = Limits(name="result", bytes=256 * MIB, elements=32_000_000)
"""What a program of ours on a board may print: a million samples, and the windows of days."""
SESSION = Limits(name="session", bytes=4 * GIB)
"""What a process of this computer that talks to a board over RPC may allocate beyond what it began with."""
TOOL = Limits(name="tool", seconds=600)
"""One run of a linker, a disassembler or llvm-mca: a network's library is linked in seconds."""
WORKER = Limits(name="worker", seconds=3600)
"""One run of a process that executes a network on this computer, with all its vectors."""

KINDS: dict[str, Limits] = {
    limits.name: limits
    for limits in (
        NETWORK,
        GRAPH,
        INPUTS,
        TENSOR,
        WEIGHTS,
        ARRAY,
        MANIFEST,
        BUNDLE,
        MEMBER,
        REPORT,
        BOARD,
        DOCUMENT,
        LEDGER,
        LINE,
        IMAGE,
        BATCH,
        ARCHIVE,
        LISTING,
        PEER,
        RESULT,
        SESSION,
        TOOL,
        WORKER,
    )
}

# ------------------------------------------------------------------------------------------------ not to be lifted

TEXT_CHARACTERS = 20_000
"""Of one name or text of a graph."""
EXPRESSION_CHARACTERS = 4096
"""Of an expression for a dimension that was left open."""
INTEGER_DIGITS = 20
"""Of a number in JSON: 2⁶⁴ has as many. Python itself would compute with any."""
EXTENSION_BYTES = 64 * KIB
"""Of a bundle's tar: a long name or pax header, which `tarfile` reads into memory before anything can be said of it."""
HEADER_BYTES = 1 * MIB
"""Of all that a data set's archive says of one member: long names, extended headers, maps of sparse files."""
DIRECTORY_BYTES = 1 * MIB
"""Of the list of its members that a .npz file has."""
ARRAY_HEADER_BYTES = 10_000
XZ_MEMORY_BYTES = 256 * MIB
"""Of an xz stream's decoder, whose dictionary the file chooses; `xz -9` takes 65 MiB."""
ANSWER_BYTES = 16 * KIB
"""An answer over HTTP, its head included."""
ANSWER_SECONDS = 10.0
"""From the question to the last byte of an answer over HTTP."""
READING_SECONDS = 30.0
"""What reading any JSON, TOML or header within these limits may take on a slow computer; the tests hold them to it."""
SHOWN_CHARACTERS = 160
"""What a sentence repeats of what a file or a peer says."""

# ------------------------------------------------------------------------------------------------------- lifting them

_ASSIGNMENT = re.compile(r"(\w+)\.(bytes|elements|depth|seconds)=([1-9]\d{0,17})([KMGT]?)")
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}


def lift(assignment: str) -> None:
    """Set a limit from now on, for this process and those that it starts: `tensor.elements=1G`. Raises UserError."""
    limits, field, value = _parsed(assignment)
    setattr(limits, field, value)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"{before},{assignment}" if before else assignment


def lift_as_the_environment_says() -> None:
    """Set the limits that VARIABLE names, if it is there. Raises UserError."""
    for assignment in filter(None, os.environ.get(VARIABLE, "").split(",")):
        limits, field, value = _parsed(assignment)
        setattr(limits, field, value)


def _parsed(assignment: str) -> tuple[Limits, str, int]:
    found = _ASSIGNMENT.fullmatch(assignment)
    if found is None or found[1] not in KINDS:
        raise UserError(
            f"{assignment[:SHOWN_CHARACTERS]!r} is no limit: NAME.bytes, NAME.elements, NAME.depth or NAME.seconds, "
            "an equals sign and a whole number, also with K, M, G or T, belong there; the names are "
            f"{', '.join(KINDS)}."
        )
    return KINDS[found[1]], found[2], int(found[3]) * _FACTORS[found[4]]


# ----------------------------------------------------------------------------------------------------------- checks


def check_file_size(size: int, path: object) -> None:
    """`size` of a network in bytes. Raises UserError."""
    if size > NETWORK.bytes:
        raise UserError(
            f"{path} has {size:,} bytes; a network's file and its data have at most {NETWORK.bytes:,} "
            f"({NETWORK.remedy('bytes')})."
        )


def check_inputs(shapes: Mapping[str, Sequence[object]], source: str) -> None:
    """Shapes in elements by the inputs' names; dimensions that aren't numbers count as 1. Raises UserError."""
    total = sum(_elements(shape) for shape in shapes.values())
    if total > INPUTS.elements:
        largest = max(shapes, key=lambda name: _elements(shapes[name]))
        raise UserError(
            f"{source}: an input {largest!r} of {_shown(shapes[largest])} is too large; all inputs together have at "
            f"most {INPUTS.elements:,} elements ({INPUTS.remedy('elements')})."
        )


def check_tensor(shape: Sequence[object], what: str) -> None:
    """For weights and results of operators, as `check_inputs`."""
    if _elements(shape) > TENSOR.elements:
        raise UserError(
            f"{what} of {_shown(shape)} has {_elements(shape):,} elements; a tensor has at most "
            f"{TENSOR.elements:,} ({TENSOR.remedy('elements')})."
        )


def _elements(shape: Sequence[object]) -> int:
    return math.prod(max(dim, 0) for dim in shape if isinstance(dim, int))


def _shown(shape: Sequence[object]) -> str:
    return "×".join(map(str, shape))


with contextlib.suppress(UserError):  # the command line says what is wrong with the variable
    lift_as_the_environment_says()
