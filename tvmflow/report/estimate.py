"""What a network takes at least on a board, from its graph and the board's data sheet: nothing is built or run.

Every figure of time is modelled and a lower bound: programs as tvmflow makes them can't be faster, and are slower. A
layer takes at least as long as its multiply-adds at the highest rate that the board has, and as what has to come from
memory takes on the way: weights if all of them are more than the last cache holds, and tensors as far as those of one
layer are. Multiply-adds with padding aren't counted, nor is what a kernel takes to be started. Of convolutions that the
board may compute by Winograd's minimal filtering, its products count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tvmflow.spec import Layer, Program, Roof, Target, Tile, TvmflowError

if TYPE_CHECKING:
    from tvm import tirx

ELEMENT_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A layer of the graph, and its elements of weights, inputs and output.

    `tile` is the least that an accelerator holds of it at a time, for one block of channels. `fewest_macs` are the
    multiply-adds of the shortest algorithm there is for it, `layer.live_macs` where that is the sum itself.
    """

    layer: Layer
    tile: Tile
    weights: int
    inputs: int
    output: int
    fewest_macs: int | None = None

    def macs_on(self, target: Target) -> int:
        """The least that a board does of it."""
        shortest = "winograd" in target.schedules and target.arithmetic == "float32"
        return (self.fewest_macs if shortest and self.fewest_macs is not None else self.layer.live_macs) or 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is counted once for all boards; `activations` are the elements of the static plan.

    `program` is the network after what every build folds and fuses, `imported` as it was before, None where nobody asks
    whether it can be built.
    """

    program: Program
    imported: Program | None = None
    works: tuple[Work, ...]
    weights: int
    activations: int


def roof_of(target: Target) -> Roof | None:
    """None where the board's figures aren't known, as of most virtual machines."""
    from tvmflow.targets import kind

    return kind.of(target).roof(target)


def analyse(program: Program) -> Network:
    """Count what a network does, after what every build folds and fuses."""
    import math

    from tvmflow.passes.fold_batchnorm import fold_batchnorm
    from tvmflow.passes.fold_scales import fold_scales
    from tvmflow.passes.fuse_operators import fuse_operators, kernel_calls
    from tvmflow.passes.lower import plan_memory
    from tvmflow.passes.multiply_adds import static_shape
    from tvmflow.targets.cpu.boards import HOST

    imported = program
    for stage in (fold_batchnorm, fold_scales, fuse_operators):
        program = stage(program, HOST)
    works = []
    for layer, binding in zip(program.layers, kernel_calls(program.module), strict=True):
        weights = inputs = 0
        for value in binding.value.args[1].fields:
            elements = math.prod(static_shape(value.ty))
            if hasattr(value, "value"):
                weights += elements
            else:
                inputs += elements
        works.append(
            Work(
                layer=layer,
                tile=_tile(program.module[layer.kernel], [static_shape(v.ty) for v in binding.value.args[1].fields]),
                weights=weights,
                inputs=inputs,
                output=math.prod(static_shape(binding.var.ty)),
                fewest_macs=_fewest_macs(program.module[layer.kernel], layer.live_macs),
            )
        )
    planned = plan_memory(program, HOST).memory
    return Network(
        program=program,
        imported=imported,
        works=tuple(works),
        weights=planned["weights_bytes"] // ELEMENT_BYTES["float32"],
        activations=planned["activations_bytes"] // ELEMENT_BYTES["float32"],
    )


def analyse_quantised(program: Program) -> Network:
    """Count what a network does that comes in integers: a byte each, and every layer is a kernel."""
    import math

    network = program.integer
    assert network is not None
    sizes = {name: math.prod(shape) for name, shape in network.shapes.items()}
    works = []
    for layer in network.layers:
        inputs, output = sum(sizes[name] for name in layer.inputs), sizes[layer.name]
        macs, live = (0, 0) if layer.kind == "pool" else (layer.macs, layer.live_macs)  # as in float
        counted = Layer(
            kernel=layer.kind,
            modules=layer.modules,
            macs=macs,
            live_macs=live,
            bytes=layer.constant_bytes + inputs + output,
        )
        works.append(Work(layer=counted, tile=Tile(), weights=layer.constant_bytes, inputs=inputs, output=output))
    last = {name: step for step, layer in enumerate(network.layers) for name in layer.inputs}
    last |= {port.source: len(network.layers) for port in network.outputs}
    most, held = 0, {port.name for port in network.inputs}
    for step, layer in enumerate(network.layers):
        held.add(layer.name)
        most = max(most, sum(sizes[name] for name in held))
        held = {name for name in held if last.get(name, -1) > step}
    return Network(
        program=program, imported=program, works=tuple(works), weights=network.weight_bytes, activations=most
    )


def _tile(func: tirx.PrimFunc, shapes: Sequence[tuple[int, ...]]) -> Tile:
    """Of convolutions the largest; what isn't one, such as a pool, reads whole maps."""
    from tvmflow.schedules.convolutions import read_convolutions

    found = read_convolutions(func)
    if not found:
        return Tile(inputs=max((shape[2] * shape[3] for shape in shapes if len(shape) == 4), default=1))
    rows = [min(conv.size[0], (conv.kernel[0] - 1) * conv.dilation[0] + 1) for conv in found]
    return Tile(
        outputs=max(conv.out_size[1] for conv in found),
        inputs=max(row * conv.size[1] for row, conv in zip(rows, found, strict=True)),
        taps=max(conv.kernel[0] * conv.kernel[1] for conv in found),
    )


