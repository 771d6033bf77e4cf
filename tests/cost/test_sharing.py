from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost import estimate
from hasten.cost.sharing import Sharing, sum_seconds
from hasten.hardware import load_device
from hasten.workload import Workload, language_model, trace

CONFIG = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000, "num_hidden_layers": 4,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> Workload:
    return language_model(CONFIG, prompt=64, new_tokens=8, dtype="bf16")


def test_two_sums_a_layer(llama: Workload):
    device = load_device("8x h100")
    assert Sharing(llama.phases[1].cascade, device).sums == 2 * 4
    assert Sharing(llama.phases[1].cascade, load_device("h100")).sums == 0


def test_a_layer_of_experts_has_one_sum_after_attention_and_one_after_the_experts():
    experts = {**CONFIG, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    work = language_model({**experts, "num_hidden_layers": 2}, prompt=8, new_tokens=2, dtype="bf16")
    assert Sharing(work.phases[1].cascade, load_device("2x h100")).sums == 2 * 2


def test_products_are_divided_and_sums_take_the_links_time(llama: Workload):
    one, eight = load_device("h100"), load_device("8x h100")
    alone, shared = (estimate(llama, d, schedule="fused").phase("decode").latency_per_repeat for d in (one, eight))
    told = 8 * sum_seconds(eight, 8192 * 2)
    assert alone / 8 < shared < alone
    assert shared > told
    assert any("divided over 8 devices, with 8 sums over NVLink" in n for n in estimate(llama, eight).notes)


def test_a_sum_goes_round_a_ring_and_up_a_tree():
    eight, link = load_device("8x h100"), load_device("h100").links[0]
    assert sum_seconds(eight, 0) == pytest.approx(2 * 3 * link.latency)
    assert sum_seconds(eight, 1e9) == pytest.approx(2 * 7 / 8 * 1e9 / (link.bandwidth / 2) + 6 * link.latency)


def test_what_one_device_cannot_hold_eight_can():
    wide = language_model({**CONFIG, "num_hidden_layers": 60}, prompt=8, new_tokens=2, dtype="bf16")
    assert not estimate(wide, load_device("h100")).fits
    assert estimate(wide, load_device("8x h100")).fits


def test_without_names_every_second_product_ends_a_sublayer():
    work = trace(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), torch.randn(4, 64))
    sharing = Sharing(work.phases[0].cascade, load_device("2x h100"))
    assert sharing.sums == 1
