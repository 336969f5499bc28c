"""The fast functional simulator: bit for bit what `semantics` means, in C, compiled once at first use."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tvmflow.spec import TvmflowError
from tvmflow.targets.vta import semantics
from tvmflow.targets.vta.cpu import functions_of, library_here
from tvmflow.targets.vta.isa import Alu, Finish, Gemm, Instruction, Load, Store
from tvmflow.targets.vta.program import Executable, Mark
from tvmflow.targets.vta.semantics import RefusedError, State

SOURCE = Path(__file__).with_suffix(".c")
OPTIONS = ("-shared", "-fPIC", "-O3", "-fwrapv", "-fno-sanitize=undefined")
POWER_UP = 0x5A
"""What buffers, and memory that no image covers, hold before anything is written: on hardware that is anything."""

_SIZES = ("batch", "block", "uop_depth", "inp_depth", "wgt_depth", "acc_depth", "acc_bits", "src_bits", "dram_bytes")
_ARRAYS = ("dram", "uop", "inp", "wgt", "acc", "out", "fresh")
_FIELDS = 13


class _State(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int64) for name in _SIZES), *((name, ctypes.c_void_p) for name in _ARRAYS))


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled core. Raises MissingDependencyError without a compiler, UserError if it fails."""
    from tvmflow.system.toolchain import native_library

    library = ctypes.CDLL(str(native_library(SOURCE, OPTIONS)))
    library.vta_run.restype = ctypes.c_int64
    library.vta_run.argtypes = (ctypes.POINTER(_State), ctypes.c_void_p, ctypes.c_int64)
    return library


def translate(instructions: Sequence[Instruction]) -> np.ndarray:
    """The instructions as the C core takes them, N×13 int64. For programs that run more than once."""
    rows = np.zeros((len(instructions), _FIELDS), np.int64)
    for row, it in zip(rows, instructions, strict=True):
        if isinstance(it, Load):
            fields = [0, it.memory, it.sram_base, it.dram_base, it.y_size, it.x_size, it.x_stride]
            fields += [it.y_pad_0, it.y_pad_1, it.x_pad_0, it.x_pad_1]
        elif isinstance(it, Store):
            fields = [1, 0, it.sram_base, it.dram_base, it.y_size, it.x_size, it.x_stride]
        elif isinstance(it, Finish):
            fields = [3]
        else:
            assert isinstance(it, Gemm | Alu)
            fields = [2, it.reset] if isinstance(it, Gemm) else [4, it.operation]
            fields += [it.uop_bgn, it.uop_end, it.iter_out, it.iter_in, it.dst_factor_out, it.dst_factor_in]
            fields += [it.src_factor_out, it.src_factor_in]
            fields += [it.wgt_factor_out, it.wgt_factor_in] if isinstance(it, Gemm) else [it.use_imm, it.imm]
        row[: len(fields)] = fields
    return rows


def run(instructions: Sequence[Instruction], state: State, translated: np.ndarray | None = None) -> None:
    """What `semantics.run` does, fast: `state` is changed in place. Raises RefusedError with the same sentence."""
    rows = np.ascontiguousarray(translate(instructions) if translated is None else translated)
    config = state.config
    depths = (config.uop_depth, config.inp_depth, config.wgt_depth, config.acc_depth)
    index_bits = (config.log_acc_depth, config.log_uop_src)
    arrays = [getattr(state, name) for name in _ARRAYS]
    assert all(array.flags.c_contiguous and array.flags.writeable for array in arrays)
    core = _State(
        config.batch, config.block, *depths, *index_bits, state.dram.nbytes, *(array.ctypes.data for array in arrays)
    )
    done = _library().vta_run(ctypes.byref(core), rows.ctypes.data, len(rows))
    if done == len(rows):
        return
    try:  # the oracle has the sentence
        semantics.execute(instructions[done], state)
    except RefusedError as error:
        raise RefusedError(f"Instruction {done}: {error}") from error
    raise TvmflowError(f"Instruction {done}: {SOURCE.name} refuses it, semantics.py does not.")


class Machine:
    """A VTA with a program in its memory: give it inputs, it gives outputs. Steps of the board's processor are this
    computer's, by the same C.

    Memory and buffers hold no zeros at first but `POWER_UP`, so that a program which reads what it never wrote is found
    out by its results. `library` are those steps compiled, if they are already.
    """

    def __init__(self, executable: Executable, library: Path | None = None):
        self.executable, self._library = executable, library
        dram = np.full(executable.memory_bytes, POWER_UP, np.uint8)
        dram[: executable.image.size] = executable.image
        self.state = State(config=executable.config, dram=dram)
        for name in _ARRAYS[1:-1]:
            getattr(self.state, name).view(np.uint8).fill(POWER_UP)
        self._translated = translate(executable.instructions)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One launch. Arrays by their region's name, of its shape and dtype. Raises UserError, RefusedError."""
        for _ in self.run_layers(inputs):
            pass
        return {region.name: region.read(self.state.dram, self.executable.config) for region in self.executable.outputs}

    def run_layers(self, inputs: Mapping[str, np.ndarray]) -> Iterator[Mark]:
        """The same launch, in steps: behind what each layer does, `state` can be looked at."""
        for region in self.executable.inputs:
            region.write(self.state.dram, inputs[region.name], self.executable.config)
        every, marks = self.executable.instructions, iter(self.executable.layers)
        for step in self.executable.sequence:
            begin = step.first
            if step.function:
                self._functions(step.function)(self.state.dram.ctypes.data)
            for mark in itertools.islice(marks, step.layers):
                run(every[begin : mark.last], self.state, self._translated[begin : mark.last])
                begin = max(begin, mark.last)
                yield mark
            run(every[begin : step.last], self.state, self._translated[begin : step.last])

    @functools.cached_property
    def _functions(self) -> Callable[[str], Callable[[int], None]]:
        """What steps run on the board's processor, for this computer's."""
        return functions_of(self._library or library_here(self.executable.source))
