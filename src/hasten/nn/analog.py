"""Linear layers on crossbars of resistive memory: differential pairs, read noise, unformed cells, converters, drift."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import SETTLED, Crossbar
from hasten.kernels import analog_linear as kernel
from hasten.nn.block import PackedBlock

__all__ = ["AnalogLinear", "noisy_reads"]


class AnalogLinear(PackedBlock):
    """``y = x W^T + b`` with W = gain (positive - negative), conductances of pairs of cells that currents are read of
    (`hasten.kernels.analog_linear`); the bias is a number.

    A read is what the mean of many would be, the same each time. Within `noisy_reads` each has noise of its own.
    Conductances and gains keep their types under ``.to(dtype)`` and the like.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``.
        bias: whether there is one.
        crossbar: tiles, converters and noise; `Crossbar()` when None.
        device, dtype: as in ``torch.nn.Linear``; the dtype is the bias's, fp32 when None.

    Shape:
        x (..., in_features) to (..., out_features), in x's dtype.
    """

    positive: Tensor
    negative: Tensor
    gain: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        crossbar: Crossbar | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.crossbar = crossbar or Crossbar()
        for name in ("positive", "negative"):
            cells = torch.zeros(out_features, in_features, device=device, dtype=torch.float32)
            self.register_buffer(name, cells)
        self.register_buffer("gain", torch.ones(out_features, device=device, dtype=torch.float32))
        made = torch.zeros(out_features, device=device, dtype=dtype or torch.float32) if bias else None
        self.bias = None if made is None else nn.Parameter(made, requires_grad=False)
        self._reads: torch.Generator | None = None

    def _start(self) -> None:
        self.positive.zero_()
        self.negative.zero_()
        self.gain.fill_(1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, crossbar: Crossbar | None = None, seed: int = 0) -> AnalogLinear:
        """A layer whose cells were programmed to a layer's weights, each row's largest at full conductance; on the meta
        device only the shapes.

        Args:
            linear: left as it is; the bias is shared.
            seed: of what programming leaves to chance.

        Raises:
            HastenError: a weight is not finite, or there is none.
        """
        device = linear.weight.device
        if not linear.weight.numel():
            raise HastenError(f"a layer of {linear.in_features} x {linear.out_features} has no weights for cells")
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, crossbar=crossbar)
        made = made.to_empty(device=device)
        if device.type != "meta":
            weight = linear.weight.detach().float()
            if not bool(weight.isfinite().all()):
                raise HastenError("a weight is not finite, which no conductance is: mend the model first")
            # Where a gain would be 0, of a row of zeros or nearly so, any will do.
            gain = weight.abs().amax(1) / made.crossbar.full
            made.gain = torch.where(gain > 0, gain, 1 / made.crossbar.full)
            wanted = weight / made.gain[:, None]
            made._program(wanted.clamp(min=0), (-wanted).clamp(min=0), seed)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return made.train(linear.training)

    @classmethod
    @torch.no_grad()
    def formed(
        cls, in_features: int, out_features: int, *, mean: float, deviation: float, gain: float,
        crossbar: Crossbar | None = None, seed: int = 0,
    ) -> AnalogLinear:  # fmt: skip
        """A layer of cells as forming left them: conductances of chance, which nobody chose (arXiv 2307.00771).

        Args:
            mean, deviation: of a cell's conductance, microsiemens: a Gaussian, cut off at 0.
            gain: a weight for each microsiemens of a pair's difference.
            seed: of the cells.
        """
        made = cls(in_features, out_features, crossbar=crossbar)
        generator = torch.Generator().manual_seed(seed)
        cells = torch.randn(2, out_features, in_features, generator=generator, device="cpu") * deviation + mean
        made.gain.fill_(gain)
        made._program(cells[0].clamp(min=0), cells[1].clamp(min=0), seed + 1)
        return made

    def _program(self, positive: Tensor, negative: Tensor, seed: int) -> None:
        """Sets both cells of each pair to what is wanted, as far as the crossbar lets them be."""
        crossbar, generator = self.crossbar, torch.Generator().manual_seed(seed)

        def drawn(draw: str) -> Tensor:
            found: Tensor = getattr(torch, draw)(positive.shape, generator=generator, device="cpu")
            return found.to(positive.device)

        for name, cells in (("positive", positive), ("negative", negative)):
            if crossbar.programming_noise:
                off = crossbar.programming_noise * crossbar.full
                cells = (cells + off * drawn("randn")).clamp(min=0)
            if crossbar.unformed:
                cells = torch.where(drawn("rand") < crossbar.unformed, 0, cells)
            if crossbar.age and (crossbar.drift or crossbar.drift_spread):
                falls = (crossbar.drift + crossbar.drift_spread * drawn("randn")).clamp(min=0)
                cells = cells * ((crossbar.age + SETTLED) / SETTLED) ** -falls
            setattr(self, name, cells.clone())

    @property
    def weight(self) -> Tensor:
        """(out, in): what the cells stand for, without converters, in fp32; made anew each time."""
        return self.gain[:, None] * (self.positive - self.negative)

    def forward(self, x: Tensor) -> Tensor:
        c, noise = self.crossbar, None
        if self._reads is not None and c.read_noise:
            shape = (*x.shape[:-1], kernel.tiles_of(self.in_features, c.rows), self.out_features)
            noise = torch.randn(shape, generator=self._reads, device="cpu").to(x.device)
        y = kernel.analog_linear(
            x, self.positive, self.negative, self.gain, noise=noise, rows=c.rows, input_bits=c.input_bits,
            adc_bits=c.adc_bits, adc_range=c.adc_range * c.full, read_noise=c.read_noise,
        )  # fmt: skip
        return y if self.bias is None else y + self.bias.to(y.dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.crossbar}"


@contextlib.contextmanager
def noisy_reads(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Within it every read of the analogue layers of ``module`` has noise of its own, as their crossbars say.

    The same calls from the same seed give the same answers.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [part for part in module.modules() if isinstance(part, AnalogLinear)]
    before = [layer._reads for layer in layers]
    try:
        for layer in layers:
            layer._reads = generator
        yield
    finally:
        for layer, reads in zip(layers, before, strict=True):
            layer._reads = reads
