"""Random recurrent networks of leaky integrate-and-fire neurons that nobody trains: liquid state machines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import Crossbar
from hasten.kernels.gate import no_tangents
from hasten.nn.analog import AnalogLinear
from hasten.nn.block import PackedBlock

# Differences of conductances of pairs of cells, microsiemens: (mean, deviation) of inputs' and of recurrent weights,
# as measured on the authors' macro (MrLinNing/RMAdaptiveMachine).
DRIVE, RECURRENT = (0.00156, 6.61329), (0.00606, 6.67268)
# Of a weight: sums of 2^11 of them are exact in fp32, so that their order is not seen.
_BITS = 13


class EventRun(NamedTuple):
    """What an event-driven run gives.

    Attributes:
        spikes: (batch, steps, size).
        additions: of a weight to a neuron's input, (batch,): each event and each spike of a neuron makes ``size``.
    """

    spikes: Tensor
    additions: Tensor


class Reservoir(PackedBlock):
    """Leaky integrate-and-fire neurons with random, fixed weights: the counts of their spikes are features.

        m_t = decay m_{t-1} (1 - s_{t-1}) + W_in x_t + W_rec s_{t-1},    s_t = [m_t > threshold]

    A spike resets its neuron to what comes in. Weights are ``gain`` times conductances (arXiv 2307.00771), rounded to
    13 bits from the largest on, and never trained; they keep their type under ``.to(dtype)`` and the like.

    Args:
        channels: of the events.
        size: neurons.
        gain: a weight for each microsiemens: the one number that is tuned.
        threshold, decay: of the neurons.
        recurrent: whether neurons hear each other.
        seed: of the weights.
        device, dtype: as in ``torch.nn.Linear``; in fp32 sums of 2,048 such weights are exact.

    Shape:
        events (batch, steps, channels) of 0 and 1 to counts (batch, size), in the events' dtype, or in that of the
        weights where events are no floating point numbers.

    Raises:
        HastenError: fewer than 1 neuron or 0 channels, a gain that is not finite, a threshold that is no number, or a
            decay that is not between 0 and 1.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        gain: float = 0.07,
        threshold: float = 5.0,
        decay: float = 0.9,
        recurrent: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 0 or size < 1:
            raise HastenError(f"a reservoir of {size} neurons for {channels} channels: give at least 1 neuron")
        if not math.isfinite(gain) or math.isnan(threshold) or not 0 <= decay <= 1:
            told = f"a gain of {gain:g}, a threshold of {threshold:g} and a decay of {decay:g}"
            raise HastenError(f"{told}: a gain is finite, a threshold a number, and a decay between 0 and 1")
        self.channels, self.size, self.gain, self.seed = channels, size, gain, seed
        self.threshold, self.decay = threshold, decay
        self.drive: nn.Module = nn.Linear(channels, size, bias=False, device=device, dtype=dtype).requires_grad_(False)
        self.recurrent: nn.Module | None = None
        if recurrent:
            self.recurrent = nn.Linear(size, size, bias=False, device=device, dtype=dtype).requires_grad_(False)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for layer, (mean, deviation) in ((self.drive, DRIVE), (self.recurrent, RECURRENT)):
            if isinstance(layer, nn.Linear):
                drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64, device="cpu")
                layer.weight.copy_(_rounded(self.gain * (drawn * deviation + mean)))

    @classmethod
    def formed(
        cls, channels: int, size: int, *, gain: float = 0.07, threshold: float = 5.0, decay: float = 0.9,
        recurrent: bool = True, cell: float = 20.0, crossbar: Crossbar | None = None, seed: int = 0,
    ) -> Self:  # fmt: skip
        """A reservoir whose weights are pairs of cells as forming left them, read of crossbars.

        Args:
            cell: mean conductance of a cell, microsiemens.
            crossbar: without codes for inputs when None: spikes are none.
        """
        made = cls(channels, size, gain=gain, threshold=threshold, decay=decay, recurrent=recurrent, seed=seed)
        arrays = Crossbar(input_bits=0) if crossbar is None else crossbar
        for number, (name, (_, deviation)) in enumerate((("drive", DRIVE), ("recurrent", RECURRENT))):
            if (layer := getattr(made, name)) is not None:
                cells = AnalogLinear.formed(
                    layer.in_features, size, mean=cell, deviation=deviation / math.sqrt(2), gain=gain, crossbar=arrays,
                    seed=(seed << 2) + 2 * number,
                )  # fmt: skip
                setattr(made, name, cells)
        return made

    @torch.no_grad()
    def twin(self) -> Reservoir:
        """The same reservoir in software: weights that its cells stand for, multiplied exactly."""
        made = Reservoir(
            self.channels, self.size, gain=self.gain, threshold=self.threshold, decay=self.decay,
            recurrent=self.recurrent is not None, seed=self.seed,
        )  # fmt: skip
        for mine, other in ((made.drive, self.drive), (made.recurrent, self.recurrent)):
            if isinstance(mine, nn.Linear) and other is not None:
                weight = other.weight
                assert isinstance(weight, Tensor)
                mine.weight.copy_(_rounded(weight))
        return made

    def _kind(self) -> torch.dtype:
        """What is computed in: the weights' type, fp32 where they are cells."""
        return next((p.dtype for p in self.drive.parameters()), torch.float32)

    def spikes(self, events: Tensor) -> Tensor:
        """Which neurons fire: events (batch, steps, channels) to 0 and 1 (batch, steps, size).

        Raises:
            ValueError: events of another shape.
        """
        no_tangents("Reservoir", events)
        self._check(events)
        kind = self._kind()
        driven = self.drive(events.to(kind))
        membrane = fired = driven.new_zeros(driven.shape[0], self.size)
        found = []
        for step in range(driven.shape[1]):
            coming = driven[:, step] if self.recurrent is None else driven[:, step] + self.recurrent(fired)
            membrane = self.decay * membrane * (1 - fired) + coming
            fired = (membrane > self.threshold).to(kind)
            found.append(fired)
        return torch.stack(found, 1) if found else driven

    def _check(self, events: Tensor) -> None:
        if events.dim() != 3 or events.shape[2] != self.channels:
            raise ValueError(f"events are (batch, steps, {self.channels}), not {tuple(events.shape)}")

    def forward(self, events: Tensor) -> Tensor:
        counts = self.spikes(events).sum(1)
        return counts.to(events.dtype) if events.is_floating_point() else counts

    if TYPE_CHECKING:
        __call__ = forward

    @torch.no_grad()
    def run_events(self, events: Tensor) -> EventRun:
        """As `spikes`, bit for bit, by adding a neuron's weights where there is an event, and nothing elsewhere.

        Raises:
            HastenError: an event is neither 0 nor 1, or products are read of crossbars.
            ValueError: events of another shape.
        """
        self._check(events)
        if not isinstance(self.drive, nn.Linear) or not isinstance(self.recurrent, nn.Linear | None):
            raise HastenError("an analogue reservoir reads whole columns: run its software twin() by events")
        if not bool(((events == 0) | (events == 1)).all()):
            raise HastenError("events are 0 or 1: round them first")
        kind, batch = self._kind(), len(events)
        columns = self.drive.weight.t().contiguous()
        hearing = None if self.recurrent is None else self.recurrent.weight.t().contiguous()
        membrane = fired = torch.zeros(batch, self.size, dtype=kind, device=columns.device)
        additions = torch.zeros(batch, dtype=torch.int64, device=columns.device)
        found = []
        for step in range(events.shape[1]):
            coming = torch.zeros_like(membrane)
            for active, weights in ((events[:, step], columns), (fired, hearing)):
                if weights is not None:
                    rows, sources = active.nonzero(as_tuple=True)
                    coming.index_add_(0, rows, weights[sources])
                    additions += self.size * torch.bincount(rows, minlength=batch)
            membrane = self.decay * membrane * (1 - fired) + coming
            fired = (membrane > self.threshold).to(kind)
            found.append(fired)
        spikes = torch.stack(found, 1) if found else membrane.new_zeros(batch, 0, self.size)
        return EventRun(spikes, additions)

    def extra_repr(self) -> str:
        return f"gain={self.gain}, threshold={self.threshold}, decay={self.decay}"


def _rounded(weight: Tensor) -> Tensor:
    """Weights as multiples of 2^-13 of the power of two above the largest."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not 0 < largest < math.inf:
        return weight
    step = 2.0 ** (math.frexp(largest)[1] - _BITS)
    return torch.round(weight / step) * step
