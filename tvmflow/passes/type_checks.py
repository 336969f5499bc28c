"""What TVM wants of the arguments of a schedule's methods is found out once for each type, not once for each call.

TVM holds every argument against the method's annotations, and takes these apart anew each time: 3 to 8 % of the
processor time of ResNet-8 and EfficientNet-Lite0 in float32, on a busy machine. The check itself stays.
"""

from __future__ import annotations

import functools

from tvm.s_tir.schedule import _type_checker

_type_checker._dispatcher = functools.cache(_type_checker._dispatcher)
