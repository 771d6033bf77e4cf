"""Modules as stages: their scores, and a stream that is really run beside the same stream counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost.flows.cascade import CascadeStage
from hasten.cost.flows.measured_cascade import measured_pair, run_cascade, scores, stage_seconds, tried_cascade
from hasten.errors import HastenError


class _Pick(nn.Module):
    """The score is one of the inputs."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.place]


MODELS = {"weak": _Pick(0), "strong": _Pick(1)}


def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    relevant = torch.rand(count, generator=generator) < 0.1
    return torch.randn(count, 2, generator=generator) + relevant[:, None] * torch.tensor([2.0, 4.0]), relevant


def test_scores_of_one_output_and_of_two_logits() -> None:
    x = torch.randn(10, 4)
    two = nn.Linear(4, 2)
    assert torch.equal(scores(_Pick(1), x, batch=3), x[:, 1])
    with torch.no_grad():
        torch.testing.assert_close(scores(two, x, batch=4), two(x)[:, 1] - two(x)[:, 0])
    with pytest.raises(HastenError, match="not 3 numbers"):
        scores(nn.Linear(4, 3), x)
    with pytest.raises(HastenError, match="at least one"):
        scores(two, x[:0])


def test_a_stream_that_is_run_passes_what_thresholds_say() -> None:
    x, relevant = drawn(3000, 0)
    stages = [CascadeStage("weak", 1.0, 4.0), CascadeStage("strong", 10.0, 2.0)]
    run = run_cascade(MODELS, stages, [0.5, 1.5], x, relevant, batch=64)
    expected = (x[:, 0] > 0.5) & (x[:, 1] > 1.5)
    assert run.stored.tolist() == expected.tolist()
    assert run.counted.received.sum(1).tolist() == [3000, int((x[:, 0] > 0.5).sum())]
    assert run.counted.stored.tolist() == [int((expected & ~relevant).sum()), int((expected & relevant).sum())]
    assert run.counted.joules == pytest.approx(1 + 10 * int((x[:, 0] > 0.5).sum()) / 3000)
    assert run.seconds > 0
    assert not run_cascade(MODELS, stages, [99.0, 0.0], x, relevant).stored.any()


def test_a_pair_is_measured_and_predicts_a_run() -> None:
    held, new = drawn(20_000, 1), drawn(20_000, 2)
    pair = measured_pair(MODELS, *held, watts=(1.0, 2.0), rounds=1)
    assert pair.events.names == ("weak", "strong")
    assert min(pair.joules.values()) > 0
    tried = tried_cascade(MODELS, pair.events, held[0], {"weak": 3.0, "strong": 3.0}, *new, rounds=1)
    assert tried.run.counted.recall == pytest.approx(tried.flow.cost.recall, rel=0.05)
    assert tried.run.counted.passing == pytest.approx([1 / 3, 1 / 3], rel=0.05)
    assert set(stage_seconds(MODELS, held[0], rounds=1)) == {"weak", "strong"}
    for none in ({"rounds": 0}, {"batch": 0}):
        with pytest.raises(HastenError, match="at least 1 of each"):
            stage_seconds(MODELS, held[0], **none)
    for models, watts in (({"weak": MODELS["weak"]}, 1.0), (MODELS, (1.0, 0.0)), (MODELS, (1.0, 1.0, 1.0))):
        with pytest.raises(HastenError, match="a pair is two models"):
            measured_pair(models, *held, watts=watts)
