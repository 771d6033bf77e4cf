"""How much of an image those positions of a map see that a network's head averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hasten.cost.preserving import evaluating

# What pools over the positions of a map: always over its last two axes, or over axes that are given.
_ALWAYS = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.avg_pool2d, F.max_pool2d, torch.max_pool2d)
_GIVEN = (torch.mean, Tensor.mean, torch.amax, Tensor.amax)


class _Pooled(TorchFunctionMode):
    """Which positions of the map that a head pools are no numbers.

    The head's pooling is the last one that makes a number a channel, with no map as large behind it: those of gates of
    channels are multiplied with the map again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.share: float | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, Tensor):
            return made
        if self.share is not None and made.ndim == 4 and made.numel() >= self.size:
            self.share = None
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.ndim == 4 and (over := _pooled_axes(func, args, kwargs or {})):
            positions = x.shape[over[0]] * x.shape[over[1]]
            if positions > 1 and made.numel() * positions == x.numel():
                channels = next(i for i in (1, 2, 3) if i not in over)
                self.size, self.share = x.numel(), float(x.isnan().any(channels).float().mean())
        return made


def _pooled_axes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The two axes of a map that a function pools; empty where it does something else."""
    if func in _ALWAYS:
        return (2, 3)
    if func not in _GIVEN:
        return ()
    given = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(given, tuple | list) or len(given) != 2:
        return ()
    axes = tuple(sorted(i % 4 for i in given))
    return axes if 0 not in axes else ()


def averaged_share(network: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> float | None:
    """The share of an image that each position of a map sees which a head averages, or takes the largest of.

    A pixel in the middle is made no number, and so is all that sees it, by convolutions, attention or means.

    Args:
        network: called once in evaluation mode with copies of its buffers, and left as it was.
        inputs, kwargs: of a call; the first is images (batch, channels, height, width).

    Returns:
        From 0 to 1; None for other inputs, where the head reads every position, and where the call fails.
    """
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or x[0, 0].numel() < 2:
        return None
    poisoned = x.detach().clone()
    poisoned[..., x.shape[2] // 2, x.shape[3] // 2] = torch.nan
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    seen = _Pooled()
    # Fast convolutions of other libraries compute tiles at once, where one number spoils its neighbours.
    direct = torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False)
    try:
        with evaluating(network), torch.no_grad(), direct[0], direct[1], seen:
            torch.func.functional_call(network, buffers, (poisoned, *inputs[1:]), dict(kwargs or {}))
    except Exception:  # it refuses what is no number
        return None
    return seen.share or None  # a pixel that nothing reads tells nothing
