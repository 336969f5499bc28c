"""TVM's importer of exported PyTorch programs, with bindings that say which module they are of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
            self.convert_map: dict[Any, Callable] = {op: self._named(make) for op, make in self.convert_map.items()}

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


def module_path_of(node: torch.fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path or node.name
