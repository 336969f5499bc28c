"""`tvmflow KIND disasm`, of kinds of target whose libraries can be read as text."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer

from tvmflow.cli.options import BundlePath, Json
from tvmflow.cli.outcome import show
from tvmflow.spec import UserError
from tvmflow.targets.about import Kind


def disassembler(kind: Kind) -> Callable[..., None]:
    """The command for bundles of that kind."""
    reader = kind.disassembly
    assert reader is not None

    def disasm(
        bundle: BundlePath,
        layer: Annotated[str | None, typer.Option("--layer", help="Only this layer's, by its name.")] = None,
        json: Json = None,
    ) -> None:
        """Show a bundle's instructions as text, layer by layer."""
        from tvmflow.bundles.bundle import open_bundle

        with open_bundle(bundle) as opened:
            if opened.target.kind != kind.name:
                raise UserError(f"{bundle} is for {opened.target.name}, which has no {reader.of}.")
            sections: dict[str, list[str]] = import_module(reader.module).sections(opened.library.parent)
        if layer is not None and layer not in sections:
            raise UserError(f"There is no layer {layer!r}; the layers are {', '.join(sections)}.")
        shown = {name: lines for name, lines in sections.items() if layer in (None, name)}
        show("\n".join("\n".join([f"{name}:", *lines]) for name, lines in shown.items()), shown, json)

    return disasm
