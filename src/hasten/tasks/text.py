"""The next token of real text: characters, bytes, or tokens of a tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from hasten.data import text as data
from hasten.errors import HastenError
from hasten.tasks.task import SPLITS, Batch, NextToken, Split, registered

SOURCES: dict[str, Callable[[int], str]] = {
    "sources": data.sources,
    "prose": lambda characters: data.default_text()[:characters],
    "documentation": data.documentation,
    "brown": lambda characters: data.brown()[:characters],
    "moby-dick": lambda characters: data.moby_dick()[:characters],
}


@functools.lru_cache(maxsize=4)
def _characters(source: str, characters: int) -> tuple[Tensor, str]:
    return data.characters(SOURCES[source](characters))


def windows(ids: Tensor, length: int, batch: int, seed: int = 0) -> Iterator[Tensor]:
    """Endless random windows (batch, length + 1) of a text's ids (n,), int64; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield _window(ids, length, batch, generator)


def _window(ids: Tensor, length: int, batch: int, generator: torch.Generator) -> Tensor:
    return ids[torch.randint(len(ids) - length, (batch, 1), generator=generator) + torch.arange(length + 1)]


@registered("text")
class Text(NextToken):
    """Windows of a text, whose beginning is for training and whose end for the test.

    Args:
        source: ``sources`` (Python's standard library, on any machine), ``prose`` and ``documentation`` (of it), or the
            assets ``brown`` and ``moby-dick``; anything else is the text itself.
        length: tokens that a model is given.
        characters: of the source, from its beginning.
        tokens: ``characters`` (95 that print, and the line end), ``bytes``, or a function from a text to ids.
        vocabulary: how many ids that function has.
        splits: shares of training, validation and test; or of training and test alone.

    Raises:
        HastenError: the source is not on this machine, a split is shorter than a window, or wrong shares.
    """

    description = "the next token of real text, at every position of a window"
    given = "ids (batch, length), int64"
    answered = "logits (batch, length, classes)"

    def __init__(
        self,
        source: str = "sources",
        length: int = 128,
        *,
        characters: int = 1_500_000,
        tokens: Literal["characters", "bytes"] | Callable[[str], Sequence[int]] = "characters",
        vocabulary: int = 0,
        splits: Sequence[float] = (0.8, 0.1, 0.1),
    ) -> None:
        if length < 1 or len(splits) not in (2, 3) or min(splits) <= 0 or abs(sum(splits) - 1) > 1e-9:
            raise HastenError("a text needs a length of at least 1 and two or three shares that add up to 1")
        self.length = length
        if tokens == "characters" and source in SOURCES:
            ids, self.alphabet = _characters(source, characters)
            self.classes = len(self.alphabet)
        else:
            text = SOURCES[source](characters) if source in SOURCES else source[:characters]
            if tokens == "characters":
                ids, self.alphabet = data.characters(text)
                self.classes = len(self.alphabet)
            elif tokens == "bytes":
                ids, self.classes = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long(), 256
            elif callable(tokens) and vocabulary > 0:
                ids, self.classes = torch.tensor(tokens(text), dtype=torch.int64), vocabulary
            else:
                raise HastenError("tokens are characters, bytes, or a function with the size of its vocabulary")
        ends = [int(sum(splits[: i + 1]) * len(ids)) for i in range(len(splits) - 1)]
        self.splits = SPLITS if len(splits) == 3 else ("training", "test")
        self.parts: dict[Split, Tensor] = dict(zip(self.splits, ids.tensor_split(ends), strict=True))
        for split, part in self.parts.items():
            if len(part) <= length:
                raise HastenError(f"the {split} part has {len(part)} tokens: windows of {length} need a longer text")

    def examples(self, split: Split) -> int:
        """Windows side by side."""
        return (len(self.parts[split]) - 1) // self.length

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        return _batch(_window(self.parts[split], self.length, size, generator))

    def take(self, split: Split, first: int, last: int) -> Batch:
        starts = self.length * torch.arange(first, last)[:, None]
        return _batch(self.parts[split][starts + torch.arange(self.length + 1)])


def _batch(window: Tensor) -> Batch:
    return Batch(window[:, :-1], window[:, 1:])