def _fewest_macs(func: tirx.PrimFunc, macs: int | None) -> int | None:
    """Of a kernel, by the direct sum or by Winograd's minimal filtering."""
    from tvmflow.schedules.convolutions import read_convolutions
    from tvmflow.schedules.winograd import POINTS, products_of, serves

    found = read_convolutions(func)
    if macs is None or len(found) != 1 or not serves(found[0]):
        return macs
    return min(macs, *(products_of(found[0], outputs) for outputs in POINTS))


def estimate(network: Network, target: Target, roof: Roof | None = None) -> dict[str, Any]:
    """What the network takes at least on a board: memory, and where the board's roof is known, time. Modelled.

    A `roof` that was measured is taken in place of the stated one.
    """
    size, roof = ELEMENT_BYTES[target.arithmetic], roof or roof_of(target)
    memory = {"weights_bytes": size * network.weights, "activations_bytes": size * network.activations}
    rows, total = [], 0.0
    streams = roof is not None and memory["weights_bytes"] > roof.cache_bytes
    for work in network.works:
        row: dict[str, Any] = {
            "modules": list(work.layer.modules),
            "macs": work.layer.macs,
            "live_macs": work.layer.live_macs,
            "bytes": size * (work.weights + work.inputs + work.output),
            "us": None,
            "bound": None,
        }
        if roof is not None:
            streamed = 1 - roof.cache_bytes / memory["weights_bytes"] if streams else 0.0
            moved = round(size * work.weights * streamed) + _beyond(size, work, roof.cache_bytes)
            row["us"], row["bound"] = _bound(roof, work.macs_on(target), moved)
            total += row["us"]
        rows.append(row)
    if roof is not None and roof.bytes_per_s and streams:  # as much of the weights may still be there from before
        least = sum(1e6 * work.macs_on(target) / roof.macs_per_s for work in network.works)
        total = max(least, total - 1e6 * min(roof.cache_bytes, memory["weights_bytes"]) / roof.bytes_per_s)
    return {
        "target": target.name,
        "kind": target.kind,
        "arithmetic": target.arithmetic,
        "memory": memory,
        "fits": fits(memory, target, network),
        **({"build": can_build(network.imported, target)} if network.imported else {}),
        **({"int8": can_build_in_int8(network.imported, target)} if network.imported else {}),
        "basis": "modelled",
        "meaning": "lower bound",
        "latency_ms": total / 1e3 if roof is not None else None,
        "note": "" if roof is not None else "its clock isn't known, so there is no bound of time.",
        "figures": origin({"basis": roof.basis, "unverified": roof.unverified} if roof is not None else None),
        "roof": describe(roof),
        "layers": rows,
    }


def _limits(roof: Roof, live_macs: int, moved_bytes: int) -> dict[str, float]:
    """What a layer's multiply-adds take at least, in µs, and what its bytes do."""
    return {
        "compute": 1e6 * live_macs / roof.macs_per_s,
        "memory": 1e6 * moved_bytes / roof.bytes_per_s if roof.bytes_per_s else 0.0,
    }


def _bound(roof: Roof, live_macs: int, moved_bytes: int) -> tuple[float, str]:
    """The least that a layer takes, in µs, and by what."""
    limits = _limits(roof, live_macs, moved_bytes)
    by = max(limits, key=lambda name: limits[name])
    return limits[by], by


def bounds(layers: Sequence[Layer], roof: Roof | None) -> list[dict[str, Any] | None]:
    """The same of a compiled network's layers, as reports have it: {"us", "by"}; None without the figures for it."""
    found: list[dict[str, Any] | None] = []
    for layer, moved in zip(layers, _moved(layers, roof.cache_bytes if roof else 0), strict=True):
        if roof is None or roof.bytes_per_s is None or layer.live_macs is None or moved is None:
            found.append(None)
            continue
        us, by = _bound(roof, layer.live_macs, moved)
        found.append({"us": us, "by": by} if us else None)
    return found


