"""Attention on a spatial array against FuseMax's published figures."""

import csv
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.cost.chips.spatial import (
    DESIGNS,
    LENGTHS,
    MODELS,
    Transformer,
    attention_cost,
    model_cost,
    operations,
    query_tile,
)
from hasten.errors import HastenError
from hasten.hardware.chips.spatial import OPERATIONS, SpatialArray
from hasten.workload.attention import attention
from hasten.workload.execution import exp_macs

with (Path(__file__).parent / "fusemax_published.csv").open() as file:
    PUBLISHED = list(csv.DictReader(file))
BERT = {"heads": 64 * 12, "e": 64, "f": 64}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_published_latency_comes_out(design):
    models = {m.name: m for m in MODELS}
    assert len(PUBLISHED) == 24
    for row in PUBLISHED:
        cost, _ = model_cost(DESIGNS[design], models[row["model"]], int(row["tokens"]))
        assert cost.latency == pytest.approx(float(row[f"{design}_seconds"]), rel=5e-3)
        published = float(row[f"{design}_joules"])
        if not math.isnan(published):
            assert cost.energy == pytest.approx(published, rel=0.06)


@pytest.mark.parametrize(
    ("design", "cycles"),
    [("fusemax", 1_892_352), ("architecture", 5_627_904), ("cascade", 14_413_824), ("flat", 12_582_912)],
)
def test_cycles_of_bert(design, cycles):
    assert attention_cost(DESIGNS[design], p=1024, m=1024, **BERT).cycles == cycles


def test_traffic_of_bert():
    fusemax = DESIGNS["fusemax"]
    assert attention_cost(fusemax, p=1024, m=1024, **BERT).bytes["memory"] == 402_653_184
    assert attention_cost(fusemax, p=65536, m=65536, **BERT).bytes["memory"] == 38_654_705_664


@given(
    st.sampled_from(list(DESIGNS)),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([32, 64, 128]),
)
def test_no_cheaper_than_must_be(design, p, m, e, f):
    cost = attention_cost(DESIGNS[design], heads=3, p=256 * p, m=256 * m, e=e, f=f)
    assert cost.bytes["memory"] >= 3 * 2 * 256 * (p * (e + f) + m * (e + f))
    assert 0 < cost.utilization <= 1 + 1e-12
    assert 0 < cost.lanes <= 1 + 1e-12
    assert cost.latency >= cost.cycles / 940e6 * (1 - 1e-12)
    assert cost.energy > 0


def test_a_query_tile_divides_and_fits():
    fusemax = DESIGNS["fusemax"]
    for n in LENGTHS:
        tile = query_tile(fusemax, n, 64, 64)
        assert n % tile == 0
        assert 2 * tile * (64 + 64 + 2) <= fusemax.chip.buffer


def test_deferring_the_division_leaves_one_for_each_output():
    for kind, divisions in (("three-pass", 128 * 512), ("two-pass", 128 * 32), ("one-pass", 128 * 32)):
        cascade = attention(kind, p=128, m=512, e=16, f=32, m0=64)
        assert sum(e.points for e in cascade if "div" in operations(e)) == divisions


def test_whole_tiles_are_asked_for():
    with pytest.raises(HastenError, match="multiples of 256"):
        attention_cost(DESIGNS["fusemax"], heads=1, p=100, m=256, e=64, f=64)
    unknown = next(iter(attention("one-pass", p=8, m=8, e=8, f=8)))
    assert operations(unknown) == ("mac",)


def test_six_macs_make_an_exponential():
    x = torch.linspace(-16, 0, 100_001, dtype=torch.float64)
    assert float(((exp_macs(x) - x.exp()) / x.exp()).abs().max()) < 1e-3
    assert exp_macs(torch.tensor([-math.inf, 0.0])).tolist() == [0.0, 1.0]
    assert OPERATIONS["mac"] * 6 > OPERATIONS["exp"]


def test_models_come_from_transformers_configurations():
    from transformers import BertConfig, LlamaConfig, T5Config

    assert Transformer.of(BertConfig()) == Transformer("bert", 12, 64, 768, 3072)
    t5 = Transformer.of(T5Config(), batch=1)
    assert (t5.heads, t5.channels, t5.width, t5.hidden, t5.batch) == (8, 64, 512, 2048, 1)
    llama = LlamaConfig(hidden_size=576, num_attention_heads=9, intermediate_size=1536)
    assert Transformer.of(llama) == Transformer.of(llama.to_dict())
    assert model_cost(DESIGNS["fusemax"], Transformer.of(llama), 1024)[0].latency > 0
    for wrong, match in [({}, "no attention"), ({"num_attention_heads": 0}, "whole number above 0")]:
        with pytest.raises(HastenError, match=match):
            Transformer.of(wrong)


@pytest.mark.parametrize("wrong", [{"bandwidth": 0}, {"bandwidth": math.nan}, {"side": 0}, {"clock": math.inf}])
def test_an_array_without_bandwidth_or_elements_is_refused_in_a_line(wrong: dict[str, float]) -> None:
    with pytest.raises(HastenError, match="the array X needs") as refusal:
        SpatialArray("X", **wrong)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
