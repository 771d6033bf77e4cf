"""SimpleNet's checks run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hasten.models.vision.backbone import multiply_accumulates
from hasten.papers.checks import simplenet
from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("simplenet")
    assert found.keys() == {"S3", "S3.rules", "S6", "S7"}
    # The budgets are those of the dossier: 78.8 K weights and 3.45 M products, and residual networks near them.
    assert "SimpleNet" in found["S3"].seen
    assert "3.45 M products" in found["S3"].seen
    assert "breaks local correlation" in found["S3.rules"].seen
    assert "VGG16 24.1x and 11.5x" in found["S6"].seen
    assert all(f"here, batch {size}, simplenet-5m-m1" in found["S7"].seen for size in (2, 1))


def test_a_small_budget_does_not_judge(needed: Callable[[str], dict[str, float]]) -> None:
    assert needed("simplenet") == {"S3": 240, "S3.rules": 240}


def test_what_breaks_a_rule_is_compared_at_equal_products() -> None:
    def products(layout: str, scale: float) -> int:
        with torch.device("meta"):
            return multiply_accumulates(simplenet._simple(layout, scale), (1, 16, 16))

    wanted = products(simplenet._HALF.layout, 0.5)
    for name, layout in simplenet._BROKEN.items():
        found = products(layout, simplenet._scaled(layout, wanted))
        assert found == pytest.approx(wanted, rel=0.05), name
