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


def randomized(module: nn.Module) -> dict[str, torch.Tensor]:
    """Draws every weight anew, so that none is 0 or 1 by its start; the weights by name."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.7)
    return {name: p.detach() for name, p in module.named_parameters()}


def below(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def grid(size: int, axes: int) -> list[list[float]]:
    """Coordinates of each position, the last axis running fastest."""
    line = [-1 + 2 * i / (size - 1) for i in range(size)]
    return [[a] for a in line] if axes == 1 else [[a, b] for a in line for b in line]


def slow(w: dict[str, torch.Tensor], size: int, axes: int, scales: list[torch.Tensor] | None = None) -> torch.Tensor:
    """A slow network by its formula at every position, (channels, positions); with scales S-renormalized and scaled.

    Args:
        w: its weights.
        size, axes: of the kernel.
        scales: of each layer, (positions, hidden).
    """
    bias, points = w["position_bias"].flatten(), torch.tensor(grid(size, axes), dtype=torch.double)
    h = [torch.sin(w["sines.0.weight"] @ c + w["sines.0.bias"]) for c in points]
    for layer in range(sum(name.startswith("mixes.") for name in w) // 2):
        for i, c in enumerate(points):
            sine = torch.sin(w[f"sines.{layer + 1}.weight"] @ c + w[f"sines.{layer + 1}.bias"])
            h[i] = sine * (w[f"mixes.{layer}.weight"] @ h[i] + w[f"mixes.{layer}.bias"]) + bias[i]
        if scales is not None:
            for j in range(len(h[0])):
                length = math.sqrt(sum(float(v[j]) ** 2 for v in h))
                for i, v in enumerate(h):
                    h[i] = v.clone()
                    h[i][j] = (1.0 * v[j] + 0.1 * v[j] / length) * scales[layer][i, j]
    return torch.stack([w["output.weight"] @ v + w["output.bias"] for v in h], 1)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gated(y: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-y))


def standard(x: torch.Tensor, over: tuple[int, ...]) -> torch.Tensor:
    return (x - x.mean(over, keepdim=True)) / (x.var(over, correction=0, keepdim=True) + 1e-5).sqrt()


def point(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution."""
    mixed = torch.einsum("oi,nihw->nohw", w[f"{name}.weight"][:, :, 0, 0], x)
    return mixed + w[f"{name}.bias"][:, None, None]


def pooled(x: torch.Tensor, size: int) -> torch.Tensor:
    """Means over size x size parts that overlap where they must, (batch, positions, channels)."""
    cut = [(i * x.shape[-1] // size, -(-(i + 1) * x.shape[-1] // size)) for i in range(size)]
    return torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for a, b in cut for c, d in cut], 1)


def context_kernel(w: dict[str, torch.Tensor], x: torch.Tensor, size: int) -> torch.Tensor:
    """A local kernel by its formula, (channels, size, size)."""
    reduced = pooled(x, size) @ w["reduce.weight"].T + w["reduce.bias"]
    context = gelu(reduced.mean(0) @ w["mix.weight"].T + w["mix.bias"])
    scales = [context @ w[f"bends.{i}.weight"].T + w[f"bends.{i}.bias"] for i in range(2)]
    return slow(below(w, "kernel."), size, 2, scales).unflatten(1, (size, size))