def _moved(layers: Sequence[Layer], cache_bytes: int) -> list[int | None]:
    """The bytes of each layer that have to come from beyond caches that keep that many; None where that isn't known.

    Of weights that are more than the caches, as large a share is kept as the caches are of them.
    """
    weights = sum(layer.weight_bytes or 0 for layer in layers)
    streamed = 1 - cache_bytes / weights if weights > cache_bytes else 0.0
    return [
        None
        if layer.weight_bytes is None
        else max(0, layer.bytes - layer.weight_bytes - cache_bytes) + round(streamed * layer.weight_bytes)
        for layer in layers
    ]


def raise_roof(roof: Roof, layers: Sequence[Layer], times_us: Sequence[float]) -> Roof:
    """The roof after `layers` took these times: one that they broke through wasn't one.

    A measured roof is raised to what the fastest of them did, and its `note` says by how much. One that is stated in
    documents stays, and the note says which layers contradict it.
    """
    rates, faster = dict.fromkeys(("compute", "memory"), 1.0), []
    for layer, moved, us in zip(layers, _moved(layers, roof.cache_bytes), times_us, strict=True):
        if layer.live_macs is None or moved is None or not us:
            continue
        limits = _limits(roof, layer.live_macs, moved)
        if max(limits.values()) > us:
            faster.append(", ".join(layer.modules) or layer.kernel)
        rates = {by: max(rate, limits[by] / us) for by, rate in rates.items()}
    if not faster:
        return roof
    words = " and ".join(f"for {by} {rate:.2f} times" for by, rate in rates.items() if rate > 1)
    if roof.basis == "stated":
        return replace(roof, note=f"Layers were faster than these figures allow, {words}: {'; '.join(faster)}.")
    return replace(
        roof,
        macs_per_s=roof.macs_per_s * rates["compute"],
        bytes_per_s=roof.bytes_per_s and roof.bytes_per_s * rates["memory"],
        note=f"Layers were faster than what was measured, so it was raised, {words}: {'; '.join(faster)}.",
    )


def fits(memory: Mapping[str, int], target: Target, network: Network) -> dict[str, Any]:
    """Whether a network fits, of each part of the board what it needs and what there is.

    A microcontroller's flash also holds code, by a guess, and its RAM the stack. The buffers of a VTA have to hold the
    smallest tile of each layer.
    """
    from tvmflow.targets import kind

    parts = kind.of(target).parts(memory, target, [work.tile for work in network.works])
    return {
        "fits": all(part.needed <= part.available for part in parts.values()),
        "parts": {
            name: {
                "needed_bytes": part.needed,
                "available_bytes": part.available,
                **{f"{of}_bytes": count for of, count in part.of.items()},
            }
            for name, part in parts.items()
        },
    }


def can_build(program: Program, target: Target) -> dict[str, Any]:
    """Whether a board's kind takes the network in the board's arithmetic, and why not: what a build would say."""
    from tvmflow.targets import kind as backends

    try:
        backends.of(target).check_network(program, target)
    except TvmflowError as error:
        return {"possible": False, "reason": str(error)}
    return {"possible": True, "reason": ""}


def can_build_in_int8(program: Program, target: Target) -> dict[str, Any]:
    """`can_build` of the network's int8 form, after `tvmflow quantize`."""
    if "int8" not in target.arithmetics:
        return {"possible": False, "reason": f"{target.name} doesn't compute in int8."}
    return can_build(program, replace(target, arithmetic="int8"))


def describe(roof: Roof | None) -> dict[str, Any] | None:
    """A roof as reports have it: operations (a multiply-add is two) and bytes, 10⁹ a second. None where it has gaps."""
    if roof is None or roof.bytes_per_s is None:
        return None
    return {
        "gflops": 2e-9 * roof.macs_per_s,
        "gbps": 1e-9 * roof.bytes_per_s,
        "source": roof.source,
        "basis": roof.basis,
        "unverified": list(roof.unverified),
        "note": roof.note,
    }


def origin(roof: Mapping[str, Any] | None) -> str:
    """Where the figures of a described roof come from, in a few words."""
    if roof is None:
        return "not known"
    if roof.get("basis") == "measured":
        return "measured here"
    missing = roof.get("unverified")
    return f"data sheet, but {', '.join(missing)} assumed" if missing else "data sheet"


