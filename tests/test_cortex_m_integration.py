"""Bundles of microcontrollers as CMake's, Zephyr's and Arduino's projects take them, and networks with a context."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_commands
from elftools.elf.elffile import ELFFile
from integer_networks import POOL, conv, dense, depthwise, random_network

from tvmflow.bundles.build import build
from tvmflow.bundles.bundle import open_bundle
from tvmflow.integer.frontend import integer_program
from tvmflow.targets import TARGETS
from tvmflow.targets.cortex_m import machine
from tvmflow.targets.cortex_m.machine import HERE

pytestmark = pytest.mark.packages

M0, M7 = TARGETS["rp2040"], TARGETS["mps2-an500"]
GCC, GXX = "arm-none-eabi-gcc", "arm-none-eabi-g++"
CORE = ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
BARE = ("-O2", "-ffreestanding", "-Wall", "-Wextra", "-Werror", f"-I{HERE}")


@pytest.fixture(scope="session", autouse=True)
def commands():
    needs_commands(machine.QEMU, GCC, GXX, "cmake")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    shapes = (conv(4), depthwise(), depthwise(stride=2), conv(9), POOL, dense(3))
    network = random_network(np.random.default_rng(7), "per-channel", shapes=shapes, input_shape=(1, 3, 9, 9))
    out = tmp_path_factory.mktemp("integration") / "bundle"
    build(integer_program(network), M7, out, source=True)
    return out


def checked(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def runs(firmware: Path, folder: Path) -> None:
    done = machine.start(machine.find_qemu(), M7.facts.machine, firmware, folder, (), 120)
    assert done.returncode == 0, done.stdout + done.stderr


def golden(bundle: Path) -> str:
    """A main() that compares the first golden vector with what `RUN` of it gives."""
    with open_bundle(bundle) as opened:
        vector = opened.vectors()[0]
        (given,), (wanted,) = vector.inputs, vector.outputs
    arrays = {"golden_input": given, "golden_output": wanted}
    lines = [
        f"static const int8_t {name}[] = {{{', '.join(map(str, array.ravel()))}}};" for name, array in arrays.items()
    ]
    return "\n".join(lines) + "\n"


COMPARE = """
  for (int place = 0; place < RANDOM_OUTPUT_SIZE; place++)
    if (output[place] != golden_output[place]) return 1;
"""


# ---------------------------------------------------------------------------------------------------------- Zephyr

ZEPHYR = """cmake_minimum_required(VERSION 3.20)
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_C_COMPILER arm-none-eabi-gcc)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
project(application C)

# What Zephyr's build offers to modules: one interface for all, and libraries that get all of it.
add_library(zephyr_interface INTERFACE)
function(zephyr_include_directories)
  target_include_directories(zephyr_interface INTERFACE ${ARGV})
endfunction()
function(zephyr_link_libraries)
  target_link_libraries(zephyr_interface INTERFACE ${ARGV})
endfunction()
macro(zephyr_library_named name)
  set(ZEPHYR_CURRENT_LIBRARY ${name})
  add_library(${name} STATIC)
  target_link_libraries(${name} PRIVATE zephyr_interface)
  set_property(GLOBAL APPEND PROPERTY ZEPHYR_LIBS ${name})
endmacro()
function(zephyr_library_sources)
  target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGV})
endfunction()

add_compile_options(-mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -O2 -ffreestanding)
add_subdirectory(${MODULE}/${MODULE_CMAKE} module)
get_property(libraries GLOBAL PROPERTY ZEPHYR_LIBS)

add_executable(application main.c ${STARTUP}/startup.c)
target_include_directories(application PRIVATE ${STARTUP})
target_link_options(application PRIVATE -mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -nostdlib
                    -T${MODULE}/example/link.ld -Wl,--gc-sections)
