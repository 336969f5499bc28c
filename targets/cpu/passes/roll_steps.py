"""Make one kernel of all steps of a recurrent layer, which the readers unroll over time.

Unrolled, a step is two calls, of which the kernels need less time than the calls around them; rolled, a layer is one.
A chain is steps that read the same shares, each the product of the last one's hidden state and the same weights. Its
first step stays as it is: it begins with what the user gives, or with zeros, whose product is a constant by now.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvmflow.network.steps import FACTS
from tvmflow.passes.constants import is_constant
from tvmflow.passes.fuse_operators import OPAQUE
from tvmflow.passes.multiply_adds import static_shape
from tvmflow.schedules.cpu.recurrent import Recurrence, define, pack
from tvmflow.spec import Program, Target

FEWEST_STEPS, MOST_ROWS = 4, 4
"""Of a chain that is rolled, and of its batch: of larger ones the weights would come once for each row."""


def roll_steps(program: Program, target: Target) -> Program:
    """In float32. `Program.folded` has the multiply-adds of the products that are now a kernel's."""
    if "recurrent" not in target.schedules or target.arithmetic != "float32":
        return program
    reading = _Reading(program.module)
    chains = _chains(reading)
    if not chains:
        return program
    roll = _Roll(reading, chains, target)
    updated = roll.visit_expr(program.module["main"])
    module = roll.builder_.get()
    module["main"] = updated
    module = relax.transform.DeadCodeElimination()(module)
    return replace(program, module=module, folded={**program.folded, **roll.folded})


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A step as `main` has it. `product` is what its state's share is made by, if that is a product with a constant."""

    binding: relax.VarBinding
    number: int
    results: tuple[relax.Var | None, ...]
    """The hidden state, and others; what isn't read has no variable."""
    product: _Product | None

    @property
    def hidden(self) -> relax.Var:
        assert self.results[0] is not None
        return self.results[0]

    @property
    def variables(self) -> tuple[relax.Var, ...]:
        """All that it binds, and what makes its product."""
        made = self.product.made if self.product is not None else ()
        return (*made, self.binding.var, *(var for var in self.results if var is not None))

    @property
    def given(self) -> Sequence[relax.Expr]:
        """Shares, number, the state's share, and states of before."""
        return list(self.binding.value.args[1].fields)


@dataclass(frozen=True, kw_only=True)
class _Product:
    hidden: relax.Expr
    weight: relax.Expr
    bias: relax.Expr | None
    made: tuple[relax.Var, ...]
    """The product, and the sum of it and the bias."""


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Steps behind the first, and how the states of one are those that the next reads."""

    steps: tuple[_Step, ...]
    form: Recurrence

    @property
    def states(self) -> tuple[relax.Var, ...]:
        """The hidden states from the lowest number on."""
        found = [step.hidden for step in self.steps]
        return tuple(found if self.form.stride > 0 else reversed(found))


class _Reading:
    """What is bound to which variable, and who reads it."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        main = module["main"]
        self.bindings = [binding for block in main.body.blocks for binding in block.bindings]
        self.bound = {binding.var: binding.value for binding in self.bindings}
        self.place = {binding.var: place for place, binding in enumerate(self.bindings)}
        self.readers: dict[relax.Var, list[relax.Var]] = defaultdict(list)
        for binding in self.bindings:
            for var in _variables(binding.value):
                self.readers[var].append(binding.var)
        self.kept = set(_variables(main.body.body))

    def value(self, var: relax.Expr) -> Any:
        return self.bound.get(var) if isinstance(var, relax.Var) else None

    def steps(self) -> list[_Step]:
        return [step for binding in self.bindings if (step := self._step(binding)) is not None]

    def _step(self, binding: relax.VarBinding) -> _Step | None:
        call = binding.value
        if not _is_call(call, "relax.call_tir"):
            return None
        func = self.module[call.args[0]]
        if func.attrs is None or not set(FACTS) <= set(func.attrs.keys()):
            return None
        number = call.args[1].fields[1]
        if not is_constant(number) or str(call.args[1].fields[0].ty.dtype) != "float32":
            return None
        if isinstance(binding.var.ty, relax.TupleType):
            items: dict[int, relax.Var] = {}
            for reader in self.readers[binding.var]:
                value = self.bound[reader]
                if not isinstance(value, relax.TupleGetItem) or int(value.index) in items:
                    return None
                items[int(value.index)] = reader
            places = range(len(binding.var.ty.fields))
            results: tuple[relax.Var | None, ...] = tuple(items.get(place) for place in places)
        else:
            results = (binding.var,)
        if results[0] is None:
            return None
        return _Step(
            binding=binding,
            number=int(number.value.numpy()),
            results=results,
            product=self._product(call.args[1].fields[2]),
        )

    def _product(self, share: relax.Expr) -> _Product | None:
        """Of the state's share, if nothing else reads any of it."""
        made, bias, value = [share], None, self.value(share)
        if _is_call(value, "relax.add") and is_constant(value.args[1]):
            bias = value.args[1]
            made.insert(0, value.args[0])
            value = self.value(value.args[0])
        if not _is_call(value, "relax.matmul") or not is_constant(value.args[1]):
            return None
        if any(len(self.readers[var]) != 1 or var in self.kept for var in made):
            return None
        return _Product(hidden=value.args[0], weight=value.args[1], bias=bias, made=tuple(made))


