"""An LSTM that decides one thing after the other, and how it learns (NASAIC, arXiv 2002.04116, section III)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hasten.train.loop import descend

Indices = tuple[int, ...]


class Controller(nn.Module):
    """An LSTM that decides one thing after the other, its last choice fed back (section III).

    Args:
        sizes: choices of each decision: the networks' decisions, then the chip's.
        networks: how many decisions are of the networks.
        hidden: state size.
        seed: of its weights and choices.
    """

    def __init__(self, sizes: Sequence[int], networks: int, hidden: int = 48, seed: int = 0) -> None:
        super().__init__()
        self.sizes, self.networks = tuple(sizes), networks
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.LSTMCell(hidden, hidden)
            self.begin = nn.Parameter(torch.zeros(1, hidden))
            self.choices = nn.ModuleList(nn.Embedding(n, hidden) for n in self.sizes)
            self.heads = nn.ModuleList(nn.Linear(hidden, n) for n in self.sizes)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(
        self,
        forced: Sequence[int] = (),
        allowed: Callable[[list[int]], Sequence[bool] | None] = lambda chosen: None,
        count: int = 1,
    ) -> tuple[list[Indices], Tensor]:
        """Decides ``count`` times, independently of each other.

        Args:
            forced: the first decisions, given.
            allowed: the choices that may be taken, from those taken so far; None for all.
            count: how many samples.

        Returns:
            The choices of each sample, and the log-probability of each choice (count, decisions), 0 for forced ones.
        """
        x, state = self.begin.expand(count, -1), None
        chosen: list[list[int]] = [[] for _ in range(count)]
        logs: list[Tensor] = []
        for step in range(len(self.sizes)):
            state = self.cell(x, state)
            if step < len(forced):
                choice = torch.full((count,), int(forced[step]))
                logs.append(torch.zeros(count))
            else:
                # Bounded, so that no choice is soon impossible.
                scores = 2.5 * torch.tanh(self.heads[step](state[0]) / 2.5)
                permitted = [allowed(row) for row in chosen]
                if any(p is not None for p in permitted):
                    every = [True] * self.sizes[step]
                    mask = torch.tensor([every if p is None else list(p) for p in permitted])
                    scores = scores.masked_fill(~mask, -math.inf)
                log = scores.log_softmax(-1)
                choice = torch.multinomial(log.detach().exp(), 1, generator=self.generator)[:, 0]
                logs.append(log.gather(1, choice[:, None])[:, 0])
            for row, index in zip(chosen, choice.tolist(), strict=True):
                row.append(index)
            x = self.choices[step](choice)
        return [tuple(row) for row in chosen], torch.stack(logs, 1)


# Of a choice's entropy beside rewards scaled to a mean distance of 1 from their baseline. Not in the paper, whose
# controller has five hundred episodes to make up for an early choice.
_ENTROPY = 0.3


class PolicyGradient:
    """Policy gradient with a moving mean of the reward as its baseline and a moving mean of the distance from it as its
    unit: one of each for networks, one for chips."""

    def __init__(self, controller: Controller, rate: float, discount: float) -> None:
        self.controller, self.discount = controller, discount
        self.optimizer = torch.optim.RMSprop(controller.parameters(), lr=rate)
        self.baseline: dict[str, float] = {}
        self.spread: dict[str, float] = {}

    def step(self, samples: Sequence[tuple[str, Tensor, float]]) -> None:
        loss = torch.zeros(())
        for kind, logs, reward in samples:
            before = self.baseline.setdefault(kind, reward)
            self.baseline[kind] = 0.9 * before + 0.1 * reward
            away = reward - before
            self.spread[kind] = 0.9 * self.spread.get(kind, abs(away)) + 0.1 * abs(away)
            advantage = away / (self.spread[kind] + 1e-6)
            steps = len(logs)
            discounts = self.discount ** torch.arange(steps - 1, -1, -1)
            # The second term is the gradient of the choices' entropy: without it the first chips that meet the limits
            # are all that is looked at.
            loss = loss - (discounts * logs * (advantage - _ENTROPY * logs.detach())).sum()
        descend(self.optimizer, loss / len(samples), parameters=self.controller.parameters(), clip=1.0)
