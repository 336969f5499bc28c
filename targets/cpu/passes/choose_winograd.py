"""Compute 3×3 convolutions by Winograd's minimal filtering where that pays: kernels and weights become others.

F(4×4, 3×3) takes a quarter of the direct sum's multiply-adds and F(2×2, 3×3) 4/9, besides the transforms, and their
weights are four times as many or 16/9. Which is the fastest is estimated layer by layer, in instructions of vectors:

- the products, each with its share of the loads, by as many tiles at a time as there are;
- the transforms of the inputs, once for each vector of input channels, and of the outputs;
- the weights' bytes, which come from beyond the L2 cache once an inference, as many instructions as a core could have
  executed meanwhile.

What threads share is divided by the cores that have something to do.

What has few pixels and many channels stays as it is, for its time goes into the weights, and so does what has too few
channels for the transforms to pay. The estimate depends on the network and the board's figures alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.passes.constants import is_constant
from tvmflow.passes.fuse_operators import call_bytes, constant_bytes, kernel_calls
from tvmflow.schedules.convolutions import Convolution, most_pixels, read_convolutions, vectors_of, worth_threads
from tvmflow.schedules.cpu import conv_blocked, winograd
from tvmflow.schedules.winograd import POINTS, TAPS, Winograd, define, products_of, serves, transform_weights
from tvmflow.spec import Program, Target

DIRECT = 0
GAIN = 1.2
"""By how much an estimate has to be better than the direct sum's."""
DATA_COST: Mapping[int, int] = {2: 128, 4: 432}
RESULT_COST: Mapping[int, int] = {2: 152, 4: 416}
"""Instructions of a tile and a vector of channels, by m: loads, stores and arithmetic of the inputs' transform, and of
the outputs' with the products' stores, twice: that many fit small maps, on which loops begin and end all the time."""
BYTE_COST = 0.34
"""Instructions in whose time a byte of weights comes from the L3 cache.

By the times of 256→256 at 14×14 and 512→512 at 7×7 by F(2×2) and F(4×4): 0.33 to 0.36. Intel Xeon (AVX-512, 2 virtual
cores), TVM 0.27.0, 2026-11-30.
"""
REACHED = 0.5
"""The share of a board's stated bandwidth that weights are taken to come with: no board was at hand to measure it."""


def choose_winograd(program: Program, target: Target) -> Program:
    """Of float32 convolutions whose tensors are in blocks. `Layer.macs` stays that of the network.

    `Layer.live_macs` becomes the multiply-adds that are done, transforms left out, and bytes are counted anew.
    """
    if "winograd" not in target.schedules or target.arithmetic != "float32":
        return program
    chosen = {}
    for binding in kernel_calls(program.module):
        conv = _read(program.module[binding.value.args[0]])
        if conv is None:
            continue
        values = binding.value.args[1].fields
        place = next(place for place, param in enumerate(conv.func.params) if param.same_as(conv.weight))
        outputs = choose(conv, target)
        if outputs != DIRECT and is_constant(values[place]) and _stays_finite(values[place].value.numpy()):
            chosen[binding.var] = outputs
    return _rewrite(program, chosen) if chosen else program


def _read(func: tirx.PrimFunc) -> Convolution | None:
    """The convolution of a kernel that could be computed so."""
    found = read_convolutions(func)
    if len(found) != 1 or not serves(found[0]):
        return None
    (conv,) = found
    return conv if conv.data_block and conv.out_block and conv.weight_block else None


def choose(conv: Convolution, target: Target) -> int:
    """The m of the F(m×m, 3×3) that should be the fastest, or DIRECT."""
    costs = {outputs: cost(conv, outputs, target) for outputs in POINTS}
    best = min(costs, key=lambda outputs: costs[outputs])
    return best if costs[best] * GAIN < direct_cost(conv, target) else DIRECT


