"""What TVM wants of the arguments of a schedule's methods is found out once for each type, not once for each call.

TVM holds every argument against the method's annotations, and takes these apart anew each time: a tenth of a build in
which rules read many kernels. The check itself stays.
"""

from __future__ import annotations

import functools

from tvm.s_tir.schedule import _type_checker

_type_checker._dispatcher = functools.cache(_type_checker._dispatcher)
