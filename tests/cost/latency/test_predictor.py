"""HELP: what the paper's mechanism implies exactly, and that it learns what there is to learn and nothing else."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.meta_network import CodeNetwork, GraphNetwork, Modulator, divergence, inner_loop, modulated
from hasten.cost.latency.meta_settings import MetaSettings
from hasten.cost.latency.predictor import LatencyPredictor, embedding_of, scaled
from hasten.errors import HastenError

NETS = list(itertools.product((0, 1, 2), repeat=5))
QUICK = MetaSettings(hidden=16, episodes=4, devices=3, query=20, every=2, samples=3)


def codes(archs: list[tuple[int, ...]]) -> Tensor:
    return F.one_hot(torch.tensor(archs), 3).flatten(1).float()


def device(seed: int) -> dict[tuple[int, ...], float]:
    """Every operation has its price at every place; a device's prices lie between three kinds of devices'."""
    kinds = np.random.default_rng(1000).gamma(0.5, size=(3, 5, 3))
    prices = np.einsum("k,kpo->po", np.random.default_rng(seed).dirichlet([0.5] * 3), kinds)
    return {n: 1e-3 * (1 + sum(float(prices[i, o]) for i, o in enumerate(n))) for n in NETS}


def references(count: int = 6) -> list[tuple[int, ...]]:
    return random.Random(1).sample(NETS, count)


def predictor(settings: MetaSettings = QUICK, seed: int = 0) -> LatencyPredictor[tuple[int, ...]]:
    return LatencyPredictor(codes, references(), settings=settings, seed=seed)


def task(p: LatencyPredictor[tuple[int, ...]], seed: int = 0, count: int = 3, dtype: torch.dtype = torch.float32):
    """Arguments of `meta_loss`: embeddings, support, targets, query, targets."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.rand(count, len(p.references), generator=generator, dtype=dtype)
    nets = random.Random(seed).sample(NETS, 20)
    xs, xq = codes(nets[:6]).to(dtype).expand(count, -1, -1), codes(nets[6:]).to(dtype).expand(count, -1, -1)
    ys = torch.rand(count, 6, generator=generator, dtype=dtype)
    return h, xs, ys, xq, torch.rand(count, 14, generator=generator, dtype=dtype)


def test_no_rate_and_no_scale_leave_the_base_predictor() -> None:
    p = predictor(replace(QUICK, inner_rate=0.0, scale=0.0))
    lat = device(0)
    new = p.adapt({n: lat[n] for n in p.references})
    h = torch.tensor(embedding_of(np.array([lat[n] for n in p.references])), dtype=torch.float32)
    with torch.no_grad():
        plain = p.network(codes(NETS), h)
    assert all(torch.equal(w[i], p._weights()[k]) for k, w in new._weights.items() for i in range(3))
    assert np.allclose(new.scores(NETS), plain.numpy(), atol=1e-6)  # a batch of products may round otherwise


