"""A small decoder trained to recall over text, and then on at a longer length with partial contexts (LongGen).

A map stands somewhere in a text and its steps behind it (`hasten.tasks.recall.map_around_text`): only layers that see
both can follow it, or several that pass on what they have seen. arXiv 2410.01485.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.models.language.llama import small_llama
from hasten.nn.block_sparse import SinkWindow, convert, patterned
from hasten.tasks.recall import map_around_text
from hasten.tasks.task import Split
from hasten.tasks.text import Text, windows
from hasten.train.fitting import fit

SYMBOLS, STEPS = 8, 32
BLOCK, LAYERS = 32, 6
# A block of sinks, the own block and the one before: a layer passes on what stands up to a block further back.
PATTERN = SinkWindow(1, 2)
# From the end of the map to the first step, in tokens: within the window of one layer; within that of all sparse layers
# together, so that each could pass a part of the way on; and beyond.
NEAR, REACHED, BEYOND = 8, 120, 250


class Recalled(NamedTuple):
    """What a network recalls.

    Args:
        far: share of the steps that it gives, a mean over the distances that one layer's window does not see.
        text: loss on the text around.
        shares: the share by distance, in tokens.
    """

    far: float
    text: float
    shares: dict[int, float]


def distances(length: int) -> list[int]:
    """Tokens between map and steps that recall is measured at, in texts of ``length``: up to just behind the sinks."""
    longest = length - STEPS - 1 - 2 * SYMBOLS - PATTERN.sinks * BLOCK
    return [d for d in (NEAR, REACHED, BEYOND) if d < longest] + [longest]


def _texts(split: Split, length: int, batch: int, seed: int) -> tuple[Iterator[Tensor], int]:
    """Endless windows (batch, length) of characters of a split, and how many characters there are."""
    task = Text("sources", length, splits=(0.9, 0.1))
    return windows(task.parts[split], length - 1, batch, seed), task.classes


def _network(alphabet: int) -> Any:
    """A small network with fresh weights, for text and the map around it."""
    network = small_llama(
        alphabet + 2 * SYMBOLS, width=64, layers=LAYERS, heads=4, kv_heads=2, head_dim=16, positions=4096
    )
    network.config._attn_implementation = "sdpa"
    return network


def _learn(network: Any, length: int, batch: int, steps: int, peak: float, seed: int) -> None:
    """Trains on a map anywhere behind the sinks; its steps count ten times as much as the text."""
    rows, alphabet = _texts("training", length, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    first, last = PATTERN.sinks * BLOCK, length - STEPS - 2 * SYMBOLS

    def loss(step: int) -> Tensor:
        place = torch.randint(first, last, (batch,), generator=generator)
        ids, _ = map_around_text(next(rows), alphabet, symbols=SYMBOLS, steps=STEPS, place=place, generator=generator)
        logits = network(ids[:, :-1], use_cache=False).logits.flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(batch, -1)
        return 0.1 * each[:, :-STEPS].mean() + each[:, -STEPS:].mean()

    fit(network, loss, steps=steps, peak=peak)


def recalled(network: Any, length: int, seed: int) -> Recalled:
    """What a network of these stages recalls at each of the `distances` in texts of a length."""
    rows, alphabet = _texts("test", length, 32, seed)
    generator = torch.Generator().manual_seed(seed + 99)
    shares, losses = {}, []
    for distance in distances(length):
        place = length - STEPS - 1 - distance - 2 * SYMBOLS
        ids, asked = map_around_text(
            next(rows), alphabet, symbols=SYMBOLS, steps=STEPS, place=place, generator=generator
        )
        with torch.inference_mode():
            logits = network(ids[:, :-1], use_cache=False).logits
        shares[distance] = float((logits.argmax(-1) == ids[:, 1:])[asked[:, 1:]].float().mean())
        wanted = ids[:, 1 : -STEPS - 1]
        each = torch.nn.functional.cross_entropy(
            logits[:, : wanted.shape[1]].flatten(0, 1), wanted.flatten(), reduction="none"
        )
        losses.append(each[wanted.flatten() < alphabet])
    far = [share for distance, share in shares.items() if distance > NEAR]
    return Recalled(sum(far) / len(far), float(torch.cat(losses).mean()), shares)


def first_stage(steps: int, seed: int) -> tuple[dict[str, Any], float]:
    """Weights trained with full attention at 128 tokens, and the recall at the farthest distance there."""
    torch.manual_seed(seed)
    network = _network(_texts("training", 128, 1, seed)[1])
    _learn(network, 128, 32, steps, 5e-3, seed)
    return dict(network.state_dict()), recalled(network, 128, seed).far


def second_stage(
    weights: dict[str, Any], kind: str, full: tuple[int, ...], steps: int, length: int, seed: int
) -> list[Recalled]:
    """What is recalled after going on at a longer length with some layers full.

    Args:
        weights: of `first_stage`.
        kind: ``full`` attention in all layers, or ``sparse`` in all but those in ``full``.
        full: layers.
        steps, length, seed: of this training.

    Returns:
        What it recalls; of ``full`` also what the same model does with its outer layers sparse at inference alone.
    """
    network = _network(_texts("training", 128, 1, seed)[1])
    network.load_state_dict(weights)
    convert(network, None if kind == "full" else PATTERN, full, block=BLOCK, rope_scale=50.0)
    _learn(network, length, 8, steps, 2e-3, seed + 1)
    found = [recalled(network, length, seed)]
    if kind == "full":
        # The same model, sparse at inference alone.
        with patterned(network, PATTERN, (2, 3), block=BLOCK):
            found.append(recalled(network, length, seed))
    return found
