"""Boards with an ARM Cortex-A under Linux or Android.

C libraries: the glibc in a triple is the oldest that the board's common systems have (Raspberry Pi OS 10 has 2.28);
code linked to it runs on newer ones.

`flops_per_cycle`: a Cortex-A53 and an A72 are taken to begin one vector multiply-add of four float32 in a cycle, an A76
two. LLVM's model of the A53 (AArch64SchedA53.td of 2026) has one in two cycles: its datapath is 64 bits wide. As a
figure that is too high leaves a lower bound of time a lower bound, it stays until a board says which is so.
`memory_gbps` is width × rate of the memory that the board has. What no document was at hand for is in `unverified`.
"""

from __future__ import annotations

from dataclasses import replace

from tvmflow.schedules.cpu import RULES
from tvmflow.spec import Cpu, Target
from tvmflow.system.host import COMPUTER
from tvmflow.targets.about import Kind, Tool, Tracer

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

BOTH = ("module", "library")
"""What boards take that TVM's runtime is published for."""

HOST = replace(COMPUTER, schedules=tuple(RULES), deliveries=BOTH)

RASPBERRY_PI_3B = Target(
    name="raspberry-pi-3b",
    kind="arm_cpu",
    description="Raspberry Pi 3 Model B, 64-bit system",
    tvm={
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": "cortex-a53",
        "mattr": ["+neon"],
        "num-cores": 4,
    },
    triple="aarch64-linux-gnu.2.28",
    elf=(64, "AArch64"),
    cpu=Cpu(
        model="Cortex-A53",
        cores=4,
        clock_mhz=1200,
        l1d_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        cache_note="L2 shared",
        flops_per_cycle=8,
        memory_gbps=3.6,  # 32 bits of LPDDR2-900
        unverified=("flops_per_cycle", "memory_gbps"),  # the rate is in the Official Beginner's Guide, the width is not
    ),
    memory_bytes=1 * GIB,
    datasheet="Raspberry Pi 3 Model B product brief (BCM2837); Arm DDI 0500, Cortex-A53 TRM",
    schedules=tuple(RULES),
    identity="Raspberry Pi 3 Model B",
    arithmetics=("float32", "int8"),
    deliveries=BOTH,
)

RASPBERRY_PI_3B_32BIT = replace(
    RASPBERRY_PI_3B,
    name="raspberry-pi-3b-32bit",
    description="Raspberry Pi 3 Model B, 32-bit system (ARMv7, hard float)",
    tvm={
        "kind": "llvm",
        "mtriple": "armv7l-linux-gnueabihf",
        "mcpu": "cortex-a53",
        "mattr": ["+neon", "+vfp4"],
        "mfloat-abi": "hard",  # without it the linker refuses the object
        "num-cores": 4,
    },
    triple="arm-linux-gnueabihf.2.28",
    elf=(32, "ARM"),
    deliveries=BOTH[::-1],
)

RASPBERRY_PI_4B = Target(
    name="raspberry-pi-4b",
    kind="arm_cpu",
    description="Raspberry Pi 4 Model B, 64-bit system",
    tvm={
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": "cortex-a72",
        "mattr": ["+neon"],
        "num-cores": 4,
    },
    triple="aarch64-linux-gnu.2.28",
    elf=(64, "AArch64"),
    cpu=Cpu(
        model="Cortex-A72",
        cores=4,
        clock_mhz=1500,
        l1d_bytes=32 * KIB,
        l2_bytes=1 * MIB,
        cache_note="L2 shared",
        flops_per_cycle=8,
        memory_gbps=12.8,  # 32 bits of LPDDR4-3200
        unverified=("flops_per_cycle", "memory_gbps"),  # the rate is in the Official Beginner's Guide, the width is not
    ),
    memory_bytes=4 * GIB,
    datasheet="Raspberry Pi 4 Model B datasheet, release 1 (BCM2711); Arm 100095, Cortex-A72 TRM",
    schedules=tuple(RULES),
    identity="Raspberry Pi 4 Model B",
    arithmetics=("float32", "int8"),
    deliveries=BOTH,
)

RASPBERRY_PI_5 = Target(
    name="raspberry-pi-5",
    kind="arm_cpu",
    description="Raspberry Pi 5",
    tvm={
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": "cortex-a76",
        "mattr": ["+neon"],
        "num-cores": 4,
    },
    triple="aarch64-linux-gnu.2.28",
    elf=(64, "AArch64"),
    cpu=Cpu(
        model="Cortex-A76",
        cores=4,
        clock_mhz=2400,
        l1d_bytes=64 * KIB,
        l2_bytes=512 * KIB,
        l3_bytes=2 * MIB,
        cache_note="L2 per core, L3 shared",
        flops_per_cycle=16,
        memory_gbps=17.1,  # 32 bits of LPDDR4X at 4267 MT/s, by Upton, Introducing: Raspberry Pi 5! (2023)
        unverified=("flops_per_cycle",),
    ),
    memory_bytes=8 * GIB,
    datasheet="Raspberry Pi 5 product brief (BCM2712); Arm 100798, Cortex-A76 TRM",
    schedules=tuple(RULES),
    identity="Raspberry Pi 5",
    arithmetics=("float32", "float16", "int8"),
    deliveries=BOTH,
)

