"""Boards with an NVIDIA GPU: Jetsons, and cards in a computer of their own.

Limits of an SM are those of the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming
Guide; blocks of an SM, and how registers and shared memory are handed out, also stand in cuda_occupancy.h of CUDA 12.9.
What no data sheet says, L2 above all, is as NVIDIA's deviceQuery prints it, in transcripts from several owners' boards
(read 2026-11-27); `datasheet` says where that is so.
"""

from __future__ import annotations

from typing import Any

from tvmflow.schedules.cuda import RULES
from tvmflow.schedules.gpu import Gpu
from tvmflow.spec import Cpu, Target
from tvmflow.targets.about import Kind, Wheels
from tvmflow.targets.cuda.nvrtc import PACKAGES

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_SOURCE = "TVM has to be built from source"
_DRIVER = (
    "NVIDIA promises only that a driver takes the code of its own CUDA version and of older ones, and this was "
    "compiled by 12.9: nobody has tried it."
)
JETPACK_4 = (
    "TVM's published runtime needs CUDA 13, and the last that this board gets is 10.2 (JetPack 4.6). "
    f"{_SOURCE} against that, on the board. {_DRIVER}"
)
JETPACK_5 = (
    "TVM's published runtime needs CUDA 13, which no longer knows Volta; this board has 11.4 (JetPack 5). "
    f"{_SOURCE} against that, on the board. {_DRIVER}"
)
ORIN = (
    "TVM's published runtime needs CUDA 13, which a Jetson Orin may not have: JetPack 6 has 12.6. "
    f"{_SOURCE} against the board's own CUDA there."
)
PASCAL = (
    "TVM's published runtime needs CUDA 13, which no longer knows Pascal. "
    f"{_SOURCE} against CUDA 12.9 or older, on the computer with this card."
)
"""What `Gpu.runtime_note` says, of boards and of cards."""

SM: dict[str, dict[str, Any]] = {
    "sm_53": {"lanes_per_sm": 128, "shared_bytes_per_sm": 64 * KIB, "shared_bytes_per_block": 48 * KIB}
    | {"threads_per_sm": 2048, "blocks_per_sm": 32, "registers_per_block": 32768},
    "sm_61": {"lanes_per_sm": 128, "shared_bytes_per_sm": 96 * KIB, "shared_bytes_per_block": 48 * KIB}
    | {"threads_per_sm": 2048, "blocks_per_sm": 32},
    "sm_62": {"lanes_per_sm": 128, "shared_bytes_per_sm": 64 * KIB, "shared_bytes_per_block": 48 * KIB}
    | {"threads_per_sm": 2048, "blocks_per_sm": 32, "registers_per_block": 32768},
    "sm_72": {"lanes_per_sm": 64, "shared_bytes_per_sm": 96 * KIB, "shared_bytes_per_block": 96 * KIB}
    | {"threads_per_sm": 2048, "blocks_per_sm": 32},
    "sm_75": {"lanes_per_sm": 64, "shared_bytes_per_sm": 64 * KIB, "shared_bytes_per_block": 64 * KIB}
    | {"threads_per_sm": 1024, "blocks_per_sm": 16},
    "sm_86": {"lanes_per_sm": 128, "shared_bytes_per_sm": 100 * KIB, "shared_bytes_per_block": 99 * KIB}
    | {"threads_per_sm": 1536, "blocks_per_sm": 16},
    "sm_87": {"lanes_per_sm": 128, "shared_bytes_per_sm": 164 * KIB, "shared_bytes_per_block": 163 * KIB}
    | {"threads_per_sm": 1536, "blocks_per_sm": 16},
    "sm_89": {"lanes_per_sm": 128, "shared_bytes_per_sm": 100 * KIB, "shared_bytes_per_block": 99 * KIB}
    | {"threads_per_sm": 1536, "blocks_per_sm": 24},
    "sm_90": {"lanes_per_sm": 128, "shared_bytes_per_sm": 228 * KIB, "shared_bytes_per_block": 227 * KIB}
    | {"threads_per_sm": 2048, "blocks_per_sm": 32},
}
"""What every GPU of an architecture has in an SM. Of sm_62, older editions of the table allow 4096 threads; deviceQuery
of a Jetson TX2 prints 2048."""

X86_64 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"}