def by_hand(p: LatencyPredictor[tuple[int, ...]], args: tuple[Tensor, ...], rate: float) -> Tensor:
    """MAML's objective, written as loops over tasks and autograd alone."""
    h, xs, ys, xq, yq = args
    total = torch.zeros(())
    for t in range(len(h)):
        weights = dict(p.network.named_parameters())
        for _ in range(2):
            loss = F.mse_loss(functional_call(p.network, weights, (xs[t], h[t])), ys[t])
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {k: w - rate * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
        total = total + F.mse_loss(functional_call(p.network, weights, (xq[t], h[t])), yq[t])
    return total / len(h)


def test_without_modulation_and_learned_rates_it_is_maml() -> None:
    p = predictor(replace(QUICK.maml(), inner_rate=0.1))
    args = task(p)
    ours, theirs = p.meta_loss(*args), by_hand(p, args, 0.1)
    assert torch.allclose(ours, theirs, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, list(p.network.parameters())),
        torch.autograd.grad(theirs, list(p.network.parameters())),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_first_order_gradients_are_those_at_the_adapted_weights() -> None:
    p = predictor(replace(QUICK.maml(), inner_rate=0.1, second_order=False))
    args = task(p, count=1)
    h, xs, ys, xq, yq = (a[0] for a in args)
    first = torch.autograd.grad(p.meta_loss(*args), list(p.network.parameters()))
    start = {k: w.detach() for k, w in p.network.named_parameters()}
    made = inner_loop(p.network, start, 0.1, xs, ys, h)
    at = {k: w.detach().requires_grad_() for k, w in made.items()}
    loss = F.mse_loss(functional_call(p.network, at, (xq, h)), yq)
    for a, b in zip(first, torch.autograd.grad(loss, list(at.values())), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    p.settings = replace(p.settings, second_order=True)
    second = torch.autograd.grad(p.meta_loss(*args), list(p.network.parameters()))
    assert not torch.allclose(first[0], second[0], atol=1e-6)


def test_second_order_meta_gradient_is_that_of_finite_differences() -> None:
    settings = replace(QUICK, hidden=3, inner_rate=0.3, scale=0.5)
    p = predictor(settings, seed=2)
    p.network.double()
    p.modulator.double()
    p.rates = {k: r.detach().double().requires_grad_() for k, r in p.rates.items()}
    args = task(p, seed=5, count=2, dtype=torch.float64)

    def loss() -> Tensor:
        return p.meta_loss(*args, torch.Generator().manual_seed(9))

    learned = [*p.network.parameters(), *p.modulator.parameters(), *p.rates.values()]
    slopes = torch.autograd.grad(loss(), learned)
    rng = random.Random(0)
    for tensor, slope in zip(learned, slopes, strict=True):
        at = tuple(rng.randrange(n) for n in tensor.shape)
        with torch.no_grad():
            kept = float(tensor[at])
            tensor[at] = kept + 1e-6
            above = float(loss())
            tensor[at] = kept - 1e-6
            below = float(loss())
            tensor[at] = kept
        assert abs((above - below) / 2e-6 - float(slope[at])) < 1e-6
    assert all(float(s.abs().sum()) > 0 for s in slopes[-2:])  # the rates are learned


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(1e-4, 10), min_size=2, max_size=12, unique=True).filter(lambda v: max(v) - min(v) > 1e-5),
    st.floats(1e-2, 1e3),
    st.floats(0, 5),
)
def test_an_embedding_has_a_zero_and_a_one_and_no_unit(values: list[float], a: float, b: float) -> None:
    seconds = np.array(values)
    h = embedding_of(seconds)
    assert h.min() == pytest.approx(0, abs=1e-12)
    assert h.max() == pytest.approx(1, abs=1e-12)
    assert h.argmin() == seconds.argmin()
    assert np.allclose(embedding_of(a * seconds + b), h, atol=1e-6)
    assert np.allclose(scaled(a * seconds + b, a * seconds + b), scaled(seconds, seconds), atol=1e-6)
    turned = max(values) + 1 - seconds
    assert np.allclose(embedding_of(turned), 1 - h, atol=1e-6)


def test_a_zero_and_a_one_exactly() -> None:
    for seed in range(50):
        h = embedding_of(np.random.default_rng(seed).uniform(1e-4, 1e-2, 10))
        assert np.sort(h)[[0, -1]] == pytest.approx([0, 1], abs=0)


def test_unit_and_offset_of_a_device_change_no_rank() -> None:
    p = predictor().fit({f"d{i}": device(i) for i in range(4)})
    lat = device(9)
    known = {n: lat[n] for n in p.references}
    plain = p.adapt(known)
    for a, b in ((1000.0, 0.0), (0.5, 0.25), (7.0, 3.0)):
        other = p.adapt({n: a * v + b for n, v in known.items()})
        assert np.allclose(other.scores(NETS), plain.scores(NETS), atol=1e-6)
        assert np.allclose(other.predict(NETS), a * np.array(plain.predict(NETS)) + b, rtol=1e-4)
        truth = [lat[n] for n in NETS]
        shifted = [a * v + b for v in truth]
        assert spearman(other.scores(NETS), shifted) == pytest.approx(spearman(plain.scores(NETS), truth), abs=1e-3)


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert spearman([1, 2, 3, 4], [-10, -20, -30, -40]) == -1
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)
    assert spearman([1, 1], [1, 2]) == 0
    values = np.random.default_rng(0).normal(size=(2, 40))
    assert spearman(values[0], values[1]) == pytest.approx(-spearman(values[0], -values[1]))


