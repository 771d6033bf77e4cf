"""Made-up routes through a mixture of experts, skewed and lasting, and how many of their experts a cache would hold."""

from __future__ import annotations

import functools
import itertools
import random
from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterator


def lasting_routes(
    experts: int, used: int, layers: int, steps: int, seed: int, *, stays: float = 0.6, skew: float = 0.7
) -> Iterator[tuple[int, int, list[int]]]:
    """(step, layer, chosen experts): each choice stays with a chance, else it is drawn from a skewed distribution.

    Args:
        experts, used, layers: of a layer, of them for a token, layers.
        steps: tokens.
        seed: of everything.
        stays: the chance that an expert is used for the next token too.
        skew: the i-th most popular expert of a layer is drawn in proportion to i to the minus this.
    """
    rng = random.Random(seed)
    weights = [
        [*itertools.accumulate(1 / (1 + i) ** skew for i in rng.sample(range(experts), experts))] for _ in range(layers)
    ]
    random_ = rng.random
    now = [rng.sample(range(experts), used) for _ in range(layers)]
    for step in range(steps):
        for layer in range(layers):
            chosen = [e for e in now[layer] if random_() < stays]
            rising = weights[layer]
            while len(chosen) < used:
                drawn = bisect(rising, random_() * rising[-1], 0, experts - 1)
                if drawn not in chosen:
                    chosen.append(drawn)
            now[layer] = chosen
            yield step, layer, chosen


@functools.lru_cache(maxsize=256)
def share_held(
    experts: int, used: int, layers: int, capacity: int, steps: int, seed: int, *, stays: float = 0.6, skew: float = 0.7
) -> float:
    """Share of the experts of `lasting_routes` found among the ``capacity`` used last, after a quarter of the steps."""
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    found = asked = 0
    for step, layer, chosen in lasting_routes(experts, used, layers, steps, seed, stays=stays, skew=skew):
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
