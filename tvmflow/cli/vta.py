"""`tvmflow vta`: what is in a bundle for VTA."""

from __future__ import annotations

import itertools
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
    names = [mark.name for mark in executable.layers]
    if layer is not None and layer not in names:
        raise UserError(f"There is no layer {layer!r}; the layers are {', '.join(names)}.")
    marks = iter(executable.layers)
    for step in executable.sequence:
        parts = {mark.name: range(mark.first, mark.last) for mark in itertools.islice(marks, step.layers)}
        end = max((part.stop for part in parts.values()), default=step.first)
        for name, numbers in {**parts, "(end)": range(end, step.last)}.items():
            if layer not in (None, name) or (step.function and name == "(end)"):
                continue
            print(f"{name}:" + (f" {step.function} of the processor" if step.function and not numbers else ""))
            for number in numbers:
                print(f"{number:6}  {isa.text(executable.instructions[number])}")
