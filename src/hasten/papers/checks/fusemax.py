"""Checks of FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design."""

from __future__ import annotations

from statistics import mean
from typing import TypeAlias

import torch
from torch import Tensor, nn

from hasten.cost import measure
from hasten.cost.chips.spatial import DESIGNS, LENGTHS, MODELS, SpatialCost, model_cost
from hasten.cost.measuring import allocated_bytes
from hasten.errors import HastenError
from hasten.models.language.real_head import real_head
from hasten.nn.plain_attention import online_attention, whole_attention
from hasten.papers.experiment import Experiment, Seen, check, shared
from hasten.processes import one_thread
from hasten.workload.attention import attention, padding, tiled
from hasten.workload.einsum import Cascade
from hasten.workload.execution import execute
from hasten.workload.passes import expected_loads, passes

Head: TypeAlias = tuple[Tensor, Tensor, Tensor]


def _random_head(keys: int, generator: torch.Generator) -> Head:
    """Queries (24), keys and values of size 16 in double precision."""
    q, k, v = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (24, keys, keys))
    return q, k, v


def _head(experiment: Experiment, keys: int) -> tuple[Head, str]:
    """Queries (24), keys and values of a head of SmolLM2 on real text, and where they are from; random without it."""
    try:
        if experiment.quick:
            raise HastenError("a quick run loads no model")
        q, k, v = (torch.from_numpy(x) for x in real_head(keys))
        return (q[:24], k, v), "a head of SmolLM2"
    except HastenError:
        generator = torch.Generator().manual_seed(experiment.seed)
        return _random_head(keys, generator), "random numbers, as the model is not here"


def _inputs(
    kind: str, head: Head, tile: int
) -> tuple[Cascade, dict[str, Tensor], Tensor, str | tuple[str, ...]]:  # fmt: skip
    """A cascade of attention in double precision, tensors for it, and torch's own answer."""
    q, k, v = head
    m = k.shape[0]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    cascade = attention(kind, p=q.shape[0], m=m, e=q.shape[1], f=v.shape[1], m0=tile, dtype="fp64")
    named = {"Q": q, "K": k, "V": v}
    split = kind in ("local-max", "one-pass")
    if split:
        named |= {"K": tiled(k, tile), "V": tiled(v, tile)}
    for name, tensor in cascade.tensors.items():
        if name not in named and tensor.role == "input":
            named[name] = padding(m, tile, torch.float64)
    return cascade, named, expected, ("m1", "m0") if split else "m"


@shared(weight=4)
def costs(experiment: Experiment) -> dict[str, list[tuple[SpatialCost, SpatialCost]]]:
    """Design -> (attention, linear layers) of each of 4 models at each of 6 lengths."""
    return {name: [model_cost(d, model, n) for model in MODELS for n in LENGTHS] for name, d in DESIGNS.items()}


def _ratio(experiment: Experiment, over: str, under: str, quantity: str, whole: bool = False) -> float:
    """Mean over the 24 points of a quantity of one design over that of another, linear layers with ``whole``."""
    table = experiment.once(costs)

    def of(cost: tuple[SpatialCost, SpatialCost]) -> float:
        return sum(getattr(part, quantity) for part in (cost if whole else cost[:1]))

    return mean(of(a) / of(b) for a, b in zip(table[over], table[under], strict=True))


def _close(seen: float, published: float, tolerance: float = 0.005) -> bool:
    return abs(seen / published - 1) <= tolerance


@check("F1", weight=0.1)
def speed(experiment: Experiment) -> Seen:
    """The binding's stages, priced by the cascade's own points, over 4 models at 6 lengths."""
    seen = _ratio(experiment, "flat", "fusemax", "latency")
    return experiment.judge(f"{seen:.3g}x (published 6.72x)", _close(seen, 6.72), seen > 1)


@check("F2", weight=0.1)
def energy(experiment: Experiment) -> Seen:
    """Operations, registers and memory; one constant of the baseline is fitted to one published point (FLAT, BERT, 4K)."""
    seen = _ratio(experiment, "fusemax", "flat", "energy")
    detail = "an operand that the baseline's lanes fetch costs 75 pJ: fitted to one of the 24 points, not published"
    return experiment.judge(f"{seen:.1%} of FLAT's (published 78.7%)", abs(seen - 0.787) <= 0.1, seen < 1, detail)


@check("F3", weight=0.1)
def speed_of_layers(experiment: Experiment) -> Seen:
    """Attention and the linear layers of an encoder layer."""
    seen = _ratio(experiment, "flat", "fusemax", "latency", whole=True)
    return experiment.judge(f"{seen:.3g}x (published 5.30x)", _close(seen, 5.30), seen > 1)


@check("F4", weight=0.1)
def energy_of_layers(experiment: Experiment) -> Seen:
    """Attention and the linear layers of an encoder layer."""
    seen = _ratio(experiment, "fusemax", "flat", "energy", whole=True)
    return experiment.judge(f"{seen:.1%} of FLAT's (published 83.3%)", abs(seen - 0.833) <= 0.1, seen < 1)


