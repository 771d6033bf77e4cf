"""Whether page accesses tell workloads apart: a test for any map, whose power is shown on one that leaks.

A map is made over recorded pages and used under each of several workloads. Pieces of what an observer saw become
statistics (how many accesses, how unequal and how repeated pages are, when they come again), and a linear discriminant,
fitted on half of the pieces, guesses the workload of the others. An oblivious map leaves it at chance; that it can do
better is seen on a table with a cache.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.runtime.storage.sealed_pages import RecordedPages, StoreMaker, recorded

Table: TypeAlias = MutableMapping[int, bytes]
MakeMap: TypeAlias = Callable[[Mapping[int, bytes], StoreMaker], Table]
"""Makes a map of items whose pages are kept in what the maker makes."""
Workload: TypeAlias = Callable[[Table, int, random.Random], None]
"""Does one access to a map of keys 0 to n - 1, given n."""

LAGS = 8


def _constant(table: Table, n: int, drawn: random.Random) -> None:
    table[0]


def _uniform(table: Table, n: int, drawn: random.Random) -> None:
    table[drawn.randrange(n)]


def _zipf(table: Table, n: int, drawn: random.Random) -> None:
    """Rank r with a probability as 1 / r, as words of a text."""
    table[min(n - 1, int(n ** drawn.random()) - 1)]


def _updates(table: Table, n: int, drawn: random.Random) -> None:
    key = drawn.randrange(n)
    table[key] = key.to_bytes(8, "little")


def _missing(table: Table, n: int, drawn: random.Random) -> None:
    table.get(n + drawn.randrange(n))


WORKLOADS: dict[str, Workload] = {
    "one key": _constant, "any key": _uniform, "few keys often": _zipf, "updates": _updates, "missing keys": _missing,
}  # fmt: skip
"""Name -> workload; values of the map must have room for 8 bytes."""


@dataclass(frozen=True)
class Leakage:
    """How well workloads were told apart.

    Args:
        accuracy: share of unseen pieces whose workload was guessed.
        chance: that of a guess without looking.
        sigma: standard deviation of a guess's accuracy on so many pieces.
        pieces: that were guessed.
    """

    accuracy: float
    chance: float
    sigma: float
    pieces: int

    @property
    def leaks(self) -> bool:
        """Whether the accuracy is more than two standard deviations above chance."""
        return self.accuracy > self.chance + 2 * self.sigma


def leakage(
    make: MakeMap,
    *,
    items: int = 512,
    accesses: int = 100,
    pieces: int = 40,
    workloads: Mapping[str, Workload] = WORKLOADS,
    seed: int = 0,
) -> Leakage:
    """Tries to tell by a map's page accesses how it was used.

    Args:
        make: the map, from items and the maker of its store.
        items: in the map, of 8 bytes.
        accesses: of a piece.
        pieces: of each workload.
        workloads: what is told apart.
        seed: of the workloads' keys, and of which pieces are unseen.

    Raises:
        HastenError: too little to tell apart, or a map that was made over other pages than those it was given.
    """
    if min(items, accesses) < 1 or min(pieces, len(workloads)) < 2:
        raise HastenError(
            f"{pieces} pieces of {accesses} accesses to {items} items, {len(workloads)} workloads: give at least 1 item"
            " and access, and 2 pieces and workloads"
        )
    drawn = random.Random(seed)
    rows, labels = [], []
    for label, workload in enumerate(workloads.values()):
        stores: list[RecordedPages] = []
        table = make({i: i.to_bytes(8, "little") for i in range(items)}, recorded(stores))
        if len(stores) != 1:
            raise HastenError(f"a map takes the pages that it is given, once: it took {len(stores)}")
        (store,) = stores
        for _ in range(accesses):
            workload(table, items, drawn)
        for _ in range(pieces):
            store.forget()
            for _ in range(accesses):
                workload(table, items, drawn)
            rows.append(statistics(store.accesses, accesses))
            labels.append(label)
    order = torch.tensor(drawn.sample(range(len(rows)), len(rows)))
    return guessed(torch.tensor(rows, dtype=torch.float64)[order], torch.tensor(labels)[order], len(workloads))


def statistics(seen: Sequence[tuple[str, int]], accesses: int) -> list[float]:
    """Of the pages that ``accesses`` accesses touched: numbers that tell patterns apart, and none if there is none.

    Reads and writes an access, the share of different pages, of the most frequent one and of the four most frequent,
    the sum of squared shares, the mean distance of pages one after the other, and how often a page comes again at each
    of a few distances.
    """
    reads = [page for kind, page in seen if kind == "read"]
    written = len(seen) - len(reads)
    n = max(1, len(reads))
    counts = Counter(reads)
    frequent = [c for _, c in counts.most_common(4)]
    steps = [abs(a - b) for a, b in itertools.pairwise(reads)]
    again = [sum(a == b for a, b in zip(reads, reads[lag:])) / n for lag in range(1, LAGS + 1)]
    return [
        len(reads) / accesses, written / accesses, len(counts) / n, sum(frequent[:1]) / n, sum(frequent) / n,
        sum(c * c for c in counts.values()) / n**2, math.log1p(sum(steps) / n), *again,
    ]  # fmt: skip


def guessed(rows: Tensor, labels: Tensor, kinds: int) -> Leakage:
    """The accuracy of a linear discriminant that was fitted on the first half, on the second.

    Args:
        rows: (pieces, numbers).
        labels: (pieces,) int64, in random order.
        kinds: of labels.
    """
    half = len(rows) // 2
    mean, deviation = rows[:half].mean(0), rows[:half].std(0).clamp_min(1e-9)
    scaled = ((rows - mean) / deviation).clamp(-10, 10)
    seen, told = scaled[:half], torch.nn.functional.one_hot(labels[:half], kinds).to(rows.dtype)
    centres = told.T @ seen / told.sum(0).clamp_min(1)[:, None]
    within = seen - told @ centres
    spread = within.T @ within / half + 1e-2 * torch.eye(rows.shape[1], dtype=rows.dtype)
    weights = torch.linalg.solve(spread, centres.T)
    scores = scaled[half:] @ weights - (centres.T * weights).sum(0) / 2
    hits = scores.argmax(1) == labels[half:]
    chance = 1 / kinds
    sigma = math.sqrt(chance * (1 - chance) / len(hits))
    return Leakage(hits.double().mean().item(), chance, sigma, len(hits))
