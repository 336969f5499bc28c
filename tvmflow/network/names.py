"""Names of bindings: each says which module of the network, or which node of the file, it came from."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

PATH_SEPARATOR, NUMBER_SEPARATOR = "/", "~"
"""`joint.3.bn` names its second binding `joint/3/bn~2`: TVM turns dots in names into underscores."""


class BindingNames:
    """Gives each binding the name of the module or node that is being converted, unique by a running number."""

    def __init__(self) -> None:
        self.current = ""
        self.used: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))

    def wrap(self, emit: Callable) -> Callable:
        def named(expr: Any, name_hint: str = "") -> Any:
            if name_hint or not self.current:
                return emit(expr, name_hint)
            name = self.current.replace(".", PATH_SEPARATOR)
            number = next(self.used[name])
            return emit(expr, name if number == 1 else f"{name}{NUMBER_SEPARATOR}{number}")

        return named


def module_path(binding_name: str) -> str:
    """The path of the module or node that a binding of an imported network was named after."""
    return binding_name.partition(NUMBER_SEPARATOR)[0].replace(PATH_SEPARATOR, ".")


def name_outputs(module: tvm.IRModule) -> tvm.IRModule:
    """An importer's last binding is `gv = <the result>`, and later passes keep `gv`: give it the result's name."""
    from tvm import relax

    from tvmflow.passes.rename import rename

    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    return rename(
        module,
        {
            binding.var: f"{binding.value.name}{NUMBER_SEPARATOR}out"
            for binding in bindings
            if isinstance(binding.value, relax.Var) and not isinstance(binding.var, relax.DataflowVar)
        },
    )
