"""Layers of one kind described once: what is estimated of the few is what is estimated of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from hasten.cost import estimate
from hasten.cost.folding import copies_of, folded, resident_bytes
from hasten.hardware import Device, load_device
from hasten.methods import CacheFormat, DropLayers, HybridWindow, LookupDecoding, Method, WeightOnly, rewrite_all
from hasten.runtime import LanguageModel
from hasten.tuning.predict import Descriptions
from hasten.workload import Workload


@pytest.fixture(scope="module")
def workload() -> Workload:
    config = LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=15, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config)).workload(80, 16)


@pytest.fixture(scope="module")
def device() -> Device:
    """One whose caches hold a few layers, so that what was touched before decides where things are."""
    known = load_device("cpu2")
    sizes = (2e4, 1e5, 1.5e6)
    levels = [
        level.model_copy(update={"capacity": type(level.capacity).make(size, "bytes", "made up")})
        for level, size in zip(known.memory[:-1], sizes, strict=False)
    ]
    return known.model_copy(update={"memory": (*levels, known.memory[-1])})


def same(short: Workload, whole: Workload, device: Device) -> None:
    for schedule in ("eager", "fused"):
        a, b = (estimate(w, device, schedule=schedule) for w in (short, whole))  # type: ignore[arg-type]
        for one, other in zip(a.phases, b.phases, strict=True):
            assert one.latency == pytest.approx(other.latency, rel=1e-9)
            assert dict(one.bytes) == pytest.approx(dict(other.bytes), rel=1e-9)
        assert (a.energy, a.peak_memory) == pytest.approx((b.energy, b.peak_memory), rel=1e-9)
        assert a.io_lower_bound == pytest.approx(b.io_lower_bound, rel=1e-9)
        assert a.attention_io == pytest.approx(b.attention_io, rel=1e-9)
    assert resident_bytes(short) == resident_bytes(whole)


def test_a_few_layers_stand_for_all(workload: Workload, device: Device) -> None:
    short = folded(workload)
    assert len(short.phase("decode").cascade) < 0.5 * len(workload.phase("decode").cascade)
    assert {copies_of(e) for e in short.phase("decode").cascade} == {1, 13}
    same(short, workload, device)
    assert folded(short) is short, "three layers that differ are no run"


def test_what_has_no_layers_stays_as_it_is(workload: Workload) -> None:
    phase = workload.phase("decode")
    head = replace(phase, cascade=replace(phase.cascade, einsums=phase.cascade.einsums[-2:]))
    alone = replace(workload, phases=(head,))
    assert folded(alone) is alone


@pytest.mark.parametrize(
    "methods",
    [
        [WeightOnly(4, 8), CacheFormat("int8"), LookupDecoding(accepted=0.5)],
        [DropLayers((3, 6)), WeightOnly(8, 8, int8=True), LookupDecoding()],
        [DropLayers((4,)), WeightOnly(4, 4), HybridWindow(40, 4)],
    ],
)
def test_methods_rewrite_the_few_as_they_rewrite_all(methods: list[Method], workload: Workload, device: Device) -> None:
    short, whole = Descriptions(workload).of(methods), rewrite_all(workload, methods)
    same(short, whole, device)
    assert any(copies_of(e) > 1 for e in short.phase("decode").cascade)
