"""Inputs of a user's own for quantising, evaluating and comparing, and their classes where they are known.

They come as a folder of images, one folder a class or not, as arrays in a .npy or .npz file, or from a function of the
user's, `package.module:function`, which yields batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.models.archives import files_below
from tvmflow.models.arrays import StoredArray, stored_arrays
from tvmflow.models.data import IMAGE_SUFFIXES, DataSet, check_path, checksum, read_image
from tvmflow.spec import Preprocessing, TensorSpec, UserError
from tvmflow.system.limits import ARRAY, LISTING
from tvmflow.system.untrusted import read_text, shortened

Arrays = tuple[np.ndarray, ...]
LABELS = "labels"
"""The array of a .npz file that has the classes' numbers, unless an input is called so."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of a network, read when they are asked for.

    `labels` are the numbers of their classes, int64, where they are known, and `names` what the classes are called.
    """

    count: int
    note: str
    sha256: str
    take: Callable[[np.ndarray], Arrays]
    """Numbers of inputs → as many of each of the network's inputs, of their dtypes, as the network takes them."""
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()


def is_function(data: str | Path) -> bool:
    """Whether `--data` names a function and no path."""
    from tvmflow.network.forms import names_function

    return names_function(str(data)) and not Path(data).exists()


def load_inputs(
    data: str | Path,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    names: Sequence[str] = (),
    most: int | None = None,
) -> Inputs:
    """What `--data` names, for a network of these `inputs`, each with a batch of 1.

    Images are resized and preprocessed, arrays are taken as they are. `names` are those of the classes, if they are
    known. Of what a function yields at most `most` are asked for. Raises UserError.
    """
    for spec in inputs:
        if len(spec.shape) < 2 or spec.shape[0] != 1:
            raise UserError(
                f"The network's input {spec.name} is {_dims(spec.shape)}; many inputs in --data need a network that "
                "takes one at a time, with a batch of 1 as its first dimension."
            )
    if is_function(data):
        return _of_function(str(data), inputs, most, names)
    path = Path(data)
    check_path(path, ARRAY)
    return _of_folder(path, inputs, preprocessing, names) if path.is_dir() else _of_arrays(path, inputs, names)


def of_data_set(data: DataSet, preprocessing: Preprocessing) -> Inputs:
    """The test images of a data set."""
    images = data.test.images
    return Inputs(
        count=len(images),
        note=data.note,
        sha256=data.sha256,
        take=lambda which: (preprocessing.apply(images[which]),),
        labels=data.test.labels,
        names=data.labels,
    )


