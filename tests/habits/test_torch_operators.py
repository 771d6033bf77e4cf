"""torch's own check of operators: schemas, fake tensors, and gradients that are traced with any sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn import PackedLinear, TernaryLinear

from .examples import OPERATORS, calls_of
from .exemptions import expected

# What has no gradient refuses one in a line, and gradients have none again.
PLAIN = {"kv_append", "kv_read", "packed_embedding", "dequantize", "ternary_linear", "ternary_quantize"}


def check(name: str, given: list[Any], gradients: bool) -> None:
    copies = [a.clone() if isinstance(a, Tensor) else a for a in given]
    if gradients:
        copies = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in copies]
    with expected(name, "opcheck"):
        torch.library.opcheck(getattr(torch.ops.hasten, name).default, tuple(copies))


def trains(name: str, given: list[Any]) -> bool:
    if name == "selective_scan" and not given[-1]:
        return False  # it says that it did not keep what the gradient starts from
    return name not in PLAIN and not name.endswith("_backward")


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    given = next(calls_of(name, 1))
    check(name, given, trains(name, given))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck_of_every_way(name: str) -> None:
    for given in calls_of(name):
        check(name, given, False)
        if trains(name, given):
            check(name, given, True)


@pytest.mark.parametrize("name", sorted(PLAIN - {"kv_append", "ternary_linear"}))
def test_what_has_no_gradient_says_so(name: str) -> None:
    given = next(c for c in calls_of(name) if any(a.is_floating_point() for a in c if isinstance(a, Tensor)))
    copies = [a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in given]
    answer = getattr(torch.ops.hasten, name)(*copies)
    with pytest.raises(HastenError, match=f"{name} has no gradient"):
        (answer[-1] if isinstance(answer, tuple) else answer).sum().backward()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_what_stands_before_a_packed_layer_trains_compiled(bits: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), PackedLinear.from_linear(nn.Linear(64, 48), bits))
    x = torch.randn(3, 64)

    def gradients(run: Any) -> list[Tensor]:
        model.zero_grad()
        run(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    wanted = gradients(model)
    assert len(wanted) == 2
    found = gradients(torch.compile(model, backend="aot_eager", fullgraph=True))
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one)


class Adapted(nn.Module):
    """A frozen packed layer with a product of low rank beside it, as LoRA has."""

    def __init__(self, base: PackedLinear | TernaryLinear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(64, 2, bias=False), nn.Linear(2, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_adapters_over_packed_layers_train_compiled() -> None:
    torch.manual_seed(0)
    base = [PackedLinear.from_linear(nn.Linear(64, 64), bits) for bits in (4, 8)]
    model, x = nn.Sequential(*map(Adapted, base)), torch.randn(5, 64)
    run, before = torch.compile(model, backend="aot_eager", fullgraph=True), base[0].packed.clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = run(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert torch.equal(base[0].packed, before)
