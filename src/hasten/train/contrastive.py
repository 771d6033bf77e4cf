"""Two kinds of data aligned by what belongs together: the contrastive loss, projections, retrieval of unseen classes.

Many alignments of the same features are trained as one, a batched product each: every held-out set of classes has
projections, batches and statistics of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.train.loop import train
from hasten.train.probing import Standardised

Pairing: TypeAlias = Literal["instance", "class"]
Objective: TypeAlias = Literal["contrastive", "prototypes"]


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """Symmetric cross-entropy of dot products: the i-th of one belongs to the i-th of the other (CLIP, 2103.00020).

    Args:
        first, second: (..., batch, width).

    Returns:
        (...): ln(batch) where nothing is told apart, 0 where everything is.
    """
    logits = first @ second.mT / temperature
    return -(logits.log_softmax(-1) + logits.log_softmax(-2)).diagonal(dim1=-2, dim2=-1).mean(-1) / 2


def prototype_loss(support: Tensor, queries: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cross-entropy of negative squared distances to the mean of each class (prototypical networks, 1703.05175).

    Args:
        support, queries: (..., batch, width), of the same labels.
        labels: (..., batch).

    Returns:
        (...).
    """
    means, there = _prototypes(support, labels, classes)
    scores = -torch.cdist(queries, means).square().masked_fill(~there[..., None, :], torch.inf)
    return F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none").mean(-1)


