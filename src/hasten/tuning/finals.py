"""The fastest combinations of a network timed again, in turn: one measurement after another decides nothing between
what lies within the machine's own changes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hasten.cost.measuring import alternating
from hasten.hardware.machine import memory_size
from hasten.runtime.network import Network, on_its_inputs

# What is within this factor of the fastest may be the fastest.
_NEAR = 1.3
# Networks that are kept at most, and the share of the machine's memory that they may hold together.
_MOST, _MEMORY = 4, 0.125
# Of each turn the calls that count, and those before them: threads of the one before may still be spinning.
_COUNTED, _SETTLING = 3, 2
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 60


@dataclass(frozen=True)
class Again:
    """Seconds of a call, timed in turn with others.

    Args:
        median, low, high: of all calls.
        calls: how many.
    """

    median: float
    low: float
    high: float
    calls: int


class Finalists:
    """Networks of the fastest combinations so far, kept as they were measured: they need not be made again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, Network]] = {}

    @property
    def networks(self) -> dict[str, Network]:
        """Title -> network of what is near the fastest, the fastest first."""
        return {title: network for title, (_, network) in self._kept.items()}

    def offer(self, title: str, seconds: float, network: Network) -> None:
        """Keeps a network where it is near the fastest, and lets those go that no longer are.

        Args:
            title: of the combination.
            seconds: that a call took, the least: a slow moment of the machine does not lose it.
            network: that was called.
        """
        found = sorted({**self._kept, title: (seconds, network)}.items(), key=lambda one: one[1][0])
        limit, held = _NEAR * found[0][1][0], 0.0
        self._kept = {}
        for name, (time, one) in found[:_MOST]:
            held += one.held_bytes
            if time <= limit and (not self._kept or held <= _MEMORY * memory_size()):
                self._kept[name] = time, one


def timed_again(networks: Mapping[str, Network], seconds: float) -> dict[str, Again]:
    """Times networks in turn, each a few calls long; nothing where there are fewer than two, or no time for them.

    Args:
        networks: by title; each is called with its inputs.
        seconds: about how long it may take.
    """
    if len(networks) < 2:
        return {}

    def call(network: Network) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return network(*network.inputs.args, **network.inputs.kwargs)

        return run

    calls = {title: call(network) for title, network in networks.items()}
    with on_its_inputs("a tuned network"):
        once = sum(min(times) for times in alternating(calls, 1, settling=1).values())
        rounds = min(_MOST_ROUNDS, int(seconds / (once * (_COUNTED + _SETTLING))))
        if rounds < _LEAST_ROUNDS:
            return {}
        found = alternating(calls, rounds, counted=_COUNTED, settling=_SETTLING)
    return {t: Again(statistics.median(s), min(s), max(s), len(s)) for t, s in found.items()}
