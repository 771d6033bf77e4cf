"""Surrogates of synthesis: lookup tables, flip-flops, slices, memory and cycles of a circuit, learned from real ones.

After wa-hls4ml (arXiv 2511.05615): a graph network and a transformer over a circuit's layers, beside ridge regression
and gradient boosting on the same designs. Each follows the contract of `hasten.cost.estimator`. Resources that many
circuits have none of (slices, block memory) are first told to be there or not, then how many; all are learned as
logarithms.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.cost.chips.design_features import WIDTH, LayerBatch, layer_batch, layer_features, pooled_features
from hasten.cost.chips.surrogate_networks import LayerGraphNetwork, LayerTransformer
from hasten.cost.chips.synthesised import TARGETS, SynthesisedDesign
from hasten.cost.estimator import FeatureRange, LogLine, PredictedValues, measured_lines, measured_rows, target_of
from hasten.cost.latency.baselines import ridge
from hasten.cost.prediction_errors import PredictionErrors, prediction_errors
from hasten.errors import HastenError, MissingExtraError
from hasten.hardware.hls.engines import EngineDesign
from hasten.processes import one_thread
from hasten.train.loop import train
from hasten.train.schedules import Cosine

Matrix = NDArray[np.float64]
Known = Mapping[EngineDesign, Mapping[str, float] | None]
S = TypeVar("S", bound="ResourceSurrogate")
NetworkKind = Literal["graph", "transformer"]
Readout = Literal["sums", "pooled"]
READOUTS: tuple[Readout, ...] = ("sums", "pooled")
"""How a network answers: by logarithms of sums over layers that what it has read corrects, or by that alone."""
_LEAST = 12  # circuits that anything is learned from
_HELD = 0.2  # of the structures, that are held out to see the error


class ResourceSurrogate:
    """What learns the `TARGETS` of circuits; its kinds differ in how.

    Args:
        seed: of whatever is random.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._seen: FeatureRange | None = None
        self._deepest = 0
        self._spread: dict[str, float] = {}
        self._lines: dict[str, LogLine] = {}
        self._last: tuple[tuple[EngineDesign, ...], tuple[Matrix, Matrix]] | None = None

    @property
    def targets(self) -> Mapping[str, str]:
        return TARGETS

    def fit(self: S, devices: Mapping[str, Known]) -> S:
        """Learns from circuits of one tool and family: name -> design -> values by target, None of one given up.

        Raises:
            HastenError: several devices, too few circuits, or a figure that cannot be.
        """
        if len(devices) != 1:
            raise HastenError("a surrogate learns of one tool and family: adapt it to another by a few circuits there")
        (table,) = devices.values()
        given = {design: row for design, row in table.items() if row is not None}
        if len(given) < _LEAST:
            raise HastenError(f"a surrogate is learned from at least {_LEAST} circuits, not {len(given)}")
        rows = measured_rows(given, TARGETS)
        if missing := next((t for _, row in rows for t in TARGETS if t not in row), None):
            raise HastenError(f"a circuit lacks its {missing}: give {', '.join(TARGETS)} of each")
        designs = [design for design, _ in rows]
        values = np.array([[row[t] for t in TARGETS] for _, row in rows])
        self._seen = FeatureRange.of(_layers_of(designs))
        self._deepest = max(len(d.layers) for d in designs)
        self._lines, self._last = {}, None
        left = self._learn(designs, values)
        self._spread = dict(zip(TARGETS, map(float, left), strict=True))
        return self

    def adapt(self: S, measurements: Mapping[EngineDesign, Mapping[str, float]]) -> S:
        """The same for another tool or family, of which a few circuits are known: a line through logarithms a target.

        Raises:
            HastenError: it has not learned yet, or a figure cannot be.
        """
        made = copy.copy(self)
        made._lines, made._last = {}, None
        made._lines = measured_lines(made, measured_rows(measurements, TARGETS)) if measurements else {}
        return made

    def predict(self, designs: Sequence[EngineDesign], target: str = "") -> PredictedValues:
        """A target of circuits.

        A circuit is inside where it is no deeper than those learned from, and each of its layers lies within the box
        around theirs.

        Raises:
            HastenError: there is no such target, or it has not learned yet.
        """
        name = target_of(TARGETS, target)
        if self._seen is None:
            raise HastenError("a surrogate predicts when it has learned: call fit with synthesised circuits")
        if not designs:
            return PredictedValues([])
        key = tuple(designs)
        if self._last is None or self._last[0] != key:
            self._last = key, self._answers(list(designs))
        logs, none = (a[..., list(TARGETS).index(name)] for a in self._last[1])
        values = np.where(none > 0.5, 0.0, np.exp(np.clip(logs.mean(0), -30, 30)))
        line = self._lines.get(name, LogLine())
        values = line.apply(values)
        left = self._spread[name] if np.isnan(line.spread) else line.spread
        inside = [len(d.layers) <= self._deepest and bool(self._seen.holds(_layers_of([d])).all()) for d in designs]
        return PredictedValues(values, values * np.hypot(left, logs.std(0)), inside)

    def _learn(self, designs: list[EngineDesign], values: Matrix) -> Matrix:
        """Learns; returns the deviation (targets,) of logarithms on circuits that were held out."""
        raise NotImplementedError

    def _answers(self, designs: list[EngineDesign]) -> tuple[Matrix, Matrix]:
        """Logarithms (members, count, targets), and the probability (count, targets) that there is none."""
        raise NotImplementedError


