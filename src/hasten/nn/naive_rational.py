"""A rational activation whose gradient is summed by additions to shared memory: what KAT does and FlashKAT mends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.kernels.gate import differentiated_once
from hasten.kernels.rational import naive_backward, rational
from hasten.nn.rational import GroupRational


class _SharedAdditions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, numerator: Tensor, denominator: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, numerator, denominator)
        ctx.groups = groups
        return rational(x, numerator, denominator, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, numerator, denominator = ctx.saved_tensors
        with torch.no_grad():
            *found, _ = naive_backward(grads[0], x, numerator, denominator, ctx.groups)
        return *differentiated_once("NaiveRational", found, grads[0], x, numerator, denominator), None


class NaiveRational(GroupRational):
    """A `GroupRational` with its own parameters and values, and the slow gradient of `naive_backward`: a baseline.

    Args:
        inner: whose coefficients it uses and trains.

    Shape:
        (..., channels) to the same, fp32.

    Raises:
        ValueError: in the backward pass, where the compiled kernels are not installed.
    """

    def __init__(self, inner: GroupRational) -> None:
        super().__init__(inner.channels, inner.groups, inner.start)
        self.numerator, self.denominator = inner.numerator, inner.denominator

    def forward(self, x: Tensor) -> Tensor:
        return _SharedAdditions.apply(x, self.numerator, self.denominator, self.groups)

    if TYPE_CHECKING:
        __call__ = forward
