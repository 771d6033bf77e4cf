"""Running a model's steps for many texts at once: over a pool of blocks, over a place for each, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BLOCK
from hasten.runtime.cache import KVCache
from hasten.runtime.language_model import CHUNK, LanguageModel
from hasten.runtime.step import CompiledStep
from hasten.serving.blocks import BlockTree, PrefixBlock
from hasten.serving.running_text import RunningText, no_logits


@dataclass(frozen=True)
class PlannedRows:
    """What a step reads of one text.

    Attributes:
        text: whose.
        count: of its unread tokens the first so many.
        answered: of these the last so many give logits.
    """

    text: RunningText
    count: int
    answered: int


class Steps(Protocol):
    """Who holds texts' keys and values, and runs steps over them.

    Attributes:
        most_tokens: of one text.
        notes: what a user should know of how it runs.
    """

    most_tokens: int
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of keys and values that it has reserved."""

    def open(self, text: RunningText) -> bool:
        """Makes room for all of a text and sets how much is read already; False where there is none now."""

    def close(self, text: RunningText) -> None:
        """Gives its room back; what others may share of it stays."""

    def make_room(self, text: RunningText) -> bool:
        """Room for the one token that a running text reads next; False where there is none now."""

    def follow(self, text: RunningText) -> object:
        """Takes over what others have read of this text's beginning since it was opened.

        Returns:
            What it reads next, in a form that is equal for texts that read the same next; None: nobody can share it.
        """

    def piece(self, text: RunningText, most: int) -> int:
        """Of the unread tokens how many, up to about ``most``, the next step takes."""

    def run(self, plan: Sequence[PlannedRows]) -> Tensor:
        """One step: logits (answered rows, vocabulary) fp32 in the plan's order, valid until the next one.

        The texts' ``read`` moves on.
        """

    def forget(self) -> None:
        """Drops what is kept for texts to come."""

    def blocks(self) -> tuple[int, int, int]:
        """Blocks of the cache that running texts use, that are kept for others, and that are free."""


