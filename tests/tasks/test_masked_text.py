"""Masked tokens: what is asked, what is given in their place, and that nothing tells more."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.tasks.masked_text import MaskedText
from hasten.tasks.task import IGNORED

TEXT = "the quick brown fox jumps over a lazy dog, and back. " * 60


def test_a_share_is_asked_and_most_of_it_is_masked() -> None:
    task = MaskedText(TEXT, 20, share=0.3)
    batch = task.draw("training", 400, torch.Generator().manual_seed(0))
    asked = batch.targets != IGNORED
    assert asked.float().mean() == pytest.approx(0.3, abs=0.02)
    given, right = batch.inputs[asked], batch.targets[asked]
    assert (given == task.mask).float().mean() == pytest.approx(0.8, abs=0.03)
    kept = (given == right).float().mean()
    assert 0.1 <= kept < 0.15  # a tenth, and of random ones the few that happen to be right
    assert not (batch.inputs[~asked] == task.mask).any()
    assert task.vocabulary == task.classes + 1 > int(batch.inputs.max())
    assert int(right.max()) < task.classes


def test_what_is_not_asked_is_the_text() -> None:
    task = MaskedText(TEXT, 20)
    whole = task.text.take("test", 0, 3).inputs
    batch = task.take("test", 0, 3)
    assert torch.equal(torch.where(batch.targets == IGNORED, batch.inputs, batch.targets), whole)
    # However it is cut.
    again = torch.cat([task.take("test", i, i + 1).inputs for i in range(3)])
    assert torch.equal(again, batch.inputs)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_of_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(HastenError, match="cannot be asked"):
        MaskedText(TEXT, 20, share=share)
