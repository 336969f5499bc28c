"""TVM's importer of exported PyTorch programs, with bindings that say which module they are of."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tvmflow.network.aten import OPERATORS, WHOLE, Call, Converter
from tvmflow.network.foreign import report_unsupported
from tvmflow.network.interface import to_numpy
from tvmflow.network.names import BindingNames

if TYPE_CHECKING:
    import torch


def torch_importer() -> type:
    """TVM's importer, with every binding named after the PyTorch module it comes from."""
    import tvm
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    from tvmflow.network.precision import Precision

    class Importer(ExportedProgramImporter):
        def __init__(self) -> None:
            self.names = BindingNames()
            super().__init__()
            ours = {operator: self._ours(convert) for operator, convert in OPERATORS.items()}
            self.convert_map: dict[Any, Callable] = {
                operator: self._named(convert) for operator, convert in (self.convert_map | ours).items()
            }

        def _ours(self, convert: Converter) -> Callable:
            return lambda node: convert(
                Call(
                    node=node,
                    builder=self.block_builder,
                    arguments=self._retrieve_args(_arguments(node)),
                    overload=node.target,
                )
            )

        def _named(self, convert: Callable) -> Callable:
            def named(node: torch.fx.Node) -> Any:
                self.names.current = module_path_of(node)
                return convert(node)

            return named

        def __setattr__(self, attribute: str, value: Any) -> None:
            if attribute == "block_builder" and value is not None:
                value.emit = Precision().wrap(self.names.wrap(value.emit))
            super().__setattr__(attribute, value)

        @staticmethod
        def _convert_pytorch_tensor_to_tvm(tensor_value: torch.Tensor) -> tvm.runtime.Tensor:
            return tvm.runtime.tensor(to_numpy(tensor_value))  # any dtype and any strides

        def _check_unsupported_func_type(self, nodes: list[torch.fx.Node]) -> None:
            missing = defaultdict(list)
            for node in nodes:
                operator = getattr(node.target, "__name__", str(node.target))
                if node.op == "call_function" and operator not in self.convert_map:
                    missing[operator].append(module_path_of(node))
            report_unsupported(missing)

    return Importer


def decompose(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Into PyTorch's core operators, but for those that have a converter of their own (`tvmflow.network.aten`).

    Operators outside the core that nothing here knows are taken apart by PyTorch's other decompositions.
    """
    from torch._decomp import decomposition_table

    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    foreign = any(getattr(operator, "namespace", "aten") != "aten" for operator in called)
    # PyTorch looks through all of its operators to make the table; others' may have been registered since.
    table = dict((_decompositions.__wrapped__ if foreign else _decompositions)())
    known = torch_importer()().convert_map
    while True:
        exported = exported.run_decompositions(table)
        left = {
            node.target
            for node in exported.graph.nodes
            if node.op == "call_function"
            and getattr(node.target, "__name__", "") not in known
            and node.target in decomposition_table
            and node.target not in table
        }
        if not left:
            return exported
        for operator in left:
            table[operator] = decomposition_table[operator]


@functools.cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    """What takes operators apart, but for those that stay whole."""
    import torch

    return {op: apart for op, apart in torch.export.default_decompositions().items() if op.__name__ not in WHOLE}


def _arguments(node: torch.fx.Node) -> tuple[Any, ...]:
    """Of a call of an operator, in the order of its schema, with defaults where none was given."""
    schema: Any = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | dict(node.kwargs)
    return tuple(
        given.get(argument.name, argument.default_value if argument.has_default_value() else None)
        for argument in schema
    )


def module_path_of(node: torch.fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path or node.name