def laid(kernel: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A kernel of each channel over its map, zeros around it."""
    made, half, (height, width) = torch.zeros_like(x), kernel.shape[-1] // 2, x.shape[2:]
    for i in range(height):
        for j in range(width):
            for a in range(max(0, i - half), min(height, i + half + 1)):
                for b in range(max(0, j - half), min(width, j + half + 1)):
                    made[:, :, i, j] += kernel[:, a - i + half, b - j + half] * x[:, :, a, b]
    return made


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


def test_a_kernel_is_its_formula_at_every_position() -> None:
    torch.manual_seed(0)
    for axes in (1, 2):
        kernel = HyperKernel(3, 5, axes, hidden=8, layers=3, dtype=torch.double)
        wanted = slow(randomized(kernel), 5, axes)
        torch.testing.assert_close(kernel().detach().flatten(2)[0], wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("axes", "size"), [(1, 9), (2, 3)])
def test_a_slow_network_starts_as_published(axes: int, size: int) -> None:
    """Sines have a linear layer's own start times 2 pi omega Gamma(6 / (l + 1), 1): its first two moments."""
    torch.manual_seed(0)
    made = [HyperKernel(500, size, axes, hidden=800, layers=3, omega=1.5) for _ in range(6)]
    for layer in range(4):
        shape, edge = 6 / (layer + 1), 2 * math.pi * 1.5 / math.sqrt(axes)
        rows = torch.cat([kernel.state_dict()[f"sines.{layer}.weight"] for kernel in made])
        assert rows.abs().mean().item() == pytest.approx(edge / 2 * shape, rel=0.06)
        assert rows.square().mean().item() == pytest.approx(edge**2 / 3 * (shape + shape**2), rel=0.15)
    w = made[0].state_dict()
    for layer in range(4):
        assert not w[f"sines.{layer}.bias"].any()
    for layer in range(3):
        assert w[f"mixes.{layer}.bias"].eq(1).all()
        assert w[f"mixes.{layer}.weight"].std().item() == pytest.approx(800**-0.5, rel=0.02)
    assert not w["output.bias"].any()
    assert w["output.weight"].std().item() == pytest.approx((800 * size**axes) ** -0.5, rel=0.02)


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


def test_a_local_kernel_is_its_formula() -> None:
    torch.manual_seed(0)
    kernel = ContextKernel(3, 5, hidden=6, dtype=torch.double)
    w, x = randomized(kernel), torch.randn(4, 3, 7, 7, dtype=torch.double)
    torch.testing.assert_close(kernel(x)[:, 0].detach(), context_kernel(w, x, 5), atol=1e-9, rtol=1e-9)


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


def test_a_block_is_its_formula() -> None:
    """The published wiring, all weights at random: a batch of three in evaluation mode, two earlier outputs."""
    made = block(12, 6, 2, earlier=2, layers=3, dropout=0.5, dtype=torch.double).eval()
    w = randomized(made)
    x, before, long_before = (torch.randn(3, c, 6, 6, dtype=torch.double) for c in (12, 4, 3))

    def gate(name: str, z: torch.Tensor) -> torch.Tensor:
        v = below(w, f"{name}.")
        inner = standard(point(v, "key", z) * point(v, "query", point(v, "value", z)), (2, 3))
        return point(v, "output", gelu(inner) + v["position_bias"])

    def channels(name: str, z: torch.Tensor) -> torch.Tensor:
        y = z.mean((2, 3))
        return (slow(below(w, f"{name}.kernel."), 12, 1)[0] * y * y)[:, :, None, None]

    def local(number: int, size: int, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own = below(w, f"local.{number}.")
        mixed = point(own, "mix", laid(context_kernel(below(own, "kernel."), u, size), v))
        return gelu(standard(mixed, (0, 2, 3))) + own["bias"]

    weighted = slow(below(w, "kernel."), 6, 2).reshape(12, 6, 6) * x
    fast = standard(gate("slow_gate", weighted) + gate("fast_gate", x), (2, 3))
    m = standard(point(w, "mix", x), (2, 3))
    c = standard(x * gated(channels("channel_gate", x)), (2, 3))
    o, o_m, o_c = (torch.einsum("nchk,nckw->nchw", weighted, right) for right in (fast, m, c))
    y = o.mean(1, keepdim=True)
    positions = slow(below(w, "pixel_positions."), 6, 2).reshape(1, 1, 6, 6) * y * y
    hyper = x * gated(channels("pixel_channels", o) * positions)
    k3, k9, k5, k7 = local(0, 3, x, c), local(1, 9, c, x), local(2, 5, m, x), local(3, 7, x, m)
    tiled = [torch.cat([e] * (12 // e.shape[1]), 1) for e in (before, long_before)]
    views = [o, k9, tiled[0], fast, o_m, k3, o * gated(o), k5, o_c, k7, tiled[1], hyper]
    z = point(w, "output", torch.cat(views, 1))
    groups = [standard(part, (0, 2, 3) if i % 2 == 0 else (2, 3)) for i, part in enumerate(z.split(2, 1))]
    wanted = gelu(torch.cat(groups, 1)) + w["bias"]
    assert len(groups) == 12
    torch.testing.assert_close(made(x, before, long_before).detach(), wanted, atol=1e-5, rtol=1e-5)


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
