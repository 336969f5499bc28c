"""What may be tried on a layer: its tilings, ranked by a model that learns from those that were simulated."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmflow.schedules import ReplayError
from tvmflow.targets.search import typical
from tvmflow.targets.vta.bounds import AnyWork, Bounds
from tvmflow.targets.vta.compile import default_tiling
from tvmflow.targets.vta.config import Config
from tvmflow.targets.vta.records import candidate_of, record_of, task_key_of, workload_of
from tvmflow.targets.vta.tiles import Tiling, Work, input_rows, parts

EXPLORED = 0.25
"""Share of a batch that is drawn by lot rather than by the cost model."""
PIECES, AHEAD, BUFFERS = (1, 2, 4, 8), (1, 2, 4), (2, 1)
TREES, LEARNING_RATE, DEPTH = 100, 0.1, 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A layer to be tuned, `work`, and the one before it. `calls` is how often the network has the like."""

    key: str
    name: str
    workload: tuple[str, str]
    calls: int
    modules: tuple[str, ...]
    before: AnyWork | None
    work: Work


def tasks_of(works: Sequence[AnyWork], config: Config) -> tuple[Task, ...]:
    """The tasks of a network in the order of their first layer; layers that are alike are one.

    Layers without weights are none: there is little to choose from.
    """
    found: dict[str, list[tuple[AnyWork | None, Work]]] = {}
    for before, work in zip((None, *works), works, strict=False):
        if not isinstance(work, Work):
            continue
        found.setdefault(task_key_of(before, work, config), []).append((before, work))
    return tuple(
        Task(
            key=key,
            name=pairs[0][1].layer.name,
            workload=workload_of(*pairs[0], config),
            calls=len(pairs),
            modules=tuple(module for _, work in pairs for module in work.layer.modules),
            before=pairs[0][0],
            work=pairs[0][1],
        )
        for key, pairs in found.items()
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A tiling to be tried. `record` has it without times; `text` tells it from the task's other candidates."""

    task: str
    text: str
    tiling: Tiling
    record: list[Any]


def choices(work: Work, config: Config) -> list[Tiling]:
    """All tilings whose parts fit the buffers: tile sizes, loop order, pieces, weights ahead, one buffer or two."""
    height, width = work.target.shape[1:]
    blocks, inputs, taps = work.target.blocks, work.source.blocks, max(1, len(work.taps))
    found = []
    for out_blocks, rows in itertools.product(parts(blocks), [1] if work.pool else parts(height)):
        first, last = input_rows(work, (height - rows) // 2, (height - rows) // 2 + rows)
        plane = (work.source.shape[1] if work.pool else last - first) * work.source.shape[2]
        if out_blocks * rows * width > config.acc_depth:
            continue
        for in_blocks in [out_blocks] if work.diagonal else parts(inputs):
            weights = out_blocks * taps * (1 if work.diagonal else in_blocks) + work.bias_tiles(out_blocks)
            if in_blocks * plane > config.inp_depth or weights > config.wgt_depth:
                continue
            orders = ("channels", "rows") if out_blocks < blocks and rows < height else ("channels",)
            for order, pieces, ahead, buffers in itertools.product(orders, PIECES, AHEAD, BUFFERS):
                if (ahead > 1 and out_blocks == blocks) or (pieces > out_blocks * rows * width):
                    continue
                found.append(
                    Tiling(
                        out_blocks=out_blocks,
                        rows=rows,
                        in_blocks=in_blocks,
                        order=order,  # type: ignore[arg-type]
                        pieces=pieces,
                        ahead=ahead,
                        buffers=buffers,
                    )
                )
    return found


def features(work: Work, tiling: Tiling, config: Config) -> list[float]:
    """What the cost model sees: logarithms of sizes and counts, and each buffer's share that a tile takes."""
    height, width = work.target.shape[1:]
    blocks, inputs = work.target.blocks, work.source.blocks
    bounds = Bounds.of(work, 8)
    first, last = input_rows(work, 0, tiling.rows)
    tile = tiling.out_blocks * tiling.rows * width
    plane = (last - first) * work.source.shape[2]
    reads = inputs if not work.diagonal else tiling.out_blocks
    weights = tiling.out_blocks * len(work.taps) * (1 if work.diagonal else inputs)
    weights += work.bias_tiles(tiling.out_blocks)
    counts = [-(-blocks // tiling.out_blocks), -(-height // tiling.rows), -(-reads // tiling.in_blocks)]
    left_over = [blocks % tiling.out_blocks / tiling.out_blocks, height % tiling.rows / tiling.rows]
    sizes = [bounds.gemm, bounds.compute, bounds.read, bounds.write, tile, plane, weights, *counts, blocks, height]
    shares = [
        tile / config.acc_depth,
        tiling.in_blocks * plane / config.inp_depth,
        reads * plane / config.inp_depth,
        weights / config.wgt_depth,
    ]
    knobs = [tiling.pieces, tiling.ahead, tiling.buffers, tiling.order == "rows", tile / tiling.pieces]
    return [*np.log2(np.array(sizes) + 1.0), *shares, *left_over, *map(float, knobs), float(work.diagonal)]


class CostModel:
    """XGBoost, over all tasks of a session: how many times its layer's bound a tiling takes, as a logarithm."""

    def __init__(self) -> None:
        self._rows: list[list[float]] = []
        self._values: list[float] = []
        self._model: Any = None

    @property
    def trained(self) -> bool:
        return self._model is not None

    def learn(self, rows: Sequence[list[float]], values: Sequence[float]) -> None:
        import xgboost

        if not rows:
            return
        self._rows += rows
        self._values += values
        settings = {"eta": LEARNING_RATE, "max_depth": DEPTH, "nthread": 1, "seed": 0}
        self._model = xgboost.train(settings, xgboost.DMatrix(np.array(self._rows), np.array(self._values)), TREES)

    def predict(self, rows: Sequence[list[float]]) -> np.ndarray:
        """Lower is faster."""
        import xgboost

        return self._model.predict(xgboost.DMatrix(np.array(rows)))


class Space:
    """The candidates of one task, `default` among them; it is `exhausted` when all were proposed."""

    rule: str | None = "tiles"

    def __init__(self, task: Task, config: Config, target: Mapping[str, Any], model: CostModel, *, seed: int) -> None:
        self.task, self.config, self.target, self.model = task, config, target, model
        self._random = random.Random(f"{seed} {task.key}")
        self._bound = Bounds.of(task.work, 8).least
        self.default = self._candidate(default_tiling(task.work, config))
        left = {candidate_of(tiling): tiling for tiling in choices(task.work, config)}
        left.pop(self.default.text, None)
        self._left = left
        self._rows: dict[str, list[float]] = {}

    @property
    def exhausted(self) -> bool:
        return not self._left

    def _candidate(self, tiling: Tiling) -> Candidate:
        record = record_of(tiling, 0.0, self.target)
        return Candidate(
            task=self.task.key, text=candidate_of(tiling), tiling=tiling, record=[record[0], [], *record[2:]]
        )

    def propose(self, count: int, known: Collection[str]) -> list[Candidate]:
        """Up to `count` candidates that aren't `known`, most of them by the cost model."""
        for text in known:
            self._left.pop(text, None)
        names = list(self._left)
        self._random.shuffle(names)
        if self.model.trained and names:
            scores = self.model.predict([self._features(name, self._left[name]) for name in names])
            lots = names[: round(count * EXPLORED)]
            ranked = [names[index] for index in np.argsort(scores, kind="stable")]
            drawn = set(lots)
            names = [*lots, *(name for name in ranked if name not in drawn)]
        return [self._candidate(self._left.pop(name)) for name in names[:count]]

    def _features(self, name: str, tiling: Tiling) -> list[float]:
        if name not in self._rows:
            self._rows[name] = features(self.task.work, tiling, self.config)
        return self._rows[name]

    def learn(self, measured: Sequence[tuple[Candidate, float]]) -> None:
        """Take in what candidates add to the program in ms; infinity stands for a failure."""
        good = [(candidate, ms) for candidate, ms in measured if ms < float("inf")]
        # the bound is in cycles; what a cycle takes is the same for all
        values = [float(np.log2(ms * 1e5 / self._bound)) for _, ms in good]
        self.model.learn([self._features(candidate.text, candidate.tiling) for candidate, _ in good], values)

    def recall(self, trials: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what was tried before."""
        known = []
        for text, trial in trials.items():
            self._left.pop(text, None)
            if "record" in trial:
                known.append((self.replay(text, trial["record"]), typical(trial["ms"])))
        self.learn(known)

    def replay(self, text: str, record: Sequence[Any]) -> Candidate:
        """The candidate of a record. Raises ReplayError if it has none."""
        try:
            return self._candidate(Tiling(**record[0][1][0]))
        except (TypeError, IndexError, KeyError) as error:
            raise ReplayError(f"{text} has no tiling in its record") from error
