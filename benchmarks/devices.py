"""Predicted against published speeds of named models on named machines.

    python benchmarks/devices.py              the judged half of the sources: by phase, kind of device and format
    python benchmarks/devices.py --fit        derives the families' shares from the other half, and writes them
    python benchmarks/devices.py --rows ...   these rows alone, with what bounds them

The sources of `published/measurements.toml` are divided in two halves by a hash of their names. The shares that
`hasten.hardware` has for each family of devices are derived from one half, and judged on the other. The plain roofline
beside them takes peaks as they are: the larger of arithmetic over its peak and bytes over main memory's bandwidth.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hasten.cost.demand import Demand
from hasten.cost.roofline import demands
from hasten.hardware import Device
from hasten.hardware.achieved import Achieved
from published.rows import Measured, device_of, rows, workload_of
from rows import Row, compared, emit


@dataclass(frozen=True)
class Priced:
    """A row with what its kernels ask of its device.

    Args:
        row: what was measured.
        device: where.
        phases: phase -> (repeats in what the row's seconds are of, its kernels and how often each).
        launches: seconds before the phases, once each.
    """

    row: Measured
    device: Device
    phases: dict[str, tuple[float, Counter[Demand]]]
    launches: float

    def seconds(self, achieved: Achieved) -> float:
        """Predicted seconds of what the row measured."""
        training = self.row.phase == "train"
        total = self.launches
        for repeats, kernels in self.phases.values():
            total += repeats * sum(n * kernel.seconds(achieved, training)[0] for kernel, n in kernels.items())
        return total

    @property
    def roofline(self) -> float:
        """Seconds by peaks alone."""
        total = 0.0
        for repeats, kernels in self.phases.values():
            moved = sum(n * sum(s for _, _, s in k.outer) / k.parts for k, n in kernels.items())
            work: Counter[str] = Counter()
            for kernel, n in kernels.items():
                for unit, parts in kernel.units:
                    work[unit] += n * sum(s for kind, _, s in parts if kind != "other") / kernel.parts  # type: ignore[assignment]
            total += repeats * max(moved, max(work.values(), default=0.0))
        return total

    def bound(self, achieved: Achieved) -> str:
        """What most of the predicted time goes to."""
        spent: Counter[str] = Counter()
        for repeats, kernels in self.phases.values():
            for kernel, n in kernels.items():
                seconds, bound = kernel.seconds(achieved, self.row.phase == "train")
                spent[bound] += repeats * n * seconds  # type: ignore[assignment]
        return spent.most_common(1)[0][0] if spent else ""


def priced(row: Measured) -> Priced:
    """A row's kernels, described once for its device."""
    device = device_of(row)
    workload = workload_of(row)
    wanted = {"forward": 1.0} if row.phase == "forward" else {}
    if row.phase in ("prefill", "decode"):
        wanted = {row.phase: 1.0}
        if {p.name for p in workload.phases} == {"forward"}:
            wanted = {"forward": 1.0}
        elif row.scope == "end_to_end_static_batch":
            wanted = {"prefill": 1.0, "decode": float(row.generated_tokens)}
    elif row.phase == "train":
        wanted = {p.name: float(p.repeats) for p in workload.phases}
        # Each of the devices that divide the data keeps its part of the optimizer's state.
        wanted["optimizer"] = 1.0 / row.devices
    found = demands(workload, device, "fused" if row.schedule == "fused" else "eager", tuple(wanted))
    launches = float(device.launch_overhead) * sum(wanted.values()) if row.schedule == "fused" else 0.0
    return Priced(row, device, {name: (n, Counter(found[name])) for name, n in wanted.items()}, launches)


def ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    for rank, index in enumerate(order):
        found[index] = float(rank)
    return found


@dataclass(frozen=True)
class Score:
    """How near predictions are."""

    rows: int
    devices: int
    median: float
    within: float
    rank: float

    @classmethod
    def of(cls, items: Sequence[Priced], predicted: Callable[[Priced], float]) -> Score:
        ratios = [predicted(item) / item.row.seconds for item in items]
        each = [math.log(predicted(item)) for item in items], [math.log(item.row.seconds) for item in items]
        return cls(
            len(items),
            len({item.row.device_as_named for item in items}),
            statistics.median(abs(r - 1) for r in ratios),
            sum(0.5 <= r <= 2 for r in ratios) / len(ratios),
            statistics.correlation(ranks(each[0]), ranks(each[1])) if len(items) > 2 else math.nan,
        )


def ours(item: Priced) -> float:
    return item.seconds(item.device.reached)


def plain(item: Priced) -> float:
    return item.roofline


def report(items: Sequence[Priced]) -> list[Row]:
    """The judged table, by phase, kind and format, the plain roofline beside it, and the worst."""
    found: list[Row] = []

    def add(case: str, part: Sequence[Priced]) -> None:
        mine, base = Score.of(part, ours), Score.of(part, plain)
        where = f"{case}: {mine.rows} rows, {mine.devices} devices"
        found.append(compared(f"median error, {where}", "hasten", mine.median, "1", "roofline", base.median, True))
        found.append(Row(f"median error, {where}", "roofline", base.median, "1"))
        found.append(compared(f"within 2x, {where}", "hasten", mine.within, "1", "roofline", base.within, False))
        found.append(Row(f"within 2x, {where}", "roofline", base.within, "1"))
        if case == "all":
            found.append(compared("rank correlation", "hasten", mine.rank, "1", "roofline", base.rank, False))
            found.append(Row("rank correlation", "roofline", base.rank, "1"))

    add("all", items)
    for name, key in (
        ("phase", lambda r: r.phase), ("kind", lambda r: r.kind), ("format", lambda r: r.format),
    ):  # fmt: skip
        for value in sorted({key(item.row) for item in items}):
            add(f"{name} {value}", [item for item in items if key(item.row) == value])
    return found


def worst(items: Iterable[Priced], count: int) -> None:
    """Prints the rows that are furthest off, with what their prediction is bound by and what the source says."""
    for item in sorted(items, key=lambda i: -abs(math.log(ours(i) / i.row.seconds)))[:count]:
        row, guess = item.row, ours(item)
        print(
            f"{guess / row.seconds:5.2f}x  {row.id} {row.model} {row.format} {row.phase} b{row.batch} on {row.on}"
            f"{f' x{row.devices}' if row.devices > 1 else ''} ({row.framework}): {guess * 1e3:.4g} ms predicted, "
            f"{row.seconds * 1e3:.4g} measured, roofline {plain(item) * 1e3:.4g}; bound by "
            f"{item.bound(item.device.reached)}{'; ' + row.note if row.note else ''}",
            file=sys.stderr,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--fit", action="store_true", help="derive the families' shares from the fitted half")
    parser.add_argument("--half", choices=("judged", "fitted"), default="judged")
    parser.add_argument("--rows", nargs="*", default=[], help="ids of rows, whatever half they are of")
    parser.add_argument("--worst", type=int, default=12, help="rows to print, the furthest off first")
    arguments = parser.parse_args()
    half = "fitted" if arguments.fit else arguments.half
    started = time.perf_counter()
    chosen = [r for r in rows() if r.id in arguments.rows] or [r for r in rows() if not r.left_out and r.side == half]
    left = Counter(r.left_out for r in rows() if r.left_out)
    print(f"left out: {', '.join(f'{n} {why}' for why, n in left.items())}", file=sys.stderr)
    items = [priced(row) for row in chosen]
    print(f"{len(items)} rows described in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if arguments.fit:
        from published.shares import fit, write

        write(fit(items))
        return
    worst(items, arguments.worst)
    emit(report(items), json=arguments.json)


if __name__ == "__main__":
    main()
