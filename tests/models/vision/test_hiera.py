"""Hiera: published sizes, one order for all stages, who attends to whom where stages meet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models import Hiera, HieraConfig
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.hiera import PUBLISHED

# Parameters, and thousands of millions of multiply-accumulates at 224 pixels.
SIZES = {
    "hiera-tiny": (27_910_216, 4.901),
    "hiera-small": (35_008_072, 6.406),
    "hiera-base": (51_524_968, 9.375),
    "hiera-base-plus": (69_896_616, 12.641),
    "hiera-large": (213_739_912, 40.271),
    "hiera-huge": (672_779_752, 124.733),
    "hiera-tiny-64": (12_659_752, 2.246038528),
}
SMALL = HieraConfig(
    (8, 16, 24), (1, 2, 2), (1, 2, 1), (False, True, True), (True, True, False), (2, 2, 3), 4, 3, 2, 16, 1, 5
)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = Hiera.named(name)
    parameters, products = SIZES[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    digits = len(str(products).partition(".")[2])
    assert round(multiply_accumulates(model, (3, 224, 224)) / 1e9, digits) == products
    assert SIZES.keys() == PUBLISHED.keys()
    assert PUBLISHED[name].parameters == parameters
    assert PUBLISHED[name].products == multiply_accumulates(model, (3, 224, 224))


def test_tokens_are_ordered_once() -> None:
    model, x = Hiera(SMALL).eval(), torch.randn(2, 1, 16, 16)
    maps = model.stem(x)
    for stage in model.stages:
        maps = stage(maps)
    torch.testing.assert_close(model.forward_features(x), maps)
    assert maps.shape == (2, 24, 2, 2)


def test_a_stage_s_first_block_attends_as_the_stage_before() -> None:
    blocks = HieraConfig().blocks
    assert [b.unit for b in blocks] == [64, 64, 16, 16, *[0] * 6, 0, 0]
    assert [(b.side, b.pool) for b in blocks] == [
        (56, False), (56, True), (28, False), (28, True), *[(14, False)] * 6, (14, True), (7, False)
    ]  # fmt: skip
    local = replace(HieraConfig(), local=(True, False, True, True)).blocks
    assert [b.unit for b in local] == [64, 64, 0, 0, *[4] * 6, 4, 1]


def test_its_start() -> None:
    """As published: biases of linear layers and norms, of the convolution torch's own, and a classifier near 0."""
    torch.manual_seed(0)
    model = Hiera(SMALL)
    inner = [m for n, m in model.named_modules() if n != "classifier"]
    biases = [m.bias.detach() for m in inner if isinstance(m, nn.Linear | nn.LayerNorm)]
    norms = [m for m in inner if isinstance(m, nn.LayerNorm)]
    # Of 4 blocks two norms, qkv, projection and two of the feed-forward; two that change the width; the head's norm.
    assert len(biases) == 4 * 6 + 2 + 1
    assert all((b == torch.tensor(0.02)).all() for b in biases)
    assert all((m.weight == 1).all() for m in norms)
    (stem,) = [m for m in inner if isinstance(m, nn.Conv2d)]
    assert stem.bias is not None
    assert len(stem.bias.unique()) == 8
    assert float(stem.bias.detach().abs().max()) <= 1 / 3  # 1 / sqrt(1 * 3 * 3)
    weights = [m.weight.detach() for m in inner if isinstance(m, nn.Linear)]
    for weight in (*weights, model.stem.places.detach()):  # type: ignore[union-attr]
        assert float(weight.std()) == pytest.approx(0.02, rel=0.2)
    classifier = model.classifier
    assert isinstance(classifier, nn.Linear)
    assert torch.allclose(classifier.bias, torch.tensor(2e-5))
    assert float(classifier.weight.detach().std()) == pytest.approx(2e-5, rel=0.2)
    assert "places" in {n.rpartition(".")[2] for n, p in model.named_parameters() if getattr(p, "no_decay", False)}


def test_it_gives_logits_in_training_and_in_evaluation() -> None:
    """The published head gives shares in evaluation; what trains, loads and judges networks here takes logits."""
    model, images = Hiera(SMALL), torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        nn.init.normal_(model.classifier.get_parameter("weight"))
        trained, judged = model.train()(images), model.eval()(images)
    assert torch.equal(trained, judged)
    assert not torch.allclose(judged.sum(1), torch.ones(3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HastenError, match="takes images of 16 x 16 pixels"):
        Hiera(SMALL)(torch.zeros(1, 1, 20, 20))
    with pytest.raises(HastenError, match="does not divide into mask units"):
        Hiera.named("hiera-tiny", img_size=240)
    with pytest.raises(HastenError, match="not cut at a stride"):
        replace(SMALL, image=15)
    with pytest.raises(HastenError, match="its first stage does not pool"):
        replace(SMALL, pool=(True, True, False))
    with pytest.raises(HastenError, match="one a stage"):
        replace(SMALL, depths=(1, 1))
    with pytest.raises(HastenError, match="do not divide widths"):
        replace(SMALL, heads=(3, 2, 2))
