"""B'MOJO: attention over recent tokens, over a fading summary, and over tokens that were hard to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.nn.attention import Rotary
from hasten.nn.block import Block, Factory, numbers_of
from hasten.nn.mamba import Mamba
from hasten.nn.states import state_kind

Store = Literal["innovation", "random", "recent"]


def innovation(
    s: Tensor,
    taps: int = 4,
    eps: float = 1e-12,
    *,
    past: Tensor | None = None,
    total: Tensor | None = None,
    position: int = 0,
) -> Tensor:
    """How badly the last outputs predict the next, (batch, length): |s_t - mean of the ``taps`` before|^2 / scale_t.

    The predictor is fixed, and no gradient passes (arXiv 2407.06324, section 4). The scale is the sequence's up to t,
    not the token's own |s_t|^2, with which every quiet token behind a loud one looks new and a loud one does not: it is
    the square of the mean norm so far, or, where that is larger, the mean square over the token and those that it was
    predicted from, so that what a loud token leaves in the predictor does not count as new. Position 0 is predicted
    from nothing and scores 0.

    Args:
        s: a state-space layer's outputs (batch, length, width).
        taps: of the predictor; at the beginning it has those that there are.
        eps: added to the scale.
        past: the outputs before these, up to ``taps`` of them (batch, count, width).
        total: sum of the norms of all outputs before these (batch).
        position: of the first of these.
    """
    s = s.detach().float()
    length = s.shape[1]
    before = s.new_zeros(s.shape[0], 0, s.shape[2]) if past is None else past[:, -taps:]
    padded = torch.cat([F.pad(before, (0, 0, taps - before.shape[1], 0)), s], 1)
    places = torch.arange(position, position + length, device=s.device)
    there = places.clamp(max=taps)
    guess = torch.stack([padded[:, taps - k : taps - k + length] for k in range(1, taps + 1)]).sum(0)
    guess = guess / there.clamp(min=1)[:, None]
    squares = padded.square().sum(-1)
    near = torch.stack([squares[:, taps - k : taps - k + length] for k in range(taps + 1)]).sum(0) / (there + 1)
    norms = squares[:, taps:].double().sqrt().cumsum(1)
    mean = (norms if total is None else norms + total[:, None]) / (places + 1)
    scale = torch.maximum(near, mean.square().float())
    return (s - guess).square().sum(-1) / (scale + eps) * (places > 0)


def merge(outputs: list[Tensor], sizes: list[Tensor]) -> Tensor:
    """One softmax over several parts from each part's own: outputs (..., width) and log-sum-exps (...).

    An absent part has a log-sum-exp of -inf.
    """
    largest = torch.stack(sizes).amax(0)
    weights = [torch.exp(size - largest) for size in sizes]
    total = torch.stack(weights).sum(0)
    parts = (o * w[..., None] for o, w in zip(outputs, weights))
    return torch.stack(list(parts)).sum(0) / total[..., None]


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: q (..., queries, size), k and v (..., keys, size), seen broadcast over logits.

    Where nothing is seen the output is 0 and the log-sum-exp -inf.
    """
    logits = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    logits = logits.masked_fill(~seen, -torch.inf)
    size = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - size.masked_fill(size == -torch.inf, 0.0)[..., None])
    return weights @ v, size


@dataclass
class BMojoState:
    """What a layer carries from token to token: constant in size; of key heads, however many queries share one.

    Args:
        position: tokens seen.
        ssm: the fading memory's own state.
        recent: keys, values (batch, key heads, count, size) and scores (batch, count) of the tokens that the window
            holds or that have left it since the last commit: fewer than a window and the tokens between commits.
        fading: keys and values of the outputs of the state-space layer, the last 2w - 1.
        kept: keys, values, scores and positions of the store; a score is -inf where nothing may be recalled.
        past: the last outputs of the state-space layer (batch, up to taps, width), for the next innovation.
        loudness: sum of the norms of all its outputs (batch), fp64.
    """

    position: int
    ssm: Any
    recent: tuple[Tensor, Tensor, Tensor]
    fading: tuple[Tensor, Tensor]
    kept: tuple[Tensor, Tensor, Tensor, Tensor]
    past: Tensor
    loudness: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By name, without empty ones."""
        named: dict[str, Any] = {
            "window": dict(zip(("keys", "values", "scores"), self.recent, strict=True)),
            "fading": dict(zip(("keys", "values"), self.fading, strict=True)),
            "store": dict(zip(("keys", "values", "scores", "positions"), self.kept, strict=True)),
            "past": self.past,
            "loudness": self.loudness,
        }
        return {name: tensor for name, tensor in _named(named) if tensor.numel()} | state_tensors(self.ssm)


state_kind(BMojoState)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in dictionaries, sequences and dataclasses, by where it stands."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, f"{name}.{key}" if name else str(key))


def state_tensors(state: Any) -> dict[str, Tensor]:
    """The tensors of any state-space block's state, by name; one without a name is ``ssm``."""
    return {f"ssm.{name}".rstrip(".") if not name[:1].isalpha() else name: tensor for name, tensor in _named(state)}


