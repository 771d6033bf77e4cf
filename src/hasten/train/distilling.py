"""A small network learns from a large one: layer by layer first, then by what both answer.

Progressive transfer (MobileBERT, arXiv 2004.02984, sections 3.2 and 3.3): in a first part of the steps the student's
layers are trained one after the other, each alone, to have the features and the attention of the teacher's layer at
its height; in the rest the whole student learns the teacher's answers beside the task's own. A very short run of it
ranks students (flash distillation, AutoDistill, arXiv 2201.08539); a long one trains those that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.decoder import decoder_of
from hasten.models.language.bottleneck_encoder import Observed
from hasten.tasks.task import IGNORED, Batch
from hasten.train.fitting import parameter_groups
from hasten.train.loop import Trained, train
from hasten.train.schedules import WarmupCosine


class Observable(Protocol):
    """A network that tells what it does on the way, see `BottleneckEncoder.observe`."""

    def observe(self, ids: Tensor, until: int | None = None, *, apart: bool = False) -> Observed: ...


class ObservedDecoder(nn.Module):
    """A transformers causal LM as an `Observable`.

    Args:
        network: its attention is computed in the open (``eager``), so that it can be seen.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.layers = decoder_of(network).layers

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (batch, length), of any dtype, to logits (batch, length, vocabulary)."""
        logits: Tensor = self.network(ids.long(), use_cache=False).logits
        return logits

    def observe(self, ids: Tensor, until: int | None = None, *, apart: bool = False) -> Observed:
        def let_go(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return (given[0].detach(), *given[1:])

        config = self.network.config
        before, config._attn_implementation = config._attn_implementation, "eager"
        hooks = [layer.register_forward_pre_hook(let_go) for layer in self.layers[1:]] if apart else []
        try:
            out = self.network(ids.long(), output_hidden_states=True, output_attentions=True, use_cache=False)
        finally:
            config._attn_implementation = before
            for hook in hooks:
                hook.remove()
        return Observed(out.logits, out.hidden_states, out.attentions)


class Lesson(NamedTuple):
    """A batch and what the teacher did with it, without a graph."""

    batch: Batch
    teacher: Observed


def lessons(teacher: Observable, batches: Iterator[Batch], count: int) -> list[Lesson]:
    """The next ``count`` batches with what the teacher does with them, to be used again for every student."""
    found = []
    with torch.no_grad():
        for _ in range(count):
            batch = next(batches)
            found.append(Lesson(batch, teacher.observe(batch.inputs)))
    return found


@dataclass(frozen=True)
class Distillation:
    """How a student is taught.

    Args:
        layerwise: share of the steps in which layers are trained one after the other; 0: answers alone.
        answers: weight of the teacher's answers beside the task's own, 0 to 1.
        temperature: of the answers.
        peak: the highest learning rate, of AdamW.
        weight_decay: of matrices.

    Raises:
        HastenError: a share or a weight that is not within 0 to 1.
    """

    layerwise: float = 0.5
    answers: float = 0.5
    temperature: float = 1.0
    peak: float = 3e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.layerwise < 1 or not 0 <= self.answers <= 1 or self.temperature <= 0:
            raise HastenError("a distillation has layerwise in [0, 1), answers in [0, 1] and a temperature above 0")


UNTAUGHT = Distillation(layerwise=0.0, answers=0.0)
"""The same training without a teacher: the task's own targets alone."""


def heights(student: int, teacher: int) -> list[int]:
    """For each layer of a student of so many the layer of the teacher (from 0) that ends at the same height."""
    return [max(1, round((i + 1) * teacher / student)) - 1 for i in range(student)]


def feature_loss(own: Tensor, teachers: Tensor) -> Tensor:
    """Mean squared difference of two features (batch, length, width), each normed, so that scales do not count."""
    width = own.shape[-1:]
    return F.mse_loss(F.layer_norm(own, width), F.layer_norm(teachers, width))


def attention_loss(own: Tensor, teachers: Tensor) -> Tensor:
    """KL divergence of attention (batch, heads, length, length) from the teacher's, a row's mean; head by head where
    there are as many, else of the heads' mean."""
    if own.shape[1] != teachers.shape[1]:
        own, teachers = own.mean(1, keepdim=True), teachers.mean(1, keepdim=True)
    least = 1e-9
    return (teachers * (teachers.clamp(min=least).log() - own.clamp(min=least).log())).sum(-1).mean()


def answer_loss(own: Tensor, teachers: Tensor, targets: Tensor, recipe: Distillation) -> Tensor:
    """The task's cross-entropy and the divergence from the teacher's answers, at the positions that are asked.

    Args:
        own, teachers: logits (batch, length, classes).
        targets: (batch, length), `IGNORED` where nothing is asked.
        recipe: their weights.
    """
    asked = targets != IGNORED
    logits, told, right = own[asked], teachers[asked], targets[asked]
    value = logits.new_zeros(())
    if recipe.answers < 1:
        value = value + (1 - recipe.answers) * F.cross_entropy(logits, right)
    if recipe.answers > 0:
        t = recipe.temperature
        divergence = F.kl_div(
            F.log_softmax(logits / t, -1), F.log_softmax(told / t, -1), reduction="batchmean", log_target=True
        )
        value = value + recipe.answers * t * t * divergence
    return value


def distill(
    student: nn.Module,
    lesson: Callable[[int], Lesson],
    *,
    steps: int,
    recipe: Distillation | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains a student in place.

    Args:
        student: an `Observable` module with ``layers``.
        lesson: of a step (0, 1, ...); `lessons` makes some to choose from.
        steps: of both parts together.
        recipe: the default one when None; `UNTAUGHT` does without the teacher.
        seed: of the projections between widths, which are learned beside the student and then dropped.
        progress: told the share done.

    Raises:
        HastenError: the loss became infinite or NaN.
    """
    recipe = recipe or Distillation()
    layers = len(student.layers)  # type: ignore[arg-type]
    first = lesson(0)
    pairs = heights(layers, len(first.teacher.maps))
    with torch.no_grad():
        width = student.observe(first.batch.inputs[:1], 1).features[-1].shape[-1]  # type: ignore[operator]
    wide = first.teacher.features[-1].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projections = nn.ModuleList(
            nn.Identity() if width == wide else nn.Linear(width, wide, bias=False) for _ in range(layers)
        )
    # Of few steps some still go to each layer, or none at all.
    each = int(recipe.layerwise * steps) // layers
    both = nn.ModuleDict({"student": student, "projections": projections})

    def loss(step: int) -> Tensor:
        batch, teacher = lesson(step)
        if step < each * layers:
            at = step // each
            own = student.observe(batch.inputs, at + 1, apart=True)  # type: ignore[operator]
            feature = feature_loss(projections[at](own.features[at + 1]), teacher.features[pairs[at] + 1])
            return feature + attention_loss(own.maps[at], teacher.maps[pairs[at]])
        return answer_loss(student(batch.inputs), teacher.logits, batch.targets, recipe)

    before = student.training
    both.train()
    try:
        trained = train(
            both, loss, steps=steps, schedule=WarmupCosine(0.1, 0.05), clip=1.0,
            optimizer=torch.optim.AdamW(parameter_groups(both, recipe.weight_decay), recipe.peak, betas=(0.9, 0.98)),
            progress=lambda moment, value: progress(moment.share),
        )  # fmt: skip
    finally:
        student.train(before)
    return trained.finished("the distillation")


def in_turn(given: Sequence[Lesson]) -> Callable[[int], Lesson]:
    """The lessons one after the other, and again from the first."""
    return lambda step: given[step % len(given)]
