"""The latency that a super-network's choices are expected to have, as a sum that gradients go through.

ProxylessNAS (arXiv 1812.00332, section 3.3): each edge's candidates by their probabilities, each candidate's seconds
from a table keyed by shapes, measured or modelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError

_BINS = 4000  # of the limit, in `best_within`


@dataclass(frozen=True)
class ExpectedLatency:
    """Seconds of a network whose every edge is one of several candidates.

    Args:
        fixed: of what is always there.
        edges: of each edge its candidates' seconds.
    """

    fixed: float
    edges: tuple[tuple[float, ...], ...]

    @classmethod
    def of_choices(cls, latency: Callable[[tuple[int, ...]], float], counts: Sequence[int]) -> ExpectedLatency:
        """From seconds of whole networks, each a tuple of choices.

        Exact where they are a sum over edges, as those of `hasten.search.networks.specialize.LatencyTable`; elsewhere
        as if they were, from networks that differ from the first in one edge.

        Args:
            latency: of a network.
            counts: of each edge how many candidates it has.
        """
        first = [0] * len(counts)
        whole = latency(tuple(first))
        edges = []
        for place, count in enumerate(counts):
            row = [0.0]
            for choice in range(1, count):
                other = list(first)
                other[place] = choice
                row.append(latency(tuple(other)) - whole)
            # What the edge costs by itself is not told apart from the rest: the cheapest candidate costs nothing.
            edges.append([seconds - min(row) for seconds in row])
        return cls(whole - sum(row[0] for row in edges), tuple(map(tuple, edges)))

    @property
    def slowest(self) -> float:
        """Seconds of the network that no other takes longer than."""
        return self.fixed + sum(map(max, self.edges))

    def __call__(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Expected seconds, a scalar with the graph of the probabilities (candidates,) of each edge."""
        total = torch.full((), self.fixed)
        for shares, row in zip(probabilities, self.edges, strict=True):
            total = total + shares @ torch.tensor(row, dtype=shares.dtype, device=shares.device)
        return total

    def of(self, chosen: Sequence[int]) -> float:
        """Seconds of the network of these choices."""
        return self.fixed + sum(row[o] for o, row in zip(chosen, self.edges, strict=True))

    def best_within(self, scores: Sequence[Sequence[float]], limit: float) -> tuple[int, ...]:
        """The choices with the greatest sum of scores among those within a limit, to a 4,000th of it.

        Args:
            scores: of each edge its candidates', such as the logarithms of their probabilities.
            limit: seconds.

        Raises:
            HastenError: nothing is within the limit.
        """
        if math.isinf(limit):
            return tuple(max(range(len(row)), key=row.__getitem__) for row in scores)
        # Whole bins above each edge's cheapest, rounded up, so that no sum is over the limit.
        least = self.fixed + sum(min(row) for row in self.edges)
        if least > limit:
            raise HastenError(
                f"the fastest network takes {least:.3g} s, over the limit of {limit:.3g} s: raise the limit"
            )
        step = max(limit - least, 1e-12) / _BINS
        best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
        for row, values in zip(self.edges, scores, strict=True):
            found: dict[int, tuple[float, tuple[int, ...]]] = {}
            weights = [math.ceil((seconds - min(row)) / step - 1e-9) for seconds in row]
            for used, (total, chosen) in best.items():
                for o, (weight, value) in enumerate(zip(weights, values, strict=True)):
                    at, made = used + weight, (total + value, (*chosen, o))
                    if at <= _BINS and (at not in found or found[at][0] < made[0]):
                        found[at] = made
            best = found
        return max(best.values())[1]
