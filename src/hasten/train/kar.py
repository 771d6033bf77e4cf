"""Kar2 and Kar3: steps of one size along the signs of a gradient and of its running means (arXiv 2401.17948)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from hasten.errors import HastenError


class Kar(Optimizer):
    """``p -= lr * (sign(g) + sign(m_1) + ... + sign(m_n))``, with running means m of the gradients before this one.

    A first step is ``lr`` long in every coordinate that has a gradient, later ones up to n + 1 times that. No weight
    decays.

    Args:
        params: as torch's optimizers take them.
        lr: of each sign.
        betas: of each running mean, from 0 to below 1.

    Raises:
        HastenError: a negative rate, or a beta outside.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-4, betas: Iterable[float] = (0.5, 0.95)) -> None:
        betas = tuple(betas)
        if not lr >= 0 or not all(0 <= b < 1 for b in betas):
            raise HastenError(f"Kar takes a rate from 0 and betas from 0 to below 1: got {lr:g} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what ``closure`` returned, which may compute the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise HastenError("Kar takes no sparse gradients: make the embedding with sparse=False")
                state = self.state[p]
                if "means" not in state:
                    state["means"] = torch.zeros(len(group["betas"]), *p.shape, dtype=p.dtype, device=p.device)
                means = state["means"]
                p.sub_(p.grad.sign() + means.sign().sum(0), alpha=group["lr"])
                for mean, beta in zip(means, group["betas"], strict=True):
                    mean.lerp_(p.grad, 1 - beta)
        return loss


class Kar2(Kar):
    """`Kar` with one running mean."""

    def __init__(self, params: ParamsT, lr: float = 1e-4, beta: float = 0.95) -> None:
        super().__init__(params, lr, (beta,))


class Kar3(Kar):
    """`Kar` with a short and a long running mean.

    The published trainings of Terminator use 0.001215 as ``lr`` on CIFAR-10, and 0.00120925 with betas of 0.75 and 0.99
    on CIFAR-100.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-4, betas: tuple[float, float] = (0.5, 0.95)) -> None:
        super().__init__(params, lr, betas)