def _layers_of(designs: Sequence[EngineDesign]) -> Matrix:
    return np.array([layer_features(layer, d.bits) for d in designs for layer in d.layers])


def _held_out(designs: Sequence[EngineDesign], seed: int) -> NDArray[np.bool_]:
    """(count,) circuits that are held out: all of some structures."""
    structures = sorted({d.structure for d in designs})
    np.random.default_rng(seed).shuffle(structures)
    held = set(structures[: max(1, round(_HELD * len(structures)))]) if len(structures) > 1 else set()
    return np.array([d.structure in held for d in designs])


def _left(logs: Matrix, values: Matrix) -> Matrix:
    """Squares (count, targets) of what is left of logarithms, NaN where there is none of a resource."""
    with np.errstate(divide="ignore"):
        found: Matrix = np.where(values > 0, (logs - np.log(np.maximum(values, 1e-30))) ** 2, np.nan)
    return found


def _root(squares: Sequence[Matrix]) -> Matrix:
    everything = np.concatenate(squares)
    known = ~np.isnan(everything)
    total = np.where(known, everything, 0.0).sum(0)
    count = known.sum(0)
    found: Matrix = np.sqrt(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return found


class _OnVectors(ResourceSurrogate):
    """A regression on pooled features: each target's logarithm, where there is any, and whether there is."""

    def _learn(self, designs: list[EngineDesign], values: Matrix) -> Matrix:
        features, held = pooled_features(designs), _held_out(designs, self.seed)
        left = np.full((1, len(TARGETS)), np.nan)
        if held.any():
            self._regress(features[~held], values[~held])
            logs, _ = self._answers([d for d, h in zip(designs, held, strict=True) if h])
            left = _left(logs[0], values[held])
        self._regress(features, values)
        return _root([left])

    def _regress(self, features: Matrix, values: Matrix) -> None:
        raise NotImplementedError


class RidgeSurrogate(_OnVectors):
    """Ridge regression on logarithms, its constant by leaving one out."""

    def _regress(self, features: Matrix, values: Matrix) -> None:
        self._known = features, values

    def _answers(self, designs: list[EngineDesign]) -> tuple[Matrix, Matrix]:
        features, values = self._known
        asked = pooled_features(designs)
        logs, none = np.zeros((1, len(designs), len(TARGETS))), np.zeros((len(designs), len(TARGETS)))
        for t in range(len(TARGETS)):
            some = values[:, t] > 0
            if some.all() or some.sum() < 3:
                none[:, t] = float(not some.all())
            else:
                none[:, t] = ridge(features, (~some).astype(np.float64), asked)
            if some.sum() >= 3:
                logs[0, :, t] = ridge(features[some], np.log(values[some, t]), asked)
        return logs, none


class BoostedSurrogate(_OnVectors):
    """Gradient boosting of trees on the same features (scikit-learn, extra ``search``)."""

    def _regress(self, features: Matrix, values: Matrix) -> None:
        try:
            from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
        except ImportError:
            raise MissingExtraError("scikit-learn", "search") from None
        options = {"n_estimators": 120, "max_depth": 3, "learning_rate": 0.1, "subsample": 0.7}
        self._models: list[tuple[Any, Any]] = []
        for t in range(len(TARGETS)):
            some = values[:, t] > 0
            model = judge = None
            if some.sum() >= 3:
                model = GradientBoostingRegressor(**options, random_state=self.seed)
                model.fit(features[some], np.log(values[some, t]))
            if some.any() and not some.all():
                judge = GradientBoostingClassifier(**options, random_state=self.seed).fit(features, ~some)
            self._models.append((model, judge if judge is not None else bool(some.any())))

    def _answers(self, designs: list[EngineDesign]) -> tuple[Matrix, Matrix]:
        asked = pooled_features(designs)
        logs, none = np.zeros((1, len(designs), len(TARGETS))), np.zeros((len(designs), len(TARGETS)))
        for t, (model, judge) in enumerate(self._models):
            if model is not None:
                logs[0, :, t] = model.predict(asked)
            none[:, t] = float(not judge) if isinstance(judge, bool) else judge.predict_proba(asked)[:, 1]
        return logs, none


class NetworkSurrogate(ResourceSurrogate):
    """The paper's surrogates: networks that read a circuit's layers, several of them, each on most of the circuits.

    Args:
        kind: ``graph`` or ``transformer``.
        members: networks whose mean is the answer, and whose disagreement is part of the deviation.
        steps: of AdamW for each, 64 circuits a step.
        rate: the highest, on a cosine.
        readout: how it answers; None takes what is nearer for the first member on the circuits that this holds out.
        seed: of weights, batches and what is held out.

    Attributes:
        chosen: how it answers; None before it learned, where this is not given.
    """

    def __init__(
        self, kind: NetworkKind = "graph", *, members: int = 3, steps: int = 800, rate: float = 3e-3,
        readout: Readout | None = "sums", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(seed)
        if kind not in ("graph", "transformer"):
            raise HastenError(f"a circuit is read as a graph or by a transformer, not by a {kind!r}")
        if members < 1:
            raise HastenError("a surrogate has at least one network")
        if readout is not None and readout not in READOUTS:
            raise HastenError(f"a circuit is answered for by {' or '.join(READOUTS)}, not by {readout!r}")
        self.kind, self.members, self.steps, self.rate, self.readout = kind, members, steps, rate, readout
        self.chosen = readout
        self._networks: list[nn.Module] = []

    def _learn(self, designs: list[EngineDesign], values: Matrix) -> Matrix:
        batch = layer_batch(designs)
        present = batch.features[batch.present]
        self._mean, self._scale = present.mean(0), present.std(0).clamp_min(1e-3)
        batch = batch.standardised(self._mean, self._scale)
        some = torch.from_numpy(values > 0)
        logs = torch.from_numpy(np.log(np.where(values > 0, values, 1.0))).float()
        count = some.sum(0).clamp_min(1)
        self._start = (logs * some).sum(0) / count
        self._unit = (((logs - self._start) ** 2 * some).sum(0) / count).sqrt().clamp_min(1e-3)
        aim = logs - self._start
        self._networks, self.chosen, left = [], self.readout, []
        for member in range(self.members):
            seed = self.seed * 1000 + member
            held = _held_out(designs, seed)
            use, at = (torch.from_numpy(np.flatnonzero(which)) for which in (~held, held))
            tried: list[tuple[Readout, nn.Module, Matrix]] = []
            for readout in (self.chosen,) if self.chosen else READOUTS:
                network = _network(self.kind, 2 * len(TARGETS), len(TARGETS) if readout == "sums" else 0, seed)
                self._descend(network, batch[use], aim[use], some[use], seed)
                with torch.no_grad():
                    said = network(batch[at])[:, : len(TARGETS)] + self._start if len(at) else aim[at]
                tried.append((readout, network, _left(said.numpy().astype(np.float64), values[held])))
            # A resource that none of these circuits has is the same for all.
            self.chosen, network, squares = min(tried, key=lambda t: float(np.nan_to_num(_root([t[2]])).sum()))
            self._networks.append(network)
            left.append(squares)
        return _root(left)

    def _descend(self, network: nn.Module, batch: LayerBatch, aim: Tensor, some: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        weights = some.float()

        def loss(step: int) -> Tensor:
            chosen = torch.randperm(len(batch), generator=generator)[:64]
            said = network(batch[chosen])
            values, none = said[:, : len(TARGETS)], said[:, len(TARGETS) :]
            wrong = F.smooth_l1_loss(values / self._unit, aim[chosen] / self._unit, reduction="none", beta=0.5)
            far = (wrong * weights[chosen]).sum() / weights[chosen].sum().clamp_min(1)
            return far + 0.1 * F.binary_cross_entropy_with_logits(none, 1 - weights[chosen])

        _trained(network, loss, self.steps, self.rate, seed)

    @torch.no_grad()
    def _answers(self, designs: list[EngineDesign]) -> tuple[Matrix, Matrix]:
        batch = layer_batch(designs).standardised(self._mean, self._scale)
        with one_thread():
            said = torch.stack([network(batch) for network in self._networks])
        logs = said[..., : len(TARGETS)] + self._start
        none = said[..., len(TARGETS) :].sigmoid().mean(0)
        return logs.numpy().astype(np.float64), none.numpy().astype(np.float64)


def _network(kind: NetworkKind, outputs: int, sums: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LayerGraphNetwork(WIDTH, 1, outputs, sums) if kind == "graph" else LayerTransformer(WIDTH, outputs, sums)


def _trained(network: nn.Module, loss: Any, steps: int, rate: float, seed: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    # Dropout draws from torch's own generator.
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        trained = train(network.train(), loss, optimizer=optimizer, steps=steps, schedule=Cosine(), clip=1.0)
    trained.finished("learning what circuits take")
    network.eval()


class SuccessClassifier:
    """Whether a tool will have done a circuit in its time: a graph network that says how probable it is.

    Args:
        steps, rate: of AdamW.
        seed: of weights and batches.
    """

    def __init__(self, *, steps: int = 400, rate: float = 3e-3, seed: int = 0) -> None:
        self.steps, self.rate, self.seed = steps, rate, seed
        self._learned: tuple[nn.Module, Tensor, Tensor] | None = None

    def fit(self, outcomes: Mapping[EngineDesign, bool]) -> SuccessClassifier:
        """Learns from circuits that were done, and that were not.

        Raises:
            HastenError: all were, or none.
        """
        if len(set(outcomes.values())) < 2:
            raise HastenError("success is learned from circuits of both kinds: give failures, and others")
        batch = layer_batch(list(outcomes))
        present = batch.features[batch.present]
        mean, scale = present.mean(0), present.std(0).clamp_min(1e-3)
        batch = batch.standardised(mean, scale)
        done = torch.tensor([float(v) for v in outcomes.values()])
        network, generator = _network("graph", 1, 0, self.seed), torch.Generator().manual_seed(self.seed)
        # Those of the rarer kind weigh as much together as those of the other.
        weight = torch.where(done > 0, 0.5 / done.mean(), 0.5 / (1 - done.mean()))

        def loss(step: int) -> Tensor:
            chosen = torch.randperm(len(batch), generator=generator)[:64]
            said = network(batch[chosen])[:, 0]
            return F.binary_cross_entropy_with_logits(said, done[chosen], weight[chosen])

        _trained(network, loss, self.steps, self.rate, self.seed)
        self._learned = network, mean, scale
        return self

    @torch.no_grad()
    def predict(self, designs: Sequence[EngineDesign]) -> Matrix:
        """Probability (count,) that each will be done, both kinds taken for equally frequent.

        Raises:
            HastenError: it has not learned yet.
        """
        if self._learned is None:
            raise HastenError("a classifier predicts when it has learned: call fit with circuits and their outcomes")
        network, mean, scale = self._learned
        said = network(layer_batch(designs).standardised(mean, scale))[:, 0].sigmoid()
        found: Matrix = said.numpy().astype(np.float64)
        return found


@dataclass(frozen=True)
class OutcomesToldApart:
    """How well circuits that were done stand apart from those that were not.

    Args:
        right: share of either kind that is told right, mean of both.
        area: under the curve of true and false alarms: 0.5 where nothing is told apart.
        failures: circuits that were not done, of all.
    """

    right: float
    area: float
    failures: tuple[int, int]


def judged_outcomes(classifier: SuccessClassifier, outcomes: Mapping[EngineDesign, bool]) -> OutcomesToldApart:
    """What a classifier says of circuits with known outcomes.

    Raises:
        HastenError: all have the same outcome.
    """
    said, done = classifier.predict(list(outcomes)), np.array(list(outcomes.values()))
    if done.all() or not done.any():
        raise HastenError("a classifier is judged on circuits of both kinds")
    right = ((said[done] > 0.5).mean() + (said[~done] <= 0.5).mean()) / 2
    pairs = said[done][:, None] - said[~done][None]
    area = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    return OutcomesToldApart(float(right), area, (int((~done).sum()), len(done)))


SURROGATES = ("graph", "transformer", "boosting", "ridge")
"""Kinds of surrogates by name."""


def resource_surrogate(kind: str, *, seed: int = 0, **options: Any) -> ResourceSurrogate:
    """A surrogate by name, see `SURROGATES`.

    Args:
        options: of `NetworkSurrogate`.

    Raises:
        HastenError: an unknown name.
    """
    if kind in ("graph", "transformer"):
        return NetworkSurrogate(kind, seed=seed, **options)  # type: ignore[arg-type]
    if kind == "boosting":
        return BoostedSurrogate(seed)
    if kind == "ridge":
        return RidgeSurrogate(seed)
    raise HastenError(f"no surrogate is called {kind!r}: choose {', '.join(SURROGATES)}")


def surrogate_errors(predicts: Any, rows: Sequence[SynthesisedDesign]) -> dict[str, PredictionErrors]:
    """Errors of every target that is predicted, on circuits that were done.

    Args:
        predicts: whatever follows `hasten.cost.estimator.Predicts` for designs.
    """
    done = [r for r in rows if r.values]
    designs = [r.design for r in done]
    return {
        t: prediction_errors(predicts.predict(designs, t).values, [r.values[t] for r in done])
        for t in TARGETS
        if t in predicts.targets
    }


__all__ = [
    "READOUTS", "SURROGATES", "BoostedSurrogate", "NetworkSurrogate", "OutcomesToldApart", "ResourceSurrogate",
    "RidgeSurrogate", "SuccessClassifier", "judged_outcomes", "resource_surrogate", "surrogate_errors",
]  # fmt: skip
