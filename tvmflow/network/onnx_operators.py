"""TVM's importer of ONNX graphs, with bindings that say which node they are of."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from tvmflow.network.foreign import report_unsupported
from tvmflow.network.names import BindingNames

if TYPE_CHECKING:
    import onnx


def onnx_importer() -> type:
    """TVM's importer, with every binding named after the ONNX node it comes from."""
    from tvm import relax
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

    class Importer(ONNXGraphImporter):
        def __init__(self, shapes: dict[str, list[int]], dtypes: dict[str, str]) -> None:
            super().__init__(shapes, dtypes)
            self.names = BindingNames()
            self.bb.emit = self.names.wrap(self.bb.emit)

        def _convert_operator(self, op_name: str, inputs: list, attrs: dict, opset: int) -> relax.Expr:
            self.names.current = attrs["tvm_custom"]["name"].strip("/").replace("/", ".") or op_name
            with contextlib.redirect_stdout(sys.stderr):  # the importer prints on errors
                result = super()._convert_operator(op_name, inputs, attrs, opset)
            return self._emit_calls(result)

        def _emit_calls(self, expr: relax.Expr) -> relax.Expr:
            """Bind a call and the calls inside it under names of their own; nested ones would get none."""
            if not isinstance(expr, relax.Call):
                return expr
            arguments = [self._emit_calls(argument) for argument in expr.args]
            return self.bb.emit(relax.Call(expr.op, arguments, expr.attrs, expr.ty_args))

        def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
            missing = defaultdict(list)
            for node in graph.node:
                if node.op_type not in _get_convert_map() and node.op_type not in ("If", "Constant"):
                    missing[node.op_type].append(node.name or node.output[0])
            report_unsupported(missing)

        def _sanitize_name(self, name: str) -> str:
            return name  # the module's interface keeps the names of the file

    return Importer
