"""What sparse layers save: counted by hand, and timed on whole layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hasten.nn.block_sparse import SinkWindow, VerticalStride
from hasten.train.partial_context import flops_ratio, layer_call, layer_ratio
from hasten.workload.decoder import DecoderSizes

LLAMA_7B = DecoderSizes("llama-2-7b", layers=32, hidden=4096, heads=32, inner=11008, vocabulary=32000)


def test_published_sizes() -> None:
    """12.95 GFLOP of products a token and 34.36 of attention at 128K: 1.808 in reading, 1.869 in training."""
    pattern = SinkWindow(1, 15)
    assert 2 * LLAMA_7B.layer_parameters == pytest.approx(12.95e9, rel=1e-3)
    assert flops_ratio(LLAMA_7B, pattern, 12, 131072) == pytest.approx(1.808, abs=0.002)
    assert flops_ratio(LLAMA_7B, pattern, 12, 131072, backward=True) == pytest.approx(1.869, abs=0.002)
    assert flops_ratio(LLAMA_7B, pattern, 32, 131072) == 1


def test_by_hand() -> None:
    """Every other layer reads 1.5 blocks of 4 at most, of 64 blocks."""
    sizes = DecoderSizes("small", layers=4, hidden=8, heads=2, inner=16)
    linear = 2 * 4 * (4 * 8 * 8 + 3 * 8 * 16)
    read = (0.5 + 3 * 1.5) / 4 * 4
    dense, sparse = 4 * 8 * 128, 4 * 8 * read
    found = flops_ratio(sizes, SinkWindow(0, 2), 2, 256, block=4)
    assert found == pytest.approx((linear + 4 * dense) / (linear + 2 * dense + 2 * sparse))


@pytest.mark.parametrize("pattern", [None, SinkWindow(1, 1), VerticalStride(1, 2, heads=3)])
def test_a_training_step_is_of_the_whole_layer(pattern: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, backward and update: all products of attention and MLP three times, and every parameter moves."""
    kept: list[torch.optim.Optimizer] = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr("torch.optim.AdamW", lambda *a, **k: kept.append(adamw(*a, **k)) or kept[-1])
    call = layer_call(256, pattern, training=True)
    parameters = [p for group in kept[0].param_groups for p in group["params"]]
    products = sum(p.numel() for p in parameters if p.ndim == 2)
    assert products == 576 * (576 * 2 + 192 * 2 + 1536 * 3)
    before = [p.detach().clone() for p in parameters]
    with FlopCounterMode(display=False) as counter:
        call()
    # The input's gradient of the first products is not needed.
    linear = sum(v for op, v in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    assert 0.85 * 6 * 256 * products < linear <= 6 * 256 * products
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_ratios_are_measured() -> None:
    for training in (False, True):
        assert layer_ratio(128, SinkWindow(1, 1), 0.4, training=training, rounds=1) > 0
