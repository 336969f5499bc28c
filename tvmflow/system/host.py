"""This computer as a board, as far as linking and running for it go; with schedules it is HOST of targets/cpu."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from tvmflow.spec import Cpu, Target

MACHINES = {"x86_64": (64, "x64"), "aarch64": (64, "AArch64")}
"""What `uname -m` says → ELF class in bits, and machine as pyelftools names it."""


def cpu_name() -> str:
    """Of this computer, as its system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cache_bytes(level: int) -> int:
    """Size of the first core's data cache of that level, 0 where Linux doesn't say."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if (index / "level").read_text().strip() == str(level) and (index / "type").read_text()[0] in "DU":
                size = (index / "size").read_text().strip()
                return int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]
        except (OSError, KeyError, ValueError):
            continue
    return 0


def _clock_mhz() -> int:
    """Highest clock, 0 where Linux doesn't say (as in most virtual machines)."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text()) // 1000
    except (OSError, ValueError):
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


COMPUTER = Target(
    name="host",
    kind="llvm",
    description="this computer",
    # "native" becomes LLVM's name of this CPU and its features when a Target is made of it
    tvm={"kind": "llvm", "mcpu": "native", "num-cores": _cores()},
    triple=f"{platform.machine()}-{sys.platform}-gnu",
    elf=MACHINES.get(platform.machine(), (64, platform.machine())),
    cpu=Cpu(
        model=cpu_name(),
        cores=_cores(),
        clock_mhz=_clock_mhz(),
        l1d_bytes=_cache_bytes(1),
        l2_bytes=_cache_bytes(2),
        l3_bytes=_cache_bytes(3),
    ),
    memory_bytes=_memory_bytes(),
    datasheet="read from this computer (/proc/cpuinfo, /sys/devices/system/cpu)",
    arithmetics=("float32", "int8"),
)
