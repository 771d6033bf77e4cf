"""Multi-query associative recall: which value went with this key?"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.tasks.recall import Recall
from hasten.tasks.task import IGNORED, Batch, Split, registered

__all__ = ["IGNORED", "AssociativeRecall", "associative_recall"]


def associative_recall(
    batch: int,
    *,
    length: int = 64,
    pairs: int = 6,
    keys: int = 16,
    values: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of key and value among noise in the first half, every key asked for once in the second (arXiv 2312.04927).

    Args:
        batch: sequences.
        length: of each.
        pairs: different keys of a sequence.
        keys, values: kinds; ids are keys, then values, then the noise.

    Returns:
        ids (batch, length) and targets (batch, length), int64: the value where a key is asked for, `IGNORED` elsewhere.

    Raises:
        ValueError: pairs that do not fit the halves or the keys.
    """
    half = length // 2
    if pairs > keys or 2 * pairs > half or pairs > length - half:
        raise ValueError(f"{pairs} pairs do not fit {keys} keys and halves of {half}")
    chosen = torch.rand(batch, keys, generator=generator).argsort(1)[:, :pairs]
    answers = torch.randint(keys, keys + values, (batch, pairs), generator=generator)
    ids = torch.full((batch, length), keys + values)
    slots = 2 * torch.rand(batch, half // 2, generator=generator).argsort(1)[:, :pairs]
    ids.scatter_(1, slots, chosen)
    ids.scatter_(1, slots + 1, answers)
    order = torch.rand(batch, pairs, generator=generator).argsort(1)
    places = half + torch.rand(batch, length - half, generator=generator).argsort(1)[:, :pairs]
    ids.scatter_(1, places, chosen.gather(1, order))
    targets = torch.full((batch, length), IGNORED)
    targets.scatter_(1, places, answers.gather(1, order))
    return ids, targets


@registered("associative-recall")
class AssociativeRecall(Recall):
    """`associative_recall` with its options; asked is the value of every key that comes again."""

    description = "which value went with this key, for several keys among noise (MQAR, arXiv 2312.04927)"

    def __init__(self, *, length: int = 64, pairs: int = 6, keys: int = 16, values: int = 16) -> None:
        self.vocabulary = self.classes = keys + values + 1
        super().__init__(length=length, pairs=pairs, keys=keys, values=values)

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        return Batch(*associative_recall(size, **self.options, generator=generator))
