"""Searching by sampled paths: a super-network of which one path is alive, and the latency in the loss (ProxylessNAS).

arXiv 1812.00332: weights and logits learn in turn, each step on a path drawn anew; logits from images that weights
never see, by one of the rules of `MixedEdge`, or by REINFORCE.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.cost.latency.expected import ExpectedLatency
from hasten.errors import HastenError
from hasten.nn.mixed_edge import MixedNetwork
from hasten.search.networks.bilevel import Spending, answering, classification, halves
from hasten.tasks.task import Batch, Task
from hasten.train.fitting import parameter_groups
from hasten.train.loop import descend
from hasten.train.schedules import Cosine, Moment

Rule: TypeAlias = Literal["full", "full_v2", "two", "reinforce"]
Form: TypeAlias = Literal["additive", "multiplicative"]
RULES: tuple[Rule, ...] = ("full", "full_v2", "two", "reinforce")
# Epochs in which weights and logits learn in turn, as published: in the first of them logits still wait.
_JOINT = 120


def latency_loss(
    loss: Tensor, expected: Tensor, reference: float, form: Form = "additive", strength: float = 0.1,
    unit: float = 1e-3,
) -> Tensor:  # fmt: skip
    """A loss with the expected latency in it.

    ``additive``: loss + strength (expected - reference) / reference. ``multiplicative``, the published code's:
    0.2 loss (ln expected / ln reference)^0.3, both in ``unit``, whose logarithms must be above 0.

    Args:
        loss: a scalar.
        expected, reference: seconds.
        strength: of the additive form.
        unit: seconds that the logarithms count, milliseconds as published.

    Raises:
        HastenError: the reference is no time, or one of the two not above one unit where its logarithm is taken.
    """
    if not 0 < reference < math.inf:
        raise HastenError(f"a loss with latency needs a reference in seconds above 0: got {reference:g}")
    if form == "additive":
        return loss + strength * (expected - reference) / reference
    if (shorter := min(reference, float(expected.detach()))) <= unit:
        raise HastenError(f"a latency of {shorter:g} s has no logarithm above 0 in units of {unit:g} s: take smaller")
    return 0.2 * loss * (torch.log(expected / unit) / math.log(reference / unit)) ** 0.3


def reinforce_loss(log_probabilities: Sequence[Tensor], rewards: Sequence[float], baseline: float) -> Tensor:
    """What descends along REINFORCE's gradient: the mean of (reward - baseline) times minus log probability.

    Args:
        log_probabilities: of each drawn network, a scalar with a graph.
        rewards: of each.
        baseline: what reward was expected.
    """
    parts = [(reward - baseline) * -chance for chance, reward in zip(log_probabilities, rewards, strict=True)]
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class PathSearch:
    """What a search by sampled paths gave.

    Args:
        arch: the choice at each place, within the limit.
        likeliest: the likeliest choice at each place, whatever it takes.
        probabilities: of the candidates at each place.
        score: the task's metric of ``arch`` on validation examples with the super-network's weights, norms by batch.
        expected: seconds that were expected at each step of the logits.
        steps: of the weights, and of the logits.
    """

    arch: tuple[int, ...]
    likeliest: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]
    score: float
    expected: tuple[float, ...]
    steps: tuple[int, int]


def search_paths(
    supernet: MixedNetwork,
    task: Task,
    latency: ExpectedLatency,
    limit: float = math.inf,
    *,
    rule: Rule = "full_v2",
    form: Form = "additive",
    strength: float | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    warm: float = 0.25,
    every: int = 5,
    batch: int = 64,
    held: float = 0.1,
    rate: float = 0.05,
    logit_rate: float = 0.03,
    smoothing: float = 0.1,
    networks: int = 10,
    unit: float = 1e-6,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda share: None,
) -> PathSearch:
    """Trains a super-network in place and finds the choice at each place.

    A first share of the budget trains evenly drawn paths, with logits as they are; paths are drawn by the logits from
    then on. After another 120th of the rest one step of the logits follows each ``every`` steps of the weights. Weights
    learn by SGD with Nesterov's momentum under a cosine, logits by Adam without momentum.

    Args:
        supernet: trained in place.
        task: a classification of images.
        latency: of its choices.
        limit: seconds that the result may take; without one latency is not in the loss.
        rule: how logits learn.
        form: of `latency_loss`.
        strength: of its additive form; when None that of an augmented Lagrangian, which brings the expected latency to
            the limit from both sides, so that the search ends near it.
        seconds, steps: the budget, in seconds or steps of the weights.
        seed: of everything random but the super-network's first weights.
        warm: share of the budget in which paths are drawn evenly.
        every: steps of the weights for one of the logits.
        batch: images of a step.
        held: share of the training examples that logits learn from.
        rate, logit_rate: of weights, the highest, and of logits; the paper's logits, with hundreds of times the steps,
            have 0.001.
        smoothing: of labels, for weights.
        networks: drawn for a step of REINFORCE.
        unit: of `latency_loss`.
        clock: that seconds are read from.
        progress: told the share done.

    Raises:
        HastenError: no budget, another task, an unknown rule, or nothing within the limit.
    """
    if rule not in RULES:
        raise HastenError(f"logits learn by {', '.join(RULES)}: got {rule!r}")
    asked, answer = classification(task), answering(supernet, supernet.resolution)
    latency.best_within(latency.edges, limit)  # says before a training that nothing is within it
    generator = torch.Generator().manual_seed(seed)
    parts = halves(task, held, (batch, batch), seed)
    edges = supernet.mixed
    groups = [{**g, "params": list(_without(g["params"], supernet.logits()))} for g in parameter_groups(supernet, 4e-5)]
    weights = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    logits = torch.optim.Adam(supernet.logits(), lr=logit_rate, betas=(0.0, 0.999))
    spending, schedule = Spending(seconds, steps, clock), Cosine()
    begin = warm + (1 - warm) / _JOINT
    seen: list[float] = []
    baseline = multiplier = 0.0
    supernet.train()

    def weight_step(share: float) -> None:
        for edge in edges:
            edge.draw("one", generator, evenly=share < warm)
        for group in weights.param_groups:
            group["lr"] = rate * schedule(Moment(spending.done, share))
        given = next(parts.weights)
        loss = F.cross_entropy(answer(given.inputs), given.targets, label_smoothing=smoothing)
        if not math.isfinite(descend(weights, loss, parameters=supernet.weights(), clip=5.0)):
            raise HastenError("the super-network's loss is not finite: lower its rate")

    def gated_loss(given: Batch) -> Tensor:
        nonlocal multiplier
        for edge in edges:
            # A place of one candidate has no pair.
            edge.draw("full_v2" if rule == "reinforce" or len(edge.candidates) < 2 else rule, generator)
        loss = F.cross_entropy(answer(given.inputs), given.targets)
        expected = latency([edge.probabilities() for edge in edges])
        seen.append(float(expected.detach()))
        if math.isinf(limit):
            return loss
        pull = strength
        if pull is None:  # of an augmented Lagrangian
            error = (seen[-1] - limit) / limit
            multiplier += 0.05 * error
            pull = multiplier + 2.0 * error
        return latency_loss(loss, expected, limit, form, pull, unit)

    def drawn_loss(given: Batch) -> Tensor:
        nonlocal baseline
        chances, rewards = [], []
        for _ in range(networks):
            for edge in edges:
                edge.draw("one", generator)
            with torch.no_grad():
                right = asked.evaluate_batch(answer, given)
            taken = latency.of([edge.active for edge in edges])
            rewards.append(right if math.isinf(limit) else right * (limit / taken) ** 0.1)
            chances.append(torch.stack([edge.log_probability() for edge in edges]).sum())
        # The published step, by which the baseline is nearly the mean of these very rewards.
        baseline += 0.99 * (sum(rewards) / len(rewards) - baseline)
        with torch.no_grad():
            seen.append(float(latency([edge.probabilities() for edge in edges])))
        return reinforce_loss(chances, rewards, baseline)

    def logit_step() -> None:
        given = next(parts.logits)
        loss = drawn_loss(given) if rule == "reinforce" else gated_loss(given)
        logits.zero_grad(set_to_none=True)
        # Where every active candidate is none, and no latency counts, there is nothing to learn.
        if loss.requires_grad:
            torch.autograd.backward(loss, inputs=supernet.logits())
        logits.step()
        for edge in edges:
            edge.rescale()

    while (share := spending.share) < 1:
        weight_step(share)
        spending.done += 1
        if share >= begin and spending.done % every == 0:
            logit_step()
        progress(share)
    rows = [row.detach().log_softmax(0).tolist() for row in supernet.logits()]
    arch = latency.best_within(rows, limit)
    supernet.choose(arch)
    with torch.no_grad():
        score = asked.evaluate(answer, "validation", size=256)
    shares = tuple(tuple(math.exp(v) for v in row) for row in rows)
    return PathSearch(arch, supernet.best(), shares, score, tuple(seen), (spending.done, len(seen)))


def _without(parameters: object, others: Sequence[Tensor]) -> list[Tensor]:
    assert isinstance(parameters, list)
    own = {id(p) for p in others}
    return [p for p in parameters if id(p) not in own]