def _compiled_rows(plan: Sequence[PlannedRows], places: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Ids, sequences (``places`` of the texts) and positions of a step's rows, and the rows that are answered."""
    rows: list[list[int]] = [[], [], []]
    answered: list[int] = []
    for p, place in zip(plan, places, strict=True):
        start, end = p.text.read, p.text.read + p.count
        rows[0] += p.text.tokens[start:end]
        rows[1] += [place] * p.count
        rows[2] += range(start, end)
        answered += range(len(rows[0]) - p.answered, len(rows[0]))
    return rows, answered


def _within_block(text: RunningText, most: int) -> int:
    """A piece that ends where a block does: what is committed before a row then never depends on the pieces."""
    return min(text.unread, BLOCK - text.read % BLOCK, max(most, 1))


@dataclass
class _Paged:
    """Where a text stands: its sequence's number, and its blocks, the first of which are in the tree."""

    sequence: int
    path: list[PrefixBlock]
    own: list[int]

    @property
    def table(self) -> list[int]:
        return [*(node.block for node in self.path), *self.own]


class PagedSteps:
    """Compiled steps over a pool of blocks; texts that begin alike share what has been read of their beginning.

    A row's result depends on its text alone, so shared blocks hold what the text's own would.

    Args:
        model: it has a compiled step, and its cache keeps everything.
        most_running: texts at a time.
        most_tokens: of a text.
        most_bytes: of the pool.

    Raises:
        HastenError: the pool would hold no text.
    """

    def __init__(self, model: LanguageModel, most_running: int, most_tokens: int, most_bytes: int) -> None:
        block_bytes = model.new_paged_cache(1, BLOCK, 1).block_bytes
        each = -(-most_tokens // BLOCK)
        # Beside texts that run there is room for as much again, and more, of those that have.
        blocks = min(most_bytes // block_bytes, 4 * most_running * each)
        if blocks < 2:
            raise HastenError(f"a cache of {most_bytes} bytes holds no text: {block_bytes} hold {BLOCK} tokens")
        self.most_tokens = min(most_tokens, blocks * BLOCK)
        self.notes: tuple[str, ...] = ()
        if self.most_tokens < most_tokens:
            self.notes = (f"the cache has room for {self.most_tokens} tokens, the model for {most_tokens}",)
        self._cache = model.new_paged_cache(most_running, self.most_tokens, blocks)
        self._step = CompiledStep(model.network, self._cache)
        self.tree = BlockTree(blocks)
        self._sequences = list(range(most_running - 1, -1, -1))
        self._quantized = self._cache.spec.quantized

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def open(self, text: RunningText) -> bool:
        # The last token is read whatever is known, for its logits.
        most = 0 if text.wants_prompt else (len(text.tokens) - 1) // BLOCK
        path = self.tree.match(text.tokens, most)
        self.tree.use(path)
        own = self.tree.take(-(-len(text.tokens) // BLOCK) - len(path)) if self._sequences else None
        if own is None:
            self.tree.release(path)
            return False
        text.place = place = _Paged(self._sequences.pop(), path, own)
        text.read = len(path) * BLOCK
        self._cache.set_table(place.sequence, place.table)
        self._cache.start(place.sequence, text.read)
        return True

    def close(self, text: RunningText) -> None:
        place: _Paged = text.place
        self._cache.clear(place.sequence)
        self._sequences.append(place.sequence)
        self.tree.release(place.path)
        self.tree.give_back(place.own)
        text.place = None

    def make_room(self, text: RunningText) -> bool:
        place: _Paged = text.place
        if text.read < (len(place.path) + len(place.own)) * BLOCK:
            return True
        taken = self.tree.take(1)
        if taken is None:
            return False
        place.own += taken
        self._cache.set_table(place.sequence, place.table)
        return True

    def follow(self, text: RunningText) -> object:
        place: _Paged = text.place
        if text.wants_prompt or text.read != len(place.path) * BLOCK:
            return None
        found = []
        while (len(place.path) + 1) * BLOCK < len(text.tokens):
            node = self.tree.after(place.path, self._block_of(text, len(place.path)))
            if node is None:
                break
            self.tree.use([node])
            place.path.append(node)
            found.append(node)
        if found:
            self.tree.give_back(place.own[: len(found)])
            del place.own[: len(found)]
            text.read = len(place.path) * BLOCK
            self._cache.set_table(place.sequence, place.table)
            self._cache.start(place.sequence, text.read)
        following = self._block_of(text, len(place.path))
        return (id(place.path[-1]) if place.path else 0, following) if len(following) == BLOCK else None

    def _block_of(self, text: RunningText, index: int) -> tuple[int, ...]:
        return tuple(text.tokens[index * BLOCK : (index + 1) * BLOCK])

    def piece(self, text: RunningText, most: int) -> int:
        return _within_block(text, most) if self._quantized else min(text.unread, most)

    def run(self, plan: Sequence[PlannedRows]) -> Tensor:
        places: list[_Paged] = [p.text.place for p in plan]
        (ids, sequences, positions), answered = _compiled_rows(plan, [place.sequence for place in places])
        logits = self._step(ids, sequences, positions, answered=answered)
        self._cache.advance({place.sequence: p.count for p, place in zip(plan, places, strict=True)})
        for p, place in zip(plan, places, strict=True):
            p.text.read += p.count
            self._enter(p.text, place)
        return logits

    def _enter(self, text: RunningText, place: _Paged) -> None:
        """Whole blocks that were written go into the tree."""
        # Of a quantized cache those that are codes: the newest are the text's own a step longer.
        whole = self._cache.quantized[place.sequence] if self._quantized else text.read // BLOCK
        before = place.table
        while len(place.path) < whole:
            tokens = self._block_of(text, len(place.path))
            place.path.append(self.tree.enter(place.path, tokens, place.own.pop(0)))
        if place.table != before:
            # Another text has written the same meanwhile: one of the two is enough.
            self._cache.set_table(place.sequence, place.table)

    def forget(self) -> None:
        self.tree.forget()

    def blocks(self) -> tuple[int, int, int]:
        return self.tree.used, self.tree.cached, self.tree.free


class SlotSteps:
    """Compiled steps over one cache with a place for each text, as long as any may be.

    Args:
        model: it has a compiled step.
        most_running: places.
        most_tokens: of a text.
        most_bytes: of the cache; texts are shorter where it needs more.

    Raises:
        HastenError: it would hold no text.
    """

    def __init__(self, model: LanguageModel, most_running: int, most_tokens: int, most_bytes: int) -> None:
        # With a window a longer text may take no more.
        needed = most_running * model.new_cache(1, -(-most_tokens // BLOCK) * BLOCK).nbytes
        if needed > most_bytes:
            most_tokens = int(most_tokens * most_bytes / needed) // BLOCK * BLOCK
        if most_tokens < BLOCK:
            raise HastenError(f"a cache of {most_bytes} bytes holds no {most_running} texts: give more, or run fewer")
        self.most_tokens = most_tokens
        self.notes: tuple[str, ...] = (
            "each text has a place of its own in the cache: beginnings are shared only by who goes on where one ended",
        )
        self._cache = model.new_cache(most_running, -(-most_tokens // BLOCK) * BLOCK)
        self._step = CompiledStep(model.network, self._cache)
        self._free = list(range(most_running))  # those that were longest unused come first
        self._kept: list[tuple[int, ...]] = [()] * most_running  # what has been read in each
        spec = self._cache.spec
        self._by_blocks = spec.quantized or spec.window is not None

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def open(self, text: RunningText) -> bool:
        if not self._free:
            return False
        # A window has forgotten what a shorter beginning would need: all that was read there, or nothing.
        going_on = [p for p in self._free if self._kept[p] and self._begins(text, self._kept[p])]
        place = max(going_on, key=lambda p: len(self._kept[p]), default=self._free[0])
        self._free.remove(place)
        text.place, text.read = place, len(self._kept[place]) if going_on else 0
        self._kept[place] = ()
        if not text.read:
            self._cache.lengths[place] = self._cache.quantized[place] = 0
        return True

    def _begins(self, text: RunningText, kept: tuple[int, ...]) -> bool:
        return not text.wants_prompt and len(kept) < len(text.tokens) and tuple(text.tokens[: len(kept)]) == kept

    def close(self, text: RunningText) -> None:
        self._free.append(text.place)
        self._kept[text.place] = tuple(text.tokens[: text.read])
        text.place = None

    def make_room(self, text: RunningText) -> bool:
        return True

    def follow(self, text: RunningText) -> object:
        return None

    def piece(self, text: RunningText, most: int) -> int:
        return _within_block(text, most) if self._by_blocks else min(text.unread, most)

    def run(self, plan: Sequence[PlannedRows]) -> Tensor:
        (ids, sequences, positions), answered = _compiled_rows(plan, [p.text.place for p in plan])
        logits = self._step(ids, sequences, positions, answered=answered)
        counts = [0] * len(self._cache.lengths)
        for p in plan:
            counts[p.text.place] = p.count
            p.text.read += p.count
        self._cache.advance(counts)
        return logits

    def forget(self) -> None:
        self._kept = [()] * len(self._kept)

    def blocks(self) -> tuple[int, int, int]:
        each = -(-self.most_tokens // BLOCK)
        used = len(self._cache.lengths) - len(self._free)
        return used * each, 0, len(self._free) * each


class PlainSteps:
    """The network's own forward, one text after the other, each with a cache of its own.

    Args:
        model: any.
        why: it has no compiled step.
        most_tokens: of a text.

    Raises:
        HastenError: a model whose layers hasten does not know.
    """

    def __init__(self, model: LanguageModel, why: str, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.notes: tuple[str, ...] = (
            f"texts are read one after the other in plain torch, none shares a beginning: {why}",
        )
        model.new_cache(1, BLOCK)  # a model that hasten has no cache for says so now
        self._model = model
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        self._held: dict[int, int] = {}  # bytes of running texts' caches

    @property
    def nbytes(self) -> int:
        return sum(self._held.values())

    def open(self, text: RunningText) -> bool:
        cache = self._model.new_cache(1, min(self.most_tokens, len(text.tokens) + text.most_new))
        cache.decoding = False
        text.place, text.read = cache, 0
        self._held[text.number] = cache.nbytes
        return True

    def close(self, text: RunningText) -> None:
        text.place = None
        del self._held[text.number]

    def make_room(self, text: RunningText) -> bool:
        return True

    def follow(self, text: RunningText) -> object:
        return None

    def piece(self, text: RunningText, most: int) -> int:
        # As generate reads it: rules that choose tokens look at a whole piece.
        return min(text.unread, CHUNK)

    def run(self, plan: Sequence[PlannedRows]) -> Tensor:
        found = [no_logits(self._vocabulary)]
        for p in plan:
            text = p.text
            cache: KVCache = text.place
            ids = torch.tensor([text.tokens[text.read : text.read + p.count]], device=self._model.device)
            out: Any = self._model(ids, past_key_values=cache, logits_to_keep=max(p.answered, 1))
            text.read += p.count
            if not cache.decoding and not text.unread:
                cache.decoding = True
                if cache.spec.policy is not None:
                    cache.spec.policy.prefilled(cache)
            if p.answered:
                found.append(out.logits[0, -p.answered :].float().cpu())
        return torch.cat(found)

    def forget(self) -> None:
        pass

    def blocks(self) -> tuple[int, int, int]:
        return len(self._held), 0, 0
