"""A method says the same thing twice: what it does to a model, and what it does to the model's description."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.methods import (
    AnalogArrays,
    BlockTopK,
    CacheFormat,
    DropLayers,
    HybridWindow,
    LambdaWindow,
    LookupDecoding,
    Method,
    SlidingWindow,
    SnapKV,
    SparseLowBit,
    SparseWindow,
    TwoOfFour,
    WeightOnly,
    apply_all,
    clash,
    from_dict,
    ordered,
    registry,
    rewrite_all,
)
from hasten.methods.editing import outline
from hasten.runtime import LanguageModel

from .conftest import NETWORK_METHODS

METHODS = [
    WeightOnly(16, 16),
    WeightOnly(8, 8),
    WeightOnly(4, 8),
    WeightOnly(8, 8, bf16=True),
    WeightOnly(4, 0),
    CacheFormat("bf16"),
    CacheFormat("int8"),
    CacheFormat("int4"),
    SlidingWindow(40, 4),
    SlidingWindow(500, 0),
    HybridWindow(40, 4),
    LambdaWindow(40, 4),
    BlockTopK(1, 2),
    BlockTopK(2, 1, 16, 4),
    SnapKV(40, 8),
    SparseWindow(0.4),
    WeightOnly(4, 8, int8=True),
    DropLayers((1,)),
    DropLayers((0, 2)),
    LookupDecoding(3, 4, 0.5),
    AnalogArrays(unformed=0.1, rows=100),
]
PACKED = [m for m in METHODS if isinstance(m, WeightOnly)]
OTHERS = [m for m in METHODS if m not in PACKED]
# No other method touches what a packed weight is: each is tried beside one packing, and all packings have their turn.
PAIRS = [
    pair
    for pair in (*itertools.combinations(OTHERS, 2), *zip(itertools.cycle(PACKED), OTHERS, strict=False))
    if clash(pair) is None
]
FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 64}),
    "qwen2": ("Qwen2Config", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
}


def tiny(family: str = "llama") -> LanguageModel:
    import transformers

    kind, extra = FAMILIES[family]
    config = getattr(transformers, kind)(
        vocab_size=211, hidden_size=128, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, **extra,
    )  # fmt: skip
    torch.manual_seed(3)
    return LanguageModel(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))


_BEFORE: dict[str, Any] = {}


def before(family: str) -> Any:
    if family not in _BEFORE:
        _BEFORE[family] = tiny(family).workload(70, 12)
    return _BEFORE[family]


def titles(value: Any) -> str:
    return value.title if isinstance(value, Method) else ""


@pytest.mark.slow_except("llama-*", "mixtral-int8 weights")
@pytest.mark.parametrize(
    ("family", "method"),
    [(f, m) for f in FAMILIES for m in METHODS if f != "mixtral" or isinstance(m, WeightOnly | AnalogArrays)],
    ids=lambda value: value if isinstance(value, str) else titles(value),
)
def test_traced_equals_rewritten(family: str, method: Method) -> None:
    changed = method.apply(tiny(family)).workload(70, 12)
    assert outline(method.rewrite(before(family))) == outline(changed)


def test_every_method_is_in_a_pair() -> None:
    assert {m for pair in PAIRS for m in pair} == set(METHODS)


@pytest.mark.slow_except(every=4)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: " + ".join(m.title for m in p))
def test_traced_equals_rewritten_in_pairs(pair: tuple[Method, Method]) -> None:
    changed = apply_all(tiny(), pair).workload(70, 12)
    assert outline(rewrite_all(before("llama"), pair)) == outline(changed)


@pytest.mark.parametrize("method", METHODS, ids=titles)
def test_plain_data_round_trip(method: Method) -> None:
    assert from_dict(method.to_dict()) == method


def test_every_method_is_tested() -> None:
    ours = {kind for kind in registry().values() if kind.__module__.startswith("hasten.")}
    apart = {SparseLowBit, TwoOfFour}  # these calibrate: test_sparse_low_bit.py
    networks = {type(m) for m in NETWORK_METHODS}  # test_network_methods.py
    assert {type(m) for m in METHODS} | apart | networks == ours


def test_bad_descriptions_are_refused() -> None:
    for bad in ({"method": "magic"}, {"method": "weight-only", "bits": 3}, {"method": "weight-only", "weight": 1}, 5):
        with pytest.raises(HastenError):
            from_dict(bad)
    with pytest.raises(HastenError, match="two methods"):
        ordered([WeightOnly(4), WeightOnly(8)])


def test_methods_that_do_not_go_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clash([WeightOnly(4), CacheFormat("int8")]) is None
    monkeypatch.setattr(CacheFormat, "conflicts", ("weight-only",))
    for pair in ([WeightOnly(4), CacheFormat("int8")], [CacheFormat("int8"), WeightOnly(4)]):
        with pytest.raises(HastenError, match="do not go together"):
            ordered(pair)


def test_what_is_never_tried_says_why() -> None:
    for kind in registry().values():
        if kind.__module__.startswith("hasten.") and not kind.variants(tiny()):
            assert kind.untried or kind is DropLayers, "that one needs a text: `least_important`"


def test_applying_twice_is_refused() -> None:
    for method in (WeightOnly(8), CacheFormat("int8"), SlidingWindow(), LookupDecoding()):
        model = method.apply(tiny())
        with pytest.raises(HastenError, match="does not apply"):
            method.apply(model)


def test_descriptions_shrink_as_they_should() -> None:
    plain = before("llama")
    assert WeightOnly(4, 4).rewrite(plain).weight_bytes < plain.weight_bytes / 5
    assert CacheFormat("bf16").rewrite(plain).state_bytes * 2 == plain.state_bytes
    assert DropLayers((1,)).rewrite(plain).flops < plain.flops
    fewer = LookupDecoding(3, 4, 1.0).rewrite(plain)
    assert fewer.phase("decode").repeats == 6
    assert fewer.phase("decode").cascade.flops == 5 * plain.phase("decode").cascade.flops


def test_the_model_still_speaks_after_everything() -> None:
    model = tiny()
    everything = [DropLayers((1,)), WeightOnly(4, 8), CacheFormat("int4"), SlidingWindow(48, 4), LookupDecoding()]
    reference = copy.deepcopy(model)
    apply_all(model, everything)
    ids = torch.randint(0, 211, (1, 60))
    assert model.generate(ids, max_new_tokens=20, do_sample=False).shape == (1, 80)
    assert len(reference.layers) == 3
