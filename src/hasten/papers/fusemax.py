"""FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design."""

from __future__ import annotations

from functools import lru_cache
from statistics import mean
from typing import TYPE_CHECKING

from hasten.papers.card import Claim, Context, Paper, Seen

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.cost.spatial import SpatialCost
    from hasten.workload.einsum import Cascade

paper = Paper(
    slug="fusemax",
    title="FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design",
    arxiv="2406.10491",
    year=2024,
    field="hardware",
    summary="Writes attention as cascades of Einsums, counts their passes mechanically, and maps the one-pass form on a spatial array.",
    pieces=(
        "hasten.workload.attention:attention",
        "hasten.workload.attention:execute",
        "hasten.workload.passes:passes",
        "hasten.cost.spatial:attention_cost",
        "hasten.hardware.spatial:SpatialArray",
    ),
    claims=(
        Claim(
            "F1",
            "attention speedup, arithmetic mean over 24 points",
            "6.7x (6.72)",
            baseline="FLAT",
            setting="table above",
            how="model",
        ),
        Claim("F2", "attention energy ratio, mean", "79 % (0.787)", baseline="FLAT", setting="same", how="model"),
        Claim(
            "F3", "end-to-end speedup, mean", "5.3x (5.30)", baseline="FLAT", setting="incl. linear layers", how="model"
        ),
        Claim("F4", "end-to-end energy", "83 % (0.833)", baseline="FLAT", setting="same", how="model"),
        Claim("F5", "attention speedup", "10.05x mean", baseline="unfused", setting="same", how="model"),
        Claim("F6", "2D-array utilisation", "0.89 (1K) -> 0.993 (1M), BERT", baseline="FLAT 0.125", how="model"),
        Claim(
            "F7",
            "ablation order",
            "flat/cascade/arch/binding: binding is 7.34x over +cascade, 3.03x over +arch (means)",
            how="model",
        ),
        Claim("F8", "pass counts", "stable 3 (2 with deferred division), local-max 2, online 1", setting="any"),
        Claim("F9", "buffer need independent of M", "16 MiB at 1K..1M", baseline="3-pass grows with M", how="model"),
    ),
)


def _inputs(kind: str, m: int, m0: int, seed: int) -> tuple[Cascade, dict[str, Tensor], Tensor, str | tuple[str, ...]]:
    """A cascade of attention in double precision, tensors for it, and torch's own answer."""
    import torch

    from hasten.workload.attention import attention, padding, tiled

    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (24, m, m))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    cascade = attention(kind, p=24, m=m, e=16, f=16, m0=m0, dtype="fp64")
    given = {"Q": q, "K": k, "V": v}
    split = kind in ("local-max", "one-pass")
    if split:
        given |= {"K": tiled(k, m0), "V": tiled(v, m0)}
    for name, tensor in cascade.tensors.items():
        if name not in given and tensor.role == "input":
            given[name] = padding(m, m0, torch.float64)
    return cascade, given, expected, ("m1", "m0") if split else "m"


@lru_cache(maxsize=1)
def _table() -> dict[str, list[tuple[SpatialCost, SpatialCost]]]:
    """Design -> (attention, linear layers) of each model at each length."""
    from hasten.cost.spatial import DESIGNS, LENGTHS, MODELS, model_cost

    return {name: [model_cost(d, model, n) for model in MODELS for n in LENGTHS] for name, d in DESIGNS.items()}


def _ratios(over: str, under: str, quantity: str, whole: bool = False) -> float:
    """Mean over the 24 points of a quantity of one design over that of another, linear layers with ``whole``."""
    pairs = zip(_table()[over], _table()[under], strict=True)

    def of(cost: tuple[SpatialCost, SpatialCost]) -> float:
        return sum(getattr(part, quantity) for part in (cost if whole else cost[:1]))

    return mean(of(a) / of(b) for a, b in pairs)


def _close(seen: float, published: float, tolerance: float = 0.005) -> bool:
    return abs(seen / published - 1) <= tolerance


@paper.check("F1")
def _speed(context: Context) -> Seen:
    """The binding's stages, priced by the cascade's own points, over 4 models at 6 lengths."""
    seen = _ratios("flat", "fusemax", "latency")
    return Seen(f"{seen:.3g}x (published 6.72x)", _close(seen, 6.72), seen > 1)


