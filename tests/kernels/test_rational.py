"""Rational activations: formulas in double precision, the compiled kernels against them, and their sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.kernels import native
from hasten.kernels import rational as kernel
from hasten.workload import trace

ISAS = native().isas() if native() is not None else []


def inputs(
    rows: int, groups: int, each: int, seed: int = 0, *, shared: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype is torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x, grad = normal(rows, groups * each).to(dtype), normal(rows, groups * each).to(dtype)
    return x, normal(1 if shared else groups, 6).to(wide), normal(groups, 4).to(wide), grad


def close(one: Tensor, other: Tensor, tolerance: float = 2e-5) -> None:
    scale = float(other.detach().float().abs().max()) + 1e-6
    torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [True, False])
def test_formulas_are_autograds_in_double_precision(shared: bool) -> None:
    """Away from v = 0 and b = 0, where the conventions differ."""
    x, a, b, grad = inputs(7, 3, 4, shared=shared, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, a, b)]
    y = kernel.reference(x, a, b, 3)
    torch.testing.assert_close(kernel.rational(x, a, b, 3), y)
    wanted = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    for one, other in zip(kernel.backward_reference(grad, x, a, b, 3), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(lambda *t: kernel.rational(*t, 3), tuple(leaves))
    assert torch.autograd.gradcheck(lambda *t: kernel.reference(*t, 3), tuple(leaves))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 150),
    groups=st.integers(1, 8),
    each=st.integers(1, 40),
    seed=st.integers(0, 99),
    shared=st.booleans(),
)
def test_compiled_is_the_reference(rows: int, groups: int, each: int, seed: int, shared: bool) -> None:
    x, a, b, grad = inputs(rows, groups, each, seed, shared=shared)
    close(kernel.rational(x, a, b, groups), kernel.reference(x, a, b, groups))
    found = torch.ops.hasten.rational_backward(grad, x, a, b, groups)
    for one, other in zip(found, kernel.backward_reference(grad, x, a, b, groups), strict=True):
        close(one, other, 1e-4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("each", [1, 16, 21])
def test_every_instruction_set_is_the_reference(dtype: torch.dtype, each: int) -> None:
    x, a, b, grad = inputs(70, 4, each, dtype=dtype)
    tolerance = 1e-4 if dtype is torch.float32 else 0.02
    value = kernel.rational(x, a, b, 4)
    assert value.dtype is dtype
    close(value, kernel.reference(x, a, b, 4), tolerance)
    wanted = kernel.backward_reference(grad, x, a, b, 4)
    for one, other in zip(torch.ops.hasten.rational_backward(grad, x, a, b, 4), wanted, strict=True):
        close(one, other, tolerance)
    for one, other in zip(kernel.naive_backward(grad, x, a, b, 4)[:3], wanted, strict=True):
        close(one, other, max(tolerance, 1e-3))


def test_the_identity_is_exact_and_its_denominator_learns() -> None:
    x, grad = torch.randn(33, 24), torch.randn(33, 24)
    a, b = torch.tensor([[0.0, 1, 0, 0, 0, 0]]), torch.zeros(3, 4)
    assert torch.equal(kernel.rational(x, a, b, 3), x)
    _, _, db = torch.ops.hasten.rational_backward(grad, x, a, b, 3)
    assert torch.all(db != 0)
    x = torch.zeros(1, 3)
    dx, _, _ = torch.ops.hasten.rational_backward(torch.ones(1, 3), x, a, b, 3)
    assert torch.equal(dx, torch.ones(1, 3))


def test_no_pole_and_no_overflow() -> None:
    x = torch.tensor([[1e6, -1e6, 0.0, 1e3, -1e3, 1e-30]]).T.contiguous()
    a, b = torch.randn(1, 6), torch.randn(1, 4)
    assert torch.isfinite(kernel.rational(x, a, b)).all()
    assert all(torch.isfinite(g).all() for g in torch.ops.hasten.rational_backward(torch.ones_like(x), x, a, b, 1))


def test_one_group_equals_groups_of_equal_coefficients() -> None:
    x, a, b, grad = inputs(65, 1, 64)
    torch.testing.assert_close(kernel.rational(x, a, b, 1), kernel.rational(x, a, b.expand(8, 4).contiguous(), 8))
    dx, da, db = torch.ops.hasten.rational_backward(grad, x, a, b, 1)
    dx8, da8, db8 = torch.ops.hasten.rational_backward(grad, x, a, b.expand(8, 4).contiguous(), 8)
    torch.testing.assert_close(dx, dx8)
    torch.testing.assert_close(da, da8, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(db, db8.sum(0, keepdim=True), rtol=1e-4, atol=1e-3)


def test_rows_in_another_order_change_no_sum() -> None:
    x, a, b, grad = inputs(200, 4, 16)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    _, da, db = torch.ops.hasten.rational_backward(grad, x, a, b, 4)
    _, da_moved, db_moved = torch.ops.hasten.rational_backward(grad[order], x[order], a, b, 4)
    torch.testing.assert_close(da, da_moved, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(db, db_moved, rtol=1e-4, atol=1e-3)


def test_threads_change_nothing() -> None:
    x, a, b, grad = inputs(500, 4, 16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.ops.hasten.rational_backward(grad, x, a, b, 4))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], others))


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
@pytest.mark.parametrize(("rows", "channels", "groups"), [(197, 96, 8), (64, 32, 4), (1, 8, 8)])
def test_shared_additions_are_counted_as_published(rows: int, channels: int, groups: int) -> None:
    x, a, b, grad = inputs(rows, groups, channels // groups)
    assert kernel.naive_backward(grad, x, a, b, groups)[3] == rows * channels * 10
    module = native()
    assert module is not None
    call, _kept = kernel._call(x, a, b, groups, torch.empty_like(x), grad, torch.empty(-(-rows // 64), groups, 10))
    assert module.rational_backward(call, 1) == kernel.shared_additions(rows, groups) == -(-rows // 64) * groups * 10


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
def test_block_sums_round_less_than_shared_ones() -> None:
    x, _, _, grad = inputs(4000, 8, 32, seed=5)
    a, b = (
        torch.tensor([[0.0, 0.5, 0.25, 0.053, 0.0058, 0.00027]]),
        torch.tensor([[0.0, 0.1, 0.0, 0.0005]]).repeat(8, 1),
    )
    exact = kernel.backward_reference(grad.double(), x.double(), a.double(), b.double(), 8)
    ours = torch.ops.hasten.rational_backward(grad, x, a, b, 8)
    theirs = kernel.naive_backward(grad, x, a, b, 8)
    for i in (1, 2):
        assert (ours[i] - exact[i]).abs().mean() < 0.5 * (theirs[i] - exact[i]).abs().mean()


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
def test_shared_additions_are_pooled_per_group() -> None:
    """48 sums for a numerator that eight groups share, as KAT has them, not 6; and repeats change time alone."""
    x, _, b, grad = inputs(500, 8, 32, seed=6)
    a = torch.tensor([[0.0, 0.5, 0.25, 0.053, 0.0058, 0.00027]])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        shared = kernel.naive_backward(grad, x, a, b, 8)
        each = kernel.naive_backward(grad, x, a.repeat(8, 1), b, 8)
        again = kernel.naive_backward(grad, x, a, b, 8, repeats=8)
        alike = kernel.naive_backward(grad, x, a, b[:1], 8)
        own = kernel.naive_backward(grad, x, a, b[:1].repeat(8, 1), 8)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(shared[1], each[1].sum(0, keepdim=True))
    assert torch.equal(alike[2], own[2].sum(0, keepdim=True))
    assert all(torch.equal(p, q) for p, q in zip(shared[:3], again[:3], strict=True))


def test_other_degrees_run_in_plain_torch() -> None:
    x, a, b = torch.randn(5, 6), torch.randn(1, 3), torch.randn(2, 2)
    leaves = [t.double().requires_grad_() for t in (x, a, b)]
    assert torch.autograd.gradcheck(lambda *t: kernel.rational(*t, 2), tuple(leaves))


def test_wrong_groups_are_named() -> None:
    with pytest.raises(ValueError, match="5 groups do not divide 8"):
        kernel.rational(torch.zeros(1, 8), torch.zeros(1, 6), torch.zeros(1, 4), 5)
    with pytest.raises(ValueError, match="1 or 2 rows"):
        kernel.rational(torch.zeros(1, 8), torch.zeros(3, 6), torch.zeros(1, 4), 2)


def test_operator_keeps_its_contract_and_is_seen_through() -> None:
    x, a, b, _ = inputs(9, 2, 5)
    leaves = [t.requires_grad_() for t in (x, a, b)]
    torch.library.opcheck(torch.ops.hasten.rational.default, (*leaves, 2))

    def double(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return kernel.rational(x, a, b, 2) * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), double(*leaves))


def test_trace_sees_an_elementwise_operator() -> None:
    from hasten.nn import GroupRational

    cascade = trace(GroupRational(32, 4), torch.zeros(6, 32)).phases[0].cascade
    (einsum,) = [e for e in cascade.einsums if e.source == "hasten::rational"]
    assert einsum.operations == 6 * 32
    assert not cascade.unknown
