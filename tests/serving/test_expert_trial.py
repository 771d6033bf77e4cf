from __future__ import annotations

from pathlib import Path

import pytest

from hasten.cost.serving.model_switching import zipf_batches
from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.runtime.storage.expert_models import ExpertModels, expert_weights, write_experts_of
from hasten.serving.expert_server import EmbeddingRouter
from hasten.serving.expert_trial import StepTimes, measured_times, topic_prompts, try_way, ways_of


def test_ways_are_measured_and_predicted(tmp_path: Path) -> None:
    loaded = tiny_model(layers=1, positions=128)
    model = LanguageModel(loaded.network, loaded.tokenizer)
    base = expert_weights(model.network)
    names = write_experts_of(base, tmp_path, 4, rank=2)
    experts = ExpertModels(tmp_path, base, bandwidth=50e6)
    # A part of the text for each topic, of bytes of its own.
    text = [64 * t + (7 * i + i // 64) % 64 for t in range(4) for i in range(300)]
    examples, batches = topic_prompts(text, names, zipf_batches(4, 16, 4, 0), 6, examples=8)
    router = EmbeddingRouter(model.get_input_embeddings().weight.detach(), examples)
    times = measured_times(model, experts, router, batches, 2, runs=2, most_tokens=64)
    assert times.load >= experts.nbytes(names[0]) / 50e6
    assert set(times.answers) >= {1}
    seen = {
        name: try_way(way, model, experts, router, batches, 2, times, most_tokens=64)
        for name, way in ways_of(2, 4).items()
    }
    assert all(s.same_hits for s in seen.values())
    assert len({s.answers for s in seen.values()}) == 1  # whichever way, the same experts answer
    assert seen["no cache"].counts.misses == 16
    assert seen["resident"].counts.misses == 0
    assert seen["grouped"].counts.misses == seen["prefetched"].counts.misses <= seen["lru"].counts.misses
    assert seen["prefetched"].predicted.exposed <= seen["grouped"].predicted.exposed


def test_times_between_those_measured_are_in_proportion() -> None:
    times = StepTimes(1.0, 1.0, {1: 2.0, 4: 3.0}, 0.0)
    assert (times.answer(1), times.answer(4), times.answer(8)) == (2.0, 3.0, 6.0)


def test_prompts_are_of_their_topics_and_no_examples() -> None:
    text = list(range(120))
    examples, batches = topic_prompts(text, ["low", "high"], [[1, 0], [1]], 10, examples=2)
    assert examples == {"low": [text[:10], text[10:20]], "high": [text[60:70], text[70:80]]}
    assert batches == [[text[80:90], text[20:30]], [text[90:100]]]
    with pytest.raises(HastenError, match="longer text"):
        topic_prompts(text, ["low", "high"], [[0]], 30, examples=2)
