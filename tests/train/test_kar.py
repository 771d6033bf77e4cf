"""Steps along signs: how long they are, and that a running mean counts only from the next step on."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.train.kar import Kar, Kar2, Kar3


def test_a_first_step_is_one_rate_long_and_later_ones_up_to_three() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(200, dtype=torch.float64))
    optimizer = Kar3([p], lr=0.01)
    for step in range(20):
        before = p.detach().clone()
        p.grad = torch.randn_like(p)
        p.grad[:3] = 0
        optimizer.step()
        moved = ((p.detach() - before).abs() / 0.01).round(decimals=6)
        if step == 0:
            assert (moved[3:] == 1).all()
            assert (moved[:3] == 0).all()
        assert set(moved.tolist()) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("kind", [Kar2, Kar3])
def test_it_is_the_published_rule(kind: type[Kar]) -> None:
    """Against the rule written out: signs of the means before they take this gradient in."""
    torch.manual_seed(1)
    p = torch.nn.Parameter(torch.zeros(50))
    optimizer = kind([p], lr=0.5)
    betas = (0.95,) if kind is Kar2 else (0.5, 0.95)
    wanted, means = torch.zeros(50), [torch.zeros(50) for _ in betas]
    for _ in range(7):
        g = torch.randn(50)
        p.grad = g.clone()
        optimizer.step()
        wanted = wanted - 0.5 * (g.sign() + sum(m.sign() for m in means))
        means = [b * m + (1 - b) * g for m, b in zip(means, betas, strict=True)]
        torch.testing.assert_close(p.detach(), wanted)


def test_it_goes_on_from_its_state() -> None:
    def run(cut: bool) -> torch.Tensor:
        torch.manual_seed(2)
        p = torch.nn.Parameter(torch.zeros(9))
        optimizer: Kar = Kar3([p], lr=0.1)
        for step in range(6):
            if cut and step == 3:
                state = optimizer.state_dict()
                optimizer = Kar3([p], lr=0.7)
                optimizer.load_state_dict(state)
            p.grad = torch.randn(9)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(True), run(False))


def test_a_closure_is_called_and_wrong_numbers_are_named() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = Kar3([p, torch.nn.Parameter(torch.ones(1))], lr=0.1)  # one of them never has a gradient

    def closure() -> torch.Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.9))
    for options in ({"lr": -1.0}, {"betas": (0.5, 1.0)}, {"lr": float("nan")}):
        with pytest.raises(HastenError, match="a rate from 0 and betas"):
            Kar([p], **options)  # type: ignore[arg-type]
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(HastenError, match="sparse=False"):
        Kar3(table.parameters(), 0.1).step()