ANDROID_ARM64 = replace(
    RASPBERRY_PI_5,
    name="android-arm64",
    description="Android phone with 64-bit Arm cores of the Cortex-A76 generation or newer (2019 on)",
    # Code for the shared v8.2-A baseline of these phones, scheduled for their big cores; TVM keys on the CPU alone.
    tvm={
        "kind": "llvm",
        "mtriple": "aarch64-linux-android",
        "mcpu": "cortex-a76",
        "mattr": ["+neon"],
        "num-cores": 2,
    },
    # Linked without any C library: bionic is found by the symbols' names when an app loads the module.
    triple="aarch64-linux-android",
    cpu=Cpu(
        model="Cortex-A76",
        cores=2,
        clock_mhz=2840,
        l1d_bytes=64 * KIB,
        l2_bytes=512 * KIB,
        l3_bytes=2 * MIB,
        cache_note="big cores only; clock and L3 of the Snapdragon 855",
        flops_per_cycle=16,
        memory_gbps=34.1,  # 64 bits of LPDDR4X-4266
        unverified=("flops_per_cycle", "memory_gbps"),
    ),
    memory_bytes=6 * GIB,
    identity="",
    deliveries=BOTH[::-1],
    datasheet="Arm 100798, Cortex-A76 TRM; Qualcomm Snapdragon 855 product brief",
)

ANDROID_ARM32 = replace(
    ANDROID_ARM64,
    name="android-arm32",
    description="Android phone with 32-bit Arm cores, or a 32-bit app on a 64-bit one (armeabi-v7a with NEON)",
    # Floats are passed in integer registers there, and computed in NEON's.
    tvm={
        "kind": "llvm",
        "mtriple": "armv7a-linux-androideabi",
        "mcpu": "cortex-a53",
        "mattr": ["+neon", "+vfp4"],
        "mfloat-abi": "soft",
        "num-cores": 4,
    },
    triple="armv7-linux-androideabi",
    elf=(32, "ARM"),
    cpu=Cpu(
        model="Cortex-A53",
        cores=4,
        clock_mhz=1400,
        l1d_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        cache_note="L2 shared; clock of the Snapdragon 425",
        flops_per_cycle=8,
        memory_gbps=5.3,  # 32 bits of LPDDR3-1333
        unverified=("clock_mhz", "flops_per_cycle", "memory_gbps"),
    ),
    memory_bytes=2 * GIB,
    datasheet="Arm DDI 0500, Cortex-A53 TRM",
    arithmetics=("float32", "int8"),
    delivery="library",
    deliveries=("library",),
)

MUSL_ARM64 = replace(
    RASPBERRY_PI_4B,
    name="musl-arm64",
    description="64-bit Arm board whose Linux has musl as its C library, or none but what a program brings along",
    triple="aarch64-linux-musl",
    identity="",
    delivery="library",
    deliveries=("library",),
)

MUSL_ARM32 = replace(
    RASPBERRY_PI_3B_32BIT,
    name="musl-arm32",
    description="32-bit Arm board (ARMv7, hard float) whose Linux has musl as its C library",
    triple="arm-linux-musleabihf",
    identity="",
    delivery="library",
    deliveries=("library",),
)

MUSL_X64 = Target(
    name="musl-x64",
    kind="llvm",
    description="64-bit x86 computer with AVX2 (2013 on) whose Linux has musl as its C library",
    tvm={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "num-cores": 4},
    triple="x86_64-linux-musl",
    elf=(64, "x64"),
    cpu=Cpu(
        model="x86-64-v3",
        cores=4,
        clock_mhz=2000,
        l1d_bytes=32 * KIB,
        l2_bytes=256 * KIB,
        l3_bytes=8 * MIB,
        cache_note="of a Haswell processor, the first with these instructions",
        unverified=("clock_mhz", "l3_bytes"),
    ),
    memory_bytes=4 * GIB,
    datasheet="System V ABI, AMD64 supplement: microarchitecture level v3",
    schedules=tuple(RULES),
    arithmetics=("float32", "int8"),
    delivery="library",
    deliveries=("library",),
)

QNX_ARM64 = replace(
    RASPBERRY_PI_4B,
    name="qnx-arm64",
    description="In-vehicle computer with 64-bit Arm cores under QNX: objects that its own compiler links",
    triple="aarch64-unknown-qnx",
    identity="",
    delivery="library",
    deliveries=("library",),
)

BARE_ARM64 = replace(
    QNX_ARM64,
    name="bare-arm64",
    description="64-bit Arm cores without an operating system: objects that need memcpy and memset alone",
    triple="aarch64-none-elf",
)

BACKEND = "tvmflow.targets.cpu.backend"

KINDS = (
    Kind(name="llvm", backend=BACKEND, boards="computers like this one", default_board="host"),
    Kind(
        name="arm_cpu",
        backend=BACKEND,
        boards="ARM boards",
        default_board="raspberry-pi-4b",
        tracer=Tracer(module="tvmflow.measure.emulate", emulators={64: ("qemu-aarch64", "qemu-user")}, follows=True),
        tools=(
            Tool(
                command="qemu-aarch64",
                packages=("qemu-user",),
                purpose="modelling cycles of ARM boards",
                name="qemu-aarch64 with plugins",  # the static one has none
            ),
        ),
    ),
)

BOARDS = (
    HOST,
    RASPBERRY_PI_3B,
    RASPBERRY_PI_3B_32BIT,
    RASPBERRY_PI_4B,
    RASPBERRY_PI_5,
    ANDROID_ARM64,
    ANDROID_ARM32,
    MUSL_ARM64,
    MUSL_ARM32,
    MUSL_X64,
    QNX_ARM64,
    BARE_ARM64,
)
