"""AsCAN's U-Net: the way up mirrors the way down, and time, class and text are heard."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models import AsCANUNet, AsCANUNetConfig, StageLayout
from hasten.nn import MapCrossTransformer, TimedConv


def spoken(**sizes: object) -> AsCANUNet:
    """A small network whose last layer is not near silence."""
    torch.manual_seed(0)
    net = AsCANUNet(AsCANUNetConfig(widths=(8, 8, 16), head_size=8, **sizes))  # type: ignore[arg-type]
    nn.init.normal_(net.leave.weight)
    return net.eval()


def kinds(stage: nn.Module) -> str:
    return "".join("C" if isinstance(block, TimedConv) else "T" for block in stage)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", ["CC|CT|TT", "CCC|CT|T"])
def test_the_way_up_is_the_mirror(layout: str) -> None:
    net = AsCANUNet(AsCANUNetConfig(StageLayout.of(layout), "CT", head_size=8))
    down, up = ["|".join(kinds(stage) for stage in way) for way in (net.down, net.up)]  # type: ignore[arg-type]
    assert down == layout
    assert up == str(StageLayout.of(layout).reversed()) == str(net.config.up)
    assert kinds(net.middle) == "CT"
    x = torch.randn(2, 1, 16, 8)
    assert float(net(x, 3).sample.detach().abs().max()) < 0.6  # it begins near a guess of nothing


def test_attention_is_over_all_positions_of_a_smaller_map() -> None:
    net, seen = spoken(), []
    for block in net.modules():
        if isinstance(block, MapCrossTransformer):
            block.register_forward_hook(lambda module, args, made: seen.append(made.shape[2] * made.shape[3]))
    net(torch.randn(1, 1, 16, 16), 3)
    assert seen == [64, 16, 16, 16, 16, 16, 64]


def test_time_class_and_text_are_heard() -> None:
    net = spoken(text=6, classes=3)
    x, text = torch.randn(2, 1, 16, 16), torch.randn(2, 4, 6)
    labels = torch.tensor([0, 1])
    said = net(x, 10, text, labels).sample
    for other in (net(x, 500, text, labels), net(x, 10, -text, labels), net(x, 10, text, labels.flip(0))):
        assert float((other.sample - said).abs().max()) > 1e-4
    each = net(x, torch.tensor([10.0, 500.0]), text, labels).sample
    torch.testing.assert_close(each[0], said[0], rtol=1e-4, atol=1e-5)
    assert float((each[1] - said[1]).abs().max()) > 1e-4


def test_no_condition_is_a_text_of_zeros_and_one_class_more() -> None:
    net = spoken(text=6, classes=3)
    x = torch.randn(2, 1, 16, 16)
    nothing = net(x, 10).sample
    torch.testing.assert_close(net(x, 10, torch.zeros(2, 5, 6), torch.tensor([3, 3])).sample, nothing)


def test_tokens_that_are_masked_say_nothing() -> None:
    net = spoken(text=6)
    x, text = torch.randn(2, 1, 16, 16), torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
    masked = net(x, 10, text, encoder_attention_mask=mask).sample
    torch.testing.assert_close(masked, net(x, 10, text[:, :2]).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["CC|CT|TT", "CT|T|C"])
def test_each_block_of_the_way_up_reads_its_mirror(layout: str) -> None:
    torch.manual_seed(0)
    net = AsCANUNet(AsCANUNetConfig(StageLayout.of(layout), widths=(8, 16, 24), head_size=8)).eval()
    down = [block for stage in net.down for block in stage]  # type: ignore[attr-defined]
    up = [block for stage in net.up for block in stage]  # type: ignore[attr-defined]
    gave: dict[int, Tensor] = {}
    read: dict[int, Tensor] = {}

    def keep(place: int) -> Any:
        return lambda module, given, made: gave.__setitem__(place, made)

    def look(place: int) -> Any:
        return lambda module, given: read.__setitem__(place, given[0])

    for place, block in enumerate(down):
        block.register_forward_hook(keep(place))
    for place, block in enumerate(up):
        block.register_forward_pre_hook(look(place))
    with torch.no_grad():
        net(torch.randn(2, 1, 16, 16), 3)
    assert len(down) == len(up) == len(layout.replace("|", ""))
    for place, x in read.items():
        mirror = gave[len(down) - 1 - place]
        assert x.shape[1] == 2 * mirror.shape[1]
        assert torch.equal(x[:, -mirror.shape[1] :], mirror)


# The parameters of diffusers' UNet2DConditionModel.forward, in their order (its main branch, 2026).
DIFFUSERS = (
    "sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond", "attention_mask",
    "cross_attention_kwargs", "added_cond_kwargs", "down_block_additional_residuals", "mid_block_additional_residual",
    "down_intrablock_additional_residuals", "encoder_attention_mask", "return_dict",
)  # fmt: skip


def test_it_is_called_as_a_pipeline_of_diffusers_calls_its_network() -> None:
    assert tuple(inspect.signature(AsCANUNet.forward).parameters)[1:] == DIFFUSERS
    net = spoken(text=6)
    x, text = torch.randn(2, 1, 16, 16), torch.randn(2, 4, 6)
    said = net(
        x, torch.tensor(10), encoder_hidden_states=text, timestep_cond=None, cross_attention_kwargs=None,
        added_cond_kwargs=None, return_dict=False,
    )  # fmt: skip
    assert isinstance(said, tuple)
    assert len(said) == 1
    assert torch.equal(said[0], net(x, 10, text).sample)


@pytest.mark.parametrize("name", DIFFUSERS[4:11])
def test_what_it_has_no_use_for_is_refused(name: str) -> None:
    x: Any = torch.zeros(1, 1, 16, 16)
    given: dict[str, Any] = {name: {"scale": 1.0} if name.endswith("kwargs") else x}
    with pytest.raises(HastenError, match=f"no use for {name}: leave it out"):
        spoken()(x, 3, **given)


def test_wrong_sizes_are_told() -> None:
    with pytest.raises(HastenError, match="has 3 stages"):
        AsCANUNetConfig(widths=(8, 16))
    with pytest.raises(HastenError, match="counted from 0"):
        AsCANUNetConfig(classes=-1)
    with pytest.raises(HastenError, match="words of C and T"):
        AsCANUNetConfig(middle="X")
