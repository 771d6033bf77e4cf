"""Two stages of recall over text: the second begins with the first one's weights."""

from __future__ import annotations

import torch

from hasten.train.long_context import first_stage, second_stage


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
