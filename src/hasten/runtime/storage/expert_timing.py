"""Tokens really decoded with experts from a file, read ahead, on demand, or all of them resident before."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.cost.serving.expert_routes import lasting_routes
from hasten.cost.serving.expert_storage import predicted_step
from hasten.models.language.smallthinker import SmallThinkerLM
from hasten.processes import bytes_from_storage
from hasten.runtime.storage.expert_store import Counts, ExpertCache, ExpertEngine, ExpertFile, write_experts


@dataclass(frozen=True)
class ExpertTimes:
    """Of one way, a step: seconds, bytes, and the logits of all steps.

    Args:
        step, stalled, attention, experts: seconds of a token, and of its waiting, attention and experts.
        missing: experts read for a layer.
        bundle: bytes of one, in the file as in memory.
        read: bytes of bundles read for a token.
        stored: of those, the share that came from storage itself, whole pages counted, so above 1 where bundles end
            within pages; None where the system does not count it.
        drive: B/s at which storage gave bundles before, with nothing else to do.
        held_to: B/s that reads were held to; as ``drive`` where that is less.
        logits: (1, steps, vocabulary).
    """

    step: float
    stalled: float
    attention: float
    experts: float
    missing: float
    bundle: int
    read: float
    stored: float | None
    drive: float
    held_to: float
    logits: Tensor


def storage_rate(file: ExpertFile, reads: int = 48, readers: int = 2, seed: int = 0) -> float:
    """B/s at which a drive gives bundles that are scattered over a file, past the page cache: measured.

    Args:
        file: opened without a bandwidth, and to drop what the system keeps.
        reads: bundles that are read, in an order of their own.
        readers: reads under way at once.
        seed: of the order.
    """
    order = random.Random(seed).choices(list(file), k=reads)
    with ThreadPoolExecutor(readers) as pool:
        begun = time.perf_counter()
        for _ in pool.map(file.read, order):
            pass
        return reads * file.bundle_bytes / (time.perf_counter() - begun)


def timeline(seen: Mapping[str, ExpertTimes], layers: int) -> dict[str, float]:
    """Seconds of a step by the paper's timeline, for the ways of `time_experts` that read.

    What was measured with all experts resident, and the bytes that each way read at the rate that it was held to.
    """
    whole, found = seen["resident"], {}
    rest = whole.step - whole.attention - whole.experts
    for name, one in seen.items():
        if one is not whole:
            parts = (whole.attention, one.read / one.held_to, whole.experts)
            step = predicted_step(*(part / layers for part in parts), prefetch=name == "prefetch")
            found[name] = rest + layers * step
    return found


class _Clock:
    """Recorded routes, of the step that is set."""

    def __init__(self, routes: dict[tuple[int, int], Tensor]) -> None:
        self.routes, self.step = routes, 0

    def __call__(self, layer: int, chosen: Tensor) -> Tensor:
        return self.routes[self.step, layer]


def time_experts(
    model: SmallThinkerLM,
    steps: int,
    length: int,
    *,
    share: float = 0.25,
    bandwidth: float | None = 100e6,
    form: str = "fp32",
    seed: int = 0,
) -> dict[str, ExpertTimes]:
    """``prefetch``, ``on demand`` and ``resident`` -> what was measured, over the same routes.

    Args:
        model: routes before attention.
        steps: tokens that count, after four that do not.
        length: cached tokens of random numbers that attention reads.
        share: of all experts that memory holds.
        bandwidth: B/s that reads are held to, past the page cache; None for what the drive gives.
        form: that experts are kept in, see `write_experts`.
        seed: of the routes.
    """
    config, first = model.config, 4
    routes = {
        (step, layer): torch.tensor([chosen])
        for step, layer, chosen in lasting_routes(config.experts, config.used, config.layers, steps + first, seed)
    }
    found: dict[str, ExpertTimes] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.safetensors"
        write_experts(model, path, form)
        drive = storage_rate(ExpertFile(path))
        for name, part, prefetch in (("prefetch", share, True), ("on demand", share, False), ("resident", 1.0, True)):
            file = ExpertFile(path, bandwidth=bandwidth)
            clock = _Clock(routes)
            cache = ExpertCache(file, part * len(file) * file.bundle_bytes)
            engine = ExpertEngine(model, cache, prefetch=prefetch, replay=clock)
            if part == 1:
                for layer in range(config.layers):
                    for expert in range(config.experts):
                        cache.get((layer, expert))
            state = model.state_at(1, length)
            for kept in state:
                kept.keys.normal_(generator=torch.Generator().manual_seed(1))
                kept.values.normal_(generator=torch.Generator().manual_seed(2))
            out, begun, before = [], 0.0, None
            for step in range(steps + first):
                if step == first:
                    cache.counts = Counts()
                    before, begun = bytes_from_storage(), time.perf_counter()
                clock.step = step
                out.append(engine(torch.tensor([[step]]), state))
            seconds, after = time.perf_counter() - begun, bytes_from_storage()
            counts = cache.counts
            known = None if before is None or after is None else after - before
            found[name] = ExpertTimes(
                step=seconds / steps,
                stalled=counts.stalled / steps,
                attention=counts.attention / steps,
                experts=counts.experts / steps,
                missing=counts.read / steps / config.layers,
                bundle=file.bundle_bytes,
                read=counts.read / steps * file.bundle_bytes,
                stored=None if known is None else known / max(1, counts.read * file.bundle_bytes),
                drive=drive,
                held_to=drive if bandwidth is None else min(drive, bandwidth),
                logits=torch.cat(out, 1),
            )
    return found
