"""Traced without gradients and differentiated afterwards: the right gradients, or a line that says no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hasten import nn
from hasten.errors import HastenError

from .examples import EXAMPLES, first, inputs_of, made, output_of
from .exemptions import expected

DIFFERENTIABLE = [name for name in EXAMPLES if inputs_of(name)[0].is_floating_point()]
REFUSALS = ("were not kept", "has no gradient", "modified by an inplace operation")


def differentiated(run: Callable[..., Any], inputs: tuple[Any, ...]) -> Tensor:
    x = inputs[0].detach().clone().requires_grad_()
    return torch.autograd.grad(first(run(x, *inputs[1:])).square().mean(), x)[0]


def check(name: str, traced: Callable[..., Any]) -> None:
    module, inputs = made(name).eval(), inputs_of(name)
    found, said = None, ""
    try:
        found = differentiated(traced, inputs)
    except (HastenError, ValueError, RuntimeError) as error:
        said = str(error)
    if found is None:
        assert any(refusal in said for refusal in REFUSALS), said
        return
    wanted = differentiated(lambda *given: EXAMPLES[name].call(module, *given), inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_traced(name: str) -> None:
    module, inputs = made(name).eval().requires_grad_(False), inputs_of(name)
    with expected(name, "traced"):
        others = inputs[1:]
        with torch.no_grad():
            traced = make_fx(lambda x: output_of(name, module, x, *others))(inputs[0])
        check(name, lambda x, *_: traced(x))


@pytest.mark.parametrize("kind", ["export", "frozen export", "jit.trace", "operator"])
def test_a_scan_without_what_its_gradient_starts_from(kind: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Mamba(16, states=4), torch.randn(2, 9, 16)
    if kind == "operator":
        rates, (b, c) = -torch.rand(32, 4), torch.randn(2, 2, 9, 4)
        given = torch.randn(2, 9, 32, requires_grad=True)
        answer = torch.ops.hasten.selective_scan(
            given, torch.rand(2, 9, 32), rates, b, c, None, None, None, None, None, True, False, False
        )[0]
    elif kind == "jit.trace":
        with torch.no_grad():
            traced = torch.jit.trace(module, x)
        answer = traced(x)
    elif kind == "export":
        with torch.no_grad():
            program = torch.export.export(module, (x,))
        answer = program.module()(x)
    else:
        program = torch.export.export(module.requires_grad_(False), (x,))
        answer = program.module()(x.clone().requires_grad_())
    with pytest.raises(ValueError, match="were not kept: run the forward pass"):
        answer.sum().backward()
