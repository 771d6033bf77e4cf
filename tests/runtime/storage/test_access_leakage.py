"""The leakage test finds a leak where there is one, and none in the oblivious map."""

from __future__ import annotations

import random

import pytest
import torch

from hasten.errors import HastenError
from hasten.runtime.storage.access_leakage import WORKLOADS, guessed, leakage
from hasten.runtime.storage.compared_maps import SealedTable
from hasten.runtime.storage.oblivious_map import ObliviousMap


def test_the_oblivious_map_is_at_chance_and_a_table_is_not() -> None:
    pytest.importorskip("cryptography", reason="the extra [oblivious] is not installed")
    drawn = random.Random(0)
    sizes = {"items": 256, "accesses": 60, "pieces": 24}
    ours = leakage(
        lambda items, store: ObliviousMap(items, capacity=512, pages=store, entropy=drawn.randbytes), seed=5, **sizes
    )
    assert not ours.leaks
    assert ours.pieces == 60
    # With a cache neither one key again and again nor missing ones touch a page: nobody could tell these apart.
    seen = {name: workload for name, workload in WORKLOADS.items() if name != "missing keys"}
    for cached, workloads in ((0, WORKLOADS), (4, seen)):
        table = leakage(
            lambda items, store, c=cached: SealedTable(items, pages=store, cached=c), workloads=workloads, **sizes
        )
        assert table.leaks
        assert table.accuracy > 0.95


def test_a_classifier_guesses_what_can_be_seen_alone() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (400,))
    noise = torch.randn(400, 4, dtype=torch.float64)
    assert not guessed(noise, labels, 3).leaks
    noise[:, 1] += labels
    assert guessed(noise, labels, 3).leaks


def test_too_little_to_tell_apart_and_other_pages_are_refused_in_a_line() -> None:
    one = {"any key": WORKLOADS["any key"]}
    for sizes in ({"items": 0}, {"accesses": 0}, {"pieces": 1}, {"workloads": one}):
        with pytest.raises(HastenError, match="give at least 1 item and access, and 2 pieces and workloads"):
            leakage(lambda items, store: dict(items), **sizes)
    with pytest.raises(HastenError, match="once: it took 0"):
        leakage(lambda items, store: dict(items))
