"""A small mixture of experts trained from nothing on real text, with the router before attention or behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM, hybrid
from hasten.nn.reglu_experts import Activation, balance_loss
from hasten.tasks.text import Text
from hasten.train.fitting import fit


def train_mixture(
    early: bool, activation: Activation, mixed: bool, steps: int, seed: int, *, length: int = 128, width: int = 96
) -> tuple[float, float]:
    """(loss on held-out text, share of positive gates) of a SmallThinker model of 4 layers, 2 of 8 experts a token.

    Args:
        early: route from the residual before attention; otherwise from what the experts read.
        activation: of the experts' gates.
        mixed: three of four layers with rotary positions and a window of 64, the fourth with neither; otherwise all
            with rotary positions and no window.
        steps: of training, 8 windows of characters each.
        seed: of weights and windows.
        length: characters of a window.
        width: of the model, a multiple of 8.
    """
    torch.manual_seed(seed)
    task = Text("sources", length, splits=(0.9, 0.1))
    rotary, windowed = hybrid(4) if mixed else ((), ())
    config = SmallThinkerConfig(
        width=width, heads=4, kv_heads=2, head_dim=width // 4, vocabulary=task.classes, experts=8, used=2, inner=width,
        rotary=rotary, windowed=windowed, window=64, early=early, activation=activation,
    )  # fmt: skip
    model = SmallThinkerLM(config).train()
    batches = task.batches("training", 8, seed)
    opened: list[Tensor] = []

    def loss(step: int) -> Tensor:
        batch = next(batches)
        logits, routings = model(batch.inputs, return_routing=True)
        opened[:] = [r.open_share for r in routings if r.open_share is not None]
        balance = torch.stack([balance_loss(routing.logits, 2) for routing in routings]).mean()
        return task.loss(lambda _: logits, batch) + 1e-3 * balance

    fit(model, loss, steps=steps, peak=3e-3)
    share = float(torch.stack(opened).mean())
    return task.evaluate(model.eval(), "test", size=16, batches=8, seed=1), share
