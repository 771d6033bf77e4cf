"""Tune's own space, searched by others and as an environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hasten import spaces
from hasten.hardware import load_device
from hasten.search import Study
from hasten.search.environments import environment
from hasten.tuning.tune import Settings

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(100))
SETTINGS = Settings(prompt=64, new_tokens=8, text=TEXT, floor=0.5, runs=1)


def test_methods_are_searched_by_an_agent_and_measured(folder: Path) -> None:
    problem = spaces.build("tune", model=folder, settings=SETTINGS, device=load_device("cpu2"))
    assert problem.space.size == 8 * 3 * 2 * 2
    result = Study().run(problem, sampler="genetic", trials=2, seed=0)
    good = [t for t in result.trials if t.values]
    assert good
    assert all(t.values["latency"] > 0 and t.values["memory"] > 0 and t.values["perplexity"] > 1 for t in good)


def test_methods_are_explored_by_the_cost_model(folder: Path) -> None:
    pytest.importorskip("gymnasium")
    device = load_device("cpu2")
    problem = spaces.build("tune", model=folder, settings=SETTINGS, device=device, measured=False)
    env = environment(problem, steps=100)
    env.reset()
    plain, *_ = env.step(np.zeros(len(problem.space), int))
    env.action_space.seed(0)
    seen = np.array([env.step(env.action_space.sample())[0] for _ in range(10)])
    assert (seen > 0).all()
    assert seen[:, 1].min() < plain[1]
