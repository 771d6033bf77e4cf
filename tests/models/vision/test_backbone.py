"""timm's conventions, of every backbone that is published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hasten.cost.preserving import check_same, fold_normalization
from hasten.errors import HastenError
from hasten.models import (
    AsCAN,
    Backbone,
    DenseLayers,
    DenseNet,
    FeatureMaps,
    Hiera,
    HieraConfig,
    LowFormer,
    LowFormerConfig,
    PlainLayers,
    PlainNet,
    ProxylessConfig,
    ProxylessNet,
    PyramidTreeConfig,
    PyramidTreeNet,
    ResNet,
    ShuffleNetConfig,
    ShuffleNetV2,
    SimpleNet,
    SimpleNetConfig,
    named,
)
from hasten.models.registry import builders
from hasten.models.vision.backbone import equal_products, multiply_accumulates

_TREES = PyramidTreeConfig((1, 1, 1), first=4, growth=4, stem=4)
SMALL: dict[str, Any] = {
    "AsCAN": AsCAN,
    # Blocks of both kinds, early and late: by the paper's rule all of a network this narrow would be fused.
    "LowFormer": lambda: LowFormer(
        LowFormerConfig(
            (4, 8, 8, 32, 32), (1, 1, 2, 1, 1), (8, 16), fused=(True, True, False, False, True), classes=10
        )
    ),
    "DenseNet": lambda: DenseNet(DenseLayers(8, ((4, 4), (4,), (4,)))),
    "Hiera": lambda: Hiera(
        HieraConfig(
            (8, 16, 16), (1, 2, 2), (1, 1, 1), (False, True, True), (True, True, False), (2, 2, 2), 4, image=64,
            classes=10,
        )
    ),
    "ProxylessNet": lambda: ProxylessNet(
        ProxylessConfig((8, 12, 16), (1, 1, 1), (2, 2, 2), stem=8, first=8, last=32, classes=10), (1, 1, 1)
    ),
    "PyramidTreeNet": lambda: PyramidTreeNet(_TREES, _TREES.of_letters("i357damiidma" * 3)),
    "ResNet": lambda: ResNet(10, 3, (2, 1, 1), 8),
    "ShuffleNetV2": lambda: ShuffleNetV2(ShuffleNetConfig((8, 8, 12), 16, (1, 2, 1), 4, classes=10)),
    "PlainNet": lambda: PlainNet(PlainLayers((((3, 8),), ((3, 8), (5, 12)), ((3, 16),)), (24,))),
    "SimpleNet": lambda: SimpleNet(SimpleNetConfig("8 8 p 16 16' p 16", (2,))),
}  # fmt: skip
each = pytest.mark.parametrize("name", SMALL)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return SMALL[name]().eval()


def test_every_backbone_is_here() -> None:
    kinds = {getattr(b, "__self__", None) for b in builders().values()}
    assert {k.__name__ for k in kinds if isinstance(k, type) and issubclass(k, Backbone)} == set(SMALL)


@each
def test_head_and_classifier(name: str) -> None:
    model, x = made(name), torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, model.levels[-1].channels, *(64 // model.levels[-1].reduction,) * 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.get_classifier() is model.classifier
    assert model.num_classes == 10
    model.double().reset_classifier(3)
    assert model(x.double()).shape == (2, 3)
    assert not model.classifier.training
    model.reset_classifier(0)
    assert (model.num_classes, model(x.double()).shape) == (0, (2, model.num_features))
    with pytest.raises(HastenError, match="num_classes from 0"):
        model.reset_classifier(-1)
    model.reset_classifier(2, global_pool=None)
    with pytest.raises(HastenError, match="pools as it was made to"):
        model.reset_classifier(2, "max")


@each
def test_feature_maps(name: str) -> None:
    model, x = made(name), torch.randn(1, 3, 64, 64)
    maps = model.features_only()
    assert isinstance(maps, FeatureMaps)
    found = maps(x)
    assert [(m.shape[1], 64 // m.shape[2]) for m in found] == [(lv.channels, lv.reduction) for lv in model.levels]
    assert [(i["num_chs"], i["reduction"]) for i in maps.feature_info] == [
        (lv.channels, lv.reduction) for lv in model.levels
    ]
    assert maps.feature_info.channels() == [m.shape[1] for m in found]
    assert maps.feature_info.reduction(-1) == 64 // found[-1].shape[2]
    assert maps.feature_info.module_name((0,)) == ["stages.0"]
    torch.testing.assert_close(found[-1], model.forward_features(x))
    some = model.features_only((1, -3))
    count = len(model.levels)
    assert some.indices == tuple(sorted({1, count - 3}))
    assert len(some.stages) == max(some.indices) + 1  # what nobody asked for is left out
    for wanted in ((), (count,), (-count - 1,)):
        with pytest.raises(HastenError, match="out_indices are among"):
            model.features_only(wanted)


@each
def test_folding_the_whole_network_keeps_its_logits(name: str) -> None:
    model, x = made(name), torch.randn(4, 3, 64, 64)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    folded = fold_normalization(model)
    norms = [n for n, m in folded.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms or name in ("DenseNet", "PyramidTreeNet")  # they normalize before they convolve
    check_same(model, folded, (x,), 1e-4)


@pytest.mark.slow_except("LowFormer", "PlainNet", "ResNet")
@each
def test_it_exports(name: str) -> None:
    model, x = made(name), torch.randn(2, 3, 64, 64)
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(program(x), model(x))


def _for_images() -> list[str]:
    """Names of published networks that are no language models."""
    return [n for n, b in builders().items() if ".vision." in b.__module__]


@pytest.mark.parametrize("name", _for_images())
def test_every_published_network_says_what_it_takes(name: str) -> None:
    model: Any = named.build(name)
    images = model.example_inputs(2)
    assert images.dtype is torch.bfloat16
    small = any(word in name for word in ("cifar", "densenet", "eas", "darts-v1", "terminator")) or name == "darts-v2"
    assert images.shape[1:] == ((3, 32, 32) if small else (3, 512, 512) if "codenet" in name else (3, 224, 224))


def test_names_take_timm_s_options() -> None:
    for name in ("lowformer_b1", "simplenetv1_5m_m1", "ascan_fit_t"):
        model: Any = named.build(name, num_classes=7, in_chans=1)
        assert model.num_classes == 7
        assert next(p for p in model.parameters() if p.ndim == 4).shape[1] == 1
    with pytest.raises(HastenError, match="lowformer-b0 takes in_chans from 1"):
        named.build("lowformer-b0", in_chans=0)
    with pytest.raises(HastenError, match="takes no option 'width'"):
        named.build("lowformer-b0", width=3)


def test_products_are_counted_with_attention_s() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ConvTranspose2d(8, 4, 2, 2))
    # A transposed convolution's are those of its input's positions.
    assert multiply_accumulates(model, (3, 8, 8)) == 16 * 27 * 8 + 16 * 4 * 8 * 4


def test_a_size_of_equal_products_is_the_first_that_is_close_or_the_nearest() -> None:
    seen = []

    def build(width: int) -> torch.nn.Module:
        seen.append(width)
        return torch.nn.Conv2d(1, width, 1)

    image = (1, 10, 10)  # 100 products a channel
    assert equal_products((50, 104, 100), build, image, 10_000) == 104
    assert seen == [50, 104]  # what is close enough ends it
    assert equal_products((50, 104, 100), build, image, 10_000, close=0.01) == 100
    assert equal_products((50, 120, 90, 80), build, image, 10_000) == 90
    with pytest.raises(HastenError, match="no sizes to choose from"):
        equal_products((), build, image, 10_000)


class Matrices(torch.nn.Module):
    """A product of 4 x 6 by 6 x 5 of each of two channels, in every spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 6, 5))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = [x @ self.weight, torch.matmul(x, self.weight), x.matmul(self.weight)]
        second = [torch.bmm(x[0], self.weight), x[0].bmm(self.weight)]
        return [
            *first,
            *second,
            torch.mm(x[0, 0], self.weight[0]),
            x[0, 0].mm(self.weight[0]),
            x[0, 0] @ self.weight[0, :, 0],
        ]


def test_products_of_matrices_are_counted_in_every_spelling() -> None:
    assert multiply_accumulates(Matrices(), (2, 4, 6)) == 5 * 2 * 4 * 6 * 5 + 2 * 4 * 6 * 5 + 4 * 6


@each
def test_no_backbone_multiplies_matrices_by_itself(name: str) -> None:
    """What is published of their products is what it was without such: attention's are counted as attention."""
    multiplied: list[str] = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("matmul", "__matmul__", "__rmatmul__", "bmm", "mm"):
                multiplied.append(func.__name__)
            return func(*args, **(kwargs or {}))

    model = made(name)
    with Seen(), torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert not multiplied
