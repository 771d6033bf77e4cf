"""Models of equal size: how many parameters one has, and the width at which another has as many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from hasten.errors import HastenError


def parameters_of(build: nn.Module | Callable[[], nn.Module]) -> int:
    """Parameters of a module, or of what ``build`` makes: that is made on the meta device, without memory."""
    if isinstance(build, nn.Module):
        return sum(p.numel() for p in build.parameters())
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def matching_width(
    build: Callable[[int], nn.Module], wanted: int, widths: Iterable[int], *, at_least: bool = False
) -> int:
    """The width at which ``build(width)`` has nearest to ``wanted`` parameters, the first of equals.

    Args:
        build: a model of a width.
        wanted: parameters.
        widths: to choose from.
        at_least: the first width with no fewer than ``wanted`` instead.

    Raises:
        HastenError: there are no widths, or none has ``wanted`` parameters.
    """
    best: tuple[int, int] | None = None
    for width in widths:
        count = parameters_of(lambda: build(width))  # noqa: B023
        if at_least:
            if count >= wanted:
                return width
        elif best is None or abs(count - wanted) < best[0]:
            best = abs(count - wanted), width
    if best is None:
        raise HastenError(f"none of these widths gives {wanted:,} parameters: give others")
    return best[1]
