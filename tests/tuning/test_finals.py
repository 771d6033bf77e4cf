"""The fastest networks are kept, and timed again in turn."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from hasten.runtime.network import Inputs, Network
from hasten.tuning import finals
from hasten.tuning.finals import Finalists, timed_again
from hasten.tuning.prepare import Deadline


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, 0
        self.weight = nn.Parameter(torch.zeros(256))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        time.sleep(self.seconds)
        return x


def sleeper(seconds: float = 0.0) -> Network:
    return Network(Sleeper(seconds), Inputs((torch.zeros(1),)))


def test_those_near_the_fastest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Finalists()
    for title, seconds in (("a", 1.0), ("b", 1.2), ("c", 1.4)):
        kept.offer(title, seconds, sleeper())
    assert list(kept.networks) == ["a", "b"]
    kept.offer("d", 0.9, sleeper())
    assert list(kept.networks) == ["d", "a"]
    for i in range(6):
        kept.offer(f"e{i}", 0.95, sleeper())
    assert list(kept.networks) == ["d", "e0", "e1", "e2"]
    kept.offer("d", 2.0, sleeper())
    assert "d" not in kept.networks, "what is measured again counts as it was measured last"
    monkeypatch.setattr(finals, "memory_size", lambda: 2.5 * 1024 / finals._MEMORY)
    kept.offer("f", 0.94, sleeper())
    assert list(kept.networks) == ["f", "e0"]


def test_they_are_timed_in_turn_and_the_faster_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {"slow": sleeper(4e-3), "fast": sleeper(1e-3)}
    monkeypatch.setattr(finals, "_MOST_ROUNDS", 4)
    found = timed_again(networks, 60.0)
    assert found["fast"].low < found["slow"].low
    for title, one in found.items():
        assert one.low <= one.median <= one.high
        module = networks[title].module
        assert isinstance(module, Sleeper)
        assert one.calls == 4 * finals._COUNTED
        assert module.calls == 3 + 4 * (finals._COUNTED + finals._SETTLING) + 1, "the others let threads come to rest"
    assert timed_again({"alone": sleeper()}, 1.0) == {}
    assert timed_again(networks, 1e-3) == {}, "there is no time for it"


def test_time_is_kept_for_them() -> None:
    end = Deadline.after(100)
    trying = end.earlier(40)
    assert end.left is not None
    assert trying.left is not None
    assert end.left - trying.left == pytest.approx(40, abs=1)
    assert Deadline().earlier(40).left is None
    assert Deadline.after(1).earlier(2).left == 0