def _board(name: str, description: str, architecture: str, *, cpu: Cpu, host: dict[str, Any], **fields: Any) -> Target:
    """A board; `fields` are of Gpu but for memory and datasheet."""
    target = {key: fields.pop(key) for key in ("memory_bytes", "datasheet")}
    gpu = Gpu(architecture=architecture, **SM[architecture], **fields)
    aarch64 = host["mtriple"].startswith("aarch64")
    return Target(
        name=name,
        kind="cuda",
        description=description,
        tvm={
            "kind": "cuda",
            "arch": architecture,
            "max_num_threads": gpu.threads_per_block,
            "max_threads_per_block": gpu.threads_per_block,
            # a kernel's static shared memory is 48 KiB at most on every architecture
            "max_shared_memory_per_block": 48 * KIB,
            "registers_per_block": gpu.registers_per_block,
            "thread_warp_size": 32,
            "host": host,
        },
        triple="aarch64-linux-gnu.2.27" if aarch64 else "x86_64-linux-gnu.2.28",
        elf=(64, "AArch64" if aarch64 else "x64"),
        cpu=cpu,
        facts=gpu,
        schedules=tuple(RULES),
        # of float16, Pascal's cards do a sixty-fourth of what they do of float32
        arithmetics=("float32", "int8") if architecture == "sm_61" else ("float32", "float16", "int8"),
        **target,
    )


def _jetson(name: str, description: str, architecture: str, core: str, cpu: Cpu, **fields: Any) -> Target:
    host = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": core, "num-cores": cpu.cores}
    return _board(name, description, architecture, cpu=cpu, host=host, **fields)


def _card(name: str, description: str, architecture: str, **fields: Any) -> Target:
    cpu = Cpu(model="any x86-64", cores=1, clock_mhz=0, l1d_bytes=0, l2_bytes=0)
    return _board(name, description, architecture, cpu=cpu, host=dict(X86_64), **fields)


JETSON_NANO = _jetson(
    "jetson-nano",
    "NVIDIA Jetson Nano",
    "sm_53",
    "cortex-a57",
    Cpu(model="Cortex-A57", cores=4, clock_mhz=1430, l1d_bytes=32 * KIB, l2_bytes=2 * MIB, cache_note="L2 shared"),
    model="Tegra X1 (Maxwell)",
    sms=1,
    clock_mhz=921,
    dram_gbps=25.6,
    l2_bytes=256 * KIB,
    memory_bytes=4 * GIB,
    datasheet="NVIDIA Jetson Nano System-on-Module data sheet, DA-09366; L2 from deviceQuery",
    runtime_note=JETPACK_4,
)

JETSON_TX2 = _jetson(
    "jetson-tx2",
    "NVIDIA Jetson TX2",
    "sm_62",
    "cortex-a57",
    Cpu(model="Cortex-A57 and Denver 2", cores=6, clock_mhz=2000, l1d_bytes=32 * KIB, l2_bytes=2 * MIB),
    model="Tegra X2 (Pascal)",
    sms=2,
    clock_mhz=1300,
    dram_gbps=59.7,
    l2_bytes=512 * KIB,
    memory_bytes=8 * GIB,
    datasheet="NVIDIA Jetson TX2 Series System-on-Module data sheet, DS-08200; L2, threads of an SM from deviceQuery",
    runtime_note=JETPACK_4,
)

JETSON_XAVIER_NX = _jetson(
    "jetson-xavier-nx",
    "NVIDIA Jetson Xavier NX",
    "sm_72",
    "carmel",
    Cpu(model="Carmel", cores=6, clock_mhz=1900, l1d_bytes=64 * KIB, l2_bytes=2 * MIB, l3_bytes=4 * MIB),
    model="Xavier (Volta)",
    sms=6,
    clock_mhz=1100,
    dram_gbps=59.7,
    l2_bytes=512 * KIB,
    memory_bytes=8 * GIB,
    datasheet="NVIDIA Jetson Xavier NX System-on-Module data sheet, DS-10184; L2 from deviceQuery; bandwidth from "
    "NVIDIA's table of Jetson modules (1600 MHz, as in the first data sheets, would make 51.2 GB/s)",
    runtime_note=JETPACK_5,
)