def _chains(reading: _Reading) -> list[_Chain]:
    runs: list[list[_Step]] = []
    ends: dict[relax.Var, list[_Step]] = {}
    """By the hidden state of their last step, the runs so far."""
    for step in reading.steps():
        run = ends.pop(step.product.hidden, None) if step.product is not None else None
        if run is not None and _goes_on(run, step):
            run.append(step)
        else:
            run = [step]
            runs.append(run)
        ends[step.hidden] = run
    found = (_chain(reading, run) for run in runs if len(run) > FEWEST_STEPS)
    return [chain for chain in found if chain is not None]


def _goes_on(run: Sequence[_Step], step: _Step) -> bool:
    last, product = run[-1], step.product
    assert product is not None
    same = [(step.binding.value.args[0], last.binding.value.args[0]), (step.given[0], last.given[0])]
    stride = step.number - last.number
    if len(run) > 1:
        before = last.product
        assert before is not None
        same += [(product.weight, before.weight), (product.bias, before.bias)]
        if stride != last.number - run[-2].number:
            return False
    return abs(stride) == 1 and all(_same(a, b) for a, b in same)


def _chain(reading: _Reading, run: Sequence[_Step]) -> _Chain | None:
    """The run as a chain, if the steps' other states are for the next step alone, and the batch is small."""
    first, second, last = run[0], run[1], run[-1]
    func = reading.module[first.binding.value.args[0]]
    product = second.product
    assert product is not None
    carried = []
    for place in range(3, len(second.given)):
        number = next((n for n, var in enumerate(first.results) if _same(var, second.given[place])), None)
        if number is None:
            return None
        carried.append(number)
    for step, following in itertools.pairwise(run):
        own = [following.given[3 + place] for place in range(len(carried))]
        if any(not _same(step.results[number], given) for given, number in zip(own, carried, strict=True)):
            return None
    form = Recurrence(
        step=func,
        first=first.number,
        stride=second.number - first.number,
        count=len(run) - 1,
        has_bias=product.bias is not None,
        carried=tuple(carried),
    )
    weight, bias = static_shape(product.weight.ty), product.bias
    fits = weight == (form.units, form.gates * form.units) and form.gates * form.units == form.shares[2]
    if form.batch > MOST_ROWS or not fits or (bias is not None and static_shape(bias.ty) != form.shares[2:]):
        return None
    inside = {var for step in run[1:] for var in step.variables}
    end = reading.place[last.binding.var]
    for step in run[1:]:
        others = [var for var in step.results[1:] if var is not None and step is not last]
        if any(reader not in inside for var in others for reader in reading.readers[var]):
            return None
        for var in (var for var in step.results if var is not None):
            outside = [reader for reader in reading.readers[var] if reader not in inside]
            if not isinstance(var, relax.DataflowVar) or any(reading.place[reader] < end for reader in outside):
                return None
    return _Chain(steps=tuple(run), form=form)