def _prototypes(embedded: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Means of classes (..., classes, width), and which classes there are (..., classes)."""
    member = F.one_hot(labels, classes).to(embedded.dtype)
    count = member.sum(-2)
    return member.mT @ embedded / count.clamp(min=1)[..., None], count > 0


class Projections(nn.Module):
    """Linear layers with GELU for two kinds of features, ``count`` times apart.

    Args:
        count: sets of layers.
        widths: of the features of both kinds.
        width: of what is made of them.
        normalised: whether that has length 1.
        seed: of the weights at the start.

    Shape:
        (count, batch, in) and the same of the other kind to (count, batch, width) each.
    """

    def __init__(
        self, count: int, widths: tuple[int, int], width: int, normalised: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.normalised = normalised
        generator = torch.Generator().manual_seed(seed)
        for name, given in zip(("first", "second"), widths, strict=True):
            drawn = (torch.rand(2, count, given + 1, width, generator=generator) * 2 - 1) / given**0.5
            self.register_parameter(name, nn.Parameter(drawn[0, :, :-1].clone()))
            self.register_parameter(f"{name}_bias", nn.Parameter(drawn[0, :, -1:].clone()))
        self.first: nn.Parameter
        self.second: nn.Parameter
        self.first_bias: nn.Parameter
        self.second_bias: nn.Parameter

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        a, b = F.gelu(first @ self.first + self.first_bias), F.gelu(second @ self.second + self.second_bias)
        return (F.normalize(a, dim=-1), F.normalize(b, dim=-1)) if self.normalised else (a, b)


@dataclass(frozen=True)
class TwoKinds:
    """The same samples as features of two kinds, split once.

    Args:
        first, second: (samples, in) features: the gallery's, and the queries'.
        labels: (samples,).
        training: (samples,) which may be trained on where their class is seen.
    """

    first: Tensor
    second: Tensor
    labels: Tensor
    training: Tensor


@dataclass(frozen=True)
class Retrieved:
    """Shares of queries that found their class, for each held-out set of classes.

    Args:
        seen: among the samples kept from training, of the classes trained on.
        unseen: of the classes held out.
        temperatures: that each set was aligned with, where it was chosen.
    """

    seen: Tensor
    unseen: Tensor
    temperatures: tuple[float | None, ...] = ()


def held_out_pairs(classes: int = 10) -> list[tuple[int, int]]:
    """Every two classes."""
    return list(itertools.combinations(range(classes), 2))


def validation_pair(held: tuple[int, int], classes: int = 10) -> tuple[int, int]:
    """Two classes of those that are not held out, to choose by: the next ones in turn."""
    others = [(held[1] + step) % classes for step in range(1, classes)]
    first, second = [c for c in others if c not in held][:2]
    return first, second


def align(
    kinds: Sequence[TwoKinds],
    choice: Sequence[int],
    held: Sequence[tuple[int, ...]],
    *,
    unused: Sequence[tuple[int, ...]] | None = None,
    pairing: Pairing = "instance",
    objective: Objective = "contrastive",
    temperature: float | None = None,
    steps: Sequence[int] = (400,),
    width: int = 64,
    batch: int = 32,
    rate: float = 1e-3,
    shuffled: bool = False,
    seed: int = 0,
) -> list[Retrieved]:
    """Trains projections for every held-out set of classes, and retrieves.

    Args:
        kinds: features to choose of, of the same samples.
        choice: which of them each set has.
        held: classes that an alignment does not see, and that its ``unseen`` retrieval is of.
        unused: classes that it does not see either, and that nobody asks of.
        pairing: whether the two of a pair are one sample, or any two of a class.
        objective: `contrastive_loss`, or `prototype_loss` with prototypes of the first kind.
        temperature: of `contrastive_loss` between projections of length 1; None for 1, and projections as they are.
        steps: of Adam after which retrieval is measured, rising; the last ends the training.
        shuffled: whether pairs are any two samples: what is learned of nothing.
        seed: of projections and batches.

    Returns:
        For each number of steps what was found, of (sets,) each.

    Raises:
        HastenError: sets without a class to train on.
    """
    labels, training = kinds[0].labels, kinds[0].training
    gone = [set(h) | set(u) for h, u in zip(held, unused or [()] * len(held), strict=True)]
    allowed = torch.stack([training & ~held_samples(labels, g) for g in gone])
    if not bool(allowed.any(1).all()):
        raise HastenError("nothing is left to train on: hold fewer classes out")
    first, second = (torch.stack([_standardised(k, name, a) for k, a in _each(kinds, choice, allowed)])
                     for name in ("first", "second"))  # fmt: skip
    count, classes = len(held), int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    module = Projections(count, (first.shape[2], second.shape[2]), width, temperature is not None, seed)
    others = partners(labels, allowed)

    def loss(step: int) -> Tensor:
        chosen = torch.multinomial(allowed.float(), batch, replacement=True, generator=generator)
        other = chosen
        if shuffled:
            other = torch.multinomial(allowed.float(), batch, replacement=True, generator=generator)
        elif pairing == "class":
            other = others(chosen, generator)
        a, b = module(_taken(first, chosen), _taken(second, other))
        if objective == "prototypes":
            return prototype_loss(a, b, labels[chosen], classes).sum()
        return contrastive_loss(a, b, temperature or 1.0).sum()

    found = []
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for before, after in itertools.pairwise((0, *steps)):
        train(module, loss, optimizer=optimizer, steps=after - before, keep=0).finished("aligning")
        found.append(_retrieve(module, first, second, kinds[0], held, gone, objective))
    return found


def held_samples(labels: Tensor, classes: Collection[int]) -> Tensor:
    """Which samples (samples,) are of these classes."""
    return torch.isin(labels, torch.tensor(sorted(classes), dtype=labels.dtype))


def _each(kinds: Sequence[TwoKinds], choice: Sequence[int], allowed: Tensor) -> list[tuple[TwoKinds, Tensor]]:
    return [(kinds[c], a) for c, a in zip(choice, allowed, strict=True)]


def _standardised(kinds: TwoKinds, name: str, allowed: Tensor) -> Tensor:
    """Features by the mean and deviation of what may be trained on."""
    features: Tensor = getattr(kinds, name).float()
    found: Tensor = Standardised(features[allowed])(features)
    return found


def _taken(features: Tensor, chosen: Tensor) -> Tensor:
    return features.gather(1, chosen[..., None].expand(-1, -1, features.shape[2]))


def partners(labels: Tensor, allowed: Tensor) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A function that draws, for samples (sets, batch), others of their classes that may be trained on.

    Args:
        labels: (samples,).
        allowed: (sets, samples) what each set may train on.
    """
    classes = int(labels.max()) + 1
    members = [((labels == c) & allowed.any(0)).nonzero()[:, 0] for c in range(classes)]
    most = max(len(m) for m in members)
    table = torch.stack([F.pad(m, (0, most - len(m))) for m in members])
    counts = torch.tensor([max(1, len(m)) for m in members])

    def other(chosen: Tensor, generator: torch.Generator) -> Tensor:
        of = labels[chosen]
        place = (torch.rand(of.shape, generator=generator) * counts[of]).long()
        return table[of, place]

    return other


@torch.no_grad()
def _retrieve(
    module: nn.Module, first: Tensor, second: Tensor, kinds: TwoKinds, held: Sequence[tuple[int, ...]],
    gone: Sequence[set[int]], objective: Objective,
) -> Retrieved:  # fmt: skip
    a, b = module(first, second)
    seen: list[float] = []
    unseen: list[float] = []
    for i, (asked, unknown) in enumerate(zip(held, gone, strict=True)):
        kept = ~kinds.training & ~held_samples(kinds.labels, unknown)
        for part, found in ((kept, seen), (held_samples(kinds.labels, asked), unseen)):
            found.append(retrieval(a[i][part], b[i][part], kinds.labels[part], objective))
    return Retrieved(torch.tensor(seen), torch.tensor(unseen))


def retrieval(gallery: Tensor, queries: Tensor, labels: Tensor, objective: Objective = "contrastive") -> float:
    """Share of queries whose best match in the gallery is of their class; a query's own sample is no match.

    Args:
        gallery, queries: (samples, width), of the same samples.
        labels: (samples,).
        objective: by dot products, or by the nearest mean of a class, without a query's own sample.
    """
    if objective == "prototypes":
        classes = int(labels.max()) + 1
        member = F.one_hot(labels, classes).to(gallery.dtype)
        sums, counts = member.T @ gallery, member.sum(0)
        own = member[:, :, None] * gallery[:, None]
        means = (sums - own) / (counts - member).clamp(min=1)[..., None]
        scores = -(queries[:, None] - means).square().sum(-1)
        scores[:, counts == 0] = -torch.inf
        return float((scores.argmax(1) == labels).float().mean())
    scores = queries @ gallery.T
    scores.fill_diagonal_(-torch.inf)
    return float((labels[scores.argmax(1)] == labels).float().mean())
