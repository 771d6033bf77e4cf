"""Tokens really decoded with experts from a file, read ahead, on demand, or all of them resident before."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasten.cost.serving.expert_routes import lasting_routes
from hasten.models.language.smallthinker import SmallThinkerLM
from hasten.processes import bytes_from_storage
from hasten.runtime.storage.expert_store import Counts, ExpertCache, ExpertEngine, ExpertFile, write_experts


@dataclass(frozen=True)
class ExpertTimes:
    """Of one way, a step: seconds, and the logits of all steps.

    Args:
        step, stalled, attention, experts: seconds of a token, and of its waiting, attention and experts.
        missing: experts read for a layer.
        bundle: bytes of one.
        stored: of the bytes read, the share that came from storage itself; None where the system does not count it.
        logits: (1, steps, vocabulary).
    """

    step: float
    stalled: float
    attention: float
    experts: float
    missing: float
    bundle: int
    stored: float | None
    logits: Tensor


class _Clock:
    """Recorded routes, of the step that is set."""

    def __init__(self, routes: dict[tuple[int, int], Tensor]) -> None:
        self.routes, self.step = routes, 0

    def __call__(self, layer: int, chosen: Tensor) -> Tensor:
        return self.routes[self.step, layer]


def time_experts(
    model: SmallThinkerLM, steps: int, length: int, *, share: float = 0.25, bandwidth: float = 600e6, seed: int = 0
) -> dict[str, ExpertTimes]:
    """``prefetch``, ``on demand`` and ``resident`` -> what was measured, over the same routes.

    Args:
        model: routes before attention.
        steps: tokens that count, after four that do not.
        length: cached tokens of random numbers that attention reads.
        share: of all experts that memory holds.
        bandwidth: B/s that reads are held to, past the page cache.
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
        write_experts(model, path)
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
                stored=None if known is None else known / max(1, counts.read * file.bundle_bytes),
                logits=torch.cat(out, 1),
            )
    return found
