"""Kernels of coordinates, and what is published of the operators on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.nn import ContextKernel, HyperKernel, RecursiveGate, SlowFastBlock
from hasten.nn.hyper_kernels import (
    freeze_batch_statistics,
    hyper_zzw,
    instance_standardized,
    slow_loss,
    thaw_batch_statistics,
)

SMALL = (8, 4, 4, 4, 8)


def block(channels: int = 12, size: int = 6, factor: int = 1, **options: object) -> SlowFastBlock:
    torch.manual_seed(0)
    return SlowFastBlock(channels, size, factor, hidden=SMALL, **options)  # type: ignore[arg-type]


def test_the_global_operator_grows_with_both_activations() -> None:
    kernel, z, v = torch.randn(1, 3, 5, 5), torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(hyper_zzw(kernel, 3 * z, 3 * v), 9 * hyper_zzw(kernel, z, v))
    torch.testing.assert_close(hyper_zzw(torch.ones(1), z, v), z @ v)


def test_a_channel_s_score_is_its_kernel_times_its_mean_twice() -> None:
    torch.manual_seed(0)
    gate = block().channel_gate
    x = torch.randn(2, 12, 6, 6)
    kernel, mean = gate.kernel().flatten(), x.mean((2, 3))
    torch.testing.assert_close(gate(x)[:, :, 0, 0], kernel * mean * mean)
    torch.testing.assert_close(gate(3 * x), 9 * gate(x))


def test_instances_are_standardized() -> None:
    x = 5 + 3 * torch.randn(2, 3, 16, 16)
    found = instance_standardized(x)
    torch.testing.assert_close(found.mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var((2, 3), correction=0), torch.ones(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, torch.nn.functional.instance_norm(x), atol=1e-5, rtol=1e-5)


def by_loops(kernel: HyperKernel) -> torch.Tensor:
    """A kernel of two axes, position by position, by its formula."""
    n, w = kernel.size, {k: p.detach() for k, p in kernel.named_parameters()}
    made = torch.empty(1, kernel.channels, n, n)
    for i in range(n):
        for j in range(n):
            c = torch.tensor([-1 + 2 * i / (n - 1), -1 + 2 * j / (n - 1)])
            h = torch.sin(w["sines.0.weight"] @ c + w["sines.0.bias"])
            for layer in range(len(kernel.mixes)):
                sine = torch.sin(w[f"sines.{layer + 1}.weight"] @ c + w[f"sines.{layer + 1}.bias"])
                h = sine * (w[f"mixes.{layer}.weight"] @ h + w[f"mixes.{layer}.bias"]) + w["position_bias"][i, j]
            made[0, :, i, j] = w["output.weight"] @ h + w["output.bias"]
    return made


def test_a_kernel_is_its_formula_at_every_position() -> None:
    torch.manual_seed(0)
    kernel = HyperKernel(3, 5, hidden=8, layers=3)
    nn.init.normal_(kernel.position_bias)
    with torch.no_grad():
        torch.testing.assert_close(kernel(), by_loops(kernel), atol=1e-5, rtol=1e-5)
        assert kernel.output.weight.std() < 1  # a fifth of what the layer alone would start with


@pytest.mark.parametrize("axes", [1, 2])
def test_a_kernel_of_another_size_agrees_where_both_have_a_position(axes: int) -> None:
    torch.manual_seed(0)
    kernel = HyperKernel(2, 5, axes, hidden=8)
    nn.init.normal_(kernel.position_bias)
    finer = kernel(size=9)
    assert finer.shape == (1, 2, *[9] * axes)
    every_other = finer[..., ::2] if axes == 1 else finer[..., ::2, ::2]
    torch.testing.assert_close(every_other, kernel(), atol=1e-5, rtol=1e-5)
    assert HyperKernel(1, 1, axes, hidden=4)().isfinite().all()


def test_local_kernels_follow_the_batch_but_not_its_order() -> None:
    torch.manual_seed(0)
    kernel = ContextKernel(3, 5, hidden=8)
    x = torch.randn(4, 3, 7, 7)
    assert kernel(x).shape == (3, 1, 5, 5)
    torch.testing.assert_close(kernel(x.flip(0)), kernel(x), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(kernel(x), kernel(x + 1))


class _Given(nn.Module):
    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.given


def test_renormalization_stops_the_unscaled_gradient() -> None:
    """Through the first layer goes 0.1 of a gradient along the sphere: none of what only makes the numbers longer."""
    torch.manual_seed(0)
    kernel = ContextKernel(2, 3, hidden=4, layers=1)
    x = torch.randn(2, 2, 5, 5)
    hidden = torch.randn(9, 4, requires_grad=True)
    kernel.kernel.mixes[0] = _Given(hidden)  # type: ignore[assignment]
    nn.init.constant_(kernel.kernel.sines[1].bias, math.pi / 2)  # sines of one: the layer gives what it is given
    nn.init.zeros_(kernel.kernel.sines[1].weight)
    (gradient,) = torch.autograd.grad(kernel(x).square().sum(), hidden)
    torch.testing.assert_close((gradient * hidden).sum(0), torch.zeros(4), atol=1e-4, rtol=0)
    assert gradient.abs().max() > 0


def test_global_kernels_know_no_input() -> None:
    made = block()
    before = made.kernel().detach().clone()
    made(torch.randn(2, 12, 6, 6))
    torch.testing.assert_close(made.kernel(), before)


def test_groups_are_standardized_over_batch_and_image_in_turn() -> None:
    made, x = block(24, factor=1), torch.randn(5, 24, 6, 6)
    found = made._group_standardized(x)
    for group in range(12):
        part, own = x[:, 2 * group : 2 * group + 2], found[:, 2 * group : 2 * group + 2]
        over = (0, 2, 3) if group % 2 == 0 else (2, 3)
        wanted = (part - part.mean(over, True)) / (part.var(over, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_an_odd_number_of_groups_keeps_its_channels(groups: int) -> None:
    made = block(3, groups=groups)
    assert made(torch.randn(2, 3, 6, 6)).shape == (2, 3, 6, 6)
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(made._group_standardized(x)[:, -1:].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_kept_statistics_make_answers_their_own() -> None:
    made, x = block(), torch.randn(8, 12, 6, 6)
    made.eval()
    assert made.batch_dependent
    whole = made(x)
    assert not torch.allclose(made(x[:2]), whole[:2], atol=1e-3)
    freeze_batch_statistics(made, x)
    torch.testing.assert_close(made(x), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made(x[:2]), whole[:2], atol=1e-5, rtol=1e-4)
    assert not made.training
    made.train()
    assert not torch.allclose(made(x[:2]), whole[:2], atol=1e-3)  # a training looks at its own batch
    made.eval()
    other = block().eval()
    freeze_batch_statistics(other, torch.zeros(1, 12, 6, 6))
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(other(x[:2]), whole[:2], atol=1e-5, rtol=1e-4)
    thaw_batch_statistics(made)
    assert not torch.allclose(made(x[:2]), whole[:2], atol=1e-3)


def test_slow_losses_are_none_of_tiles_and_reach_no_fast_weight() -> None:
    first = torch.randn(1, 2, 4, 4)
    assert slow_loss([first, first.repeat(1, 2, 1, 1), first.repeat(1, 4, 1, 1)]) == 0
    assert slow_loss([first, first + 1, first + 3]).item() == pytest.approx(1 + 9 + 4, rel=1e-5)
    blocks = [block(), block(12)]
    slow_loss([b.kernel() * i for i, b in enumerate(blocks, 1)]).backward()
    for made in blocks:
        for name, p in made.named_parameters():
            assert (p.grad is not None) == name.startswith("kernel."), name


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(HastenError, match="10 channels are no multiple of 12 groups"):
        SlowFastBlock(5, 8, 2)
    with pytest.raises(HastenError, match="maps of 6 x 6 and 1 earlier outputs: got \\(6, 5\\) and 0"):
        block(earlier=1)(torch.zeros(1, 12, 6, 5))
    with pytest.raises(HastenError, match="odd size: got 4"):
        ContextKernel(3, 4)
    with pytest.raises(HastenError, match="1 or 2 axes"):
        HyperKernel(3, 4, 3)
    assert RecursiveGate(3, 4)(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
