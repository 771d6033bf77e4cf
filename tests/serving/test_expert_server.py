from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hasten.cost.serving.model_switching import simulate_switching
from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.runtime.storage.expert_models import ExpertModels, expert_weights, write_experts_of
from hasten.serving.expert_server import EmbeddingRouter, ExpertServer

ROUTES = [[0, 1, 0, 2, 1], [2, 3, 3, 0, 2]]


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    loaded = tiny_model(layers=1, positions=256)
    return LanguageModel(loaded.network, loaded.tokenizer)


@pytest.fixture(scope="module")
def experts(base: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ExpertModels:
    folder = tmp_path_factory.mktemp("experts")
    weights = expert_weights(base.network)
    write_experts_of(weights, folder, 4, rank=8)
    return ExpertModels(folder, weights)


def batches() -> list[list[list[int]]]:
    drawn = torch.Generator().manual_seed(0)
    return [
        [torch.randint(0, 256, (int(n),), generator=drawn).tolist() for n in torch.randint(3, 9, (5,), generator=drawn)]
        for _ in ROUTES
    ]


def route(prompts: Sequence[Sequence[int]]) -> list[str]:
    number = next(i for i, batch in enumerate(batches()) if batch == list(prompts))
    return [f"expert-{e:03}" for e in ROUTES[number]]


def alone(base: LanguageModel, experts: ExpertModels, prompt: list[int], expert: str) -> tuple[int, ...]:
    """What plain generation with an expert's weights gives."""
    before = {n: w.clone() for n, w in expert_weights(base.network).items()}
    own = expert_weights(base.network)
    try:
        experts.load(expert, own)
        out = base.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False)
        return tuple(out[0, len(prompt) :].tolist())
    finally:
        for name, weight in own.items():
            weight.copy_(before[name])


@pytest.mark.parametrize(
    ("capacity", "group", "prefetch", "policy"),
    [(0, False, False, "lru"), (1, True, True, "lru"), (2, True, True, "lru"), (2, False, False, "fifo"),
     (2, True, True, "fifo"), (4, True, True, "lru")],
)  # fmt: skip
def test_answers_are_the_experts_own_and_hits_as_simulated(
    capacity: int, group: bool, prefetch: bool, policy: str, base: LanguageModel, experts: ExpertModels
) -> None:
    with ExpertServer(
        base, experts, route, capacity, group=group, prefetch=prefetch, policy=policy, most_tokens=64
    ) as server:
        found = [server.answer(batch, 4) for batch in batches()]
        counts = server.counts
        assert len(server.resident) <= max(1, capacity)
    for batch, answers, places in zip(batches(), found, ROUTES, strict=True):
        for prompt, answer, place in zip(batch, answers, places, strict=True):
            assert answer == alone(base, experts, prompt, f"expert-{place:03}")
    predicted = simulate_switching(
        ROUTES, capacity=capacity, load=1.0, answer=lambda n: 1.0, group=group, prefetch=prefetch,
        policy="fifo" if policy == "fifo" else "lru",
    )  # fmt: skip
    assert (counts.hits, counts.misses) == (predicted.hits, predicted.misses)
    assert counts.loaded == counts.misses * experts.nbytes("expert-000")
    assert counts.prompts == 10
    assert counts.seconds > counts.waiting >= 0


def test_an_error_leaves_a_server_that_answers(base: LanguageModel, experts: ExpertModels) -> None:
    with ExpertServer(base, experts, route, 2, most_tokens=64) as server:
        first = server.answer(batches()[0], 4)
        server.router = lambda prompts: ["expert-000", "expert-003"]
        with pytest.raises(HastenError, match="shorter"):
            server.answer([[1, 2], [1] * 200], 4)
        server.router = route
        assert server.answer(batches()[0], 4) == first


def test_batches_of_two_threads_follow_each_other(base: LanguageModel, experts: ExpertModels) -> None:
    first, second = batches()
    with ExpertServer(base, experts, route, 1, most_tokens=64) as server, ThreadPoolExecutor(2) as threads:
        alone = [server.answer(batch, 4) for batch in (first, second)]
        asked = [threads.submit(server.answer, batch, 4) for batch in (first, second, first, second)]
        assert [a.result() for a in asked] == [*alone, *alone]


def test_a_batch_may_be_longer_than_an_engines_queue(base: LanguageModel, experts: ExpertModels) -> None:
    prompts = [[number % 256] for number in range(300)]
    one = lambda given: ["expert-000"] * len(given)  # noqa: E731
    with ExpertServer(base, experts, one, 1, most_tokens=16, most_running=32) as server:
        answers = server.answer(prompts, 1)
    assert len(answers) == 300
    assert answers[256:] == answers[: 300 - 256]


def test_what_is_asked_for_in_vain(base: LanguageModel, experts: ExpertModels) -> None:
    with ExpertServer(base, experts, lambda prompts: ["expert-000"], 1, most_tokens=64) as server:
        assert server.answer([], 4) == []
        with pytest.raises(HastenError, match="1 experts for 2 prompts"):
            server.answer([[1], [2]], 4)
        with pytest.raises(HastenError):
            server.answer([[]], 4)
        assert len(server.answer([[1]], 4)[0]) == 4
    with pytest.raises(HastenError, match="closed"):
        server.answer([[1]], 4)


def test_a_router_knows_its_own(base: LanguageModel) -> None:
    table = base.network.get_parameter("model.embed_tokens.weight").detach()
    examples = {name: [list(range(at, at + 6))] for name, at in (("low", 0), ("mid", 100), ("high", 200))}
    router = EmbeddingRouter(table, examples)
    assert router([[1, 2, 3, 4], [201, 202, 204], [100, 101, 105]]) == ["low", "high", "mid"]
    with pytest.raises(HastenError, match="examples of each"):
        EmbeddingRouter(table, {"low": []})
    for prompt in ([], [-1], [len(table)]):
        with pytest.raises(HastenError, match="a prompt has tokens from 0"):
            router([prompt])


def test_what_cannot_be_served_is_refused(base: LanguageModel, experts: ExpertModels) -> None:
    with pytest.raises(HastenError, match="from 0"):
        ExpertServer(base, experts, route, -1)
    with pytest.raises(HastenError, match="future is not known"):
        ExpertServer(base, experts, route, 1, policy="belady")
    other = tiny_model(layers=1).network
    other.model.layers[0].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(HastenError, match=r"up_proj\.weight"):
        ExpertServer(LanguageModel(other), experts, route, 1)
