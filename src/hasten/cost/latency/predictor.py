"""Latency on a device that nobody profiled, from ten measurements: HELP (arXiv 2106.08630).

A device is known only by its latencies on a few fixed reference networks. A predictor is meta-learned over many
devices, each a few-shot regression: its initial weights are modulated by what the references say of the device, and a
few gradient steps on the measured networks, at learned rates, adapt it. MAML and Meta-SGD are the same learner with
parts switched off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from hasten.cost.estimator import FeatureRange, PredictedValues, target_of
from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.meta_network import (
    CodeNetwork,
    GraphNetwork,
    Modulator,
    Weights,
    divergence,
    inner_loop,
    modulated,
)
from hasten.cost.latency.meta_settings import MetaSettings
from hasten.errors import HastenError

A = TypeVar("A", bound=Hashable)
Base = Literal["code", "graph"]


def scaled(seconds: NDArray[np.float64], references: NDArray[np.float64]) -> NDArray[np.float64]:
    """Targets: latencies by the range of the references, 0.05 at its foot and 0.95 at its head.

    The official code takes the range of a device's whole training pool, which nobody has for a new device.

    Raises:
        HastenError: all references take the same time.
    """
    made: NDArray[np.float64] = 0.9 * _within(seconds, references) + 0.05
    return made


def embedding_of(references: NDArray[np.float64]) -> NDArray[np.float64]:
    """A device's embedding: its latencies on the references, scaled to [0, 1].

    Raises:
        HastenError: as `scaled`.
    """
    return _within(references, references)


def _flat(codes: Tensor) -> NDArray[np.float64]:
    """Codes (count, ...) as (count, features)."""
    return codes.flatten(1).numpy().astype(np.float64)


def _within(seconds: NDArray[np.float64], references: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(references.min()), float(references.max())
    if not high > low:
        raise HastenError("all reference networks take the same time on a device: measure them again, or take others")
    made: NDArray[np.float64] = (seconds - low) / (high - low)
    return made


@dataclass
class _Pool:
    """Devices as tensors: embeddings (devices, references), targets and what of them is asked (devices, networks)."""

    codes: Tensor
    embeddings: Tensor
    targets: Tensor
    asked: Tensor
    references: Tensor


class LatencyPredictor(Generic[A]):
    """A predictor of latency that is learned over devices once, and adapts to a new one.

    Args:
        codes: tensor (count, ...) of networks: (count, features), or (count, nodes, labels + nodes) for graphs.
        references: networks that every device is known by, the same for all.
        labels: of a node where codes are graphs; 0 for vectors.
        settings: of meta-learning.
        seed: of weights, episodes and samples.

    >>> from itertools import product
    >>> nets = list(product((0, 1, 2), repeat=4))
    >>> codes = lambda archs: torch.nn.functional.one_hot(torch.tensor(archs), 3).flatten(1).float()
    >>> fast = MetaSettings(episodes=5, query=20, every=5)
    >>> predictor = LatencyPredictor(codes, nets[:10], settings=fast)
    >>> pool = {f"device {d}": {n: 1 + sum(n) + d * n[3] for n in nets} for d in range(9)}
    >>> new = predictor.fit(pool).adapt({n: 1 + sum(n) + 0.5 * n[3] for n in nets[:10]})
    >>> len(new.predict(nets))
    81
    """

    def __init__(
        self,
        codes: Callable[[Sequence[A]], Tensor],
        references: Sequence[A],
        *,
        labels: int = 0,
        settings: MetaSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.codes, self.references, self.seed = codes, tuple(references), seed
        self.settings = s = settings or MetaSettings()
        if len(set(self.references)) < max(2, len(self.references)):
            raise HastenError("a device is known by at least two different reference networks")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            length = len(self.references) if s.embed else 0
            size = codes(self.references).shape[-1]
            self.network: nn.Module = (
                GraphNetwork(labels, s.hidden, length) if labels else CodeNetwork(size, s.hidden, length)
            )
            self.modulator = Modulator(s.hidden * (2 if s.embed else 1), len(self.references))
        self.rates = {k: torch.full_like(p, s.inner_rate, requires_grad=True) for k, p in self._weights().items()}
        self._generator = torch.Generator().manual_seed(seed)
        self.history: list[tuple[int, float, float]] = []
        self.seen: FeatureRange | None = None

    # -- learning --------------------------------------------------------------------------------

    def _weights(self) -> Weights:
        return dict(self.network.named_parameters())

    def _learned(self) -> list[Tensor]:
        found: list[Tensor] = list(self.network.parameters())
        if self.settings.modulate:
            found += self.modulator.parameters()
        if self.settings.learn_rates:
            found += self.rates.values()
        return found

    def _inner_rates(self) -> Mapping[str, Tensor] | float:
        return self.rates if self.settings.learn_rates else self.settings.inner_rate

    def _sampled(self, embeddings: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Samples of the modulation (tasks, ...) and their divergence; zeros where there is none."""
        if not self.settings.modulate:
            return embeddings.new_zeros(len(embeddings), self.modulator.count), embeddings.new_zeros(())
        means, deviations = self.modulator(embeddings)
        noise = torch.randn(means.shape, generator=generator, dtype=means.dtype)
        return means + deviations * noise, divergence(means, deviations).mean()

    def _adapted(self, weights: Weights, z: Tensor, codes: Tensor, targets: Tensor, embedding: Tensor) -> Weights:
        s = self.settings
        if s.modulate:
            weights = modulated(weights, z, s.scale)
        rates = self._inner_rates()
        return inner_loop(
            self.network, weights, rates, codes, targets, embedding, steps=s.steps, second_order=s.second_order
        )

    def meta_loss(
        self, embeddings: Tensor, support: Tensor, known: Tensor, query: Tensor, asked: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """The outer objective of one episode (equation 6): mean squared error after adaptation, and the divergence.

        Args:
            embeddings: (tasks, references).
            support, known: codes (tasks, measured, ...) and targets (tasks, measured).
            query, asked: the same of other networks.
            generator: of the modulation's samples.
        """
        weights = self._weights()
        z, kl = self._sampled(embeddings, generator)

        def one(h: Tensor, z: Tensor, xs: Tensor, ys: Tensor, xq: Tensor) -> Tensor:
            made: Tensor = functional_call(self.network, self._adapted(weights, z, xs, ys, h), (xq, h))
            return made

        made = vmap(one)(embeddings, z, support, known, query)
        return F.mse_loss(made, asked) + self.settings.kl * kl

    def _plain_loss(self, embeddings: Tensor, support: Tensor, known: Tensor, query: Tensor, asked: Tensor) -> Tensor:
        """Mean squared error without adaptation, of measured and asked networks."""
        codes, targets = torch.cat([support, query], 1), torch.cat([known, asked], 1)
        return F.mse_loss(self.network(codes, embeddings[:, None]), targets)

    def _pool(self, devices: Mapping[str, Mapping[A, float]], role: str) -> _Pool:
        archs = list(dict.fromkeys((*self.references, *(a for table in devices.values() for a in table))))
        place = {a: i for i, a in enumerate(archs)}
        count = len(self.references)
        embeddings, targets, asked = [], [], []
        for name, table in devices.items():
            row = np.full(len(archs), np.nan)
            for arch, value in table.items():
                row[place[arch]] = value
            self._check(row[~np.isnan(row)], name)
            if np.isnan(row[:count]).any():
                raise HastenError(f"{role} device {name} lacks a reference network: measure all {count} of them")
            targets.append(np.nan_to_num(scaled(row, row[:count]), nan=0.0))
            embeddings.append(embedding_of(row[:count]))
            use = ~np.isnan(row)
            use[:count] = False
            if use.sum() < 2:
                raise HastenError(f"{role} device {name} has fewer than two networks beside the references")
            low, high = np.quantile(row[use], [self.settings.trim, 1 - self.settings.trim])
            kept = use & (row >= low) & (row <= high)
            asked.append(kept if kept.any() else use)
        # Through float64, so that a change of unit leaves every number as it is to a float32.
        return _Pool(
            self.codes(archs),
            torch.tensor(np.array(embeddings), dtype=torch.float32),
            torch.tensor(np.array(targets), dtype=torch.float32),
            torch.tensor(np.array(asked)),
            torch.arange(count),
        )

    @staticmethod
    def _check(values: NDArray[np.float64], name: str) -> None:
        if not (np.isfinite(values) & (values > 0)).all():
            raise HastenError(f"a latency of {name} is not a positive number of seconds")

    def fit(
        self,
        devices: Mapping[str, Mapping[A, float]],
        valid: Mapping[str, Mapping[A, float]] | None = None,
        *,
        progress: Callable[[int, float], None] = lambda episode, loss: None,
    ) -> LatencyPredictor[A]:
        """Meta-learns over devices.

        Args:
            devices: name -> network -> seconds; each has all references, and more networks.
            valid: other devices, by whose mean rank correlation the best state is kept.
            progress: told the episode and its loss.

        Raises:
            HastenError: no devices, one without all references, or a latency that is no positive number.
        """
        if not devices:
            raise HastenError("a latency predictor learns over at least one device")
        if shared := set(devices) & set(valid or {}):
            raise HastenError(f"{', '.join(sorted(shared))} is both learned from and validated on: keep them apart")
        s = self.settings
        pool = self._pool(devices, "training")
        self.seen = FeatureRange.of(_flat(pool.codes))
        checked = self._pool(valid, "validation") if valid else None
        optimizer = torch.optim.Adam(self._learned(), lr=s.rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, s.share_of_rate) if s.cosine else None
        best, kept = -2.0, None
        for episode in range(1 - s.warm, s.episodes + 1):
            drawn = self._episode(pool)
            loss = self.meta_loss(*drawn, self._generator) if episode > 0 else self._plain_loss(*drawn)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if episode > 0 and (episode % s.every == 0 or episode == s.episodes):
                value = float(loss.detach())
                reached = self._validated(checked) if checked else math.nan
                self.history.append((episode, value, reached))
                progress(episode, value)
                if checked and reached > best:
                    best, kept = reached, [p.detach().clone() for p in self._learned()]
        if kept is not None:
            with torch.no_grad():
                for p, value_kept in zip(self._learned(), kept, strict=True):
                    p.copy_(value_kept)
        return self

    def _episode(self, pool: _Pool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        s, g = self.settings, self._generator
        supports, queries, embeddings, known, asked = [], [], [], [], []
        for t in torch.randperm(len(pool.targets), generator=g)[: s.devices].tolist():
            embedding, targets, use = pool.embeddings[t], pool.targets[t], pool.asked[t]
            if s.mix and float(torch.rand((), generator=g)) < s.mix:
                embedding, targets, use = self._mixed(pool, t)
            free = use.nonzero()[:, 0]
            free = free[torch.randperm(len(free), generator=g)]
            support = pool.references
            if s.support_from == "random":
                support, free = free[: s.support], free[s.support :]
            if len(free) < 1 or (s.support_from == "random" and len(support) < s.support):
                raise HastenError(f"a device has too few networks for {s.support} measured ones: measure more")
            if len(free) < s.query:  # few networks measured there: some are asked twice
                free = free[torch.randint(len(free), (s.query,), generator=g)]
            query = free[: s.query]
            supports.append(support)
            queries.append(query)
            embeddings.append(embedding)
            known.append(targets[support])
            asked.append(targets[query])
        return (
            torch.stack(embeddings), pool.codes[torch.stack(supports)], torch.stack(known),
            pool.codes[torch.stack(queries)], torch.stack(asked),
        )  # fmt: skip

    def _mixed(self, pool: _Pool, one: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding, targets and what may be asked of a device made of two."""
        g = self._generator
        other = int(torch.randint(len(pool.targets), (), generator=g))
        use = pool.asked[one] & pool.asked[other]
        if use.sum() <= self.settings.support:  # measured on other networks: nothing to add
            return pool.embeddings[one], pool.targets[one], pool.asked[one]
        share = torch.rand((), generator=g)
        seconds = share * pool.targets[one] + (1 - share) * pool.targets[other]
        references = seconds[pool.references]
        within = (seconds - references.min()) / (references.max() - references.min()).clamp_min(1e-6)
        return within[pool.references], 0.9 * within + 0.05, use

    def _validated(self, pool: _Pool) -> float:
        total = 0.0
        for t in range(len(pool.targets)):
            asked = pool.asked[t].nonzero()[:, 0]
            adapted = self._tuned(pool.embeddings[t], pool.codes[pool.references], pool.targets[t, pool.references])
            total += spearman(self._answers(adapted, pool.embeddings[t], pool.codes[asked]), pool.targets[t, asked])
        return total / len(pool.targets)

    # -- use -------------------------------------------------------------------------------------

    def _tuned(self, embedding: Tensor, codes: Tensor, targets: Tensor) -> Weights:
        """Adapted weights (samples, ...), one for each sample of the modulation."""
        count = self.settings.samples if self.settings.modulate else 1
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            z, _ = self._sampled(embedding.expand(count, -1), generator)
            weights = {k: p.detach() for k, p in self._weights().items()}
            made = vmap(lambda one: self._adapted(weights, one, codes, targets, embedding))(z)
            return {k: w.detach() for k, w in made.items()}

    @torch.no_grad()
    def _sampled_answers(self, weights: Weights, embedding: Tensor, codes: Tensor) -> Tensor:
        """Predictions (samples, networks)."""
        made: Tensor = vmap(lambda one: functional_call(self.network, one, (codes, embedding)))(weights)
        return made

    def _answers(self, weights: Weights, embedding: Tensor, codes: Tensor) -> Tensor:
        """Mean prediction (networks,) over the samples."""
        return self._sampled_answers(weights, embedding, codes).mean(0)

    def adapt(self, measurements: Mapping[A, float]) -> AdaptedLatency[A]:
        """A predictor for one device.

        Args:
            measurements: network -> seconds there: all references, and any further ones.

        Raises:
            HastenError: a reference is missing, or a latency is no positive number.
        """
        missing = [a for a in self.references if a not in measurements]
        if missing:
            raise HastenError(f"measure all {len(self.references)} reference networks: {len(missing)} are missing")
        archs = [*self.references, *(a for a in measurements if a not in set(self.references))]
        seconds = np.array([float(measurements[a]) for a in archs])
        self._check(seconds, "the device")
        references = seconds[: len(self.references)]
        embedding = torch.tensor(embedding_of(references), dtype=torch.float32)
        targets = torch.tensor(scaled(seconds, references), dtype=torch.float32)
        extra = self.settings.support_from == "random" and len(archs) > len(references)
        used = slice(len(references), None) if extra else slice(None)
        codes = self.codes(archs)
        weights = self._tuned(embedding, codes[used], targets[used])
        return AdaptedLatency(self, weights, embedding, codes, seconds)

    def state(self) -> dict[str, Tensor]:
        """All that was learned, for ``torch.save``."""
        made = {f"network.{k}": v.detach() for k, v in self.network.state_dict().items()}
        made |= {f"modulator.{k}": v.detach() for k, v in self.modulator.state_dict().items()}
        return made | {f"rates.{k}": v.detach() for k, v in self.rates.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> LatencyPredictor[A]:
        """Takes what `state` gave.

        Raises:
            HastenError: it is of other shapes.
        """
        own = self.state()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise HastenError("this state is of a predictor with other settings or codes")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])
        return self


class AdaptedLatency(Generic[A]):
    """Latency on one device: call it with a network, as a search does, or ask for many at once.

    Predictions become seconds by a line through what was measured there, and by nothing else.
    """

    def __init__(
        self, predictor: LatencyPredictor[A], weights: Weights, embedding: Tensor, codes: Tensor,
        seconds: NDArray[np.float64],
    ) -> None:  # fmt: skip
        self._predictor, self._weights, self._embedding = predictor, weights, embedding
        self._known: dict[A, float] = {}
        made = predictor._answers(weights, embedding, codes).numpy().astype(np.float64)
        spread = made - made.mean()
        slope = float(spread @ seconds) / float(spread @ spread) if spread.any() else 0.0
        if slope <= 0:  # it ranks what was measured no better than chance: keep the scale of the targets
            references = seconds[: len(predictor.references)]
            slope = float(references.max() - references.min()) / 0.9
        self._slope = slope
        self._start = float(seconds.mean()) - slope * float(made.mean())
        left = seconds - self._start - slope * made
        self._left = float(np.sqrt((left**2).sum() / max(1, len(left) - 2)))

    @property
    def targets(self) -> Mapping[str, str]:
        """``latency`` in seconds."""
        return {"latency": "s"}

    def scores(self, archs: Sequence[A]) -> NDArray[np.float64]:
        """What the network says (count,), in the scale of its targets: for ranking."""
        made = self._predictor._answers(self._weights, self._embedding, self._predictor.codes(archs))
        return made.numpy().astype(np.float64)

    def predict(self, archs: Sequence[A], target: str = "") -> PredictedValues:
        """Seconds of networks.

        The deviation is of the samples of the modulation, and of what the line leaves of the networks that were
        measured; a network is inside where every number of its code is among those that were learned from, as far as
        that is known: not of a predictor whose state was loaded.
        """
        target_of(self.targets, target)
        codes = self._predictor.codes(archs)
        made = self._predictor._sampled_answers(self._weights, self._embedding, codes)
        values = self._start + self._slope * made.mean(0).numpy().astype(np.float64)
        spread = self._slope * made.std(0, correction=0).numpy().astype(np.float64)
        seen = self._predictor.seen
        inside = None if seen is None else seen.holds(_flat(codes))
        return PredictedValues(values, np.hypot(spread, self._left), inside)

    def __call__(self, arch: A) -> float:
        """Seconds of one network; asked again, it is known."""
        if arch not in self._known:
            self._known[arch] = self.predict([arch])[0]
        return self._known[arch]
