"""Attention to cached keys and values, and the weights that it gives them."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    *,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of (batch, heads, new, d) queries to (batch, kv heads, n, d) keys.

    Args:
        mask: (..., new, n), True for what is seen, or a float that is added to the logits; None: a single row sees all.
        cap: logits x become ``cap * tanh(x / cap)`` (Gemma 2), or None.
        sinks: of each head (heads) a further logit, which takes its share and has no value (gpt-oss), or None.
    """
    shared = query.shape[1] // keys.shape[1]
    if cap is None and sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, mask, scale=scaling, enable_gqa=shared > 1
        )
    scores = torch.matmul(query.float(), keys.float().repeat_interleave(shared, 1).transpose(-1, -2)) * scaling
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)), -1)
    shares = torch.softmax(scores, -1)[..., : keys.shape[2]].to(values.dtype)
    return torch.matmul(shares, values.repeat_interleave(shared, 1)).to(query.dtype)


def weights(query: Tensor, keys: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """The softmax that `attend` would weigh values by: (batch, heads, new, n)."""
    shared = query.shape[1] // keys.shape[1]
    scores = torch.matmul(query.float(), keys.float().repeat_interleave(shared, 1).transpose(-1, -2)) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1)


def grouped(scores: Tensor, kv_heads: int) -> Tensor:
    """(batch, heads, ...) averaged over the query heads of a kv head."""
    return scores.unflatten(1, (kv_heads, -1)).mean(2)


def taken(tensor: Tensor, chosen: Tensor) -> Tensor:
    """Rows (batch, kv heads, k) of (batch, kv heads, n, d)."""
    return tensor.gather(2, chosen[..., None].expand(*chosen.shape, tensor.shape[-1]))


def middle(length: int, sinks: int, local: int, block: int = 1) -> tuple[int, int]:
    """The tokens from the first to before the second that are neither sinks nor local, in whole blocks.

    What is left of the last block belongs to the local tokens.
    """
    first = min(sinks, length)
    return first, first + max(0, length - local - first) // block * block


def beside(chosen: Tensor, length: int, first: int, end: int) -> Tensor:
    """Positions (batch, kv heads, k) chosen from a `middle`, with all that lie before and behind it."""
    every = torch.arange(length, device=chosen.device)
    fixed = torch.cat((every[:first], every[end:]))
    return torch.cat((chosen, fixed.expand(*chosen.shape[:2], -1)), -1)


def widened(tensor: Tensor, length: int) -> Tensor:
    """Zeros behind what is known, up to ``length`` columns."""
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[-1]))
