"""Masked tokens of real text: what encoders are pretrained on (BERT, arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.tasks.task import IGNORED, Batch, Classification, Split, registered
from hasten.tasks.text import Text


@registered("masked-text")
class MaskedText(Classification):
    """Windows of a text in which some tokens are to be found out from those around them.

    Of the chosen tokens eight in ten are given as ``mask``, one in ten as a random token, and one in ten as it is.

    Args:
        source, length: as `Text` takes them, and its options.
        share: of the tokens that are asked.

    Raises:
        HastenError: a share that is not between 0 and 1, or what `Text` refuses.

    Attributes:
        mask: the id of a masked token: the one behind the text's own.
        vocabulary: ids that a model is given, the mask among them; it answers with ``classes``.
    """

    description = "masked tokens of real text, found out from both sides"
    given = "ids (batch, length), int64, some of them `mask`"
    answered = "logits (batch, length, classes)"

    def __init__(self, source: str = "sources", length: int = 128, *, share: float = 0.15, **options: Any) -> None:
        if not 0 < share < 1:
            raise HastenError(f"a share of {share} of the tokens cannot be asked: give one between 0 and 1")
        self.text = Text(source, length, **options)
        self.length, self.share, self.splits = length, share, self.text.splits
        self.classes = self.mask = self.text.classes
        self.vocabulary = self.classes + 1

    def examples(self, split: Split) -> int:
        return self.text.examples(split)

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        return self._masked(self.text.draw(split, size, generator).inputs, generator)

    def take(self, split: Split, first: int, last: int) -> Batch:
        # Each example has masks of its own, however the split is cut into batches.
        rows = self.text.take(split, first, last).inputs
        each = [self._masked(row[None], torch.Generator().manual_seed(first + i)) for i, row in enumerate(rows)]
        return Batch(torch.cat([b.inputs for b in each]), torch.cat([b.targets for b in each]))

    def _masked(self, ids: Tensor, generator: torch.Generator) -> Batch:
        asked = torch.rand(ids.shape, generator=generator) < self.share
        kind = torch.rand(ids.shape, generator=generator)
        other = torch.randint(self.classes, ids.shape, generator=generator)
        given = torch.where(kind < 0.8, self.mask, torch.where(kind < 0.9, other, ids))
        return Batch(torch.where(asked, given, ids), torch.where(asked, ids, IGNORED))
