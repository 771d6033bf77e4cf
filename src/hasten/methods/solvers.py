"""Pruning and rounding of one weight matrix with regard to its inputs: Wanda, SparseGPT, GPTQ, and both at once.

A matrix is (out, in), its inputs X (n, in) enter as H = X^T X. With 2:4 sparsity two of every four consecutive inputs
stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.groups import half_scales

DAMPING = 0.01


@dataclass(frozen=True)
class Rounding:
    """Asymmetric codes of ``bits`` with a scale (fp16) and a whole zero point for each group of inputs.

    Args:
        bits: of a code.
        group: inputs that share them.
    """

    bits: int = 2
    group: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8 or self.group < 4:
            raise HastenError("codes have 1 to 8 bits in groups of at least 4")

    def scales(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero) (out, 1) of one group (out, group), the range shrunk where that errs less."""
        levels = 2**self.bits - 1
        low, high = part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0)
        best = torch.full_like(low, torch.inf)
        kept = (torch.ones_like(low), torch.zeros_like(low))
        for shrink in torch.linspace(1.0, 0.4, 13).tolist():
            scale = half_scales((high - low) * shrink / levels).float().clamp(min=2.0**-24)
            zero = torch.round(-low * shrink / scale).clamp(0, levels)
            error = (self.apply(part, scale, zero) - part).square().sum(1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            kept = (torch.where(better, scale, kept[0]), torch.where(better, zero, kept[1]))
        return kept

    def apply(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Values as their codes have them."""
        return scale * ((torch.round(values / scale) + zero).clamp(0, 2**self.bits - 1) - zero)


def keep_two_of_four(scores: Tensor) -> Tensor:
    """(out, in) True for the two largest scores of every four."""
    grouped = scores.unflatten(1, (-1, 4))
    kept = torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, grouped.topk(2, -1).indices, True)
    return kept.flatten(1)


def magnitude(weight: Tensor) -> Tensor:
    """2:4 by size alone."""
    return weight * keep_two_of_four(weight.abs())


def wanda(weight: Tensor, hessian: Tensor) -> Tensor:
    """2:4 by size times the norm of the input (arXiv 2306.11695)."""
    return weight * keep_two_of_four(weight.abs() * hessian.diag().clamp(min=0).sqrt())


def round_to_nearest(weight: Tensor, rounding: Rounding) -> Tensor:
    """Every group rounded for itself."""
    parts = [rounding.apply(p, *rounding.scales(p)) for p in weight.split(rounding.group, 1)]
    return torch.cat(parts, 1)


def sweep(
    weight: Tensor, hessian: Tensor, *, sparse: bool = True, rounding: Rounding | None = None, block: int = 64
) -> Tensor:
    """As `sweep_with_scales`: the new weight alone."""
    return sweep_with_scales(weight, hessian, sparse=sparse, rounding=rounding, block=block)[0]


def sweep_with_scales(
    weight: Tensor, hessian: Tensor, *, sparse: bool = True, rounding: Rounding | None = None, block: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Column by column: prune or round, and let the columns to come make up for the error.

    With ``sparse`` alone SparseGPT (arXiv 2301.00774), with ``rounding`` alone GPTQ (arXiv 2210.17323), with both the
    joint solution. Zeros that 2:4 makes stay zero. With H = 1 and no rounding it is pruning by magnitude.

    Args:
        weight: (out, in), ``in`` a multiple of 4 and of the rounding's group.
        hessian: X^T X (in, in) of the inputs.
        sparse: keep two of every four inputs.
        rounding: how kept weights are rounded; None leaves them.
        block: columns worked on at a time.

    Returns:
        the new weight, and each group's scale and zero point (out, groups), without columns where nothing is rounded.

    Raises:
        HastenError: a width that does not divide.
    """
    rows, columns = weight.shape
    if columns % 4 or (rounding is not None and columns % rounding.group):
        raise HastenError(f"{columns} columns do not divide into groups of {rounding.group if rounding else 4}")
    left = weight.float().clone()
    h = hessian.float().clone()
    dead = h.diag() == 0
    h[dead, dead] = 1
    left[:, dead] = 0
    h.diagonal().add_(DAMPING * h.diag().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    done = torch.zeros_like(left)
    # A block is a multiple of four and of the rounding's group, or the group is a multiple of it.
    scale = zero = torch.zeros(rows, 1)
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    mask = torch.ones(rows, columns, dtype=torch.bool)
    for first in range(0, columns, block):
        last = min(columns, first + block)
        errors = torch.zeros(rows, last - first)
        for c in range(first, last):
            if sparse and c % 4 == 0:
                score = left[:, c : c + 4].square() / upper.diag()[c : c + 4].square()
                mask[:, c : c + 4] = keep_two_of_four(score)
            if rounding is not None and c % rounding.group == 0:
                part = left[:, c : c + rounding.group]
                scale, zero = rounding.scales(part)
                scales.append(scale)
                zeros.append(zero)
            column = left[:, c : c + 1]
            kept = column if rounding is None else rounding.apply(column, scale, zero)
            kept = kept * mask[:, c : c + 1]
            done[:, c : c + 1] = kept
            error = (column - kept) / upper[c, c]
            left[:, c:last] -= error @ upper[c : c + 1, c:last]
            errors[:, c - first : c - first + 1] = error
        left[:, last:] -= errors @ upper[first:last, last:]
    empty = torch.zeros(rows, 0)
    return done, torch.cat([empty, *scales], 1), torch.cat([empty, *zeros], 1)
