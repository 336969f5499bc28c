"""What `import tvmflow` offers, and what the commands call: `compile`, `quantize`, `estimate`, `deploy` and `load`.

Arguments are called like the options of the commands, so that what a message says of `--input-shape` is about
`example_inputs` and the rest is about the argument of the same name. Nothing here prints; the log `tvmflow` says what
is going on. What goes wrong on purpose is a `tvmflow.TvmflowError` with a sentence. PyTorch and TVM are imported by the
first call that needs them.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tvmflow import spec
from tvmflow.bundles import bundle as bundles
from tvmflow.cli.results import Costs, Estimates, QuantisedNetwork, Verdict, costs_of, estimates_of, verdict_of
from tvmflow.network.forms import check_model
from tvmflow.network.shapes import InputShape, parse_input_shape
from tvmflow.spec import MissingDependencyError, Program, UserError, VerificationError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tvmflow.models.examples import Inputs, Numbers

    Model = str | Path | torch.nn.Module | QuantisedNetwork
    Data = str | Path | np.ndarray | torch.Tensor | Iterable[Any]

log = logging.getLogger(__name__)

Dtype = Literal["float32", "float16", "int8"]
QuantisedBy = Literal["per-channel", "power-of-two"]


class Compiled:
    """A network compiled for a board: a bundle that was opened, every file of it checked against its SHA-256.

    Called with arrays or tensors, it computes on this computer what the board would, and gives an array, or a tuple of
    arrays where the network has several outputs. Where its batch is 1, many inputs may be given at once: a call starts
    a process, which takes longer than a small network. Of a network that keeps a state they are a stream, in which each
    begins with what the one before has left. A quantised network takes real numbers and gives real numbers,
    or takes and gives its own integers.
    """

    def __init__(self, path: Path, *, owned: Path | None = None) -> None:
        """Open the bundle at `path`. The folder `owned` is removed when nothing uses this any more."""
        stack = ExitStack()
        if owned is not None:
            stack.callback(shutil.rmtree, owned, ignore_errors=True)
        self.path = path
        self.bundle = stack.enter_context(bundles.open_bundle(path))
        self.close: Callable[[], Any] = weakref.finalize(self, stack.close)

    @property
    def name(self) -> str:
        """The network's."""
        return self.bundle.name

    @property
    def board(self) -> str:
        """The board's name, which is "host" for this computer."""
        return self.bundle.target.name

    @property
    def inputs(self) -> tuple[spec.TensorSpec, ...]:
        """Name, shape and dtype of each input."""
        return self.bundle.inputs

    @property
    def outputs(self) -> tuple[spec.TensorSpec, ...]:
        """Name, shape and dtype of each output."""
        return self.bundle.outputs

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the first output's channels; none where they aren't known."""
        return self.bundle.labels

    @property
    def verdict(self) -> Verdict:
        """What the build found when it ran the network on its golden vectors."""
        return verdict_of(self.bundle.manifest["verify"])

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The outputs for one array or tensor for each input, in order or by name. Raises UserError and, where code
        for the board can't be run here, MissingDependencyError."""
        from tvmflow.bundles.infer import answer

        outputs = answer(self.bundle, inputs, named)
        return outputs[0] if len(outputs) == 1 else outputs

    def verify(self, *, must_pass: bool = True) -> Verdict:
        """Run the network on its golden vectors and compare with what the original gave.

        Raises MissingDependencyError where it can't be run here and, with `must_pass`, VerificationError where it
        computes something else.
        """
        from tvmflow.bundles.verify import verify_bundle
        from tvmflow.network.agreement import failure_sentence

        verdict = verify_bundle(self.bundle)
        what = f"{self.path} ({self.name} for {self.board})"
        if verdict["passed"] is None:
            raise MissingDependencyError(f"{what} can't be verified here: {verdict['reason']}")
        if must_pass and not verdict["passed"]:
            raise VerificationError(failure_sentence(verdict, what))
        return verdict_of(verdict)

    def bench(
        self,
        *,
        threads: int | None = None,
        repeats: int | None = None,
        seconds: float = 3.0,
        cycles: bool = False,
    ) -> Costs:
        """Verify the network, then time it on this computer, in a process of its own: the latency of the whole.

        `seconds` of steady runs are timed, or `repeats` runs. With `cycles` the latency of an ARM board is modelled, on
        cores whose model published latencies bear out. Raises what says why it can't be timed here.
        """
        from tvmflow.report.survey import survey
        from tvmflow.report.views import modelled_latency

        report = survey(self.path, threads=threads, repeats=repeats, seconds=seconds, profiled=False, cycles=cycles)
        if report["latency"] is None and modelled_latency(report) is None:
            raise self._untimed(report)
        return costs_of(report)

    def profile(self, *, threads: int | None = None, repeats: int = 50, cycles: bool = False) -> Costs:
        """Verify the network, then time each of its layers here, or count what its board would execute.

        With `cycles`, those of ARM boards and microcontrollers are modelled. Raises what says why that can't be done.
        """
        from tvmflow.report.survey import survey

        report = survey(self.path, threads=threads, repeats=repeats, timed=False, cycles=cycles)
        layers = report["layers"]
        if layers and not any(layer["latency"] or "instructions" in layer["details"] for layer in layers):
            raise self._untimed(report)
        return costs_of(report)

    def deploy(self, ssh: str | None = None, **how: Any) -> Costs:
        """Carry it to a board, verify and time it there. The arguments are those of `tvmflow.deploy`."""
        return deploy(self, ssh, **how)

    def save(self, path: str | Path) -> Path:
        """Copy the bundle to a folder, or to one file if the path ends in .tar. Raises UserError."""
        return bundles.copy(self.bundle, Path(path))

    def _untimed(self, report: Mapping[str, Any]) -> MissingDependencyError:
        from tvmflow.report.survey import untimed

        return untimed(self.path, self.bundle.target, report["latency_note"])

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """What it is, whether it is right, its memory and whose its schedules are, as `tvmflow build` says it."""
        from tvmflow.report.render import memory_text, rules_text, schedules_text

        manifest = self.bundle.manifest
        return [
            f"{self.name} for {self.board}",
            f"verify   {self.verdict!r}",
            f"memory   {memory_text(manifest['memory'])}",
            f"layers   {schedules_text(manifest['layers'])}",
            *([f"rules    {rules_text(manifest['layers'])}"] if self.bundle.target.arithmetic == "int8" else []),
        ]

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(repr(self))}</pre>"


