"""Describing this machine by measuring it.

The probe times operators, never models: memory streams, matrix products over a grid of shapes,
convolutions, attention, element-wise functions, and the cost of launching one. Each time is the least
of several runs, because other processes only ever add.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.files import cache_folder
from hasten.hardware.curve import Curve
from hasten.hardware.device import ComputeUnit, Device, load_device, named
from hasten.hardware.machine import machine, memory_size
from hasten.hardware.memory_rates import HOROWITZ, cache_levels, main_memory, memory_level, ordered, packed_rates
from hasten.hardware.operator_curves import STEPS
from hasten.hardware.quantity import Quantity, parse
from hasten.hardware.timing import MEASURED, filled, in_a_hurry, seconds, using_threads

__all__ = ["probe", "remember"]

Progress = Callable[[str, float], None]
# Seconds after which nothing is measured again.
_ENOUGH = 15.0
# Seconds after which operators are timed once: a machine so busy does not get through in the usual time.
_PATIENCE = 40.0


@named("here")
def probe(
    refresh: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Device:
    """This machine as a `Device`, measured in under 20 s the first time and remembered.

    Args:
        refresh: measure again even if a result is remembered.
        threads: threads that PyTorch computes with; its present setting when None.
        progress: called with what is being measured and the fraction done.
        cache: folder of remembered results; the user's cache folder when None.

    Raises:
        HastenError: ``threads`` is not positive.
    """
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise HastenError(f"cannot probe with {threads} threads: give at least 1")
    identity = machine(threads)
    path = _remembered(identity, cache)
    if not refresh and path.is_file():
        try:
            known = load_device(path)
        except HastenError:
            known = None  # damaged: measured again below
        if known is not None and known.identity == identity:
            return known
    begun = time.monotonic()
    with using_threads(threads):
        device = _measure(identity, threads, progress or (lambda what, done: None))
    if time.monotonic() - begun <= _PATIENCE:
        remember(device, cache)  # not what was measured in a hurry: the machine may be quiet next time
    return device


def remember(device: Device, cache: str | Path | None = None) -> None:
    """Makes a probed device what `probe` answers from now on, as where an older probe turns out to be the better one.

    Args:
        device: what `probe` returned on this machine.
        cache: folder of remembered results; the user's cache folder when None.
    """
    with contextlib.suppress(HastenError):  # nowhere to remember it: the next probe measures again
        device.save(_remembered(device.identity, cache))


def _remembered(identity: dict[str, str], cache: str | Path | None) -> Path:
    return (Path(cache) if cache else cache_folder()) / "probe" / f"{_key(identity)}.toml"


def _key(identity: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]


def _least(first: Curve, second: Curve) -> Curve:
    """The lesser of two measurements of one curve, and no point above a larger problem's time."""
    times = [min(a, b) for a, b in zip(first.seconds, second.seconds, strict=True)]
    stride = 1
    for sizes in reversed(first.grid):
        for index in reversed(range(len(times))):
            if index // stride % len(sizes) < len(sizes) - 1:
                times[index] = min(times[index], times[index + stride])
        stride *= len(sizes)
    return first.model_copy(update={"seconds": tuple(times)})


def _measure(identity: dict[str, str], threads: int, progress: Progress) -> Device:
    started = time.perf_counter()
    total = len(STEPS) + 2
    with torch.random.fork_rng(devices=[]), in_a_hurry(_PATIENCE):
        torch.manual_seed(0)
        progress("memory levels", 0.0)
        memory = [main_memory()]
        levels = cache_levels(threads)
        launch, module, view, fork = _overheads(threads)
        found: list[list[Curve]] = []
        for index, (what, step) in enumerate(STEPS):
            progress(what, (index + 1) / total)
            found.append(step())
        progress("packed weights", (total - 1) / total)
        packed, rows = packed_rates()
        memory.append(main_memory())
        # Again, some seconds later, as far as time allows: what another program disturbs, it seldom
        # disturbs both times.
        for index, (what, step) in enumerate(STEPS):
            if time.perf_counter() - started > _ENOUGH:
                break
            progress(f"{what}, again", (total - 1) / total)
            found[index] = [_least(a, b) for a, b in zip(found[index], step(), strict=True)]
    curves = [_least(curve, curve) for step_curves in found for curve in step_curves]
    read, write = (max(rates) for rates in zip(*memory))
    capacity = max(float(memory_size()), float(levels[-1].capacity))
    levels = ordered([*levels, memory_level("DRAM", capacity, read, write)])
    limit, idle = _power(threads)
    progress("done", 1.0)
    return Device(
        name="here",
        title=f"this machine: {identity['cpu']}, {threads} thread{'s' if threads > 1 else ''}",
        kind="cpu",
        compute=_units(curves),
        memory=tuple(levels),
        launch_overhead=launch,
        module_overhead=module,
        view_overhead=view,
        fork_overhead=fork,
        idle_power=idle,
        max_power=limit,
        packed=packed,
        packed_row=rows,
        curves=tuple(curves),
        identity=identity,
    )


