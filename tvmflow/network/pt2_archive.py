"""The archive that a `.pt2` file is: its members are read by an allow-list, and PyTorch is given a clean copy.

`torch.export.load` unpickles sample inputs, weights of older files and custom objects, and starts a compiler on code
that comes along; any of these runs what the file's author wrote. Here weights are raw bytes, or a dict of tensors that
PyTorch's restricted unpickler (`weights_only`) takes; the graph is JSON, checked by `pt2_graph`. Nothing else is read.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.network.foreign import first_line, quiet
from tvmflow.network.pt2_graph import QUANTISED, QUANTISING, clean_payloads, clean_program
from tvmflow.spec import TvmflowError, UserError
from tvmflow.system import limits
from tvmflow.system.untrusted import shown

if TYPE_CHECKING:
    import torch

GRAPH = "models/model.json"
FORMAT, VERSION, BYTE_ORDER = "archive_format", "archive_version", "byteorder"
HEADER = {
    FORMAT: "pt2",
    VERSION: "0",
    BYTE_ORDER: "little",
    ".data/version": "6",
    "data/sample_inputs/model.pt": "",
}
"""Members of every archive; the version is that of PyTorch's zip files, and empty sample inputs are none."""
KINDS = {"weights": "weight_", "constants": "tensor_"}
READ = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder"
    r"|data/weights/(model_weights_config\.json|model\.pt|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|model\.pt|tensor_\d+)"
)
SKIPPED = re.compile(r"(data/sample_inputs|extra|\.data)/.*|(.*/)?")
"""Members that are there and never read: sample inputs are a pickle, and extra files are of no use here."""
OLDER = {
    "serialized_exported_program.json": GRAPH,
    "serialized_state_dict.pt": "data/weights/model.pt",
    "serialized_constants.pt": "data/constants/model.pt",
}
"""PyTorch's layout up to 2.7, without a folder around it, and where the same is in today's."""
OLDER_SKIPPED = re.compile(r"version|serialized_example_inputs\.pt|extra_files/.*|.*/")
BLOCK = 1 << 20


def load(path: Path) -> torch.export.ExportedProgram:
    """What `torch.export.save` saved, without its sample inputs. Raises UserError, UnsupportedOperatorError."""
    import torch

    try:
        clean = _clean(path)
    except TvmflowError:
        raise
    except (ValueError, KeyError, RecursionError) as error:
        what = first_line(error)
        if isinstance(error, KeyError):
            what = f"something without its {error}"
        elif isinstance(error, RecursionError):
            what = "lists and dicts in one another, too deep"
        raise UserError(f"{path} is no intact .pt2 file of torch.export.save: it holds {what}.") from error
    try:
        with quiet():
            return torch.export.load(clean)
    except Exception as error:
        raise UserError(
            f"{path} can't be read as a .pt2 file of torch.export.save ({first_line(error)}); "
            f"it may be damaged or come from another PyTorch than {torch.__version__}."
        ) from error