def test_divergence_is_positive_and_zero_at_the_standard_normal_alone() -> None:
    zeros, ones = torch.zeros(5), torch.ones(5)
    assert float(divergence(zeros, ones)) == 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        means, deviations = torch.randn(5, generator=generator), torch.rand(5, generator=generator) * 3 + 0.01
        theirs = torch.distributions.kl_divergence(
            torch.distributions.Normal(means, deviations), torch.distributions.Normal(zeros, ones)
        ).sum()
        ours = divergence(means, deviations)
        assert float(ours) > 0
        assert torch.allclose(ours, theirs, rtol=1e-5)
    assert float(divergence(zeros, ones * 1.01)) > 0
    assert float(divergence(zeros + 0.1, ones)) > 0


def test_modulation_scales_inputs_of_the_head_and_shifts_its_biases() -> None:
    network = CodeNetwork(15, hidden=4, embedding=6)
    weights = dict(network.named_parameters())
    z = torch.zeros(3 * 9)
    z[0], z[26] = 2.0, 5.0
    made = modulated(weights, z, 0.01)
    changed = {k for k in weights if not torch.equal(weights[k], made[k])}
    assert changed == {"head.fc3.weight", "head.fc5.bias"}
    assert torch.allclose(made["head.fc3.weight"][:, 0], weights["head.fc3.weight"][:, 0] * 1.02)
    assert torch.allclose(made["head.fc5.bias"], weights["head.fc5.bias"] + 0.05)
    means, deviations = Modulator(8, 6)(torch.rand(2, 6))
    assert means.shape == deviations.shape == (2, 27)
    assert (deviations > 0).all()


def test_a_graph_s_answer_depends_on_its_edges() -> None:
    network = GraphNetwork(3, hidden=8, embedding=0)
    labels = torch.eye(3)[torch.tensor([0, 1, 1, 2])]
    heard = torch.eye(4)
    heard[3] = 1
    linked = heard.clone()
    linked[1, 0] = 1
    with torch.no_grad():
        a, b = network(torch.stack([torch.cat([labels, h], 1) for h in (heard, linked)]), torch.zeros(0))
    assert float(a) != float(b)


LEARN = MetaSettings(
    hidden=32, episodes=300, devices=6, query=40, rate=5e-3, cosine=True, every=100, samples=4, mix=0.5
)


@pytest.fixture(scope="module")
def learned() -> LatencyPredictor[tuple[int, ...]]:
    return predictor(LEARN).fit({f"d{i}": device(i) for i in range(8)}, {"v": device(20)})


def test_a_device_that_it_learned_from_is_known(learned: LatencyPredictor[tuple[int, ...]]) -> None:
    lat = device(3)
    new = learned.adapt({n: lat[n] for n in learned.references})
    assert spearman(new.scores(NETS), [lat[n] for n in NETS]) > 0.97


def test_latencies_without_structure_are_not_predicted(learned: LatencyPredictor[tuple[int, ...]]) -> None:
    found = []
    for seed in range(12):
        values = list(device(3).values())
        random.Random(seed).shuffle(values)
        lat = dict(zip(NETS, values, strict=True))
        rest = [n for n in NETS if n not in learned.references]
        new = learned.adapt({n: lat[n] for n in learned.references})
        found.append(spearman(new.scores(rest), [lat[n] for n in rest]))
    assert abs(sum(found) / len(found)) < 0.1


