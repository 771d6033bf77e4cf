"""A section run tile by tile on this machine's processor, beside its tasks one after the other, by the same kernels.

A processor has no units beside each other, but a cache in which what passes between tasks can stay. A tile goes through
all tasks before the next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hasten.cost.chips.monarch import monarch_chain
from hasten.cost.chips.sections import SectionPlan, one_section, unfused_sections
from hasten.cost.chips.varied_kernels import layer_part
from hasten.cost.measuring import alternating, measured_rates
from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import StreamingChip
from hasten.workload.einsum import Cascade, Einsum, Role
from hasten.workload.execution import compute_at
from hasten.workload.streaming import work_graph
from hasten.workload.work_graph import WorkGraph


def run_tiles(cascade: Cascade, inputs: Mapping[str, Tensor], rank: str = "", tile: int = 0) -> dict[str, Tensor]:
    """Runs a cascade, all of a rank at a time or a tile of it.

    Args:
        cascade: its ranks have one name throughout, and its tensors are indexed by ranks alone.
        inputs: every tensor that no Einsum writes.
        rank: along which tiles go; every Einsum has it, and none sums over it.
        tile: steps of a tile; without one each Einsum is computed whole, one after the other.

    Returns:
        the tensors of role OUTPUT by name.

    Raises:
        HastenError: the cascade cannot be run so, or an input is missing.
    """
    written = {e.output.tensor for e in cascade.einsums}
    for name in cascade.tensors:
        if name not in written and name not in inputs:
            raise HastenError(f"input {name} is missing: give it")
    for einsum in cascade.einsums:
        if any(a.index is not None for a in (*einsum.inputs, einsum.output)):
            raise HastenError(f"{einsum.output.tensor} is indexed by more than ranks: it has no tiles")
    if not tile:
        return _outputs(cascade, _computed(cascade.einsums, dict(inputs)))
    if any(rank not in e.output.ranks for e in cascade.einsums):
        raise HastenError(
            f"an Einsum does not go along {rank or 'no rank'}, or sums over it: no tile passes through all"
        )
    places = {a.tensor: a.ranks.index(rank) for e in cascade.einsums for a in (*e.inputs, e.output) if rank in a.ranks}
    size = cascade.einsums[0].sizes[rank]
    found: dict[str, Tensor] = {}
    for begin in range(0, size, tile):
        here = min(tile, size - begin)
        given = {n: t.narrow(places[n], begin, here) if n in places else t for n, t in inputs.items()}
        einsums = [replace(e, ranks=tuple((r, here if r == rank else n) for r, n in e.ranks)) for e in cascade.einsums]
        for name, made in _outputs(cascade, _computed(einsums, given)).items():
            if name not in found:
                found[name] = made.new_empty(cascade.tensors[name].shape)
            found[name].narrow(places[name], begin, here).copy_(made)
    return found


def _computed(einsums: tuple[Einsum, ...] | list[Einsum], values: dict[str, Tensor]) -> dict[str, Tensor]:
    for einsum in einsums:
        values[einsum.output.tensor] = compute_at(einsum, values, {}).contiguous()
    return values


def _outputs(cascade: Cascade, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: values[n] for n, t in cascade.tensors.items() if t.role is Role.OUTPUT}


def largest_tile(graph: WorkGraph, chip: StreamingChip) -> int:
    """The most steps, a power of two, with which all tasks are one section on a chip.

    Raises:
        HastenError: they are none even with a step at a time.
    """
    one_section(graph, chip, graph.order, tile=1)
    tile, longest = 1, max((n for task in graph.tasks for n in task.ways), default=1)
    while tile < longest:
        try:
            one_section(graph, chip, graph.order, tile=2 * tile)
        except HastenError:
            break
        tile *= 2
    return tile


def fusion_cases(small: bool = False) -> dict[str, tuple[Cascade, str]]:
    """Cascades with their ranks: two bound by memory, whose intermediates take 64 MiB each, and one by compute."""
    chain = (8, 64, 16, 8) if small else (256, 1024, 16, 64)
    narrow, wide = ((64, 16, 64), (32, 64, 96)) if small else ((16384, 32, 1024), (16384, 256, 256))
    found = {"chain": (monarch_chain(*chain, dtype="fp32"), "b")}
    for name, sizes in (("narrow gated layer", narrow), ("wide gated layer", wide)):
        found[name] = (layer_part("feed-forward", dict(zip("nkh", sizes, strict=True))), "n")
    return found


def this_processor(cache: int, runs: int = 3) -> StreamingChip:
    """This machine as a chip: one cache as what is on it, and rates that are measured, with the threads that torch has.

    Args:
        cache: bytes that stay on the chip.
        runs: of each measurement, of which the least counts.
    """
    flops, bandwidth = measured_rates(runs)
    unit = math.gcd(cache, 4096)
    return StreamingChip(
        name="here", title="this processor", compute_units=1 << 20, memory_units=cache // unit, unit_bytes=unit,
        flops=flops, memory_bytes=1 << 50, bandwidth=bandwidth, store_bytes=0, store_bandwidth=bandwidth,
        host_command=0.0, scheduled_launch=0.0, dtype="fp32", source="measured",
    )  # fmt: skip


@dataclass(frozen=True)
class FusionSeen:
    """A cascade one task after the other, and tile by tile.

    Args:
        tile: steps of a tile: the most for which what passes between tasks fits the cache, by the model of sections.
        whole, tiled: least seconds of all tasks one after the other, and of all tiles.
        predicted: how much faster tiles are by the model.
        intensity: FLOPs a byte from memory of a section over those of tasks one after the other, by the model.
        bound: of the tasks one after the other, by the model: where it is ``compute`` tiles have nothing to give.
        error: largest difference of the results beside their largest number.
    """

    tile: int
    whole: float
    tiled: float
    predicted: float
    intensity: float
    bound: str
    error: float

    @property
    def speedup(self) -> float:
        return self.whole / self.tiled


def fusion_seen(cascade: Cascade, rank: str, chip: StreamingChip, *, rounds: int = 5, seed: int = 0) -> FusionSeen:
    """Runs a cascade both ways on random numbers, in turn.

    Args:
        cascade, rank: as `run_tiles` has them.
        chip: as `this_processor` has it.
        rounds: of which the fastest count.
        seed: of the numbers.

    Raises:
        HastenError: the cascade has no tiles, or one step does not fit the cache.
    """
    written = {e.output.tensor for e in cascade.einsums}
    drawn = torch.Generator().manual_seed(seed)
    given = {n: torch.randn(t.shape, generator=drawn) for n, t in cascade.tensors.items() if n not in written}
    graph = work_graph(cascade, grain="kernel")
    tile = largest_tile(graph, chip)
    plain = unfused_sections(graph, chip).cost()
    fused = SectionPlan(graph, chip, (one_section(graph, chip, graph.order, tile=tile),)).cost()
    calls = {"whole": lambda: run_tiles(cascade, given), "tiled": lambda: run_tiles(cascade, given, rank, tile)}
    first, second = calls["whole"](), calls["tiled"]()
    apart = [(first[n] - second[n]).abs().max() / first[n].abs().max() for n in first]
    error = float(torch.stack(apart).max())  # NaN where one is
    times = {name: min(seen) for name, seen in alternating(calls, rounds).items()}
    return FusionSeen(
        tile, times["whole"], times["tiled"], plain.latency / fused.latency, fused.intensity / plain.intensity,
        plain.bound, error,
    )  # fmt: skip
