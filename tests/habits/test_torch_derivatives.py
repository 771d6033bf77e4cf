"""Derivatives are right or refused in one line: second ones and forward-mode ones, where nothing says zero silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as tnn
from torch.autograd import forward_ad
from torch.func import jvp

from hasten.errors import HastenError
from hasten.kernels import (
    associative_scan,
    deform_conv,
    expert_ffn,
    packed_linear,
    rational,
    selective_scan,
    sparse_linear,
)

from .examples import EXAMPLES, OPERATORS, calls_of, cast, inputs_of, made, output_of

# Operators whose gradient is one of their own, which has no gradient again.
ONCE = sorted(name.removesuffix("_backward") for name in OPERATORS if name.endswith("_backward"))
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "associative_scan": associative_scan.associative_scan,
    "deform_conv2d": deform_conv.deform_conv2d,
    "expert_ffn": expert_ffn.expert_ffn,
    "packed_linear": packed_linear.packed_linear,
    "rational": rational.rational,
    "selective_scan": selective_scan.selective_scan,
    "sparse_linear": sparse_linear.sparse_linear,
}


def _floats(given: list[Any]) -> list[int]:
    """Where tensors stand that may have gradients; those of packed weights may not."""
    return [i for i, a in enumerate(given) if isinstance(a, Tensor) and a.dtype in (torch.float32, torch.float64)]


def _with_gradients(name: str) -> tuple[list[Any], Tensor, Tensor]:
    """Arguments of an operator, one of them that has a gradient, and a sum over what it answers."""
    given = next(c for c in calls_of(name, 40) if _floats(c) and all(a.numel() for a in c if isinstance(a, Tensor)))
    if name == "selective_scan":
        given[-1] = True
    x = given[_floats(given)[0]] = given[_floats(given)[0]].detach().requires_grad_()
    answer = getattr(torch.ops.hasten, name)(*given)
    return given, x, (answer[0] if isinstance(answer, tuple | list) else answer).square().sum()


@pytest.mark.parametrize("name", ONCE)
def test_an_operators_second_derivative_is_refused(name: str) -> None:
    _, x, loss = _with_gradients(name)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(HastenError, match=f"{name} has no second derivative"):
        slope.square().sum().backward()


@pytest.mark.parametrize("name", ["packed_linear", "plain_linear", "sparse_linear"])
def test_a_products_second_derivative_is_right(name: str) -> None:
    given, x, loss = _with_gradients(name)
    answer = getattr(torch.ops.hasten, name)(*given)
    slopes = [torch.autograd.grad(answer[..., o].sum(), x, retain_graph=True)[0] for o in range(answer.shape[-1])]
    weight = torch.stack([slope.reshape(-1, x.shape[-1])[0] for slope in slopes])
    # Of |W x|^2 the slope is 2 W^T W x, whatever codes x was rounded to on the way.
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    direction = torch.randn_like(x)
    (bend,) = torch.autograd.grad((slope * direction).sum(), x)
    torch.testing.assert_close(bend, 2 * direction @ weight.t() @ weight)


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "ternary_linear"])
def test_an_operator_refuses_tangents(name: str) -> None:
    given = next(c for c in calls_of(name, 40) if any(a.is_floating_point() for a in c if isinstance(a, Tensor)))
    place = next(i for i, a in enumerate(given) if isinstance(a, Tensor) and a.is_floating_point())
    with forward_ad.dual_level():
        given[place] = forward_ad.make_dual(given[place].detach(), torch.ones_like(given[place]))
        with torch.no_grad(), pytest.raises(HastenError, match="has no forward-mode derivative"):
            getattr(torch.ops.hasten, name)(*given)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_refuses_tangents_of_torch_func(name: str) -> None:
    given = next(c for c in calls_of(name, 40) if _floats(c))
    if name == "selective_scan":
        given = given[:8]
    if name == "associative_scan":
        given = given[:4]
    place = _floats(given)[0]

    def call(x: Tensor) -> Any:
        return FUNCTIONS[name](*given[:place], x, *given[place + 1 :])

    with pytest.raises(HastenError, match="has no forward-mode derivative"):
        jvp(call, (given[place],), (torch.ones_like(given[place]),))


# What rounds on the way has gradients by what is said, which no difference shows.
_ROUNDING = ("AnalogLinear", "BitLinear", "Ternary", "MLGRU", "MatMulFree", "Packed", "Sparse")
# Published with a part of the gradient stopped: their own tests say of which.
STOPPED = ("ContextKernel", "SlowFastBlock", "Terminator")
ROUGH = {name for name in EXAMPLES if any(kind in name for kind in _ROUNDING)}
REFUSALS = (HastenError, NotImplementedError, RuntimeError)


def _says_so(refusal: Exception) -> None:
    """That a refusal is of a derivative, torch's own among them, and ours in one line."""
    says = str(refusal)
    assert "derivative" in says or "forward AD" in says or "forward mode AD" in says, says
    assert len(says.splitlines()) == 1 or not isinstance(refusal, HastenError)


def _exact(name: str) -> tuple[tnn.Module, tuple[Any, ...], Callable[[], Tensor]]:
    """An example in fp64, its inputs, and a scalar that it gives."""
    module = made(name).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:  # off the bends at 0 that a start of zeros stands on
                parameter.add_(torch.randn_like(parameter) * 0.03)
    given = cast(inputs_of(name, 4), torch.float64)
    return module, given, lambda: output_of(name, module, *given).square().sum()


@pytest.mark.parametrize("name", [n for n in EXAMPLES if EXAMPLES[n].trains and n not in ("NaiveRational", *STOPPED)])
def test_a_modules_second_derivative_is_right_or_refused(name: str) -> None:
    module, _, loss = _exact(name)
    parameters = [p for p in module.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in parameters]

    def slopes(keep: bool) -> list[Tensor]:
        found = torch.autograd.grad(loss(), parameters, create_graph=keep, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters)]

    try:
        along = sum((g * d).sum() for g, d in zip(slopes(True), directions))
        found = torch.autograd.grad(along, parameters, allow_unused=True)  # type: ignore[arg-type]
    except REFUSALS as refusal:
        _says_so(refusal)
        return
    assert name not in ROUGH
    bends = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters)]
    ends = []
    with torch.no_grad():
        for by in (1e-7, -2e-7):
            for p, d in zip(parameters, directions):
                p.add_(d * by)
            with torch.enable_grad():
                ends.append(slopes(False))
    wanted = [(a - b) / 2e-7 for a, b in zip(*ends)]
    off = sum((f - w).square().sum() for f, w in zip(bends, wanted)) / sum(w.square().sum() for w in wanted)
    assert off < 1e-4


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n not in STOPPED])
def test_a_modules_forward_mode_is_right_or_refused(name: str) -> None:
    module, given, _ = _exact(name)
    place = next((i for i, g in enumerate(given) if isinstance(g, Tensor) and g.is_floating_point()), None)
    if place is None:
        pytest.skip("token numbers have no derivative")
    x = given[place]
    direction = torch.randn_like(x)

    def answer(x: Tensor) -> Tensor:
        return output_of(name, module, *given[:place], x, *given[place + 1 :])

    with torch.no_grad():
        try:
            with forward_ad.dual_level():
                slope = forward_ad.unpack_dual(answer(forward_ad.make_dual(x, direction))).tangent
        except REFUSALS as refusal:
            _says_so(refusal)
            return
        assert name not in ROUGH
        wanted = (answer(x + 1e-6 * direction) - answer(x - 1e-6 * direction)) / 2e-6
        assert slope is not None
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
