"""`tvmflow vta`: what is in a bundle for VTA."""

from __future__ import annotations

from typing import Annotated

import typer

from tvmflow.cli.options import BundlePath
from tvmflow.spec import UserError


def disasm(
    bundle: BundlePath,
    layer: Annotated[str | None, typer.Option("--layer", help="Only this layer's, by its name.")] = None,
) -> None:
    """Show a bundle's instructions as text, layer by layer."""
    from tvmflow.bundles.bundle import open_bundle
    from tvmflow.targets.vta import isa, program

    with open_bundle(bundle) as opened:
        if opened.target.kind != "vta":
            raise UserError(f"{bundle} is for {opened.target.name}, which has no VTA.")
        executable = program.read(opened.library.parent)
    parts = {mark.name: range(mark.first, mark.last) for mark in executable.layers}
    if layer is not None and layer not in parts:
        raise UserError(f"There is no layer {layer!r}; the layers are {', '.join(parts)}.")
    covered = max((part.stop for part in parts.values()), default=0)
    parts["(end)"] = range(covered, len(executable.instructions))
    for name, numbers in parts.items():
        if layer in (None, name):
            print(f"{name}:")
            for number in numbers:
                print(f"{number:6}  {isa.text(executable.instructions[number])}")