target_link_libraries(application PRIVATE zephyr_interface ${libraries} gcc)
"""


def module_of(bundle: Path) -> dict[str, str]:
    """What zephyr/module.yml says of the build."""
    lines = (bundle / "zephyr" / "module.yml").read_text().splitlines()
    assert lines[1] == "build:"
    return dict(line.strip().split(": ") for line in lines if ": " in line)


def test_the_module_of_zephyr_names_what_is_there(bundle):
    module = module_of(bundle)
    assert module["name"] == "tvmflow_random"
    assert (bundle / module["cmake"] / "CMakeLists.txt").is_file()
    assert (bundle / module["kconfig"]).read_text().startswith('config TVMFLOW_RANDOM\n\tbool "random')


@pytest.mark.parametrize("options", [["-DCONFIG_TVMFLOW_RANDOM_FROM_SOURCE=y"], []])
def test_zephyrs_build_takes_the_module(bundle, tmp_path, options):
    (tmp_path / "CMakeLists.txt").write_text(ZEPHYR)
    (tmp_path / "main.c").write_text(
        f'#include "random.h"\n{golden(bundle)}int main(void) {{\n'
        f"  static int8_t output[RANDOM_OUTPUT_SIZE];\n  random_run(golden_input, output);{COMPARE}  return 0;\n}}\n"
    )
    given = [f"-DMODULE={bundle}", f"-DMODULE_CMAKE={module_of(bundle)['cmake']}", f"-DSTARTUP={HERE}"]
    checked("cmake", *given, "-DCONFIG_TVMFLOW_RANDOM=y", *options, "-B", "made", folder=tmp_path)
    checked("cmake", "--build", "made", folder=tmp_path)
    runs(tmp_path / "made" / "application", tmp_path)


# --------------------------------------------------------------------------------------------------------- Arduino

ARDUINO = """struct { void begin(long) {} void print(const char *) {} void println(unsigned long) {} } static Serial;
static unsigned long micros() { return 0; }
static void delay(int) {}
#include "sketch.ino"

%s
int main() {
  setup();
  for (int place = 0; place < RANDOM_INPUT_SIZE; place++) input[place] = golden_input[place];
  loop();%s  return 0;
}
"""


def properties_of(library: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (library / "library.properties").read_text().splitlines())


@pytest.mark.parametrize("processor", ["cortex-m7", "cortex-m3"])
def test_arduinos_build_takes_the_library(bundle, tmp_path, processor):
    """As its builder does: what lies in src by the processor's name is linked, or else what can be compiled is."""
    found = properties_of(bundle)
    assert found["precompiled"] == "full"
    assert found["includes"] == "random.h"
    for sketch in (bundle / "examples").rglob("*.ino"):
        shutil.copyfile(sketch, tmp_path / "sketch.ino")
    (tmp_path / "sketch.cpp").write_text(ARDUINO % (golden(bundle), COMPARE))
    src = bundle / "src"
    cpp = (*BARE, "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", f"-I{src}")
    checked(GXX, *CORE, *cpp, "-c", "sketch.cpp", "-o", "sketch.o", folder=tmp_path)
    checked(GCC, *CORE, *BARE, "-c", HERE / "startup.c", "-o", "startup.o", folder=tmp_path)
    linked: list[str] = []
    if (src / processor).is_dir():
        linked = [f"-L{src / processor}", *found["ldflags"].split(), "-lrandom"]  # some versions name it again
    else:
        for part in src.glob("*.c"):
            checked(GCC, *CORE, *BARE, "-Wno-unused", f"-I{src}", "-c", part, "-o", f"{part.stem}.o", folder=tmp_path)
            linked.append(f"{part.stem}.o")
    script = f"-T{bundle / 'example' / 'link.ld'}"
    link = ("-nostdlib", "-Wl,--gc-sections", script, "sketch.o", "startup.o", *linked, "-lgcc", "-o", "sketch.elf")
    checked(GXX, *CORE, *link, folder=tmp_path)
    runs(tmp_path / "sketch.elf", tmp_path)


