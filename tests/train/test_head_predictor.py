"""Guessing the rows of an output head that matter."""

from __future__ import annotations

import torch

from hasten.models.language.smallthinker import HeadPredictor
from hasten.train.head_predictor import fit_head_predictor


def test_the_head_predictor_gives_exact_logits_where_it_looks() -> None:
    torch.manual_seed(0)
    head, states = torch.randn(50, 8), torch.randn(200, 8)
    predictor = HeadPredictor(8, 50, rank=8, rows=12)
    first = fit_head_predictor(predictor, states, head, steps=1)
    assert fit_head_predictor(predictor, states, head, steps=400) < first
    hits = 0
    for h in states[:50]:
        exact, found = head @ h, predictor.logits(h, head).detach()
        seen = torch.isfinite(found)
        assert int(seen.sum()) == 12
        torch.testing.assert_close(found[seen], exact[seen])
        hits += int(found.argmax() == exact.argmax())
    assert hits >= 45
