"""The facts of an NVIDIA GPU, of which schedules, the model of its speed and builds know no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvmflow.spec import Cpu, Facts, Processor

IN_A_GRAPH = "the kernels in a CUDA graph can't be timed one by one; build it without --cuda-graph."


@dataclass(frozen=True, kw_only=True)
class Gpu(Facts):
    """What a schedule or a model may know of an NVIDIA GPU.

    `architecture` is as NVIDIA's compilers call it ("sm_87"); an SM is a multiprocessor. `clock_mhz` is the highest
    that the datasheet promises, `dram_gbps` are 10⁹ bytes a second. `unverified` names the fields that no datasheet was
    at hand for. `runtime_note` says what a bundle needs on this board if TVM's published runtime doesn't serve it.
    `also` are other architectures that a build compiles for, "compute_90" standing for PTX. `cuda_graph` has a build
    make one launch of all that touch neither the network's input nor its output.
    """

    NAME: ClassVar[str] = "gpu"
    DEVICE: ClassVar[str] = "cuda"

    model: str
    architecture: str
    sms: int
    lanes_per_sm: int
    clock_mhz: int
    dram_gbps: float
    l2_bytes: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    registers_per_sm: int = 65536
    registers_per_block: int = 65536
    threads_per_block: int = 1024
    unverified: tuple[str, ...] = ()
    runtime_note: str = ""
    also: tuple[str, ...] = ()
    cuda_graph: bool = False

    @property
    def has_dp4a(self) -> bool:
        """Whether all that a build compiles for multiplies four bytes at a time: sm_61 and newer."""
        return all(int(name.partition("_")[2]) >= 61 for name in (self.architecture, *self.also))

    def processor(self, cpu: Cpu) -> Processor:
        return Processor(model=self.model, cores=self.sms, clock_mhz=self.clock_mhz)

    def in_words(self, cpu: Cpu) -> str:
        return f"{self.model}, {self.architecture}, beside {cpu.model}"

    def note(self) -> str:
        return self.runtime_note

    def why_whole(self) -> str:
        return f"T{IN_A_GRAPH[1:]}" if self.cuda_graph else ""
