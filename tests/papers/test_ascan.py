"""AsCAN's checks run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hasten.models import AsCAN, AsCANUNet
from hasten.models.vision.backbone import multiply_accumulates
from hasten.papers.checks import ascan
from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("ascan")
    assert found.keys() == {"A1", "A2", "A2.unet", "A3"}
    assert "reversed TT|TC|CC loss" in found["A2.unet"].seen
    assert all(f"{name} " in found["A2"].seen for name in ("asymmetric", "symmetric", "reversed", "convolutions"))


def test_a_small_budget_does_not_judge(needed: Callable[[str], dict[str, float]]) -> None:
    assert needed("ascan") == {"A2": 240, "A2.unet": 240, "A3": 60}


def test_the_fitted_sizes_are_near_the_published_ones(outcome: Callable[..., Outcome]) -> None:
    found = outcome("ascan", "A1")
    assert found.verdict == "holds"
    assert "T 55.6 M / 7.67 G (published 55 M / 7.7 G)" in found.seen
    assert "B 99.3 M / 16.58 G (published 98 M / 16.7 G)" in found.seen
    assert "L 174.0 M / 30.82 G (published 173 M / 30.7 G)" in found.seen
    assert "fitted, not the paper's own" in found.seen


def test_layouts_are_compared_at_equal_products() -> None:
    wanted = ascan._products(ascan._config(ascan._LAYOUTS["asymmetric"], ascan._WIDTH))
    for name, layout in ascan._LAYOUTS.items():
        config = ascan._fitted(layout, wanted)
        with torch.device("meta"):
            products = multiply_accumulates(AsCAN(config), (1, 32, 32))
        assert products == pytest.approx(wanted, rel=0.05), name
        assert str(config.layout) == layout
        # A head of the first stage's width divides that of every other.
        assert all(width % config.head_size == 0 for width in config.widths)
    judged = [ascan._fitted(ascan._LAYOUTS[name], wanted) for name in ("asymmetric", "symmetric")]
    assert [(c.widths[0], c.stem) for c in judged] == [(16, 8), (18, 8)]  # what is judged differs in its widths alone


def test_placements_of_the_u_net_are_compared_at_equal_products() -> None:
    products = {}
    for name, config in ascan._equal_unets(16, 3).items():
        with torch.device("meta"):
            products[name] = multiply_accumulates(AsCANUNet(config), (1, 16, 16), 0)
        assert str(config.layout) == ascan._PLACES[name]
    assert products.keys() == ascan._PLACES.keys()
    assert all(p == pytest.approx(products["asymmetric"], rel=0.05) for p in products.values())
