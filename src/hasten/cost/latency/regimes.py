"""One machine as several devices: networks measured under different threads, batches, formats, layouts, programs and
instruction sets. Every finished measurement is kept in a file, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hasten.cost.latency.tables import Arch, LatencyTables
from hasten.cost.preserving import fold_normalization
from hasten.errors import HastenError
from hasten.files import parse_json, read_bytes, read_text
from hasten.processes import environment, torch_threads

# What each library calls an instruction set that it shall not exceed.
_LIMITS: dict[str, dict[str, str]] = {
    "sse4.1": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "DNNL_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}  # fmt: skip
Build = Callable[[Arch], tuple[nn.Module, Tensor]]


@dataclass(frozen=True)
class Regime:
    """How this machine runs a network: each regime is a device to a predictor.

    Args:
        threads: of torch.
        batch: images at once.
        dtype: ``fp32`` or ``bf16``.
        layout: of the images in memory.
        program: ``eager``; ``folded`` (batch norms within the convolutions); ``jit`` (a frozen TorchScript trace,
            optimized for inference) or ``compiled`` (``torch.compile``), both of which take a second or more a network.
        isa: the largest instruction set that may be used, ``""`` for all there are. Libraries read it when a process
            starts, so that a limited regime runs in a process of its own.
    """

    threads: int = 1
    batch: int = 1
    dtype: Literal["fp32", "bf16"] = "fp32"
    layout: Literal["contiguous", "channels-last"] = "contiguous"
    program: Literal["eager", "folded", "jit", "compiled"] = "eager"
    isa: Literal["", "sse4.1", "avx2"] = ""

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1:
            raise HastenError("a regime has at least one thread and one image")
        if self.isa and self.isa not in _LIMITS:
            raise HastenError(f"no limit to {self.isa!r}: take one of {', '.join(_LIMITS)}")

    @property
    def name(self) -> str:
        """For tables, such as ``cpu-1t-b8-bf16-channels-last``."""
        parts = [f"cpu-{self.threads}t-b{self.batch}-{self.dtype}"]
        parts += [
            v for v, plain in ((self.layout, "contiguous"), (self.program, "eager"), (self.isa, "")) if v != plain
        ]
        return "-".join(parts)

    def prepare(self, module: nn.Module, image: Tensor) -> Callable[[], Any]:
        """A call of the network in this regime; the module given stays as it is.

        Args:
            module: as built, in fp32.
            image: (1, channels, height, width).
        """
        made = fold_normalization(module) if self.program == "folded" else copy.deepcopy(module).eval()
        x = image.expand(self.batch, *image.shape[1:]).contiguous()
        if self.dtype == "bf16":
            made, x = made.to(torch.bfloat16), x.to(torch.bfloat16)
        if self.layout == "channels-last":
            made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = x.contiguous(memory_format=torch.channels_last)
        program: Any = made
        if self.program == "jit":
            program = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(made, x, check_trace=False)))
        elif self.program == "compiled":
            program = torch.compile(made)
        return lambda: program(x)


def _clock(regime: Regime) -> Callable[[], float]:
    """One thread's own clock, which stands still while other processes have the core; of several threads the wall's."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time if regime.threads == 1 and fine else time.perf_counter


@torch.inference_mode()
def time_regimes(
    module: nn.Module, image: Tensor, regimes: Sequence[Regime], rounds: int = 4, runs: int = 3
) -> list[tuple[float, float]]:
    """Seconds of a network in each regime, twice: the least of the even rounds and of the odd ones.

    The regimes take turns, so that a disturbance of some milliseconds reaches few runs of each; the least time is the
    one without any. The difference of the two says how much noise is left. With one thread it is the thread's own time,
    where the system counts it finely.

    Args:
        module, image: the network and one image.
        regimes: all of this process's instruction set.
        rounds: at least 2.
        runs: in a round, after one that is not timed.
    """
    calls = [r.prepare(module, image) for r in regimes]
    found = [[math.inf, math.inf] for _ in regimes]
    for turn in range(rounds):
        for regime, call, best in zip(regimes, calls, found, strict=True):
            with torch_threads(regime.threads):
                clock = _clock(regime)
                call()
                for _ in range(runs):
                    begun = clock()
                    call()
                    best[turn % 2] = min(best[turn % 2], clock() - begun)
    return [(a, b) for a, b in found]


def _serve(
    pipe: Any, build: Build, archs: Sequence[Arch], regimes: Sequence[Regime], rounds: int, runs: int
) -> None:  # pragma: no cover - in another process
    """Measures in a process of limited instruction set, and sends every network's times when it has them."""
    try:
        for arch in archs:
            module, image = build(arch)
            pipe.send((arch, time_regimes(module, image, regimes, rounds, runs)))
        pipe.send(None)
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _measured(
    build: Build, archs: Sequence[Arch], regimes: Sequence[Regime], rounds: int, runs: int
) -> Generator[tuple[Arch, list[tuple[float, float]]], None, None]:
    isa = regimes[0].isa
    if not isa:
        for arch in archs:
            module, image = build(arch)
            yield arch, time_regimes(module, image, regimes, rounds, runs)
        return
    context = multiprocessing.get_context("spawn")  # libraries read their limits when they are loaded
    receiving, sending = context.Pipe(False)
    process = context.Process(target=_serve, args=(sending, build, archs, regimes, rounds, runs), daemon=True)
    with environment(_LIMITS[isa]):
        process.start()
    sending.close()
    try:
        while True:
            try:
                got = receiving.recv()
            except EOFError:
                raise HastenError(f"measuring with {isa} alone ended early: this machine may not run it") from None
            if got is None:
                return
            if isinstance(got, str):
                raise HastenError(f"measuring with {isa} alone failed: {got}")
            yield got
    finally:
        process.terminate()
        process.join()