def cost(conv: Convolution, outputs: int, target: Target) -> float:
    """Instructions of F(m×m, 3×3), m being `outputs`, in the time of a core."""
    form = Winograd(conv=conv, outputs=outputs)
    lanes = math.gcd(vectors_of(target).lanes, conv.out_block)
    vectors, tiles = conv.weight_block // lanes, conv.batch * math.prod(form.tiles)
    rows = min(most_pixels(vectors_of(target), vectors), tiles)
    products = products_of(conv, outputs) / lanes * (rows * vectors + rows + vectors) / (rows * vectors)
    transforms = tiles * (DATA_COST[outputs] * conv.in_channels + RESULT_COST[outputs] * conv.channels) / lanes
    return (products + transforms) / winograd.busy_cores(form, target) + _fetching(conv, form.inputs**2, target)


def direct_cost(conv: Convolution, target: Target) -> float:
    """Instructions of `conv_blocked`, in the time of a core."""
    cores = target.cpu.cores if worth_threads(conv.macs, target) else 1
    return conv_blocked.instructions(conv.func, target) / cores + _fetching(conv, TAPS**2, target)


def _fetching(conv: Convolution, weights: int, target: Target) -> float:
    """Instructions in whose time so many weights come for each pair of channels."""
    cpu, each = target.cpu, BYTE_COST
    if cpu.memory_gbps and cpu.flops_per_cycle:  # one memory for all cores
        vectors_per_s = cpu.clock_mhz * 1e6 * cpu.flops_per_cycle / 2 / vectors_of(target).lanes
        each = max(each, vectors_per_s / (1e9 * cpu.memory_gbps * REACHED))
    return each * 4 * weights * conv.in_channels * conv.channels


def _stays_finite(weight: np.ndarray) -> bool:
    """Whether the transformed weights are finite: no entry of G is larger than 1, nor are three in a row together."""
    return bool(np.abs(weight).max(initial=0) < np.finfo(np.float32).max / TAPS**2)


def _rewrite(program: Program, chosen: Mapping[relax.Var, int]) -> Program:
    mutate = _Rewrite(program.module, chosen)
    updated = mutate.visit_expr(program.module["main"])
    module = mutate.builder_.get()
    module["main"] = updated
    module = relax.transform.DeadCodeElimination()(module)
    layers = []
    calls = zip(program.layers, kernel_calls(program.module), kernel_calls(module), strict=True)
    for layer, before, binding in calls:
        layer = replace(layer, kernel=binding.value.args[0].name_hint)
        if before.var in chosen:
            conv = _read(program.module[before.value.args[0]])
            assert conv is not None
            layer = replace(
                layer,
                live_macs=products_of(conv, chosen[before.var]),
                bytes=call_bytes(binding),
                weight_bytes=constant_bytes(binding),
            )
        layers.append(layer)
    return replace(program, module=module, layers=tuple(layers))


@mutator
class _Rewrite(PyExprMutator):
    """Equal kernels of one form stay one, and so does a constant that several of them read."""

    def __init__(self, module: tvm.IRModule, chosen: Mapping[relax.Var, int]) -> None:
        super().__init__(module)
        self.module, self.chosen = module, chosen
        self.made: dict[tuple[tvm.ir.GlobalVar, int], tvm.ir.GlobalVar] = {}
        self.arrays: dict[tuple[relax.Expr, int], relax.Expr] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        outputs = self.chosen.get(binding.var)
        if outputs is None:
            super().visit_var_binding_(binding)
            return
        call, func = binding.value, self.module[binding.value.args[0]]
        conv = _read(func)
        assert conv is not None
        values = [self.visit_expr(value) for value in call.args[1].fields]
        place = next(place for place, param in enumerate(func.params) if param.same_as(conv.weight))
        values[place] = self._transformed(values[place], outputs)
        key = call.args[0], outputs
        if key not in self.made:
            name = f"{call.args[0].name_hint}_winograd{outputs}"
            self.made[key] = self.builder_.add_func(define(func, outputs), name)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        made = relax.call_tir(self.made[key], relax.Tuple(values), binding.var.ty)
        self.set_var_remap(binding.var, emit(made, binding.var.name))

    def _transformed(self, constant: relax.Expr, outputs: int) -> relax.Expr:
        key = constant, outputs
        if key not in self.arrays:
            blocks = constant.value.numpy()  # F/block × C × 3 × 3 × block
            plain = np.moveaxis(blocks, -1, 1).reshape(-1, *blocks.shape[1:4])
            self.arrays[key] = relax.const(transform_weights(plain, outputs, blocks.shape[-1]), "float32")
        return self.arrays[key]
