"""A small decoder trained to recall over text, and then on at a longer length with partial contexts (LongGen).

A map stands before a text and its steps behind it (`hasten.tasks.recall.map_around_text`): only layers that see both
can follow it. arXiv 2410.01485.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hasten.models.language.llama import small_llama
from hasten.nn.block_sparse import SinkWindow, convert, patterned
from hasten.tasks.recall import map_around_text
from hasten.tasks.task import Split
from hasten.tasks.text import Text, windows
from hasten.train.fitting import fit

SYMBOLS, STEPS = 8, 32


def _texts(split: Split, length: int, batch: int, seed: int) -> tuple[Iterator[Tensor], int]:
    """Endless windows (batch, length) of characters of a split, and how many characters there are."""
    task = Text("sources", length, splits=(0.9, 0.1))
    return windows(task.parts[split], length - 1, batch, seed), task.classes


def _network(alphabet: int) -> Any:
    """A small network with fresh weights, for text and the map around it."""
    network = small_llama(alphabet + 2 * SYMBOLS, width=64, layers=6, heads=4, kv_heads=2, head_dim=16, positions=4096)
    network.config._attn_implementation = "sdpa"
    return network


def _learn(network: Any, length: int, batch: int, steps: int, peak: float, seed: int) -> None:
    """Trains on the map around text; its steps count ten times as much as the text."""
    rows, alphabet = _texts("training", length, batch, seed)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        ids, _ = map_around_text(next(rows), alphabet, symbols=SYMBOLS, steps=STEPS, generator=generator)
        logits = network(ids[:, :-1], use_cache=False).logits.flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(batch, -1)
        return 0.1 * each[:, :-STEPS].mean() + each[:, -STEPS:].mean()

    fit(network, loss, steps=steps, peak=peak)


def _scored(network: Any, length: int, seed: int) -> tuple[float, float]:
    """(share of recalled steps, loss on the text between) at a length."""
    rows, alphabet = _texts("test", length, 32, seed)
    generator = torch.Generator().manual_seed(seed + 99)
    ids, asked = map_around_text(next(rows), alphabet, symbols=SYMBOLS, steps=STEPS, generator=generator)
    with torch.inference_mode():
        logits = network(ids[:, :-1], use_cache=False).logits
    right = float((logits.argmax(-1) == ids[:, 1:])[asked[:, 1:]].float().mean())
    part = slice(2 * SYMBOLS, -STEPS - 1)
    loss = torch.nn.functional.cross_entropy(logits[:, part].flatten(0, 1), ids[:, 1:][:, part].flatten())
    return right, float(loss)


def first_stage(steps: int, seed: int) -> tuple[dict[str, Any], float]:
    """Weights trained with full attention at 128 tokens, and their recall."""
    torch.manual_seed(seed)
    network = _network(_texts("training", 128, 1, seed)[1])
    _learn(network, 128, 32, steps, 5e-3, seed)
    return dict(network.state_dict()), _scored(network, 128, seed)[0]


def second_stage(
    weights: dict[str, Any], kind: str, full: tuple[int, ...], steps: int, length: int, seed: int
) -> list[tuple[float, float]]:
    """What is recalled after going on at a longer length with some layers full.

    Args:
        weights: of `first_stage`.
        kind: ``full`` attention in all layers, or ``sparse`` in all but those in ``full``.
        full: layers.
        steps, length, seed: of this training.

    Returns:
        (share of recalled steps, loss on the text); of ``full`` also those of the same model sparse at inference alone.
    """
    network = _network(_texts("training", 128, 1, seed)[1])
    network.load_state_dict(weights)
    pattern = SinkWindow(0, 1)
    convert(network, None if kind == "full" else pattern, full, block=32, rope_scale=50.0)
    _learn(network, length, 8, steps, 2e-3, seed + 1)
    found = [_scored(network, length, seed)]
    if kind == "full":
        # The same model, sparse at inference alone.
        with patterned(network, pattern, (2, 3), block=32):
            found.append(_scored(network, length, seed))
    return found