def is_quantised(path: Path) -> bool:
    """Whether the graph of a file has operators that only quantised networks have; False for what can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                graph = entry.filename.endswith((GRAPH, "serialized_exported_program.json"))
                if graph and entry.file_size <= limits.GRAPH.bytes and QUANTISING.encode() in archive.read(entry):
                    return True
    except Exception:  # zipfile lets out whatever its parsers raise; who reads the file says what is wrong
        return False
    return False


def _register_quantised(program: Mapping[str, Any]) -> None:
    """Have PyTorch know these operators, if a graph has them. Raises UserError."""
    targets = (node["target"] for node in program["graph_module"]["graph"]["nodes"])
    if not any(target in QUANTISED for target in targets):
        return
    import torch

    try:
        import torch.ao.quantization.fx._decomposed
    except ImportError as error:
        raise UserError(f"PyTorch {torch.__version__} has no operators of quantised networks any more.") from error


def _clean(path: Path) -> io.BytesIO:
    """An archive in PyTorch's layout that holds nothing but what was checked. Raises ValueError, UserError."""
    members = _members(path)
    if members.get(FORMAT, b"pt2").strip() != b"pt2" or members.get(VERSION, b"0").strip() != b"0":
        raise ValueError("an archive of another format or version than PyTorch's first")
    if members.get(BYTE_ORDER, b"little").strip() != b"little":
        raise ValueError("weights in big-endian order: export the network on a little-endian computer")
    written = {name: content.encode() for name, content in HEADER.items()}
    weights: dict[str, tuple[int, list]] = {}
    for kind in KINDS:
        found, described = _tensors(members, kind, path)
        written |= found
        weights |= described
    if GRAPH not in members:
        raise ValueError(f"no {GRAPH}")
    program = clean_program(_json(members[GRAPH], GRAPH), weights)
    _register_quantised(program)
    written[GRAPH] = json.dumps(program).encode()
    root = "clean/"
    if not reads_todays_layout():
        if not written.keys() >= set(OLDER.values()):
            raise ValueError("the layout of PyTorch 2.8 and newer, and an older one is installed")
        root, written = "", {older: written[name] for older, name in OLDER.items()} | _older_header()
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as archive:
        for name, content in written.items():
            archive.writestr(f"{root}{name}", content)
    clean.seek(0)
    return clean


def reads_todays_layout() -> bool:
    """Whether the PyTorch that is installed does: since 2.8."""
    import torch

    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 8)


def _older_header() -> dict[str, bytes]:
    from torch._export.serde.schema import SCHEMA_VERSION

    return {"version": ".".join(map(str, SCHEMA_VERSION)).encode(), "serialized_example_inputs.pt": b""}


def _members(path: Path) -> dict[str, bytes]:
    """What is read of the archive, by its name in today's layout. Raises ValueError, UserError."""
    size = path.stat().st_size
    limits.check_file_size(size, path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise UserError(f"{path} holds two members of one name, of which every program reads another.")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise UserError(
                        f"{path} holds {shown(entry.filename)} compressed or encrypted, which torch.export.save never "
                        "does; give the file as it was saved."
                    )
            if sum(entry.file_size for entry in entries) > size:
                raise UserError(f"{path} says that its members are longer than it is itself.")
            older = "serialized_exported_program.json" in names
            root = "" if older else names[0].partition("/")[0] + "/" if names else ""
            found = {}
            for entry in entries:
                name = _name_to_read(entry.filename, root, older, path)
                with archive.open(entry) as member:  # a member that isn't read is read for its checksum
                    if name is not None:
                        found[name] = member.read()
                    else:
                        while member.read(BLOCK):
                            pass
    except TvmflowError:
        raise
    except Exception as error:  # zipfile lets out whatever its parsers raise
        raise UserError(f"{path} is no intact .pt2 file of torch.export.save: {first_line(error)}.") from error
    return found


def _name_to_read(full: str, root: str, older: bool, path: Path) -> str | None:
    """The name in today's layout, or None of a member that isn't read. Raises UserError for those that don't belong."""
    name = full.removeprefix(root)
    if older and (name in OLDER or OLDER_SKIPPED.fullmatch(name)):
        return OLDER.get(name)
    if not older and full.startswith(root) and (READ.fullmatch(name) or SKIPPED.fullmatch(name)):
        return name if READ.fullmatch(name) else None
    raise UserError(
        f"{path} holds pickled or compiled objects, or what else no network has ({shown(full)}), and loading those "
        "runs code; export the network with torch.export.save, and with plain tensors as weights."
    )


def _tensors(
    members: Mapping[str, bytes], kind: str, path: Path
) -> tuple[dict[str, bytes], dict[str, tuple[int, list]]]:
    """Members for the clean archive with the weights or the constants; and (dtype, sizes) by the tensors' names."""
    import torch

    folder, configuration = f"data/{kind}", f"data/{kind}/model_{kind}_config.json"
    pickled = f"{folder}/model.pt"
    if pickled in members:
        if configuration in members:
            raise ValueError(f"both {pickled} and {configuration}")
        tensors = _load_tensors(members[pickled], pickled, path)
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        return {pickled: buffer.getvalue()}, {name: _described(tensor) for name, tensor in tensors.items()}
    if configuration not in members:
        raise ValueError(f"no {configuration}")
    payloads = clean_payloads(_json(members[configuration], configuration))
    written: dict[str, bytes] = {}
    dtypes: dict[str, int] = {}
    for name, payload in payloads.items():
        if payload.get("use_pickle") is not False or "tensor_meta" not in payload:
            raise UserError(
                f"{path} holds pickled or compiled objects ({shown(name)}), and loading those runs code; "
                "export the network with plain contiguous tensors as weights."
            )
        member = f"{folder}/{payload.get('path_name')}"
        if not str(payload.get("path_name")).startswith(KINDS[kind]) or member not in members:
            raise ValueError(f"the tensor {shown(name)} in {shown(member)}, which isn't there")
        if dtypes.setdefault(member, payload["tensor_meta"]["dtype"]) != payload["tensor_meta"]["dtype"]:
            raise ValueError(f"{member} as two dtypes")
        _check_strides(payload["tensor_meta"], len(members[member]), name, path)
        written[member] = members[member]
    described = {name: (meta["dtype"], meta["sizes"]) for name, meta in _metas(payloads)}
    return written | {configuration: json.dumps({"config": payloads}).encode()}, described


def _metas(payloads: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, payload["tensor_meta"]) for name, payload in payloads.items()]