@paper.check("F2")
def _energy(context: Context) -> Seen:
    """Operations, registers and memory; one constant of the baseline is fitted to one published point (FLAT, BERT, 4K)."""
    seen = _ratios("fusemax", "flat", "energy")
    detail = "an operand that the baseline's lanes fetch costs 75 pJ: fitted to one of the 24 points, not published"
    return Seen(f"{seen:.1%} of FLAT's (published 78.7%)", abs(seen - 0.787) <= 0.1, seen < 1, detail)


@paper.check("F3")
def _speed_whole(context: Context) -> Seen:
    """Attention and the linear layers of an encoder layer."""
    seen = _ratios("flat", "fusemax", "latency", whole=True)
    return Seen(f"{seen:.3g}x (published 5.30x)", _close(seen, 5.30), seen > 1)


@paper.check("F4")
def _energy_whole(context: Context) -> Seen:
    seen = _ratios("fusemax", "flat", "energy", whole=True)
    return Seen(f"{seen:.1%} of FLAT's (published 83.3%)", abs(seen - 0.833) <= 0.1, seen < 1)


@paper.check("F5")
def _speed_unfused(context: Context) -> Seen:
    seen = _ratios("unfused", "fusemax", "latency")
    return Seen(f"{seen:.4g}x (published 10.05x)", _close(seen, 10.05), seen > 1)


@paper.check("F6")
def _utilization(context: Context) -> Seen:
    first, last = (_table()["fusemax"][i][0].utilization for i in (0, 5))
    flat = _table()["flat"][0][0].utilization
    value = f"BERT {first:.3f} at 1K, {last:.3f} at 1M; FLAT {flat:.3f}"
    return Seen(value, _close(first, 0.89) and _close(last, 0.993) and _close(flat, 0.125), first > flat)


@paper.check("F7")
def _ablation(context: Context) -> Seen:
    """Each of the three steps alone: the cascade on FLAT's array, then the array, then the pipeline."""
    over = {name: _ratios(name, "fusemax", "latency") for name in ("flat", "cascade", "architecture")}
    value = ", ".join(f"{r:.3g}x over {n}" for n, r in over.items())
    return Seen(value, _close(over["cascade"], 7.34) and _close(over["architecture"], 3.03), over["architecture"] > 1)


@paper.check("F8")
def _pass_counts(context: Context) -> Seen:
    """The analyser derives the counts from the cascades; running them pass by pass loads as often and is right."""
    from hasten.workload.attention import execute
    from hasten.workload.passes import passes

    published = {"three-pass": 3, "two-pass": 2, "local-max": 2, "one-pass": 1}
    found, wrong = {}, []
    for kind in published:
        cascade, given, expected, rank = _inputs(kind, 1000, 64, context.seed)
        report = passes(cascade, rank)
        run = execute(cascade, given, rank)
        (output,) = run.outputs.values()
        error = float((output.reshape(expected.shape) - expected).abs().max())
        # A pass has at hand what it makes itself; everything else that it reads, it loads.
        made = {e.output.tensor: when for e, when in zip(cascade.einsums, report.einsums, strict=True)}
        loads = dict.fromkeys(report.visits, 0)
        for tensor in loads:
            reads = {
                when
                for e, when in zip(cascade.einsums, report.einsums, strict=True)
                if any(a.tensor == tensor for a in e.inputs)
            }
            loads[tensor] = len(reads - {made.get(tensor)})
        seen = {t: run.loads.get(t, 0) / cascade.tensors[t].elements for t in loads}
        if error > 1e-10 or seen != loads:
            wrong.append(f"{kind}: error {error:.1e}, expected loads {loads}, seen {seen}")
        found[kind] = report.count
    value = ", ".join(f"{kind} {count}" for kind, count in found.items())
    return Seen(value, found == published and not wrong, detail="; ".join(wrong))


@paper.check("F9")
def _footprints(context: Context) -> Seen:
    """Elements alive at once while the cascades run, at growing numbers of keys."""
    from hasten.workload.attention import execute

    sizes = (512, 2048, 8192)
    peaks: dict[str, list[int]] = {}
    for kind in ("three-pass", "one-pass"):
        for m in sizes:
            cascade, given, _, rank = _inputs(kind, m, 64, context.seed)
            peaks.setdefault(kind, []).append(execute(cascade, given, rank).peak)
    flat = len(set(peaks["one-pass"])) == 1
    grows = peaks["three-pass"][-1] >= 12 * peaks["three-pass"][0]
    value = f"elements alive at {', '.join(map(str, sizes))} keys: one-pass {peaks['one-pass']}, three-pass {peaks['three-pass']}"
    return Seen(value, flat and grows, flat)
