"""BitLinear and MLGRU: their formulas, gradients, packed forms and states."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hasten.nn import MLGRU, BitLinear, TernaryLinear
from hasten.nn.ternary import pack_bitlinear, ternarize, use_bitlinear


def layer(fused: bool = True, columns: int = 70) -> BitLinear:
    torch.manual_seed(0)
    made = BitLinear(columns, 24, fused=fused)
    nn.init.normal_(made.norm, 1.0, 0.2)
    return made


def test_fused_is_plain_autograd() -> None:
    one, other = layer(), layer(fused=False)
    x = torch.randn(3, 5, 70)
    found = []
    for module in (one, other):
        given = x.clone().requires_grad_()
        y = module(given)
        (y * torch.arange(24.0).sin()).sum().backward()
        found.append((y, given.grad, module.weight.grad, module.norm.grad))
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_at_the_rounded_values() -> None:
    module, x = layer(), torch.randn(6, 70, requires_grad=True)
    grad = torch.randn(6, 24)
    module(x).backward(grad)
    ternary, beta = ternarize(module.weight.detach())
    normed = F.rms_norm(x.detach(), (70,), module.norm.detach(), 1e-6)
    scale = 127 / normed.abs().amax(-1, keepdim=True)
    codes = (normed * scale).round() / scale
    torch.testing.assert_close(module.weight.grad, grad.T @ codes, rtol=1e-5, atol=1e-6)
    given = x.detach().requires_grad_()
    F.rms_norm(given, (70,), module.norm.detach(), 1e-6).backward(grad @ (beta * ternary))
    torch.testing.assert_close(x.grad, given.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("columns", [64, 70, 257])
def test_packed_is_the_trained_layer(columns: int) -> None:
    module = layer(columns=columns)
    x = torch.randn(4, columns)
    packed = module.pack()
    assert isinstance(packed, TernaryLinear)
    torch.testing.assert_close(packed(x), module(x).detach(), rtol=1e-5, atol=1e-6)


def test_it_ignores_the_inputs_scale() -> None:
    module, x = layer(), torch.randn(4, 70)
    torch.testing.assert_close(module(x), module(x * 1000), rtol=1e-3, atol=1e-5)


def test_fused_keeps_far_less_for_the_backward() -> None:
    kept = {}
    for fused in (True, False):
        module, x = layer(fused), torch.randn(256, 70, requires_grad=True)
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes, module: BitLinear = module) -> torch.Tensor:
            if tensor.data_ptr() not in {p.data_ptr() for p in module.parameters()}:
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = module(x)
        kept[fused] = sum(sizes.values())
        del y
    assert kept[True] <= 0.6 * kept[False]


def test_models_can_be_swapped_and_packed() -> None:
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Sequential(nn.Linear(16, 4, bias=False)), nn.Linear(4, 2)
    )
    assert use_bitlinear(model, skip=lambda name: name.startswith("2.")) == 1
    assert use_bitlinear(model) == 1
    assert pack_bitlinear(model) == 2
    assert model(torch.randn(3, 8)).shape == (3, 2)


@pytest.mark.parametrize("output", ["code", "text"])
def test_mlgru_is_its_loop_and_carries_on(output: str) -> None:
    torch.manual_seed(0)
    module = MLGRU(16, output=output)
    x, bound = torch.randn(2, 9, 16), torch.rand(16) * 0.5
    y, last = module(x, lower_bound=bound)
    f = bound + (1 - bound) * torch.sigmoid(module.f_proj(x))
    i = F.silu(module.i_proj(x)) * (1 - f)
    assert torch.all(f > bound)
    h = torch.zeros(2, 16)
    for t in range(9):
        h = f[:, t] * h + i[:, t]
    torch.testing.assert_close(last, h, rtol=1e-5, atol=1e-6)
    # A convex combination stays within what it combines.
    assert float(h.detach().abs().max()) <= float(F.silu(module.i_proj(x)).detach().abs().max()) + 1e-6
    first, state = module(x[:, :4], lower_bound=bound)
    second, end = module(x[:, 4:], state, bound)
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="code or the text"):
        MLGRU(4, output="paper")