def _check_strides(meta: Mapping[str, Any], size: int, name: str, path: Path) -> None:
    """`size` in bytes. Raises ValueError, UserError."""
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta["dtype"])
    shape, strides = [dim["as_int"] for dim in meta["sizes"]], [dim["as_int"] for dim in meta["strides"]]
    offset = meta["storage_offset"]["as_int"]
    if dtype is None or len(shape) != len(strides) or min((*shape, *strides, offset), default=0) < 0:
        raise ValueError(f"the tensor {shown(name)}, whose dtype, shape or strides are none")
    limits.check_tensor(shape, f"{path}: the tensor {shown(name)}")
    reach = offset + sum((dim - 1) * stride for dim, stride in zip(shape, strides, strict=True)) + 1
    if math.prod(shape) and (size % dtype.itemsize or reach * dtype.itemsize > size):
        raise ValueError(f"{size:,} bytes for the tensor {shown(name)}, which reaches over {reach * dtype.itemsize:,}")


def _load_tensors(content: bytes, member: str, path: Path) -> dict[str, torch.Tensor]:
    """A dict of tensors as torch.save writes it, read by its restricted unpickler alone. Raises UserError."""
    import torch

    if not content:
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not plain or sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("it is compressed")
        tensors = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        if not isinstance(tensors, dict):
            raise ValueError("it is no dict")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
                raise ValueError("it holds something else than tensors")
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
                raise ValueError(f"{shown(name)} is no plain tensor")
            limits.check_tensor(tensor.shape, f"{path}: the tensor {shown(name)}")
    except TvmflowError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} holds a pickle, {member}, that is no plain dict of tensors ({first_line(error)}), and loading it "
            "could run code; save the network anew with torch.export.save."
        ) from error
    return dict(tensors)


def _described(tensor: torch.Tensor) -> tuple[int, list]:
    from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE

    return int(_TORCH_TO_SERIALIZE_DTYPE[tensor.dtype]), [{"as_int": dim} for dim in tensor.shape]


def _json(content: bytes, member: str) -> Any:
    if len(content) > limits.GRAPH.bytes:
        raise ValueError(f"{member} of {len(content):,} bytes, more than {limits.GRAPH.bytes:,}")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{member}, which is no JSON ({first_line(error)})") from error
