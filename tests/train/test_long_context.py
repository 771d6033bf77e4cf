"""Two stages of recall over text: the second begins with the first one's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.nn.block_sparse import convert, patterned
from hasten.train import long_context
from hasten.train.long_context import BEYOND, BLOCK, NEAR, PATTERN, REACHED, distances, first_stage, second_stage


def test_both_stages_run_and_are_the_same_for_the_same_seed() -> None:
    weights, before = first_stage(1, 0)
    again, _ = first_stage(1, 0)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert 0 <= before <= 1
    full = second_stage(weights, "full", (0, 1, 2, 3, 4, 5), 1, 128, 0)
    assert len(full) == 2, "the full one is also judged with sparse inference"
    sparse = second_stage(weights, "sparse", (2, 3), 1, 128, 0)
    assert len(sparse) == 1
    assert sparse[0][1] != full[0][1]


def test_recall_is_measured_at_several_distances() -> None:
    assert distances(512) == [NEAR, REACHED, BEYOND, 431]
    assert distances(128) == [NEAR, 47]
    weights, _ = first_stage(1, 0)
    (found,) = second_stage(weights, "sparse", (), 1, 512, 0)
    assert list(found.shares) == distances(512)
    assert found.far == pytest.approx(sum(list(found.shares.values())[1:]) / 3)


def changed_answers(network: Any, distance: int, length: int = 512) -> float:
    """How far the logits at the asked steps move when the map at a distance before them becomes another."""
    ids = torch.randint(0, 60, (1, length), generator=torch.Generator().manual_seed(1))
    other, steps = ids.clone(), length - long_context.STEPS - 1
    place = slice(steps - distance - 2 * long_context.SYMBOLS, steps - distance)
    other[0, place] = (other[0, place] + 7) % 60
    with torch.inference_mode():
        one, two = (network(x, use_cache=False).logits[0] for x in (ids, other))
    return float((one - two)[steps : steps + long_context.SYMBOLS - 1].abs().amax(-1).min())


def test_the_controls_can_see_the_answer() -> None:
    """All sparse: within its window and by several windows; sparse at inference only: anywhere, by its full layers."""
    torch.manual_seed(0)
    network = long_context._network(60 - 2 * long_context.SYMBOLS).eval()
    with patterned(network, PATTERN, (2, 3), block=BLOCK):
        assert all(changed_answers(network, d) > 0 for d in distances(512))
    convert(network, PATTERN, (), block=BLOCK)
    assert [changed_answers(network, d) > 0 for d in distances(512)] == [True, True, False, False]
    # One layer sees the nearest alone.
    network.model.layers = network.model.layers[:1]
    assert [changed_answers(network, d) > 0 for d in distances(512)] == [True, False, False, False]
