"""What a build leaves: a directory, or one .tar, with library, manifest, golden vectors, README and a runner.

`write` makes it whole or not at all; `open_bundle` believes nothing that its hashes don't show. docs/bundle.md has
the format.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
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

from tvmflow import device, interrupt, scratch, tensors, toolchain
from tvmflow.spec import (
    NO_ELF,
    Cpu,
    Gpu,
    Layer,
    Mcu,
    Preprocessing,
    Program,
    Target,
    TensorSpec,
    UserError,
    Vector,
    Vta,
)
from tvmflow.verify import tolerances

FORMAT, SCHEMA_VERSION = "tvmflow-bundle", "1.2"
MANIFEST, LIBRARY = "manifest.json", "model.so"
MAX_MEMBERS, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES, MAX_MANIFEST_BYTES = 4096, 2 << 30, 4 << 30, 16 << 20
REQUIRED: dict[str, type] = {
    "model": dict,
    "target": dict,
    "versions": dict,
    "inputs": list,
    "outputs": list,
    "labels": list,
    "layers": list,
    "memory": dict,
    "verify": dict,
    "vectors": list,
    "library": str,
    "members": dict,
}
"""What a manifest has besides `format`, `schema_version` and `preprocessing`, which may be null."""


FACTS: dict[str, type] = {"cpu": Cpu, "gpu": Gpu, "mcu": Mcu, "vta": Vta}
"""The parts of a board that are records of their own; those of other kinds are null or missing."""


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
        content = self.manifest["target"]
        elf = (content["elf"]["bits"], content["elf"]["machine"])
        lists = {key: tuple(content[key]) for key in ("schedules", "arithmetics") if key in content}
        facts = {key: kind(**_known(kind, _tuples(content[key]))) for key, kind in FACTS.items() if content.get(key)}
        return Target(**_known(Target, {**content, **lists, **facts, "elf": elf}))

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
    try:
        array = tensors.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} can't be read as a .npy file: {error}.") from error
    if isinstance(array, np.ndarray) and spec.dtype == "bfloat16" and array.dtype == np.uint16:
        array = array.view(tensors.BFLOAT16)
    if not isinstance(array, np.ndarray) or array.shape != spec.shape or str(array.dtype) != spec.dtype:
        seen = f"{array.dtype} {_dims(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise UserError(f"{path} holds {seen}, but {spec.name} is {spec.dtype} {_dims(spec.shape)}.")
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
    if not path.is_file():
        return "is no bundle of tvmflow"
    try:
        with tarfile.open(path, "r:") as archive:  # which ends at a header that it can't read
            first = archive.next()
            if first is None or first.name != MANIFEST or not first.isfile() or first.size > MAX_MANIFEST_BYTES:
                return "is no bundle of tvmflow"
            content = archive.extractfile(first)
            members = _listed(content.read() if content else b"")
            if not members:
                return "is no bundle of tvmflow"
            missing = set(members) - {MANIFEST}
            while (member := archive.next()) is not None:
                missing.discard(member.name)
                if member.name not in members:
                    return f"holds {member.name!r}, which is of no bundle of tvmflow"
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or _digest_of(content) != members[member.name]:
                    return f"holds {member.name!r}, which isn't as tvmflow wrote it"
    except (OSError, tarfile.TarError, EOFError):
        missing = {MANIFEST}
    return "is no bundle of tvmflow, or a damaged one" if missing else ""


def _members(folder: Path) -> dict[str, str | None]:
    """The files of the bundle in a folder by their paths in it, as `_listed` has them; none if there is no bundle."""
    file = folder / MANIFEST
    try:
        if file.is_symlink() or file.stat().st_size > MAX_MANIFEST_BYTES:
            return {}
        return _listed(file.read_bytes())
    except OSError:
        return {}


def _listed(manifest: bytes) -> dict[str, str | None]:
    """The files that a manifest names, with their SHA-256, and itself, with None; none if it is no bundle's."""
    try:
        content = json.loads(manifest)
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
) -> Bundle:
    """Write a bundle to `out`, replacing the bundle that may be there; if that fails, `out` is as it was before.

    A folder that exists stays, be it the current one, a link's or a mounted one, and what is in it is replaced.
    `library` becomes LIBRARY, with its own suffix. `runner` is a folder of `device.make_runner`; `extras` are other
    files and folders, by their names in the bundle. `usage` says in the README how the library is used, if not by TVM's
    runtime in Python; there is no run.py then. The same build gives the same bytes. Raises UserError, also for a full
    disk.
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
            (root / "README.md").write_text(_readme(content, usage or _python_usage(content)), encoding="utf-8")
            if usage is None:
                (root / "run.py").write_text(_runner(content), encoding="utf-8")
            members = sorted(path for path in root.rglob("*") if path.is_file())
            content["members"] = {
                path.relative_to(root).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in members
            }
            (root / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if place.is_dir():
                _exchange(root, place, made / "replaced")
            elif place.suffix == ".tar":
                _pack(root, [root / MANIFEST, *members], made / "bundle.tar")
                os.replace(made / "bundle.tar", place)
            else:
                if place.exists():
                    os.replace(place, made / "replaced")
                os.replace(root, place)
            return Bundle(path=out, root=out, manifest=content)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise UserError(f"The bundle can't be written to {out}: {reason}; it was left as it was.") from error


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
            **asdict(target),
            "tvm": toolchain.tvm_target_dict(target),
            "elf": {"bits": target.elf[0], "machine": target.elf[1]},
            "schedules": list(target.schedules),
            "arithmetics": list(target.arithmetics),
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


def _details(layer: Layer, program: Program) -> Mapping[str, Any]:
    """With what quantising cost, if that is known: of a kernel that does several layers, the last one's noise."""
    if program.integer is None:
        return layer.details
    known = program.integer.facts.get("sqnr_db", {})
    done = [found.name for found in program.integer.layers if set(found.modules) <= set(layer.modules)]
    return {**layer.details, "sqnr_db": known[done[-1]]} if done and done[-1] in known else layer.details