@dataclass
class MeasuredRegimes:
    """Measurements of networks in regimes.

    Args:
        archs, regimes: what was measured.
        halves: regime's name -> (networks, 2) seconds, NaN where the time ran out.
        seconds: wall-clock time that the measuring took.
    """

    archs: tuple[Arch, ...]
    regimes: tuple[Regime, ...]
    halves: dict[str, np.ndarray[Any, Any]]
    seconds: float

    @property
    def tables(self) -> LatencyTables:
        """The lesser of both halves, as tables; regimes without any measurement are left out."""
        rows = {n: h.min(1) for n, h in self.halves.items() if not np.isnan(h).all()}
        return LatencyTables(self.archs, rows, dict.fromkeys(rows, "measured"))


def measure_regimes(
    build: Build,
    archs: Sequence[Arch],
    regimes: Sequence[Regime],
    *,
    path: str | Path | None = None,
    subject: str = "",
    rounds: int = 4,
    runs: int = 3,
    seconds: float | None = None,
    progress: Callable[[str, float], None] = lambda message, share: None,
) -> MeasuredRegimes:
    """Measures networks on this machine in several regimes.

    Args:
        build: a network and one image (1, channels, height, width) for an architecture; importable by its name where
            a regime limits the instruction set.
        archs: what to measure, in this order: at once in all regimes of one instruction set and number of threads.
        regimes: with different names.
        path: a file of finished measurements, one a line. With it a run goes on where another stopped.
        subject: what the file must be of, such as the space's name.
        rounds, runs: as `time_regimes`.
        seconds: stop about then, each instruction set and number of threads with its share of the time.
        progress: told what is measured, and the share done.

    Raises:
        HastenError: two regimes of one name, a file of another subject or machine, or a process that failed.
    """
    archs = tuple(tuple(int(o) for o in a) for a in archs)
    names = [r.name for r in regimes]
    if not archs or len(set(names)) < len(names) or len(set(archs)) < len(archs):
        raise HastenError("give at least one network, and every network and every regime once")
    log = _Log(path, subject)
    halves = {n: np.full((len(archs), 2), np.nan) for n in names}
    place = {a: i for i, a in enumerate(archs)}
    for name, arch, pair in log.known:
        if name in halves and arch in place:
            halves[name][place[arch]] = pair
    begun = time.perf_counter()
    kinds = dict.fromkeys((r.isa, r.threads) for r in regimes)
    groups = [[r for r in regimes if (r.isa, r.threads) == kind] for kind in kinds]
    counts = [len(g) for g in groups]
    with log:
        for number, group in enumerate(groups):
            left = [a for i, a in enumerate(archs) if any(np.isnan(halves[r.name][i, 0]) for r in group)]
            until = None if seconds is None else begun + seconds * sum(counts[: number + 1]) / sum(counts)
            if not left:
                continue
            label = f"measuring {len(left)} networks in {len(group)} regimes" + (
                f", {group[0].isa}" * bool(group[0].isa)
            )
            with contextlib.closing(_measured(build, left, group, rounds, runs)) as source:
                for done, (arch, pairs) in enumerate(source, 1):
                    for regime, pair in zip(group, pairs, strict=True):
                        halves[regime.name][place[arch]] = pair
                        log.add(regime.name, arch, pair)
                    progress(label, (sum(counts[:number]) + counts[number] * done / len(left)) / sum(counts))
                    if until is not None and time.perf_counter() > until:
                        break
    return MeasuredRegimes(archs, tuple(regimes), halves, time.perf_counter() - begun)


class _Log:
    """Finished measurements, a line each: what a stopped process wrote last may be cut off, and is left out."""

    def __init__(self, path: str | Path | None, subject: str) -> None:
        self.path = None if path is None else Path(path)
        self.head = {
            "subject": subject,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        self.known: list[tuple[str, Arch, tuple[float, float]]] = []
        self._file: Any = None
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        lines = read_text(path, "the measurements").splitlines()
        rows: list[Any] = []
        for i, line in enumerate(lines):
            try:
                rows.append(parse_json(line))
            except ValueError:
                if i < len(lines) - 1:
                    raise HastenError(f"{path.name}, line {i + 1}, is no measurement: remove the line") from None
        if rows and rows[0] != self.head:
            raise HastenError(f"{path.name} is of {rows[0]}, not of {self.head}: give another file")
        for row in rows[1:]:
            try:
                name, arch, (a, b) = row
                pair = (float(a), float(b))
                if not (math.isfinite(sum(pair)) and min(pair) > 0):
                    raise ValueError
                self.known.append((str(name), tuple(int(o) for o in arch), pair))
            except (TypeError, ValueError):
                raise HastenError(f"{path.name} holds {row}, which is no measurement: remove the line") from None

    def __enter__(self) -> _Log:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                whole = read_bytes(self.path, "the measurements") if self.path.exists() else b""
                self._file = self.path.open("ab")
                if whole and not whole.endswith(b"\n"):
                    self._file.truncate(whole.rfind(b"\n") + 1)
                if b"\n" not in whole:
                    self._write(self.head)
            except OSError as error:
                raise HastenError(f"cannot write {self.path}: {error.strerror or error}") from None
        return self

    def add(self, name: str, arch: Arch, pair: tuple[float, float]) -> None:
        if self._file is not None:
            self._write([name, arch, pair])

    def _write(self, row: Any) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
