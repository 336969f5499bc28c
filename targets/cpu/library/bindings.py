"""The library for other languages than C, each a file over its header: C++ with spans, and Rust with slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tvmflow.network.c_interface import CPort
from tvmflow.targets.cpu.library.source import C_TYPES, Interface

FOLDER = "bindings"
HERE = Path(__file__).parent
_CPP, _RUST = ((HERE / f"network.{suffix}.in").read_text(encoding="utf-8") for suffix in ("hpp", "rs"))

RUST_TYPES = {
    "float32": "f32",
    "float64": "f64",
    "float16": "u16",
    "bfloat16": "u16",
    "bool": "u8",
    **{f"{kind}{bits}": f"{kind[0]}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
WORDS = """
abstract as async await become box crate do dyn else fn impl in let loop macro match mod move mut override priv pub ref
self static super trait true type unsafe unsized use virtual where yield threads context
"""
RUST_WORDS = frozenset(WORDS.split())
"""What no parameter is called in Rust."""


def write(folder: Path, interface: Interface) -> None:
    """NAME.hpp, NAME.rs and build.rs."""
    folder.mkdir(exist_ok=True)
    name = interface.name
    (folder / f"{name}.hpp").write_text(cpp(interface), encoding="utf-8")
    (folder / f"{name}.rs").write_text(rust(interface), encoding="utf-8")
    (folder / "build.rs").write_text(_BUILD.format(name=name), encoding="utf-8")


def cpp(interface: Interface) -> str:
    """The header for C++20."""
    states = [port for state in interface.kept for port in (state.before, state.after)]
    kept = {port.parameter for port in states}
    inputs = [port for port in interface.inputs if port.parameter not in kept]
    outputs = [port for port in interface.outputs if port.parameter not in kept]
    step = ""
    if kept:
        step = f"""
  /// `run` for the next call of a stream, whose state the context keeps.
  int step({_spans(interface, inputs, outputs)}) noexcept {{
    return {interface.name}_step(context_, {_data((*inputs, *outputs))});
  }}
"""
    return _CPP.format(
        name=interface.name,
        prefix=interface.prefix,
        spans=_spans(interface, interface.inputs, interface.outputs),
        data=_data((*interface.inputs, *interface.outputs)),
        step=step,
    )


def _spans(interface: Interface, inputs: Sequence[CPort], outputs: Sequence[CPort]) -> str:
    def span(port: CPort, qualified: str) -> str:
        kind = C_TYPES[port.spec.dtype]
        return f"std::span<{qualified}{kind}, {interface.prefix}_{port.macro}_SIZE> {port.parameter}"

    return ", ".join((*(span(port, "const ") for port in inputs), *(span(port, "") for port in outputs)))


def _data(ports: Sequence[CPort]) -> str:
    return ", ".join(f"{port.parameter}.data()" for port in ports)


def rust(interface: Interface) -> str:
    """The module for Rust."""
    sides = [(port, False) for port in interface.inputs] + [(port, True) for port in interface.outputs]
    sizes = [
        f"/// {port.spec.dtype}, {'×'.join(map(str, port.spec.shape)) or 'one value'}.\n"
        f"pub const {port.macro}_SIZE: usize = {math.prod(port.spec.shape)};\n"
        for port, _ in sides
    ]
    kept = {port.parameter for state in interface.kept for port in (state.before, state.after)}
    raw, slices, pointers = _rust_parameters(sides)
    declaration = step = ""
    if kept:
        raw_step, slices_step, pointers_step = _rust_parameters(
            [(port, written) for port, written in sides if port.parameter not in kept]
        )
        declaration = f"\n    fn {interface.name}_step({', '.join(('context: *mut c_void', *raw_step))}) -> i32;"
        step = f"""
    /// `run` for the next call of a stream, whose state the context keeps from `reset` on.
    pub fn step({", ".join(("&mut self", *slices_step))}) -> Result<(), i32> {{
        match unsafe {{ {interface.name}_step({", ".join(("self.context", *pointers_step))}) }} {{
            0 => Ok(()),
            status => Err(status),
        }}
    }}
"""
    return _RUST.format(
        name=interface.name,
        sizes="".join(sizes),
        raw=", ".join(raw),
        slices=", ".join(slices),
        pointers=", ".join(pointers),
        declaration=declaration,
        step=step,
    )


def _rust_parameters(sides: Sequence[tuple[CPort, bool]]) -> tuple[list[str], list[str], list[str]]:
    """How tensors, each written or read, are declared as C has them and as arrays, and passed from one to the other."""
    raw, slices, pointers = [], [], []
    for port, written in sides:
        kind, called = RUST_TYPES[port.spec.dtype], _rust_name(port)
        raw.append(f"{called}: *{'mut' if written else 'const'} {kind}")
        slices.append(f"{called}: &{'mut ' if written else ''}[{kind}; {port.macro}_SIZE]")
        pointers.append(f"{called}.as_{'mut_' if written else ''}ptr()")
    return raw, slices, pointers


def _rust_name(port: CPort) -> str:
    return f"{port.parameter}_" if port.parameter in RUST_WORDS else port.parameter


_BUILD = """// Where the bundle is: TVMFLOW_BUNDLE, or the folder beside this one.
fn main() {{
    let bundle = std::env::var("TVMFLOW_BUNDLE").unwrap_or_else(|_| "..".into());
    println!("cargo:rustc-link-search=native={{bundle}}");
    println!("cargo:rustc-link-lib=static={name}");
    println!("cargo:rustc-link-lib=m");
    println!("cargo:rerun-if-env-changed=TVMFLOW_BUNDLE");
}}
"""
