"""One call that applies the survey's methods: what is kept is kept for a reason, and text stays the model's own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.kernels import native
from hasten.models.language.llama import small_llama
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.decoding.medusa import Tree
from hasten.runtime.policies import SnapKVPolicy
from hasten.search.networks.students import DecoderSpace
from hasten.train.fitting import fit, windows
from hasten.tuning.accelerate import (
    Accelerated,
    Acceleration,
    AccelerationStage,
    Circuit,
    Distil,
    Goal,
    ParallelDecoding,
    ShorterCache,
    StageResult,
    accelerate,
)

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
GOAL = Goal(prompt=48, new_tokens=24, floor=0.05)
WORDS = torch.arange(900) ** 2 % 61


@pytest.fixture(scope="module")
def trained() -> Any:
    """A small Llama that knows the text by heart."""
    torch.manual_seed(0)
    network = small_llama(64, width=64, inner=128, layers=2, heads=4, kv_heads=2, positions=256, tied=True)
    drawn = windows(WORDS, 48, 8)

    def loss(step: int) -> torch.Tensor:
        batch = next(drawn)
        logits = network(batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    fit(network, loss, steps=150, peak=3e-3)
    return network.eval()


def model_of(trained: Any, **cache: Any) -> LanguageModel:
    import copy

    return LanguageModel(copy.deepcopy(trained), cache=CacheSpec(**cache))


@needs_kernels
def test_stages_compose_and_greedy_text_is_the_model_s_own(trained: Any) -> None:
    stages = (ShorterCache(24, window=8), ParallelDecoding(heads=2, sizes=(4, 8), seconds=1.0, prompts=8, made=40))
    fast = accelerate(model_of(trained), WORDS, load_device("pi5"), stages=stages, goal=replace(GOAL, floor=9.0))
    assert [s.kept for s in fast.stages] == [True, True], fast.report()
    assert fast.model.cache.policy is not None
    assert fast.heads is not None
    assert fast.speedup > 1.2
    figures = fast.stages[1].figures
    assert figures["tokens a step"] > 1.2
    assert fast.after == pytest.approx(figures["seconds a token"])
    assert figures["seconds a token"] == min(v for n, v in figures.items() if n.endswith("rows"))
    ids = WORDS[None, 700:748]
    plain = LanguageModel(trained, cache=CacheSpec(policy=SnapKVPolicy(24, window=8)))
    expected = plain.generate(ids, max_new_tokens=20, eos_token_id=None, do_sample=False)
    assert torch.equal(fast.generate(ids, 20), expected)
    assert "Medusa-1" in fast.report()
    assert "times as fast" in fast.report()


@needs_kernels
def test_what_costs_too_much_quality_is_taken_back(trained: Any) -> None:
    model = model_of(trained)
    fast = accelerate(model, WORDS, load_device("pi5"), stages=[ShorterCache(9, window=8)], goal=replace(GOAL, floor=0))
    assert not fast.stages[0].kept
    assert "0.0% are allowed" in fast.stages[0].why_not
    assert model.cache.policy is None
    assert fast.speedup == pytest.approx(1)
    assert fast.perplexity == pytest.approx(fast.perplexity_before)


@needs_kernels
def test_medusa_2_is_taken_back_with_its_weights(trained: Any) -> None:
    model = model_of(trained)
    before = [p.detach().clone() for p in model.network.parameters()]
    stage = ParallelDecoding(heads=2, sizes=(4,), seconds=0.5, joint=True, prompts=8, made=40)
    job = Acceleration(model, WORDS, load_device("pi5"), replace(GOAL, floor=0.0))
    monkey = iter([1.0, 2.0])
    job.perplexity = lambda: next(monkey)  # type: ignore[method-assign]
    found = stage.run(job, lambda share: None)
    assert not found.kept
    assert "100.0% worse, 0.0% are allowed" in found.why_not
    assert job.heads is None
    assert all(torch.equal(a, b) for a, b in zip(before, model.network.parameters(), strict=True))


@needs_kernels
def test_medusa_2_in_one_call_keeps_greedy_exact(trained: Any) -> None:
    stage = ParallelDecoding(heads=2, sizes=(4, 64), seconds=1.0, joint=True, prompts=8, made=40)
    fast = accelerate(model_of(trained), WORDS, load_device("pi5"), stages=[stage], goal=replace(GOAL, floor=0.2))
    assert fast.stages[0].title.startswith("Medusa-2")
    assert fast.stages[0].kept, fast.report()
    ids = WORDS[None, 700:748]
    expected = fast.model.generate(ids, max_new_tokens=20, eos_token_id=None, do_sample=False)
    assert torch.equal(fast.generate(ids, 20), expected)


@needs_kernels
def test_here_times_are_measured(trained: Any) -> None:
    fast = accelerate(
        model_of(trained), WORDS, goal=GOAL, stages=[ParallelDecoding(heads=1, sizes=(2,), seconds=0.3, prompts=4)]
    )
    assert 0 < fast.before < 1
    figures = fast.stages[0].figures
    if fast.stages[0].kept:
        assert fast.heads is not None
        assert figures["seconds a token"] < figures["seconds a token before"]
    else:
        assert fast.heads is None
        assert "times as long" in fast.stages[0].why_not


def test_a_student_takes_the_model_s_place(trained: Any) -> None:
    space = DecoderSpace(64, 24, 256, (1, 2), (16, 32), (32, 64), (2,))
    stage = Distil(space, trials=4, flash=4, steps=30, finalists=1, length=24, batch=4, sampler="random")
    fast = accelerate(model_of(trained), WORDS, load_device("pi5"), stages=[stage], goal=GOAL)
    figures = fast.stages[0].figures
    assert figures["parameters"] < figures["teacher's parameters"]
    assert figures["parameters"] == sum(p.numel() for p in fast.model.network.parameters())
    assert fast.after == pytest.approx(figures["seconds a token"])
    assert fast.perplexity < 64
    assert fast.generate(WORDS[None, :20], 5).shape == (1, 25)


def test_for_an_fpga_the_feed_forward_part_becomes_a_circuit(trained: Any) -> None:
    pytest.importorskip("tree_sitter_cpp")
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    fast = accelerate(model_of(trained), WORDS, load_device("u280"), stages=[Circuit(tokens=2, most=64)], goal=GOAL)
    found = fast.stages[0]
    assert found.kept, found.why_not
    assert found.figures["cycles between inputs"] < found.figures["cycles undirected"]
    assert found.figures["difference from the module"] < 1e-3
    assert found.figures["bugs found"] == 0
    assert "#pragma HLS" in found.source
    other = accelerate(model_of(trained), WORDS, load_device("pi5"), stages=[Circuit()], goal=GOAL)
    assert other.stages[0].why_not == "the device is no FPGA"


@dataclass(frozen=True)
class Named(AccelerationStage):
    title = "named"

    def why_not(self, job: Acceleration) -> str | None:
        return None if job.device is None else "it is for this machine"

    def run(self, job: Acceleration, progress: Any) -> StageResult:
        progress(0.5)
        job.model.name = "another"
        return StageResult(self.title, True, note="renamed")


def test_a_stage_of_one_s_own(trained: Any) -> None:
    told: list[tuple[str, float]] = []
    model = model_of(trained)
    fast = accelerate(model, WORDS, load_device("pi5"), stages=[Named()], goal=GOAL)
    assert fast.stages[0].why_not == "it is for this machine"
    fast = accelerate(
        model, WORDS, stages=[Named()], goal=GOAL, progress=lambda title, share: told.append((title, share))
    )
    assert (fast.model.name, told) == ("another", [("named", 0.0), ("named", 0.5)])


def test_what_does_not_suit_says_why(trained: Any) -> None:
    stages = [ShorterCache(100), ParallelDecoding()]
    fast = accelerate(model_of(trained, window=16), WORDS, load_device("pi5"), stages=stages, goal=GOAL)
    assert fast.stages[0].why_not == "prompts of 48 tokens are within its 100"
    assert fast.stages[1].why_not == "a new token reads a part of its cache only"
    assert fast.report().count("not kept") == 2


def test_what_cannot_be_done_is_refused(trained: Any) -> None:
    with pytest.raises(HastenError, match="give a longer one"):
        accelerate(model_of(trained), WORDS[:200], stages=[], goal=GOAL)
    with pytest.raises(HastenError, match="no tokenizer"):
        accelerate(model_of(trained), stages=[], goal=GOAL)
    with pytest.raises(HastenError, match="256 positions"):
        accelerate(model_of(trained), WORDS, stages=[], goal=Goal(prompt=250))
    with pytest.raises(HastenError, match="at least 1"):
        Goal(prompt=0)


def test_a_model_s_own_tokenizer_reads_the_default_text() -> None:
    loaded = tiny_model(layers=1)
    fast = accelerate(LanguageModel(loaded.network, loaded.tokenizer), stages=[], goal=GOAL, device=load_device("pi5"))
    assert isinstance(fast, Accelerated)
    assert fast.tree is None
    assert len(Tree.published()) == 64