@mutator
class _Roll(PyExprMutator):
    """A chain's kernel takes the place of its last step."""

    def __init__(self, reading: _Reading, chains: Sequence[_Chain], target: Target) -> None:
        super().__init__(reading.module)
        self.reading, self.target = reading, target
        self.folded: dict[str, Mapping[str, int]] = {}
        self.ends = {chain.steps[-1].binding.var: chain for chain in chains}
        self.gone = {var for chain in chains for step in chain.steps[1:] for var in step.variables}
        self.stacks = {
            binding.var: chain
            for chain in chains
            for binding in self.reading.bindings
            if self._stacks(binding.value, chain)
        }
        self.rolled: dict[int, relax.Var] = {}
        """By `id` of a chain, all of its hidden states."""

    def _stacks(self, value: relax.Expr, chain: _Chain) -> bool:
        """Whether a value is all of a chain's hidden states, one behind the other."""
        joined = next((name for name in ("relax.concat", "relax.stack") if _is_call(value, name)), None)
        if joined is None or int(value.attrs.axis) != 0 or not isinstance(value.args[0], relax.Tuple):
            return False
        rows = list(value.args[0].fields)
        if joined == "relax.concat":
            rows = [self._grown(row) for row in rows]
        pairs = zip(rows, chain.states, strict=False)
        return len(rows) == len(chain.steps) and all(_same(row, state) for row, state in pairs)

    def _grown(self, row: relax.Expr) -> relax.Expr | None:
        """What got a first axis."""
        value = self.reading.value(row)
        grown = _is_call(value, "relax.expand_dims") and list(map(int, value.attrs.axis)) == [0]
        return value.args[0] if grown else None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.ends:
            self._emit(self.ends[binding.var], binding)
        elif binding.var in self.stacks:
            states = self.rolled[id(self.stacks[binding.var])]
            is_inner = isinstance(binding.var, relax.DataflowVar)
            same = states if is_inner else self.builder_.emit_output(states, binding.var.name)
            self.set_var_remap(binding.var, same)
        elif binding.var not in self.gone:
            super().visit_var_binding_(binding)

    def _emit(self, chain: _Chain, binding: relax.VarBinding) -> None:
        form, first, second = chain.form, chain.steps[0], chain.steps[1]
        product = second.product
        assert product is not None
        before = [self.visit_expr(first.results[number]) for number in (0, *form.kept)]
        weight = relax.const(pack(product.weight.value.numpy(), form, self.target), "float32")
        bias = [] if product.bias is None else [relax.const(_flat(product.bias), "float32")]
        func = define(form, self.target).with_attr("op_pattern", OPAQUE)
        name = f"{first.binding.value.args[0].name_hint.removesuffix('_step')}_steps"
        given = relax.Tuple([self.visit_expr(first.given[0]), *before, weight, *bias])
        state = (form.batch, form.units)
        shapes = [(form.count + 1, *state), *(state for _ in form.kept)]
        types = [relax.TensorType(shape, "float32") for shape in shapes]
        call = relax.call_tir(self.builder_.add_func(func, name), given, types if form.kept else types[0])
        made = self.builder_.emit(call, binding.var.name)
        works = {step.product.made[0].name: form.macs for step in chain.steps[1:] if step.product is not None}
        self.folded[made.name] = {made.name: sum(works.values())} if len(works) != form.count else works
        states = self.builder_.emit(relax.TupleGetItem(made, 0)) if form.kept else made
        self.rolled[id(chain)] = states
        for place, number in enumerate(form.kept):
            last = chain.steps[-1].results[number]
            if last is not None:
                self.set_var_remap(last, self.builder_.emit(relax.TupleGetItem(made, place + 1)))
        for row, var in enumerate(chain.states):
            if var.same_as(first.hidden) or not self._is_read(var):
                continue
            part = self.builder_.emit(relax.op.strided_slice(states, [0], [row], [row + 1]))
            self.set_var_remap(var, self.builder_.emit(relax.op.squeeze(part, [0])))

    def _is_read(self, var: relax.Var) -> bool:
        """Whether anything but steps and stacks of all states needs a hidden state."""
        for reader in self.reading.readers[var]:
            if reader in self.gone:
                continue
            if reader in self.stacks:
                continue
            readers = self.reading.readers[reader]
            if not readers or any(other not in self.stacks for other in readers) or reader in self.reading.kept:
                return True
        return False


def _same(a: relax.Expr | None, b: relax.Expr | None) -> bool:
    return a is b or (a is not None and b is not None and a.same_as(b))


def _flat(bias: relax.Expr) -> np.ndarray:
    return bias.value.numpy().reshape(-1)


def _is_call(value: Any, name: str) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == name


def _variables(value: relax.Expr) -> list[relax.Var]:
    found: dict[relax.Var, None] = {}
    relax.analysis.post_order_visit(value, lambda e: found.setdefault(e) if isinstance(e, relax.Var) else None)
    return list(found)
