"""Microcontrollers: boards that qemu models in full, and real ones, of which most can hold three million weights.

Memory of the emulated boards is that of qemu's machines (`info mtree`), whose application notes are cited; they have no
map of their own. Figures of real boards that were not looked up in any of the sources that are cited are named in
`Mcu.unverified`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvmflow.spec import Cpu, Target
from tvmflow.targets.about import Kind, Tool, Tracer
from tvmflow.targets.cortex_m.facts import Mcu

KIB, MIB = 1 << 10, 1 << 20

CORES: Mapping[str, tuple[str, str, str]] = {
    "Cortex-M0+": ("thumbv6m-unknown-none-eabi", "plain", "microbit"),
    "Cortex-M4": ("thumbv7em-none-eabihf", "dsp", "mps2-an386"),
    "Cortex-M7": ("thumbv7em-none-eabihf", "dsp", "mps2-an500"),
    "Cortex-M33": ("thumbv8m.main-none-eabihf", "dsp", "mps2-an505"),
    "Cortex-M55": ("thumbv8.1m.main-none-eabihf", "mve", "mps3-an547"),
}
"""LLVM's triple, what the instructions can, and qemu's machine of each core.

qemu has no Cortex-M0+. Its microbit has a Cortex-M0, which executes the same instructions, all of Armv6-M, and like it
stops at an access that isn't aligned; a Cortex-M3 would go on. Its triple is written in full: by the short form LLVM's
library doesn't know Arm's names of the functions that such a core lacks instructions for, which are all that zig has.
"""


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
    floating = "hard" if triple.endswith("hf") else "soft"
    return Target(
        name=name,
        kind="cortex_m",
        description=description,
        tvm={
            "kind": "llvm",
            "mtriple": triple,
            "mcpu": model.lower().replace("+", "plus"),
            "mfloat-abi": floating,
            "num-cores": 1,
            "vector-width": 128,  # what TVM takes it to be, without saying so at each build
        },
        triple=f"thumb-freestanding-{triple.rsplit('-', 1)[1]}",  # zig's; the core is an option of its own
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
    flash_origin=0x6000_0000,
    ram_origin=0x2020_0000,  # OCRAM2; the other 512 KiB are shared out between the coupled memories
    boot_bytes=8 * KIB,  # how the flash is to be read, and where the program begins
    unverified=("flash_origin", "ram_origin", "boot_bytes"),
)

IMX_RT1170 = _board(
    "imx-rt1170",
    "NXP i.MX RT1176 with 16 MB of QSPI flash, as on its evaluation kit; the Cortex-M7",
    "Cortex-M7",
    1000,
    16 * MIB,
    1 * MIB,
    "Zephyr, hardware of the MIMXRT1170-EVK; NXP, MCUXpresso SDK, fsl_mecc.c (OCRAM1 and 2); "
    "NXP IMXRT1170CEC, i.MX RT1170 data sheet",
    external_flash=True,
    unverified=("flash_origin", "boot_bytes"),
    flash_origin=0x3000_0000,
    ram_origin=0x2024_0000,  # OCRAM1 and 2 follow each other
    boot_bytes=8 * KIB,
)

STM32U5A9 = _board(
    "stm32u5a9",
    "ST STM32U5A9, all inside, as on its discovery kit",
    "Cortex-M33",
    160,
    4 * MIB,
    2496 * KIB,
    "Zephyr, STM32U5A9J-DK (of ST UM2967) and stm32u595.dtsi; ST, STM32U5 series: up to 160 MHz",
    flash_origin=0x0800_0000,
    ram_origin=0x2000_0000,
    other_memory={"SRAM4": [0x2800_0000, 16 * KIB]},
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
    unverified=("clock_mhz", "flash_origin"),
    flash_origin=0x7000_0000,
    ram_origin=0x3400_0000,
)

ALIF_E7 = _board(
    "alif-e7",
    "Alif Ensemble E7, all inside; its fast Cortex-M55, without the Ethos-U55",
    "Cortex-M55",
    400,
    5632 * KIB,
    4 * MIB,
    "Alif Semiconductor, RAM Regions and Linker Files; Zephyr, Ensemble E8 kit (clocks, coupled memories); "
    "Ensemble E7 data sheet",
    unverified=("flash_bytes", "flash_origin", "ram_origin"),
    flash_origin=0x8000_0000,
    ram_origin=0x0200_0000,
    other_memory={"ITCM": [0x0, 256 * KIB], "DTCM": [0x2000_0000, 1 * MIB]},
)

STM32H743 = _board(
    "stm32h743",
    "ST STM32H743 with 8 MB of QSPI flash, as on WeAct's MiniSTM32H743: its own 2 MB are too few",
    "Cortex-M7",
    480,
    8 * MIB,
    512 * KIB,
    "Zephyr, WeAct MiniSTM32H743 and stm32h743.dtsi (RAM); ST RM0433 (flash at its addresses), DS12110, data sheet",
    external_flash=True,
    inner_flash_bytes=2 * MIB,
    flash_origin=0x9000_0000,
    inner_flash_origin=0x0800_0000,
    ram_origin=0x2400_0000,
    other_memory={
        "ITCM": [0x0, 64 * KIB],
        "DTCM": [0x2000_0000, 128 * KIB],
        "SRAM1": [0x3000_0000, 128 * KIB],
        "SRAM2": [0x3002_0000, 128 * KIB],
        "SRAM3": [0x3004_0000, 32 * KIB],
        "SRAM4": [0x3800_0000, 64 * KIB],
    },
    unverified=("flash_origin", "inner_flash_origin"),
)

RP2040 = _board(
    "rp2040",
    "Raspberry Pi RP2040 with 2 MB of QSPI flash, as on a Pico; one of its two Cortex-M0+",
    "Cortex-M0+",
    133,
    2 * MIB,
    264 * KIB,  # six banks, one after the other
    "Raspberry Pi, RP2040 data sheet, 2.6 (memory); Raspberry Pi Pico data sheet (flash); MicroPython, RP2xxx (clock)",
    external_flash=True,
    flash_origin=0x1000_0000,
    ram_origin=0x2000_0000,
    boot_bytes=256,  # the second stage of its boot loader
    unverified=("flash_bytes",),
)

RP2350 = _board(
    "rp2350",
    "Raspberry Pi RP2350 with 4 MB of QSPI flash, as on a Pico 2; one of its two Cortex-M33",
    "Cortex-M33",
    150,
    4 * MIB,
    520 * KIB,  # ten banks, one after the other
    "Zephyr, Raspberry Pi Pico 2 and rp2350.dtsi; Raspberry Pi, RP2350 data sheet",
    external_flash=True,
    flash_origin=0x1000_0000,
    ram_origin=0x2000_0000,
    unverified=("flash_origin", "ram_origin"),
)

STM32L4R5 = _board(
    "stm32l4r5",
    "ST STM32L4R5, all inside, as on the NUCLEO-L4R5ZI, the reference board of MLPerf Tiny",
    "Cortex-M4",
    120,
    2 * MIB,
    640 * KIB,
    "RIOT, STM32 Nucleo-L4R5ZI (of ST UM2179); Zephyr, stm32l4r5.dtsi; ST DS12023, STM32L4R5xx data sheet",
    flash_origin=0x0800_0000,
    ram_origin=0x2000_0000,  # SRAM1, SRAM2, which is also at 0x1000_0000, and SRAM3
)

NRF5340 = _board(
    "nrf5340",
    "Nordic nRF5340, all inside, as on its development kit; the application core",
    "Cortex-M33",
    128,
    1 * MIB,
    512 * KIB,
    "Zephyr, nRF5340 DK and nrf5340_cpuapp_qkaa.dtsi; Nordic, nRF5340 product specification",
    flash_origin=0x0,
    ram_origin=0x2000_0000,
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

BOARDS = (
    MPS2_AN386,
    MPS2_AN500,
    MPS3_AN547,
    IMX_RT1062,
    IMX_RT1170,
    STM32U5A9,
    STM32N6,
    ALIF_E7,
    STM32H743,
    RP2040,
    RP2350,
    STM32L4R5,
    NRF5340,
)
