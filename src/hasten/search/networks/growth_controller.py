"""The controller of EAS (arXiv 1707.04873): it reads a network layer by layer and says what to widen and to deepen."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.processes import one_thread
from hasten.search.networks.growing_space import GrowingSpace
from hasten.train.loop import descend

A = TypeVar("A", bound=Hashable)
LONGEST = 50
"""Layers that a sequence is padded to."""


@dataclass(frozen=True)
class Widen:
    """A decision of the wider actor.

    Args:
        which: of each layer whether it is widened.
    """

    which: tuple[bool, ...]


@dataclass(frozen=True)
class Deepen:
    """A decision of the deeper actor: behind which layer of which block, and of which kernel; 0 where there is none."""

    block: int
    layer: int
    kernel: int


@dataclass(frozen=True)
class Decision:
    """What was decided for a network, with the logarithm of its chance.

    Args:
        arch: the network that it was decided for.
        action: what.
        log_chance: when it was drawn.
    """

    arch: Any
    action: Widen | Deepen
    log_chance: float


class GrowthController(nn.Module):
    """A bidirectional LSTM over a network's layers, and two actors that read it.

    The wider actor decides for all layers at once. The deeper actor's LSTM begins where the encoder ended and decides
    block, layer and kernel one after the other; what a network does not have is masked in the draw and in its chance.

    Args:
        space: of the networks.
        embedding: width of a layer's vector.
        hidden: units of the encoder in each direction.
        seed: of the weights.

    Raises:
        HastenError: a network of the space may have more layers than are read.
    """

    def __init__(self, space: GrowingSpace[Any], embedding: int = 16, hidden: int = 50, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.blocks = len(space.layers(space.smallest()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Embedding(space.tokens, embedding, padding_idx=0)
            self.encoder = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
            self.wider = nn.Linear(2 * hidden, 1)
            sizes = (self.blocks, space.most, len(space.kernels))
            self.decoder = nn.LSTMCell(embedding, 2 * hidden)
            self.tables = nn.ModuleList(nn.Embedding(n, embedding) for n in (1, *sizes[:-1]))
            self.choices = nn.ModuleList(nn.Linear(2 * hidden, n) for n in sizes)

    def encode(self, archs: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Networks' layers as the encoder reads them.

        Returns:
            States of each layer (networks, layers, 2 hidden), the last states of both directions (networks, 2 hidden)
            of output and of cell.

        Raises:
            HastenError: a network of more layers than `LONGEST`.
        """
        rows = [self.space.sequence(a) for a in archs]
        if max(map(len, rows)) > LONGEST:
            raise HastenError(f"a controller reads {LONGEST} layers: a network has {max(map(len, rows))}")
        lengths = torch.tensor([len(r) for r in rows])
        padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row)
        packed = nn.utils.rnn.pack_padded_sequence(self.layers(padded), lengths, batch_first=True, enforce_sorted=False)
        states, (output, cell) = self.encoder(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        return states, output.transpose(0, 1).flatten(1), cell.transpose(0, 1).flatten(1)

    def widening(self, archs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Of each layer of each network the logit of widening it, and whether it can be: (networks, layers)."""
        states, _, _ = self.encode(archs)
        logits: Tensor = self.wider(states)[..., 0]
        able = torch.zeros_like(logits, dtype=torch.bool)
        for i, arch in enumerate(archs):
            row = self.space.widenable(arch)
            able[i, : len(row)] = torch.tensor(row)
        return logits, able

    @torch.no_grad()
    def widen(self, archs: Sequence[Any], generator: torch.Generator) -> list[Decision]:
        """Draws what to widen in each network."""
        with one_thread():
            return self._widen(archs, generator)

    def _widen(self, archs: Sequence[Any], generator: torch.Generator) -> list[Decision]:
        logits, able = self.widening(archs)
        drawn = (torch.rand(logits.shape, generator=generator) < logits.sigmoid()) & able
        actions = [
            Widen(tuple(row[: len(self.space.sequence(a))].tolist())) for a, row in zip(archs, drawn, strict=True)
        ]
        chances, _ = self.log_chances(archs, actions)
        return [Decision(*row) for row in zip(archs, actions, chances.tolist(), strict=True)]

    @torch.no_grad()
    def deepen(self, archs: Sequence[Any], generator: torch.Generator) -> list[Decision]:
        """Draws where to put one more layer in each network; each has a block that is not full.

        Raises:
            HastenError: a network whose blocks are all full.
        """
        if not all(any(self.space.layers(a)) for a in archs):
            raise HastenError("every block of a network is full: there is nothing to deepen")
        with one_thread():
            return self._deepen(archs, generator)

    def _deepen(self, archs: Sequence[Any], generator: torch.Generator) -> list[Decision]:
        decoder = _Decoder(self, archs)
        block = torch.multinomial(decoder.blocks().exp(), 1, generator=generator)[:, 0]
        layer = torch.multinomial(decoder.layers(block).exp(), 1, generator=generator)[:, 0]
        kernel = torch.multinomial(decoder.kernels(layer).exp(), 1, generator=generator)[:, 0]
        actions = []
        for arch, b, i, k in zip(archs, block.tolist(), layer.tolist(), kernel.tolist(), strict=True):
            actions.append(Deepen(b, i, self.space.kernels[k] if self.space.has_kernel(arch, b) else 0))
        chances, _ = self.log_chances(archs, actions)
        return [Decision(*row) for row in zip(archs, actions, chances.tolist(), strict=True)]

    def log_chances(self, archs: Sequence[Any], actions: Sequence[Widen | Deepen]) -> tuple[Tensor, Tensor]:
        """Logarithm of each action's chance, and the entropy of what it was drawn from: (networks,).

        What is masked counts in neither; the wider actor's entropy is a mean over the layers that can be widened.

        Args:
            archs: the networks that the actions are for.
            actions: all of one kind.
        """
        if isinstance(actions[0], Widen):
            logits, able = self.widening(archs)
            chosen = torch.zeros_like(logits)
            for i, action in enumerate(actions):
                assert isinstance(action, Widen)
                chosen[i, : len(action.which)] = torch.tensor(action.which, dtype=logits.dtype)
            yes, no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
            each = torch.where(able, chosen * yes + (1 - chosen) * no, 0.0)
            spread = torch.where(able, -(yes.exp() * yes + no.exp() * no), 0.0)
            return each.sum(1), spread.sum(1) / able.sum(1).clamp_min(1)
        decoder = _Decoder(self, archs)
        rows = [a for a in actions if isinstance(a, Deepen)]
        block, layer = torch.tensor([a.block for a in rows]), torch.tensor([a.layer for a in rows])
        kernel = torch.tensor([self.space.kernels.index(a.kernel) if a.kernel else 0 for a in rows])
        there = torch.tensor([bool(a.kernel) for a in rows])
        total, spread = torch.zeros(len(rows)), torch.zeros(len(rows))
        parts = ((decoder.blocks(), block, None), (decoder.layers(block), layer, None))
        for logs, chosen, used in (*parts, (decoder.kernels(layer), kernel, there)):
            chance = logs.gather(1, chosen[:, None])[:, 0]
            entropy = -(logs.exp() * logs.clamp_min(-1e9)).sum(1)
            total = total + (chance if used is None else torch.where(used, chance, 0.0))
            spread = spread + (entropy if used is None else torch.where(used, entropy, 0.0))
        return total, spread


class _Decoder:
    """Three decisions in sequence, each fed to the next: logarithms of chances (networks, choices)."""

    def __init__(self, controller: GrowthController, archs: Sequence[Any]) -> None:
        self.controller, self.archs = controller, archs
        _, output, cell = controller.encode(archs)
        self.state = (output, cell)
        self.rooms = torch.tensor([controller.space.layers(a) for a in archs])

    def _step(self, at: int, before: Tensor) -> Tensor:
        self.state = self.controller.decoder(self.controller.tables[at](before), self.state)
        logits: Tensor = self.controller.choices[at](self.state[0])
        return logits

    def blocks(self) -> Tensor:
        logits = self._step(0, torch.zeros(len(self.archs), dtype=torch.int64))
        return logits.masked_fill(self.rooms == 0, -torch.inf).log_softmax(1)

    def layers(self, block: Tensor) -> Tensor:
        logits = self._step(1, block)
        room = self.rooms.gather(1, block[:, None])
        beyond = torch.arange(logits.shape[1])[None] >= room
        return logits.masked_fill(beyond, -torch.inf).log_softmax(1)

    def kernels(self, layer: Tensor) -> Tensor:
        return self._step(2, layer).log_softmax(1)


class GrowthTraining:
    """Teaches a controller by REINFORCE, one update an episode.

    Rewards are tan(score pi / 2), which stretches high accuracies; the baseline is a moving mean that is updated before
    it is subtracted, and is nearly the mean of these very rewards then, as in the authors' code.

    Args:
        controller: taught in place.
        rate: of Adam.
        follow: how far the baseline goes to the mean of an episode's rewards.
        entropy: weight of the bonus.
    """

    def __init__(
        self, controller: GrowthController, rate: float = 2e-3, follow: float = 0.95, entropy: float = 1e-5
    ) -> None:
        if rate <= 0 or not 0 < follow <= 1 or entropy < 0:
            raise HastenError(
                "a controller is taught at a rate above 0, a baseline that follows by 0 to 1, entropy from 0"
            )
        self.controller, self.follow, self.entropy = controller, follow, entropy
        self.baseline = 0.0
        self.optimizer = torch.optim.Adam(controller.parameters(), rate)

    def update(self, episodes: Sequence[Sequence[Decision]], rewards: Sequence[float]) -> None:
        """One step: each decision of a network has its network's advantage.

        Args:
            episodes: decisions of each network.
            rewards: of each network (`stretched`).
        """
        with one_thread():
            self._update(episodes, rewards)

    def _update(self, episodes: Sequence[Sequence[Decision]], rewards: Sequence[float]) -> None:
        self.baseline += self.follow * (sum(rewards) / len(rewards) - self.baseline)
        loss = torch.zeros(())
        for kind in (Widen, Deepen):
            rows = [
                (d.arch, d.action, reward - self.baseline)
                for decisions, reward in zip(episodes, rewards, strict=True)
                for d in decisions
                if isinstance(d.action, kind)
            ]
            if rows:
                archs, actions, advantages = zip(*rows, strict=True)
                chances, spread = self.controller.log_chances(archs, actions)
                paid = torch.tensor(advantages, dtype=chances.dtype)
                loss = loss - ((paid * chances).sum() + self.entropy * spread.sum()) / len(episodes)
        if loss.requires_grad:  # else nobody decided anything
            descend(self.optimizer, loss)


def stretched(score: float) -> float:
    """tan(score pi / 2) of a score from 0 to 1: from 0.90 to 0.91 is more than from 0.50 to 0.51.

    >>> round(stretched(0.91) - stretched(0.90), 2), round(stretched(0.51) - stretched(0.50), 2)
    (0.71, 0.03)
    """
    return math.tan(min(max(score, 0.0), 1 - 1e-4) * math.pi / 2)
