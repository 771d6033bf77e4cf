"""Small models with sparse experts: the extra losses weigh as they are told, and their models are kept."""

from __future__ import annotations

import math

from hasten.train.sparse_experts import source_text, train_sparse_experts


def test_a_constant_weight_stays_and_the_model_is_kept() -> None:
    found = train_sparse_experts("block", 2e-3, 0.05, False, 2, 0)
    assert found.weight == 0.05
    assert found.state
    assert 0 <= found.routed.sparsity <= 1
    assert found.loss < 2 * math.log(source_text().classes)


def test_without_the_losses_nothing_is_kept() -> None:
    found = train_sparse_experts("top-k", 0.0, 0.0, False, 1, 0)
    assert found.weight == 0.0
    assert not found.state


def test_the_same_seed_gives_the_same_model() -> None:
    one, other = (train_sparse_experts("block", 2e-3, 0.05, True, 3, 1) for _ in range(2))
    assert one.loss == other.loss
    assert one.weight == other.weight