def library_name(library: Path) -> str:
    """What a library is called in a bundle: "model", with the suffix of its kind; VTA's program.bin stays that."""
    return library.name if library.suffix == ".bin" else Path(LIBRARY).with_suffix(library.suffix).name


def vector_names(program: Program) -> list[str]:
    """The golden vectors' folders in order."""
    return [f"{number:03}-{vector.name}" for number, vector in enumerate(program.vectors)]


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


def _readme(content: Mapping[str, Any], usage: str) -> str:
    def table(specs: list[dict[str, Any]]) -> str:
        return ", ".join(f"`{spec['name']}` {spec['dtype']} {_dims(spec['shape'])}" for spec in specs)

    target, verdict = content["target"], content["verify"]
    gpu = target["gpu"]
    processor = (
        f"{gpu['model']}, {gpu['architecture']}, beside {target['cpu']['model']}" if gpu else target["cpu"]["model"]
    )
    if target["elf"]["bits"]:
        processor += f", {target['elf']['bits']}-bit {target['elf']['machine']}"
    note = f"\n{gpu['runtime_note']}\n" if gpu and gpu["runtime_note"] else ""
    compiler = f" with Apache TVM {content['versions']['tvm']}" if "tvm" in content["versions"] else ""
    checked = {
        True: f"Verified ({verdict.get('method')}) on {len(content['vectors'])} golden vectors.",
        None: f"Not verified: {verdict.get('reason')}",
    }[verdict["passed"]]
    return f"""# {content["model"]["name"]} for {target["name"]}

{target["description"]}: {processor}.
Made by tvmflow {content["versions"]["tvmflow"]}{compiler}. {checked}

Inputs: {table(content["inputs"])}. Outputs: {table(content["outputs"])}.

{usage}{note}
`manifest.json` holds preprocessing, class labels, layers, memory and the SHA-256 of every file.
"""


def _runner(content: Mapping[str, Any]) -> str:
    template = Path(__file__).with_name("run_template.py").read_text(encoding="utf-8")
    return template.format(
        tvm=content["versions"]["tvm"],
        library=content["library"],
        device="cuda" if content["target"]["gpu"] else "cpu",
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
    from tvmflow.targets import TARGETS

    host, elf = TARGETS["host"].elf, bundle.target.elf
    if elf != host:
        raise UserError(
            f"{bundle.path} is for {bundle.target.name} ({elf[0]}-bit {elf[1]}); "
            f"this computer runs {host[0]}-bit {host[1]} code only."
        )


def _unpack(path: Path, root: Path) -> None:
    try:
        with tarfile.open(path, "r:") as archive:
            seen: set[str] = set()
            total = 0
            for member in archive:
                _check_name(path, member.name)
                if not member.isfile():
                    raise UserError(
                        f"{path} has a member {member.name!r} that is no plain file; bundles hold no links."
                    )
                if member.name in seen:
                    raise UserError(f"{path} has two members named {member.name!r}.")
                seen.add(member.name)
                total += member.size
                _check_sizes(path, member.name, member.size, total, len(seen))
                content = archive.extractfile(member)
                assert content is not None
                destination = root / member.name
                destination.parent.mkdir(parents=True, exist_ok=True)
                with destination.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                if destination.stat().st_size != member.size:
                    raise UserError(f"{path} ends in the middle of {member.name}; it is incomplete.")
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is no intact bundle: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} can't be unpacked: {error}.") from error


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or ":" in name or "\0" in name:
        raise UserError(f"{path} has a member named {name!r}, which leads out of the bundle.")


