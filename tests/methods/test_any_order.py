"""A description says the same whenever it is made: before a change, after it, or between two."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from hasten.errors import HastenError
from hasten.methods import (
    BlockTopK,
    CacheFormat,
    DropLayers,
    HybridWindow,
    LookupDecoding,
    Method,
    SlidingWindow,
    SnapKV,
    SparseWindow,
    WeightOnly,
    apply_all,
    clash,
)
from hasten.methods.method import _REGISTRY
from hasten.runtime import LanguageModel
from hasten.workload import Workload

from .conftest import small_llama

METHODS = [
    WeightOnly(4, 8), CacheFormat("int8"), SlidingWindow(40, 4), HybridWindow(40, 4), BlockTopK(1, 2), SnapKV(40, 8),
    SparseWindow(0.4), DropLayers((0,)), DropLayers((1,)), LookupDecoding(3, 4, 0.5),
]  # fmt: skip
PAIRS = [p for p in itertools.permutations(METHODS, 2) if clash(p) is None]


def tiny() -> LanguageModel:
    return small_llama(3)


def close(one: Workload, other: Workload) -> None:
    for phase in ("prefill", "decode"):
        a, b = one.phase(phase), other.phase(phase)
        assert a.repeats == b.repeats
        assert a.cascade.flops == pytest.approx(b.cascade.flops, rel=0.01)
    assert one.weight_bytes == pytest.approx(other.weight_bytes, rel=0.01)
    assert one.state_bytes == pytest.approx(other.state_bytes, rel=0.01)


@pytest.mark.slow_except(every=4)
@pytest.mark.parametrize("pair", random.Random(1).sample(PAIRS, 24), ids=lambda p: ", then ".join(m.title for m in p))
def test_the_three_descriptions_of_two_changes_agree(pair: tuple[Method, Method]) -> None:
    first, then = pair
    changed = first.apply(tiny())
    if reason := then.why_not(changed):
        pytest.skip(reason)
    between = then.rewrite(changed.workload(100, 12))
    close(then.rewrite(first.rewrite(tiny().workload(100, 12))), between)
    close(then.apply(changed).workload(100, 12), between)


def test_a_users_rewriting_holds_beside_a_policy_and_drafts() -> None:
    @dataclass(frozen=True)
    class Shorter(Method):
        name: ClassVar[str] = "shorter"
        kind: ClassVar[str] = "length"
        title = "shorter"

        def why_not(self, model: Any) -> str | None:
            return None

        def apply(self, model: Any) -> Any:
            return DropLayers((1,)).apply(model)

        def rewrite(self, workload: Workload) -> Workload:
            return DropLayers((1,)).rewrite(workload)

        @classmethod
        def variants(cls, model: Any) -> list[Any]:
            return []

    try:
        read = LookupDecoding(3, 4, 0.5).rewrite(BlockTopK(1, 2).rewrite(tiny().workload(100, 12)))
        every = [BlockTopK(1, 2), LookupDecoding(3, 4, 0.5), DropLayers((1,)), CacheFormat("int8")]
        close(CacheFormat("int8").rewrite(Shorter().rewrite(read)), apply_all(tiny(), every).workload(100, 12))
    finally:
        del _REGISTRY["shorter"]


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("method", [None, CacheFormat("bf16"), BlockTopK(1, 2), SnapKV(64, 16)])
@pytest.mark.parametrize(("prompt", "new"), [(7, 9), (64, 16), (200, 12)])
def test_bytes_described_are_held(method: Method | None, prompt: int, new: int) -> None:
    model = tiny() if method is None else method.apply(tiny())
    held = model.measure(prompt, new, runs=1).peak_memory - model.weight_bytes
    assert held == pytest.approx(model.workload(prompt, new).state_bytes, rel=0.02)


def test_all_methods_are_applied_or_none() -> None:
    model = tiny()
    ids = torch.randint(2, 211, (1, 40))
    before = model.generate(ids, max_new_tokens=8, do_sample=False)
    names = [n for n, _ in model.named_parameters()]
    with pytest.raises(HastenError, match="3 layers"):
        apply_all(model, [DropLayers((0,)), WeightOnly(4, 8), CacheFormat("int8"), HybridWindow(40, 4, (3,))])
    assert [n for n, _ in model.named_parameters()] == names
    assert model.cache.dtype == "fp32"
    assert model.config.num_hidden_layers == len(model.layers) == 4
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), before)
