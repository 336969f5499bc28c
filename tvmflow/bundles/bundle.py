"""What a build leaves: a directory, or one .tar, with library, manifest, golden vectors, README and a runner.

`write` makes it whole or not at all; `open_bundle` believes nothing that its hashes don't show. docs/bundle.md has
the format.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from tvmflow.measure import device
from tvmflow.network.agreement import tolerances
from tvmflow.network.vectors import vector_names
from tvmflow.spec import (
    NO_ELF,
    Layer,
    Preprocessing,
    Program,
    Target,
    TensorSpec,
    UserError,
    Vector,
)
from tvmflow.system import interrupt, limits, scratch, tensors, toolchain, untrusted
from tvmflow.system.text import to_json
from tvmflow.system.untrusted import MalformedError, UnusableFileError, printable, reason, shown
from tvmflow.targets import form

FORMAT, SCHEMA_VERSION = "tvmflow-bundle", "1.3"
MANIFEST, LIBRARY = "manifest.json", "model.so"

REQUIRED = (
    "model",
    "target",
    "versions",
    "inputs",
    "outputs",
    "labels",
    "layers",
    "memory",
    "verify",
    "vectors",
    "library",
    "members",
)
"""What a manifest has besides `format`, `schema_version` and `preprocessing`, which may be null."""


def _schema() -> dict[str, Any]:
    """What a manifest of format 1 has at least; what a newer one adds is left alone."""
    text: dict[str, Any] = {"type": "string"}
    count: dict[str, Any] = {"type": "integer", "minimum": 0}
    texts: dict[str, Any] = {"type": "array", "items": text}
    numbers: dict[str, Any] = {"type": "array", "items": {"type": "number"}}
    positive: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
    zero_point: dict[str, Any] = {"type": "integer", "minimum": -128, "maximum": 255}
    state = {
        "type": "object",
        "required": ["input", "output", "initial"],
        "properties": {"input": text, "output": text, "initial": zero_point},
    }
    allowed: dict[str, Any] = {"type": "number", "minimum": 0}
    tensor = untrusted.schema_of(TensorSpec)
    tensor["properties"] |= {
        "shape": {"type": "array", "items": count, "maxItems": limits.ARRAY.depth},
        "dtype": {"enum": list(tensors.DTYPES)},
    }
    layer = untrusted.schema_of(Layer)
    layer["properties"] |= {"macs": count, "bytes": count}
    return {
        "type": "object",
        "required": [*REQUIRED, "preprocessing"],
        "properties": {
            "model": {
                "type": "object",
                "required": ["name", "source", "parameters", "macs"],
                "properties": {
                    "name": {"type": "string", "maxLength": 1000},
                    "source": text,
                    "reference": text,
                    "parameters": count,
                    "macs": count,
                },
            },
            "target": form.schema(),
            "versions": {"type": "object", "required": ["tvmflow"], "additionalProperties": text},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1000},
            "outputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1000},
            "labels": texts,
            "preprocessing": {
                "oneOf": [
                    {"type": "null"},
                    {
                        "type": "object",
                        "required": ["mean", "std"],
                        "properties": {"mean": numbers, "std": {"type": "array", "items": positive}},
                    },
                ]
            },
            "quantization": {
                "oneOf": [
                    {"type": "null"},
                    {
                        "type": "object",
                        "required": ["scheme", "input_scale", "output_scale"],
                        "properties": {
                            "scheme": text,
                            "input_scale": positive,
                            "output_scale": positive,
                            "input_scales": {"type": "array", "items": positive},
                            "output_scales": {"type": "array", "items": positive},
                            "input_zero_points": {"type": "array", "items": zero_point},
                            "output_zero_points": {"type": "array", "items": zero_point},
                            "state": {"type": "array", "items": state},
                        },
                    },
                ]
            },
            "layers": {"type": "array", "items": layer},
            "memory": {"type": "object", "additionalProperties": count},
            "verify": {
                "type": "object",
                "required": ["passed", "method"],
                "properties": {"passed": {"type": ["boolean", "null"]}, "method": {"type": ["string", "null"]}},
            },
            "vectors": texts,
            "tolerances": {"type": ["array", "null"], "items": {"type": "array", "items": allowed}},
            "library": text,
            "runner": {"type": ["string", "null"]},
            "members": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["bytes", "sha256"],
                    "properties": {"bytes": count, "sha256": text},
                },
            },
        },
    }


SCHEMA = untrusted.Schema(_schema)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle whose members have been checked against `manifest`, the content of its manifest.json."""

    path: Path
    root: Path
    manifest: Mapping[str, Any]

    @property
    def library(self) -> Path:
        return self.root / self.manifest["library"]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything in the bundle."""
        return _sha256(self.root / MANIFEST)

    @property
    def name(self) -> str:
        return self.manifest["model"]["name"]

    @property
    def target(self) -> Target:
        """The board as it was when the bundle was built."""
        return form.from_json(self.manifest["target"])

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return _tensor_specs(self.manifest["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return _tensor_specs(self.manifest["outputs"])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["labels"])

    @property
    def layers(self) -> tuple[Layer, ...]:
        rows = self.manifest["layers"]
        return tuple(Layer(**_known(Layer, {**row, "modules": tuple(row["modules"])})) for row in rows)

    @property
    def preprocessing(self) -> Preprocessing | None:
        given = self.manifest["preprocessing"]
        return Preprocessing(mean=tuple(given["mean"]), std=tuple(given["std"])) if given else None

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """Of a quantised network `scheme`, `input_scale` and `output_scale`: real = stored · scale."""
        return self.manifest.get("quantization")

    @property
    def scales(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Of a quantised network the real values of one step of each input and of each output.

        Bundles of format 1.2 and older say it of the first ones alone.
        """
        given = self.quantization
        if given is None:
            return None
        found = tuple(tuple(given.get(f"{side}_scales") or [given[f"{side}_scale"]]) for side in ("input", "output"))
        return found[0], found[1]

    @property
    def zero_points(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What stands for 0 in each input and in each output: 0, but in networks of .tflite files."""
        given = self.quantization or {}
        found = tuple(
            tuple(given.get(f"{side}_zero_points") or [0] * len(ports))
            for side, ports in (("input", self.inputs), ("output", self.outputs))
        )
        return found[0], found[1]

    @property
    def state(self) -> Mapping[str, tuple[str, int]]:
        """Inputs that are outputs of the call before: the output's name, and what fills the input at the first call."""
        given = (self.quantization or {}).get("state", ())
        return {row["input"]: (row["output"], row["initial"]) for row in given}

    def vectors(self) -> tuple[Vector, ...]:
        """The golden vectors, read from disk. Raises UserError if one isn't what the manifest says."""
        return tuple(
            Vector(
                name=name,
                inputs=self._arrays(f"vectors/{name}/input", self.inputs),
                outputs=self._arrays(f"vectors/{name}/output", self.outputs),
            )
            for name in self.manifest["vectors"]
        )

    def tolerances(self, vectors: Sequence[Vector]) -> Sequence[Sequence[float]]:
        """The largest absolute error of each output in each of its `vectors`, as the build wrote them down.

        Formats before 1.2 have none; theirs are made from the vectors.
        """
        return self.manifest.get("tolerances") or tolerances(vectors, self.target.arithmetic)

    def _arrays(self, prefix: str, specs: tuple[TensorSpec, ...]) -> tuple[np.ndarray, ...]:
        return tuple(load_array(self.root / f"{prefix}-{index}.npy", spec) for index, spec in enumerate(specs))


def load_array(path: Path, spec: TensorSpec) -> np.ndarray:
    """A .npy file that holds a tensor of that shape and dtype. Raises UserError.

    A bfloat16 tensor may also be given as the uint16 of its bits, which is how NumPy has it from PyTorch.
    """
    array = _read_array(path, spec)
    if array.shape != spec.shape or str(array.dtype) != spec.dtype:
        wanted = f"{printable(spec.name)} is {spec.dtype} {_dims(spec.shape)}"
        raise UnusableFileError(path, f"holds {array.dtype} {_dims(array.shape)}, but {wanted}")
    return array


def load_calls(path: Path, spec: TensorSpec) -> np.ndarray:
    """A .npy file with one tensor of that shape and dtype, or with those of many calls, which come first in its shape.

    Those of many calls lie along a dimension before the others, or along the first where a call has 1. Raises
    UserError.
    """
    array = _read_array(path, spec)
    shape = (1, *array.shape) if array.shape == spec.shape else array.shape
    if spec.shape[:1] == (1,) and len(shape) == len(spec.shape):
        shape = (shape[0], 1, *shape[1:])
    if shape[1:] != spec.shape or not shape[0] or str(array.dtype) != spec.dtype:
        wanted = f"{printable(spec.name)} is {spec.dtype} {_dims(spec.shape)}, or N×{_dims(spec.shape)} for N calls"
        raise UnusableFileError(path, f"holds {array.dtype} {_dims(array.shape)}, but {wanted}")
    return array.reshape(shape)


def _read_array(path: Path, spec: TensorSpec) -> np.ndarray:
    try:
        array = tensors.load(path)
    except (OSError, MalformedError) as error:
        raise UnusableFileError(path, f"can't be read as a .npy file: {reason(error)}") from error
    if spec.dtype == "bfloat16" and array.dtype == np.uint16:
        array = array.view(tensors.BFLOAT16)
    return array


def check_destination(out: Path) -> None:
    """Raises UserError if `out` is something that `write` would not replace: anything but a bundle or nothing.

    A folder or an archive with a bundle may hold nothing else, and only files with the SHA-256 that its manifest gives:
    what was added or changed is somebody's work.
    """
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write {out.name} into.")
    if not os.path.lexists(out):
        if not os.access(out.parent, os.W_OK | os.X_OK):
            raise UserError(f"Nothing may be written into {out.parent}; give another --output.")
        return
    if not out.exists():
        raise UserError(f"{out} is a link to nothing; remove it, or give another --output.")
    if not out.is_dir():
        if reason := _why_no_archive(out):
            raise UserError(f"{out} exists and {reason}; it was left as it is. Give another --output.")
        return
    try:
        members = _members(out)
        for path in sorted(_files(out)):
            name = path.relative_to(out).as_posix()
            if name not in members:
                reason = "is of no bundle of tvmflow"
            elif path.is_symlink() or not path.is_file() or members[name] not in (None, _sha256(path)):
                reason = "isn't as tvmflow wrote it"
            else:
                continue
            raise UserError(
                f"{out} holds {name!r}, which {reason}; the folder was left as it is. Give --output an empty "
                "folder, or one that isn't there yet."
            )
        if not os.access(out, os.W_OK | os.X_OK):
            raise UserError(f"Nothing may be written into {out}; give another --output.")
    except OSError as error:
        raise UserError(f"The folder {out} can't be read: {error.strerror}; give another --output.") from error


def _why_no_archive(path: Path) -> str:
    """Why what is at `path` isn't an archive as `write` makes them, with nothing added or changed; "" if it is."""
    members: dict[str, str | None] = {}
    if not path.is_file():
        return "is no bundle of tvmflow"
    missing = {MANIFEST}
    try:
        for name, content in untrusted.members(path):  # ends at a header that can't be read
            if content is None:
                return f"holds {name!r}, which is of no bundle of tvmflow"
            if not members:
                members = _listed(content.read(limits.MANIFEST.bytes + 1)) if name == MANIFEST else {}
                if not members:
                    return "is no bundle of tvmflow"
                missing = set(members) - {MANIFEST}
                continue
            missing.discard(name)
            if name not in members:
                return f"holds {name!r}, which is of no bundle of tvmflow"
            if _digest_of(content) != members[name]:
                return f"holds {name!r}, which isn't as tvmflow wrote it"
    except (OSError, UnusableFileError):
        missing = {MANIFEST}
    return "is no bundle of tvmflow, or a damaged one" if missing else ""


def _members(folder: Path) -> dict[str, str | None]:
    """The files of the bundle in a folder by their paths in it, as `_listed` has them; none if there is no bundle."""
    file = folder / MANIFEST
    try:
        if file.is_symlink() or file.stat().st_size > limits.MANIFEST.bytes:
            return {}
        return _listed(file.read_bytes())
    except OSError:
        return {}


def _listed(manifest: bytes) -> dict[str, str | None]:
    """The files that a manifest names, with their SHA-256, and itself, with None; none if it is no bundle's."""
    try:
        content = untrusted.parse_json(manifest, limits.MANIFEST, non_finite=True)
        members = {str(name): str(entry["sha256"]) for name, entry in content["members"].items()}
        return {**members, MANIFEST: None} if content["format"] == FORMAT else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _files(folder: Path) -> Iterator[Path]:
    """All that lies in a folder but for its folders, and for what is just being written or was left by a kill."""
    for path in folder.iterdir():
        if not path.is_dir() or path.is_symlink():
            yield path
        elif not _is_scratch(path):
            yield from _files(path)


def _is_scratch(path: Path) -> bool:
    """Whether it has a name of `scratch.beside`: somebody's folder may begin like one."""
    return re.fullmatch(re.escape(scratch.PREFIX) + "[0-9a-f]{12}", path.name) is not None


def write(
    out: Path,
    *,
    program: Program,
    target: Target,
    library: Path,
    versions: Mapping[str, str],
    memory: Mapping[str, int],
    verify: Mapping[str, Any],
    runner: Path | None = None,
    extras: Mapping[str, Path] = MappingProxyType({}),
    usage: str | None = None,
    c_library: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle to `out`, replacing the bundle that may be there; if that fails, `out` is as it was before.

    A folder that exists stays, be it the current one, a link's or a mounted one, and what is in it is replaced.
    `library` becomes LIBRARY, with its own suffix. `runner` is a folder of `device.make_runner`; `extras` are other
    files and folders, by their names in the bundle. `usage` says in the README how the library is used, if not by TVM's
    runtime in Python; there is no run.py then. `c_library` are the facts of a library for C.
    The same build gives the same bytes. Raises UserError, also for a full disk.
    """
    place = Path(os.path.realpath(out))
    try:
        with _own(place), scratch.beside(place / MANIFEST if place.is_dir() else place) as made:
            check_destination(out)
            root = made / "bundle"
            root.mkdir(parents=True)
            shutil.copyfile(library, root / library_name(library))
            if runner is not None:
                shutil.copytree(runner, root / runner.name)
            for name, path in extras.items():
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, root / name)
            _write_vectors(root, program)
            content = _describe(program, target, versions, memory, verify, library_name(library), runner is not None)
            content |= {"c_library": dict(c_library)} if c_library else {}
            (root / "README.md").write_text(_readme(content, target, usage or _python_usage(content)), encoding="utf-8")
            if usage is None:
                (root / "run.py").write_text(_runner(content, target), encoding="utf-8")
            members = sorted(path for path in root.rglob("*") if path.is_file())
            content["members"] = {
                path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in members
            }
            (root / MANIFEST).write_text(to_json(content, escaped=True) + "\n", encoding="utf-8")
            if place.is_dir():
                _exchange(root, place, made / "replaced")
            elif place.suffix == ".tar":
                _pack(root, [root / MANIFEST, *members], made / "bundle.tar")
                os.replace(made / "bundle.tar", place)
            else:
                _replace(root, place, made / "replaced")
            return Bundle(path=out, root=out, manifest=content)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise UserError(f"The bundle can't be written to {out}: {reason}; it was left as it was.") from error


def copy(bundle: Bundle, out: Path) -> Path:
    """Copy a bundle that was opened to a folder, or to one file if `out` ends in .tar; returns `out`.

    A bundle that is there is replaced as `write` does it. Raises UserError.
    """
    place = Path(os.path.realpath(out))
    check_destination(out)
    try:
        with _own(place), scratch.beside(place / MANIFEST if place.is_dir() else place) as made:
            root = made / "bundle"
            for name in (MANIFEST, *bundle.manifest["members"]):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(bundle.root / name, root / name)
            if place.is_dir():
                _exchange(root, place, made / "replaced")
            elif place.suffix == ".tar":
                members = [root / name for name in sorted(bundle.manifest["members"])]
                _pack(root, [root / MANIFEST, *members], made / "bundle.tar")
                os.replace(made / "bundle.tar", place)
            else:
                _replace(root, place, made / "replaced")
    except OSError as error:
        raise UserError(f"The bundle can't be copied to {out}: {error}; it was left as it was.") from error
    return out


@contextlib.contextmanager
def _own(place: Path) -> Iterator[None]:
    """Be the only one that writes into a folder, as long as the block lasts."""
    if not place.is_dir():
        yield
        return
    folder = os.open(place, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks, and few have two writers
            fcntl.flock(folder, fcntl.LOCK_EX)
        for left in filter(_is_scratch, place.iterdir()):  # by a writer that was killed: others are waiting
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(folder)


def _replace(root: Path, place: Path, replaced: Path) -> None:
    """The folder `root` takes the place of what is at `place`, an archive or nothing, which comes back if it fails."""
    with interrupt.deferred():
        if not os.path.lexists(place):
            os.rename(root, place)
            return
        os.rename(place, replaced)
        try:
            os.rename(root, place)
        except BaseException:
            os.rename(replaced, place)
            raise


def _exchange(root: Path, place: Path, replaced: Path) -> None:
    """What is in `root` takes the place of the bundle in the folder `place`; the manifest goes first and comes last."""
    replaced.mkdir()
    there = {path.relative_to(place).as_posix() for path in _files(place)}
    old = [name for name in _members(place) if name in there]
    new = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    new = [*(name for name in new if name != MANIFEST), MANIFEST]
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, destination: Path) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        moved.append((source, destination))
        os.rename(source, destination)

    with interrupt.deferred():
        try:
            for name in old:
                move(place / name, replaced / name)
            for name in new:
                move(root / name, place / name)
        except BaseException:
            for source, destination in reversed(moved):
                if destination.exists():
                    os.rename(destination, source)
            raise
        finally:
            for folder in _folders(place, (*old, *new)):
                with contextlib.suppress(OSError):  # as long as anything is in it
                    folder.rmdir()


def _folders(place: Path, names: Iterable[str]) -> list[Path]:
    """The folders of files in `place`, the inner ones first."""
    return sorted({place / folder for name in names for folder in PurePosixPath(name).parents[:-1]}, reverse=True)


def _describe(
    program: Program,
    target: Target,
    versions: Mapping[str, str],
    memory: Mapping[str, int],
    verify: Mapping[str, Any],
    library: str,
    runner: bool,
) -> dict[str, Any]:
    pre = program.preprocessing
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model": {
            "name": program.name,
            "source": program.source,
            "reference": program.reference,
            "parameters": program.parameters,
            "macs": sum(layer.macs for layer in program.layers),
            **({"accuracy": dict(program.accuracy)} if program.accuracy else {}),
        },
        "target": {
            **form.to_json(target),
            "tvm": toolchain.tvm_target_dict(target),
            "schedules": list(target.schedules),
            "arithmetics": list(target.arithmetics),
            "deliveries": list(target.deliveries),
        },
        "versions": dict(versions),
        "inputs": [{**asdict(spec), "shape": list(spec.shape)} for spec in program.inputs],
        "outputs": [{**asdict(spec), "shape": list(spec.shape)} for spec in program.outputs],
        "labels": list(program.labels),
        "preprocessing": pre
        and {
            "color": "RGB",
            "layout": "NCHW",
            "scale": "1/255",
            "mean": list(pre.mean),
            "std": list(pre.std),
        },
        "quantization": program.integer
        and {
            "scheme": program.integer.scheme,
            "input_scale": program.integer.input_scale,
            "output_scale": program.integer.output_scale,
            "input_scales": [port.scale for port in program.integer.inputs],
            "output_scales": list(program.integer.output_scales),
            **_zero_points(program.integer),
            **({"state": [vars(state) for state in program.integer.state]} if program.integer.state else {}),
        },
        "layers": [
            {**asdict(layer), "modules": list(layer.modules), "details": _details(layer, program)}
            for layer in program.layers
        ],
        "memory": dict(memory),
        "verify": dict(verify),
        "vectors": vector_names(program),
        "tolerances": [list(allowed) for allowed in tolerances(program.vectors, target.arithmetic)],
        "library": library,
        "runner": device.PROGRAM if runner else None,
    }


def _zero_points(network: Any) -> dict[str, Any]:
    """Of a network whose scheme has them."""
    if network.scheme != "tflite":
        return {}
    sides = {"input": network.inputs, "output": network.outputs}
    return {f"{side}_zero_points": [port.zero_point for port in ports] for side, ports in sides.items()}


def _details(layer: Layer, program: Program) -> Mapping[str, Any]:
    """With what quantising cost, if that is known: of a kernel that does several layers, the last one's noise."""
    if program.integer is None:
        return layer.details
    known = program.integer.facts.get("sqnr_db", {})
    if program.integer.tail is not None and layer.modules and layer.modules[-1] in program.integer.tail.layers:
        return {**layer.details, "sqnr_db": known[layer.modules[-1]]} if layer.modules[-1] in known else layer.details
    done = [found.name for found in program.integer.layers if set(found.modules) <= set(layer.modules)]
    return {**layer.details, "sqnr_db": known[done[-1]]} if done and done[-1] in known else layer.details


def library_name(library: Path) -> str:
    """What a library is called in a bundle: "model", with the suffix of its kind.

    VTA's program.bin stays that, and an archive, which programs are linked with, has its network's name.
    """
    return library.name if library.suffix in (".bin", ".a") else Path(LIBRARY).with_suffix(library.suffix).name


def _write_vectors(root: Path, program: Program) -> None:
    for name, vector in zip(vector_names(program), program.vectors, strict=True):
        folder = root / "vectors" / name
        folder.mkdir(parents=True)
        for kind, arrays in (("input", vector.inputs), ("output", vector.outputs)):
            for index, array in enumerate(arrays):
                # in C order, as it is described; of PyTorch's transposed tensors NumPy would write another
                np.save(folder / f"{kind}-{index}.npy", np.asarray(array, order="C"))


def _python_usage(content: Mapping[str, Any]) -> str:
    runner = (
        """
Without Python:

    runner/run --self-test     # the golden vectors; exit code 0 if all agree
    runner/run input.npy       # outputs as JSON
    runner/run --bench         # latency as JSON

`runner/tvmflow.h` and `runner/example.c` are for programs of your own.
"""
        if content["runner"]
        else ""
    )
    return f"""On the board, with `pip install numpy apache-tvm=={content["versions"]["tvm"]} \
apache-tvm-ffi=={content["versions"]["tvm_ffi"]}`:

    python run.py              # the golden vectors; exit code 0 if all agree
    python run.py input.npy    # outputs
{runner}"""


def _readme(content: Mapping[str, Any], target: Target, usage: str) -> str:
    def table(specs: list[dict[str, Any]]) -> str:
        return ", ".join(f"`{spec['name']}` {spec['dtype']} {_dims(spec['shape'])}" for spec in specs)

    verdict = content["verify"]
    processor = target.facts.in_words(target.cpu)
    if target.elf != NO_ELF:
        processor += f", {target.elf[0]}-bit {target.elf[1]}"
    note = f"\n{target.facts.note()}\n" if target.facts.note() else ""
    compiler = f" with Apache TVM {content['versions']['tvm']}" if "tvm" in content["versions"] else ""
    checked = {
        True: f"Verified ({verdict.get('method')}) on {len(content['vectors'])} golden vectors.",
        None: f"Not verified: {verdict.get('reason')}",
    }[verdict["passed"]]
    return f"""# {content["model"]["name"]} for {target.name}

{target.description}: {processor}.
Made by tvmflow {content["versions"]["tvmflow"]}{compiler}. {checked}

Inputs: {table(content["inputs"])}. Outputs: {table(content["outputs"])}.

{usage}{note}
`manifest.json` holds preprocessing, class labels, layers, memory and the SHA-256 of every file.
"""


def _runner(content: Mapping[str, Any], target: Target) -> str:
    template = Path(__file__).with_name("run.py.in").read_text(encoding="utf-8")
    return template.format(
        tvm=content["versions"]["tvm"],
        library=content["library"],
        device=target.facts.DEVICE,
    )


def _pack(root: Path, members: list[Path], archive_path: Path) -> None:
    with tarfile.open(archive_path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for path in members:
            member = tarfile.TarInfo(path.relative_to(root).as_posix())
            member.size, member.mode = path.stat().st_size, 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as file:
                archive.addfile(member, file)


# ---------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """The bundle at `path`, every member checked. A .tar lives in a private folder until the block ends.

    Refused are absolute paths, "..", links, devices, duplicates, members that the manifest doesn't name, sizes over
    the limits above, hashes that differ, and libraries of another class or machine than the manifest's.
    Raises UserError.
    """
    if not path.exists():
        raise UserError(f"There is no bundle at {path}.")
    if path.is_dir():
        yield _check(path, path)
        return
    with tempfile.TemporaryDirectory(prefix="tvmflow-") as folder:
        _unpack(path, Path(folder))
        yield _check(path, Path(folder))


def require_native(bundle: Bundle) -> None:
    """Raises UserError if this computer can't run the bundle's code itself."""
    from tvmflow.system.host import COMPUTER

    host, elf = COMPUTER.elf, bundle.target.elf
    if elf != host:
        raise UserError(
            f"{bundle.path} is for {bundle.target.name} ({elf[0]}-bit {elf[1]}); "
            f"this computer runs {host[0]}-bit {host[1]} code only."
        )


def _unpack(path: Path, root: Path) -> None:
    def admit(name: str, size: int, total: int, count: int) -> None:
        _check_name(path, name)
        _check_sizes(path, name, size, total, count)

    untrusted.unpack(path, root, admit, what="bundle")


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise UnusableFileError(path, f"has a member named {shown(name)}, which leads out of the bundle")
    if printable(name) != name or max(len(os.fsencode(part)) for part in pure.parts) > 255 or len(name) > 1000:
        raise UnusableFileError(path, f"has a member named {shown(name)}, which is no name for a file")


def _check_sizes(path: Path, name: str, size: int, total: int, count: int) -> None:
    of_one, of_all = limits.MANIFEST if name == MANIFEST else limits.MEMBER, limits.BUNDLE
    if size > of_one.bytes:
        raise UnusableFileError(
            path, f"has a member {shown(name)} of {size:,} bytes; the most is {of_one.bytes:,}", of_one.remedy("bytes")
        )
    if total > of_all.bytes:
        raise UnusableFileError(path, f"has members of over {of_all.bytes:,} bytes", of_all.remedy("bytes"))
    if count > of_all.elements:
        raise UnusableFileError(path, f"has over {of_all.elements:,} members", of_all.remedy("elements"))


def _check(path: Path, root: Path) -> Bundle:
    try:
        return _checked(path, root)
    except OSError as error:
        raise UnusableFileError(path, f"can't be read: {reason(error)}") from error


def _checked(path: Path, root: Path) -> Bundle:
    manifest = _read_manifest(path, root)
    found, total = {}, 0
    for file in sorted(_files(root)):
        name = file.relative_to(root).as_posix()
        if file.is_symlink() or not file.is_file():
            raise UnusableFileError(path, f"has a member {shown(name)} that is no plain file", "bundles hold no links")
        if name != MANIFEST:
            found[name] = file
            total += file.stat().st_size
            _check_sizes(path, name, file.stat().st_size, total, len(found))
    members = manifest["members"]
    for name in members:
        _check_name(path, name)
        if name not in found:
            raise UnusableFileError(path, f"lacks {name}, which its manifest names", "build it again")
    for name, file in found.items():
        if name not in members:
            raise UnusableFileError(
                path, f"has a file {printable(name)} that its manifest doesn't name", "remove it or build again"
            )
        if file.stat().st_size != members[name]["bytes"] or _sha256(file) != members[name]["sha256"]:
            raise UnusableFileError(
                path, f"has been changed: {name} doesn't match its SHA-256 in the manifest", "build it again"
            )
    bundle = Bundle(path=path, root=root, manifest=manifest)
    if manifest["library"] not in members:
        raise UnusableFileError(
            path, f"names a library {shown(manifest['library'])} that isn't among its members", "build it again"
        )
    if bundle.target.elf != NO_ELF:
        toolchain.check_elf(bundle.library, bundle.target.elf, f"{path}, built for {bundle.target.name},")
    return bundle


def _read_manifest(path: Path, root: Path) -> dict[str, Any]:
    file = root / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise UnusableFileError(path, f"is no bundle of tvmflow: it has no {MANIFEST}")
    content = untrusted.read_bytes(file, limits.MANIFEST)
    try:
        # a relative error of what should be zero was written as Infinity
        manifest = untrusted.parse_json(content, limits.MANIFEST, non_finite=True)
    except MalformedError as error:
        raise UnusableFileError(
            path, f"has a manifest that can't be read: {error}", "build the bundle again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UnusableFileError(path, f"is no bundle of tvmflow: its manifest doesn't say {FORMAT!r}")
    version = manifest.get("schema_version")
    if not isinstance(version, str) or version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise UnusableFileError(
            path,
            f"has bundle format {printable(version) if isinstance(version, str) else shown(version)}",
            f"this tvmflow reads {SCHEMA_VERSION.split('.')[0]}.x, so build it again or use the tvmflow that made it",
        )
    try:
        SCHEMA.check(manifest)
        _check_sense(manifest)
    except MalformedError as error:
        raise UnusableFileError(path, f"has a manifest that lies: {error}", "build the bundle again") from error
    for name in manifest["vectors"]:
        _check_name(path, name)
    return manifest


def _check_sense(manifest: Mapping[str, Any]) -> None:
    """What no schema says. Raises MalformedError."""
    form.check_json(manifest["target"])
    given = manifest["preprocessing"]
    if given and not len(given["mean"]) == len(given["std"]) > 0:
        raise MalformedError("preprocessing.mean and preprocessing.std aren't as long as each other")
    scales = manifest.get("quantization") or {}
    for side, name in itertools.product(("input", "output"), ("scales", "zero_points")):
        if f"{side}_{name}" in scales and len(scales[f"{side}_{name}"]) != len(manifest[f"{side}s"]):
            raise MalformedError(f"quantization.{side}_{name} aren't one for each {side}")
    names = [{row["name"] for row in manifest[side]} for side in ("inputs", "outputs")]
    if any(row["input"] not in names[0] or row["output"] not in names[1] for row in scales.get("state", ())):
        raise MalformedError("quantization.state names inputs or outputs that aren't there")
    allowed = manifest.get("tolerances")
    if allowed is not None and [len(row) for row in allowed] != [len(manifest["outputs"])] * len(manifest["vectors"]):
        raise MalformedError("tolerances aren't one for each output of each vector")


def _tensor_specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=row["name"], shape=tuple(row["shape"]), dtype=row["dtype"]) for row in rows)


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a newer format has added to a record."""
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in content.items() if key in names}


def _dims(shape: Any) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
