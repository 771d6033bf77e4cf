"""Building as torch's own modules are built: device and dtype, meta, a start anew, states that hold everything."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from .examples import BLOCKS, EXAMPLES, inputs_of, made, output_of
from .exemptions import expected


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return EXAMPLES[name].make().train()


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def ruined(module: nn.Module) -> nn.Module:
    """With storage in which nothing can be used."""
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in tensors_of(module).values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    return module


def answer(name: str, module: nn.Module, seed: int = 1) -> torch.Tensor:
    return output_of(name, module.eval(), *inputs_of(name, seed=seed))


@pytest.mark.parametrize("name", BLOCKS)
def test_factory(name: str) -> None:
    with expected(name, "factory"):
        assert {"device", "dtype"} <= inspect.signature(type(made(name)).__init__).parameters.keys()
        if EXAMPLES[name].trains:
            for dtype in (torch.float64, torch.bfloat16):
                kinds = {t.dtype for t in made(name, dtype=dtype).parameters()}
                assert kinds <= {dtype, torch.float32}
            assert torch.float64 in {t.dtype for t in made(name, dtype=torch.float64).parameters()}
            assert all(t.is_meta for t in tensors_of(made(name, device="meta")).values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_meta(name: str) -> None:
    with expected(name, "meta"):
        module = on_meta(name)
        assert all(t.is_meta for t in tensors_of(module).values())
        torch.manual_seed(2)
        ruined(module).reset_parameters()  # type: ignore[operator]
        whole = tensors_of(made(name, 3))
        for key, tensor in tensors_of(module).items():
            assert tensor.isfinite().all(), key
            assert tensor.dtype is whole[key].dtype, key
            if not tensor.is_floating_point() and EXAMPLES[name].trains:
                assert torch.equal(tensor, whole[key]), key
        assert answer(name, module).isfinite().all()
        # As FSDP does it: every module's own, in whatever order.
        for part in ruined(module).modules():
            reset: Any = getattr(part, "reset_parameters", lambda: None)
            reset()
        assert all(tensor.isfinite().all() for tensor in tensors_of(module).values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_state(name: str) -> None:
    with expected(name, "state"):
        module = made(name)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.is_floating_point() and parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        wanted, state = answer(name, module), module.state_dict()
        other = made(name, 5)
        other.load_state_dict(state)
        torch.testing.assert_close(answer(name, other), wanted)
        other = ruined(on_meta(name))
        other.load_state_dict(state)
        torch.testing.assert_close(answer(name, other), wanted)
        other = on_meta(name)
        other.load_state_dict(state, assign=True)
        assert not any(t.is_meta for t in tensors_of(other).values())
        torch.testing.assert_close(answer(name, other), wanted)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", EXAMPLES)
def test_default_dtype(name: str, default: torch.dtype) -> None:
    def results() -> list[torch.Tensor]:
        module.zero_grad()
        torch.manual_seed(4)
        output = output_of(name, module, *inputs)
        if output.requires_grad:
            output.square().sum().backward()
        gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        return [output.detach().clone(), *gradients]

    with expected(name, "default dtype"):
        module, inputs = made(name).eval(), inputs_of(name)
        wanted = results()
        torch.set_default_dtype(default)
        try:
            found = results()
        finally:
            torch.set_default_dtype(torch.float32)
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(other, one)
