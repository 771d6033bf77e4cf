"""Deformable convolutions, and what is left of them when memory shall be read in order (arXiv 2002.08357, 2006.08357).

A 3x3 kernel reads where offsets point that a convolution of its own predicts at each place. Restricted step by step:

- ``original``: 18 offsets a place, of a 1x1 convolution, as far as they like;
- ``bound``: 18, of a 3x3 one, within so many places, so that a few rows of the map are enough to have at hand;
- ``square``: one, s, of a 3x3 one, within 0 and so many places: tap g reads g (1 + s), a dilation for each place, so
  that nine banks of memory are read at once.

Depthwise, a 1x1 convolution comes first and each channel of its answer has a kernel of its own; offsets are then
predicted by a 1x1 convolution on that answer. Offsets start at 0, as an ordinary convolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.kernels.deform_conv import FORMS, TAPS, Form, deform_conv2d
from hasten.nn.block import Block, Factory
from hasten.nn.fake_quantization import round_through


def tap_offsets(predicted: Tensor, form: Form, bound: float = math.inf, *, rounded: bool = False) -> Tensor:
    """How far each tap of a 3x3 kernel is moved: (maps, 18, height, width), down and across, row by row of the kernel.

    Args:
        predicted: (maps, 18, height, width), or (maps, 1, height, width) where the form is ``square``.
        form: see the module.
        bound: the farthest in places; not heard by ``original``.
        rounded: to whole places, after the bound; the gradient passes the rounding unchanged.
    """
    if form == "bound":
        predicted = predicted.clamp(-bound, bound)
    elif form == "square":
        predicted = predicted.clamp(0, bound)
    if rounded:
        predicted = round_through(predicted)
    if form != "square":
        return predicted
    steps = torch.arange(-1, 2, device=predicted.device, dtype=predicted.dtype)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    return predicted * grid.reshape(2 * TAPS, 1, 1)


class DeformableConv2d(Block):
    """A 3x3 convolution at stride 1, padded by 1 and without bias, whose taps are moved by predicted offsets.

    Args:
        inputs, outputs: channels.
        form: ``original``, ``bound`` or ``square``.
        bound: the farthest that a tap is moved, in places; of ``bound`` and ``square``.
        depthwise: whether a 1x1 convolution and a kernel a channel take the place of a dense kernel.
        rounded: whether offsets are whole places, so that nothing is interpolated; in training the gradient passes the
            rounding unchanged.
        device, dtype: as torch's modules take them.

    ``sampled`` is what the map passes through on its way to offsets and taps, an identity: where it shall be quantized,
    a quantizer takes its place.

    Shapes: (maps, inputs, height, width) to (maps, outputs, height, width).

    Raises:
        HastenError: an unknown form, or a bound below 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        form: Form = "square",
        bound: float = 8.0,
        *,
        depthwise: bool = False,
        rounded: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise HastenError(f"a deformable convolution is {', '.join(FORMS)}, not {form!r:.40}")
        if not bound >= 0:
            raise HastenError(f"taps are moved by at most {bound} places: give a bound from 0")
        made: Factory = {"device": device, "dtype": dtype}
        self.inputs, self.outputs, self.form, self.bound = inputs, outputs, form, bound
        self.depthwise, self.rounded = depthwise, rounded
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False, **made) if depthwise else nn.Identity()
        self.sampled: nn.Module = nn.Identity()
        side = 1 if depthwise or form == "original" else 3
        predicted = 1 if form == "square" else 2 * TAPS
        self.offsets = nn.Conv2d(outputs if depthwise else inputs, predicted, side, padding=side // 2, **made)
        self.weight = nn.Parameter(torch.empty(outputs, 1 if depthwise else inputs, 3, 3, **made))
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        nn.init.kaiming_uniform_(self.weight, math.sqrt(5))
        # Whoever reads the map as a plain convolution does at first learns from there on.
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map that taps read, and their offsets."""
        seen: Tensor = self.sampled(self.pointwise(x))
        return seen, tap_offsets(self.offsets(seen), self.form, self.bound, rounded=self.rounded)

    def forward(self, x: Tensor) -> Tensor:
        seen, offsets = self._read(x)
        return deform_conv2d(seen, offsets, self.weight, self.depthwise)

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def trace_offsets(self, x: Tensor) -> Tensor:
        """How far each tap is moved for these maps, (maps, 18, height, width): what models of memory are driven by."""
        return self._read(x)[1]

    @torch.no_grad()
    def stuck(self, x: Tensor) -> float:
        """The share of predicted offsets that the bound cuts off, through which no gradient passes.

        A ``square`` whose s is below 0 everywhere is a plain convolution and stays one.
        """
        predicted: Tensor = self.offsets(self.sampled(self.pointwise(x)))
        if self.form == "original" or not predicted.numel():
            return 0.0
        low = 0.0 if self.form == "square" else -self.bound
        return float(((predicted < low) | (predicted > self.bound)).float().mean())

    def extra_repr(self) -> str:
        depthwise = ", depthwise=True" if self.depthwise else ""
        return f"{self.inputs}, {self.outputs}, form={self.form}, bound={self.bound:g}{depthwise}"


def plain_convolution(inputs: int, outputs: int, *, depthwise: bool = False) -> nn.Module:
    """What a deformable convolution is held against: a 3x3 one, or a 1x1 and a depthwise one with a normalization and a
    ReLU between.

    Args:
        inputs, outputs, depthwise: of `DeformableConv2d`.
    """
    if not depthwise:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False),
    )  # fmt: skip


OPERATORS = tuple(f"{kind}{more}" for more in ("", "-depthwise") for kind in ("plain", *FORMS))
"""Names of `operator`: plain convolutions and each form of deformable ones, dense and depthwise."""


def operator(name: str, bound: float = 8.0) -> Callable[[int, int], nn.Module]:
    """What makes a 3x3 operator of so many inputs and outputs.

    Args:
        name: one of `OPERATORS`.
        bound: of `DeformableConv2d`.

    Raises:
        HastenError: another name.
    """
    if name not in OPERATORS:
        raise HastenError(f"no operator is called {name!r:.40}: choose {', '.join(OPERATORS)}")
    kind, depthwise = name.removesuffix("-depthwise"), name.endswith("-depthwise")
    if kind == "plain":
        return functools.partial(plain_convolution, depthwise=depthwise)
    form = next(f for f in FORMS if f == kind)
    return functools.partial(DeformableConv2d, form=form, bound=bound, depthwise=depthwise)
