"""Residual stacks side by side: exact where it is exact, off by what the expansion says where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hasten.cost.measuring import log_slope
from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError
from hasten.nn import MapTransformer, ResidualBranch, ResidualStack, fuse_parallel, taylor_gap, to_parallel


class Scaled(nn.Module):
    """A branch times a number."""

    def __init__(self, branch: nn.Module, scale: float) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale * self.branch(x)
        return y


def convolutions(count: int, width: int = 4, kernel: int = 3) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU())
        for _ in range(count)
    ]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_a_single_block_is_itself_to_the_last_bit() -> None:
    block = MapTransformer(8, 8, head_size=4)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(to_parallel([block])(x), block(x))
    branch = nn.Linear(5, 5)
    deep, shallow = ResidualStack([branch]), to_parallel(ResidualStack([branch]))
    y = torch.randn(2, 5)
    assert torch.equal(deep(y), shallow(y))
    assert torch.equal(deep(y), y + branch(y))


def test_of_two_linear_branches_their_product_is_left_out() -> None:
    one, two = (nn.Linear(6, 6, bias=False).double() for _ in range(2))
    stack = ResidualStack([one, two])
    x = torch.randn(3, 6, dtype=torch.double)
    left_out = stack(x) - to_parallel(stack)(x)
    torch.testing.assert_close(left_out, two(one(x)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_parallel(stack, order=2)(x), stack(x), rtol=1e-12, atol=1e-12)


def test_of_three_linear_branches_all_products_of_two_and_more_are_left_out() -> None:
    branches = [nn.Linear(6, 6, bias=False).double() for _ in range(3)]
    w1, w2, w3 = (b.weight.detach() for b in branches)
    stack = ResidualStack(branches)
    x = torch.randn(3, 6, dtype=torch.double)
    first, second = (x @ p.T for p in (w2 @ w1 + w3 @ w1 + w3 @ w2, w3 @ w2 @ w1))
    deep = stack(x).detach()
    torch.testing.assert_close(deep - to_parallel(stack)(x), first + second, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(deep - to_parallel(stack, order=2)(x), second, rtol=1e-12, atol=1e-12)


def test_linear_branches_stay_within_the_bound_of_their_norms() -> None:
    stack = ResidualStack([nn.Linear(6, 6, bias=False) for _ in range(5)])
    x = torch.randn(4, 6)
    gap = taylor_gap(stack, x, rounds=200)
    norms = [float(torch.linalg.matrix_norm(b.weight.detach(), 2)) for b in stack.branches]  # type: ignore[arg-type]
    assert gap.norms == pytest.approx(norms, rel=1e-3)
    assert gap.bound == pytest.approx(math.exp(sum(norms)) - 1 - sum(norms), rel=1e-2)
    left_out = (stack(x) - to_parallel(stack)(x)).norm(dim=1)
    assert bool((left_out <= gap.bound * x.norm(dim=1)).all())


@pytest.mark.parametrize(("order", "slope"), [(1, 2.0), (2, 3.0)])
def test_small_branches_are_off_by_a_power_of_their_size(order: int, slope: float) -> None:
    branches = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double() for _ in range(4)]
    x = torch.randn(5, 6, dtype=torch.double)
    scales = [0.02, 0.01, 0.005, 0.0025]
    gaps = []
    for scale in scales:
        stack = ResidualStack([Scaled(b, scale) for b in branches])
        gaps.append(float((to_parallel(stack, order=order)(x) - stack(x)).norm()))
    assert log_slope(scales, gaps) == pytest.approx(slope, abs=0.05)


def test_the_order_of_branches_counts_for_nothing_side_by_side() -> None:
    branches = convolutions(4)
    x = torch.randn(2, 4, 6, 6)
    one, other = to_parallel(ResidualStack(branches)), to_parallel(ResidualStack(branches[::-1]))
    assert difference(one, other, (x,)) < 1e-6
    assert difference(ResidualStack(branches), ResidualStack(branches[::-1]), (x,)) > 1e-3


def test_groups_lie_between_deep_and_shallow() -> None:
    stack = ResidualStack(convolutions(5))
    assert stack.sizes == (1, 1, 1, 1, 1)
    assert to_parallel(stack, 2).sizes == (3, 2)
    assert ResidualStack(list(stack.branches), (1, 4)).sizes == (1, 4)
    x = torch.randn(2, 4, 6, 6)
    two = ResidualStack(list(stack.branches)[3:], 1)(ResidualStack(list(stack.branches)[:3], 1)(x))
    torch.testing.assert_close(to_parallel(stack, 2)(x), two)
    for wrong in (0, 6, (2, 2), ()):
        with pytest.raises(HastenError, match="groups"):
            ResidualStack(list(stack.branches), wrong)
    with pytest.raises(HastenError, match="order 1 or 2"):
        ResidualStack(list(stack.branches), order=3)


def test_weights_are_shared_unless_copied() -> None:
    stack = ResidualStack(convolutions(2))
    assert next(to_parallel(stack).parameters()) is next(stack.parameters())
    copied = to_parallel(stack, copied=True)
    assert next(copied.parameters()) is not next(stack.parameters())
    assert sum(p.numel() for p in copied.parameters()) == sum(p.numel() for p in stack.parameters())


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_one_broad_convolution_is_the_sum(kernel: int) -> None:
    stack = to_parallel(ResidualStack(convolutions(5, kernel=kernel)), 2)
    stack(torch.randn(4, 4, 7, 7))  # statistics that are none of the start's
    fused = fuse_parallel(stack)
    assert [type(b[0]) for b in fused.branches] == [nn.Conv2d] * 2  # type: ignore[index]
    assert fused.branches[0][0].out_channels == 12  # type: ignore[index]
    check_same(stack, fused, (torch.randn(2, 4, 7, 7),), 1e-6)
    assert stack.training


def test_parts_of_an_image_alone_are_summed_over_its_channels() -> None:
    branches = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(3)]
    stack = ResidualStack(branches, 1)
    check_same(stack, fuse_parallel(stack), (torch.randn(4, 7, 7),), 1e-6)
    branches[0][0].register_forward_hook(lambda module, given, answer: 2 * answer)
    check_same(stack, fuse_parallel(stack), (torch.randn(4, 7, 7),), 1e-6)


def test_feed_forward_layers_become_one_with_their_norms_within() -> None:
    branches = [
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, width), nn.GELU(), nn.Dropout(0.5), nn.Linear(width, 6))
        for width in (8, 12, 5)
    ]
    for branch in branches:
        nn.init.normal_(branch[0].weight)
        nn.init.normal_(branch[0].bias)
    stack = ResidualStack([*branches, nn.LayerNorm(6)], 1)
    fused = fuse_parallel(stack)
    assert fused.sizes == (2,)
    assert fused.branches[0][1].out_features == 25  # type: ignore[index]
    check_same(stack, fused, (torch.randn(3, 7, 6),), 1e-6)


def test_what_cannot_be_fused_is_told() -> None:
    unlike = [nn.Sequential(nn.Conv2d(4, 4, k, padding=k // 2), nn.ReLU()) for k in (1, 3)]
    for stack in (ResidualStack(convolutions(3)), ResidualStack(unlike, 1)):
        with pytest.raises(HastenError, match="nothing can be fused"):
            fuse_parallel(stack)
    with pytest.raises(HastenError, match="of order 1"):
        fuse_parallel(ResidualStack(convolutions(2), 1, order=2))


def test_the_gap_of_a_stack_is_that_of_its_outputs() -> None:
    blocks = [MapTransformer(8, 8, head_size=4) for _ in range(3)]
    x = torch.randn(2, 8, 3, 3)
    gap = taylor_gap(blocks, x, rounds=3)
    stack = ResidualStack([ResidualBranch(b) for b in blocks])
    deep = stack(x)
    wanted = (to_parallel(stack)(x) - deep).norm() / (deep - x).norm()
    assert gap.first == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert 0 < gap.second < gap.first
    assert len(gap.norms) == 3
    assert all(b.training for b in blocks)
