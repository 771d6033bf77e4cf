"""LowFormer's checks run end to end in a quick run, and its sizes are exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from hasten.models.vision.backbone import multiply_accumulates
from hasten.papers.checks import lowformer
from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("lowformer")
    assert found.keys() == {"L1", "L2", "L3", "L4", "L5", "L6", "L6.task"}
    assert all(seen.seen for seen in found.values())
    assert "the paper's rule 16, 32, 64, 128" in found["L5"].seen


def test_sizes_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("lowformer", "L1").verdict == "holds"


@pytest.mark.parametrize("channels", [8, 32])
def test_both_bottlenecks_are_timed_without_normalization(channels: int) -> None:
    arms = lowformer._blocks(channels)
    side, middle = 6, 4 * channels
    wanted = {"fused": (9 * channels + channels) * middle, "apart": (channels + 9 + channels) * middle}
    for name, arm in arms.items():
        assert not [m for m in arm.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.bias is not None for m in arm.modules() if isinstance(m, nn.Conv2d))
        assert multiply_accumulates(arm, (channels, side, side)) == wanted[name] * side**2