@check("F5", weight=0.1)
def speed_over_unfused(experiment: Experiment) -> Seen:
    """Beside an accelerator that fuses nothing."""
    seen = _ratio(experiment, "unfused", "fusemax", "latency")
    return experiment.judge(f"{seen:.4g}x (published 10.05x)", _close(seen, 10.05), seen > 1)


@check("F6", weight=0.1)
def utilization(experiment: Experiment) -> Seen:
    """Of the two-dimensional array, on the shortest and the longest texts of BERT."""
    table = experiment.once(costs)
    first, last = (table["fusemax"][i][0].utilization for i in (0, 5))
    flat = table["flat"][0][0].utilization
    value = f"BERT {first:.3f} at 1K, {last:.3f} at 1M; FLAT {flat:.3f}"
    holds = _close(first, 0.89) and _close(last, 0.993) and _close(flat, 0.125)
    return experiment.judge(value, holds, first > flat)


@check("F7", weight=0.1)
def ablation(experiment: Experiment) -> Seen:
    """Each of the three steps alone: the cascade on FLAT's array, then the array, then the pipeline."""
    over = {name: _ratio(experiment, name, "fusemax", "latency") for name in ("flat", "cascade", "architecture")}
    value = ", ".join(f"{r:.3g}x over {n}" for n, r in over.items())
    holds = _close(over["cascade"], 7.34) and _close(over["architecture"], 3.03)
    return experiment.judge(value, holds, over["architecture"] > 1)


@check("F8", weight=15)
def pass_counts(experiment: Experiment) -> Seen:
    """The analyser derives the counts from the cascades; running them pass by pass loads as often and is right."""
    published = {"three-pass": 3, "two-pass": 2, "local-max": 2, "one-pass": 1}
    found, wrong = {}, []
    head, source = _head(experiment, experiment.at(quick=200, normal=1000))
    for kind in published:
        cascade, given, expected, rank = _inputs(kind, head, 64)
        report = passes(cascade, rank)
        run = execute(cascade, given, rank)
        (output,) = run.outputs.values()
        error = float((output.reshape(expected.shape) - expected).abs().max())
        loads = expected_loads(cascade, report)
        seen = {tensor: run.loads.get(tensor, 0) / cascade.tensors[tensor].elements for tensor in loads}
        if error > 1e-10 or seen != loads:
            wrong.append(f"{kind}: error {error:.1e}, expected loads {loads}, seen {seen}")
        found[kind] = report.count
    value = ", ".join(f"{kind} {count}" for kind, count in found.items())
    return experiment.judge(f"{value}, on {source}", found == published and not wrong, detail="; ".join(wrong))


@check("F9", weight=30)
def footprints(experiment: Experiment) -> Seen:
    """Elements alive at once while the cascades run at growing numbers of keys, and memory of both forms in torch."""
    experiment.require(60)
    sizes = experiment.at(quick=(256, 1024), normal=(1024, 4096, 16384))
    generator = torch.Generator().manual_seed(experiment.seed)
    peaks: dict[str, list[int]] = {}
    for kind in ("three-pass", "one-pass"):
        for m in sizes:
            cascade, named, _, rank = _inputs(kind, _random_head(m, generator), 256)
            peaks.setdefault(kind, []).append(execute(cascade, named, rank).peak)
    flat = len(set(peaks["one-pass"])) == 1
    grows = peaks["three-pass"][-1] >= 0.75 * sizes[-1] / sizes[0] * peaks["three-pass"][0]
    ratio, seconds = _in_torch(experiment.seed, experiment.at(quick=128, normal=2048), sizes[-1])
    value = (
        f"elements alive at {', '.join(map(str, sizes))} keys: one-pass {peaks['one-pass']}, three-pass "
        f"{peaks['three-pass']}; in torch, 2K queries and {sizes[-1] // 1024}K keys, three passes hold {ratio:.0f} times the memory"
    )
    detail = f"tile by tile takes {seconds[0]:.2f} s, in three passes {seconds[1]:.2f} s"
    return experiment.judge(value, flat and grows and ratio > 10, flat, detail)


class _Online(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return online_attention(q, k, v)


class _Whole(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return whole_attention(q, k, v)


def _in_torch(seed: int, queries: int, length: int) -> tuple[float, tuple[float, float]]:
    """Memory of three passes over that of one, beyond operands; and the seconds of one pass and three, one thread."""
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(n, 64, generator=generator) / 3 for n in (queries, length, length)]
    with one_thread():
        one, three = (measure(module, *given, runs=3, warmup=1) for module in (_Online(), _Whole()))
    held = [allocated_bytes(lambda module=module: module(*given)) for module in (_Online(), _Whole())]  # type: ignore[misc]
    return held[1] / held[0], (one.phases["forward"].median, three.phases["forward"].median)
