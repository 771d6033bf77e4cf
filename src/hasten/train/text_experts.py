"""A composition of small language models, each trained on a corpus of its own, beside one model trained on all of them.

As in a composition of experts (SN40L, arXiv 2405.07518, section II): a router reads the beginning of a text and names
the expert that goes on with it. All models have one size, and the one model is trained for as many steps as all experts
together, on as many windows of each corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.language.llama import small_llama
from hasten.tasks.task import Batch
from hasten.tasks.text import Text
from hasten.train.fitting import fit, fit_task

Model = Callable[[Tensor], Tensor]


class _Router(nn.Module):
    """Scores of corpora from the pairs of characters in a text: ids (batch, length) to (batch, corpora).

    Args:
        characters: in the alphabet.
        corpora: to choose from.
    """

    def __init__(self, characters: int, corpora: int) -> None:
        super().__init__()
        self.characters = characters
        self.pairs = nn.EmbeddingBag(characters**2, corpora, mode="mean")

    def forward(self, ids: Tensor) -> Tensor:
        return self.pairs(ids[:, :-1] * self.characters + ids[:, 1:])


@dataclass(frozen=True)
class CompositionSeen:
    """Means over the corpora, in nats a character of the second half of each window.

    Args:
        composition: of the experts that the router named.
        own: of each corpus' own expert.
        one: of the one model.
        routed: share of windows that went to their own corpus' expert.
    """

    composition: float
    own: float
    one: float
    routed: float

    @property
    def gain(self) -> float:
        """By which the composition's loss is below the one model's."""
        return 1 - self.composition / self.one


def composition_seen(
    corpora: Mapping[str, Text], steps: int, seed: int, *, width: int = 96, layers: int = 3, size: int = 16,
    windows: int = 64, progress: Callable[[str, float], None] = lambda message, share: None,
) -> CompositionSeen:  # fmt: skip
    """Trains experts, router and the one model, and scores them on test windows.

    Args:
        corpora: name -> task; all of one length and one alphabet.
        steps: of each expert; the one model has as many times more as there are corpora.
        seed: of weights and windows.
        width, layers: of every model.
        size: windows of a step.
        windows: of each corpus that are scored.
        progress: told what is trained, and the share done.

    Raises:
        HastenError: fewer than two corpora, or of several lengths or alphabets.
    """
    tasks = list(corpora.values())
    if len(tasks) < 2 or len({(t.length, t.classes) for t in tasks}) > 1:
        raise HastenError("a composition needs two corpora or more, of one length and one alphabet")
    length, classes = tasks[0].length, tasks[0].classes

    def fresh() -> nn.Module:
        torch.manual_seed(seed)
        return small_llama(classes, width=width, layers=layers, heads=4, positions=length)

    experts: list[Model] = []
    for number, (name, task) in enumerate(corpora.items()):
        progress(f"expert of {name}", number / (2 * len(tasks)))
        network = fresh()
        answer = _answers(network)
        fit_task(network, task, size=size, seed=seed, answer=answer, steps=steps, peak=3e-3)
        experts.append(answer)
    progress("router", 0.5)
    router = _Router(classes, len(tasks))
    half = length // 2
    drawn = [t.batches("training", size, seed + 1) for t in tasks]

    def routing_loss(step: int) -> Tensor:
        ids = torch.cat([next(d).inputs[:, :half] for d in drawn])
        return nn.functional.cross_entropy(router(ids), torch.arange(len(tasks)).repeat_interleave(size))

    fit(router, routing_loss, steps=steps, peak=3e-2)
    progress("one model of all", 0.55)
    whole = fresh()
    one = _answers(whole)
    # As the experts draw them: the same windows of each corpus.
    mixed = [t.batches("training", size, seed) for t in tasks]
    fit(whole, lambda step: tasks[step % len(tasks)].loss(one, next(mixed[step % len(tasks)])),
        steps=steps * len(tasks), peak=3e-3)  # fmt: skip
    return _scored(tasks, experts, router, one, windows)


def _answers(network: nn.Module) -> Model:
    return lambda ids: network(ids).logits


@torch.inference_mode()
def _scored(
    tasks: Sequence[Text], experts: Sequence[Model], router: nn.Module, one: Model, windows: int
) -> CompositionSeen:
    sums = {"composition": 0.0, "own": 0.0, "one": 0.0}
    right = total = 0
    for number, task in enumerate(tasks):
        batch = task.take("test", 0, min(windows, task.examples("test")))
        half = task.length // 2
        chosen = router(batch.inputs[:, :half]).argmax(1)
        losses = {name: _second_half(model, batch, half) for name, model in (("own", experts[number]), ("one", one))}
        composed = torch.empty(len(batch.inputs))
        for expert in chosen.unique().tolist():
            rows = chosen == expert
            composed[rows] = _second_half(experts[expert], Batch(batch.inputs[rows], batch.targets[rows]), half)
        losses["composition"] = composed
        for name, values in losses.items():
            sums[name] += float(values.mean()) / len(tasks)
        right += int((chosen == number).sum())
        total += len(chosen)
    return CompositionSeen(**sums, routed=right / total)


def _second_half(model: Model, batch: Batch, half: int) -> Tensor:
    """Nats a character (batch)."""
    logits = model(batch.inputs)[:, half:]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets[:, half:].flatten(), reduction="none")
    return losses.reshape(len(logits), -1).mean(1)
