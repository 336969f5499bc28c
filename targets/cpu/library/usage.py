"""What whoever links a library is told: the README of its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvmflow.spec import Program, Target
from tvmflow.targets.cpu.library.source import C_TYPES, interface_of


def readme(program: Program, target: Target, facts: Mapping[str, Any]) -> str:
    """How the library of a bundle is used in a program of one's own."""
    interface = interface_of(program)
    name, prefix = interface.name, interface.prefix
    ports = (*interface.inputs, *interface.outputs)
    buffers = "\n".join(
        f"    static {C_TYPES[port.spec.dtype]} {port.parameter}[{prefix}_{port.macro}_SIZE];" for port in ports
    )
    arguments = ", ".join(port.parameter for port in ports)
    shared = f", or with `{facts['shared']['file']}`" if facts["shared"] else ""
    return f"""In a program of yours, in C or C++:

    #include "{name}.h"

{buffers}
    {name}_context *context;
    if ({name}_init(&context, NULL) != {prefix}_OK) …
    {name}_run(context, {arguments});
    {name}_free(context);

Link it with `lib{name}.a`{shared}: `cc main.c lib{name}.a -lm -pthread`. What the archive needs of others is
{", ".join(f"`{symbol}`" for symbol in facts["undefined"]) or "nothing"}. `source/` has the calls of the kernels as C99:
compiled with `-I.` and linked before the archive, they take the place of the archive's own, for a system whose C
library or threads are others. `bindings/` has the same interface for C++20 and for Rust.

`runner/run` is a program that needs nothing but Linux:

    runner/run --self-test     # the golden vectors; exit code 0 if all agree
    runner/run input.npy       # outputs as JSON
    runner/run --bench         # latency as JSON; TVM_NUM_THREADS says with how many threads
    runner/run --profile       # each kernel's time as JSON
"""
