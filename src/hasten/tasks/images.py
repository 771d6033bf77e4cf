"""Real labelled images: MNIST, Fashion-MNIST, and scikit-learn's small digits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.data import images as data
from hasten.errors import HastenError
from hasten.tasks.task import SPLITS, LabelledExamples, registered

_LOAD: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "mnist": data.mnist,
    "fashion-mnist": data.fashion_mnist,
    "digits": data.digits,
}


@functools.lru_cache(maxsize=2)
def _shuffled(source: str) -> tuple[Tensor, Tensor]:
    pictures, labels = _LOAD[source]()
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return pictures[order, None].float(), labels[order]


def permute_pixels(pictures: Tensor) -> Tensor:
    """Pictures (..., height, width) with their pixels in one random order, the same for all of one size."""
    *_, height, width = pictures.shape
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
    return pictures.flatten(-2)[..., order].unflatten(-1, (height, width))


class LabelledImages(LabelledExamples):
    """Labelled images, shuffled by a fixed seed.

    Pixels are centred and scaled by the mean and the deviation of the first 10,000 for training.

    Args:
        counts: images for training, validation and test; eight, one and one tenth when None.
        halved: whether 2 x 2 pixels are averaged.
        permuted: whether all pixels stand in one random order, the same in every image: what is near tells nothing.

    Raises:
        HastenError: the images are not on this machine, or counts that they do not have.
    """

    given = "images (batch, 1, height, width), fp32, of mean 0 and deviation 1"
    answered = "logits (batch, 10)"
    classes = 10
    source: ClassVar[str]

    def __init__(self, counts: Sequence[int] | None = None, *, halved: bool = False, permuted: bool = False) -> None:
        pictures, labels = _shuffled(self.source)
        total = len(labels)
        counts = (total - 2 * (total // 10), total // 10, total // 10) if counts is None else tuple(counts)
        if len(counts) != 3 or min(counts) < 1 or sum(counts) > total:
            raise HastenError(f"{self.source} has {total} images: give three counts above 0 within that")
        if halved:
            pictures = F.avg_pool2d(pictures, 2)
        if permuted:
            pictures = permute_pixels(pictures)
        some = pictures[: min(10_000, counts[0])]
        pictures = (pictures - some.mean()) / some.std()
        sizes = [*counts, total - sum(counts)]
        self.parts = dict(zip(SPLITS, zip(pictures.split(sizes), labels.split(sizes), strict=True), strict=False))


@registered("mnist")
class MNIST(LabelledImages):
    """Ten thousand handwritten digits of 28 x 28 pixels (asset ``mnist``)."""

    description = "which digit was written: 28 x 28 pixels"
    source = "mnist"


@registered("fashion-mnist")
class FashionMNIST(LabelledImages):
    """Seventy thousand articles of clothing of 28 x 28 pixels (asset ``fashion-mnist``)."""

    description = "which article of clothing it is: 28 x 28 pixels"
    source = "fashion-mnist"


@registered("digits")
class Digits(LabelledImages):
    """1,797 handwritten digits of 8 x 8 pixels, which scikit-learn carries."""

    description = "which digit was written: 8 x 8 pixels"
    source = "digits"
