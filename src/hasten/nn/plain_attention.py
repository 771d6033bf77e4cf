"""Attention as its formula says it: what faster or smaller forms are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def whole_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float = 1.0, causal: bool = False) -> Tensor:
    """softmax(scale q k^T) v with all scores in memory at once: three passes over the keys.

    Args:
        q: (..., queries, size).
        k, v: (..., keys, size of each).
        scale: of the scores.
        causal: whether position i sees the keys up to i only; by a mask of (queries, keys): it saves no work.

    Returns:
        (..., queries, size of v).
    """
    scores = q @ k.transpose(-1, -2)
    if scale != 1:
        scores = scores * scale
    if causal:
        scores = scores + q.new_full(scores.shape[-2:], -math.inf).triu(1)
    return torch.softmax(scores, -1) @ v


def online_attention(q: Tensor, k: Tensor, v: Tensor, *, tile: int = 256) -> Tensor:
    """softmax(q k^T) v in one pass over tiles of keys, with a running maximum and sum (arXiv 1805.02867; FuseMax).

    Args:
        q: (queries, size).
        k, v: (keys, size of each).
        tile: keys whose scores are in memory at once.

    Returns:
        (queries, size of v).
    """
    top = q.new_full((len(q), 1), -torch.inf)
    total, out = q.new_zeros(len(q), 1), q.new_zeros(len(q), v.shape[1])
    for keys, values in zip(k.split(tile), v.split(tile), strict=True):
        scores = q @ keys.T
        high = torch.maximum(top, scores.amax(1, keepdim=True))
        weights = scores.sub_(high).exp_()
        decay = (top - high).exp()
        total = total * decay + weights.sum(1, keepdim=True)
        out = out * decay + weights @ values
        top = high
    return out / total