def load(path: str | Path) -> Compiled:
    """A bundle of `tvmflow build` or `tvmflow.compile`, a folder or a .tar. Raises UserError if it isn't whole."""
    return Compiled(Path(path))


# -------------------------------------------------------------------------------------------------------------- compile


def compile(  # noqa: A001 (it is called as tvmflow.compile)
    model: Model,
    example_inputs: Any = None,
    *,
    board: str | Path | None = None,
    target: str | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    dtype: Dtype | None = None,
    format: Literal["module", "library"] | None = None,  # noqa: A002 (as the command's option)
    scheme: QuantisedBy | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_range: Numbers | None = None,
    labels: str | Path | Sequence[str] | None = None,
    arch: Sequence[str] = (),
    cuda_graph: bool = False,
    linker: str = "auto",
    verify: bool = True,
    runner: bool = False,
    source: bool = False,
    dump_dir: str | Path | None = None,
    tuned: bool = True,
    db: str | Path | None = None,
) -> Compiled:
    """Compile a network for a board, this computer by default, and verify it wherever its code can be run here.

    `model` is an `nn.Module` in eval mode, what `tvmflow.quantize` gives, or as text or a path what `--model` of the
    commands takes: a name of the registry, `package.module:function`, `file.py:function`, a .pt2, .onnx or .tflite
    file, a .safetensors file of `tvmflow quantize`. `example_inputs` say the inputs' shapes and dtypes where the model
    doesn't: a tensor or an array, a tuple of them, a dict by the names of `forward`'s arguments, or shapes such as
    `(1, 3, 32, 32)` and "ids=1x16:int64".

    The bundle goes to `out`, a folder or a file that ends in .tar; without, it lies in a temporary folder as long as
    the result is used. `name` is what the network is called in place of its class's name. `mean`, `std` (a number for
    each channel) and `input_range` (what a black and a white pixel become, before mean and deviation) say how the
    network sees images, `labels` what its classes are. The rest is as in `tvmflow build --help`. Raises UserError,
    UnsupportedOperatorError, MissingDependencyError, VerificationError.
    """
    from tvmflow import targets
    from tvmflow.models.examples import check_described, parse_labels, parse_preprocessing

    if db is not None and not tuned:
        raise UserError("--db names records to use and --no-tuned says to use none; give one of them.")
    found = targets.find(target, None if board is None else str(board))
    named = _checked(model)
    quantised = isinstance(model, QuantisedNetwork) or (named is not None and _is_integer(named))
    if dtype is None and quantised:
        dtype = "int8"
    dtype = dtype or cast(Dtype, found.arithmetic)
    searched = _searched_in(found)
    if db is not None and dtype != searched:
        raise UserError(
            f"--db names records of {searched} kernels, which --dtype {dtype} has none of; give one of them."
        )
    if dtype == "int8" and named is not None and not named.endswith(".onnx") and _shapes(example_inputs):
        raise UserError("--input-shape can't be chosen for a quantised network, which has one.")
    if dtype != "int8" and scheme is not None:
        raise UserError(f"--scheme says how a network was quantised, and --dtype {dtype} has none; give one of them.")
    if source and not targets.KINDS[found.kind].writes_source:
        raise UserError(f"--source writes the C of a network for microcontrollers, and {found.name} is none.")
    found = targets.compile_also(targets.compute_in(found, dtype), arch)
    if cuda_graph:
        found = targets.capture_graph(found)
    found = targets.deliver_as(found, format)
    parse_preprocessing(mean, std, input_range)
    classes = parse_labels(labels) if labels is not None else ()
    owned = None if out is not None else Path(tempfile.mkdtemp(prefix="tvmflow-"))
    try:
        place = Path(out) if out is not None else cast(Path, owned) / "bundle"
        from tvmflow.bundles.build import build, check

        check(found, place, linker, runner=runner)  # before the import, which takes its time
        records = _records(found, db) if tuned and dtype == searched else {}
        if named is not None:
            log.info(f"Importing {named}")
        program = (
            _quantised(model, named, found, scheme, example_inputs)
            if dtype == "int8"
            else _imported(model, named, example_inputs, name)
        )
        seen = parse_preprocessing(mean, std, input_range, _channels(program))
        check_described(program.inputs, program.outputs, seen, classes)
        program = replace(
            program,
            name=name or program.name,
            preprocessing=seen or program.preprocessing,
            labels=classes or program.labels,
        )
        build(
            program,
            found,
            place,
            linker=linker,
            dump_dir=None if dump_dir is None else Path(dump_dir),
            verify=verify,
            runner=runner,
            source=source,
            records=records,
        )
        return Compiled(place, owned=owned)
    except BaseException:
        if owned is not None:
            shutil.rmtree(owned, ignore_errors=True)
        raise


