"""A noise schedule: what it puts on comes off again, and a network learns from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models import NoiseSchedule, UNetOutput


@pytest.mark.parametrize("guess", ["noise", "velocity"])
def test_the_right_answer_gives_image_and_noise(guess: Any) -> None:
    schedule = NoiseSchedule(50, guess)
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(5, 2, 4, 4, generator=generator).double(), torch.randn(5, 2, 4, 4).double()
    times = torch.tensor([0, 10, 25, 40, 49])
    signal, spoiled = schedule.amplitudes(times)
    torch.testing.assert_close(signal**2 + spoiled**2, torch.ones(5))
    assert bool((signal.diff() < 0).all())
    noisy, wanted = schedule.noisy(images, noise, times)
    image, found = schedule.clean(noisy, wanted, times)
    torch.testing.assert_close(image, images, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-3)


def test_larger_images_have_less_signal() -> None:
    schedule, times = NoiseSchedule(), torch.tensor([100, 500, 900])
    larger = schedule.for_side(64, 32)
    (signal, noise), (less, more) = schedule.amplitudes(times), larger.amplitudes(times)
    torch.testing.assert_close(less / more, signal / noise / 2)
    assert larger.for_side(32, 64) == schedule


class Oracle:
    """Answers as one who knows that every image is the same."""

    def __init__(self, schedule: NoiseSchedule, image: Tensor, classes: int = 3) -> None:
        self.schedule, self.image = schedule, image
        self.config = type("Config", (), {"classes": classes})
        self.labels: list[Tensor] = []

    def __call__(
        self, x: Tensor, times: Tensor, text: Tensor | None = None, labels: Tensor | None = None
    ) -> UNetOutput:
        signal, spoiled = (a[:, None, None, None] for a in self.schedule.amplitudes(times))
        noise = (x - signal * self.image) / spoiled
        if labels is not None:
            self.labels.append(labels)
        return UNetOutput(self.schedule.noisy(self.image.expand_as(x), noise, times)[1])


@pytest.mark.parametrize("steps", [1, 7])
def test_who_knows_the_image_samples_it(steps: int) -> None:
    schedule, image = NoiseSchedule(100), torch.rand(1, 1, 4, 4)
    made = schedule.sample(Oracle(schedule, image), torch.randn(3, 1, 4, 4), steps)
    torch.testing.assert_close(made, image.expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)
    labels = torch.tensor([0, 1, 2])
    guided = schedule.sample(Oracle(schedule, image), torch.randn(3, 1, 4, 4), steps, labels=labels, guidance=3.0)
    torch.testing.assert_close(guided, image.expand(3, -1, -1, -1), rtol=1e-2, atol=1e-2)
    with pytest.raises(HastenError, match="sampled in 1 to 100 steps"):
        schedule.sample(Oracle(schedule, image), torch.randn(3, 1, 4, 4), 101)


def test_a_share_of_labels_is_left_out_and_the_right_answer_has_no_loss() -> None:
    schedule, image = NoiseSchedule(100), torch.rand(1, 1, 2, 2)
    oracle = Oracle(schedule, image)
    images, labels = image.expand(2000, -1, -1, -1), torch.zeros(2000, dtype=torch.int64)
    loss = schedule.loss(oracle, images, torch.Generator().manual_seed(0), labels=labels)
    assert float(loss) < 1e-4
    assert float((oracle.labels[0] == 3).float().mean()) == pytest.approx(0.1, abs=0.02)


class Asked:
    """Answers 1 to who asks for something, 0 to who asks for nothing, and keeps what it is asked."""

    def __init__(self) -> None:
        self.config = type("Config", (), {"classes": 3})
        self.text: list[Tensor | None] = []
        self.labels: list[Tensor | None] = []

    def __call__(
        self, x: Tensor, times: Tensor, text: Tensor | None = None, labels: Tensor | None = None
    ) -> UNetOutput:
        self.text.append(text)
        self.labels.append(labels)
        asked = torch.zeros(len(x), dtype=torch.bool)
        if labels is not None:
            asked |= labels != 3
        if text is not None:
            asked |= text.flatten(1).ne(0).any(1)
        return UNetOutput(asked.to(x)[:, None, None, None].expand_as(x))


@pytest.mark.parametrize("guess", ["noise", "velocity"])
@pytest.mark.parametrize("condition", ["labels", "text", "both"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_goes_from_the_free_answer_through_the_asked_one(guess: Any, condition: str, guidance: float) -> None:
    """free + guidance x (asked - free), which is ``guidance`` here: 0 is no condition, 1 the network's own answer."""
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, text = torch.tensor([0, 2]), torch.ones(2, 3, 5)
    given = {"labels": {"labels": labels}, "text": {"text": text}, "both": {"labels": labels, "text": text}}[condition]
    made = NoiseSchedule(50, guess).sample(Asked(), noise, 1, guidance=guidance, **given)  # type: ignore[arg-type]
    angle = 49.5 / 50.5 * math.pi / 2  # of the last of 50 times
    if guess == "noise":
        wanted = (noise - math.sin(angle) * guidance) / math.cos(angle)
    else:
        wanted = math.cos(angle) * noise - math.sin(angle) * guidance
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_guidance_needs_something_that_is_asked_for() -> None:
    network = Asked()
    NoiseSchedule(50).sample(network, torch.randn(2, 1, 4, 4), 3, guidance=3.0)
    assert len(network.text) == 3


@pytest.mark.parametrize("dropped", [0.0, 0.1, 0.4, 1.0])
def test_a_share_of_texts_is_left_out_and_of_labels_the_same(dropped: float) -> None:
    schedule, network = NoiseSchedule(50), Asked()
    images, text = torch.zeros(2000, 1, 2, 2), torch.rand(2000, 3, 4) + 0.5
    labels = torch.arange(2000) % 3
    given, asked = text.clone(), labels.clone()
    schedule.loss(network, images, torch.Generator().manual_seed(0), text=text, labels=labels, dropped=dropped)
    (heard,), (classes,) = network.text, network.labels
    assert heard is not None
    assert classes is not None
    gone = heard.flatten(1).eq(0).all(1)
    assert float(gone.float().mean()) == pytest.approx(dropped, abs=0.03)
    assert torch.equal(heard[~gone], given[~gone])
    assert torch.equal(classes == 3, gone)
    assert torch.equal(classes[~gone], asked[~gone])
    assert torch.equal(text, given)  # the caller's own stay
    assert torch.equal(labels, asked)

    schedule.loss(network, images, torch.Generator().manual_seed(0), text=text, dropped=dropped)
    alone = network.text[1]
    assert alone is not None
    assert torch.equal(alone, heard)
    assert network.labels[1] is None


def test_wrong_schedules_are_told() -> None:
    for wrong in ({"steps": 0}, {"guess": "image"}, {"shift": 0.0}):
        with pytest.raises(HastenError, match="steps from 1"):
            NoiseSchedule(**wrong)  # type: ignore[arg-type]
