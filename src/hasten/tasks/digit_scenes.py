"""Digits of any height and breadth at any place: one on a small canvas, to name and to size, or several, to detect."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.tasks.detection import Objects, average_precision, box_overlaps
from hasten.tasks.placed_digits import source_digits
from hasten.tasks.task import Batch, Better, Model, Split, Task, registered

_LARGEST = 16.0  # of a source's pixels
# Heights in pixels, and breadths as shares of them.
HEIGHTS, ASPECTS = (8, 24), (0.7, 1.3)
_MOST_OVERLAP = 0.1  # of two digits of a scene
_TRIES = 20


def scene(
    pictures: Tensor, labels: Tensor, count: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Objects]:
    """A canvas (1, side, side) of 0 to 1 with up to ``count`` digits that hardly overlap, and where they are.

    Args:
        pictures, labels: that digits are drawn from, of `source_digits`.
        count: digits; one that finds no room in some tries is left out.
    """
    canvas = torch.zeros(1, side, side)
    boxes = torch.zeros(0, 4)
    named: list[int] = []
    for _ in range(count):
        which = int(torch.randint(len(pictures), (), generator=generator))
        for _ in range(_TRIES):
            height = int(torch.randint(HEIGHTS[0], HEIGHTS[1] + 1, (), generator=generator))
            drawn = torch.rand(3, generator=generator).tolist()
            breadth = max(1, min(side, round(height * (ASPECTS[0] + drawn[0] * (ASPECTS[1] - ASPECTS[0])))))
            top, left = int(drawn[1] * (side - height + 1)), int(drawn[2] * (side - breadth + 1))
            box = torch.tensor([[left, top, left + breadth, top + height]], dtype=torch.float32)
            if not len(boxes) or float(box_overlaps(box, boxes).max()) <= _MOST_OVERLAP:
                break
        else:
            continue
        picture = F.interpolate(pictures[which][None, None] / _LARGEST, (height, breadth), mode="bilinear")[0]
        part = canvas[:, top : top + height, left : left + breadth]
        torch.maximum(part, picture, out=part)
        boxes, named = torch.cat((boxes, box)), [*named, int(labels[which])]
    return canvas, Objects(boxes, torch.tensor(named, dtype=torch.int64))


def side_by_side(canvases: Tensor, across: int) -> Tensor:
    """One image (1, 1, across side, across side) of the first canvases (count, 1, side, side), repeated if too few."""
    chosen = canvases[torch.arange(across * across) % len(canvases), 0]
    return chosen.unflatten(0, (across, across)).transpose(1, 2).flatten(2).flatten(0, 1)[None, None]


@functools.lru_cache(maxsize=4)
def _made(counts: tuple[int, ...], side: int, digits: tuple[int, int]) -> dict[Split, tuple[Tensor, list[Objects]]]:
    generator = torch.Generator().manual_seed(0)
    made: dict[Split, tuple[Tensor, list[Objects]]] = {}
    for (split, (pictures, labels)), count in zip(source_digits(generator).items(), counts, strict=True):
        numbers = torch.randint(digits[0], digits[1] + 1, (count,), generator=generator).tolist()
        scenes = [scene(pictures, labels, number, side, generator) for number in numbers]
        made[split] = torch.stack([canvas for canvas, _ in scenes]), [objects for _, objects in scenes]
    return made


def _checked(counts: Sequence[int], side: int) -> None:
    if len(counts) != 3 or min(counts) < 1 or side < HEIGHTS[1]:
        raise HastenError(
            f"scenes are of at least {HEIGHTS[1]} pixels a side, and three counts above 0 of them are made"
        )


class _Scenes(Task):
    """A task of scenes: ``parts`` are of each split canvases (count, 1, side, side) and what is on each."""

    parts: dict[Split, tuple[Tensor, list[Objects]]]
    given = "canvases (batch, 1, side, side), fp32, of 0 to 1"
    better: ClassVar[Better] = "higher"
    best = 1.0

    def examples(self, split: Split) -> int:
        return len(self.parts[split][0])

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(self.examples(split), (size,), generator=generator)
        return self._batch(self.parts[split][0][chosen], [self.parts[split][1][i] for i in chosen.tolist()])

    def take(self, split: Split, first: int, last: int) -> Batch:
        return self._batch(self.parts[split][0][first:last], self.parts[split][1][first:last])

    def _batch(self, canvases: Tensor, objects: list[Objects]) -> Batch:
        return Batch(canvases, objects)


@registered("sized-digits")
class SizedDigits(_Scenes):
    """One of scikit-learn's digits on a canvas, 8 to 24 pixels high and 0.7 to 1.3 times as broad.

    Targets are labels (batch,) and heights and breadths (batch, 2) as shares of the canvas.

    Args:
        counts: canvases for training, validation and test.
        side: of a canvas, in pixels.

    Raises:
        HastenError: counts that are not three above 0, or a canvas smaller than a digit.
    """

    description = "which digit is somewhere on a canvas, and how high and broad it is: 32 x 32 pixels"
    answered = "logits (batch, 10), and heights and breadths (batch, 2) as shares of the canvas"
    metric = "accuracy"
    chance = 0.1

    def __init__(self, counts: tuple[int, int, int] = (4000, 750, 750), side: int = 32) -> None:
        _checked(counts, side)
        self.parts, self.side = _made(tuple(counts), side, (1, 1)), side

    def _batch(self, canvases: Tensor, objects: list[Objects]) -> Batch:
        boxes = torch.cat([o.boxes for o in objects]) if objects else torch.zeros(0, 4)
        labels = torch.cat([o.labels for o in objects]) if objects else torch.zeros(0, dtype=torch.int64)
        sizes = (boxes[:, [3, 2]] - boxes[:, [1, 0]]) / self.side
        return Batch(canvases, (labels, sizes))

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Cross entropy, and five times the absolute error of sizes."""
        (logits, sizes), (labels, wanted) = model(batch.inputs), batch.targets
        return F.cross_entropy(logits, labels) + 5 * F.l1_loss(sizes, wanted)

    def count(self, answers: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> tuple[float, int]:
        return float((answers[0].argmax(-1) == targets[0]).sum()), len(targets[0])

    @torch.no_grad()
    def size_error(self, model: Model, split: Split = "test", size: int = 256) -> float:
        """The mean absolute error of heights and breadths, as a share of the canvas."""
        errors = [(model(b.inputs)[1] - b.targets[1]).abs().sum() for b in self.once(split, size)]
        return float(torch.stack(errors).sum()) / (2 * self.examples(split))

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels, sizes = batch.targets
        return 100.0 * F.one_hot(labels, 10), sizes

    def blind(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels, sizes = batch.targets
        return torch.rand(len(labels), 10, generator=generator), torch.full_like(sizes, 0.5)


@registered("digit-scenes")
class DigitScenes(_Scenes):
    """Several of scikit-learn's digits on a canvas, to be found: each 8 to 24 pixels high.

    Targets are the `Objects` of each canvas, and so are answers, with scores. A model that is trained has a method
    ``loss(canvases, boxes, labels)``, as the detectors of `hasten.models` have.

    Args:
        counts: canvases for training, validation and test.
        side: of a canvas, in pixels.
        digits: the fewest and the most of a canvas.

    Raises:
        HastenError: counts that are not three above 0, or a canvas smaller than a digit.
    """

    description = "which digits are where on a canvas: 128 x 128 pixels"
    answered = "the objects of each canvas (hasten.tasks.detection.Objects) with scores"
    metric = "AP50: average precision at an overlap of 0.5"
    chance = 0.0

    def __init__(
        self, counts: tuple[int, int, int] = (600, 100, 100), side: int = 128, digits: tuple[int, int] = (1, 6)
    ) -> None:
        _checked(counts, side)
        if not 1 <= digits[0] <= digits[1]:
            raise HastenError(f"a scene has at least one digit: got {digits[0]} to {digits[1]}")
        self.parts = _made(tuple(counts), side, tuple(digits))

    def loss(self, model: Model, batch: Batch) -> Tensor:
        trained = getattr(model, "loss", None)
        if trained is None:
            raise HastenError("a detector is trained by its own loss(canvases, boxes, labels): this model has none")
        found: Tensor = trained(batch.inputs, [o.boxes for o in batch.targets], [o.labels for o in batch.targets])
        return found

    def count(self, answers: Sequence[Objects], targets: Sequence[Objects]) -> tuple[float, int]:
        """AP50 of these canvases alone, times their number; `evaluate` has that of all of them."""
        return len(targets) * average_precision(answers, targets), len(targets)

    def evaluate(
        self, model: Model, split: Split = "test", *, size: int = 64, batches: int | None = None, seed: int = 0
    ) -> float:
        """Average precision over all canvases at once, as detections compete with those of other canvases."""
        if batches is None:
            asked = list(self.once(split, size))
        else:
            endless = self.batches(split, size, seed)
            asked = [next(endless) for _ in range(batches)]
        with torch.no_grad():
            found = [objects for batch in asked for objects in model(batch.inputs)]
        return average_precision(found, [objects for batch in asked for objects in batch.targets])

    def right(self, batch: Batch) -> list[Objects]:
        return [Objects(o.boxes, o.labels, torch.ones(len(o.labels))) for o in batch.targets]

    def blind(self, batch: Batch, generator: torch.Generator) -> list[Objects]:
        side = batch.inputs.shape[-1]
        corners = torch.rand(len(batch.targets), 4, 2, generator=generator) * (side - HEIGHTS[1])
        labels = torch.randint(10, (len(batch.targets), 4), generator=generator)
        return [
            Objects(torch.cat((c, c + HEIGHTS[1] / 2), 1), w, torch.ones(4))
            for c, w in zip(corners, labels, strict=True)
        ]
