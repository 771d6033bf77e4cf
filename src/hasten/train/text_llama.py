"""A small Llama trained from nothing on real text, for what a few minutes of training can show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.models.language.llama import small_llama
from hasten.tasks.text import Text
from hasten.train.fitting import fit_task


def text_llama(
    steps: int, seed: int, *, length: int = 128, width: int = 96, layers: int = 4, positions: int = 4096,
    tied: bool = False, characters: int = 1_500_000, splits: Sequence[float] = (0.9, 0.1),
) -> tuple[Any, Tensor]:  # fmt: skip
    """A character model of Python's sources that never saw more than ``length`` characters at once.

    Args:
        steps: of training, 16 windows each.
        seed: of weights and windows.
        length: characters of a window.
        width, layers: of the network, with heads of a quarter of the width.
        tied: whether its embedding is its output head.
        characters, splits: of the text, see `Text`.
        positions: that its rotation is made for; beyond ``length`` none was trained.

    Returns:
        the network, and the ids (n,) of the last part of the text, which it was not trained on.
    """
    torch.manual_seed(seed)
    task = Text("sources", length, characters=characters, splits=splits)
    network = small_llama(task.classes, width=width, layers=layers, heads=4, positions=positions, tied=tied)
    fit_task(network, task, size=16, seed=seed, answer=lambda ids: network(ids).logits, steps=steps, peak=3e-3)
    return network, task.parts["test"]
