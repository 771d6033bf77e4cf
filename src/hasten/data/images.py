"""Real labelled images."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hasten.data import assets
from hasten.errors import MissingExtraError
from hasten.files import parse_json


def fashion_mnist(progress: assets.Progress = lambda message: None) -> tuple[Tensor, Tensor]:
    """Articles of clothing: images (70000, 28, 28) uint8, labels (70000,) int64 (asset ``fashion-mnist``)."""
    return _classes("fashion-mnist", progress)


def mnist(progress: assets.Progress = lambda message: None) -> tuple[Tensor, Tensor]:
    """Ten thousand handwritten digits: images (10000, 28, 28) uint8, labels int64 (asset ``mnist``)."""
    return _classes("mnist", progress)


def digits() -> tuple[Tensor, Tensor]:
    """1797 small handwritten digits: images (1797, 8, 8) uint8 of 0 .. 16, labels (1797,) int64. Ships in scikit-learn.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "search") from None
    found = load_digits()
    return torch.from_numpy(found.images.astype(np.uint8)), torch.from_numpy(found.target.astype(np.int64))


def photographs(progress: assets.Progress = lambda message: None) -> list[Tensor]:
    """Two photographs as grey images (427, 640) fp32 in 0 .. 1 (asset ``photographs``).

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "vision") from None
    folder = assets.get("photographs", progress)
    return [
        torch.from_numpy(np.asarray(Image.open(path).convert("L"), np.float32) / 255)
        for path in sorted(folder.glob("*.jpg"))
    ]


def patches(image: Tensor, size: int, columns: tuple[int, int], stride: int = 2) -> Tensor:
    """Square patches of an image (height, width) whose left edges lie within ``columns``, flat: (count, size^2).

    Patches never reach past the second column plus ``size``: two ranges that far apart share no pixel.
    """
    part = image[:, columns[0] : columns[1] + size]
    return part.unfold(0, size, stride).unfold(1, size, stride).reshape(-1, size * size).contiguous()


def _classes(name: str, progress: assets.Progress) -> tuple[Tensor, Tensor]:
    images, labels = _read(assets.get(name, progress))
    return images.clone(), labels.clone()


@lru_cache(maxsize=2)
def _read(folder: Path) -> tuple[Tensor, Tensor]:
    """Kept: the numbers are text, of which seventy thousand images take seconds."""
    images, labels = [], []
    for label in range(10):
        data = parse_json((folder / f"{label}.json").read_bytes())["data"]
        # One package keeps a list of images, the other one flat list; some rows of the first are empty.
        if isinstance(data[0], list):
            # Through bytes: a tensor from nested lists takes ten times as long.
            values = np.frombuffer(bytes(chain.from_iterable(row for row in data if len(row) == 784)), np.uint8)
        else:
            values = np.rint(np.array(data, np.float32) * 255).astype(np.uint8)
        images.append(values.reshape(-1, 28, 28))
        labels.append(np.full(len(images[-1]), label))
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))
