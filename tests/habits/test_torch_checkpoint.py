"""Activation checkpointing gives the gradients that it gives without, those of routers' losses too."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hasten.nn.blockffn import activation_locality

from .examples import EXAMPLES, TRAINED, first, inputs_of, made
from .exemptions import expected

ROUTED = [
    name
    for name in TRAINED
    if not name.endswith(": dense") and "return_routing" in inspect.signature(made(name).forward).parameters
]


def gradients(name: str, routed: bool, kind: str) -> list[torch.Tensor]:
    module = made(name)
    inputs = [x.requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs_of(name)]

    def run(*given: Any) -> Any:
        if not routed:
            return EXAMPLES[name].call(module, *given)
        # The layer of a network takes a cache before, which there is none of.
        extra = (None,) if name == "Layer" else ()
        output, routings = module(*given, *extra, return_routing=True)
        return output, *(r.logits for r in (routings if isinstance(routings, list) else [routings]))

    torch.manual_seed(6)
    if kind == "plain":
        output = run(*inputs)
    else:
        # An input that takes no gradient leaves reentrant checkpointing without any.
        anchor = torch.zeros((), requires_grad=True)
        output = checkpoint(lambda _, *given: run(*given), anchor, *inputs, use_reentrant=kind == "reentrant")
    loss = first(output).square().mean()
    if routed:
        assert all(logits.requires_grad for logits in output[1:])
        losses = [activation_locality(x[None] if x.ndim == 2 else x) for x in output[1:]]
        loss = loss + torch.stack(losses).sum()
    loss.backward()
    wanted = [x for x in inputs if torch.is_tensor(x) and x.requires_grad]
    return [torch.zeros_like(t) if t.grad is None else t.grad for t in (*wanted, *module.parameters())]


@pytest.mark.parametrize("kind", ["reentrant", "recomputed"])
@pytest.mark.parametrize("name", TRAINED)
def test_checkpoint(name: str, kind: str) -> None:
    with expected(name, "checkpoint"):
        for one, other in zip(gradients(name, False, "plain"), gradients(name, False, kind), strict=True):
            torch.testing.assert_close(other, one)


@pytest.mark.parametrize("kind", ["reentrant", "recomputed"])
@pytest.mark.parametrize("name", ROUTED)
def test_losses_of_routers(name: str, kind: str) -> None:
    with expected(name, "checkpoint"):
        plain = gradients(name, True, "plain")
        assert any(float((a - b).abs().max()) > 0 for a, b in zip(plain, gradients(name, False, "plain"), strict=True))
        for one, other in zip(plain, gradients(name, True, kind), strict=True):
            torch.testing.assert_close(other, one)


def test_the_layers_with_routers_are_here() -> None:
    assert {"BlockFFN", "TopKFFN", "ReGLUExperts", "MixtureOfExperts", "BlockFFNLM", "SmallThinkerLM"} <= set(ROUTED)