@dataclass(frozen=True)
class _Chunks:
    """Tokens from ``begin`` on in ``count`` chunks between commits: begins (chunks), the first of which is
    ``first`` and the last ``last``; ``lead``, the first chunk's first query; and queries (chunks, rows)."""

    first: int
    last: int
    count: int
    begins: Tensor
    lead: int
    queries: Tensor
    begin: int


def _last(x: Tensor, count: int) -> Tensor:
    """The last of (batch, [heads,] length, size), without holding on to the storage of the others."""
    return x if x.shape[-2] <= count else x[..., x.shape[-2] - count :, :].clone()


class BMojo(Block):
    """Eidetic and fading memory under one softmax (arXiv 2407.06324, section 4).

    Query i attends to the inputs of its window [i-w+1, i] exactly; to the outputs of a state-space layer at
    [i-2w+1, i-w], each a summary of all before it; and to up to ``memory`` older inputs that were chosen because the
    state-space layer predicted them badly. Without store it is B'MOJO-F, without store and fading part a
    sliding-window attention, with a window as long as the text full attention.

    Args:
        width: of input and output.
        heads, kv_heads: of queries, and of keys and values.
        window: w.
        memory: M, tokens of the store.
        ssm: any state-space block (batch, length, width) to the same; a Mamba block when None. One with ``new_state``
            is given its state as a second argument and moves it on, or returns (output, state) as `S5` does; what one
            without returns in that way is its state. Without ``fading`` and ``memory`` there is none.
        fading: whether the fading part is attended to.
        tied: the fading part shares the projections of the window.
        norm: RMSNorm of queries and keys.
        rotary: whether keys and queries carry their positions.
        store: what is kept: the largest innovations, or as controls random tokens or the most recent ones.
        threshold: tokens of smaller innovation are never kept.
        commit: the store takes in what has left the window every so many tokens; the window when None.
        taps: of the predictor, see `innovation`.
        device, dtype: as torch's modules take them.

    Shape:
        u (batch, length, width) to the same.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 4,
        kv_heads: int | None = None,
        window: int = 64,
        memory: int = 32,
        ssm: nn.Module | None = None,
        fading: bool = True,
        tied: bool = True,
        norm: bool = False,
        rotary: bool = True,
        store: Store = "innovation",
        threshold: float | None = None,
        commit: int | None = None,
        taps: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        kv_heads = kv_heads or heads
        if width % heads or heads % kv_heads or (width // heads) % 2:
            raise ValueError(f"{heads} heads must divide a width of {width} evenly, and {kv_heads} key heads the heads")
        if window < 1 or memory < 0 or (commit is not None and commit < 1):
            raise ValueError("window and commit are at least 1, memory at least 0")
        if store not in ("innovation", "random", "recent"):
            raise ValueError(f"the store keeps by innovation, random or recent, not {store!r}")
        self.width, self.heads, self.kv_heads, self.size = width, heads, kv_heads, width // heads
        self.window, self.memory, self.fading, self.store = window, memory, fading, store
        self.threshold, self.commit, self.taps = threshold, commit or window, taps
        self.rotary = Rotary(self.size) if rotary else None
        needed = fading or (memory > 0 and store == "innovation")
        self.ssm = (ssm or Mamba(width, **made)) if needed else None
        self.query = nn.Linear(width, width, bias=False, **made)
        self.key_value = nn.Linear(width, 2 * kv_heads * self.size, bias=False, **made)
        apart = fading and not tied
        self.fading_query = nn.Linear(width, width, bias=False, **made) if apart else None
        self.fading_key_value = nn.Linear(width, 2 * kv_heads * self.size, bias=False, **made) if apart else None
        self.query_norm = nn.RMSNorm(self.size, eps=1e-6, **made) if norm else None
        self.key_norm = nn.RMSNorm(self.size, eps=1e-6, **made) if norm else None
        self.out = nn.Linear(width, width, bias=False, **made)

    # -- projections ---------------------------------------------------------------------------------

    def _queries(self, u: Tensor, positions: Tensor, projection: nn.Linear) -> Tensor:
        q = projection(u).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        q = self.query_norm(q) if self.query_norm is not None else q
        return self.rotary.turn(q, positions) if self.rotary is not None else q

    def _keys(self, x: Tensor, positions: Tensor, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, key heads, length, size)."""
        k, v = projection(x).unflatten(-1, (2 * self.kv_heads, self.size)).transpose(1, 2).chunk(2, 1)
        k = self.key_norm(k) if self.key_norm is not None else k
        return (self.rotary.turn(k, positions) if self.rotary is not None else k), v

    def _scores(
        self, s: Tensor | None, length: int, batch: int, first: int, device: torch.device,
        state: BMojoState | None = None,
    ) -> Tensor:  # fmt: skip
        """What decides who is kept, (batch, length) from position ``first`` on; -inf for who never is."""
        positions = torch.arange(first, first + length, device=device)
        if self.store == "recent":
            return positions.float().expand(batch, -1)
        if self.store == "random":
            # A number for each position that looks random, the same in training and decoding.
            mixed = (positions * 2654435761 + 12345) % 2**32
            mixed = (mixed ^ (mixed >> 15)) * 2246822519 % 2**32
            return ((mixed ^ (mixed >> 13)).double() / 2**32).float().expand(batch, -1)
        assert s is not None
        past, total = (None, None) if state is None else (state.past, state.loudness)
        found = innovation(s, self.taps, past=past, total=total, position=first)
        return found if self.threshold is None else found.masked_fill(found <= self.threshold, -torch.inf)

    def _faded(self, u: Tensor, state: BMojoState | None) -> Tensor | None:
        """Outputs of the state-space block, and its state moved on, whichever of its two ways it has of saying so."""
        if self.ssm is None:
            return None
        answer = self.ssm(u) if state is None or state.ssm is None else self.ssm(u, state.ssm)
        s, last = answer if isinstance(answer, tuple) else (answer, None if state is None else state.ssm)
        if s.shape != u.shape:
            raise ValueError(f"the state-space block makes {tuple(s.shape)} of {tuple(u.shape)}: it must keep the size")
        if state is not None:
            state.ssm = last
        return s

    # -- any number of tokens --------------------------------------------------------------------------

    def forward(self, u: Tensor, state: BMojoState | None = None) -> Tensor:
        """The layer's output; with a state, of the tokens that follow it, and the state is moved on.

        Raises:
            ValueError: the state-space block does not keep the shape.
        """
        batch, length, _ = u.shape
        if not length:
            return self.out(u)
        begin, w = (0 if state is None else state.position), self.window
        end = begin + length
        positions = torch.arange(begin, end, device=u.device)
        s = self._faded(u, state)
        q = self._queries(u, positions, self.query)
        k, v = self._keys(u, positions, self.key_value)
        scores = None
        if self.memory and (state is not None or length > w):
            scores = self._scores(s, length, batch, begin, u.device, state)
        if state is not None:
            k, v = torch.cat([state.recent[0], k], 2), torch.cat([state.recent[1], v], 2)
            scores = None if scores is None else torch.cat([state.recent[2], scores], 1)
        chunks = self._chunks(begin, end, u.device)
        parts = [self._near(q, k, v, chunks, end - k.shape[2], -min(w, k.shape[2]) + 1, min(w, k.shape[2]))]
        if self.fading:
            assert s is not None
            fq = q if self.fading_query is None else self._queries(u, positions, self.fading_query)
            fk, fv = self._keys(s, positions, self.fading_key_value or self.key_value)
            if state is not None:
                fk, fv = torch.cat([state.fading[0], fk], 2), torch.cat([state.fading[1], fv], 2)
                state.fading = _last(fk, 2 * w - 1), _last(fv, 2 * w - 1)
            if end > w:
                parts.append(self._near(fq, fk, fv, chunks, end - fk.shape[2], -2 * w + 1, w))
        if scores is not None:
            parts += self._recalled(q, k, v, scores, chunks, end - k.shape[2], state)
        if state is not None:
            self._move(state, s, k, v, scores, end, chunks.last)
        y = merge([part[0] for part in parts], [part[1] for part in parts]).flatten(2, 3)
        y = y[:, :, begin - chunks.first :][:, :, :length] if chunks.count > 1 else y
        return self.out(y.transpose(1, 2).reshape(batch, length, self.width))

    if TYPE_CHECKING:
        __call__ = forward

    def _chunks(self, begin: int, end: int, device: torch.device) -> _Chunks:
        first, last = (place // self.commit * self.commit for place in (begin, end - 1))
        begins = torch.arange(first, last + 1, self.commit, device=device)
        if len(begins) == 1:
            return _Chunks(first, last, 1, begins, begin, torch.arange(begin, end, device=device)[None], begin)
        queries = begins[:, None] + torch.arange(self.commit, device=device)
        # A place outside is computed as the nearest inside, and dropped: one that sees nothing would have no gradient.
        queries = queries.clamp(begin, end - 1)
        return _Chunks(first, last, len(begins), begins, first, queries, begin)

    def _near(
        self, q: Tensor, k: Tensor, v: Tensor, chunks: _Chunks, base: int, first: int, span: int
    ) -> tuple[Tensor, Tensor]:
        """Attention of each query to ``span`` keys from ``first`` behind itself; the first key is at ``base``."""
        count = chunks.queries.shape[1] + span - 1
        if chunks.count == 1:
            # One chunk reads those keys only that there are.
            low, high = max(base, chunks.lead + first), min(base + k.shape[2], chunks.lead + first + count)
            where = torch.arange(low, high, device=k.device)[None]
        else:
            where = chunks.begins[:, None] + first + torch.arange(count, device=k.device)
        apart = where[:, None, :] - chunks.queries[:, :, None]
        inside = (where >= base) & (where < base + k.shape[2])
        seen = (apart >= first) & (apart < first + span) & inside[:, None]
        at = (where - base).clamp(0, k.shape[2] - 1)
        return self._attend(q[:, :, chunks.queries - chunks.begin], k[:, :, at], v[:, :, at], seen[None, None])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """`attend` with the queries of a key head as more rows of it.

        q (batch, heads, chunks, rows, size), k and v (batch, key heads, chunks, keys, size), seen (batch or 1, 1,
        chunks, rows or 1, keys).
        """
        times, rows = self.heads // self.kv_heads, q.shape[3]
        if times == 1:
            return attend(q, k, v, seen)
        q = q.unflatten(1, (self.kv_heads, times)).transpose(2, 3).flatten(3, 4)
        seen = seen[:, :, :, None].expand(-1, -1, -1, times, rows, -1).flatten(3, 4)
        o, size = (part.unflatten(3, (times, rows)).transpose(2, 3).flatten(1, 2) for part in attend(q, k, v, seen))
        return o, size

    def _recalled(
        self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor, chunks: _Chunks, base: int, state: BMojoState | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Attention of every chunk to the store as it was at its begin: the largest of what had left the window."""
        batch, left = len(scores), max(0, chunks.last - self.window - base + 1)
        k, v, scores = k[:, :, :left], v[:, :, :left], scores[:, :left]
        ready = torch.arange(base, base + left, device=k.device) <= (chunks.begins - self.window)[:, None]
        if state is not None:
            k, v = torch.cat([state.kept[0], k], 2), torch.cat([state.kept[1], v], 2)
            scores = torch.cat([state.kept[2], scores], 1)
            ready = F.pad(ready, (state.kept[2].shape[1], 0), value=True)
        if not scores.shape[1]:
            return []
        candidates = scores[:, None].masked_fill(~ready, -torch.inf)
        count = min(self.memory, scores.shape[1])
        shape = batch, self.kv_heads, chunks.count, count, self.size
        if left:
            best = candidates.sort(dim=-1, descending=True, stable=True)
            chosen, there = best.indices[..., :count], best.values[..., :count] > -torch.inf  # (batch, chunks, count)
            index = chosen.flatten(1)[:, None, :, None].expand(-1, self.kv_heads, -1, self.size)
            k, v = k.gather(2, index).view(shape), v.gather(2, index).view(shape)
        else:
            k, v, there = k[:, :, None], v[:, :, None], candidates > -torch.inf
        return [self._attend(q[:, :, chunks.queries - chunks.begin], k, v, there[:, None, :, None])]

    def _move(
        self, state: BMojoState, s: Tensor | None, k: Tensor, v: Tensor, scores: Tensor | None, end: int, last: int
    ) -> None:
        """The state behind the tokens up to ``end``, the last chunk of which begins at ``last``."""
        base = end - k.shape[2]
        state.position = end
        if s is not None and scores is not None and self.store == "innovation":
            s = s.detach().float()
            state.loudness = state.loudness + s.double().square().sum(-1).sqrt().sum(1)
            state.past = _last(torch.cat([state.past, s], 1), self.taps)
        if scores is None:
            rest = _last(k, self.window - 1), _last(v, self.window - 1)
            state.recent = (*rest, state.recent[2])
            return
        left = max(0, last - self.window - base + 1)
        if left:
            # Of equals the earlier stays.
            both = torch.cat([state.kept[2], scores[:, :left]], 1)
            chosen = both.sort(dim=-1, descending=True, stable=True).indices[:, : self.memory].sort(-1).values
            index = chosen[:, None, :, None].expand(-1, self.kv_heads, -1, self.size)
            keys, values = (
                torch.cat([kept, new[:, :, :left]], 2).gather(2, index)
                for kept, new in zip(state.kept[:2], (k, v), strict=True)
            )
            fresh = torch.arange(base, base + left, device=k.device).expand(len(both), -1)
            places = torch.cat([state.kept[3], fresh], 1).gather(1, chosen)
            state.kept = keys, values, both.gather(1, chosen), places
        count = k.shape[2] - left
        state.recent = _last(k, count), _last(v, count), scores[:, left:].clone()

    # -- token by token --------------------------------------------------------------------------------

    def new_state(self, batch: int) -> BMojoState:
        """The state before any token."""
        return self.state_at(batch, 0)

    def state_at(self, batch: int, position: int) -> BMojoState:
        """A state of zeros of the size that it has behind ``position`` tokens: to describe a step there."""
        like, w = numbers_of(self), self.window
        last = max(0, position - 1) // self.commit * self.commit
        left = max(0, last - w + 1) if self.memory else max(0, position - w + 1)

        def keys(count: int) -> tuple[Tensor, Tensor]:
            shape = batch, self.kv_heads, count, self.size
            return like.new_zeros(shape), like.new_zeros(shape)

        def scores(count: int) -> Tensor:
            return like.new_zeros(batch, count, dtype=torch.float32)

        kept = min(self.memory, left)
        rated = self.memory > 0 and self.store == "innovation"
        ssm = self.ssm.new_state(batch) if hasattr(self.ssm, "new_state") else None  # type: ignore[operator, union-attr]
        return BMojoState(
            position,
            ssm,
            (*keys(position - left), scores(position - left if self.memory else 0)),
            keys(min(position, 2 * w - 1) if self.fading else 0),
            (*keys(kept), scores(kept), like.new_zeros(batch, kept, dtype=torch.int64)),
            like.new_zeros(batch, min(position, self.taps) if rated else 0, self.width, dtype=torch.float32),
            like.new_zeros(batch, dtype=torch.float64),
        )

    def step(self, u: Tensor, state: BMojoState) -> Tensor:
        """One token a sequence, u (batch, width) to (batch, width); the same as the whole sequence gives."""
        return self.forward(u[:, None], state)[:, 0]

    def extra_repr(self) -> str:
        return f"{self.width}, heads={self.heads}, window={self.window}, memory={self.memory}, fading={self.fading}"
