"""Networks that give something else each time are refused as that: by training mode, by a state, or by chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.network.pytorch_operators import module_path_of
from tvmflow.spec import UserError, Vector

if TYPE_CHECKING:
    import torch

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers that a normalisation changes in training."""

SAME = 1e-5
"""Of the largest magnitude: what two runs of one network may differ by, for threads that add up in another order."""


def refuse_state_outside(run: Callable[[], Any], source: str) -> None:
    """Raises UserError if a network, with PyTorch's random numbers alike, gives something else the second time.

    That is what an export can't show: numbers that Python code counts, or draws by other means than PyTorch's.
    """
    import torch
    from torch.utils import _pytree as tree

    results = []
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for _ in range(2):
            torch.manual_seed(0)
            outputs = [leaf for leaf in tree.tree_leaves(run()) if isinstance(leaf, torch.Tensor)]
            results.append([leaf.to(torch.float64).numpy().copy() for leaf in outputs])
    if not _same(*results):
        raise UserError(
            f"{source} gives something else the second time for the same input: it keeps a state, or draws random "
            "numbers outside of PyTorch. Take what changes as an input and return it as an output."
        )


def refuse_training_and_state(exported: torch.export.ExportedProgram, source: str, *, in_eval_mode: bool) -> None:
    """Raises UserError if a decomposed export is of a network in training mode, or changes its buffers."""
    changed = set(exported.graph_signature.buffers_to_mutate.values())
    found = [f"statistics of {path}" for path in _owners(name for name in changed if name.endswith(STATISTICS))]
    if not in_eval_mode:
        found += [f"dropout in {path}" for path in _paths(exported, lambda node: "dropout" in str(node.target))]
    if found:
        raise UserError(
            f"{source} is in training mode ({_listed(found)}): call .eval() before exporting it, and give functional "
            "ones training=self.training."
        )
    if changed:
        raise UserError(
            f"{source} changes its buffers ({_listed(sorted(changed))}) and so keeps a state from one run to the next, "
            "which a compiled network can't: take them as inputs and return them as outputs."
        )


def refuse_randomness(
    exported: torch.export.ExportedProgram,
    reference: Callable[..., tuple[np.ndarray, ...]],
    vector: Vector,
    source: str,
) -> None:
    """Raises UserError if the network's outputs for a vector's inputs are others the second time."""
    import torch

    drawing = _paths(exported, lambda node: torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()))
    if drawing and not _same(vector.outputs, reference(*(array.copy() for array in vector.inputs))):
        raise UserError(
            f"{source} is random: two runs on the same input differ, by what {_listed(drawing)} draws. Give functional "
            "dropout training=self.training, and take random numbers as an input."
        )


def _same(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    if [array.shape for array in first] != [array.shape for array in second]:
        return False
    for one, other in zip(first, second, strict=True):
        if one.dtype.kind not in "fV":
            if not np.array_equal(one, other):
                return False
            continue
        left, right = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(left) & np.isfinite(right)
        if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
            return False
        largest = np.abs(left[finite]).max(initial=0)
        if np.abs(left[finite] - right[finite]).max(initial=0) > SAME * largest:
            return False
    return True


def _paths(exported: torch.export.ExportedProgram, chosen: Callable[[torch.fx.Node], bool]) -> list[str]:
    nodes = [node for node in exported.graph.nodes if node.op == "call_function" and chosen(node)]
    return list(dict.fromkeys(module_path_of(node) for node in nodes))


def _owners(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[0] or name for name in names})


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
