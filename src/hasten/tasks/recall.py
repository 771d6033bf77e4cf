"""Generated tasks that ask a sequence model to pick, keep and repeat tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.tasks.task import IGNORED, Batch, Classification, Split, registered


def selective_copying(
    batch: int, *, noise: int = 64, tokens: int = 8, alphabet: int = 8, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens scattered among noise, to be repeated in order at the end (Mamba, arXiv 2312.00752, section 4.1.1).

    Args:
        batch: sequences.
        noise: positions that hold the tokens and otherwise noise.
        tokens: how many to remember.
        alphabet: kinds of token; the noise is ``alphabet``, the mark at which to answer ``alphabet + 1``.

    Returns:
        ids (batch, noise + tokens) and the answers for the last ``tokens`` positions (batch, tokens), int64.

    Raises:
        ValueError: more tokens than positions.
    """
    if tokens > noise:
        raise ValueError(f"{tokens} tokens do not fit into {noise} positions")
    answers = torch.randint(0, alphabet, (batch, tokens), generator=generator)
    places = torch.rand(batch, noise, generator=generator).argsort(1)[:, :tokens].sort(1).values
    ids = torch.full((batch, noise + tokens), alphabet)
    ids.scatter_(1, places, answers)
    ids[:, noise:] = alphabet + 1
    return ids, answers


