"""The plain recipe: it learns, decays what it should, and stops at a broken loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hasten import tasks
from hasten.errors import HastenError
from hasten.train.fitting import OPTIMIZERS, fit, fit_task, make_optimizer, parameter_groups, windows
from hasten.train.kar import Kar2


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


def fitted(optimizer: Any, steps: int = 40, peak: float = 0.02, **options: Any) -> tuple[nn.Linear, list[float]]:
    torch.manual_seed(0)
    line = nn.Linear(3, 1)
    x = torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 3
    return line, fit(
        line, lambda step: (line(x) - y).square().mean(), steps=steps, peak=peak, optimizer=optimizer, **options
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_that_has_a_name_learns(name: str) -> None:
    line, losses = fitted(name)
    assert losses[-1] < 0.9 * losses[0]
    again, same = fitted(name.upper())
    assert losses == same
    assert torch.equal(line.weight, again.weight)


def test_optimizers_are_given_what_they_take() -> None:
    module = nn.Linear(2, 2)
    assert type(make_optimizer("kar2", module, 0.1)) is Kar2
    sgd = make_optimizer("sgd", module, 0.1, weight_decay=0.3, betas=(0.8, 0.9))
    assert [g["weight_decay"] for g in sgd.param_groups] == [0.3, 0.0]
    assert {(g["lr"], g["momentum"], g["nesterov"]) for g in sgd.param_groups} == {(0.1, 0.8, True)}
    assert make_optimizer("adam", module, 0.1, betas=(0.8, 0.9)).param_groups[1]["betas"] == (0.8, 0.9)
    theirs = partial(torch.optim.AdamW, betas=(0.9, 0.95))
    assert fitted("adamw", weight_decay=0.2)[1] == fitted(theirs, weight_decay=0.2)[1]
    assert fitted(torch.optim.Adagrad)[1] != fitted("adamw")[1]
    with pytest.raises(HastenError, match="unknown: one of adamw, adam"):
        fitted("magic")


def test_kar_steps_one_rate_along_the_sign_first() -> None:
    before, _ = fitted("kar3", steps=0)
    after, _ = fitted("kar3", steps=1, warmup=0.0)
    assert torch.allclose((after.weight - before.weight).abs(), torch.full((1, 3), 0.02))


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