def _channels(program: Program) -> int:
    shape = program.inputs[0].shape
    return shape[1] if len(shape) == 4 else 3


def _is_integer(named: str) -> bool:
    from tvmflow.integer.frontend import is_integer

    return is_integer(named)


def _searched_in(target: spec.Target) -> str:
    from tvmflow.targets.search import tuned_in

    return tuned_in(target)


def _records(target: spec.Target, db: str | Path | None) -> dict[str, spec.Best]:
    from tvmflow.tune import apply

    return apply.find_records(target, None if db is None else Path(db))


def _is_module(value: Any) -> bool:
    """Whether it is an `nn.Module`; without PyTorch there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _checked(model: Any) -> str | None:
    """A model's name or path as text, None for a network itself. Raises UserError for what is neither."""
    if isinstance(model, str | Path):
        named = str(model)
        check_model(named, also=(".safetensors",))
        return named
    if isinstance(model, QuantisedNetwork) or _is_module(model):
        return None
    hint = "; call it, and give the network that it returns" if callable(model) else ""
    raise UserError(
        f"A network is an nn.Module, a name or the path of a file, and a {type(model).__name__} was given{hint}."
    )


def _imported(model: Any, named: str | None, example_inputs: Any, name: str | None) -> Program:
    """A float network, called `name` if that is given. Raises UserError, UnsupportedOperatorError."""
    from tvmflow.network.frontend import from_examples, import_model

    if isinstance(model, QuantisedNetwork):
        raise UserError(f"{model.name} is quantised already, and this takes a network of floats.")
    if named is not None:
        program = import_model(named, _shapes(example_inputs))
    else:
        positional, by_keyword = _arguments(example_inputs, type(model).__name__)
        program = from_examples(model, positional, by_keyword)
    return replace(program, name=name or program.name)


