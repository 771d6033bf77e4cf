"""Changes to a network that change what it costs and not what it computes, and the one check that they keep that."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hasten.errors import HastenError

M = TypeVar("M", bound=nn.Module)


def fold_normalization(network: M) -> M:
    """A copy for inference, with the batch norm that follows a convolution in an `nn.Sequential` folded into it.

    Args:
        network: stays as it is.
    """
    made = copy.deepcopy(network).eval()
    for part in made.modules():
        if isinstance(part, nn.Sequential):
            for i in range(len(part) - 1):
                conv, norm = part[i], part[i + 1]
                if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                    transposed = isinstance(conv, nn.ConvTranspose2d)
                    part[i], part[i + 1] = fuse_conv_bn_eval(conv, norm, transposed), nn.Identity()
    return made


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [t for part in parts for t in _tensors(part)]


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, inputs: Sequence[Any]) -> float:
    """How far two networks' answers lie apart: the largest difference over the largest magnitude of the first's.

    Args:
        one, other: both asked in evaluation mode, and left in the mode they were in.
        inputs: of a call.

    Raises:
        HastenError: answers of different shapes.
    """
    answers = []
    for network in (one, other):
        was = network.training
        answers.append(_tensors(network.eval()(*inputs)))
        network.train(was)
    a, b = answers
    if [t.shape for t in a] != [t.shape for t in b]:
        raise HastenError("these two networks answer with different shapes: they compute different things")
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True) if x.numel()]
    apart = max((float((x - y).abs().max()) for x, y in pairs), default=0.0)
    most = max((float(x.abs().max()) for x, _ in pairs), default=0.0)
    return apart / most if most else apart


def check_same(one: nn.Module, other: nn.Module, inputs: Sequence[Any], within: float = 1e-5) -> None:
    """That two networks compute the same.

    Args:
        one, other, inputs: of `difference`.
        within: the largest that it may be.

    Raises:
        HastenError: they do not; it says how far apart they are.
    """
    apart = difference(one, other, inputs)
    if not apart <= within:  # not a number is no agreement
        raise HastenError(
            f"these two networks' answers lie {apart:.2g} of the largest apart, and {within:g} is allowed:"
            " what changed the one does not keep what it computes"
        )