def parse_labels(text: str | Path | Sequence[str]) -> tuple[str, ...]:
    """`--labels`: a text file with a name on each line, or names with commas between them. Raises UserError.

    Python may give the names themselves.
    """
    if not isinstance(text, str | Path):
        names = tuple(map(str, text))
    elif (path := Path(text)).is_file():
        names = tuple(line.strip() for line in read_text(path, LISTING).splitlines() if line.strip())
    else:
        names = tuple(part.strip() for part in str(text).split(","))
    if len(names) < 2 or not all(names) or len(names) > LISTING.elements:
        raise UserError(
            f"--labels {shortened(str(text))!r} is neither a text file with a class on each line nor a list such as "
            f"cat,dog; two to {LISTING.elements:,} names are taken."
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--labels has {shortened(twice)!r} twice; each class needs a name of its own.")
    return names


Numbers = str | Sequence[float]
"""A number for each channel, as text with commas between them or as they are."""

PIXELS = (0.0, 1.0)
"""What pixels are scaled to before `--mean` and `--std` apply, unless `--input-range` says another range."""


def parse_preprocessing(
    mean: Numbers | None, std: Numbers | None, input_range: Numbers | None = None, channels: int = 3
) -> Preprocessing | None:
    """`--mean`, `--std` and `--input-range`: pixels are scaled to the range, less the mean, divided by the deviation.

    A range alone is that of the inputs of all `channels`. Raises UserError.
    """
    low, high = _range(input_range) if input_range is not None else PIXELS
    if mean is None and std is None:
        if input_range is None:
            return None
        mean, std = (0.0,) * channels, (1.0,) * channels
    try:
        found = [_numbers_of(given) for given in (mean, std)]
    except (TypeError, ValueError) as error:
        raise UserError("--mean and --std go together and take a number for each channel: 0.49,0.48,0.45.") from error
    if len(found[0]) != len(found[1]) or not all(part > 0 and math.isfinite(part) for part in found[1]):
        raise UserError("--mean and --std take as many numbers, and a deviation is positive.")
    if not all(map(math.isfinite, found[0])):
        raise UserError("--mean takes numbers, none of which is infinite.")
    width = high - low
    return Preprocessing(
        mean=tuple((part - low) / width for part in found[0]), std=tuple(part / width for part in found[1])
    )


def _numbers_of(given: Numbers | None) -> tuple[float, ...]:
    """Raises TypeError or ValueError for what is no list of numbers."""
    if given is None:
        raise ValueError
    return tuple(float(part) for part in (given.split(",") if isinstance(given, str) else given))


def _range(given: Numbers) -> tuple[float, float]:
    try:
        low, high = _numbers_of(given)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise UserError(
            f"--input-range {shortened(str(given))} is no range: it takes what a black and a white pixel become, the "
            "smaller number first, as in 0,255 or -1,1."
        )
    return low, high


def check_described(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
    labels: Sequence[str],
) -> None:
    """Raises UserError where `--mean`, `--std` or `--labels` don't fit the network."""
    if preprocessing is not None:
        shapes = [spec.shape for spec in inputs]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != len(preprocessing.mean):
            shown = ", ".join(_dims(shape) for shape in shapes)
            raise UserError(
                f"--mean and --std give {len(preprocessing.mean)} channels of an image, and the network takes {shown}; "
                "they are for networks of one input N×C×H×W with as many channels."
            )
    if labels and (classes := classes_of(outputs[0].shape)) != len(labels):
        raise UserError(
            f"--labels names {len(labels)} classes, and the network's first output, {_dims(outputs[0].shape)}, has "
            f"{classes}; give as many."
        )


def classes_of(shape: Sequence[int]) -> int:
    """How many classes an output tells apart: its channels, or all elements of a vector without a batch."""
    return shape[1] if len(shape) > 1 else math.prod(shape)


# ------------------------------------------------------------------------------------------------------------- folders


def _of_folder(
    path: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None, names: Sequence[str]
) -> Inputs:
    files = [file for file in files_below(path) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UserError(f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shown = ", ".join(f"{spec.name} {_dims(spec.shape)}" for spec in inputs)
        raise UserError(f"A folder of images is for a network of one input 1×C×H×W, and this one takes {shown}.")
    shape = inputs[0].shape
    if preprocessing is None:
        raise UserError(
            "The network doesn't say how it sees images: give --mean and --std, or arrays in a .npz file as --data."
        )
    if len(preprocessing.mean) != shape[1] or shape[1] not in (1, 3):
        raise UserError(f"The network takes {shape[1]} channels, for which {path} and its preprocessing don't fit.")
    seen = preprocessing
    folders = [file.relative_to(path).parts[0] if file.parent != path else "" for file in files]
    known, numbers = _classes(path, folders, names)

    def take(which: np.ndarray) -> Arrays:
        return (seen.apply(np.stack([read_image(files[number], shape) for number in which])),)

    return Inputs(
        count=len(files),
        note=f"images of {path.name}",
        sha256=checksum(path),
        take=take,
        labels=numbers,
        names=known,
    )


def _classes(path: Path, folders: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The classes' names and each image's number: by the folder below `path` that it lies in.

    There are none unless each image lies in one of two or more folders. Raises UserError.
    """
    found = sorted(set(folders))
    if "" in found or len(found) < 2:
        return tuple(names), None
    if not names:
        names = found
    if set(found) <= set(names):
        known = {name: number for number, name in enumerate(names)}
    elif len(found) == len(names):
        known = {name: number for number, name in enumerate(found)}
    else:
        strange = next(name for name in found if name not in names)
        raise UserError(
            f"{path} has a folder {shortened(strange)!r}, which is none of the {len(names)} classes "
            f"({shortened(', '.join(names))}); give --labels, the names of the folders in the order of the network's "
            "outputs."
        )
    return tuple(names), np.array([known[folder] for folder in folders], np.int64)


# -------------------------------------------------------------------------------------------------------------- arrays


def _of_arrays(path: Path, inputs: Sequence[TensorSpec], names: Sequence[str]) -> Inputs:
    stored = stored_arrays(path)
    own = {spec.name for spec in inputs}
    labels = stored.pop(LABELS) if LABELS in stored and LABELS not in own and len(stored) > 1 else None
    if len(inputs) == 1 and len(stored) == 1:
        stored = {inputs[0].name: next(iter(stored.values()))}
    if set(stored) != own:
        wanted = ", ".join(spec.name for spec in inputs)
        raise UserError(
            f"{path} has {len(stored)} arrays ({shortened(', '.join(stored) or 'none')}), and the network's inputs are "
            f"{wanted}; each needs an array of its name, and the classes' numbers may be in one called {LABELS}."
        )
    for spec in inputs:
        _check_stored(path, stored[spec.name], spec)
    counts = {array.shape[0] for array in (*stored.values(), *([labels] if labels else []))}
    if len(counts) != 1:
        raise UserError(f"The arrays of {path} have {', '.join(map(str, sorted(counts)))} rows; give as many of each.")
    arrays = tuple(_cast(stored[spec.name].read(), spec, str(path)) for spec in inputs)
    return Inputs(
        count=len(arrays[0]),
        note=f"inputs of {path.name}",
        sha256=checksum(path),
        take=lambda which: tuple(array[which] for array in arrays),
        labels=None if labels is None else _numbers(labels.read(), str(path)),
        names=tuple(names),
    )


def _check_stored(path: Path, found: StoredArray, spec: TensorSpec) -> None:
    if not _is_alike(found.dtype, spec) or not found.shape or found.shape[1:] != tuple(spec.shape[1:]):
        raise UserError(f"{path} holds {found}; {_wanted(spec)}.")


def _wanted(spec: TensorSpec) -> str:
    finite = "finite " if np.dtype(spec.dtype).kind == "f" else ""
    return f"the network takes {finite}{spec.dtype} N×{_dims(spec.shape[1:])}"


def _is_alike(dtype: np.dtype[Any], spec: TensorSpec) -> bool:
    """Whether numbers of a dtype may be meant for an input: floats for floats, integers for integers."""
    wanted = np.dtype(spec.dtype).kind
    return dtype.kind == wanted or (dtype.kind in "iu" and wanted in "iu")


def _cast(array: np.ndarray, spec: TensorSpec, source: str) -> np.ndarray:
    """Of the input's dtype. Raises UserError for what isn't finite, or doesn't fit."""
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype, copy=False)
    if cast.dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise UserError(
                f"{source} holds {shortened(array.dtype)} {_dims(array.shape)}, of which some are infinite or no "
                f"numbers; {_wanted(spec)}."
            )
    elif (cast != array).any():
        raise UserError(f"{source} holds numbers that {spec.dtype} can't hold; {_wanted(spec)}.")
    return cast


def _numbers(labels: np.ndarray, source: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or (len(labels) and labels.min() < 0):
        raise UserError(
            f"{source} has labels of {shortened(labels.dtype)} {_dims(labels.shape)}; the number of a class, from 0, "
            "is needed for each input."
        )
    return labels.astype(np.int64)


# ------------------------------------------------------------------------------------------------------------ functions


def _of_function(text: str, inputs: Sequence[TensorSpec], most: int | None, names: Sequence[str]) -> Inputs:
    from tvmflow.network.pytorch import imported_function

    with imported_function(text, "--data", "it takes a function that yields batches of inputs") as function:
        return of_batches(_batches(function(), text), inputs, f"--data {text}", most, names, f"inputs of {text}")


def of_batches(
    batches: Iterable[Any],
    inputs: Sequence[TensorSpec],
    source: str,
    most: int | None = None,
    names: Sequence[str] = (),
    note: str = "inputs given in Python",
) -> Inputs:
    """What batches hold: arrays or tensors, many of each input, or pairs of them and labels; a DataLoader yields such.

    At most `most` inputs are taken. `source` says in messages whose the batches are. Raises UserError.
    """
    parts: list[Arrays] = []
    labels: list[np.ndarray] = []
    count = size = 0
    for item in batches:
        arrays, numbers = _batch(item, inputs, source)
        parts.append(arrays)
        if numbers is not None:
            labels.append(numbers)
        count += len(arrays[0])
        size += sum(array.nbytes for array in arrays)
        if size > ARRAY.bytes:
            raise UserError(
                f"{source} yields more than {ARRAY.bytes:,} bytes, the most that is kept "
                f"({ARRAY.remedy('bytes')}); let it end earlier, or give a smaller --count."
            )
        if most is not None and count >= most:
            break
    if not count:
        raise UserError(f"{source} yielded nothing; it has to yield batches of inputs.")
    if labels and sum(map(len, labels)) != count:
        raise UserError(f"{source} yields labels with some batches and none with others; give them with all.")
    whole = tuple(np.concatenate(arrays)[:most] for arrays in zip(*parts, strict=True))
    digest = hashlib.sha256()
    for array in whole:
        digest.update(np.ascontiguousarray(array).tobytes())
    return Inputs(
        count=len(whole[0]),
        note=note,
        sha256=digest.hexdigest(),
        take=lambda which: tuple(array[which] for array in whole),
        labels=np.concatenate(labels)[:most] if labels else None,
        names=tuple(names),
    )


def _batches(found: Any, text: str) -> Iterable[Any]:
    if isinstance(found, np.ndarray | str | bytes | Mapping) or not isinstance(found, Iterable):
        raise UserError(
            f"--data {text} gave a {type(found).__name__}; the function has to yield batches of inputs, or pairs of "
            "inputs and labels."
        )
    return found


def _batch(item: Any, inputs: Sequence[TensorSpec], source: str) -> tuple[Arrays, np.ndarray | None]:
    """One batch as arrays of the inputs, and its labels. A pair is inputs and labels, unless two inputs are meant."""
    labels = None
    if isinstance(item, tuple | list) and len(item) == 2:
        nested = isinstance(item[0], tuple | list | Mapping)
        if len(inputs) != 2 or nested:
            item, labels = item
    if isinstance(item, Mapping):
        if set(item) != {spec.name for spec in inputs}:
            wanted = ", ".join(spec.name for spec in inputs)
            raise UserError(
                f"{source} yields {shortened(', '.join(map(str, item)))}; the network's inputs are {wanted}."
            )
        item = [item[spec.name] for spec in inputs]
    given = [_array(part) for part in (item if isinstance(item, tuple | list) else [item])]
    if len(given) != len(inputs):
        raise UserError(
            f"{source} yields {len(given)} arrays a batch, and the network has {len(inputs)} inputs "
            f"({', '.join(spec.name for spec in inputs)}); labels come second, in a pair of inputs and labels."
        )
    for array, spec in zip(given, inputs, strict=True):
        if not _is_alike(array.dtype, spec) or array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
            raise UserError(f"{source} yields {array.dtype} {_dims(array.shape)}; {_wanted(spec)}.")
    arrays = tuple(_cast(array, spec, source) for array, spec in zip(given, inputs, strict=True))
    numbers = None if labels is None else _numbers(_array(labels), source)
    counts = {len(array) for array in (*arrays, *([numbers] if numbers is not None else []))}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"{source} yields a batch of {', '.join(map(str, sorted(counts)))} rows; give as many of each.")
    return arrays, numbers


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:  # rows of unlike lengths
        return np.asarray(value, dtype=object)


def _dims(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
