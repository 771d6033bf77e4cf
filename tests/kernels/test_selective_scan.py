"""The selective scan: its reference in double precision, the compiled kernel against it, and what sees through it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.kernels import native
from hasten.kernels import selective_scan as kernel
from hasten.workload import trace

ISAS = native().isas() if native() is not None else []
shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 17))


def inputs(
    shape: tuple[int, int, int, int], seed: int = 0, dtype: torch.dtype = torch.float32, whole: bool = True
) -> dict[str, Tensor]:
    batch, length, channels, states = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    wide = torch.float64 if dtype is torch.float64 else torch.float32
    found = {
        "x": normal(batch, length, channels).to(dtype),
        "delta": (normal(batch, length, channels) - 1).to(dtype),
        "A": -torch.exp(normal(channels, states)).to(wide),
        "B": normal(batch, length, states).to(wide),
        "C": normal(batch, length, states).to(wide),
    }
    if whole:
        found |= {
            "D": normal(channels).to(wide),
            "z": normal(batch, length, channels).to(dtype),
            "delta_bias": normal(channels).to(wide),
            "initial": normal(batch, channels, states).to(wide),
        }
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def value_and_gradients(function, given_inputs: dict[str, Tensor], **options) -> list[Tensor]:
    y, last = function(**given_inputs, **options)
    weight = torch.arange(y.numel(), dtype=y.dtype).view_as(y).sin()
    total = (y * weight).sum().to(last.dtype) + (last * last).sum()
    return [y, last, *torch.autograd.grad(total, list(given_inputs.values()))]


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("function", [kernel.reference, kernel.selective_scan], ids=["reference", "operator"])
def test_gradients_are_right_in_double_precision(function, discretization: str) -> None:
    given_inputs = inputs((2, 5, 3, 2), dtype=torch.float64)
    starts = torch.tensor([[0, 0, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(given_inputs, tensors))
        return function(**named, delta_softplus=True, starts=starts, discretization=discretization)

    assert torch.autograd.gradcheck(call, tuple(given_inputs.values()))


def compare(shape: tuple[int, int, int, int], seed: int, discretization: str, softplus: bool, whole: bool) -> None:
    given_inputs = inputs(shape, seed, whole=whole)
    options: dict[str, object] = {"delta_softplus": softplus, "discretization": discretization}
    if whole:
        options["starts"] = torch.rand(shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.1
    if not softplus:  # a step size is positive
        given_inputs["delta"] = given_inputs["delta"].detach().exp().requires_grad_()
        given_inputs.pop("delta_bias", None)
    fast = value_and_gradients(kernel.selective_scan, given_inputs, **options)
    # In fp64: autograd through an exact hold cancels in fp32 where the step is small.
    exact_inputs = {n: t.detach().double().requires_grad_() for n, t in given_inputs.items()}
    plain = [t.float() for t in value_and_gradients(kernel.reference, exact_inputs, **options)]
    for name, one, other in zip(["y", "last", *given_inputs], fast, plain, strict=True):
        scale = float(other.detach().abs().max()) + 1e-6
        torch.testing.assert_close(one / scale, other / scale, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    seed=st.integers(0, 99),
    discretization=st.sampled_from(["euler", "zoh"]),
    softplus=st.booleans(),
    whole=st.booleans(),
)
def test_compiled_is_the_reference(
    shape: tuple[int, int, int, int], seed: int, discretization: str, softplus: bool, whole: bool
) -> None:
    compare(shape, seed, discretization, softplus, whole)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 65, 33, 5), (1, 40, 16, 16), (3, 31, 50, 3)])
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_every_instruction_set_is_the_reference(shape: tuple[int, int, int, int], discretization: str) -> None:
    compare(shape, 0, discretization, True, True)


@pytest.mark.usefixtures("isa")
def test_bf16_is_the_reference_rounded() -> None:
    given_inputs = inputs((2, 45, 35, 4), dtype=torch.bfloat16)
    fast = value_and_gradients(kernel.selective_scan, given_inputs, delta_softplus=True)
    plain = value_and_gradients(kernel.reference, given_inputs, delta_softplus=True)
    assert fast[0].dtype is torch.bfloat16
    for one, other in zip(fast, plain, strict=True):
        scale = float(other.detach().float().abs().max())
        torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=0.02, atol=0.01)


def test_split_at_any_step_equals_whole() -> None:
    """Prefill then decode: the state carries everything."""
    given_inputs = {n: t.detach() for n, t in inputs((2, 37, 20, 4)).items()}
    y, last = kernel.selective_scan(**given_inputs, delta_softplus=True)
    moving = {"x", "delta", "B", "C", "z"}
    for cut in (1, 16, 32, 36):
        head = {n: t[:, :cut] if n in moving else t for n, t in given_inputs.items()}
        tail = {n: t[:, cut:] if n in moving else t for n, t in given_inputs.items()}
        first, state = kernel.selective_scan(**head, delta_softplus=True)
        second, end = kernel.selective_scan(**tail | {"initial": state}, delta_softplus=True)
        torch.testing.assert_close(torch.cat([first, second], 1), y)
        torch.testing.assert_close(end, last)


def test_starts_separate_packed_sequences() -> None:
    one, two = (inputs((1, n, 24, 4), seed=n, whole=False) for n in (21, 30))
    two["A"] = one["A"]
    packed = {n: one[n] if n == "A" else torch.cat([one[n], two[n]], 1) for n in one}
    starts = torch.zeros(1, 51, dtype=torch.bool)
    starts[0, [0, 21]] = True
    y, _ = kernel.selective_scan(**packed, delta_softplus=True, starts=starts)
    apart = [kernel.selective_scan(**part, delta_softplus=True)[0] for part in (one, two)]
    assert torch.equal(y, torch.cat(apart, 1))


def test_later_tokens_do_not_reach_back() -> None:
    given_inputs = {n: t.detach() for n, t in inputs((1, 40, 16, 4)).items()}
    y, _ = kernel.selective_scan(**given_inputs, delta_softplus=True)
    changed = {n: t.clone() for n, t in given_inputs.items()}
    for name in ("x", "delta", "B", "C", "z"):
        changed[name][:, 25] += 1
    y_changed, _ = kernel.selective_scan(**changed, delta_softplus=True)
    assert torch.equal(y[:, :25], y_changed[:, :25])
    assert not torch.equal(y[:, 25:], y_changed[:, 25:])


def test_constant_maps_are_a_convolution() -> None:
    """With delta, B and C constant the layer is time-invariant: convolve with sum_n C_n exp(k d A_n) d B_n."""
    length, channels, states = 64, 6, 4
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, length, channels, generator=generator)
    A = -torch.exp(torch.randn(channels, states, generator=generator))
    b, c = torch.randn(2, states, generator=generator)
    step = torch.rand(channels, generator=generator) * 0.5 + 0.1
    y, _ = kernel.selective_scan(x, step.expand_as(x).contiguous(), A, b.expand(1, length, -1), c.expand(1, length, -1))
    times = torch.arange(length)[:, None, None]
    response = (c * torch.exp(times * step[:, None] * A) * step[:, None] * b).sum(-1)
    size = 2 * length
    spectrum = torch.fft.rfft(x[0], size, dim=0) * torch.fft.rfft(response, size, dim=0)
    torch.testing.assert_close(y[0], torch.fft.irfft(spectrum, size, dim=0)[:length], rtol=1e-5, atol=1e-5)


def test_gating_theorem() -> None:
    """One state, A = -1, B = C = 1, zero-order hold: h[t] = (1 - g) h[t-1] + g x with g = sigmoid of the raw step."""
    x, raw = torch.randn(2, 1, 50, 8, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(1, 50, 1)
    y, _ = kernel.selective_scan(x, raw, -torch.ones(8, 1), ones, ones, delta_softplus=True, discretization="zoh")
    h, gate = torch.zeros(8), torch.sigmoid(raw)
    for t in range(50):
        h = (1 - gate[0, t]) * h + gate[0, t] * x[0, t]
        torch.testing.assert_close(y[0, t], h, rtol=1e-5, atol=1e-6)


def test_euler_nears_the_hold_with_the_square_of_the_step() -> None:
    given_inputs = {n: t.detach() for n, t in inputs((1, 1, 8, 4), dtype=torch.float64, whole=False).items()}
    gaps = []
    for size in (1e-2, 5e-3):
        given_inputs["delta"] = torch.full((1, 1, 8), size, dtype=torch.float64)
        one, two = (kernel.reference(**given_inputs, discretization=d)[0] for d in ("euler", "zoh"))
        gaps.append(float((one - two).abs().max()))
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_parts_of_a_projection_need_no_copy() -> None:
    both = torch.randn(2, 30, 48, generator=torch.Generator().manual_seed(0))
    given_inputs = {n: t.detach() for n, t in inputs((2, 30, 24, 4)).items()}
    given_inputs["x"], given_inputs["z"] = both.chunk(2, -1)
    y, _ = kernel.selective_scan(**given_inputs, delta_softplus=True)
    plain, _ = kernel.reference(**given_inputs, delta_softplus=True)
    torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-5)


def test_no_steps_keep_the_state() -> None:
    given_inputs = inputs((2, 0, 8, 4))
    y, last = kernel.selective_scan(**given_inputs)
    assert y.shape == (2, 0, 8)
    assert torch.equal(last, given_inputs["initial"])


def test_wrong_shapes_are_named() -> None:
    given_inputs = inputs((2, 5, 8, 4))
    with pytest.raises(ValueError, match=r"B is \(2, 5, 3\), not \(2, 5, 4\)"):
        kernel.selective_scan(**given_inputs | {"B": torch.zeros(2, 5, 3)})
    with pytest.raises(ValueError, match="euler or zoh"):
        kernel.selective_scan(**given_inputs, discretization="tustin")


def test_operator_keeps_its_contract() -> None:
    given_inputs = inputs((2, 40, 20, 4))
    ordered = [given_inputs[n] for n in ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial")]
    torch.library.opcheck(torch.ops.hasten.selective_scan.default, (*ordered, None, True, False, True))


def test_compile_and_export_see_through() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            return kernel.selective_scan(x, delta, A, B, C, delta_softplus=True)[0] * 2

    given_inputs = tuple(inputs((1, 20, 16, 4), whole=False).values())
    expected = Layer()(*given_inputs)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given_inputs), expected)
    exported = torch.export.export(Layer(), tuple(t.detach() for t in given_inputs))
    assert any("selective_scan" in str(node.target) for node in exported.graph.nodes)


def test_trace_sees_the_work_and_no_expanded_state() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
            return kernel.selective_scan(x, delta, A, B, C, D, delta_softplus=True)[0]

    batch, length, channels, states = 2, 128, 64, 16
    given_inputs = inputs((batch, length, channels, states))
    workload = trace(Layer(), *(given_inputs[n].detach() for n in ("x", "delta", "A", "B", "C", "D")))
    scan = [e for e in workload.phases[0].cascade.einsums if e.source == "hasten::selective_scan"]
    elements = batch * length * channels * states
    assert sum(e.operations for e in scan) == 2 * elements
    cascade = workload.phases[0].cascade
    moved = {a.tensor for e in scan for a in (*e.inputs, e.output)}
    assert max(cascade.tensors[t].elements for t in moved) == batch * length * channels


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
def test_what_is_kept_for_the_gradient_is_a_32nd_of_the_states() -> None:
    batch, length, channels, states = 1, 1024, 64, 16
    given_inputs = inputs((batch, length, channels, states), whole=False)
    own = {t.data_ptr() for t in given_inputs.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y, _ = kernel.selective_scan(**given_inputs, delta_softplus=True)
    assert sum(kept.values()) <= batch * length * channels * states / 32
    del y


def test_the_exact_hold_keeps_its_gradient_where_steps_are_small() -> None:
    given_inputs = inputs((1, 4, 3, 2), whole=False)
    given_inputs["delta"] = torch.full((1, 4, 3), 1e-4, requires_grad=True)
    exact_inputs = {n: t.detach().double().requires_grad_() for n, t in given_inputs.items()}
    (fast,) = value_and_gradients(kernel.selective_scan, given_inputs, discretization="zoh")[4:5]
    (plain,) = value_and_gradients(kernel.reference, exact_inputs, discretization="zoh")[4:5]
    torch.testing.assert_close(fast, plain.float(), rtol=1e-5, atol=1e-12)


def test_random_inputs_are_a_sequence_that_decays() -> None:
    generator = torch.Generator().manual_seed(0)
    x, delta, A, B, C = leaves = kernel.random_inputs(7, 5, 3, generator)
    assert [tuple(t.shape) for t in leaves] == [(1, 7, 5), (1, 7, 5), (5, 3), (1, 7, 3), (1, 7, 3)]
    assert float(delta.detach().min()) >= 0
    assert float(A.max()) <= 0
    kernel.reference(x, delta, A, B, C)[0].sum().backward()
    assert all(t.grad is not None and t.is_leaf for t in leaves)
