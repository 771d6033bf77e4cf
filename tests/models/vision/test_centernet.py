"""CenterNet: sizes, targets, the loss, decoding, and that it learns; CoDeNet's exact size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import nn as tnn

from hasten.errors import HastenError
from hasten.models import CenterNet, CentreMaps, ResNet, ShuffleNetV2, SizingNetwork, named
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.centernet import centre_focal_loss, decode_centres, draw_centres, gaussian_radius
from hasten.nn import DeformableConv2d
from hasten.nn.deformable import operator
from hasten.tasks.detection import average_precision, box_overlaps


def small(classes: int = 2, name: str = "square-depthwise") -> CenterNet:
    torch.manual_seed(0)
    maps = ResNet(10, 1, (1, 1, 1), 8).features_only((-1,))  # reduces by 4
    return CenterNet(maps, classes, (16,), 16, operator(name))


def test_published_sizes_are_exact() -> None:
    model = named.build("codenet-voc")
    assert isinstance(model, CenterNet)
    assert parameters_of(model) == 2_009_346
    heads = [model.heat, model.sizes, model.shifts]
    assert [parameters_of(p) for p in (model.maps, model.decoder)] == [1_253_604, 698_883]
    assert sum(map(parameters_of, heads)) == 56_859
    # Beside the convolutions that predict offsets.
    assert multiply_accumulates(model, (3, 512, 512)) / 1e9 == pytest.approx(2.1, abs=0.1)
    dense = named.build("codenet-voc", operator="plain")
    assert parameters_of(dense) / 1e6 == pytest.approx(7.9, abs=0.1)
    assert multiply_accumulates(dense, (3, 512, 512)) / 1e9 == pytest.approx(11.7, abs=0.2)
    assert model.example_inputs(2).shape == (2, 3, 512, 512)
    assert isinstance(model.decoder[0], DeformableConv2d)
    assert (model.decoder[0].bound, model.decoder[0].depthwise) == (8, True)


@pytest.mark.parametrize(("name", "megabytes", "products"), [("1x", 0.76, 1.14), ("2x", 2.90, 3.58)])
def test_deployed_sizes_are_near_what_is_published(name: str, megabytes: float, products: float) -> None:
    model = named.build(f"codenet-{name}-voc")
    assert parameters_of(model) / 2e6 == pytest.approx(megabytes, rel=0.05)
    assert multiply_accumulates(model, (3, 512, 512)) / 1e9 == pytest.approx(products, rel=0.05)


def test_classes_and_channels_are_options() -> None:
    model = named.build("codenet-1x-voc", device="cpu", dtype=torch.float32, num_classes=3, in_chans=1)
    found = model(torch.randn(1, 1, 64, 64))
    assert isinstance(found, CentreMaps)
    assert [tuple(m.shape) for m in found] == [(1, 3, 16, 16), (1, 2, 16, 16), (1, 2, 16, 16)]
    assert float(found.heat.sigmoid().mean()) < 0.05
    with pytest.raises(HastenError, match="no operator is called"):
        named.build("codenet-voc", operator="k3")
    maps = ShuffleNetV2().features_only((-1,))
    for classes, widths in ((0, (8,)), (2, ()), (2, (8,) * 6)):
        with pytest.raises(HastenError, match="a class or more and 1 to 5 steps up"):
            CenterNet(maps, classes, widths)


def test_boxes_moved_by_the_radius_still_overlap() -> None:
    sizes = torch.tensor([[10.0, 20.0], [3.0, 40.0], [7.0, 7.0]])
    radius = gaussian_radius(sizes)
    box = torch.cat((torch.zeros(3, 2), sizes), 1)
    least = torch.ones(3)
    for signs in ((1, 1, 1, 1), (1, 1, -1, -1), (-1, -1, 1, 1)):
        other = box + radius[:, None] * torch.tensor(signs)
        least = torch.minimum(least, box_overlaps(box, other).diagonal())
    torch.testing.assert_close(least, torch.full((3,), 0.7), rtol=1e-4, atol=1e-4)


def test_a_centre_is_1_and_falls_off() -> None:
    heat = torch.zeros(2, 9, 9)
    places = (torch.tensor([2, 6]), torch.tensor([3, 3]))
    draw_centres(heat, places, torch.tensor([2.9, 0.0]), torch.tensor([1, 1]))
    assert heat[0].sum() == 0
    assert heat[1, 3, 2] == heat[1, 3, 6] == 1
    assert heat[1, 3, 3] == pytest.approx(math.exp(-1 / (2 * (5 / 6) ** 2)))
    assert heat[1, 3, 5] == 0  # a radius of 2 ends before


def test_the_loss_is_its_formula() -> None:
    logits, wanted = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.rand(1, 2, 3, 3, dtype=torch.float64)
    wanted[0, 1, 1, 1] = wanted[0, 0, 2, 0] = 1
    p = logits.sigmoid()
    terms = [
        (1 - a) ** 2 * math.log(a) if t == 1 else (1 - t) ** 4 * a**2 * math.log(1 - a)
        for a, t in zip(p.flatten().tolist(), wanted.flatten().tolist(), strict=True)
    ]
    assert float(centre_focal_loss(logits, wanted)) == pytest.approx(-sum(terms) / 2)
    assert centre_focal_loss(torch.full((1, 1, 2, 2), 200.0), torch.zeros(1, 1, 2, 2)).isfinite()


def test_decoding_finds_peaks_alone() -> None:
    heat = torch.full((1, 2, 8, 8), -9.0)
    heat[0, 1, 2, 3], heat[0, 1, 2, 4], heat[0, 0, 6, 6] = 3.0, 2.0, 1.0
    sizes, shifts = torch.full((1, 2, 8, 8), 2.0), torch.full((1, 2, 8, 8), 0.25)
    sizes[0, 0] = 4.0
    (found,) = decode_centres(CentreMaps(heat, sizes, shifts), 4, most=2)
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[5, 5, 21, 13], [17, 21, 33, 29]]
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 1.0]).sigmoid().tolist())


def _scenes() -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Squares (class 0) and frames (class 1) of 12 to 16 pixels on 32 x 32."""
    images, boxes = torch.zeros(4, 1, 32, 32), []
    for i in range(4):
        x, y, side = 4 * i, 3 * i + 2, 12 + 4 * (i // 2)
        images[i, 0, y : y + side, x : x + side] = 1
        if i % 2:
            images[i, 0, y + 4 : y + side - 4, x + 4 : x + side - 4] = 0
        boxes.append(torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32))
    return images, boxes, [torch.tensor([i % 2]) for i in range(4)]


def test_it_learns_where_and_what() -> None:
    from hasten.train.fitting import fit

    model, (images, boxes, labels) = small(), _scenes()
    losses = fit(model, lambda step: model.loss(images, boxes, labels), steps=80, peak=1e-2, weight_decay=0.0)
    assert losses[-1] < 0.2 * losses[0]
    # In training mode, as so few images have other statistics than so few steps have seen.
    found = model.detect(images, 5)
    from hasten.tasks.detection import Objects

    wanted = [Objects(b, c) for b, c in zip(boxes, labels, strict=True)]
    assert average_precision(found, wanted) > 0.9


def test_an_image_of_nothing_has_a_loss() -> None:
    model = small()
    loss = model.loss(torch.zeros(2, 1, 32, 32), [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2)
    assert loss.isfinite()
    loss.backward()


def test_a_sizing_network_answers_both_questions() -> None:
    name, size = SizingNetwork(operator("plain"))(torch.randn(3, 1, 32, 32))
    assert (name.shape, size.shape) == ((3, 10), (3, 2))
    assert isinstance(SizingNetwork(operator("bound", 4.0)).features[6], tnn.Module)
