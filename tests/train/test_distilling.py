"""Distillation: each loss is what it says, layers are taught one after the other, and a taught student learns more."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.language.bottleneck_encoder import BottleneckConfig, BottleneckEncoder
from hasten.models.language.llama import small_llama
from hasten.tasks.masked_text import MaskedText
from hasten.tasks.task import IGNORED, Batch
from hasten.train.distilling import (
    UNTAUGHT,
    Distillation,
    Lesson,
    ObservedDecoder,
    answer_loss,
    attention_loss,
    distill,
    feature_loss,
    heights,
    in_turn,
    lessons,
)
from hasten.train.fitting import fit

LENGTH = 12


def encoder(seed: int, **sizes: int) -> BottleneckEncoder:
    torch.manual_seed(seed)
    known = {"vocabulary": 31, "classes": 30, "layers": 2, "width": 16, "bottleneck": 8, "heads": 2, "inner": 16}
    return BottleneckEncoder(BottleneckConfig(length=LENGTH, **known | sizes))


def batches(seed: int = 0) -> itertools.repeat[Batch]:
    torch.manual_seed(seed)
    ids = torch.randint(0, 31, (4, LENGTH))
    return itertools.repeat(Batch(ids, torch.where(torch.rand(4, LENGTH) < 0.3, ids % 30, IGNORED)))


def test_layers_stand_at_their_height() -> None:
    assert heights(2, 4) == [1, 3]
    assert heights(4, 4) == [0, 1, 2, 3]
    assert heights(6, 2) == [0, 0, 0, 0, 1, 1]
    assert all(heights(s, t)[-1] == t - 1 for s in range(1, 9) for t in range(1, 9))


def test_losses_are_nothing_where_student_and_teacher_agree() -> None:
    with torch.no_grad():
        seen = encoder(0).observe(next(batches()).inputs)
    assert feature_loss(seen.features[1], 3 * seen.features[1] + 1) == pytest.approx(0, abs=1e-6)
    assert attention_loss(seen.maps[0], seen.maps[0]) == pytest.approx(0, abs=1e-6)
    targets = next(batches()).targets
    assert answer_loss(seen.logits, seen.logits, targets, Distillation(answers=1.0)) == pytest.approx(0, abs=1e-5)


def test_losses_are_divergences() -> None:
    torch.manual_seed(0)
    own, told = torch.softmax(torch.randn(2, 3, 5, 5), -1), torch.softmax(torch.randn(2, 3, 5, 5), -1)
    expected = torch.nn.functional.kl_div(own.log(), told, reduction="none").sum(-1).mean()
    assert torch.allclose(attention_loss(own, told), expected)
    # With another number of heads their means are compared.
    assert torch.allclose(attention_loss(own, told[:, :1]), attention_loss(own.mean(1, keepdim=True), told[:, :1]))
    logits, teachers, targets = torch.randn(2, 5, 7), torch.randn(2, 5, 7), torch.tensor([[1, 2, -100, -100, 0]] * 2)
    asked = targets >= 0
    hard = torch.nn.functional.cross_entropy(logits[asked], targets[asked])
    soft = 4 * torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teachers[asked] / 2),
        torch.distributions.Categorical(logits=logits[asked] / 2),
    ).mean()  # fmt: skip
    found = answer_loss(logits, teachers, targets, Distillation(answers=0.3, temperature=2.0))
    assert torch.allclose(found, 0.7 * hard + 0.3 * soft, atol=1e-5)
    assert torch.allclose(answer_loss(logits, teachers, targets, UNTAUGHT), hard)


def test_layers_are_taught_one_after_the_other() -> None:
    teacher, student = encoder(1, width=24), encoder(0)
    given = lessons(teacher, iter(batches()), 2)
    before = copy.deepcopy(student.state_dict())
    # Steps 0 to 9: the first half of the layer-wise part is the first layer's.
    stopped = copy.deepcopy(student)
    with pytest.raises(_Enough):
        distill(stopped, _until(in_turn(given), 5), steps=20, recipe=Distillation(layerwise=0.5, weight_decay=0.0))
    moved = {tuple(n.split(".")[:2]) for n, t in stopped.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {("embedding", "tokens"), ("embedding", "places"), ("embedding", "norm"), ("layers", "0")}
    distill(student, in_turn(given), steps=20)
    assert all(not torch.equal(t, before[n]) for n, t in student.state_dict().items() if n.startswith("layers"))


class _Enough(Exception):
    pass


def _until(lesson: Callable[[int], Lesson], last: int) -> Callable[[int], Lesson]:
    def given(step: int) -> Lesson:
        if step == last:
            raise _Enough
        return lesson(step)

    return given


def test_a_layer_wise_part_brings_features_and_attention_near_the_teacher_s() -> None:
    teacher, student = encoder(1), encoder(0)
    given = lessons(teacher, iter(batches()), 1)
    ids, told = given[0].batch.inputs, given[0].teacher

    @torch.no_grad()
    def distance() -> float:
        seen = student.observe(ids)
        features = sum(feature_loss(a, b) for a, b in zip(seen.features[1:], told.features[1:], strict=True))
        return float(features + sum(attention_loss(a, b) for a, b in zip(seen.maps, told.maps, strict=True)))

    before = distance()
    distill(student, in_turn(given), steps=80, recipe=Distillation(layerwise=0.9))
    assert distance() < 0.7 * before


def test_a_taught_student_answers_as_its_teacher_does_on_what_it_has_not_seen() -> None:
    """Nearer than a student of the same steps on the same batches that is told the right tokens alone."""
    task = MaskedText("the quick brown fox jumps over a lazy dog, and back. " * 80, 12)
    torch.manual_seed(0)
    config = BottleneckConfig(task.vocabulary, task.classes, 12, layers=2, width=32, bottleneck=16, heads=2, inner=32)
    teacher, drawn = BottleneckEncoder(config), task.batches("training", 16, 0)
    fit(teacher, lambda step: task.loss(teacher, next(drawn)), steps=60, peak=1e-2)
    given, held = lessons(teacher.eval(), task.batches("training", 16, 1), 8), next(task.batches("validation", 64, 0))
    found = []
    for recipe in (Distillation(layerwise=0.0, answers=1.0), UNTAUGHT):
        student = encoder(1, vocabulary=task.vocabulary, classes=task.classes, layers=1)
        distill(student, in_turn(given), steps=60, recipe=recipe)
        with torch.no_grad():
            told = teacher(held.inputs)
            found.append(float(answer_loss(student(held.inputs), told, held.targets, Distillation(answers=1.0))))
    assert found[0] < found[1]


def test_a_llama_teaches_a_smaller_one() -> None:
    torch.manual_seed(0)
    teacher = ObservedDecoder(small_llama(40, width=32, layers=3, heads=4, positions=64).eval())
    teacher.network.lm_head.weight.data *= 20  # so that it answers something
    student = ObservedDecoder(small_llama(40, width=16, layers=2, heads=2, positions=64, tied=True))
    ids = torch.randint(0, 40, (4, 20))
    seen = teacher.observe(ids)
    assert torch.allclose(seen.logits, teacher(ids), atol=1e-5)
    assert (len(seen.features), len(seen.maps)) == (4, 3)
    assert teacher.network.config._attn_implementation != "eager"
    given = lessons(teacher, itertools.repeat(Batch(ids, ids.roll(-1, 1))), 1)
    with torch.no_grad():
        before = answer_loss(student(ids), given[0].teacher.logits, ids, Distillation(answers=1.0))
    distill(student, in_turn(given), steps=60, recipe=Distillation(layerwise=0.2, answers=1.0, peak=1e-2))
    with torch.no_grad():
        after = answer_loss(student(ids), given[0].teacher.logits, ids, Distillation(answers=1.0))
    assert after < 0.9 * before
    # Apart, a loss of the second layer's output is that layer's alone.
    student.zero_grad()
    student.observe(ids, apart=True).maps[1].square().sum().backward()
    first, second = cast("list[Any]", list(student.layers))
    assert first.mlp.up_proj.weight.grad is None
    assert second.self_attn.q_proj.weight.grad is not None


def test_recipes_that_mean_nothing_are_refused() -> None:
    for wrong in ({"layerwise": 1.0}, {"answers": 1.5}, {"temperature": 0.0}):
        with pytest.raises(HastenError, match="a distillation has layerwise"):
            Distillation(**wrong)
