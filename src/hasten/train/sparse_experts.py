"""BlockFFN's small character models (arXiv 2507.08771), with losses for routers that choose alike and few experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.models.language.blockffn_lm import BlockFFNConfig, BlockFFNLM
from hasten.nn.blockffn import AdaptiveFactor, Routed, activation_locality, chunk_sparsification
from hasten.tasks.task import Batch
from hasten.tasks.text import Text
from hasten.train.fitting import fit


@dataclass(frozen=True)
class SparseExperts:
    """A trained small model: test loss in nats a character, what the loss of chunks weighed at the end, its routers'
    choices and its weights."""

    loss: float
    weight: float
    routed: Routed
    state: dict[str, Tensor]


def source_text() -> Text:
    """The characters of Python sources that these models learn."""
    return Text(splits=(0.9, 0.1))


def train_sparse_experts(
    feed_forward: Any, locality: float, chunk: float, adapts: bool, steps: int, seed: int
) -> SparseExperts:
    """Trains a character model of Python sources with the two losses at these weights, for a process of its own.

    Args:
        feed_forward: of `BlockFFNConfig`.
        locality: weight of the loss by which neighbours choose the same experts.
        chunk: weight of the loss by which a chunk of tokens chooses few.
        adapts: whether the latter follows the loss (`AdaptiveFactor`).
        steps, seed: of the training.
    """
    task = source_text()
    # The paper's constant first tenth; periods of a fortieth, where its hundredth would be four steps.
    period = max(1, steps // 40)
    factor = AdaptiveFactor(chunk, warmup=max(period, steps // 10), period=period)
    weights = [chunk]
    torch.manual_seed(seed)
    model = BlockFFNLM(BlockFFNConfig(vocabulary=task.classes, feed_forward=feed_forward))

    def loss(batch: Batch) -> Tensor:
        if not (locality or chunk):
            return task.loss(model, batch)
        logits, routings = model(batch.inputs, return_routing=True)
        total = task.loss(lambda _: logits, batch)
        near, wide = (
            torch.stack([of(routing.logits) for routing in routings]).mean()
            for of in (activation_locality, chunk_sparsification)
        )
        total = total + locality * near + weights[-1] * wide
        if adapts:
            weights.append(factor.step(wide.detach().item()))
        return total

    batches = task.batches("training", 16, seed)
    fit(model, lambda step: loss(next(batches)), steps=steps, peak=3e-3, weight_decay=0.1)
    routers: list[Tensor] = []

    def observed(ids: Tensor) -> Tensor:
        logits, routings = model(ids, return_routing=True)
        routers[:] = [routing.logits for routing in routings]
        return logits

    value = task.evaluate(observed, size=64, batches=1, seed=1)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()} if chunk else {}
    return SparseExperts(value, weights[-1], Routed.of(routers), state)
