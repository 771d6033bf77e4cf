"""Elastic blocks: kernels from kernels, parts that leave the rest alone, sorting, and what is extracted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.nn.convolutional import MBConv, SqueezeExcite, make_divisible
from hasten.nn.elastic import ElasticMBConv


def block(se: bool = True, stride: int = 1, seed: int = 0) -> ElasticMBConv:
    """One whose statistics, scales and matrices are not those of the start."""
    torch.manual_seed(seed)
    made = ElasticMBConv(16, 16, (3, 5, 7), (3, 4, 6), stride, "h_swish", se)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    for matrix in made.transforms.values():
        torch.nn.init.normal_(matrix, std=0.2)
    return made.eval()


@given(value=st.floats(1, 4000))
def test_widths_are_multiples_of_eight_near_what_was_asked(value: float) -> None:
    made = make_divisible(value)
    assert made % 8 == 0
    assert made >= 0.9 * value
    assert made <= max(8, value + 8)


def test_published_widths() -> None:
    assert [make_divisible(v) for v in (16 * 1.2, 24 * 1.2, 40 * 1.2, 112 * 1.2, 72 // 4, 1)] == [
        24,
        32,
        48,
        136,
        24,
        8,
    ]


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.sampled_from([3, 5, 7]), expand=st.sampled_from([3, 4, 6]), se=st.booleans(),
    stride=st.sampled_from([1, 2]), side=st.integers(5, 12),
)  # fmt: skip
def test_the_extracted_block_is_the_same(kernel: int, expand: int, se: bool, stride: int, side: int) -> None:
    elastic = block(se, stride)
    x = torch.randn(2, 16, side, side)
    with torch.no_grad():
        alone = elastic.extract(kernel, expand)
        assert type(alone) is MBConv
        torch.testing.assert_close(alone(x), elastic(x, kernel, expand), atol=1e-5, rtol=1e-5)


def test_what_is_extracted_shares_nothing() -> None:
    elastic = block()
    alone = elastic.extract(7, 6)
    before = {k: v.clone() for k, v in elastic.state_dict().items()}
    for tensor in alone.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in elastic.state_dict().items())


@pytest.mark.parametrize("se", [False, True])
def test_gradients_stay_within_the_part(se: bool) -> None:
    elastic = block(se).train()
    middle, hidden = elastic.middle(3), make_divisible(elastic.middle(3) // 4)
    elastic(torch.randn(4, 16, 8, 8), 3, 3).square().sum().backward()
    inner = elastic.block
    rows = [inner.expand[0].weight, inner.expand[1].weight, inner.expand[1].bias, inner.depthwise[0].weight,
            inner.depthwise[1].weight, inner.depthwise[1].bias]  # fmt: skip
    if se:
        rows += [inner.se.expand.weight, inner.se.expand.bias]
        assert (inner.se.reduce.weight.grad[hidden:] == 0).all()
        assert (inner.se.reduce.weight.grad[:, middle:] == 0).all()
        assert (inner.se.expand.weight.grad[:, hidden:] == 0).all()
    for weight in rows:
        assert weight.grad[:middle].abs().sum() > 0
        assert (weight.grad[middle:] == 0).all()
    assert (inner.project[0].weight.grad[:, middle:] == 0).all()
    # The 3x3 comes from the middle of the 7x7, by both matrices.
    ring = inner.depthwise[0].weight.grad.clone()
    ring[:, :, 1:6, 1:6] = 0
    assert (ring == 0).all()
    assert all(m.grad.abs().sum() > 0 for m in elastic.transforms.values())


def test_the_largest_kernel_leaves_the_matrices_alone() -> None:
    elastic = block().train()
    elastic(torch.randn(4, 16, 8, 8), 7, 6).sum().backward()
    assert all(m.grad is None for m in elastic.transforms.values())


def test_statistics_outside_the_part_stay() -> None:
    elastic = block().train()
    norm, middle = elastic.block.depthwise[1], elastic.middle(4)
    before = norm.running_mean.clone()
    elastic(torch.randn(4, 16, 8, 8), 5, 4)
    assert (norm.running_mean[:middle] != before[:middle]).all()
    assert torch.equal(norm.running_mean[middle:], before[middle:])


def test_706_further_weights() -> None:
    elastic = ElasticMBConv(16, 16, (3, 5, 7), (6,), 1, "relu", False)
    plain = MBConv(16, 16, elastic.middle(6), 7, 1, "relu", False)
    assert sum(p.numel() for p in elastic.parameters()) - sum(p.numel() for p in plain.parameters()) == 706


def test_a_chain_of_kernels() -> None:
    elastic = block()
    seven = elastic.block.depthwise[0].weight[:5]
    five = (seven[:, 0, 1:6, 1:6].reshape(5, 25) @ elastic.transforms["7to5"].T).view(5, 1, 5, 5)
    three = (five[:, 0, 1:4, 1:4].reshape(5, 9) @ elastic.transforms["5to3"].T).view(5, 1, 3, 3)
    torch.testing.assert_close(elastic.kernel(5, 5), five)
    torch.testing.assert_close(elastic.kernel(3, 5), three)
    assert torch.equal(elastic.kernel(7, 5), seven)


@pytest.mark.parametrize("se", [False, True])
def test_sorting_keeps_the_function_and_puts_the_important_first(se: bool) -> None:
    elastic = block(se)
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        before = elastic(x, 7, 6)
        elastic.sort_channels()
        torch.testing.assert_close(elastic(x, 7, 6), before, atol=1e-5, rtol=1e-5)
    sums = elastic.block.project[0].weight.abs().sum((0, 2, 3))
    assert (sums.diff() <= 1e-6).all()
    if se:
        units = elastic.block.se.expand.weight.abs().sum((0, 2, 3))
        assert (units.diff() <= 1e-6).all()


def test_sorting_keeps_trained_prefixes_in_front() -> None:
    elastic = block(se=False)
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        narrow, middle = elastic(x, 5, 4), elastic.middle(4)
        elastic.sort_channels([4])
        torch.testing.assert_close(elastic(x, 5, 4), narrow, atol=1e-5, rtol=1e-5)
        sums = elastic.block.project[0].weight.abs().sum((0, 2, 3))
        assert (sums[:middle].diff() <= 1e-6).all()
        assert (sums[middle:].diff() <= 1e-6).all()
        assert sums[middle:].max() > sums[:middle].min()


def test_squeeze_and_excite_has_a_quarter() -> None:
    assert SqueezeExcite(72).reduce.out_channels == 24  # 18 to the next multiple of 8 not under 0.9 of it


@pytest.mark.parametrize(("kernels", "expands"), [((), (3,)), ((3,), ()), ((4,), (3,))])
def test_what_cannot_be(kernels: tuple[int, ...], expands: tuple[int, ...]) -> None:
    with pytest.raises(HastenError, match="odd kernels"):
        ElasticMBConv(8, 8, kernels, expands, 1, "relu", False)