JETSON_ORIN_NANO = _jetson(
    "jetson-orin-nano",
    "NVIDIA Jetson Orin Nano 8GB, in its first 15 W mode",
    "sm_87",
    "cortex-a78ae",
    Cpu(model="Cortex-A78AE", cores=6, clock_mhz=1500, l1d_bytes=64 * KIB, l2_bytes=256 * KIB, l3_bytes=4 * MIB),
    model="Orin (Ampere)",
    sms=8,
    clock_mhz=625,
    dram_gbps=68.0,
    l2_bytes=2 * MIB,
    memory_bytes=8 * GIB,
    datasheet="NVIDIA Jetson Orin Nano Series data sheet, DS-11105 (before the Super mode: 1020 MHz, 102 GB/s); "
    "L2 from deviceQuery",
    runtime_note=ORIN,
)

JETSON_AGX_ORIN = _jetson(
    "jetson-agx-orin",
    "NVIDIA Jetson AGX Orin 64GB",
    "sm_87",
    "cortex-a78ae",
    Cpu(model="Cortex-A78AE", cores=12, clock_mhz=2200, l1d_bytes=64 * KIB, l2_bytes=256 * KIB, l3_bytes=6 * MIB),
    model="Orin (Ampere)",
    sms=16,
    clock_mhz=1300,
    dram_gbps=204.8,
    l2_bytes=4 * MIB,
    memory_bytes=64 * GIB,
    datasheet="NVIDIA Jetson AGX Orin Series data sheet, DS-10662, and its Technical Brief",
    runtime_note=ORIN,
)

GTX_1080TI = _card(
    "gtx-1080ti",
    "NVIDIA GeForce GTX 1080 Ti",
    "sm_61",
    model="GP102 (Pascal)",
    sms=28,
    clock_mhz=1582,
    dram_gbps=484.0,
    l2_bytes=2816 * KIB,
    memory_bytes=11 * GIB,
    datasheet="NVIDIA's page on the GeForce GTX 1080 Ti; L2 from deviceQuery",
    runtime_note=PASCAL,
)

T4 = _card(
    "t4",
    "NVIDIA T4",
    "sm_75",
    model="TU104 (Turing)",
    sms=40,
    clock_mhz=1590,
    dram_gbps=320.0,
    l2_bytes=4 * MIB,
    memory_bytes=16 * GIB,
    datasheet="NVIDIA T4 Tensor Core GPU data sheet; Turing architecture whitepaper",
)

RTX_3090 = _card(
    "rtx-3090",
    "NVIDIA GeForce RTX 3090",
    "sm_86",
    model="GA102 (Ampere)",
    sms=82,
    clock_mhz=1695,
    dram_gbps=936.0,
    l2_bytes=6 * MIB,
    memory_bytes=24 * GIB,
    datasheet="NVIDIA Ampere GA102 GPU architecture whitepaper",
)

RTX_4090 = _card(
    "rtx-4090",
    "NVIDIA GeForce RTX 4090",
    "sm_89",
    model="AD102 (Ada)",
    sms=128,
    clock_mhz=2520,
    dram_gbps=1008.0,
    l2_bytes=72 * MIB,
    memory_bytes=24 * GIB,
    datasheet="NVIDIA Ada GPU architecture whitepaper",
)

H100 = _card(
    "h100",
    "NVIDIA H100 SXM",
    "sm_90",
    model="GH100 (Hopper)",
    sms=132,
    clock_mhz=1980,
    dram_gbps=3350.0,
    l2_bytes=50 * MIB,
    memory_bytes=80 * GIB,
    datasheet="NVIDIA H100 Tensor Core GPU data sheet and architecture whitepaper; clock from deviceQuery",
)

KINDS = (
    Kind(
        name="cuda",
        backend="tvmflow.targets.cuda.backend",
        boards="boards with an NVIDIA GPU",
        default_board="jetson-agx-orin",
        facts=Gpu,
        candidates="tvmflow.targets.cuda.candidates",
        wheels=(
            Wheels(
                name="NVIDIA's compiler",
                packages=tuple(PACKAGES.values()),
                extra="cuda",
                purpose="building for NVIDIA GPUs, with or without one",
            ),
        ),
    ),
)

BOARDS = (
    JETSON_NANO,
    JETSON_TX2,
    JETSON_XAVIER_NX,
    JETSON_ORIN_NANO,
    JETSON_AGX_ORIN,
    GTX_1080TI,
    T4,
    RTX_3090,
    RTX_4090,
    H100,
)
