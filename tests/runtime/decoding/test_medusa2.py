"""Heads and model trained together: rates and losses are what the recipe says, and decoding stays exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.methods import WeightOnly
from hasten.runtime import LanguageModel
from hasten.runtime.decoding.medusa import MedusaHeads, Tree, decode
from hasten.runtime.decoding.medusa2 import JointRecipe, compare, fit_jointly, heads_loss
from hasten.runtime.decoding.medusa_training import fit, own_text, rank_accuracy, states_of

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


def weights(model: LanguageModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.network.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def text(llama: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return own_text(LanguageModel(llama), torch.randint(0, 211, (12, 8)), 40)[0]


def test_alone_the_heads_move_and_the_model_stays(llama: Any, text: torch.Tensor) -> None:
    model, heads = LanguageModel(llama), MedusaHeads(128, 2)
    before = weights(model)
    found = fit_jointly(heads, model, text, JointRecipe(alone=1.0), steps=5)
    assert same(before, weights(model))
    assert (len(found.alone), found.model) == (5, [])
    assert all(p.abs().max() > 0 for p in heads.parameters())


def test_rates_are_separate(llama: Any, text: torch.Tensor) -> None:
    start = weights(LanguageModel(llama))
    for rate, head_rate in ((0.0, 1e-3), (1e-4, 0.0)):
        model, heads = LanguageModel(copy.deepcopy(llama)), MedusaHeads(128, 2)
        told = [p.detach().clone() for p in heads.parameters()]
        found = fit_jointly(heads, model, text, JointRecipe(alone=0.0, rate=rate, head_rate=head_rate), steps=3)
        assert same(start, weights(model)) == (rate == 0)
        assert same(told, [p.detach() for p in heads.parameters()]) == (head_rate == 0)
        assert (len(found.alone), len(found.model), len(found.heads)) == (0, 3, 3)


def test_at_its_start_self_distillation_asks_for_nothing(llama: Any, text: torch.Tensor) -> None:
    """The model says what it said, so the first divergence is 0; a text of another kind is not what it says."""
    model = LanguageModel(copy.deepcopy(llama))
    found = fit_jointly(MedusaHeads(128, 2), model, text, JointRecipe(alone=0.0), steps=1)
    assert found.model[0] == pytest.approx(0, abs=1e-6)
    other = fit_jointly(MedusaHeads(128, 2), model, text, JointRecipe(alone=0.0, distill=False), steps=1)
    assert other.model[0] > 0.1


def test_the_heads_loss_is_a_discounted_sum() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 9, 3, 7), torch.randint(0, 7, (2, 9))
    each = [
        torch.nn.functional.cross_entropy(logits[:, : 9 - k - 2, k].flatten(0, 1), ids[:, k + 2 :].flatten())
        for k in range(3)
    ]
    assert torch.allclose(heads_loss(logits, ids, 0.8), each[0] + 0.8 * each[1] + 0.64 * each[2])


@needs_kernels
def test_together_they_guess_more_than_heads_alone_and_text_stays_exact(llama: Any, text: torch.Tensor) -> None:
    steps, held = 60, text[-3:]
    alone, frozen = MedusaHeads(128, 2), LanguageModel(copy.deepcopy(llama))
    fit_jointly(alone, frozen, text[:-3], JointRecipe(alone=1.0), steps=steps, seed=1)
    model, heads = LanguageModel(llama), MedusaHeads(128, 2)
    recipe = JointRecipe(alone=0.4, rate=1e-3, head_rate=4e-3)
    found = fit_jointly(heads, model, text[:-3], recipe, steps=steps, seed=1)
    assert (len(found.alone), len(found.model)) == (24, 36)
    assert sum(found.heads[-10:]) < sum(found.heads[:10])
    right = [
        sum(row[0] for row in rank_accuracy(h, m, text[:-3], states_of(m, text[:-3]), 4))
        for h, m in ((alone, frozen), (heads, model))
    ]
    assert right[1] > right[0]
    ids = held[:1, :8]
    expected = model.generate(ids, max_new_tokens=30, eos_token_id=None, do_sample=False)
    tree = Tree.best(rank_accuracy(heads, model, text, states_of(model, text)), 12)
    assert torch.equal(decode(model, heads, tree, ids, 30).ids, expected)
    assert not any(p.grad is not None for p in model.network.parameters())


def test_self_distillation_holds_the_model_to_what_it_said(llama: Any) -> None:
    """Trained on a text that is not its own, the distilled model stays nearer to what it was."""
    torch.manual_seed(3)
    other = torch.randint(0, 211, (12, 40))
    drift = []
    for distill in (True, False):
        model = LanguageModel(copy.deepcopy(llama))
        recipe = JointRecipe(alone=0.2, distill=distill, rate=1e-3, head_rate=4e-3)
        fit_jointly(MedusaHeads(128, 2), model, other, recipe, steps=20)
        with torch.no_grad():
            before = torch.log_softmax(llama(other).logits, -1)
            after = torch.log_softmax(model.network(other).logits, -1)
        drift.append(float((before.exp() * (before - after)).sum(-1).mean()))
    assert 0 < drift[0] < 0.5 * drift[1]


def test_the_same_seed_is_the_same_training(llama: Any, text: torch.Tensor) -> None:
    first, again = (
        fit_jointly(MedusaHeads(128, 2), LanguageModel(copy.deepcopy(llama)), text, steps=6, seed=s) for s in (5, 5)
    )
    assert first == again
    assert first != fit_jointly(MedusaHeads(128, 2), LanguageModel(llama), text, steps=6, seed=6)


def test_what_cannot_be_trained_is_refused(llama: Any, text: torch.Tensor) -> None:
    with pytest.raises(HastenError, match="need texts of 5 tokens, not 4"):
        fit_jointly(MedusaHeads(128, 3), LanguageModel(llama), text[:, :4], steps=1)
    with pytest.raises(HastenError, match="share alone in 0 to 1"):
        JointRecipe(alone=1.5)
    packed = WeightOnly(4).apply(LanguageModel(llama))
    with pytest.raises(HastenError, match="its weights are packed; load it unpacked"):
        fit_jointly(MedusaHeads(128, 2), packed, text, steps=1)


def test_heads_of_medusa_1_go_on(llama: Any, text: torch.Tensor) -> None:
    """Trained heads are taken as they are where none of the budget is for them alone."""
    model, heads = LanguageModel(llama), MedusaHeads(128, 2)
    fit(heads, model, text, states_of(model, text), seconds=0.5)
    fresh = fit_jointly(MedusaHeads(128, 2), LanguageModel(copy.deepcopy(llama)), text, JointRecipe(alone=0), steps=1)
    trained = fit_jointly(heads, model, text, JointRecipe(alone=0), steps=1)
    assert trained.heads[0] < fresh.heads[0]


@needs_kernels
def test_recipes_are_compared_from_one_start(llama: Any) -> None:
    torch.manual_seed(0)
    before = weights(LanguageModel(llama))
    recipes = {"alone": JointRecipe(alone=1.0), "both": JointRecipe(rate=1e-3)}
    found = compare(LanguageModel(llama), torch.randint(0, 211, (900,)), recipes, steps=4, rows=4, prompts=4, made=16)
    assert same(before, weights(LanguageModel(llama)))
    assert found["alone"].nats == found["alone"].nats_before == found["both"].nats_before
    assert found["both"].nats != found["both"].nats_before
    assert all(f.exact and f.tokens_a_step >= 1 for f in found.values())
