"""The plain recipe: it learns, decays what it should, and stops at a broken loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten import tasks
from hasten.train.fitting import fit, fit_task, parameter_groups, windows


def test_it_fits_a_line() -> None:
    torch.manual_seed(0)
    line = nn.Linear(3, 1)
    x = torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    losses = fit(line, lambda step: (line(x) - y).square().mean(), steps=300, peak=0.1, weight_decay=0.0)
    assert len(losses) == 300
    assert losses[-1] < 1e-3 * losses[0]


def test_vectors_and_marked_matrices_do_not_decay() -> None:
    module = nn.Linear(4, 4)
    module.extra = nn.Parameter(torch.ones(4, 4))
    module.extra.no_decay = True  # type: ignore[attr-defined]
    module.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    decayed, plain = parameter_groups(module, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(module.weight)]
    assert {id(p) for p in plain["params"]} == {id(module.bias), id(module.extra)}


def test_a_broken_loss_is_an_error() -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(module, lambda step: module(torch.full((1, 1), float("nan"))).sum(), steps=3, peak=0.1)


def test_windows_are_pieces_of_the_text() -> None:
    ids = torch.arange(100)
    first = next(windows(ids, 8, 4, seed=1))
    assert first.shape == (4, 9)
    assert torch.equal(first - first[:, :1], torch.arange(9).expand(4, 9))
    assert torch.equal(first, next(windows(ids, 8, 4, seed=1)))


def test_a_task_is_fitted_by_its_own_batches() -> None:
    task = tasks.make("selective-copying", noise=8, tokens=2)

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, task.classes))

    one, doubled, plain = model(), model(), model()
    losses = fit_task(one, task, size=4, seed=1, steps=3, peak=1e-2)
    asked = fit_task(doubled, task, size=4, seed=1, answer=lambda ids: 2 * doubled(ids), steps=3, peak=1e-2)
    batches = task.batches("training", 4, 1)
    assert losses == fit(plain, lambda step: task.loss(plain, next(batches)), steps=3, peak=1e-2)
    assert asked != losses