def _quantised(
    model: Any, named: str | None, target: spec.Target, scheme: QuantisedBy | None, example_inputs: Any
) -> Program:
    """A quantised network, or what stands in the way: all such operators of a float one, and that it is one."""
    from tvmflow.integer.frontend import import_quantized, integer_program, is_integer
    from tvmflow.models import MODELS, comes_quantised
    from tvmflow.network.frontend import READERS
    from tvmflow.targets import KINDS, kind

    if isinstance(model, QuantisedNetwork):
        if scheme not in (None, model.scheme):
            raise UserError(f"{model.name} was quantised by the scheme {model.scheme}, not {scheme}.")
        return integer_program(model.network, "tvmflow.quantize()")
    preferred = KINDS[target.kind].scheme
    is_float = named is None or (named.endswith(tuple(READERS)) and not is_integer(named))
    if is_float or (named in MODELS and not comes_quantised(named)):
        program = _imported(model, named, example_inputs, None)
        kind.of(target).check_network(program, target)
        how = f" --scheme {scheme or preferred}" if scheme or preferred != "per-channel" else ""
        if named is None:
            raise UserError(f"{program.name} isn't quantised yet: tvmflow.quantize(model, data) does it.")
        raise UserError(
            f"{named} isn't quantised yet: `tvmflow quantize --data … --model {named}{how}` makes a .safetensors file "
            "of it, to be given as --model."
        )
    return import_quantized(cast(str, named), scheme, _shapes(example_inputs), preferred=preferred)


# ------------------------------------------------------------------------------------------------------------- examples


