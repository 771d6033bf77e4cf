"""B'MOJO: attention over recent tokens, over a fading summary, and over tokens that were hard to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.nn.attention import Rotary
from hasten.nn.mamba import Mamba

Store = Literal["innovation", "random", "recent"]


def innovation(s: Tensor, taps: int = 4, eps: float = 1e-6) -> Tensor:
    """How badly the last outputs predict the next: |s_t - mean of the ``taps`` before|^2 / |s_t|^2, (batch, length).

    The predictor is fixed, and no gradient passes (arXiv 2407.06324, section 4).

    Args:
        s: a state-space layer's outputs (batch, length, width).
        taps: of the predictor; at the beginning it has those that there are.
    """
    s = s.detach().float()
    length = s.shape[1]
    padded = F.pad(s, (0, 0, taps, 0))
    total = torch.stack([padded[:, taps - k : taps - k + length] for k in range(1, taps + 1)]).sum(0)
    there = torch.arange(length, device=s.device).clamp(1, taps)
    guess = total / there[:, None]
    return (s - guess).square().sum(-1) / (s.square().sum(-1) + eps)


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
    """What a layer carries from token to token: constant in size.

    Args:
        position: tokens seen.
        ssm: the fading memory's own state.
        window: keys and values of the last w tokens, their scores and positions.
        fading: keys and values of the last 2w outputs of the state-space layer.
        kept: keys, values, scores and positions of the store; -inf where it is empty.
        past: the last outputs, for the next innovation.
        waiting: what has left the window since the last commit.
    """

    position: int
    ssm: Any
    window: list[tuple[Tensor, Tensor, Tensor]]
    fading: list[tuple[Tensor, Tensor]]
    kept: tuple[Tensor, Tensor, Tensor, Tensor]
    past: list[Tensor]
    waiting: list[tuple[int, tuple[Tensor, Tensor, Tensor]]]


class BMojo(nn.Module):
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
        ssm: any module (batch, length, width) to the same, with ``step`` and ``new_state`` for decoding; a Mamba block
            when None. Without ``fading`` and ``memory`` there is none.
        fading: whether the fading part is attended to.
        tied: the fading part shares the projections of the window.
        norm: RMSNorm of queries and keys.
        rotary: whether keys and queries carry their positions.
        store: what is kept: the largest innovations, or as controls random tokens or the most recent ones.
        threshold: tokens of smaller innovation are never kept.
        commit: the store takes in what has left the window every so many tokens; the window when None.
        taps: of the predictor, see `innovation`.

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
    ) -> None:
        super().__init__()
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
        self.ssm = (ssm or Mamba(width)) if needed else None
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * kv_heads * self.size, bias=False)
        apart = fading and not tied
        self.fading_query = nn.Linear(width, width, bias=False) if apart else None
        self.fading_key_value = nn.Linear(width, 2 * kv_heads * self.size, bias=False) if apart else None
        self.query_norm = nn.RMSNorm(self.size, eps=1e-6) if norm else None
        self.key_norm = nn.RMSNorm(self.size, eps=1e-6) if norm else None
        self.out = nn.Linear(width, width, bias=False)

    # -- projections ---------------------------------------------------------------------------------

    def _queries(self, u: Tensor, positions: Tensor, projection: nn.Linear) -> Tensor:
        q = projection(u).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        q = self.query_norm(q) if self.query_norm is not None else q
        return self.rotary.turn(q, positions) if self.rotary is not None else q

    def _keys(self, x: Tensor, positions: Tensor, projection: nn.Linear) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, length, size), each key head repeated for its queries."""
        k, v = projection(x).unflatten(-1, (2 * self.kv_heads, self.size)).transpose(1, 2).chunk(2, 1)
        k = self.key_norm(k) if self.key_norm is not None else k
        k = self.rotary.turn(k, positions) if self.rotary is not None else k
        times = self.heads // self.kv_heads
        return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)

    def _scores(self, s: Tensor | None, length: int, batch: int, first: int, device: torch.device) -> Tensor:
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
        found = innovation(s, self.taps)
        return found if self.threshold is None else found.masked_fill(found <= self.threshold, -torch.inf)

    # -- a whole sequence ------------------------------------------------------------------------------

    def forward(self, u: Tensor, state: BMojoState | None = None) -> Tensor:
        """The layer's output; with a state, token by token, and the state is moved on."""
        if state is not None:
            return torch.stack([self.step(u[:, t], state) for t in range(u.shape[1])], 1)
        batch, length, _ = u.shape
        if not length:
            return u
        w, c = min(self.window, length), min(self.commit, length)
        positions = torch.arange(length, device=u.device)
        s = self.ssm(u) if self.ssm is not None else None
        q = self._queries(u, positions, self.query)
        k, v = self._keys(u, positions, self.key_value)
        chunks = -(-length // c)
        begins = torch.arange(chunks, device=u.device) * c
        queries = begins[:, None] + torch.arange(c, device=u.device)  # (chunks, c): positions
        parts = [(q, k, v, *self._reach(begins, c, -w + 1, w, queries))]
        if self.fading:
            assert s is not None
            fq = q if self.fading_query is None else self._queries(u, positions, self.fading_query)
            fk, fv = self._keys(s, positions, self.fading_key_value or self.key_value)
            parts.append((fq, fk, fv, *self._reach(begins, c, -2 * w + 1, w, queries)))
        outputs, sizes = [], []
        inside = queries.clamp(max=length - 1)
        for pq, pk, pv, where, seen in parts:
            at = where.clamp(0, length - 1)
            o, size = attend(
                pq[:, :, inside], pk[:, :, at], pv[:, :, at], seen & (where >= 0)[:, None] & (where < length)[:, None]
            )
            outputs.append(o)
            sizes.append(size)
        if self.memory and length > w:
            o, size = self._recalled(q[:, :, inside], k, v, self._scores(s, length, batch, 0, u.device), begins)
            outputs.append(o)
            sizes.append(size)
        y = merge(outputs, sizes).reshape(batch, self.heads, -1, self.size)[:, :, :length]
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))

    @staticmethod
    def _reach(begins: Tensor, c: int, first: int, span: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """For each chunk the positions from ``first`` behind its begin on, and which of them a query sees: ``span`` of
        them, from ``first`` behind itself."""
        where = begins[:, None] + first + torch.arange(c + span - 1, device=begins.device)
        apart = where[:, None, :] - queries[:, :, None]
        return where, (apart >= first) & (apart < first + span)

    def _recalled(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of every chunk to the store as it was at its begin: the largest of what had left the window."""
        batch, length = scores.shape
        ready = torch.arange(length, device=k.device) <= (begins - self.window)[:, None]
        candidates = scores[:, None].masked_fill(~ready, -torch.inf)
        count = min(self.memory, length)
        best = candidates.sort(dim=-1, descending=True, stable=True)
        chosen, there = best.indices[..., :count], best.values[..., :count] > -torch.inf  # (batch, chunks, count)
        index = chosen.reshape(batch, 1, -1, 1).expand(-1, self.heads, -1, self.size)
        shape = batch, self.heads, len(begins), count, self.size
        return attend(q, k.gather(2, index).view(shape), v.gather(2, index).view(shape), there[:, None, :, None])

    # -- token by token --------------------------------------------------------------------------------

    def new_state(self, batch: int) -> BMojoState:
        """The state before any token."""
        like = self.out.weight
        none = like.new_zeros(batch, self.heads, 0, self.size)
        empty = like.new_zeros(batch, 0, dtype=torch.float32)
        kept = (none, none, empty, empty.to(torch.int64))
        ssm = self.ssm.new_state(batch) if self.ssm is not None else None  # type: ignore[operator]
        return BMojoState(0, ssm, [], [], kept, [], [])

    def step(self, u: Tensor, state: BMojoState) -> Tensor:
        """One token a sequence, u (batch, width) to (batch, width); the same as the whole sequence gives."""
        i, w = state.position, self.window
        at = torch.tensor([i], device=u.device)
        x = u[:, None]
        s = self.ssm.step(u, state.ssm)[:, None] if self.ssm is not None else None  # type: ignore[operator]
        q = self._queries(x, at, self.query)
        k, v = self._keys(x, at, self.key_value)
        if s is not None and self.store == "innovation":
            recent = torch.stack([*state.past, s[:, 0]], 1)
            score = innovation(recent, self.taps)[:, -1]
            if self.threshold is not None:
                score = score.masked_fill(score <= self.threshold, -torch.inf)
            state.past = [*state.past, s[:, 0].detach()][-self.taps :]
        else:
            score = (
                self._scores(None, 1, len(u), i, u.device)[:, 0] if self.store != "innovation" else u.new_zeros(len(u))
            )
        state.window.append((k, v, score))
        if len(state.window) > w:
            state.waiting.append((i - w, state.window.pop(0)))
        if self.memory and i % self.commit == 0:
            self._commit(state)
        elif not self.memory:
            state.waiting.clear()
        keys: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = [
            (q, torch.cat([e[0] for e in state.window], 2), torch.cat([e[1] for e in state.window], 2), None)
        ]
        if self.fading:
            assert s is not None
            state.fading.append(self._keys(s, at, self.fading_key_value or self.key_value))
            state.fading = state.fading[-2 * w :]
            fq = q if self.fading_query is None else self._queries(x, at, self.fading_query)
            old = state.fading[:-w]  # entry j is position i - len + 1 + j: up to i - w
            if old:
                keys.append((fq, torch.cat([e[0] for e in old], 2), torch.cat([e[1] for e in old], 2), None))
        if self.memory and state.kept[0].shape[2]:
            keys.append((q, state.kept[0], state.kept[1], state.kept[2] > -torch.inf))
        outputs, sizes = [], []
        for pq, pk, pv, there in keys:
            seen = torch.ones(1, dtype=torch.bool, device=u.device) if there is None else there[:, None, None]
            o, size = attend(pq, pk, pv, seen)
            outputs.append(o)
            sizes.append(size)
        state.position += 1
        return self.out(merge(outputs, sizes)[:, :, 0].reshape(len(u), -1))

    def _commit(self, state: BMojoState) -> None:
        """Takes what had left the window into the store; of equals the earlier stays."""
        ready = [entry for position, entry in state.waiting if position <= state.position - self.window]
        places = [position for position, _ in state.waiting if position <= state.position - self.window]
        state.waiting = [one for one in state.waiting if one[0] > state.position - self.window]
        if not ready:
            return
        k = torch.cat([state.kept[0], *(e[0] for e in ready)], 2)
        v = torch.cat([state.kept[1], *(e[1] for e in ready)], 2)
        scores = torch.cat([state.kept[2], torch.stack([e[2].float() for e in ready], 1)], 1)
        fresh = torch.tensor(places, device=k.device).expand(len(scores), -1)
        positions = torch.cat([state.kept[3], fresh], 1)
        chosen = scores.sort(dim=-1, descending=True, stable=True).indices[:, : self.memory].sort(-1).values
        index = chosen[:, None, :, None].expand(-1, self.heads, -1, self.size)
        state.kept = (k.gather(2, index), v.gather(2, index), scores.gather(1, chosen), positions.gather(1, chosen))

    def extra_repr(self) -> str:
        return f"{self.width}, heads={self.heads}, window={self.window}, memory={self.memory}, fading={self.fading}"
