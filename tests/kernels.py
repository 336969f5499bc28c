"""Candidates of one small task, y = x + 1 of eight numbers: good, wrong, crashing, hanging ones."""

from __future__ import annotations

import tvm
from tvm.script import tirx as T

from tvmflow.tune.space import Candidate
from tvmflow.tune.tasks import Task


def adding(number: float) -> tvm.IRModule:
    """y = x + number."""

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for i in range(8):
            with T.sblock("add"):
                v = T.axis.spatial(8, i)
                y[v] = x[v] + T.float32(number)

    return tvm.IRModule({"main": main})


def calling(symbol: str, argument: int) -> tvm.IRModule:
    """y = x + 1 after a call into the C library."""

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        T.evaluate(T.call_extern("int32", symbol, argument))
        for i in range(8):
            with T.sblock("add"):
                v = T.axis.spatial(8, i)
                y[v] = x[v] + T.float32(1)

    return tvm.IRModule({"main": main})


def allocating(count: int) -> tvm.IRModule:
    """y = x + 1 after so many bytes were taken and written to."""

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        # not memset: LLVM leaves out what is written to memory that nobody reads
        T.evaluate(
            T.call_extern("int32", "explicit_bzero", T.call_extern("handle", "malloc", T.int64(count)), T.int64(count))
        )
        for i in range(8):
            with T.sblock("add"):
                v = T.axis.spatial(8, i)
                y[v] = x[v] + T.float32(1)

    return tvm.IRModule({"main": main})


def bound_to_threads() -> tvm.IRModule:
    """y = x + 1 as a GPU would do it, which LLVM refuses."""

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for i in T.thread_binding(8, thread="threadIdx.x"):
            with T.sblock("add"):
                v = T.axis.spatial(8, i)
                y[v] = x[v] + T.float32(1)

    return tvm.IRModule({"main": main})


TASK = Task(key="add", name="add", module=adding(1), workload=("1", ""), calls=1, modules=())


def as_candidate(text: str, module: tvm.IRModule) -> Candidate:
    """A candidate of TASK."""
    return Candidate(task=TASK.key, text=text, module=module, record=[])
