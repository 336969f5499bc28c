"""What TVM says of wrong arguments of a schedule's methods, though it takes their annotations apart only once."""

from __future__ import annotations

import pytest
from tvm import s_tir
from tvm.s_tir.schedule import _type_checker
from tvm.script import tirx as T

import tvmflow.passes.type_checks  # noqa: F401


@T.prim_func(s_tir=True)
def doubled(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
    for i in range(8):
        with T.sblock("b"):
            place = T.axis.remap("S", [i])
            b[place] = a[place] * T.float32(2)


def test_wrong_types_are_refused_each_time():
    schedule = s_tir.Schedule(doubled)
    for _ in range(2):
        with pytest.raises(TypeError, match='get_sblock", "name" has wrong type'):
            schedule.get_sblock(3)
        (loop,) = schedule.get_loops(schedule.get_sblock("b"))
        with pytest.raises(TypeError, match='"factors" has wrong type'):
            schedule.split(loop, 4)


def test_each_type_is_taken_apart_once():
    schedule = s_tir.Schedule(doubled)
    schedule.get_sblock("b")
    before = _type_checker._dispatcher.cache_info().misses
    schedule.get_sblock("b")
    assert _type_checker._dispatcher.cache_info().misses == before