def test_other_processors_are_told_to_take_the_source(tmp_path, bundle):
    """Where a bundle has none, a sketch for a processor that can't execute its object isn't compiled."""
    network = random_network(
        np.random.default_rng(7), "per-channel", shapes=(conv(2, relu=False),), input_shape=(1, 1, 2, 2)
    )
    build(integer_program(network), M7, tmp_path / "bundle", verify=False)
    (tmp_path / "sketch.cpp").write_text("#include <random.h>\nint main() { return 0; }\n")
    include = ("-ffreestanding", f"-I{tmp_path / 'bundle' / 'src'}", "-c", "sketch.cpp")
    checked(GXX, *CORE, *include, folder=tmp_path)
    done = subprocess.run([GXX, "-mcpu=cortex-m0plus", *include], capture_output=True, text=True, cwd=tmp_path)
    assert (
        "model.o is code for a Cortex-M with DSP instructions; build with --source for other processors" in done.stderr
    )


# ------------------------------------------------------------------------------------------------------ C interface


def test_a_context_is_all_that_a_call_writes_to(bundle, tmp_path):
    """Beside it and the caller's own tensors a program has no memory that changes: calls may interrupt each other."""
    (tmp_path / "main.c").write_text(
        f'#include "random.h"\n{golden(bundle)}int main(void) {{\n'
        "  static random_context context[2];\n  static int8_t output[RANDOM_OUTPUT_SIZE];\n"
        "  for (int user = 0; user < 2; user++) {\n    random_init(&context[user]);\n"
        "    random_infer(&context[user], golden_input, output);\n"
        f"{COMPARE}  }}\n  return 0;\n}}\n"
    )
    own = tmp_path / "main.o"
    checked(GCC, *CORE, *BARE, f"-I{bundle}", "-c", "main.c", "-o", own, folder=tmp_path)
    firmware = machine.link_firmware(tmp_path, M7, [own, bundle / "model.o"])
    runs(firmware, tmp_path)
    with firmware.open("rb") as file, own.open("rb") as object_file:
        sizes = [
            sum(section["sh_size"] for section in ELFFile(opened).iter_sections() if section["sh_flags"] & 3 == 3)
            for opened in (file, object_file)
        ]
    assert sizes[1] <= sizes[0] < sizes[1] + 16, "alignment"


def test_sizes_are_constants(bundle, tmp_path):
    """Known when a program is compiled, also in C++."""
    (tmp_path / "main.cpp").write_text(
        '#include "random.h"\nstatic_assert(sizeof(random_context) >= RANDOM_ARENA_BYTES, "");\n'
        'static_assert(alignof(random_context) == RANDOM_ARENA_ALIGNMENT, "");\n'
        'static_assert(RANDOM_STACK_BYTES > 0 && RANDOM_WEIGHTS_BYTES > 0, "");\n'
    )
    checked(GXX, *CORE, *BARE, "-std=c++11", f"-I{bundle}", "-c", "main.cpp", folder=tmp_path)


def test_programs_of_either_floating_point_convention_link_it(bundle, tmp_path):
    core = ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=softfp", "-mfpu=fpv4-sp-d16")
    (tmp_path / "main.c").write_text(
        f'#include "random.h"\n{golden(bundle)}float scale(float value) {{ return value * 2; }}\nint main(void) {{\n'
        f"  static int8_t output[RANDOM_OUTPUT_SIZE];\n  random_run(golden_input, output);{COMPARE}  return 0;\n}}\n"
    )
    files = ("main.c", HERE / "startup.c", bundle / "model.o")
    script = f"-T{bundle / 'example' / 'link.ld'}"
    link = ("-nostdlib", "-Wl,--gc-sections", script, "-lgcc", "-o", "main.elf")
    checked(GCC, *core, *BARE, f"-I{bundle}", *files, *link, folder=tmp_path)
    runs(tmp_path / "main.elf", tmp_path)


def test_the_arena_of_portable_source_is_aligned(bundle):
    assert "static RANDOM_ALIGNED uint8_t own_arena[" in (bundle / "source" / "random.c").read_text()
