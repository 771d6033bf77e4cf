"""Generated recall tasks hold what they say."""

from __future__ import annotations

import pytest
import torch

from hasten.data.recall_tasks import induction_heads, selective_copying


def test_selective_copying_hides_its_answers_in_order() -> None:
    ids, answers = selective_copying(50, noise=20, tokens=5, alphabet=7, generator=torch.Generator().manual_seed(0))
    assert ids.shape == (50, 25)
    assert torch.all(ids[:, 20:] == 8)
    for row, wanted in zip(ids[:, :20], answers):
        assert torch.equal(row[row != 7], wanted)
    again, _ = selective_copying(50, noise=20, tokens=5, alphabet=7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ids, again)
    with pytest.raises(ValueError, match="do not fit"):
        selective_copying(1, noise=2, tokens=3)


def test_induction_heads_have_one_mark_before_the_last() -> None:
    ids, answers = induction_heads(200, length=9, alphabet=5, generator=torch.Generator().manual_seed(0))
    assert torch.all((ids == 5).sum(1) == 2)
    assert torch.all(ids[:, -1] == 5)
    for row, wanted in zip(ids, answers):
        assert row[int((row == 5).nonzero()[0]) + 1] == wanted
        assert wanted < 5
    with pytest.raises(ValueError, match="no room"):
        induction_heads(1, length=2)