def _overheads(threads: int) -> tuple[Quantity, Quantity, Quantity, Quantity]:
    """Seconds to launch an operator on one element, to call a module, to make a view, to use the threads."""

    class Nothing(torch.nn.Module):
        def forward(self, x: Any, scale: float = 1.0) -> Any:
            return x

    x = torch.ones(1)
    module = Nothing().eval()
    launch = seconds(lambda: torch.add(x, x), 0.05, 9)
    empty = seconds(lambda: None, 0.02, 9)
    call = max(seconds(lambda: module(x, scale=2.0), 0.05, 9) - empty, 0.0)
    view = seconds(lambda: x.view(1, 1).transpose(0, 1), 0.05, 9) / 2
    fork = 0.0
    if threads > 1:
        # The smallest operator that torch gives to more than one thread, and its work by one alone.
        wide, into = filled(65536), filled(65536)
        several = seconds(lambda: torch.exp(wide, out=into), 0.05, 9)
        with using_threads(1):
            alone = seconds(lambda: torch.exp(wide, out=into), 0.05, 9)
        fork = max(several - launch - (alone - launch) / min(threads, 2), 0.0)
    made = [Quantity.make(figure, "seconds", MEASURED) for figure in (launch, call, view, fork)]
    return made[0], made[1], made[2], made[3]


def _units(curves: Sequence[Curve]) -> tuple[ComputeUnit, ComputeUnit]:
    """Peaks: the best matrix product of each format, and the best rate of additions in cache."""
    peak: dict[str, Quantity] = {}
    vector = 0.0
    for curve in curves:
        points = list(zip(itertools.product(*curve.grid), curve.seconds))
        if curve.operation == "mm":
            rate = max(2 * math.prod(sizes) / t for sizes, t in points)
            source = f"{MEASURED}: best matrix product"
            peak[curve.dtype] = Quantity.make(rate, "operations per second", source)
        elif curve.operation == "relu":
            launch = min(curve.seconds)
            vector = max((sizes[0] / (t - launch) for sizes, t in points if t > 2 * launch), default=1e9)
    sources = {
        "fp32": ("2.3 pJ/FLOP", "(3.7 + 0.9) pJ a multiply-add, by 2"),
        "bf16": ("0.75 pJ/FLOP", "fp16, (1.1 + 0.4) pJ a multiply-add, by 2"),
        "int8": ("0.115 pJ/FLOP", "(0.2 + 0.03) pJ a multiply-add, by 2"),
    }
    energy = {
        dtype: parse({"value": value, "source": f"{HOROWITZ}: {how}"}, "joules per operation")
        for dtype, (value, how) in sources.items()
    }
    rate = Quantity.make(vector, "operations per second", f"{MEASURED}: best element-wise operator")
    return (
        ComputeUnit(
            name="matrix product",
            runs=("contraction",),
            peak=peak,
            energy={dtype: figure for dtype, figure in energy.items() if dtype in peak},
        ),
        ComputeUnit(name="vector", runs=("vector",), peak={"fp32": rate}, energy={"fp32": energy["fp32"]}),
    )


def _power(threads: int) -> tuple[Quantity, Quantity]:
    """Greatest and idle power in watts, from the processor's own limit where it is readable."""
    limit, source = 12.5 * threads, "estimated: 12.5 W a core, as no counter is readable here"
    counter = Path("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
    try:
        limit, source = int(counter.read_text()) * 1e-6, "the processor's long-term power limit (RAPL)"
    except (OSError, ValueError):
        pass
    return (
        Quantity.make(limit, "watts", source),
        Quantity.make(0.3 * limit, "watts", f"estimated as 30% of the greatest; {source}"),
    )