def _is_shape(value: Any) -> bool:
    """Whether it is a shape, such as (1, 3, 32, 32)."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(type(part) is int for part in value)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _each(example_inputs: Any) -> list[Any]:
    """Example inputs one by one, without the names that a dict has."""
    if isinstance(example_inputs, tuple | list) and not _is_shape(example_inputs):
        return list(example_inputs)
    return [example_inputs]


def _shapes(example_inputs: Any) -> list[InputShape]:
    """The shapes and dtypes of example inputs, as `--input-shape` says them. Raises UserError."""
    if example_inputs is None:
        return []
    if isinstance(example_inputs, Mapping):
        return [found for name, value in example_inputs.items() for found in _named_shapes(str(name), value)]
    return [found for value in _each(example_inputs) for found in _named_shapes(None, value)]


def _named_shapes(name: str | None, value: Any) -> Iterator[InputShape]:
    if isinstance(value, InputShape):
        yield value
    elif isinstance(value, str):
        found = parse_input_shape(value)
        yield replace(found, name=found.name or name)
    elif _is_shape(value):
        yield InputShape(name=name, shape=tuple(value))
    elif _is_tensor(value):
        yield InputShape(name=name, shape=tuple(value.shape), dtype=str(value.dtype).removeprefix("torch."))
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from _named_shapes(f"{name}.{place}" if name else None, part)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named_shapes(f"{name}.{key}" if name else str(key), part)
    else:
        raise UserError(
            f"An example input is a tensor, an array or a shape such as (1, 3, 32, 32); a {type(value).__name__} "
            "was given."
        )


def _arguments(example_inputs: Any, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as arguments of `forward`, positional and by keyword. Raises UserError."""
    if example_inputs is None:
        raise UserError(
            f"{what} doesn't say what its inputs are: give example_inputs, a tensor or a tuple of them such as "
            "torch.randn(1, 3, 32, 32)."
        )
    if isinstance(example_inputs, Mapping):
        return (), {str(name): _example(value) for name, value in example_inputs.items()}
    positional, by_keyword = [], {}
    for value in _each(example_inputs):
        if isinstance(value, str | InputShape):
            found = parse_input_shape(value) if isinstance(value, str) else value
            if found.name is not None:
                by_keyword[found.name] = _example(found)
                continue
        positional.append(_example(value))
    return tuple(positional), by_keyword


def _example(value: Any) -> Any:
    """An example input as PyTorch takes it; numbers and None are arguments as they are."""
    import numpy as np
    import torch

    if isinstance(value, str):
        value = parse_input_shape(value)
    if isinstance(value, InputShape):
        return torch.zeros(value.shape, dtype=getattr(torch, value.dtype or "float32"))
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if _is_shape(value):
        return torch.zeros(tuple(value))
    if isinstance(value, tuple | list):
        return type(value)(_example(part) for part in value)
    if isinstance(value, Mapping):
        return {key: _example(part) for key, part in value.items()}
    return value


# ------------------------------------------------------------------------------------------------------------- quantize


