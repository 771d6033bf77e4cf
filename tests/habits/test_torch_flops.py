"""torch's own counter says of operators, blocks and networks what their workload says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hasten.workload import trace_cascade

from .examples import EXAMPLES, OPERATORS, calls_of, inputs_of, made, output_of

# Of these the workload describes every expert, and a call runs those alone that tokens chose.
CHOSEN = ("Layer", "MixtureOfExperts", "ReGLUExperts", "SmallThinkerLM")


def _counted(call: Any, *given: Any) -> int:
    # torch does not count its own fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call(*given)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [n for n in OPERATORS if not n.endswith("_backward")])
def test_an_operator_counts_as_its_einsums(name: str) -> None:
    operator = getattr(torch.ops.hasten, name)
    for given in calls_of(name):
        assert _counted(operator, *given) == trace_cascade(operator, given).cascade.flops


def test_products_of_operators_are_counted() -> None:
    x, packed = torch.zeros(3, 256, dtype=torch.int8), torch.zeros(5, 64, dtype=torch.uint8)
    assert _counted(torch.ops.hasten.ternary_linear, x, packed) == 2 * 3 * 5 * 256


def test_a_gradient_of_experts_is_five_products() -> None:
    x, scores = torch.randn(6, 32, requires_grad=True), torch.rand(6, 4)
    up, down = (torch.randn(8, 32, requires_grad=True) for _ in range(2))
    y = torch.ops.hasten.expert_ffn(x, scores, up, down)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * 6 * 8 * 32


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n not in CHOSEN])
def test_a_module_counts_as_its_workload(name: str) -> None:
    module, inputs = made(name).eval(), inputs_of(name)

    def call(*given: Any) -> Any:
        return output_of(name, module, *given)

    with torch.no_grad():
        assert _counted(call, *inputs) == trace_cascade(call, inputs, module=module).cascade.flops
