"""What a CUDA kernel does, counted in the loops that TVM lowers it to: the model's view of a kernel.

Nothing is read off source text. Loops give how often a statement runs. Indices and conditions are evaluated for the 32
lanes of some warps at some turns of the loops, drawn by a fixed seed: which lanes take part, how many sectors of 32
bytes a global access touches, and how many turns the banks of shared memory take for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

from tvmflow.schedules.expressions import evaluate, parts
from tvmflow.targets.cuda import codegen

WARP, SECTOR_BYTES, BANKS = 32, 32, 32
SAMPLES = 24
"""Warps that indices are evaluated for."""
UNDER_WAY = 4
"""Turns of a loop without barriers whose loads wait together: what the compiler unrolls such a loop by."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """One launch. `multiply_adds` are of all threads; the others are of one warp on average, from its start to its end.

    `multiplies` are instructions that multiply or multiply and add, `others` the rest of floating point,
    `global_accesses` and `shared_accesses` load and store instructions, `sectors` what the former touch and `turns`
    what the latter take of shared memory. `rounds` is how often a thread waits for loads that it could not start
    earlier.
    """

    name: str
    blocks: int
    threads: int
    multiply_adds: float
    multiplies: float
    others: float
    global_accesses: float
    sectors: float
    shared_accesses: float
    turns: float
    barriers: float
    rounds: float
    argument_bytes: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return math.ceil(self.threads / WARP)


def lower(module: tvm.IRModule, target: dict[str, Any]) -> tuple[str, tuple[Counts, ...]]:
    """CUDA C of a scheduled module and the counts of its kernels. No driver is needed, and nothing is compiled."""
    catch = _Catch()
    sources: list[str] = []

    def keep(source: str) -> bytes:
        sources.append(source)
        return b"\0"  # the module is thrown away

    codegen.use_compiler(keep)
    with tvm.transform.PassContext(instruments=[catch]):
        library = tvm.compile(module, target=tvm.target.Target(target))
    if not sources:  # without a driver TVM asks for no machine code
        sources = [imported.inspect_source("cuda") for imported in library.mod.imports]
    found = []
    for name, func in catch.module.functions.items():
        if isinstance(func, tirx.PrimFunc) and _is_kernel(func):
            found.append(count(func, name.name_hint))
    return "".join(sources), tuple(found)


@tvm.instrument.pass_instrument
class _Catch:
    """Keeps the module as it is when hosts and kernels have been parted."""

    module: tvm.IRModule

    def run_before_pass(self, module: tvm.IRModule, info: Any) -> None:
        if info.name == "tirx.MakePackedAPI":
            self.module = module


def _is_kernel(func: tirx.PrimFunc) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tirx.AttrStmt, lambda node: found.append(node.attr_key)))
    return "thread_extent" in found


def count(func: tirx.PrimFunc, name: str) -> Counts:
    """The counts of a lowered kernel."""
    return _Walk(func).counts(name)


class _Walk:
    def __init__(self, func: tirx.PrimFunc) -> None:
        self.func = func
        self.random = np.random.default_rng(0)
        self.extents: dict[str, int] = {}
        self.values: dict[Any, np.ndarray] = {}
        self.multiply_adds = self.multiplies = self.others = 0.0
        self.accesses, self.sectors = 0.0, 0.0
        self.shared, self.turns = 0.0, 0.0
        self.barriers = self.rounds = 0.0
        tvm_ffi.structural_walk(func.body, (tirx.AttrStmt, self._note_extent))
        threads, blocks = self._size("threadIdx"), self._size("blockIdx")
        warp = self.random.integers(0, math.ceil(threads / WARP), (SAMPLES, 1))
        self.thread = warp * WARP + np.arange(WARP)[None, :]
        self.block = np.broadcast_to(self.random.integers(0, blocks, (SAMPLES, 1)), (SAMPLES, WARP))
        self.threads, self.blocks = threads, blocks
        self._statement(func.body, 1.0, self.thread < threads)

    def counts(self, name: str) -> Counts:
        warps = math.ceil(self.threads / WARP) * self.blocks
        return Counts(
            name=name,
            blocks=self.blocks,
            threads=self.threads,
            multiply_adds=self.multiply_adds * warps,
            multiplies=self.multiplies,
            others=self.others,
            global_accesses=self.accesses,
            sectors=self.sectors,
            shared_accesses=self.shared,
            turns=self.turns,
            barriers=self.barriers,
            rounds=max(1.0, self.rounds),
            argument_bytes=self._argument_bytes(),
        )

    def _argument_bytes(self) -> int:
        """Of the global buffers that the kernel declares."""
        total = 0

        def note(node: Any) -> None:
            nonlocal total
            buffer = node.buffer
            if buffer.scope() == "global" and all(isinstance(dim, tirx.IntImm) for dim in buffer.shape):
                total += math.prod(int(dim) for dim in buffer.shape) * tvm.DataType(str(buffer.dtype)).bits // 8

        tvm_ffi.structural_walk(self.func.body, (tirx.DeclBuffer, note))
        return total

    def _note_extent(self, node: tirx.AttrStmt) -> None:
        if node.attr_key == "thread_extent":
            self.extents[node.node.thread_tag] = int(node.value)

    def _size(self, kind: str) -> int:
        return math.prod(self.extents.get(f"{kind}.{axis}", 1) for axis in "xyz")

    # -------------------------------------------------------------------------------------------------- statements

    def _statement(self, node: Any, times: float, active: np.ndarray) -> None:
        if isinstance(node, tirx.SeqStmt):
            for step in node.seq:
                self._statement(step, times, active)
        elif isinstance(node, tirx.AttrStmt):
            if node.attr_key == "thread_extent":
                self.values[node.node.var] = self._axis(node.node.thread_tag)
            self._statement(node.body, times, active)
        elif isinstance(node, tirx.For):
            self._loop(node, times, active)
        elif isinstance(node, tirx.IfThenElse):
            chosen = self._condition(node.condition, active)
            self._statement(node.then_case, times, chosen)
            if node.else_case is not None:
                self._statement(node.else_case, times, active & ~chosen)
        elif isinstance(node, tirx.BufferStore):
            self._expression(node.value, times, active)
            self._access(node.buffer, node.indices, str(node.value.ty.dtype), times, active)
        elif isinstance(node, tirx.Evaluate):
            if isinstance(node.value, tvm.ir.Call) and getattr(node.value.op, "name", "").endswith("storage_sync"):
                self.barriers += times * _share(active)
            else:
                self._expression(node.value, times, active)
        elif isinstance(node, tirx.Bind):
            self._expression(node.value, times, active)
            value = self._evaluate(node.value)
            if value is not None:
                self.values[node.var] = value
        elif hasattr(node, "body"):
            self._statement(node.body, times, active)

    def _axis(self, tag: str) -> np.ndarray:
        """The value of a thread's or block's axis in each lane."""
        kind, axis = tag.split(".")
        value = self.thread if kind == "threadIdx" else self.block
        for before in "xyz"[: "xyz".index(axis)]:
            value = value // self.extents.get(f"{kind}.{before}", 1)
        return value % self.extents.get(tag, 1)

    def _loop(self, node: tirx.For, times: float, active: np.ndarray) -> None:
        extent = self._evaluate(node.extent)
        length = float(extent.mean()) if extent is not None else 1.0
        first = self._evaluate(node.min)
        turn = self.random.integers(0, max(1, int(length)), (SAMPLES, 1)) + (0 if first is None else first)
        self.values[node.loop_var] = np.broadcast_to(turn, (SAMPLES, WARP))
        loads, barriers, rounds = self.accesses, self.barriers, self.rounds
        self._statement(node.body, times * length, active)
        if self.accesses > loads and self.rounds == rounds:  # of nested loops only the innermost
            waits = self.barriers - barriers
            self.rounds += waits if waits else times * length / UNDER_WAY

    # ------------------------------------------------------------------------------------------------- expressions

    def _condition(self, node: Any, active: np.ndarray) -> np.ndarray:
        found = self._evaluate(node)
        return active if found is None else active & (found != 0)

    def _expression(self, node: Any, times: float, active: np.ndarray) -> None:
        """Count what computing a value takes."""
        if isinstance(node, TensorLoad):
            self._access(node.source, node.indices, str(node.ty.dtype), times, active)
            return
        if isinstance(node, tvm.ir.Call):
            name = getattr(node.op, "name", "")
            if name.endswith("if_then_else"):
                chosen = self._condition(node.args[0], active)
                self._expression(node.args[1], times, chosen)
                self._expression(node.args[2], times, active & ~chosen)
                return
            for argument in node.args:
                self._expression(argument, times, active)
            if _is_float(node):
                self.others += 4 * times * _share(active)  # the special functions' unit has a quarter of the lanes
            return
        if isinstance(node, tirx.Select):
            for part in (node.true_value, node.false_value):
                self._expression(part, times, active)
            return
        for part in parts(node):
            self._expression(part, times, active)
        if not _is_float(node):
            return
        lanes = max(1, int(node.ty.dtype.lanes))
        if isinstance(node, tirx.Mul):
            self.multiplies += times * lanes * _share(active)
            self.multiply_adds += times * lanes * active.mean() * WARP
        elif isinstance(node, (tirx.Add, tirx.Sub)):
            if not any(isinstance(part, tirx.Mul) for part in parts(node)):  # else one instruction does both
                self.others += times * lanes * _share(active)
        elif isinstance(node, (tirx.Div, tirx.Max, tirx.Min)):
            self.others += times * lanes * _share(active)

    def _access(self, buffer: Any, indices: Any, dtype: str, times: float, active: np.ndarray) -> None:
        scope = buffer.scope()
        if scope not in ("global", "shared", "shared.dyn") or not active.any():
            return
        kind = tvm.DataType(dtype)
        element = tvm.DataType(str(buffer.dtype))
        width = kind.bits // 8 * max(1, kind.lanes)
        index = indices[-1]
        if isinstance(index, tirx.Ramp):
            index = index.base
        place = self._evaluate(index)
        share = _share(active)
        per_warp = times * share
        if scope == "global":
            self.accesses += per_warp
        else:
            self.shared += per_warp
        if place is None:
            self.sectors += per_warp * (WARP if scope == "global" else 0)
            self.turns += per_warp * (0 if scope == "global" else 1)
            return
        first = np.broadcast_to(place, active.shape) * (element.bits // 8 * max(1, element.lanes))
        found = []
        for addresses, lanes in zip(first, active, strict=True):
            if not lanes.any():
                continue
            words = (addresses[lanes][:, None] + np.arange(0, width, 4)[None, :]).ravel() // 4
            if scope == "global":
                found.append(len(np.unique(words * 4 // SECTOR_BYTES)))
            else:
                found.append(np.bincount(np.unique(words) % BANKS, minlength=BANKS).max())
        if scope == "global":
            self.sectors += per_warp * float(np.mean(found))
        else:
            self.turns += per_warp * float(np.mean(found))

    def _evaluate(self, node: Any) -> np.ndarray | None:
        """An index or a condition in each lane of the warps; None if it depends on what isn't known."""
        found = evaluate(node, self.values)
        return None if found is None else np.broadcast_to(found, (SAMPLES, WARP))


def _is_float(node: Any) -> bool:
    kind = getattr(getattr(node, "ty", None), "dtype", None)
    return kind is not None and "float" in str(kind)


def _share(active: np.ndarray) -> float:
    """The share of warps in which any lane takes part."""
    return float(active.any(axis=1).mean())