def test_it_keeps_the_state_that_validated_best(learned: LatencyPredictor[tuple[int, ...]]) -> None:
    lat = device(20)
    pool = learned._pool({"v": lat}, "validation")
    assert learned._validated(pool) == pytest.approx(max(h[2] for h in learned.history))
    with pytest.raises(HastenError, match="keep them apart"):
        learned.fit({"v": lat}, {"v": lat})


def test_state_comes_back(learned: LatencyPredictor[tuple[int, ...]]) -> None:
    other = predictor(LEARN, seed=5).load_state(learned.state())
    known = {n: device(1)[n] for n in learned.references}
    other.seed = learned.seed
    assert np.array_equal(other.adapt(known).scores(NETS), learned.adapt(known).scores(NETS))
    with pytest.raises(HastenError, match="other settings"):
        predictor().load_state(learned.state())


def test_the_same_seed_learns_the_same() -> None:
    pool = {f"d{i}": device(i) for i in range(4)}
    known = {n: device(7)[n] for n in references()}
    one, two = (predictor().fit(pool).adapt(known).scores(NETS) for _ in range(2))
    assert np.array_equal(one, two)


def test_further_measurements_and_random_ones() -> None:
    pool = {f"d{i}": device(i) for i in range(4)}
    lat = device(7)
    rest = [n for n in NETS if n not in references()]
    known = {n: lat[n] for n in references()}
    p = predictor().fit(pool)
    assert not np.array_equal(
        p.adapt(known).scores(NETS), p.adapt({n: lat[n] for n in [*known, *rest[:5]]}).scores(NETS)
    )
    p = predictor(replace(QUICK, support_from="random", support=4)).fit(pool)
    few = {n: lat[n] for n in [*known, *rest[:4]]}
    assert len(p.adapt(few).predict(NETS[:7])) == 7


def test_a_mixed_device_is_a_device() -> None:
    p = predictor(replace(QUICK, mix=1.0))
    pool = p._pool({f"d{i}": device(i) for i in range(3)}, "training")
    for one in range(3):
        h, targets, use = p._mixed(pool, one)
        assert float(h.min()) == 0
        assert float(h.max()) == 1
        assert torch.allclose(targets[: len(h)], 0.9 * h + 0.05, atol=1e-6)
        assert use.sum() > 0
        assert not (use & ~pool.asked[one]).any()
    p.fit({f"d{i}": device(i) for i in range(3)})


def test_a_warm_start_learns_without_the_inner_loop() -> None:
    p = predictor(replace(QUICK, warm=30, episodes=1, rate=5e-3))
    before = {k: r.detach().clone() for k, r in p.rates.items()}
    drawn = p._episode(p._pool({f"d{i}": device(i) for i in range(3)}, "training"))
    start = float(p._plain_loss(*drawn).detach())
    p.fit({f"d{i}": device(i) for i in range(3)})
    assert float(p._plain_loss(*drawn).detach()) < start
    assert [h[0] for h in p.history] == [1]
    # One episode moves a rate by one step at most; the warm start leaves them alone.
    assert all(float((r - before[k]).detach().abs().max()) < 1.1 * p.settings.rate for k, r in p.rates.items())


def test_what_is_wrong_is_said() -> None:
    p = predictor()
    lat = device(0)
    with pytest.raises(HastenError, match="2 are missing"):
        p.adapt({n: lat[n] for n in p.references[2:]})
    with pytest.raises(HastenError, match="not a positive number"):
        p.adapt(dict.fromkeys(p.references, -1.0))
    with pytest.raises(HastenError, match="the same time"):
        p.adapt(dict.fromkeys(p.references, 1.0))
    with pytest.raises(HastenError, match="lacks a reference"):
        p.fit({"d": {n: v for n, v in lat.items() if n != p.references[0]}})
    with pytest.raises(HastenError, match="at least one device"):
        p.fit({})
    with pytest.raises(HastenError, match="two different"):
        LatencyPredictor(codes, [NETS[0], NETS[0]])
    with pytest.raises(HastenError, match="at least 1"):
        MetaSettings(episodes=0)