def quantize(
    model: Model,
    data: Data,
    example_inputs: Any = None,
    *,
    name: str | None = None,
    scheme: QuantisedBy = "per-channel",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_range: Numbers | None = None,
    labels: str | Path | Sequence[str] | None = None,
    count: int = 512,
    seed: int = 0,
    keep_float: Sequence[str] = (),
    qat: bool = False,
    epochs: float = 0.1,
    batch: int = 64,
    rate: float = 3e-3,
    work_dir: str | Path = "runs/int8/qat",
    test: bool = True,
) -> QuantisedNetwork:
    """Quantise a network to int8 on inputs like those that it will meet, and say layer by layer what that costs.

    `model` and `example_inputs` are as in `tvmflow.compile`; an `nn.Module` needs no examples where `data` is in
    memory. `data` is an array or a tensor of many inputs, an iterable of batches such as a DataLoader (with labels
    beside the inputs or not), or as text or a path what `--data` of the command takes. `count` of the inputs calibrate,
    fewer where there aren't that many in memory, and some of the others tell how near the result is. The rest is as in
    `tvmflow quantize --help`. Raises UserError, UnsupportedOperatorError, VerificationError.
    """
    if qat and keep_float:
        raise UserError("--qat fine-tunes networks that are quantised whole, and --keep-float leaves parts; give one.")
    named = _checked(model)

    from tvmflow.integer.fine_tune import TuneConfig
    from tvmflow.integer.keep_float import cut
    from tvmflow.integer.post_training import Method
    from tvmflow.integer.reader import float_graph
    from tvmflow.models import CIFAR10_PREPROCESSING, int8
    from tvmflow.models import examples as given
    from tvmflow.models.data import is_cifar10, load_cifar10

    parse = given.parse_preprocessing
    parse(mean, std, input_range)
    classes = given.parse_labels(labels) if labels is not None else ()
    tuning = TuneConfig(epochs=epochs, batch=batch, peak_rate=rate, seed=seed) if qat else None
    is_named = isinstance(data, str | Path)
    batches = None if is_named else _Batches(data)
    if batches is not None and example_inputs is None and named is None:
        example_inputs = batches.example()
    if named is not None:
        log.info(f"Importing {named}")
        if example_inputs is None and ":" in named:
            example_inputs = "1x3x32x32"
    program = _imported(model, named, example_inputs, name)
    graph = float_graph(program)  # what has no integer form is said before data are read
    if keep_float:
        kept = ", ".join(layer.name for layer in cut(graph, keep_float).end.layers)
        log.info(f"In float32 stay what is named and all that comes after it: {kept}")
    seen = parse(mean, std, input_range, _channels(program))
    given.check_described(program.inputs, program.outputs, seen, classes)
    shape, seen, cifar = program.inputs[0].shape, seen or program.preprocessing, None
    program = replace(program, labels=classes or program.labels)
    method = Method(count=count, seed=seed)
    if is_named:
        log.info(f"Reading {data}")
    if is_named and not given.is_function(str(data)) and is_cifar10(Path(str(data))):
        if len(program.inputs) > 1 or shape[1:] != (3, 32, 32):
            wanted = ", ".join("×".join(map(str, spec.shape[1:])) for spec in program.inputs)
            raise UserError(
                f"{program.name} takes {wanted}, no image of CIFAR-10: give a folder of images or a .npz file."
            )
        cifar, seen = load_cifar10(Path(str(data))), seen or CIFAR10_PREPROCESSING
        inputs = int8.of_cifar10(cifar, seen, method)
    else:
        found = _inputs(data, batches, program, seen, count + int8.CHECKED)
        if found.names and len(found.names) == given.classes_of(program.outputs[0].shape):
            program = replace(program, labels=found.names)
        if batches is not None:  # in memory there are as many as there are
            method = replace(method, count=min(count, max(1, found.count * 3 // 4)))
        inputs = int8.of_inputs(found, method)
    what = inputs.facts.get("inputs", "training images")
    log.info(f"Quantising {program.name} {scheme} on {method.count} {what}")
    network = int8.make(program, inputs, scheme, method, seen, tuning, Path(work_dir), keep_float)
    if test and cifar is not None:
        log.info(f"Judging it on {len(cifar.test.labels):,} test images")
        network = int8.judge(network, program, cifar)
    return QuantisedNetwork(network=network, document=network.facts)


def _inputs(
    data: Any, batches: _Batches | None, program: Program, seen: spec.Preprocessing | None, most: int
) -> Inputs:
    from tvmflow.models import examples

    if batches is None:
        return examples.load_inputs(data, program.inputs, seen, program.labels, most=most)
    return examples.of_batches(batches, program.inputs, "data", most, program.labels)


class _Batches:
    """Data in memory as batches; of an iterable that can be read once, the first batch may be looked at before."""

    def __init__(self, data: Any) -> None:
        if _is_tensor(data) or isinstance(data, Mapping):
            data = [data]
        if isinstance(data, tuple) and data and all(map(_is_tensor, data)):
            data = [data]  # a batch of several inputs, or of inputs and labels
        if not isinstance(data, Iterable):
            raise UserError(
                f"data is an array, an iterable of batches or a path, and a {type(data).__name__} was given."
            )
        self._rest = iter(data)
        self._first: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from self._first
        yield from self._rest

    def example(self) -> Any:
        """The first input of the first batch, as `example_inputs` has it: of a pair, inputs come first."""
        self._first = [item for item in [next(self._rest, None)] if item is not None]
        if not self._first:
            raise UserError("data yielded nothing; it has to yield batches of inputs.")
        item = self._first[0]
        if isinstance(item, tuple | list) and len(item) == 2:
            item = item[0]
        if isinstance(item, Mapping):
            return {name: value[:1] for name, value in item.items()}
        return tuple(value[:1] for value in item) if isinstance(item, tuple | list) else item[:1]


# ----------------------------------------------------------------------------------------------------- estimate, deploy


def estimate(
    model: Model,
    example_inputs: Any = None,
    *,
    board: str | Path | Sequence[str | Path] | None = None,
    name: str | None = None,
) -> Estimates:
    """What a network takes at least on boards, all of them by default, by its graph and their data sheets.

    Nothing is built or run. `model` and `example_inputs` are as in `tvmflow.compile`. Raises UserError,
    UnsupportedOperatorError.
    """
    from tvmflow import targets
    from tvmflow.report import estimate as estimates
    from tvmflow.targets.cpu.boards import HOST

    named = _checked(model)
    boards = [board] if isinstance(board, str | Path) else board
    found = [targets.find(None, str(one)) for one in boards or targets.TARGETS]
    host, quantised = HOST, isinstance(model, QuantisedNetwork)
    if quantised or (named is not None and _is_quantised_file(named)):
        from tvmflow.integer.frontend import graphless_program, load_network

        found = [targets.compute_in(target, "int8") for target in found if boards or "int8" in target.arithmetics]
        host = targets.compute_in(host, "int8")
        network = (
            cast(QuantisedNetwork, model).network
            if quantised
            else load_network(Path(cast(str, named)), _shapes(example_inputs))
        )
        program = graphless_program(network, named or "tvmflow.quantize()")
        program = replace(program, name=name or program.name)
        analysed = estimates.analyse_quantised(program)
    else:
        program = _imported(model, named, example_inputs, name)
        analysed = estimates.analyse(program)
    touched = estimates.ELEMENT_BYTES[host.arithmetic] * (analysed.weights + analysed.activations)
    rows = [
        estimates.estimate(analysed, target, _roof(host, touched) if target.name == host.name else None)
        for target in found
    ]
    return estimates_of(estimates.describe_model(program), rows, estimates.text(program, rows))


def _roof(host: spec.Target, touched: int) -> spec.Roof | None:
    from tvmflow.measure.roof import measure_roof

    return measure_roof(host.cpu, host.arithmetic, host.cpu.cores, touched)


def _is_quantised_file(named: str) -> bool:
    from tvmflow.bundles.evaluate import is_quantised

    return is_quantised(named)


def deploy(
    bundle: str | Path | Compiled,
    ssh: str | None = None,
    *,
    rpc: bool = False,
    host: str | None = None,
    tracker: str | None = None,
    key: str = "",
    token_file: str | Path | None = None,
    port: int = 9090,
    to: str | None = None,
    ssh_config: str | Path | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
    sustained: str | None = None,
    profile: bool = False,
) -> Costs:
    """Carry a bundle to a board, verify and time it there: over SSH by the bundle's runner, or by TVM with `rpc`.

    `ssh` is "user@host" or a name of the SSH configuration; the rest is as in `tvmflow deploy --help`. Raises
    UserError, DeviceError, VerificationError, MissingDependencyError.
    """
    path = bundle.path if isinstance(bundle, Compiled) else Path(bundle)
    config = None if ssh_config is None else Path(ssh_config)
    times: dict[str, Any] = {"threads": threads, "seconds": seconds}
    if sustained is not None:
        from tvmflow.tune.command import parse_duration

        times = {"threads": threads, "seconds": parse_duration(sustained, "--sustained"), "sustained": True}
    if rpc or host is not None or tracker is not None:
        from tvmflow.remote.rpc import deploy as carry_by_rpc

        where: dict[str, Any] = {
            "ssh": ssh,
            "ssh_config": config,
            "address": host,
            "token_file": None if token_file is None else Path(token_file),
            "port": port,
            "tracker": tracker,
            "key": key,
        }
        return costs_of(carry_by_rpc(path, profiled=profile, **times, **where))
    from tvmflow.remote.deploy import deploy as carry

    if profile:
        raise UserError("--profile needs TVM on the board: --rpc, with `tvmflow serve` there.")
    if ssh is None:
        raise UserError("Say where the board is: --ssh user@host, or --host 127.0.0.1:PORT.")
    return costs_of(carry(path, ssh, folder=to, ssh_config=config, **times))