def induction_heads(
    batch: int, *, length: int = 256, alphabet: int = 16, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """What stood behind the mark the first time? (Mamba, arXiv 2312.00752, section 4.1.2).

    Args:
        batch: sequences.
        length: of each; the mark stands once within and again at the end.
        alphabet: kinds of ordinary token; the mark is ``alphabet``.

    Returns:
        ids (batch, length) and the answer at the last position (batch), int64.

    Raises:
        ValueError: a length with no room for mark, answer and mark.
    """
    if length < 3:
        raise ValueError(f"a length of {length} has no room for mark, answer and mark: give at least 3")
    ids = torch.randint(0, alphabet, (batch, length), generator=generator)
    place = torch.randint(0, length - 2, (batch, 1), generator=generator)
    ids.scatter_(1, place, alphabet)
    ids[:, -1] = alphabet
    return ids, ids.gather(1, place + 1)[:, 0]


def iterated_map(
    batch: int,
    *,
    symbols: int = 16,
    longest: int = 64,
    used: int | None = None,
    filler: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow a permutation given in the prompt: every step looks one pair up, far back.

    A prompt lists the pairs (x, f(x)) of a random cycle in random order, scattered among tokens that mean nothing, then
    a first symbol; what follows are f(x), f(f(x)), ... A step's own past holds its answer only a whole cycle back.

    Args:
        batch: sequences.
        symbols: keys are 0 to symbols - 1, values and steps symbols to 2 symbols - 1.
        longest: steps that are written.
        used: symbols that the cycle goes through, another choice in each sequence; all when None. Looking up among few
            is learned in a fraction of the time, and serves among many.
        filler: tokens that mean nothing, 2 symbols to 3 symbols - 1.

    Returns:
        ids (batch, 2 used + filler + 1 + longest) and True where a step is written (same shape).
    """
    used = used or symbols
    order = torch.rand(batch, symbols, generator=generator).argsort(1)[:, :used]
    listed = torch.rand(batch, used, generator=generator).argsort(1)
    keys, values = order.gather(1, listed), order.roll(-1, 1).gather(1, listed) + symbols
    ids = torch.randint(2 * symbols, 3 * symbols, (batch, 2 * used + filler), generator=generator)
    # Of so many places for a pair or a filler token, the pairs' in order; a pair takes two tokens.
    places = torch.rand(batch, used + filler, generator=generator).argsort(1)[:, :used].sort(1).values
    places = places + torch.arange(used)
    ids.scatter_(1, places, keys).scatter_(1, places + 1, values)
    first = torch.randint(0, used, (batch, 1), generator=generator)
    steps = order.gather(1, (first + torch.arange(longest + 1)) % used) + symbols
    ids = torch.cat((ids, steps), 1)
    written = torch.zeros_like(ids, dtype=torch.bool)
    written[:, 2 * used + filler + 1 :] = True
    return ids, written


def map_around_text(
    text: Tensor,
    alphabet: int,
    *,
    symbols: int,
    steps: int,
    place: int | Tensor = 0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Text that somewhere lists an `iterated_map` and whose end follows it: recall over all that is between (LongGen).

    Args:
        text: (batch, length) ids below ``alphabet``; the length has room for 2 symbols + steps + 1 behind the place.
        alphabet: ids of the text; those of the map lie above, 2 symbols of them.
        symbols, steps: of the map.
        place: where the list begins, for all texts or for each (batch).

    Returns:
        ids (batch, length), and True at the steps of the first turn through the cycle, which a window cannot copy.

    Raises:
        ValueError: the list would reach into the steps, or begins before the text.
    """
    begins = torch.as_tensor(place).expand(text.shape[0])
    if int(begins.min()) < 0 or int(begins.max()) + 2 * symbols + steps + 1 > text.shape[1]:
        raise ValueError(
            f"a map of {symbols} symbols at {place} and {steps} steps do not fit into {text.shape[1]} tokens"
        )
    task, _ = iterated_map(text.shape[0], symbols=symbols, longest=steps, generator=generator)
    ids = text.clone()
    ids.scatter_(1, begins[:, None] + torch.arange(2 * symbols), task[:, : 2 * symbols] + alphabet)
    ids[:, -steps - 1 :] = task[:, 2 * symbols :] + alphabet
    asked = torch.zeros_like(ids, dtype=torch.bool)
    asked[:, -steps : -steps + symbols - 1] = True
    return ids, asked


class Recall(Classification):
    """A generated sequence with answers at its last positions, or at some.

    ``vocabulary`` is the number of ids that a model is given, ``classes`` of those that may be an answer.
    """

    given = "ids (batch, length), int64"
    answered = "logits (batch, length or only the last positions that are asked, classes or more)"
    vocabulary: int

    def __init__(self, **options: Any) -> None:
        self.options = options
        self._check()

    def _check(self) -> None:
        """Refuses options that do not fit each other before anything is learned."""
        try:
            self.draw("training", 1, torch.Generator().manual_seed(0))
        except (ValueError, RuntimeError) as error:
            raise HastenError(f"{self.name} cannot be made: {error}") from None


@registered("selective-copying")
class SelectiveCopying(Recall):
    """`selective_copying` with its options; the tokens are repeated at the end."""

    description = "tokens scattered among noise, to be repeated in order (Mamba, arXiv 2312.00752, section 4.1.1)"

    def __init__(self, *, noise: int = 64, tokens: int = 8, alphabet: int = 8) -> None:
        self.vocabulary, self.classes = alphabet + 2, alphabet
        super().__init__(noise=noise, tokens=tokens, alphabet=alphabet)

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        ids, answers = selective_copying(size, **self.options, generator=generator)
        return Batch(ids, answers)


@registered("induction-heads")
class InductionHeads(Recall):
    """`induction_heads` with its options; one answer, at the last position."""

    description = "what stood behind the mark the first time (Mamba, arXiv 2312.00752, section 4.1.2)"

    def __init__(self, *, length: int = 256, alphabet: int = 16) -> None:
        self.vocabulary, self.classes = alphabet + 1, alphabet
        super().__init__(length=length, alphabet=alphabet)

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        ids, answers = induction_heads(size, **self.options, generator=generator)
        return Batch(ids, answers[:, None])


@registered("iterated-map")
class IteratedMap(Recall):
    """`iterated_map` with its options; asked is every step that is written but the first."""

    description = "following a permutation that the prompt lists: each step looks up a pair far back"

    def __init__(self, *, symbols: int = 16, longest: int = 64, used: int | None = None, filler: int = 0) -> None:
        self.vocabulary = self.classes = 3 * symbols
        super().__init__(symbols=symbols, longest=longest, used=used, filler=filler)

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        ids, written = iterated_map(size, **self.options, generator=generator)
        return Batch(ids[:, :-1], ids[:, 1:].masked_fill(~written[:, 1:], IGNORED))