def _check_sizes(path: Path, name: str, size: int, total: int, count: int) -> None:
    limit = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_MEMBER_BYTES
    if size > limit:
        raise UserError(f"{path} has a member {name!r} of {size:,} bytes; the most is {limit:,}.")
    if total > MAX_TOTAL_BYTES or count > MAX_MEMBERS:
        raise UserError(f"{path} is over {MAX_MEMBERS:,} members or {MAX_TOTAL_BYTES:,} bytes; no bundle is so large.")


def _check(path: Path, root: Path) -> Bundle:
    manifest = _read_manifest(path, root)
    found, total = {}, 0
    for file in sorted(_files(root)):
        name = file.relative_to(root).as_posix()
        if file.is_symlink() or not file.is_file():
            raise UserError(f"{path} has a member {name!r} that is no plain file; bundles hold no links.")
        if name != MANIFEST:
            found[name] = file
            total += file.stat().st_size
            _check_sizes(path, name, file.stat().st_size, total, len(found))
    members = manifest["members"]
    for name in members:
        _check_name(path, name)
        if name not in found:
            raise UserError(f"{path} lacks {name}, which its manifest names; build it again.")
    for name, file in found.items():
        if name not in members:
            raise UserError(f"{path} has a file {name} that its manifest doesn't name; remove it or build again.")
        if file.stat().st_size != members[name]["bytes"] or _sha256(file) != members[name]["sha256"]:
            raise UserError(
                f"{path} has been changed: {name} doesn't match its SHA-256 in the manifest; build it again."
            )
    bundle = Bundle(path=path, root=root, manifest=manifest)
    if manifest["library"] not in members:
        raise UserError(f"{path} names a library {manifest['library']!r} that isn't among its members.")
    if bundle.target.elf != NO_ELF:
        toolchain.check_elf(bundle.library, bundle.target.elf, f"{path}, built for {bundle.target.name},")
    return bundle


def _read_manifest(path: Path, root: Path) -> dict[str, Any]:
    file = root / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise UserError(f"{path} is no bundle of tvmflow: it has no {MANIFEST}.")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path} has a manifest of {file.stat().st_size:,} bytes; the most is {MAX_MANIFEST_BYTES:,}.")
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"The manifest of {path} can't be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is no bundle of tvmflow: its manifest doesn't say {FORMAT!r}.")
    version = str(manifest.get("schema_version"))
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise UserError(
            f"{path} has bundle format {version}; this tvmflow reads {SCHEMA_VERSION.split('.')[0]}.x. "
            "Build it again, or use the tvmflow that made it."
        )
    for key, kind in REQUIRED.items():
        if not isinstance(manifest.get(key), kind):
            raise UserError(f"The manifest of {path} has no proper {key!r}; build the bundle again.")
    try:
        bundle = Bundle(path=path, root=root, manifest=manifest)
        for entry in manifest["members"].values():
            assert isinstance(entry["bytes"], int)
            assert isinstance(entry["sha256"], str)
        # each of these raises where the manifest isn't as it should be
        _ = bundle.inputs, bundle.outputs, bundle.layers, bundle.preprocessing, bundle.name, bundle.target
    except (KeyError, TypeError, AssertionError, AttributeError, ValueError) as error:
        raise UserError(
            f"The manifest of {path} is not as it should be ({error!r}); build the bundle again."
        ) from error
    for name in manifest["vectors"]:
        _check_name(path, str(name))
    return manifest


def _tensor_specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=row["name"], shape=tuple(row["shape"]), dtype=row["dtype"]) for row in rows)


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where records have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


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
