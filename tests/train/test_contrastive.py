"""Alignment of two kinds of features: the loss, both pairings, retrieval of classes that were held out."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.errors import HastenError
from hasten.train.contrastive import (
    Projections,
    TwoKinds,
    align,
    contrastive_loss,
    held_out_pairs,
    held_samples,
    partners,
    prototype_loss,
    retrieval,
    validation_pair,
)


def kinds(seed: int = 0, samples: int = 400, noise: float = 0.1) -> TwoKinds:
    """Features of both kinds that are linear maps of the same hidden ones, which cluster by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 10
    hidden = torch.randn(10, 6, generator=generator)[labels] + 0.7 * torch.randn(samples, 6, generator=generator)
    maps = torch.randn(2, 6, 24, generator=generator)
    first, second = (hidden @ m + noise * torch.randn(samples, 24, generator=generator) for m in maps)
    return TwoKinds(first, second, labels, torch.rand(samples, generator=generator) < 0.7)


def test_the_loss_is_the_logarithm_of_the_batch_where_nothing_is_known_and_0_where_all_is() -> None:
    first, second = 0.01 * torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(contrastive_loss(first, second), torch.full((3,), math.log(32)), rtol=0, atol=0.02)
    known = 20 * torch.eye(16)
    assert float(contrastive_loss(known, known)) < 1e-5
    first, second = torch.randn(2, 8, 16)
    torch.testing.assert_close(contrastive_loss(first, second), contrastive_loss(second, first))
    logits, place = first @ second.T / 0.5, torch.arange(8)
    both = [torch.nn.functional.cross_entropy(x, place) for x in (logits, logits.T)]
    torch.testing.assert_close(contrastive_loss(first, second, 0.5), sum(both) / 2)


def test_prototypes_are_means_of_classes() -> None:
    support, queries = torch.randn(2, 6, 4)
    labels = torch.tensor([0, 0, 2, 2, 2, 4])
    means = torch.stack([support[labels == c].mean(0) for c in (0, 2, 4)])
    scores = -(queries[:, None] - means).square().sum(-1)
    wanted = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 0, 1, 1, 1, 2]))
    torch.testing.assert_close(prototype_loss(support, queries, labels, 5), wanted)
    batched = prototype_loss(support[None], queries[None], labels[None], 5)
    torch.testing.assert_close(batched, wanted[None])


def test_a_querys_own_sample_is_no_match() -> None:
    gallery = torch.eye(4)
    assert retrieval(gallery, gallery, torch.tensor([0, 1, 2, 3])) == 0
    labels = torch.tensor([0, 0, 1, 1])
    paired = torch.tensor([[1.0, 0.9, 0.0, 0.1], [0.9, 1.0, 0.2, 0.0], [0.1, 0.0, 1.0, 0.9], [0.0, 0.2, 0.9, 1.0]])
    assert retrieval(gallery, paired, labels) == 1
    assert retrieval(paired, paired, labels, "prototypes") == 1


def test_partners_are_of_the_same_class_and_may_be_trained_on() -> None:
    labels = torch.arange(60) % 5
    training = torch.rand(60) < 0.6
    allowed = torch.stack([training & ~held_samples(labels, {c}) for c in range(3)])
    others = partners(labels, allowed)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(allowed.float(), 50, replacement=True, generator=generator)
    found = others(chosen, generator)
    assert torch.equal(labels[found], labels[chosen])
    assert bool(allowed.gather(1, found).all())
    assert not torch.equal(found, chosen)


def test_held_out_classes_are_never_chosen_by() -> None:
    pairs = held_out_pairs()
    assert len(pairs) == 45
    for pair in pairs:
        other = validation_pair(pair)
        assert len({*pair, *other}) == 4
    assert {c for pair in pairs for c in validation_pair(pair)} == set(range(10))


@pytest.mark.parametrize("pairing", ["instance", "class"])
@pytest.mark.parametrize("objective", ["contrastive", "prototypes"])
def test_classes_that_nobody_trained_on_are_found(pairing: str, objective: str) -> None:
    held = [(0, 1), (4, 7), (8, 9)]
    (early, late) = align([kinds()], [0] * 3, held, pairing=pairing, objective=objective, steps=(5, 250))  # type: ignore[arg-type]
    assert late.seen.shape == late.unseen.shape == (3,)
    assert float(late.seen.mean()) > max(0.3, float(early.seen.mean()))
    assert float(late.unseen.mean()) > (0.75 if pairing == "instance" else 0.65)


def test_held_out_samples_are_not_read_in_training() -> None:
    """Their features can be anything: projections and statistics come out the same."""
    plain = kinds()
    gone = held_samples(plain.labels, (2, 3))
    first, second = (torch.where(gone[:, None], 1e4, x) for x in (plain.first, plain.second))
    poisoned = TwoKinds(first, second, plain.labels, plain.training)
    one, other = (align([k], [0], [(2, 3)], steps=(20,))[0] for k in (plain, poisoned))
    assert torch.equal(one.seen, other.seen)
    kept = align([plain], [0], [(5, 6)], unused=[(2, 3)], steps=(20,))[0]
    same = align([poisoned], [0], [(5, 6)], unused=[(2, 3)], steps=(20,))[0]
    assert torch.equal(kept.unseen, same.unseen)
    with pytest.raises(HastenError, match="nothing is left"):
        align([plain], [0], [tuple(range(10))], steps=(1,))


def test_one_sample_to_train_on_makes_numbers() -> None:
    plain = kinds(samples=40)
    few = TwoKinds(plain.first, plain.second, plain.labels, torch.arange(40) == 0)
    found = align([few], [0], [(5, 6)], steps=(2,), batch=4)[0]
    assert found.seen.isfinite().all()
    assert found.unseen.isfinite().all()


def test_shuffled_pairs_return_to_chance() -> None:
    found = [align([kinds(s)], [0] * 45, held_out_pairs(), shuffled=True, steps=(60,), seed=s)[0] for s in range(6)]
    assert float(torch.stack([f.unseen for f in found]).mean()) == pytest.approx(0.5, abs=0.03)


def test_sets_are_trained_apart() -> None:
    both = align([kinds()], [0, 0], [(0, 1), (2, 3)], steps=(30,))[0]
    module = Projections(2, (5, 7), 3)
    first, second = module(torch.randn(2, 4, 5), torch.randn(2, 4, 7))
    assert first.shape == second.shape == (2, 4, 3)
    first[0].sum().backward()
    assert module.first.grad is not None
    assert not module.first.grad[1].any()
    assert both.unseen.shape == (2,)
