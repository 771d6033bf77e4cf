"""Attention as cascades of Einsums, in 3, 2 and 1 passes over the keys.

The cascades are those of FuseMax (arXiv 2406.10491, section V). Ranks: p queries, m keys (m1 tiles of m0),
e channels of queries and keys, f channels of values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor as TorchTensor

from hasten.errors import HastenError
from hasten.workload.einsum import Cascade
from hasten.workload.notation import parse_cascade

_SCORES = """
input Q[p, e] {dtype}
input K[m, e] {dtype}
input V[m, f] {dtype}
output AV
QK[p, m] = sum(e) Q[p, e] * K[m, e]
GM[p] = max(m) QK[p, m]
SN[p, m] = sub-exp(QK[p, m], GM[p])
SD[p] = sum(m) SN[p, m]
"""
_THREE = f"""{_SCORES}
A[p, m] = SN[p, m] / SD[p]
AV[p, f] = sum(m) A[p, m] * V[m, f]
"""
_TWO = f"""{_SCORES}
SNV[p, f] = sum(m) SN[p, m] * V[m, f]
AV[p, f] = SNV[p, f] / SD[p]
"""
_TILES = """
input Q[p, e] {dtype}
input K[m1, m0, e] {dtype}
input V[m1, m0, f] {dtype}
input PAD[m1, m0] {dtype}
output AV
BQK[p, m1, m0] = sum(e) Q[p, e] * K[m1, m0, e]
QK[p, m1, m0] = BQK[p, m1, m0] + PAD[m1, m0]
LM[p, m1] = max(m0) QK[p, m1, m0]
"""
_LOCAL = f"""{_TILES}
SLN[p, m1, m0] = sub-exp(QK[p, m1, m0], LM[p, m1])
SLD[p, m1] = sum(m0) SLN[p, m1, m0]
GM[p] = max(m1) LM[p, m1]
PM[p, m1] = sub-exp(LM[p, m1], GM[p])
SD[p] = sum(m1) times(SLD[p, m1], PM[p, m1])
SN[p, m1, m0] = times(SLN[p, m1, m0], PM[p, m1])
SNV[p, f] = sum(m1, m0) SN[p, m1, m0] * V[m1, m0, f]
AV[p, f] = SNV[p, f] / SD[p]
"""
# The paper's own Einsums: a running value is read a step before it is written.
_ONE = f"""{_TILES}
RM[p, 0] = -inf
RD[p, 0] = 0
RNV[p, 0, f] = 0
RM[p, m1+1] = max(RM[p, m1], LM[p, m1]) along m1
SLN[p, m1, m0] = sub-exp(QK[p, m1, m0], RM[p, m1+1])
SLD[p, m1] = sum(m0) SLN[p, m1, m0]
SLNV[p, m1, f] = sum(m0) SLN[p, m1, m0] * V[m1, m0, f]
PRM[p, m1] = sub-exp(RM[p, m1], RM[p, m1+1])
SPD[p, m1] = times(PRM[p, m1], RD[p, m1])
RD[p, m1+1] = SPD[p, m1] + SLD[p, m1] along m1
SPNV[p, m1, f] = times(PRM[p, m1], RNV[p, m1, f])
RNV[p, m1+1, f] = SPNV[p, m1, f] + SLNV[p, m1, f] along m1
AV[p, f] = RNV[p, {{tiles}}, f] / RD[p, {{tiles}}]
"""
_KINDS = {"three-pass": _THREE, "two-pass": _TWO, "local-max": _LOCAL, "one-pass": _ONE}


def attention(kind: str, *, p: int, m: int, e: int, f: int, m0: int = 0, dtype: str = "fp32") -> Cascade:
    """A cascade that computes softmax(Q K^T) V for Q (p, e), K (m, e), V (m, f).

    Args:
        kind: ``three-pass`` (stable softmax), ``two-pass`` (the division deferred), ``local-max`` (two
            passes, a maximum for each tile of keys), ``one-pass`` (running maximum and sum, the cascade of
            FlashAttention-2).
        p, m, e, f: sizes.
        m0: keys a tile, for the last two. Keys and values are padded to whole tiles; the cascade masks the
            padding itself.
        dtype: of every tensor.

    Raises:
        HastenError: an unknown kind, or a size below 1.
    """
    if kind not in _KINDS:
        raise HastenError(f"unknown attention cascade {kind!r}: choose one of {', '.join(_KINDS)}")
    m0 = m0 or m
    if min(p, m, e, f, m0) < 1:
        raise HastenError("an attention cascade needs sizes of at least 1: check p, m, e, f and m0")
    tiles = -(-m // m0)
    sizes = f"ranks p={p}, m={m}, m1={tiles}, m0={m0}, e={e}, f={f}\n"
    return parse_cascade(sizes + _KINDS[kind].format(dtype=dtype, tiles=tiles))


def tiled(tensor: TorchTensor, m0: int) -> TorchTensor:
    """Splits the first rank (m) into (m1, m0), padded with zeros to whole tiles."""
    m = tensor.shape[0]
    padded = torch.cat((tensor, tensor.new_zeros(-m % m0, *tensor.shape[1:])))
    return padded.reshape(-1, m0, *tensor.shape[1:])


def padding(m: int, m0: int, dtype: torch.dtype = torch.float32) -> TorchTensor:
    """The mask (m1, m0) that a tiled cascade adds to its scores: 0 for a key, -inf for padding."""
    places = torch.arange(-(-m // m0) * m0)
    mask = torch.zeros(places.shape, dtype=dtype).masked_fill(places >= m, -math.inf)
    return mask.reshape(-1, m0)
