"""Modules that others may import by the name they had before they got a folder.

The old names of what is documented go on working and give what lies in the new modules. Nothing is imported before it
is asked for, and nothing of tvmflow itself uses these names; tests/test_house.py sees to both.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "backends": ("bundles.backends", "targets.kind"),
    "build": ("bundles.build",),
    "bundle": ("bundles.bundle", "network.vectors"),
    "chain": ("integer.graph", "integer.reader"),
    "deploy": ("remote.deploy",),
    "device": ("measure.device",),
    "emulate": ("measure.emulate",),
    "estimate": ("report.estimate", "spec"),
    "evaluate": ("bundles.evaluate",),
    "frontend": ("network.frontend",),
    "infer": ("bundles.infer",),
    "integer_frontend": ("integer.frontend",),
    "quantize": ("integer.post_training",),
    "rpc": ("remote.rpc",),
    "rules": ("schedules.registry",),
    "survey": ("report.survey",),
    "toolchain": ("system.toolchain",),
    "verify": ("bundles.verify", "network.agreement", "targets.kind"),
    "schedules.integer": ("schedules.cpu.integer",),
}
"""Names below `tvmflow`, and where what they had is now, in the order in which it is looked for."""


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, rest = name.partition(".")
        return ModuleSpec(name, _Loader(MOVED[rest])) if root == "tvmflow" and rest in MOVED else None


class _Moved(ModuleType):
    """An old name that a function of `import tvmflow` has as well: importing the module hides the function there."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import tvmflow

        return tvmflow.__getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Loader(Loader):
    def __init__(self, places: Sequence[str]) -> None:
        self.places = places

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = f"Moved: see tvmflow.{' and tvmflow.'.join(self.places)}."
        module.__getattr__ = self._look_up  # type: ignore[method-assign]

    def _look_up(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in self.places:
                found = importlib.import_module(f"tvmflow.{place}")
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"there is no {name} in tvmflow.{' or tvmflow.'.join(self.places)}")


def keep_old_names() -> None:
    """Have old names found from now on, behind all that is really there."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
