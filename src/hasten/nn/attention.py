"""Attention, each part written once: rotary positions, masks, grouped queries, sinks, soft caps, latent attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.kernels.gate import wide
from hasten.nn.block import Block, Factory, numbers_of, untouched
from hasten.nn.states import state_kind

Scaling = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]


def turned(x: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool = False) -> Tensor:
    """Pairs of channels turned by an angle each (arXiv 2104.09864); channels behind the pairs stay as they are.

    Args:
        x: (..., length, size).
        cosines, sines: of the angles, (..., length, pairs), in x's dtype, with 2 pairs <= size.
        interleaved: pairs are channels 2i and 2i + 1 (GPT-J, DeepSeek), not i and i + pairs (GPT-NeoX, Llama).
    """
    pairs = cosines.shape[-1]
    rest = x[..., 2 * pairs :]
    rotated = x[..., : 2 * pairs] if rest.shape[-1] else x
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        found = torch.stack([a * cosines - b * sines, b * cosines + a * sines], -1).flatten(-2)
    else:
        a, b = rotated.chunk(2, -1)
        found = torch.cat([a * cosines - b * sines, b * cosines + a * sines], -1)
    return torch.cat([found, rest], -1) if rest.shape[-1] else found


def half(table: Tensor) -> Tensor:
    """Cosines or sines for `turned`, (batch, 1, length, pairs), from transformers' (batch, length, 2 pairs)."""
    return table[:, None, :, : table.shape[-1] // 2]


def turned_by(x: Tensor, angles: Tensor, *, gain: float = 1.0, interleaved: bool = False) -> Tensor:
    """`turned` by angles (..., length, pairs) in fp32; ``gain`` multiplies what is turned, as YaRN does."""
    cosines, sines = angles.cos(), angles.sin()
    if gain != 1.0:
        cosines, sines = cosines * gain, sines * gain
    return turned(x, cosines.to(x.dtype), sines.to(x.dtype), interleaved=interleaved)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (arXiv 2104.09864), and the ways by which a model reads longer texts than it was trained on.

    Args:
        size: channels of a head that are turned, an even number; a head may have more, which stay.
        theta: base; pair i turns by ``theta ** (-2 i / size)`` a position.
        scaling: ``default``; ``linear``, positions over ``factor`` (arXiv 2306.15595); ``dynamic``, a base that grows
            with the text beyond ``trained`` (NTK-aware); ``yarn`` (arXiv 2309.00071); ``longrope``, a divisor for each
            pair (arXiv 2402.13753); ``llama3``, slow pairs over ``factor`` and fast ones as they are; ``proportional``,
            the last pairs stand still.
        factor: how much longer texts are.
        trained: positions before the scaling; needed by all but ``default``, ``linear`` and ``proportional``.
        gain: multiplies cosines and sines; None for what the scaling's paper says.
        fast, slow: ``yarn``: turns within ``trained`` from which on a pair stays, and up to which it is scaled.
            ``llama3``: the same bounds, high and low.
        whole: ``yarn``: bounds are rounded outwards to whole pairs.
        short, long: ``longrope``: a divisor for each pair, for texts up to ``trained`` and beyond.
        still: ``proportional``: pairs that stand still.
        interleaved: which channels make a pair, see `turned`.

    Raises:
        HastenError: a size that is odd, or a scaling without what it needs.
    """

    size: int
    theta: float = 10000.0
    scaling: Scaling = "default"
    factor: float = 1.0
    trained: int = 0
    gain: float | None = None
    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    still: int = 0
    interleaved: bool = False

    def __post_init__(self) -> None:
        if self.size < 2 or self.size % 2:
            raise HastenError(f"rotary positions turn an even number of channels, not {self.size}")
        if self.scaling not in ("default", "linear", "proportional") and self.trained < 1:
            raise HastenError(f"the rotary scaling {self.scaling} needs the positions that the model was trained on")
        if self.scaling == "longrope" and not len(self.short) == len(self.long) == self.size // 2:
            raise HastenError(f"longrope has a divisor for each of the {self.size // 2} pairs, short and long")

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], head_dim: int, positions: int, *, interleaved: bool = False
    ) -> Rotary:
        """From a transformers configuration's ``rope_parameters``.

        Args:
            parameters: ``rope_type``, ``rope_theta`` and what the type takes.
            head_dim: channels of a head; ``partial_rotary_factor`` of them are turned.
            positions: the configuration's ``max_position_embeddings``.
            interleaved: which channels make a pair.

        Raises:
            HastenError: a type that is not known, or one without what it needs.
        """
        p, kind = parameters, parameters.get("rope_type", "default")
        share = float(p.get("partial_rotary_factor") or 1.0)
        size, theta = int(head_dim * share), float(p["rope_theta"])
        trained = int(p.get("original_max_position_embeddings") or 0)
        factor = p.get("factor")
        if factor is None:
            factor = positions / trained if trained else 1.0
        gain = p.get("attention_factor")
        if kind in ("default", "linear"):
            return cls(size, theta, kind, float(factor) if kind == "linear" else 1.0, interleaved=interleaved)
        if kind == "dynamic":
            return cls(size, theta, "dynamic", float(factor), positions, interleaved=interleaved)
        if kind == "proportional":
            still = head_dim // 2 - int(share * head_dim // 2)
            return cls(head_dim, theta, "proportional", float(factor), still=still, interleaved=interleaved)
        if kind == "llama3":
            bounds = float(p["high_freq_factor"]), float(p["low_freq_factor"])
            return cls(size, theta, "llama3", float(factor), trained, None, *bounds, interleaved=interleaved)
        if kind == "yarn":
            if gain is None and p.get("mscale") and p.get("mscale_all_dim"):
                gain = yarn_gain(factor, p["mscale"]) / yarn_gain(factor, p["mscale_all_dim"])
            bounds = float(p.get("beta_fast") or 32), float(p.get("beta_slow") or 1)
            whole = bool(p.get("truncate", True))
            return cls(size, theta, "yarn", float(factor), trained, gain, *bounds, whole, interleaved=interleaved)
        if kind == "longrope":
            short, long = tuple(p["short_factor"]), tuple(p["long_factor"])
            return cls(
                size, theta, "longrope", float(factor), trained, gain, short=short, long=long, interleaved=interleaved
            )
        raise HastenError(f"the rotary scaling {str(kind)[:40]!r} is not known")

    @property
    def grows(self) -> bool:
        """Whether angles depend on the length of the text, too: what was turned before may have to be turned again."""
        return self.scaling in ("dynamic", "longrope")

    @property
    def multiplier(self) -> float:
        """What multiplies cosines and sines."""
        if self.gain is not None:
            return self.gain
        if self.scaling == "yarn":
            return yarn_gain(self.factor)
        if self.scaling == "longrope" and self.factor > 1:
            return math.sqrt(1 + math.log(self.factor) / math.log(self.trained))
        return 1.0

    def rates(self, length: int = 0, device: torch.device | str | None = None) -> Tensor:
        """Angle of each pair for one position, (size / 2) fp32, in a text of ``length`` tokens."""
        half, theta = self.size // 2, self.theta
        if self.scaling == "dynamic":
            longer = self.factor * max(length, self.trained) / self.trained - (self.factor - 1)
            theta = theta * longer ** (self.size / (self.size - 2)) if self.size > 2 else theta
        rates = theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        if self.scaling == "linear":
            return rates / self.factor
        if self.scaling == "proportional":
            # Of all pairs' rates the first, the others none.
            moves = torch.arange(half, device=device) < half - self.still
            return torch.where(moves, rates, 0.0) / self.factor
        if self.scaling == "longrope":
            divisors = self.long if length > self.trained else self.short
            return rates / torch.tensor(divisors, device=device, dtype=torch.float32)
        if self.scaling == "llama3":
            turns = self.trained * rates / (2 * math.pi)
            kept = ((turns - self.slow) / (self.fast - self.slow)).clamp(0, 1)
            return (1 - kept) * rates / self.factor + kept * rates
        if self.scaling == "yarn":
            first, last = (self._pair(turns) for turns in (self.fast, self.slow))
            if self.whole:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, self.size - 1)
            ramp = (torch.arange(half, device=device, dtype=torch.float32) - first) / max(last - first, 1e-3)
            kept = 1 - ramp.clamp(0, 1)
            return rates / self.factor * (1 - kept) + rates * kept
        return rates

    def _pair(self, turns: float) -> float:
        """The pair that turns so often within the trained positions."""
        return self.size * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

    def turn(self, x: Tensor, positions: Tensor, length: int = 0) -> Tensor:
        """x (..., length, size or more) at ``positions``: (length), or as x's dimensions but the last.

        Args:
            x: queries or keys.
            positions: from 0.
            length: of the whole text, where the scaling depends on it; the last position's when 0.
        """
        if self.grows and not length and positions.numel():
            length = int(positions.max()) + 1
        kind = wide(x.dtype)
        angles = positions[..., None].to(kind) * self.rates(length, x.device).to(kind)
        return turned_by(x, angles, gain=self.multiplier, interleaved=self.interleaved)


def yarn_gain(factor: float, weight: float = 1.0) -> float:
    """By how much attention is sharpened in a text ``factor`` times as long (arXiv 2309.00071, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def visible(rows: Tensor, columns: Tensor, window: int | None = None, first: int = 0) -> Tensor:
    """Which tokens (columns) each token (rows) attends to: itself and those before it, bool (rows, columns).

    Args:
        rows, columns: positions.
        window: only so many, itself included; None for all.
        first: tokens at the beginning that a window does not hide.
    """
    mask = columns <= rows[:, None]
    if window is not None:
        near = columns > rows[:, None] - window
        mask &= near | (columns < first) if first else near
    return mask


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention of grouped queries; a row that sees nothing gives 0.

    Args:
        q: (batch, heads, rows, size).
        k, v: (batch, key heads, columns, size); the key heads divide the heads, whose neighbours share one.
        mask: bool, broadcast over (batch, heads, rows, columns), True where a row looks.
        causal: row i looks at columns up to i, in place of a mask.
        scale: of the logits; ``size ** -0.5`` when None.
        cap: logits become ``cap * tanh(logits / cap)`` (Gemma 2, arXiv 2408.00118).
        sinks: a learned logit for each head that takes part in the softmax and has no value (gpt-oss, arXiv
            2508.10925).
    """
    groups = k.shape[1]
    if cap is None and sinks is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != groups
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grouped = q.unflatten(1, (groups, -1))
    logits = (grouped @ k[:, :, None].transpose(-1, -2) * scale).flatten(1, 2)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    logits = logits.to(wide(logits.dtype))
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        column = sinks.to(logits.dtype)[:, None, None].expand(q.shape[0], -1, q.shape[2], -1)
        weights = torch.cat([logits, column], -1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return (weights.to(v.dtype).unflatten(1, (groups, -1)) @ v[:, :, None]).flatten(1, 2)


class LayerCache:
    """Keys and values of one layer (batch, heads, tokens, size), as they grow; a windowed one keeps its window alone.

    Args:
        keys, values: what is there.
        window: tokens that a row sees, itself included; None for all.
        seen: tokens so far.
    """

    def __init__(self, keys: Tensor, values: Tensor, window: int | None = None, seen: int = 0) -> None:
        self.keys, self.values, self.window = keys, values, window
        self.dropped = seen - keys.shape[2]

    @property
    def seen(self) -> int:
        """Tokens so far."""
        return self.dropped + self.keys.shape[2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
        """Takes new ones in; returns what the new tokens may look at and the position of its first."""
        keys, values, first = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2), self.dropped
        kept = keys.shape[2] if self.window is None else min(keys.shape[2], self.window - 1)
        gone = keys.shape[2] - kept
        self.keys, self.values, self.dropped = keys[:, :, gone:], values[:, :, gone:], first + gone
        return keys, values, first

    def cut(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens: what a rejected draft leaves.

        Raises:
            HastenError: a window, in which what came before them is gone.
        """
        if self.window is not None and length < self.seen:
            raise HastenError("a window's cache cannot give tokens back")
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]


def _cache_parts(cache: LayerCache) -> dict[str, Any]:
    return {"keys": cache.keys, "values": cache.values, "dropped": cache.dropped}


def _cache_of(keys: Any, values: Any, dropped: Any, fixed: tuple[int | None]) -> LayerCache:
    # Within a tree there may be anything in the place of tensors and numbers.
    cache = LayerCache.__new__(LayerCache)
    cache.keys, cache.values, cache.dropped, cache.window = keys, values, dropped, fixed[0]
    return cache


state_kind(LayerCache, _cache_parts, _cache_of, lambda cache: (cache.window,))


class GroupedAttention(Block):
    """Causal attention in which several query heads share a key head (arXiv 2305.13245); names as Llama has them.

    Args:
        width: of input and output.
        heads, kv_heads, head_dim: of queries, of keys and values, and channels of each.
        rotary: of queries and keys; None without positions.
        window: tokens that a row sees, itself included; None for all.
        scale, cap: see `attend`.
        sinks: whether a logit a head is learned, see `attend`.
        norm: eps of an RMSNorm of queries and keys (Qwen 3); None without.
        bias, out_bias: of the projections, and of the one that leads back.
        device, dtype: as torch's modules take them.

    Shape:
        x (batch, length, width) to the same.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary: Rotary | None = None,
        window: int | None = None,
        scale: float | None = None,
        cap: float | None = None,
        sinks: bool = False,
        norm: float | None = None,
        bias: bool = False,
        out_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        kv_heads, head_dim = kv_heads or heads, head_dim or width // heads
        if heads % kv_heads:
            raise HastenError(f"{kv_heads} key heads do not divide {heads} heads")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rotary, self.window, self.scale, self.cap = rotary, window, scale, cap
        self.q_proj = nn.Linear(width, heads * head_dim, bias=bias, **made)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=bias, **made)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=bias, **made)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=out_bias, **made)
        self.q_norm = nn.RMSNorm(head_dim, eps=norm, **made) if norm is not None else None
        self.k_norm = nn.RMSNorm(head_dim, eps=norm, **made) if norm is not None else None
        self.sinks = nn.Parameter(torch.zeros(heads, **made)) if sinks else None

    def _start(self) -> None:
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def new_cache(self, batch: int, length: int = 0) -> LayerCache:
        """A cache as after ``length`` tokens (zeros), of ``batch`` sequences."""
        held = length if self.window is None else min(length, self.window - 1)
        like, shape = numbers_of(self), (batch, self.kv_heads, held, self.head_dim)
        return LayerCache(like.new_zeros(shape), like.new_zeros(shape), self.window, length)

    def forward(self, x: Tensor, cache: LayerCache | None = None, padding: Tensor | None = None) -> Tensor:
        """Attention of the new tokens to themselves and to what the cache holds, which grows by them.

        Args:
            x: (batch, length, width).
            cache: what came before, from `new_cache`.
            padding: (batch, columns) bool, False where a column is no token; of the columns that the rows look at.
        """
        batch, length, _ = x.shape
        begin = cache.seen if cache is not None else 0

        def split(t: Tensor, heads: int) -> Tensor:
            return t.view(batch, length, heads, self.head_dim).transpose(1, 2)

        q = split(self.q_proj(x), self.heads)
        k, v = split(self.k_proj(x), self.kv_heads), split(self.v_proj(x), self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = (self.rotary.turn(t, _places(begin, length, x.device)) for t in (q, k))
        first = 0
        if cache is not None:
            k, v, first = cache.extend(k, v)
        rows = torch.arange(begin, begin + length, device=x.device)
        mask = visible(rows, torch.arange(first, first + k.shape[2], device=x.device), self.window)
        if padding is not None:
            mask = mask & padding[:, None, None]
        y = attend(q, k, v, mask=mask, scale=self.scale, cap=self.cap, sinks=self.sinks)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))

    if TYPE_CHECKING:
        __call__ = forward


def _places(begin: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(begin, begin + length, device=device, dtype=torch.float32)


class LatentAttention(Block):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Keys and values come from one latent of a token, and a part of the key that carries the position is shared by all
    heads. A cache keeps either what is expanded, or latents and shared keys alone. Over latents a step may be absorbed:
    the way from latent to keys is applied to the query, the way to values to the result, and attention is that of many
    heads to one (section 2.1.2); the same numbers but for the order of sums.

    Args:
        width: of input and output.
        heads: of queries.
        plain, rotated: channels of a key without and with position.
        value: channels of a value.
        query_rank: of the query's own latent; None for a plain projection.
        latent: rank of keys and values.
        rotary: of the rotated channels.
        scale: of the logits; ``(plain + rotated) ** -0.5`` when None.
        eps: of the latents' norms.
        expanded: the cache keeps keys and values of every head.
        device, dtype: as torch's modules take them.

    Shape:
        x (batch, length, width) to the same.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        plain: int,
        rotated: int,
        value: int,
        query_rank: int | None,
        latent: int,
        rotary: Rotary,
        scale: float | None = None,
        eps: float = 1e-6,
        expanded: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: Factory = {"device": device, "dtype": dtype}
        if rotary.size != rotated:
            raise HastenError(f"the rotary positions turn {rotary.size} channels, of {rotated}")
        self.heads, self.plain, self.rotated, self.value, self.latent = heads, plain, rotated, value, latent
        self.rotary, self.expanded = rotary, expanded
        self.scale = scale
        if query_rank is not None:
            self.q_down = nn.Linear(width, query_rank, bias=False, **made)
            self.q_norm = nn.RMSNorm(query_rank, eps=eps, **made)
        asked = width if query_rank is None else query_rank
        self.q_up = nn.Linear(asked, heads * (plain + rotated), bias=False, **made)
        self.kv_down = nn.Linear(width, latent + rotated, bias=False, **made)
        self.kv_norm = nn.RMSNorm(latent, eps=eps, **made)
        self.kv_up = nn.Linear(latent, heads * (plain + value), bias=False, **made)
        self.out = nn.Linear(heads * value, width, bias=False, **made)
        self.query_rank = query_rank

    def new_cache(self, batch: int, length: int = 0) -> LayerCache:
        """A cache as after ``length`` tokens (zeros), of ``batch`` sequences."""
        like = numbers_of(self)
        if self.expanded:
            sizes = (self.heads, self.plain + self.rotated), (self.heads, self.value)
        else:
            sizes = (1, self.latent), (1, self.rotated)
        keys, values = (like.new_zeros(batch, heads, length, size) for heads, size in sizes)
        return LayerCache(keys, values, None, length)

    def forward(self, x: Tensor, cache: LayerCache | None = None, absorbed: bool | None = None) -> Tensor:
        """Attention of the new tokens to themselves and to what the cache holds, which grows by them.

        Args:
            x: (batch, length, width).
            cache: what came before, from `new_cache`.
            absorbed: attend to latents; None does so for a single token over a cache of them, where the way up from
                them is a plain layer.

        Raises:
            HastenError: absorbed over a cache of expanded keys, or through a layer that is more than its weight.
        """
        length = x.shape[1]
        begin = cache.seen if cache is not None else 0
        if absorbed and self.expanded:
            raise HastenError("a cache of expanded keys has no latents to attend to: expanded=False")
        if absorbed and not untouched(self.kv_up):
            raise HastenError(
                "kv_up is wrapped, packed or has hooks, which absorbing it would go around: absorbed=False"
            )
        if absorbed is None:
            absorbed = cache is not None and length == 1 and not self.expanded and untouched(self.kv_up)
        q = self._split(self.q_up(x if self.query_rank is None else self.q_norm(self.q_down(x))))
        low, shared = self.kv_down(x).split([self.latent, self.rotated], -1)
        if self.expanded:
            k, v = self._split(self.kv_up(self.kv_norm(low))).split([self.plain, self.value], -1)
            q = torch.cat([q[..., : self.plain], self._turn(q[..., self.plain :], begin)], -1)
            turned_keys = self._turn(shared[:, None], begin).expand(-1, self.heads, -1, -1)
            k = torch.cat([k, turned_keys], -1)
            if cache is not None:
                k, v, _ = cache.extend(k, v)
        else:
            q = torch.cat([q[..., : self.plain], self._turn(q[..., self.plain :], begin)], -1)
            latents, keys = self.kv_norm(low)[:, None], self._turn(shared[:, None], begin)
            if cache is not None:
                latents, keys, _ = cache.extend(latents, keys)
            if absorbed:
                return self._absorbed(q, latents, keys, begin)
            k, v = self._split(self.kv_up(latents[:, 0])).split([self.plain, self.value], -1)
            k = torch.cat([k, keys.expand(-1, self.heads, -1, -1)], -1)
        return self._out(self._attend(q, k, v, begin))

    if TYPE_CHECKING:
        __call__ = forward

    def _absorbed(self, q: Tensor, latents: Tensor, keys: Tensor, begin: int) -> Tensor:
        up = self.kv_up.weight.view(self.heads, self.plain + self.value, self.latent)
        to_keys, to_values = up.split([self.plain, self.value], 1)
        q = torch.cat([q[..., : self.plain] @ to_keys, q[..., self.plain :]], -1)
        y = self._attend(q, torch.cat([latents, keys], -1), latents, begin, (self.plain + self.rotated) ** -0.5)
        return self._out(y @ to_values.transpose(-1, -2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, begin: int, scale: float | None = None) -> Tensor:
        length, mask = q.shape[2], None
        if begin and length > 1:
            mask = torch.ones(length, begin + length, dtype=torch.bool, device=q.device).tril(begin)
        return attend(q, k, v, mask=mask, causal=not begin, scale=self.scale or scale)

    def _split(self, t: Tensor) -> Tensor:
        return t.view(t.shape[0], t.shape[1], self.heads, t.shape[-1] // self.heads).transpose(1, 2)

    def _turn(self, x: Tensor, begin: int) -> Tensor:
        return self.rotary.turn(x, _places(begin, x.shape[2], x.device))

    def _out(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).reshape(y.shape[0], y.shape[2], self.heads * self.value))