def describe_model(program: Program) -> dict[str, Any]:
    """A network as files of estimates have it."""
    known = {"name": program.name, "source": program.source, "parameters": program.parameters}
    return {**known, **({"accuracy": dict(program.accuracy)} if program.accuracy else {})}


def text(program: Program, rows: Sequence[Mapping[str, Any]]) -> str:
    """Estimates and what builds would say, for a terminal: a table of boards, and of a single one its layers."""
    from tvmflow.system.text import text_table

    macs = sum(row["macs"] for row in rows[0]["layers"])
    lines = [
        f"{program.name}: {program.parameters:,} parameters, {macs / 1e6:.1f} M multiply-adds, of which "
        f"{sum(row['live_macs'] for row in rows[0]['layers']) / 1e6:.1f} M don't meet padding",
        "",
    ]
    table = []
    for row in rows:
        memory = row["memory"]
        table.append(
            [
                row["target"],
                row["arithmetic"],
                f"{memory['weights_bytes'] / 1024:,.0f}",
                f"{memory['activations_bytes'] / 1024:,.0f}",
                _fits_text(row["fits"]),
                "yes" if row["build"]["possible"] else "no",
                "yes" if row["int8"]["possible"] else "no",
                least_text(row["latency_ms"]),
                row["figures"],
            ]
        )
    header = [
        "board",
        "arithmetic",
        "weights KiB",
        "activations KiB",
        "fits",
        "can be built",
        "in int8",
        "ms at least",
        "figures",
    ]
    lines += [text_table(header, table), ""]
    if len(rows) == 1:
        parts = rows[0]["fits"]["parts"].items()
        lines += [f"needs {', '.join(_part_text(name, part) for name, part in parts)}", ""]
    if len(rows) == 1 and rows[0]["latency_ms"] is not None:
        cells = [
            [
                ", ".join(row["modules"]) or "?",
                f"{row['live_macs'] / 1e6:.2f}",
                f"{row['bytes'] / 1024:.0f}",
                f"{row['us']:.1f}",
                row["bound"],
            ]
            for row in rows[0]["layers"]
        ]
        lines += [text_table(["layer", "M multiply-adds", "KiB", "µs at least", "by"], cells), ""]
    lines.append("Times are modelled: lower bounds by the figures named, which no program reaches.")
    lines += [f"{row['target']}: by the roof {row['roof']['source']}." for row in rows if _is_measured(row["roof"])]
    lines += [f"{row['target']}: {row['note']}" for row in rows if row["note"]]
    refused = [row for row in rows if not row["build"]["possible"]]
    for reason in dict.fromkeys(row["build"]["reason"] for row in refused):
        boards = ", ".join(row["target"] for row in refused if row["build"]["reason"] == reason)
        lines.append(f"Not built for {boards}: {reason}")
    refused = [row for row in rows if row["build"]["possible"] and not row["int8"]["possible"]]
    for reason in dict.fromkeys(row["int8"]["reason"] for row in refused):
        boards = ", ".join(row["target"] for row in refused if row["int8"]["reason"] == reason)
        lines.append(f"Not in int8 for {boards}: {reason}")
    return "\n".join(lines)


def least_text(ms: float | None) -> str:
    """A lower bound in ms, of a fast board with as many digits as tell it from 0; ? if none is known."""
    if ms is None:
        return "?"
    return f"{ms:.3f}" if ms >= 0.01 else f"{ms:.2g}"


def _is_measured(roof: Mapping[str, Any] | None) -> bool:
    return roof is not None and roof["basis"] == "measured"


def _beyond(size: int, work: Work, cache_bytes: int) -> int:
    """Bytes of a layer's tensors that can't be kept: all that it reads where nothing is kept."""
    if not cache_bytes:
        return size * work.inputs
    return max(0, size * (work.inputs + work.output) - cache_bytes)


def _fits_text(found: Mapping[str, Any]) -> str:
    if found["fits"]:
        return "yes"
    parts = found["parts"].items()
    short = [_part_text(name, part) for name, part in parts if part["needed_bytes"] > part["available_bytes"]]
    return f"no: {', '.join(short)}"


def _part_text(name: str, part: Mapping[str, int]) -> str:
    inside = [
        f"{count / 1024:,.0f} {key.removesuffix('_bytes')}"
        for key, count in part.items()
        if key not in ("needed_bytes", "available_bytes")
    ]
    of = f" ({' + '.join(inside)})" if inside else ""
    return f"{part['needed_bytes'] / 1024:,.0f} of {part['available_bytes'] / 1024:,.0f} KiB {name}{of}"
