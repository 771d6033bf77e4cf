"""The Mamba block: its start, its state, packed and padded batches, and that it selects."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hasten.nn import Mamba
from hasten.nn.mamba import causal_convolution
from hasten.workload import trace


def block(**options) -> Mamba:
    torch.manual_seed(0)
    return Mamba(24, states=4, **options)


def test_parameter_count() -> None:
    d, e, n, k, r = 768, 1536, 16, 4, 48
    expected = 2 * d * e + e * (k + 1) + e * (r + 2 * n) + r * e + e + e * n + e + e * d
    assert sum(p.numel() for p in Mamba(d).parameters()) == expected


def test_the_published_start() -> None:
    layer = Mamba(256)
    assert torch.equal(layer.A_log[3], torch.arange(1, 17).log())
    assert torch.all(layer.D == 1)
    steps = F.softplus(layer.dt_proj.bias.detach())
    assert 1e-3 * 0.99 <= float(steps.min()) < 3e-3
    assert 3e-2 < float(steps.max()) <= 0.1 * 1.01
    # Log-uniform: the median is the geometric mean of the range.
    assert abs(math.log10(float(steps.median())) + 2) < 0.2
    assert float(layer.dt_proj.weight.detach().abs().max()) <= layer.step_rank**-0.5
    assert layer.A_log.no_decay
    assert layer.D.no_decay


def test_convolution_is_torchs_and_carries_on() -> None:
    x, weight, bias = torch.randn(2, 20, 6), torch.randn(6, 1, 4), torch.randn(6)
    y = causal_convolution(x, weight, bias)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=3, groups=6)[..., :20].transpose(1, 2)
    torch.testing.assert_close(y, expected)
    before = x[:, :7].transpose(1, 2)[:, :, -4:]
    torch.testing.assert_close(causal_convolution(x[:, 7:], weight, bias, before), y[:, 7:])


@pytest.mark.parametrize("cut", [1, 2, 5, 30])
def test_prefill_then_steps_equal_the_whole(cut: int) -> None:
    layer, u = block(), torch.randn(2, 33, 24)
    whole = layer(u)
    state = layer.new_state(2)
    parts = [layer(u[:, :cut], state)]
    parts += [layer.step(u[:, t], state)[:, None] for t in range(cut, 33)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-6)
    assert state.nbytes == 4 * 2 * 48 * (4 + 4)


def test_packed_sequences_do_not_see_each_other() -> None:
    layer, one, two = block(), torch.randn(1, 9, 24), torch.randn(1, 14, 24)
    starts = torch.zeros(1, 23, dtype=torch.bool)
    starts[0, [0, 9]] = True
    state = layer.new_state(1)
    together = layer(torch.cat([one, two], 1), state, starts)
    torch.testing.assert_close(together, torch.cat([layer(one), layer(two)], 1), rtol=1e-5, atol=1e-6)
    alone = layer.new_state(1)
    layer(two, alone)
    torch.testing.assert_close(state.ssm, alone.ssm)
    torch.testing.assert_close(state.conv, alone.conv)


def test_a_start_within_the_last_taps_empties_the_window() -> None:
    layer, u = block(), torch.randn(1, 12, 24)
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, 10] = True
    state, alone = layer.new_state(1), layer.new_state(1)
    layer(u, state, starts)
    layer(u[:, 10:], alone)
    torch.testing.assert_close(state.conv, alone.conv)
    follow = torch.randn(1, 24)
    torch.testing.assert_close(layer.step(follow, state), layer.step(follow, alone))


def test_padding_on_the_left_does_not_leak() -> None:
    layer, u = block(), torch.randn(1, 8, 24)
    starts = torch.zeros(1, 13, dtype=torch.bool)
    starts[0, 5] = True
    padded = layer(torch.cat([torch.randn(1, 5, 24), u], 1), starts=starts)
    torch.testing.assert_close(padded[:, 5:], layer(u), rtol=1e-5, atol=1e-6)


def test_it_is_causal() -> None:
    layer, u = block(), torch.randn(1, 20, 24)
    changed = u.clone()
    changed[:, 11] += 1
    assert torch.equal(layer(u)[:, :11], layer(changed)[:, :11])


@pytest.mark.parametrize("selective", [(), ("B",), ("C",), ("delta",), ("B", "C", "delta")])
def test_every_selection_trains(selective: tuple[str, ...]) -> None:
    layer = block(selective=selective)
    layer(torch.randn(2, 10, 24)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_without_selection_it_is_time_invariant() -> None:
    layer, u = block(selective=()), torch.randn(1, 12, 24)
    x = torch.cat([torch.zeros(1, 3, 24), u], 1)
    # The gate and the convolution's bias act on silent steps too: compare the scan's input response alone.
    layer.conv1d.bias.data.zero_()
    torch.testing.assert_close(layer(x)[:, 3:], layer(u), rtol=1e-4, atol=1e-6)


def test_gradients_flow_through_a_carried_state() -> None:
    layer, u = block(), torch.randn(1, 12, 24)
    state = layer.new_state(1)
    layer(u[:, :6], state)
    layer(u[:, 6:], state).sum().backward()
    through = layer.in_proj.weight.grad.clone()
    layer.zero_grad()
    layer(u)[:, 6:].sum().backward()
    torch.testing.assert_close(through, layer.in_proj.weight.grad, rtol=1e-3, atol=1e-6)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Mamba(0)
    with pytest.raises(ValueError, match="not gamma"):
        Mamba(8, selective=("gamma",))


def test_trace_moves_no_expanded_state() -> None:
    layer = block()
    cascade = trace(layer, torch.randn(1, 64, 24)).phases[0].cascade
    assert max(t.elements for t in cascade.tensors.values()) < 64 * 48 * 4
