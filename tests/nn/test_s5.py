"""S5: its start, its discretization against the matrix exponential, states that carry on and reset."""

from __future__ import annotations

import pytest
import torch

from hasten.nn import S5
from hasten.nn.s5 import hippo_normal


def layer(**options) -> S5:
    torch.manual_seed(0)
    return S5(12, 8, **options)


def test_published_parameter_count() -> None:
    assert sum(p.numel() for p in S5(256, 128).parameters()) == 263_296


def test_hippo_eigenvalues() -> None:
    n = 16
    eigenvalues, vectors = hippo_normal(n)
    assert len(eigenvalues) == n // 2
    torch.testing.assert_close(eigenvalues.real, torch.full((n // 2,), -0.5, dtype=torch.float64))
    assert torch.all(eigenvalues.imag > 0)
    index = torch.arange(n, dtype=torch.float64)
    p, q = torch.sqrt(1 + 2 * index), torch.sqrt(index + 0.5)
    normal = -(torch.tril(p[:, None] * p) - torch.diag(index)) + q[:, None] * q
    torch.testing.assert_close(normal.to(torch.complex128) @ vectors, vectors * eigenvalues)
    torch.testing.assert_close(vectors.conj().T @ vectors, torch.eye(n // 2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="even"):
        hippo_normal(7)


def test_zero_order_hold_is_the_exponential() -> None:
    s5 = layer()
    a, b = (t.detach().double() for t in s5.discretized())
    eigenvalue = torch.complex(s5.rate, s5.frequency).detach().to(torch.complex128)
    step = s5.log_step.detach().double().exp()
    drive = torch.view_as_complex(s5.B.detach()).to(torch.complex128)
    for i in range(8):
        # exp of [[Lambda, 1], [0, 0]] step: its corner is the integral that the hold needs.
        joint = torch.zeros(2, 2, dtype=torch.complex128)
        joint[0, 0], joint[0, 1] = eigenvalue[i], 1
        whole = torch.linalg.matrix_exp(joint * step[i])
        torch.testing.assert_close(torch.complex(a[i], a[8 + i]), whole[0, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.complex(b[i], b[8 + i]), whole[0, 1] * drive[i], rtol=1e-5, atol=1e-6)


def test_the_two_holds_meet_for_small_steps() -> None:
    one, two = layer(step_range=(1e-4, 2e-4)), layer(step_range=(1e-4, 2e-4), hold="bilinear")
    for p, q in zip(one.discretized(), two.discretized()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["none", "before", "both"])
def test_steps_equal_the_sequence(norm: str) -> None:
    s5, u = layer(norm=norm), torch.randn(3, 20, 12)
    resets = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.2
    state = torch.randn(3, 16)
    whole, last = s5(u, state, resets)
    parts = []
    for t in range(20):
        y, state = s5.step(u[:, t], state, resets[:, t])
        parts.append(y)
    torch.testing.assert_close(torch.stack(parts, 1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_a_reset_equals_a_sequence_of_its_own() -> None:
    s5, u = layer(), torch.randn(1, 15, 12)
    resets = torch.zeros(1, 15, dtype=torch.bool)
    resets[0, 6] = True
    y, _ = s5(u, torch.randn(1, 16), resets)
    alone, _ = s5(u[:, 6:])
    torch.testing.assert_close(y[:, 6:], alone, rtol=1e-5, atol=1e-6)


def test_output_is_real_part_of_the_complex_system() -> None:
    s5, u = layer(gated=False), torch.randn(1, 10, 12)
    a, b = s5.discretized()
    a, b = torch.complex(a[:8], a[8:]), torch.complex(b[:8], b[8:])
    c = torch.view_as_complex(s5.C)
    x, outputs = torch.zeros(8, dtype=torch.complex64), []
    for t in range(10):
        x = a * x + b @ u[0, t].to(torch.complex64)
        outputs.append(2 * (c @ x).real + s5.D * u[0, t])
    torch.testing.assert_close(s5(u)[0][0], torch.stack(outputs), rtol=1e-4, atol=1e-5)


def test_blocks_and_errors() -> None:
    s5 = S5(8, 8, blocks=4)
    assert len(s5.frequency.detach().unique()) == 2
    for options, message in (({"blocks": 3}, "divide"), ({"hold": "foh"}, "hold is"), ({"norm": "after"}, "norm is")):
        with pytest.raises(ValueError, match=message):
            S5(8, 8, **options)


def test_every_parameter_learns() -> None:
    s5 = layer(norm="both")
    y, last = s5(torch.randn(2, 9, 12))
    (y.square().mean() + last.square().mean()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in s5.parameters())


def test_states_decay_at_the_start_and_the_matrix_is_normal() -> None:
    a, _ = layer().discretized()
    assert torch.all(a[:8].square() + a[8:].square() < 1)
    index = torch.arange(12, dtype=torch.float64)
    p, q = torch.sqrt(1 + 2 * index), torch.sqrt(index + 0.5)
    s = -(torch.tril(p[:, None] * p) - torch.diag(index)) + q[:, None] * q
    torch.testing.assert_close(s @ s.T, s.T @ s, rtol=0, atol=1e-8)


def test_without_resets_it_is_a_convolution() -> None:
    """The kernel is 2 Re(C A^k B)."""
    s5, u = layer(gated=False), torch.randn(1, 16, 12)
    a, b = s5.discretized()
    a, b = torch.complex(a[:8], a[8:]), torch.complex(b[:8], b[8:])
    c = torch.view_as_complex(s5.C)
    response = torch.stack([2 * ((c * a**k) @ b).real for k in range(16)])
    wanted = torch.stack([sum(response[k] @ u[0, t - k] for k in range(t + 1)) + s5.D * u[0, t] for t in range(16)])
    torch.testing.assert_close(s5(u)[0][0], wanted, rtol=1e-4, atol=1e-5)


def test_it_starts_in_the_sizes_of_the_release() -> None:
    """Standard deviations there: C 1/256 in each part at H = 256 and P = 128, B 1/16, gated unit 1/16 and no bias."""
    torch.manual_seed(0)
    s5 = S5(256, 128)
    assert float(s5.C.detach().std()) == pytest.approx(1 / 256, rel=0.02)
    assert float(s5.B.detach().square().sum(-1).mean().sqrt()) == pytest.approx(1 / 16, rel=0.02)
    for linear in (s5.value, s5.gate):
        assert float(linear.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
        assert not linear.bias.any()
    # Where H is not 2P, each follows its own fan: B that of the states, C of both.
    narrow = S5(64, 128)
    assert float(narrow.C.detach().std()) == pytest.approx((64 * 256) ** -0.5, rel=0.03)
    assert float(narrow.B.detach().square().sum(-1).mean().sqrt()) == pytest.approx(1 / 16, rel=0.03)
    assert float(narrow.value.weight.detach().std()) == pytest.approx(1 / 8, rel=0.03)


def test_the_gated_unit_takes_gelus_tanh_formula() -> None:
    s5, u = layer(), 3 * torch.randn(1, 5, 12)
    plain = layer(gated=False)
    plain.load_state_dict(s5.state_dict(), strict=False)
    y, _ = plain(u)
    g = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    torch.testing.assert_close(s5(u)[0], u + s5.value(g) * torch.sigmoid(s5.gate(g)), rtol=1e-5, atol=1e-6)
