"""Linear recurrences with resets: the operator's algebra, the compiled scan against plain torch, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.kernels import associative_scan as kernel
from hasten.workload import trace


def inputs(
    batch: int,
    length: int,
    states: int,
    *,
    complex: bool,
    constant: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = states * (2 if complex else 1)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64) * 1.4 - 0.7

    a = uniform(width) if constant else uniform(batch, length, width)
    b, initial = uniform(batch, length, width), uniform(batch, width)
    resets = torch.rand(batch, length, generator=generator) < 0.15
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    a = a.to(wide if constant else dtype)
    return a.requires_grad_(), b.to(dtype).requires_grad_(), initial.to(wide).requires_grad_(), resets


def value_and_gradients(function, tensors, complex: bool) -> list[Tensor]:
    *leaves, resets = tensors
    h, last = function(*leaves, resets, complex=complex)
    weight = torch.arange(h.numel(), dtype=h.dtype).view_as(h).sin()
    total = (h * weight).sum().to(last.dtype) + (last * last).sum()
    return [h, last, *torch.autograd.grad(total, leaves)]


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        scale = float(other.detach().float().abs().max()) + 1e-6
        torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("function", [kernel.reference, kernel.associative_scan], ids=["reference", "operator"])
def test_gradients_are_right_in_double_precision(function, complex: bool, constant: bool) -> None:
    *leaves, resets = inputs(2, 6, 3, complex=complex, constant=constant, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: function(*t, resets, complex=complex), tuple(leaves))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 60),
    states=st.integers(1, 40),
    complex=st.booleans(),
    constant=st.booleans(),
    seed=st.integers(0, 99),
)
def test_compiled_and_tree_are_the_reference(
    batch: int, length: int, states: int, complex: bool, constant: bool, seed: int
) -> None:
    tensors = inputs(batch, length, states, complex=complex, constant=constant, seed=seed)
    wanted = value_and_gradients(kernel.reference, tensors, complex)
    close(value_and_gradients(kernel.associative_scan, tensors, complex), wanted, 2e-5)
    close(value_and_gradients(kernel.associative, tensors, complex), wanted, 2e-5)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set_is_the_reference(complex: bool, dtype: torch.dtype) -> None:
    tensors = inputs(2, 50, 37, complex=complex, constant=False, dtype=dtype)
    wanted = value_and_gradients(kernel.reference, tensors, complex)
    found = value_and_gradients(kernel.associative_scan, tensors, complex)
    assert found[0].dtype is dtype
    close(found, wanted, 2e-5 if dtype is torch.float32 else 0.02)


def test_the_operator_is_associative() -> None:
    generator = torch.Generator().manual_seed(0)
    for flags in range(8):
        elements = [
            (
                torch.randn(5, 8, generator=generator, dtype=torch.float64),
                torch.randn(5, 8, generator=generator, dtype=torch.float64),
                torch.tensor(bool(flags >> i & 1)),
            )
            for i in range(3)
        ]
        one = kernel.combine(kernel.combine(elements[0], elements[1], True), elements[2], True)
        other = kernel.combine(elements[0], kernel.combine(elements[1], elements[2], True), True)
        for p, q in zip(one, other):
            torch.testing.assert_close(p, q)


def test_a_reset_keeps_the_input_and_forgets_the_rest() -> None:
    a, b, initial, _ = inputs(1, 9, 4, complex=True, constant=True)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, 4] = True
    h, _ = kernel.associative_scan(a, b, initial, resets, complex=True)
    alone, _ = kernel.associative_scan(a, b[:, 4:].contiguous(), complex=True)
    assert torch.equal(h[:, 4:], alone)
    assert torch.equal(h[:, 4], b[:, 4])


def test_split_equals_whole() -> None:
    a, b, initial, resets = inputs(2, 30, 5, complex=True, constant=True)
    h, last = kernel.associative_scan(a, b, initial, resets, complex=True)
    first, middle = kernel.associative_scan(a, b[:, :11], initial, resets[:, :11], complex=True)
    second, end = kernel.associative_scan(a, b[:, 11:], middle, resets[:, 11:], complex=True)
    torch.testing.assert_close(torch.cat([first, second], 1), h)
    torch.testing.assert_close(end, last)


def test_nothing_to_scan() -> None:
    initial = torch.ones(2, 3)
    h, last = kernel.associative_scan(torch.ones(3), torch.zeros(2, 0, 3), initial)
    assert h.shape == (2, 0, 3)
    assert torch.equal(last, initial)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(4)}, "a is"),
        ({"initial": torch.ones(1, 3)}, "initial is"),
        ({"resets": torch.ones(2, 4, dtype=torch.bool)}, "resets is"),
        ({"complex": True}, "even width"),
    ],
)
def test_wrong_shapes_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel.associative_scan(**{"a": torch.ones(3), "b": torch.ones(2, 5, 3)} | change)


def test_operator_keeps_its_contract_and_is_seen_through() -> None:
    a, b, initial, resets = inputs(2, 7, 4, complex=True, constant=True)
    torch.library.opcheck(torch.ops.hasten.associative_scan.default, (a, b, initial, resets, True))

    def double(a: Tensor, b: Tensor) -> Tensor:
        return kernel.associative_scan(a, b, complex=True)[0] * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), double(a, b))

    class Layer(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return kernel.associative_scan(a, b, complex=True)[0]

    cascade = trace(Layer(), a.detach(), b.detach()).phases[0].cascade
    assert not cascade.unknown
    assert any(e.source == "hasten::associative_scan" and "t" in e.iterative for e in cascade.einsums)


@pytest.mark.parametrize("pattern", ["none", "first", "all", "random"])
@pytest.mark.parametrize("function", [kernel.associative_scan, kernel.associative], ids=["operator", "tree"])
def test_any_pattern_of_resets_in_double_precision(function, pattern: str) -> None:
    a, b, initial, resets = inputs(2, 33, 4, complex=True, constant=False, dtype=torch.float64)
    resets = {
        "none": torch.zeros_like(resets),
        "first": torch.arange(33).expand(2, -1) == 0,
        "all": torch.ones_like(resets),
        "random": resets,
    }[pattern]
    wanted = value_and_gradients(kernel.reference, (a, b, initial, resets), True)
    found = value_and_gradients(function, (a, b, initial, resets), True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if pattern == "all":
        assert torch.equal(found[0], b)
    if pattern == "first":
        assert torch.all(found[-1] == 0)  # the initial state is ignored
