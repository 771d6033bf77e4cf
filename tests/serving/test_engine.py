"""The engine: many requests at once, each answered as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hasten.kernels import native
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import SnapKVPolicy
from hasten.serving.engine import Engine
from hasten.serving.request import Request, Sampling
from hasten.serving.steps import PagedSteps, PlainSteps, SlotSteps

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
GREEDY = Sampling(temperature=0)
LOADED = tiny_model(layers=2, positions=512)


def model(**changes: Any) -> LanguageModel:
    return LanguageModel(LOADED.network, LOADED.tokenizer, **changes)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(model(), most_running=4) as found:
        yield found


@needs_kernels
@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (CacheSpec(), PagedSteps),
        (CacheSpec("fp16"), PagedSteps),
        (CacheSpec("int8"), PagedSteps),
        (CacheSpec("int4"), PagedSteps),
        (CacheSpec(window=40, sinks=4), SlotSteps),
        (CacheSpec(policy=SnapKVPolicy(capacity=48)), PlainSteps),
    ],
    ids=["fp32", "fp16", "int8", "int4", "window", "policy"],
)
def test_an_answer_is_the_same_whatever_runs_beside_it(spec: CacheSpec, steps: type) -> None:
    shared = prompt(0, 100)
    prompts = [prompt(1, 5), shared, shared[:70] + prompt(2, 50), shared + prompt(3, 40), prompt(4, 150), shared]
    requests = [Request(p, max_tokens=20, sampling=GREEDY, logprobs=2) for p in prompts]
    alone = []
    for request in requests:
        with Engine(model(cache=spec), piece=64) as one:
            assert isinstance(one._steps, steps)
            alone.append(one.submit(request).result(60))
    with Engine(model(cache=spec), most_running=4, piece=48) as engine:
        found = [stream.result(60) for stream in [engine.submit(r) for r in requests]]
        metrics = engine.metrics
    assert found == alone
    assert metrics.answered == metrics.requests == len(requests)
    assert metrics.new_tokens == 20 * len(requests)
    assert bool(metrics.cached_tokens) == (steps is PagedSteps)


def test_tokens_are_those_of_generate(engine: Engine) -> None:
    ids = prompt(7, 50)
    found = engine.submit(Request(ids, max_tokens=30, sampling=GREEDY)).result(60)
    expected = model().generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0, 50:].tolist()
    assert list(found.tokens) == expected
    assert found.finish == "length"
    assert found.text == LOADED.tokenizer.decode(expected)
