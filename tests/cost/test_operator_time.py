from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost.operator_time import least_seconds, operator_seconds
from hasten.hardware import Curve, Device, load_device
from hasten.workload import Einsum, trace


def with_curves(**curves: tuple[tuple[str, ...], float]) -> Device:
    """A device whose operators take ``seconds`` at size 1 and grow with the volume."""
    made = [
        Curve(
            operation=name,
            dtype="fp32",
            axes=axes,
            grid=tuple((1,) for _ in axes),
            seconds=(seconds,),
            source="made up",
        )
        for name, (axes, seconds) in curves.items()
    ]
    return load_device("cpu2").model_copy(update={"curves": tuple(made)})


def operators(module: nn.Module, *inputs: torch.Tensor) -> list[list[Einsum]]:
    groups: dict[int, list[Einsum]] = {}
    for einsum in trace(module.eval(), *inputs).phases[0].cascade:
        groups.setdefault(einsum.kernel, []).append(einsum)
    return list(groups.values())


def test_without_curves_there_is_no_time():
    (group,) = operators(nn.Linear(4, 8, bias=False), torch.ones(2, 4))
    assert operator_seconds(group, load_device("cpu2"), "fp32") is None


def test_a_linear_layer_is_a_product_of_rows_outputs_and_inputs():
    device = with_curves(mm=(("m", "n", "k"), 1e-9))
    for bias in (True, False):
        (group,) = operators(nn.Linear(4, 8, bias=bias), torch.ones(3, 5, 4))
        assert operator_seconds(group, device, "fp32") == pytest.approx(15 * 8 * 4 * 1e-9)


def test_convolutions_are_told_apart_by_their_groups_and_kernel():
    device = with_curves(
        conv1x1=(("inputs", "outputs", "pixels"), 1e-9),
        conv3x3=(("inputs", "outputs", "pixels"), 9e-9),
        depthwise3x3=(("channels", "pixels"), 2e-9),
    )
    x = torch.ones(1, 4, 10, 10)
    (pointwise,) = operators(nn.Conv2d(4, 6, 1), x)
    assert operator_seconds(pointwise, device, "fp32") == pytest.approx(4 * 6 * 100 * 1e-9)
    (dense,) = operators(nn.Conv2d(4, 6, 3), x)
    assert operator_seconds(dense, device, "fp32") == pytest.approx(4 * 6 * 64 * 9e-9)
    (large,) = operators(nn.Conv2d(4, 6, 5), x)
    assert operator_seconds(large, device, "fp32") == pytest.approx(4 * 6 * 36 * 25e-9, rel=0.01)
    (depthwise,) = operators(nn.Conv2d(4, 4, 3, groups=4), x)
    assert operator_seconds(depthwise, device, "fp32") == pytest.approx(4 * 64 * 2e-9)


def test_recurrent_layers_go_by_steps_batch_and_width():
    device = with_curves(gru=(("steps", "batch", "size"), 1e-9), lstm=(("steps", "batch", "size"), 2e-9))
    for kind, each in ((nn.GRU, 1e-9), (nn.LSTM, 2e-9)):
        group = operators(kind(3, 7), torch.ones(5, 2, 3))
        layer = next(g for g in group if g[0].source.split("::")[-1] in ("gru", "lstm"))
        assert operator_seconds(layer, device, "fp32") == pytest.approx(5 * 2 * 7 * each)


def test_attention_goes_by_heads_queries_keys_and_width():
    class Attend(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    device = with_curves(attention=(("heads", "queries", "keys", "size"), 1e-9))
    (group,) = operators(Attend(), torch.ones(2, 6, 5, 8), torch.ones(2, 3, 7, 8))
    assert operator_seconds(group, device, "fp32") == pytest.approx(12 * 5 * 7 * 8 * 1e-9)


def test_an_operator_that_nobody_measured_costs_what_its_nearest_does():
    device = with_curves(add=(("elements",), 3e-9), relu=(("elements",), 1e-9), mean=(("rows", "columns"), 2e-9))

    class Unlisted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.erfcx(x)

    class Binary(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.atan2(x, x + 1)

    (one,) = operators(Unlisted(), torch.ones(10))
    assert operator_seconds(one, device, "fp32") == pytest.approx(10e-9)
    _, two = operators(Binary(), torch.ones(10))
    assert operator_seconds(two, device, "fp32") == pytest.approx(30e-9)


def test_the_smallest_operator_takes_what_it_takes_to_come_to_one():
    device = with_curves(mm=(("m", "n", "k"), 3e-6), conv1x1=(("inputs", "outputs", "pixels"), 5e-6))
    for module, x, seconds in (
        (nn.Linear(4, 8), torch.ones(3, 5, 4), 3e-6),
        (nn.Conv2d(4, 6, 1, bias=False), torch.ones(1, 4, 10, 10), 5e-6),
    ):
        (group,) = operators(module, x)
        assert least_seconds(group, device, "fp32") == pytest.approx(seconds)
        assert operator_seconds(group, device, "fp32") > seconds
