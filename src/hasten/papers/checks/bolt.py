"""Checks of BOLT: Bandwidth-Optimized Lightning-Fast Oblivious Map powered by Secure HBM Accelerators."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import numpy as np
import torch

from hasten.cost.chips.oblivious_access import ObliviousAccess
from hasten.kernels.oblivious_bins import oblivious_bins
from hasten.papers.experiment import Experiment, Seen, check, shared
from hasten.papers.language_models import real_model, real_tokens
from hasten.runtime.storage.access_leakage import WORKLOADS, leakage
from hasten.runtime.storage.compared_maps import LinearScan, PathORAM, SealedTable, access_seconds, moved_bytes
from hasten.runtime.storage.mapped_embedding import MappedEmbedding
from hasten.runtime.storage.oblivious_map import BoundSeen, MapBounds, ObliviousMap, bounds_seen, exercised
from hasten.runtime.storage.sealed_pages import RecordedPages, recorded

# (items of a bin, share of trusted bins) -> fullest bin, items waiting, items in trusted bins after 1e9 accesses.
_PUBLISHED = {
    (8, 0.2): (12, 53_422, 210_521), (8, 0.5): (12, 33_631, 525_356), (8, 0.01): (12, 65_887, 10_680),
    (16, 0.2): (20, 26_996, 210_382), (16, 0.5): (20, 17_052, 525_139), (16, 0.01): (20, 33_152, 10_635),
}  # fmt: skip
# (share of trusted bins, bytes of a page of 12 tuples of 4 + V bytes) -> microseconds of an access, 1M items, U55C.
_MICROSECONDS = {(0.01, 144): 4.957, (0.2, 144): 4.569, (0.5, 144): 3.731, (1.0, 144): 2.630, (0.2, 816): 6.987}


def _items(experiment: Experiment) -> int:
    return experiment.at(quick=1 << 12, normal=1 << 20)


@shared(weight=50)
def _steady(experiment: Experiment) -> dict[tuple[int, float], dict[str, BoundSeen]]:
    """Bounds and what was seen of them, after ten accesses a page and two million more (of 1.5e8 in a long run)."""
    found = {}
    more = experiment.at(quick=1000, normal=2_000_000, long=150_000_000)
    for done, (per_bin, trusted) in enumerate(_PUBLISHED):
        experiment.tell(f"{per_bin} items a bin, {trusted} of them trusted", done / len(_PUBLISHED))
        bounds = MapBounds(_items(experiment), per_bin, trusted)
        bins = exercised(bounds, bounds.make(0, bytes(16)), 10 * bounds.pages + more, experiment.seed)
        found[per_bin, trusted] = bounds_seen(bounds, bins)
    return found


def _bounded(experiment: Experiment, names: tuple[str, ...], place: int | None) -> tuple[str, bool]:
    """The most that was seen of bounds beside them, in words; whether all are kept."""
    parts, kept = [], True
    for (per_bin, trusted), bounds in experiment.once(_steady).items():
        kept = kept and all(bounds[n].most <= bounds[n].bound for n in names)
        each = " and ".join(f"{bounds[n].most:,} <= {bounds[n].bound:,.2f}" for n in names)
        paper = "" if place is None else f" (published {_PUBLISHED[per_bin, trusted][place]:,})"
        parts.append(f"c={per_bin}, alpha={trusted}: {each}{paper}")
    return "; ".join(parts), kept


@check("B4", weight=8)
def _bins(experiment: Experiment) -> Seen:
    """And with one choice in place of two, in bins with room for more, where the bound must be passed."""
    value, kept = _bounded(experiment, ("bin",), 0)
    bounds = MapBounds(_items(experiment))
    wide = oblivious_bins(
        bounds.capacity, bounds.bins, bounds.trusted_bins, 64, bounds.capacity, bounds.capacity, 0,
        seed=bytes(16), choices=1,
    )  # fmt: skip
    single = bounds_seen(bounds, exercised(bounds, wide, 2 * bounds.capacity, experiment.seed))["bin"]
    return experiment.judge(f"{value}; with one choice {single.most}", kept and single.most > single.bound, kept)


@check("B5")
def _buffer(experiment: Experiment) -> Seen:
    """The bound, and the mean that flushing leaves: half an item a page, within 2 %."""
    value, kept = _bounded(experiment, ("buffered",), 1)
    halves = [
        bounds["buffered"].now / (MapBounds(_items(experiment), *key).pages / 2)
        for key, bounds in experiment.once(_steady).items()
    ]
    value += f"; at the end {min(halves):.3f} to {max(halves):.3f} of half an item a page"
    return experiment.judge(value, kept and all(abs(h - 1) <= 0.02 for h in halves), kept)


@check("B6")
def _trusted(experiment: Experiment) -> Seen:
    """Items in trusted bins, and their sum with those that wait."""
    value, kept = _bounded(experiment, ("trusted", "together"), 2)
    return experiment.judge(value, kept)


def _moved(make: Callable[..., ObliviousMap | PathORAM], n: int, accesses: int) -> float:
    """Bytes that a look-up reads and writes, of ``n`` values of 64 bytes."""
    stores: list[RecordedPages] = []
    table = make(dict.fromkeys(range(n), bytes(64)), pages=recorded(stores))
    return moved_bytes(table, stores[0], n, accesses)


@check("B3", weight=25)
def _bandwidth(experiment: Experiment) -> Seen:
    """Counted at two sizes each, of Path ORAM up to 2^16: it is a level more for each doubling."""
    small, large = experiment.at(quick=(1 << 6, 1 << 8), normal=(1 << 12, 1 << 20))
    accesses = experiment.at(quick=50, normal=20_000)
    ours = [_moved(ObliviousMap, n, accesses) for n in (small, large)]
    tree = [_moved(PathORAM, n, accesses // 20) for n in (small, min(large, 1 << 16))]
    level = (tree[1] - tree[0]) / ((min(large, 1 << 16)).bit_length() - small.bit_length())
    theirs = [tree[0], tree[0] + level * (large.bit_length() - small.bit_length())]
    grows = [row[1] / row[0] - 1 for row in (ours, theirs)]
    value = (
        f"bytes a look-up of 64: {ours[0]:,.0f} at {small:,} items and {ours[1]:,.0f} at {large:,} ({grows[0]:+.0%}); "
        f"Path ORAM {theirs[0]:,.0f} and {theirs[1]:,.0f} ({grows[1]:+.0%})"
    )
    less = ours[1] < theirs[1] / 3
    return experiment.judge(value, less and grows[0] < 0.1, less or grows[0] < grows[1])


@check("B3.embedding", weight=60, needs=60)
def _embedding(experiment: Experiment) -> Seen:
    """SmolLM2's table of 49,152 x 576 in fp16 behind each map; tokens of a text, any token, one token again and again."""
    tokens = experiment.once(real_tokens, 20_000)
    table = experiment.once(real_model, "fp32").network.get_input_embeddings().weight.detach().half()
    n, each = len(table), experiment.at(quick=20, normal=2000)
    streams = {
        "text": torch.tensor(tokens[:each]), "any": torch.randint(n, (each,)), "one": torch.full((each,), tokens[0]),
    }  # fmt: skip
    moved: dict[str, list[float]] = {}
    exact = True
    for name, make, share in (
        ("ours", None, 1), ("plain table", SealedTable, 1), ("Path ORAM", PathORAM, 20), ("linear scan", LinearScan, 1000)
    ):  # fmt: skip
        experiment.tell(name)
        stores: list[RecordedPages] = []
        layer = MappedEmbedding.from_embedding(table, make, pages=recorded(stores))
        for ids in streams.values():
            asked = ids[: max(2, each // share)]
            stores[0].forget()
            exact = exact and torch.equal(layer(asked), table[asked])
            moved.setdefault(name, []).append(stores[0].moved / len(asked))
    mean = {name: sum(row) / len(row) for name, row in moved.items()}
    ours = moved["ours"]
    value = (
        f"{'bit-exact; ' if exact else 'other values; '}kB a look-up: "
        + ", ".join(f"{name} {m / 1e3:,.1f}" for name, m in mean.items())
        + f"; ours by stream {', '.join(f'{name} {m / 1e3:.1f}' for name, m in zip(streams, ours, strict=True))}"
    )
    # Pages of 0, 1 or 2 an access: three standard deviations of their mean.
    wide = 3 * (2 * 0.2 * 0.8 / each) ** 0.5 / 1.6
    even = max(abs(m / mean["ours"] - 1) for m in ours) <= wide * 2**0.5
    return experiment.judge(value, exact and even and mean["ours"] < mean["Path ORAM"] / 3, exact and even)


@check("leak", weight=40)
def _leakage(experiment: Experiment) -> Seen:
    """Workloads told apart by pages: at chance for the map, nearly always for a table with a cache, which is not asked for
    missing keys: they touch no page there, as one key again and again does not."""
    items, accesses, pieces = experiment.at(quick=(64, 20, 8), normal=(4096, 200, 200))
    tried = functools.partial(leakage, items=items, accesses=accesses, pieces=pieces, seed=1)
    drawn = random.Random(experiment.seed)
    ours = tried(lambda i, p: ObliviousMap(i, pages=p, entropy=drawn.randbytes, capacity=2 * len(i)))
    some = {name: w for name, w in WORKLOADS.items() if name != "missing keys"}
    table = tried(lambda i, p: SealedTable(i, pages=p, cached=len(i) // 64), workloads=some)
    value = (
        f"{ours.accuracy:.1%} of {ours.pieces} pieces guessed, chance {ours.chance:.0%} +- {ours.sigma:.1%}; "
        f"of a table with a cache {table.accuracy:.1%}, chance {table.chance:.0%}"
    )
    return experiment.judge(value, not ours.leaks and table.accuracy > 0.95, not ours.leaks and table.leaks)


@shared(weight=30)
def _rates(experiment: Experiment) -> dict[float, float]:
    """Seconds of one thread that an access to sealed values of 64 bytes takes, by the share of trusted bins."""
    n, found = _items(experiment), {}
    for trusted in experiment.at(quick=(0.2, 1.0), normal=(0.01, 0.2, 0.5, 1.0)):
        table = ObliviousMap.of_rows(np.zeros((n, 64), np.uint8), trusted=trusted)
        found[trusted] = access_seconds(table, n, experiment.at(quick=200, normal=100_000))
    return found


@check("rate")
def _fast(experiment: Experiment) -> Seen:
    """Of this process' own time, one thread, pages in host memory sealed with AES-256-GCM."""
    rate = 1 / experiment.once(_rates)[0.2]
    return experiment.judge(f"{rate:,.0f} accesses/s at N = {_items(experiment):,}, 64-byte values", rate >= 50_000)


@check("B7")
def _latency(experiment: Experiment) -> Seen:
    """A base, a round trip and a bandwidth from three of the published figures give the other two; and here, measured."""
    fitted = [(0.01, 144), (1.0, 144), (0.2, 816)]
    model = ObliviousAccess.fitted([(*key, _MICROSECONDS[key]) for key in fitted])
    left = {key: (model.seconds(*key), seen) for key, seen in _MICROSECONDS.items() if key not in fitted}
    here = experiment.once(_rates)
    value = (
        f"{model.page_seconds(144):.2f} us a page of 144 bytes; predicted "
        + ", ".join(f"{p:.2f} us at alpha={t} (published {s})" for (t, _), (p, s) in left.items())
        + "; here "
        + ", ".join(f"{1e6 * s:.1f} us at {t}" for t, s in here.items())
    )
    near = all(abs(p / s - 1) <= 0.05 for p, s in left.values()) and abs(model.page_seconds(144) / 1.2 - 1) <= 0.1
    falls = sorted(here.values(), reverse=True) == list(here.values())
    return experiment.judge(value, near and falls, falls)
