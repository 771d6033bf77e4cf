"""AsCAN: layouts, their rules and number, and the sizes that were fitted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models import AsCAN, AsCANConfig, StageLayout
from hasten.models.vision.ascan import FITTED, layouts
from hasten.models.vision.backbone import multiply_accumulates
from hasten.nn import MapTransformer

# Parameters and millions of multiply-accumulates without the relative bias.
SIZES = {
    "ascan-fit-t": (55_534_210, 7674.5),
    "ascan-fit-b": (99_189_252, 16579.5),
    "ascan-fit-l": (173_835_256, 30822.4),
}
# Other places for the same 21 blocks, at the widths of the smallest.
ELSEWHERE = {
    "CT|CT|CCCCCTTTTT|CCCTTTT": (85_087_750, 10.49e3),
    "TT|TT|TTTTTTTCCC|CCCCCCC": (131_241_040, 14.05e3),
    "CC|CC|CCCCCCCCCC|CCCCCCC": (150_565_250, 14.77e3),
}


def sizes(model: nn.Module) -> tuple[int, float]:
    return sum(p.numel() for p in model.parameters()), multiply_accumulates(model, (3, 224, 224)) / 1e6


@pytest.mark.parametrize("name", SIZES)
def test_fitted_sizes(name: str) -> None:
    with torch.device("meta"):
        model, biased = AsCAN.named(name, relative=False), AsCAN.named(name)
    parameters, products = SIZES[name]
    assert sizes(model) == (parameters, pytest.approx(products, abs=0.06))
    assert sum(p.numel() for p in biased.parameters()) == pytest.approx(parameters, rel=0.01)
    assert SIZES.keys() == FITTED.keys()


@pytest.mark.parametrize("layout", ELSEWHERE)
def test_other_places_of_the_same_blocks(layout: str) -> None:
    config = replace(FITTED["ascan-fit-t"], layout=StageLayout.of(layout), relative=False, head_size=16)
    with torch.device("meta"):
        model = AsCAN(config)
    parameters, products = ELSEWHERE[layout]
    assert sizes(model) == (parameters, pytest.approx(products, abs=5))


def test_layouts_are_counted() -> None:
    blocks = (2, 2, 8, 4)
    assert [len(layouts(blocks, r, e)) for r, e in ((False, 0), (True, 0), (True, 2))] == [405, 46, 25]
    assert all(not made.why_uneven() for made in layouts(blocks, True, 2))
    assert str(FITTED["ascan-fit-t"].layout) == "CC|CC|CCCTTTTTTT|TTTTTTT"
    assert not any(c.layout.why_uneven() for c in FITTED.values())


def test_a_last_stage_of_convolutions_is_remarked_on() -> None:
    """The paper's rules that a search keeps say nothing of it: such layouts are among the 25."""
    plain = StageLayout.of("CC|CC|CC|CC")
    assert plain.why_uneven() == ""
    for text in ("CC|CC|CC|CC", "CC|CC|CC|CT", "TT|CC|CC|CCT"):
        assert "of the last stage" in StageLayout.of(text).remark()
    for text in ("CC|CC|CC|TT", "CC|CC|CC|CTT", "T", *(str(c.layout) for c in FITTED.values())):
        assert StageLayout.of(text).remark() == ""
    ruled = layouts((2, 2, 8, 4), True, 2)
    assert (len(ruled), sum(not made.remark() for made in ruled)) == (25, 16)


def test_attention_reads_every_position_of_its_stage() -> None:
    model, seen = AsCAN(AsCANConfig(StageLayout.of("CT|CT|TT"))), []
    for stage, blocks in enumerate(model.stages):
        for block in blocks:  # type: ignore[attr-defined]
            if isinstance(block, MapTransformer):
                block.qkv.register_forward_hook(lambda m, given, made, k=stage: seen.append((k, made.shape[1])))
    model(torch.zeros(1, 3, 32, 32))
    # The stem of the small network halves nothing: at stage k the maps are of R / 2^(k + 1) pixels a side.
    assert seen == [(k, (32 // 2 ** (k + 1)) ** 2) for k in (0, 1, 2, 2)]


def test_rules_say_what_is_broken() -> None:
    said = {
        "TC|CT": "behind a transformer layer",
        "CT|CC": "a smaller share",
        "CT|TT": "one of the first 1 stages",
    }
    for text, why in said.items():
        assert why in StageLayout.of(text).why_uneven()
    for wrong in ("", "CC||T", "CX"):
        with pytest.raises(HastenError, match="words of C and T"):
            StageLayout.of(wrong)
    with pytest.raises(HastenError, match="has 2 stages"):
        AsCANConfig(StageLayout.of("C|T"))


def test_the_way_up_mirrors_the_way_down() -> None:
    down = StageLayout.of("CC|CCT|TTT")
    assert str(down.reversed()) == "TTT|TCC|CC"
    assert down.reversed().reversed() == down


def test_with_silent_branches_only_the_way_down_is_left() -> None:
    torch.manual_seed(0)
    model = AsCAN(AsCANConfig(StageLayout.of("CC|CT|TT"))).eval()
    skips = []
    with torch.no_grad():
        for stage in model.stages:
            for block in stage:  # type: ignore[attr-defined]
                if hasattr(block, "skip"):
                    block.project[1].weight.zero_()
                    skips.append(block.skip)
                else:
                    for layer in (block.project, block.feed_forward[-1]):
                        layer.weight.zero_()
                        layer.bias.zero_()
                    skips.append(block.change)
        x = torch.randn(2, 3, 32, 32)
        wanted = model.stem(x)
        for skip in skips:
            wanted = skip(wanted)
        torch.testing.assert_close(model.forward_features(x), wanted)
