"""Functions over plain pointers → C99 for any compiler: what of it is the same for every kind of target.

What C leaves open is only that negative numbers are shifted to the right arithmetically, as every compiler in use does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx

TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "float32": "float"}
"""What functions point to, in C."""

_LINKAGE = '#ifdef __cplusplus\nextern "C"\n#endif\n'


def lower_loops(module: tvm.IRModule) -> tvm.IRModule:
    """Loops become what a code generator takes, that of the current target. Pointers stay plain arguments."""
    transform = tirx.transform
    passes = [
        transform.BindTarget(tvm.target.Target.current().with_host(tvm.target.Target.current())),
        transform.FlattenBuffer(),
        transform.NarrowDataType(32),
        transform.VectorizeLoop(True),
        transform.UnrollLoop(),
        transform.StmtSimplify(),
        transform.RemoveNoOp(),
        transform.LowerIntrin(),
    ]
    with tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(module)


def generate(functions: Mapping[str, tirx.PrimFunc], kind: str, target: tvm.target.Target) -> Any:
    """TVM's module of lowered functions by their symbols, of its code generator "llvm" or "c"."""
    made = {}
    for symbol, func in functions.items():
        # codegen needs none of the attributes that are ours
        bare = tirx.PrimFunc(func.params, func.body, func.ret_type)
        for key, value in {"global_symbol": symbol, "tirx.noalias": True, "target": target}.items():
            bare = bare.with_attr(key, value)
        made[symbol] = bare
    return tvm.get_global_func(f"target.build.{kind}")(tvm.IRModule(made), target)


def definitions(functions: Mapping[str, tirx.PrimFunc]) -> str:
    """Lowered functions by their symbols as C, each `static`."""
    text = generate(functions, "c", tvm.target.Target("c")).inspect_source()
    body = text[text.index("TVM_DLL") :].replace(_LINKAGE, "").replace("TVM_DLL ", "")
    kept = [line for line in body.splitlines() if not re.fullmatch(r"void \w+\(.*\);", line)]
    found = "\n".join(kept).strip().removesuffix(_LINKAGE.strip()).strip()
    found = re.sub(r"^void ", "static void ", found, flags=re.MULTILINE)
    found = re.sub(r"(\w+_t|float)\* (\w+)(?=[,)])", r"\1 *restrict \2", found)
    return re.sub(r"\binff\b", "(1.0f / 0.0f)", found)  # TVM's name of infinity is none of C's
