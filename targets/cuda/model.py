"""How long a CUDA kernel may take, by a model that nobody has calibrated: for ranking candidates, for nothing else.

A kernel's time is the largest of five, each for the SM with the most blocks, plus what starting it costs:

- issue: warps' instructions over four schedulers, and multiply-adds over the FP32 lanes;
- shared: turns of the banks, one a cycle;
- L2: sectors over `Constants.l2_bytes_per_clock` for each SM;
- DRAM: the arguments' bytes over the datasheet's bandwidth, if they are more than L2 holds;
- latency: for each wave of blocks that an SM holds (registers, shared memory, threads: `occupancy`), the rounds in
  which a thread waits for global memory, its barriers, and its own instructions one after the other.

A tenth of the other four is added to the largest, since they overlap imperfectly. Spilled registers count as accesses
to L2. Registers, shared memory and spills are those of the machine code (`nvrtc.Resources`), counts those of
`counts.lower`; clocks, SMs, lanes and bandwidth those of the board's datasheet (`Gpu`). The rest are assumptions
and stand in `Constants`. So a design of one block sinks, as does one that spills or asks the same bank 32 times; which
of two good designs is faster, the model can't be trusted with.

What comes out is in µs and has the basis "modelled": a shortlist's order, never a latency of a report. With a GPU
`benchmarks/cuda.py` measures how far off it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tvmflow.schedules.gpu import Gpu
from tvmflow.system import scratch, untrusted
from tvmflow.targets.cuda.counts import SECTOR_BYTES, WARP, Counts
from tvmflow.targets.cuda.nvrtc import Resources
from tvmflow.targets.cuda.occupancy import occupancy

SCHEDULERS = 4
OVERLAP = 0.1


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Assumptions: what no datasheet says. `source` is where they are from.

    `launch_us` is what starting a kernel costs; cycles of latency of global memory, shared memory with its barrier, and
    an instruction whose operand has just been made; bytes of L2 that reach an SM in a cycle. `scale` multiplies what
    comes out.
    """

    launch_us: float = 3.0
    global_cycles: float = 500.0
    barrier_cycles: float = 40.0
    dependent_cycles: float = 4.0
    l2_bytes_per_clock: float = 64.0
    scale: float = 1.0
    source: str = "assumed"


def modelled_us(
    gpu: Gpu, kernels: Sequence[Counts], resources: Mapping[str, Resources], constants: Constants = Constants()
) -> float:
    """What a candidate's launches may take together, in µs. `resources` are by kernel."""
    return sum(parts(gpu, counts, resources[counts.name], constants)["total"] for counts in kernels)


def parts(gpu: Gpu, counts: Counts, taken: Resources, constants: Constants = Constants()) -> dict[str, float]:
    """The parts of one launch in µs by name, and "total". A kernel that no SM can hold takes for ever."""
    held = occupancy(gpu, threads=counts.threads, registers=taken.registers, shared_bytes=taken.shared_bytes)
    if not held.blocks_per_sm or counts.threads * taken.registers > gpu.registers_per_block:
        return {"total": math.inf}
    blocks = math.ceil(counts.blocks / gpu.sms)  # of the SM with the most
    warps = blocks * counts.warps
    spilled = taken.spill_bytes / 4 * counts.rounds  # instructions of a warp
    instructions = counts.multiplies + counts.others + counts.global_accesses + counts.shared_accesses + spilled
    lanes = (counts.multiplies + counts.others) * WARP / gpu.lanes_per_sm
    waves = math.ceil(blocks / held.blocks_per_sm)
    alone = (
        counts.rounds * constants.global_cycles
        + counts.barriers * constants.barrier_cycles
        + instructions * constants.dependent_cycles / 2
    )
    cycles = {
        "issue": warps * max(instructions / SCHEDULERS, lanes),
        "shared": warps * counts.turns,
        "l2": warps * (counts.sectors * SECTOR_BYTES + spilled * 4 * WARP) / constants.l2_bytes_per_clock,
        "latency": waves * alone,
    }
    found = {name: value / gpu.clock_mhz for name, value in cycles.items()}
    beyond = counts.argument_bytes if counts.argument_bytes > gpu.l2_bytes else 0
    found["dram"] = beyond / gpu.dram_gbps / 1e3
    longest = max(found.values())
    total = longest + OVERLAP * (sum(found.values()) - longest) + constants.launch_us
    return {**found, "total": constants.scale * total}


def _schema() -> dict[str, Any]:
    names = [field.name for field in fields(Constants)]
    positive = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}
    return {
        "type": "object",
        "required": names,
        "properties": {name: {"type": "string"} if name == "source" else positive for name in names},
    }


CALIBRATION = untrusted.Schema(_schema)


def load_constants(path: Path) -> Constants:
    """A calibration that `benchmarks/cuda.py` wrote. Raises UserError."""
    content = untrusted.read_json(path, what="calibration of the CUDA model", schema=CALIBRATION)
    return Constants(**{field.name: content[field.name] for field in fields(Constants)})


def save_constants(constants: Constants, path: Path) -> None:
    """Write a calibration."""
    with scratch.replacing(path) as made:
        made.write_text(json.dumps(asdict(constants), indent=1) + "\n", encoding="utf-8")
