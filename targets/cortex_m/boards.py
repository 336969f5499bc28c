"""Microcontrollers: boards that qemu models in full, and real ones that can hold a network of three million weights.

Memory of the emulated boards is that of qemu's machines (`info mtree`), whose application notes are cited. Figures of
real boards that were not looked up in any of the sources that are cited are named in `Mcu.unverified`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvmflow.spec import Cpu, Target
from tvmflow.targets.about import Kind, Tool, Tracer
from tvmflow.targets.cortex_m.facts import Mcu

KIB, MIB = 1 << 10, 1 << 20

CORES: Mapping[str, tuple[str, str, str]] = {
    "Cortex-M4": ("thumbv7em-none-eabihf", "dsp", "mps2-an386"),
    "Cortex-M7": ("thumbv7em-none-eabihf", "dsp", "mps2-an500"),
    "Cortex-M33": ("thumbv8m.main-none-eabihf", "dsp", "mps2-an505"),
    "Cortex-M55": ("thumbv8.1m.main-none-eabihf", "mve", "mps3-an547"),
}
"""LLVM's triple, what the instructions can, and qemu's machine of each core."""


def _board(
    name: str,
    description: str,
    model: str,
    clock_mhz: int,
    flash_bytes: int,
    ram_bytes: int,
    datasheet: str,
    **mcu: Any,
) -> Target:
    triple, core, machine = CORES[model]
    return Target(
        name=name,
        kind="cortex_m",
        description=description,
        tvm={
            "kind": "llvm",
            "mtriple": triple,
            "mcpu": model.lower(),
            "mfloat-abi": "hard",
            "num-cores": 1,
            "vector-width": 128,  # what TVM takes it to be, without saying so at each build
        },
        triple="thumb-freestanding-eabihf",  # zig's; the core is an option of its own
        elf=(32, "ARM"),
        cpu=Cpu(model=model, cores=1, clock_mhz=clock_mhz, l1d_bytes=0, l2_bytes=0, cache_note="not used by schedules"),
        memory_bytes=ram_bytes,
        datasheet=datasheet,
        arithmetic="int8",
        arithmetics=("int8", "float32"),
        facts=Mcu(core=core, flash_bytes=flash_bytes, ram_bytes=ram_bytes, machine=machine, **mcu),
    )


MPS2_AN386 = _board(
    "mps2-an386",
    "Arm MPS2 with the Cortex-M4 image, emulated by qemu",
    "Cortex-M4",
    25,
    16 * MIB,  # the PSRAM stands for an external flash
    4 * MIB,
    "Arm DAI 0386, Application Note AN386; qemu-system-arm 7.2, machine mps2-an386",
    external_flash=True,
)

MPS2_AN500 = _board(
    "mps2-an500",
    "Arm MPS2 with the Cortex-M7 image, emulated by qemu",
    "Cortex-M7",
    25,
    16 * MIB,  # the PSRAM stands for an external flash
    4 * MIB,
    "Arm DAI 0500, Application Note AN500; qemu-system-arm 7.2, machine mps2-an500",
    external_flash=True,
)

MPS3_AN547 = _board(
    "mps3-an547",
    "Arm MPS3 with the Cortex-M55 image (Corstone-300), emulated by qemu",
    "Cortex-M55",
    32,
    16 * MIB,  # of the DDR4 memory, which stands for an external flash
    512 * KIB,
    "Arm DAI 0547, Application Note AN547; qemu-system-arm 7.2, machine mps3-an547",
    external_flash=True,
)

IMX_RT1062 = _board(
    "imx-rt1062",
    "NXP i.MX RT1062 with the QSPI flash of a Teensy 4.1",
    "Cortex-M7",
    600,
    7936 * KIB,
    512 * KIB,
    "PJRC, specifications of the Teensy 4.1; NXP IMXRT1060CEC, i.MX RT1060 data sheet",
    external_flash=True,
)

IMX_RT1170 = _board(
    "imx-rt1170",
    "NXP i.MX RT1176 with 16 MB of QSPI flash, as on its evaluation kit; the Cortex-M7",
    "Cortex-M7",
    1000,
    16 * MIB,
    1 * MIB,
    "Zephyr, hardware of the MIMXRT1170-EVK; NXP IMXRT1170CEC, i.MX RT1170 data sheet",
    external_flash=True,
    unverified=("ram_bytes",),  # of 2 MB in all, in one piece
)

STM32U5A9 = _board(
    "stm32u5a9",
    "ST STM32U5A9, all inside, as on its discovery kit",
    "Cortex-M33",
    160,
    4 * MIB,
    2496 * KIB,
    "Zephyr, STM32U5A9J-DK (of ST UM2967) and stm32u595.dtsi; ST, STM32U5 series: up to 160 MHz",
)

STM32N6 = _board(
    "stm32n6",
    "ST STM32N657 with 64 MB of octal flash, as on its Nucleo board; the Cortex-M55, without its NPU",
    "Cortex-M55",
    800,
    64 * MIB,
    2 * MIB,  # AXISRAM1 and 2, which the NPU leaves alone; 4.2 MB are contiguous with its own
    "ST UM3417 (NUCLEO-N657X0-Q, MX25UM51245G); Zephyr, stm32n657X0.dtsi; ST DS14791, STM32N657xx data sheet",
    external_flash=True,
    unverified=("clock_mhz",),
)

ALIF_E7 = _board(
    "alif-e7",
    "Alif Ensemble E7, all inside; its fast Cortex-M55, without the Ethos-U55",
    "Cortex-M55",
    400,
    5632 * KIB,
    4 * MIB,
    "Alif Semiconductor, RAM Regions and Linker Files; Zephyr, Ensemble E8 kit (clocks); Ensemble E7 data sheet",
    unverified=("flash_bytes",),
)

STM32H743 = _board(
    "stm32h743",
    "ST STM32H743 with 8 MB of QSPI flash, as on WeAct's MiniSTM32H743: its own 2 MB are too few",
    "Cortex-M7",
    480,
    8 * MIB,
    512 * KIB,
    "Zephyr, WeAct MiniSTM32H743 and stm32h743.dtsi (AXI SRAM); ST DS12110, STM32H743xI data sheet",
    external_flash=True,
    inner_flash_bytes=2 * MIB,
)

EMULATOR = ("qemu-system-arm", "qemu-system-arm")
"""The command, and Debian's package of it."""

KINDS = (
    Kind(
        name="cortex_m",
        backend="tvmflow.targets.cortex_m.backend",
        boards="microcontrollers",
        default_board="mps3-an547",
        facts=Mcu,
        needs_device=False,
        writes_source=True,
        weights_in_flash=True,
        why_not_deployed="is for a microcontroller: link it with a program of yours, as its README says.",
        tracer=Tracer(module="tvmflow.targets.cortex_m.backend", emulators={32: EMULATOR}),
        tools=(
            Tool(
                command=EMULATOR[0],
                packages=EMULATOR[1:],
                purpose="verifying builds for microcontrollers on this computer",
            ),
        ),
    ),
)

BOARDS = (MPS2_AN386, MPS2_AN500, MPS3_AN547, IMX_RT1062, IMX_RT1170, STM32U5A9, STM32N6, ALIF_E7, STM32H743)
