"""SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor


_NEEDS = 60.0
_GIB = 2**30
# B/s of main memory, of the devices that the paper names (dual-channel DDR5-5600, RK3588's LPDDR4X).
_PC, _BOARD = 89.6e9, 34e9


def _q4(parameters: float) -> float:
    """Bytes in Q4_0: 18 for 32 values."""
    return parameters * 18 / 32


@functools.cache
def _sizes(name: str) -> dict[str, float]:
    from hasten.models import named
    from hasten.models.language.smallthinker import SmallThinkerLM

    model = named.build(name)
    assert isinstance(model, SmallThinkerLM)
    c = model.config
    total = sum(p.numel() for p in model.parameters())
    expert = 3 * c.width * c.inner
    others = c.layers * (c.experts - c.used) * expert
    # A step reads everything but the experts it does not use, and one row of an embedding that is not the head.
    table = 0 if c.tied else c.vocabulary * c.width
    return {
        "total": total,
        "read": total - others - table,
        "expert": expert,
        "count": c.layers * c.experts,
        "used": c.layers * c.used,
    }


@check("S1")
def _rates(experiment: Experiment) -> Seen:
    size = _sizes("smallthinker-21b")
    memory, read = _q4(size["total"]) / _GIB, _q4(size["read"])
    bounds = [_PC / read, _BOARD / read]
    value = (
        f"Q4_0 weights {memory:.2f} GiB (published 11.47 at run time), {read / 1e9:.2f} GB read a token: at most"
        f" {bounds[0]:.0f} tokens/s from DDR5-5600, {bounds[1]:.0f} on an RK3588 (published 30.2, 10.8)"
    )
    holds = 0.93 * 11.47 < memory < 11.47 and bounds[0] > 30.19 and bounds[1] > 10.84
    return Seen(value, holds, memory < 11.47)


@check("S3")
def _small_rates(experiment: Experiment) -> Seen:
    size = _sizes("smallthinker-4b")
    memory, read = _q4(size["total"]) / _GIB, _q4(size["read"])
    bounds = [_PC / read, _BOARD / read]
    value = (
        f"Q4_0 weights {memory:.2f} GiB (published 2.24 at run time), {read / 1e9:.2f} GB read a token: at most"
        f" {bounds[0]:.0f} tokens/s from DDR5-5600, {bounds[1]:.0f} on an RK3588 (published 108, 39.8)"
    )
    return Seen(value, 0.93 * 2.24 < memory < 2.24 and bounds[0] > 108.17 and bounds[1] > 39.76, memory < 2.24)


def _hits(experts: int, used: int, layers: int, capacity: int, steps: int, seed: int) -> float:
    """Share of experts found in an LRU cache when choices are skewed and stay for a while."""
    from collections import OrderedDict

    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    found = asked = 0
    for step, layer, chosen in _routes(experts, used, layers, steps, seed):
        for expert in chosen:
            key = (layer, expert)
            if step >= steps // 4:
                asked += 1
                found += key in held
            held[key] = None
            held.move_to_end(key)
            if len(held) > capacity:
                held.popitem(last=False)
    return found / asked


def _routes(experts: int, used: int, layers: int, steps: int, seed: int):  # type: ignore[no-untyped-def]
    """(step, layer, chosen): each choice stays with a chance of 0.6, else it is drawn from a skewed distribution."""
    import random

    rng = random.Random(seed)
    weights = [[1 / (1 + i) ** 0.7 for i in rng.sample(range(experts), experts)] for _ in range(layers)]
    now = [rng.sample(range(experts), used) for _ in range(layers)]
    for step in range(steps):
        for layer in range(layers):
            chosen = [e for e in now[layer] if rng.random() < 0.6]
            while len(chosen) < used:
                drawn = rng.choices(range(experts), weights[layer])[0]
                if drawn not in chosen:
                    chosen.append(drawn)
            now[layer] = chosen
            yield step, layer, chosen


@check("S2")
def _little_memory(experiment: Experiment) -> Seen:
    size = _sizes("smallthinker-21b")
    hits = _hits(64, 6, 52, 2048, 200, experiment.seed)
    bundle = _q4(size["expert"])
    from hasten.runtime.storage.expert_store import predicted_step

    # Per layer: a 3.5 GB/s drive, the expert and attention bytes at the memory's rate.
    missing = 6 * (1 - hits) * bundle / 3.5e9
    experts = 6 * bundle / _PC
    attention = (_q4(size["read"]) / 52 - 6 * bundle) / _PC
    rates = [1 / (52 * predicted_step(attention, missing, experts, prefetch=p)) for p in (True, False)]
    kept = 2048 * bundle / 1e9
    value = (
        f"2048 of 3328 experts ({kept:.2f} GB) find {hits:.0%} of choices under skewed, lasting routes; timeline with a"
        f" 3.5 GB/s drive {rates[0]:.0f} tokens/s, without prefetch {rates[1]:.0f} (published 20.3)"
    )
    return Seen(value, 0.5 < rates[0] / 20.3 < 2 and rates[0] > rates[1], rates[0] > rates[1])


def _stored() -> int | None:
    """Bytes that this process has had read from storage so far; None where the system does not count them."""
    from pathlib import Path

    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


class _Clock:
    """Recorded routes, of the step that is set."""

    def __init__(self, routes: dict[tuple[int, int], Tensor]) -> None:
        self.routes, self.step = routes, 0

    def __call__(self, layer: int, chosen: Tensor) -> Tensor:
        return self.routes[self.step, layer]


@functools.cache
def _live(budget: float, seed: int) -> dict[str, dict[str, float]]:
    """Real reads from a file past the page cache: seconds a step, of which stalled, for each arm at an equal budget."""
    import tempfile
    import time
    from pathlib import Path

    import torch

    from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM
    from hasten.runtime.storage.expert_store import ExpertCache, ExpertEngine, ExpertFile, write_experts

    torch.manual_seed(seed)
    layers, experts, used = 8, 32, 4
    config = SmallThinkerConfig(
        width=384,
        layers=layers,
        heads=6,
        kv_heads=2,
        head_dim=64,
        vocabulary=256,
        experts=experts,
        used=used,
        inner=192,
    )
    model = SmallThinkerLM(config).eval()
    steps = 40 if budget >= _NEEDS else 4
    experiment = 24576 if budget >= _NEEDS else 512
    routes = {(s, layer): torch.tensor([c]) for s, layer, c in _routes(experts, used, layers, steps + 4, seed)}
    found: dict[str, dict[str, float]] = {}
    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.safetensors"
        write_experts(model, path)
        for name, share, prefetch in (("prefetch", 0.25, True), ("on demand", 0.25, False), ("resident", 1.0, True)):
            file = ExpertFile(path, bandwidth=600e6)
            at = _Clock(routes)
            cache = ExpertCache(file, share * layers * experts * file.bundle_bytes)
            engine = ExpertEngine(model, cache, prefetch=prefetch, replay=at)
            if share == 1:
                for layer in range(layers):
                    for expert in range(experts):
                        cache.get((layer, expert))
            state = model.state_at(1, experiment)
            for kept in state:
                kept.keys.normal_(generator=torch.Generator().manual_seed(1))
                kept.values.normal_(generator=torch.Generator().manual_seed(2))
            out = []
            for step in range(steps + 4):
                if step == 4:
                    cache.counts = type(cache.counts)()
                    stored = _stored()
                    begun = time.perf_counter()
                at.step = step
                out.append(engine(torch.tensor([[step]]), state))
            seconds, ended = time.perf_counter() - begun, _stored()
            logits[name] = torch.cat(out, 1)
            c = cache.counts
            found[name] = {
                "step": seconds / steps, "stalled": c.stalled / steps, "attention": c.attention / steps,
                "experts": c.experts / steps, "missing": c.read / steps / layers, "bundle": file.bundle_bytes,
                "stored": -1.0 if stored is None or ended is None else (ended - stored) / max(1, c.read * file.bundle_bytes),
            }  # fmt: skip
    found["prefetch"]["same"] = float(all(torch.equal(one, logits["resident"]) for one in logits.values()))
    return found


@check("S4", needs=_NEEDS)
def _storage(experiment: Experiment) -> Seen:
    from hasten.runtime.storage.expert_store import predicted_step

    seen = _live(experiment.paper_budget, experiment.seed)
    ahead, demand, resident = seen["prefetch"], seen["on demand"], seen["resident"]
    removed = 1 - ahead["stalled"] / demand["stalled"]
    layers = 8
    read = ahead["missing"] * ahead["bundle"] / 600e6
    rest = resident["step"] - resident["attention"] - resident["experts"]
    line = [
        rest + layers * predicted_step(resident["attention"] / layers, read, resident["experts"] / layers, prefetch=p)
        for p in (True, False)
    ]
    # The 4B with 256 of its 1024 experts in memory, by the same timeline: a PC's memory and a drive of 3.5 GB/s.
    size = _sizes("smallthinker-4b")
    bundle = _q4(size["expert"])
    hits = _hits(32, 4, 32, 256, 200, experiment.seed)
    attention = (_q4(size["read"]) / 32 - 4 * bundle) / _PC
    small = 1 / (32 * predicted_step(attention, 4 * (1 - hits) * bundle / 3.5e9, 4 * bundle / _PC, prefetch=True))
    past = min(ahead["stored"], demand["stored"])
    off = [ahead["step"] / line[0] - 1, demand["step"] / line[1] - 1]
    value = (
        f"experts from a file at 600 MB/s past the page cache, memory for a quarter: {ahead['step'] * 1e3:.1f} ms a token with"
        f" prefetch, {demand['step'] * 1e3:.1f} on demand, {resident['step'] * 1e3:.1f} all resident; {removed:.0%} of the"
        f" waiting removed; timeline off by {off[0]:+.0%} and {off[1]:+.0%}; logits"
        f" {'equal' if ahead['same'] else 'DIFFERENT'}; "
        + (
            f"{past:.0%} of what was read came from storage itself"
            if past >= 0
            else "the system does not count what storage gave"
        )
        + f"; the timeline gives a 4B in 1 GB {small:.0f} tokens/s on a PC (published 30)"
    )
    holds = (past < 0 or past >= 0.95) and removed >= 0.5 and bool(ahead["same"]) and max(map(abs, off)) < 0.25
    return experiment.judge(value, holds, removed > 0.2 and bool(ahead["same"]))


@check("S6")
def _cache_at_32k(experiment: Experiment) -> Seen:
    from hasten.models import named
    from hasten.models.language.smallthinker import SmallThinkerLM

    model = named.build("smallthinker-21b")
    assert isinstance(model, SmallThinkerLM)
    length = 32768
    held = sum(t.numel() * 2 for t in model.state_tensors(model.state_at(1, length)).values())
    full = 52 * 2 * 4 * 128 * 2 * length
    value = f"{held / _GIB:.2f} GiB of {full / _GIB:.2f} GiB in fp16, {held / full:.1%}"
    return Seen(value, abs(held / full - 0.344) < 0.002 and abs(full / _GIB - 3.25) < 0.01)


def _trained(early: bool, activation: str, mixed: bool, steps: int, seed: int) -> tuple[float, float]:
    """(loss on held-out text, share of positive gates) of a small model after equal steps."""
    import torch

    from hasten.data.text import characters, sources
    from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM, hybrid
    from hasten.nn.reglu_experts import balance_loss
    from hasten.train.fitting import fit, windows

    torch.manual_seed(seed)
    ids, alphabet = characters(sources(1_500_000))
    training, kept = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    rotary, windowed = hybrid(4) if mixed else ((), ())
    config = SmallThinkerConfig(
        width=96, heads=4, kv_heads=2, head_dim=24, vocabulary=len(alphabet), experts=8, used=2, inner=96,
        rotary=rotary, windowed=windowed, window=64, early=early, activation=activation,  # type: ignore[arg-type]
    )  # fmt: skip
    model = SmallThinkerLM(config).train()
    batches = windows(training, 128, 8, seed)
    moes = [layer.block_sparse_moe for layer in model.blocks]

    def loss(step: int) -> torch.Tensor:
        window = next(batches)
        logits = model(window[:, :-1])
        balance = torch.stack([balance_loss(moe.logits, 2) for moe in moes if moe.logits is not None]).mean()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()) + 1e-3 * balance

    fit(model, loss, steps=steps, peak=3e-3)
    opened = sum(moe.open_share for moe in moes) / len(moes)
    held, total = windows(kept, 128, 16, 1), 0.0
    model.eval()
    with torch.inference_mode():
        for _ in range(8):
            window = next(held)
            logits = model(window[:, :-1])
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()))
    return total / 8, opened


@check("S7", needs=100)
def _early_router(experiment: Experiment) -> Seen:
    from hasten.processes import run_arms

    # Every combination of router, gate and attention, at equal active parameters and steps; two seeds each.
    steps = 2800 if experiment.paper_budget >= 1500 else 280 if experiment.paper_budget >= 100 else 2
    settings = list(itertools.product((True, False), ("relu", "silu"), (True, False)))
    names = [
        f"{'early' if early else 'late'}, {'ReLU' if gate == 'relu' else 'SiLU'}, {'hybrid' if mixed else 'all full'}"
        for early, gate, mixed in settings
    ]
    seeds = (experiment.seed, experiment.seed + 1) if experiment.paper_budget >= 100 else (experiment.seed,)
    results = run_arms(_trained, [(*s, steps, seed) for s in settings for seed in seeds])
    count = len(seeds)
    means = [
        [sum(r[k] for r in results[count * i : count * (i + 1)]) / count for k in (0, 1)] for i in range(len(names))
    ]
    losses, closed = {n: m[0] for n, m in zip(names, means, strict=True)}, 1 - means[0][1]
    ours, late, best = losses["early, ReLU, hybrid"], losses["late, ReLU, hybrid"], min(losses.values())
    value = (
        "; ".join(f"{n} {v:.3f}" for n, v in losses.items()) + f" (held-out loss); {closed:.0%} of ReLU gates closed"
    )
    return experiment.judge(value, ours <= 1.02 * best and closed > 0.5, ours <= 1.02 * late)
