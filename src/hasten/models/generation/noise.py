"""Noise that is put on images by a schedule, and taken off by a network: the loss to train by, and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.errors import HastenError

Guess: TypeAlias = Literal["noise", "velocity"]
Network: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class NoiseSchedule:
    """A cosine schedule of ``steps`` times: a noisy image is signal x image + spoiled x noise, squares summing to 1.

    Args:
        steps: times, 0 the cleanest.
        guess: what a network answers: the noise, or the velocity signal x noise - spoiled x image.
        shift: the ratio of signal to noise over the cosine's, as amplitudes. Larger images need less signal for as much
            noise in what is seen of them: `for_side` says how much less.

    Raises:
        HastenError: no step, another guess, or a shift that is not positive.
    """

    steps: int = 1000
    guess: Guess = "velocity"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guess not in ("noise", "velocity") or not 0 < self.shift < math.inf:
            raise HastenError("a schedule has steps from 1, guesses noise or velocity, and shifts by more than 0")

    def for_side(self, side: int, before: int) -> NoiseSchedule:
        """The schedule for images of ``side`` pixels, where this one is for ``before``."""
        return NoiseSchedule(self.steps, self.guess, self.shift * before / side)

    def amplitudes(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at times (batch,), each (batch,) in fp32."""
        angle = (times.float() + 0.5) / (self.steps + 0.5) * (math.pi / 2)
        angle = torch.atan(torch.tan(angle.clamp(max=math.pi / 2 - 1e-4)) / self.shift)
        return angle.cos(), angle.sin()

    def noisy(self, images: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy images, and what a network should answer to them."""
        signal, spoiled = (a.to(images)[:, None, None, None] for a in self.amplitudes(times))
        wanted = noise if self.guess == "noise" else signal * noise - spoiled * images
        return signal * images + spoiled * noise, wanted

    def clean(self, noisy: Tensor, answer: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The image and the noise that a network's answer says are in a noisy image."""
        signal, spoiled = (a.to(noisy)[:, None, None, None] for a in self.amplitudes(times))
        if self.guess == "noise":
            return (noisy - spoiled * answer) / signal, answer
        return signal * noisy - spoiled * answer, spoiled * noisy + signal * answer

    def loss(
        self,
        network: Network,
        images: Tensor,
        generator: torch.Generator,
        *,
        labels: Tensor | None = None,
        text: Tensor | None = None,
        dropped: float = 0.1,
    ) -> Tensor:
        """Mean square error of a network's answers at random times.

        Args:
            network: called as `hasten.models.generation.ascan_unet.AsCANUNet`.
            images: (batch, channels, height, width), of mean 0 and deviation 1 about.
            generator: of the CPU: of times, noise, and whose condition is left out.
            labels: (batch,), classes.
            text: (batch, tokens, width).
            dropped: share of labels or texts that are left out, so that a network also knows images of no condition:
                labels become one more than all, texts zeros.
        """
        batch = len(images)
        times = torch.randint(self.steps, (batch,), generator=generator)
        noise = torch.randn(images.shape, generator=generator).to(images)
        gone = torch.rand(batch, generator=generator) < dropped
        times, gone = times.to(images.device), gone.to(images.device)
        if labels is not None:
            labels = torch.where(gone, network.config.classes, labels)  # type: ignore[attr-defined]
        if text is not None:
            text = torch.where(gone[:, None, None], torch.zeros_like(text), text)
        noisy, wanted = self.noisy(images, noise, times)
        return F.mse_loss(network(noisy, times, text, labels).sample, wanted)

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        noise: Tensor,
        steps: int = 20,
        *,
        labels: Tensor | None = None,
        text: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Images from noise by DDIM, the same for the same noise.

        Args:
            network: as `loss` takes it.
            noise: (batch, channels, height, width).
            steps: calls of the network, spread over the schedule; twice as many with guidance.
            labels, text: what is asked for.
            guidance: how much further than without its condition an answer goes; 1 for the network's own.

        Raises:
            HastenError: steps that the schedule does not have.
        """
        if not 1 <= steps <= self.steps:
            raise HastenError(f"a schedule of {self.steps} times is sampled in 1 to {self.steps} steps, not {steps}")
        x, batch = noise, len(noise)
        times = torch.linspace(self.steps - 1, 0, steps).round().long().tolist()
        for i, time in enumerate(times):
            at = torch.full((batch,), time, device=x.device)
            answer = network(x, at, text, labels).sample
            if guidance != 1 and (labels is not None or text is not None):
                free = network(x, at, None if text is None else torch.zeros_like(text)).sample
                answer = free + guidance * (answer - free)
            image, noise = self.clean(x, answer, at)
            if i + 1 == len(times):
                return image
            signal, spoiled = (a.to(x)[:, None, None, None] for a in self.amplitudes(torch.full_like(at, times[i + 1])))
            x = signal * image + spoiled * noise
        return x
