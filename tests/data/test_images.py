"""Labelled images: counts, shapes and what a class looks like."""

from __future__ import annotations

import pytest
import torch

from hasten.data import assets
from hasten.data.images import fashion_mnist, mnist, patches, photographs


@pytest.mark.asset
@pytest.mark.parametrize(
    ("name", "read", "count"), [("fashion-mnist", fashion_mnist, 70_000), ("mnist", mnist, 10_000)]
)
def test_images_come_with_their_labels(name: str, read: object, count: int) -> None:
    if assets.cached(name) is None:
        pytest.skip(f"needs `hasten assets get {name}`")
    assert callable(read)
    images, labels = read()
    assert images.shape == (count, 28, 28)
    assert images.dtype == torch.uint8
    assert int(images.max()) == 255
    assert labels.shape == (count,)
    assert labels.unique().tolist() == list(range(10))
    # Labels mean something: the nearest class mean tells most images' class, and chance is one in ten.
    flat = images.float().reshape(count, -1)
    means = torch.stack([flat[labels == k][::2].mean(0) for k in range(10)])
    held_out = torch.cat([torch.arange(count)[labels == k][1::20] for k in range(10)])
    guessed = torch.cdist(flat[held_out], means).argmin(1)
    assert (guessed == labels[held_out]).float().mean() > 0.6


def test_patches_of_far_columns_share_no_pixel() -> None:
    image = torch.arange(20 * 60, dtype=torch.float32).reshape(20, 60)
    one, other = patches(image, 4, (0, 20)), patches(image, 4, (30, 50))
    assert one.shape == (9 * 11, 16)
    assert torch.equal(one[0].view(4, 4), image[:4, :4])
    assert not set(one.flatten().tolist()) & set(other.flatten().tolist())


def test_photographs_are_grey_pictures() -> None:
    pytest.importorskip("PIL")
    if assets.cached("photographs") is None:
        pytest.skip("needs `hasten assets get photographs`")
    images = photographs()
    assert [tuple(i.shape) for i in images] == [(427, 640)] * 2
    assert all(0 <= float(i.min()) < 0.2 for i in images)
    assert all(0.8 < float(i.max()) <= 1 for i in images)
