"""FPGA boards with a VTA: the accelerator that apache/tvm-vta describes, in its default configuration.

Clocks and buses are those of upstream's config/pkg_config.py. The latency of memory isn't published for any board; 30
cycles at 100 MHz, with 20 to 60 as the band, is an assumption for the coherent port of a Zynq-7000, and reports say so.
The core asks for bursts of 256 beats, or of 16 in upstream's De10Config (`lenBits` in Chisel's shell/Configs.scala).
The coherent port of a Zynq-7000 is AXI3, of 16 beats at most (AMD UG585, Arm IHI 0022), so that AMD's interconnect
splits the core's bursts there; that of an UltraScale+, S_AXI_HPC0, is AXI4 (AMD UG1085).
`cpu` is the board's processor, which only writes inputs, starts the accelerator and reads outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvmflow.spec import NO_ELF, Cpu, Target
from tvmflow.targets.about import Disassembly, Kind, OwnSearch
from tvmflow.targets.vta.facts import Vta

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

PYNQ_Z1 = Target(
    name="pynq-z1",
    kind="vta",
    description="Digilent PYNQ-Z1 (Zynq XC7Z020) with VTA 1x16 at 100 MHz",
    tvm={
        "kind": "llvm",
        "mtriple": "armv7l-linux-gnueabihf",
        "mcpu": "cortex-a9",
        "mfloat-abi": "hard",
        "num-cores": 2,
    },
    triple="arm-linux-gnueabihf.2.28",
    elf=NO_ELF,
    cpu=Cpu(model="Cortex-A9", cores=2, clock_mhz=650, l1d_bytes=32 * KIB, l2_bytes=512 * KIB, cache_note="L2 shared"),
    memory_bytes=512 * MIB,
    datasheet="Digilent PYNQ-Z1 Reference Manual; AMD DS190, Zynq-7000 Overview; "
    "apache/tvm-vta d4a15f6, config/pkg_config.py",
    arithmetic="int8",
    arithmetics=("int8",),
    facts=Vta(
        configuration={
            "TARGET": "pynq",
            "HW_VER": "0.0.2",
            "LOG_INP_WIDTH": 3,
            "LOG_WGT_WIDTH": 3,
            "LOG_ACC_WIDTH": 5,
            "LOG_BATCH": 0,
            "LOG_BLOCK": 4,
            "LOG_UOP_BUFF_SIZE": 15,
            "LOG_INP_BUFF_SIZE": 15,
            "LOG_WGT_BUFF_SIZE": 18,
            "LOG_ACC_BUFF_SIZE": 17,
        },
        clock_mhz=100,
        bus_bytes=8,
        latency_cycles=30,
        latency_band=(20, 60),
        burst_beats=256,
        port_burst_beats=16,
    ),
)


def _like_pynq(name: str, upstream: str, description: str, facts: dict[str, Any], **others: Any) -> Target:
    """A board whose VTA differs from the PYNQ's in clock, bus, bursts and registers only, as upstream's samples do."""
    pynq = Vta.of(PYNQ_Z1)
    made = replace(pynq, configuration={**pynq.configuration, "TARGET": upstream}, **facts)
    return replace(PYNQ_Z1, name=name, description=description, facts=made, **others)


AT_333_MHZ = {
    "clock_mhz": 333,
    "bus_bytes": 16,
    "latency_cycles": 100,
    "latency_band": (67, 200),
    "port_burst_beats": 256,
}
"""The same times to memory in ns, which are more cycles."""

CORTEX_A53 = {
    "kind": "llvm",
    "mtriple": "aarch64-linux-gnu",
    "mcpu": "cortex-a53",
    "mattr": ["+neon"],
    "num-cores": 4,
}

ULTRA96 = _like_pynq(
    "ultra96",
    "ultra96",
    "Avnet Ultra96 (Zynq UltraScale+ ZU3EG) with VTA 1x16 at 333 MHz",
    tvm=CORTEX_A53,
    triple="aarch64-linux-gnu.2.28",
    cpu=Cpu(model="Cortex-A53", cores=4, clock_mhz=1200, l1d_bytes=32 * KIB, l2_bytes=1 * MIB, cache_note="L2 shared"),
    memory_bytes=2 * GIB,
    datasheet="Avnet Ultra96 Hardware User's Guide; AMD DS925, ZU3EG speed grade -1; "
    "apache/tvm-vta d4a15f6, config/pkg_config.py",
    facts=AT_333_MHZ,
)

ZCU104 = _like_pynq(
    "zcu104",
    "zcu104",
    "AMD ZCU104 (Zynq UltraScale+ ZU7EV) with VTA 1x16 at 333 MHz",
    tvm=CORTEX_A53,
    triple="aarch64-linux-gnu.2.28",
    cpu=Cpu(model="Cortex-A53", cores=4, clock_mhz=1333, l1d_bytes=32 * KIB, l2_bytes=1 * MIB, cache_note="L2 shared"),
    memory_bytes=2 * GIB,
    datasheet="AMD UG1267, ZCU104; AMD DS925, ZU7EV speed grade -2; apache/tvm-vta d4a15f6, config/pkg_config.py",
    facts=AT_333_MHZ,
)

DE10_NANO = _like_pynq(
    "de10-nano",
    "de10nano",
    "Terasic DE10-Nano (Cyclone V 5CSEBA6) with VTA 1x16 at 100 MHz",
    cpu=Cpu(model="Cortex-A9", cores=2, clock_mhz=800, l1d_bytes=32 * KIB, l2_bytes=512 * KIB, cache_note="L2 shared"),
    memory_bytes=1 * GIB,
    datasheet="Terasic DE10-Nano User Manual; apache/tvm-vta d4a15f6, config/pkg_config.py",
    facts={"clock_mhz": 100, "bus_bytes": 8, "burst_beats": 16},
)

KINDS = (
    Kind(
        name="vta",
        backend="tvmflow.targets.vta.backend",
        boards="FPGA boards with a VTA",
        default_board="pynq-z1",
        facts=Vta,
        needs_device=False,
        scheme="power-of-two",
        on_the_processor=(
            *("multiply", "average_pool", "resample", "table", "softmax", "log_softmax"),
            *("normalise", "matmul", "probabilities", "argmax"),
        ),
        search=OwnSearch(
            module="tvmflow.targets.vta.search",
            records="tvmflow.targets.vta.records",
            arithmetic="int8",
            basis="simulated",
        ),
        disassembly=Disassembly(module="tvmflow.targets.vta.listing", of="VTA"),
    ),
)

BOARDS = (PYNQ_Z1, ULTRA96, ZCU104, DE10_NANO)
