"""Experts in chunks: the compiled kernel against the dense layer, gradients, and the work it spares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.kernels import expert_ffn as kernel
from hasten.kernels import native
from hasten.workload import trace

ISAS = native().isas() if native() is not None else []


def inputs(
    tokens: int,
    width: int,
    experts: int,
    each: int,
    density: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    on = torch.rand(tokens, experts, generator=generator) < density
    up, down = normal(experts * each, width) / width**0.5, normal(experts * each, width)
    return tuple(t.to(dtype).requires_grad_() for t in (normal(tokens, width), normal(tokens, experts) * on, up, down))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(other.detach().float().abs().max()) + 1e-6
    torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 150),
    experts=st.integers(1, 9),
    each=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_sparse_is_dense(tokens: int, width: int, experts: int, each: int, density: float, seed: int) -> None:
    given_inputs = inputs(tokens, width, experts, each, density, seed)
    y, wanted = kernel.expert_ffn(*given_inputs), kernel.reference(*given_inputs)
    close(y, wanted)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(y, given_inputs, grad)
    dense = list(torch.autograd.grad(wanted, given_inputs, grad))
    dense[1] = dense[1] * (given_inputs[1] != 0)  # an inactive expert's score gets none
    for one, other in zip(found, dense, strict=True):
        close(one, other, 1e-4)


@pytest.mark.parametrize("function", [kernel.reference, kernel.expert_ffn], ids=["reference", "operator"])
def test_gradients_are_right_in_double_precision(function) -> None:
    given_inputs = inputs(3, 5, 4, 2, density=1.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(function, given_inputs)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_every_instruction_set_is_dense(tokens: int, dtype: torch.dtype) -> None:
    given_inputs = inputs(tokens, 200, 8, 6, dtype=dtype)
    y = kernel.expert_ffn(*given_inputs)
    assert y.dtype is dtype
    close(y, kernel.reference(*given_inputs), 1e-5 if dtype is torch.float32 else 0.01)


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
def test_a_token_does_not_depend_on_its_company() -> None:
    x, scores, up, down = inputs(8, 96, 6, 5)
    together = kernel.expert_ffn(x, scores, up, down)
    for t in range(8):
        assert torch.equal(kernel.expert_ffn(x[t : t + 1], scores[t : t + 1], up, down)[0], together[t])


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
def test_inactive_work_is_not_done() -> None:
    x, scores, up, down = inputs(8, 64, 10, 4, density=0.2)
    assert kernel.rows_multiplied(x, scores, up, down) == 4 * int((scores != 0).sum())
    assert torch.equal(kernel.used(scores), (scores != 0).any(0).nonzero()[:, 0])
    # What nobody uses is not even read: NaNs there change nothing.
    unused = [i for i in range(10) if i not in kernel.used(scores).tolist()]
    assert unused
    broken = up.detach().clone()
    for expert in unused:
        broken[expert * 4 : expert * 4 + 4] = float("nan")
    assert torch.equal(kernel.expert_ffn(x, scores, broken, down), kernel.expert_ffn(x, scores, up, down))


def test_nobody_active_is_exactly_zero() -> None:
    for tokens in (1, 5, 30):
        x, scores, up, down = inputs(tokens, 20, 4, 3, density=0.0)
        assert torch.equal(kernel.expert_ffn(x, scores, up, down), torch.zeros(tokens, 20))


def test_wrong_shapes_are_named() -> None:
    x, scores, up, down = inputs(2, 8, 4, 3)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.expert_ffn(x, scores, up[:, :7], down[:, :7])
    with pytest.raises(ValueError, match="not of the tokens"):
        kernel.expert_ffn(x, scores[:1], up, down)


def test_operator_keeps_its_contract_and_is_seen_through() -> None:
    given_inputs = inputs(3, 8, 4, 3)
    torch.library.opcheck(torch.ops.hasten.expert_ffn.default, given_inputs)

    def double(*tensors: Tensor) -> Tensor:
        return kernel.expert_ffn(*tensors) * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given_inputs), double(*given_inputs))

    class Layer(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return kernel.expert_ffn(*tensors)

    workload = trace(Layer(), *(t.detach() for t in given_inputs))
    assert workload.flops == 2 * 2 * 3 * 12 * 8
    assert not workload.unknown
