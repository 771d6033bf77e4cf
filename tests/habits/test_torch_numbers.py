"""Numbers are what their dtype says: fp64 is fp64 within, bf16 and autocast run, nothing is nothing both ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .examples import EXAMPLES, cast, inputs_of, made, output_of
from .exemptions import expected


def _feels(change: Callable[[], Tensor], tensor: Tensor, before: Tensor) -> bool:
    """Whether an answer feels a change of 1e-10 in a tensor, where what one of 1e-6 does says that fp64 shows it."""
    kept = tensor.detach().clone()
    felt = []
    for size in (1e-10, 1e-6):
        tensor.add_(torch.randn_like(tensor) * size)
        felt.append(float((change() - before).abs().max()))
        tensor.copy_(kept)
    return felt[0] > 0 or 1e-4 * felt[1] < 1e-14 * float(before.abs().max())


@pytest.mark.parametrize("name", EXAMPLES)
def test_fp64_is_fp64_within(name: str) -> None:
    module, inputs = made(name).double().eval(), cast(inputs_of(name), torch.float64)

    def answer() -> Tensor:
        return output_of(name, module, *inputs)

    with torch.no_grad():
        before = answer()
        given = {f"input {i}": t for i, t in enumerate(inputs) if isinstance(t, Tensor) and t.is_floating_point()}
        # Of layers of one kind one is enough.
        kinds = {(type(m), n): p for m in module.modules() for n, p in m._parameters.items() if p is not None}
        parameters = {f"{m.__name__}.{n}": p for (m, n), p in kinds.items() if p.dtype is torch.float64}
        deaf = [n for n, t in (given | parameters).items() if not _feels(answer, t, before)]
        # Packed layers keep their own types.
        narrow = [n for n, p in module.named_parameters() if p.requires_grad and p.dtype is not torch.float64]
    assert not deaf
    assert not narrow
    assert before.dtype is torch.float64 or "Embedding" in name


@pytest.mark.parametrize("name", ["GroupRational", "Mamba", "MLGRU", "S5", "BlockFFN"])
def test_gradients_in_fp64_are_those_of_finite_differences(name: str) -> None:
    module, inputs = made(name).double(), cast(inputs_of(name, 4), torch.float64)
    parameters = list(module.parameters())
    directions = [torch.randn_like(p) for p in parameters]

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, directions):
                p.add_(d * by)
            found = output_of(name, module, *inputs).square().sum()
            for p, d in zip(parameters, directions):
                p.add_(d * -by)
        return found

    gradients = torch.autograd.grad(output_of(name, module, *inputs).square().sum(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions))
    expected_slope = (moved(1e-7) - moved(-1e-7)) / 2e-7
    if name == "MLGRU":  # straight through its roundings: no slope of what it computes
        assert slope.isfinite()  # type: ignore[union-attr]
    else:
        torch.testing.assert_close(slope, expected_slope, rtol=1e-5, atol=1e-6)


def _close(found: Tensor, wanted: Tensor) -> None:
    # bf16 has eight bits; what is rounded to int8 between may fall to the other side.
    assert (found.float() - wanted).norm() < 0.15 * wanted.norm()


@pytest.mark.parametrize("name", EXAMPLES)
def test_bf16_runs(name: str) -> None:
    example = EXAMPLES[name]
    wanted = output_of(name, made(name).eval(), *inputs_of(name)).float()
    module = made(name).bfloat16().eval()
    found = output_of(name, module, *cast(inputs_of(name), torch.bfloat16))
    _close(found, wanted)
    with expected(name, "bf16"):
        assert found.dtype is torch.bfloat16
    if example.trains:
        found.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", EXAMPLES)
def test_autocast_runs(name: str) -> None:
    example = EXAMPLES[name]
    for training in (False, True):
        module = made(name).train(training)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = output_of(name, module, *inputs_of(name))
        if example.trains:
            found.float().square().mean().backward()
            assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
        if not training:
            _close(found, output_of(name, made(name).eval(), *inputs_of(name)).float())


def test_bitlinear_that_keeps_what_autograd_keeps_runs_in_bf16() -> None:
    from hasten import nn

    torch.manual_seed(0)
    kept, x = nn.BitLinear(32, 16, fused=False).bfloat16(), torch.randn(2, 5, 32, dtype=torch.bfloat16)
    fused = nn.BitLinear(32, 16).bfloat16()
    fused.load_state_dict(kept.state_dict())
    torch.testing.assert_close(kept(x), fused(x), rtol=0.02, atol=0.01)


def test_a_packed_ternary_layer_passes_gradients_as_its_unpacked_one() -> None:
    from hasten import nn

    torch.manual_seed(0)
    layer = nn.BitLinear(64, 24)
    for rows in (3, 40):
        x, weight = torch.randn(rows, 64, requires_grad=True), torch.randn(rows, 24)
        wanted, found = (torch.autograd.grad((part(x) * weight).sum(), x)[0] for part in (layer, layer.pack()))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "length"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_nothing(name: str, kind: str) -> None:
    example = EXAMPLES[name]
    if kind == "length" and example.pictures:
        pytest.skip("pictures have no length")
    whole = inputs_of(name)
    inputs = tuple(
        i.narrow(0 if kind == "batch" else dimension or 0, 0, 0) if isinstance(i, Tensor) else i
        for i, dimension in zip(whole, example.varies, strict=True)
    )
    shape = output_of(name, made(name), *whole).shape
    for training in (True, False):
        module = made(name).train(training)
        answer = output_of(name, module, *inputs)
        assert not answer.numel()
        assert answer.ndim == len(shape)
        assert answer.shape[-1] == shape[-1]
        if example.trains:
            answer.sum().backward()
            assert not any(p.grad.any() for p in module.parameters() if p.grad is not None)
