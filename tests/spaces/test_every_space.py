"""Every space that is listed is made, tried once and stepped once, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten import spaces
from hasten.cost.serving.recorded_trials import Answer, Record, RecordedQuestion
from hasten.cost.serving.scaling import QWEN3
from hasten.data import assets
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.vision.once_for_all import OFAConfig, OnceForAll, from_params
from hasten.report import write_search
from hasten.search import Study
from hasten.search.networks.architecture_space import architecture_spaces
from hasten.search.networks.network_problem import SIZE
from hasten.search.networks.specialize import estimated
from hasten.tuning.tune import Settings

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(100))


def _records(folder: Path, model: Path) -> dict[str, Any]:
    question = RecordedQuestion(100, tuple(Answer(500 + 400 * i, i < 3) for i in range(8)))
    return {"records": [Record(QWEN3[0], "dense", 0, (question,)), Record(QWEN3[4], "dense", 0, (question,))]}


def _supernet(folder: Path, model: Path) -> dict[str, Any]:
    if not assets.asset("fashion-mnist").cached:
        pytest.skip("needs `hasten assets get fashion-mnist`")
    tiny = OFAConfig(
        widths=(8,), strides=(2,), activations=("relu",), se=(False,), depths=(1, 2), resolutions=(12,), stem=8,
        final=16, last=16, channels=1, classes=10, dropout=0.0,
    )  # fmt: skip
    OnceForAll(tiny).save(folder / "net")
    return {"supernet": folder / "net", "device": "pi5", "count": 50}


def _tuned(folder: Path, model: Path) -> dict[str, Any]:
    settings = Settings(prompt=32, new_tokens=4, text=TEXT, floor=0.5, runs=1)
    return {"model": model, "settings": settings, "device": load_device("cpu2"), "measured": False}


# What makes a space small; a space that is not named here is made as it is.
SMALL: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    **dict.fromkeys(
        ("ascan", "cell", "chain", "darts", "hiera", "plain", "proxyless", "tree"),
        lambda *_: {"device": "pi5", "epochs": 0.1},
    ),
    "autodistill": lambda folder, model: {"teacher_steps": 2, "flash": 1},
    "cascade": lambda *_: {"steps": 5, "count": 1000},
    "dense": lambda folder, model: {"epochs": 0.1},  # its latency is measured here
    "hourglass": lambda folder, model: {"steps": 1},
    "hourglass-superres": lambda folder, model: {"steps": 1},
    "once-for-all": _supernet,
    "test-time": _records,
    "tune": _tuned,
}


@pytest.mark.slow_except("dram", "engines", "hourglass", "once-for-all", "plain", "test-time", "tune")
@pytest.mark.parametrize("name", spaces.names())
def test_it_is_made_tried_and_stepped_in_seconds(name: str, tmp_path: Path, folder: Path) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    options = SMALL.get(name, lambda *_: {})(tmp_path, folder)
    before = time.process_time()
    problem = spaces.build(name, **options)
    point = problem.space.sample(0)
    assert problem.space.validate(point) == point
    label = f"hasten/{name}-v0"
    spaces.register_environments()
    if spaces.needs(name) is None and not name.startswith("hourglass"):
        assert name in architecture_spaces()  # a try trains a network here too
        assert label not in gymnasium.registry
        found = problem.evaluate(point)
        assert 0 <= found["accuracy"] <= 1
        assert found["latency"] > 0
    elif spaces.needs(name) is None:
        assert name.startswith("hourglass")  # a try trains a network
        assert label not in gymnasium.registry
        found = problem.evaluate(next(p for p in map(problem.space.sample, range(50)) if p["shape"] == "conventional"))
        assert all(np.isfinite(found[o.name]) for o in problem.objectives)
    else:
        env = gymnasium.make(label, problem=options).unwrapped
        env.reset(seed=0)
        env.action_space.seed(0)
        seen, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert seen.shape == env.observation_space.shape
        assert np.isfinite(seen).all()
        assert np.isfinite(reward)
        assert terminated or truncated
        assert problem.space.validate(info["params"]) == info["params"]
    assert time.process_time() - before < 60, "its own work, whatever else the machine does"


@pytest.mark.slow_except("once-for-all", "plain")
@pytest.mark.parametrize("name", sorted(architecture_spaces()))
def test_networks_are_searched_under_a_limit_gone_on_with_and_shown(name: str, tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": "pi5", "epochs": 0.02}
    if name == "once-for-all":
        options = _supernet(tmp_path, folder)
        networks: Any = OnceForAll.load(options["supernet"]).config
    else:
        networks = architecture_spaces()[name].for_images(1, SIZE, 10)
    table, sample = estimated(networks, load_device("pi5")), spaces.build(name, **options).space
    ours = from_params if name == "once-for-all" else type(networks).from_params
    took: list[float] = []
    for seed in range(8):
        with suppress(HastenError):  # points that break the space's rules
            took.append(table(ours(networks, sample.sample(seed))))
    limit = sorted(took)[len(took) // 2]
    made = spaces.build(name, limit=limit, **options)
    first = Study(tmp_path / "study.db").run(made, sampler="random", trials=1)
    again = Study(tmp_path / "study.db").run(made, sampler="random", trials=2)
    assert [t.params for t in again.trials[:1]] == [t.params for t in first.trials]
    assert len({str(t.params) for t in again.trials}) == 2
    for trial in again.trials:
        if trial.feasible:
            assert trial.values["latency"] <= limit
            assert 0 <= trial.values["accuracy"] <= 1
    assert any(p.name == "search.html" for p in write_search(made, again, tmp_path))
    assert name in (tmp_path / "search.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["autodistill", "once-for-all", "test-time"])
def test_what_is_not_there_is_told_in_one_line_and_nothing_is_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    spaces.register_environments()
    with pytest.raises(HastenError, match=r"supernet=FOLDER|needs recorded answers|teacher_steps=") as told:
        gymnasium.make(f"hasten/{name}-v0")
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_what_is_listed_is_made_with_nothing_given() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    listed = spaces.register_environments()
    assert listed == [f"hasten/{name}-v0" for name in spaces.names() if spaces.needs(name) == ""]
    assert {"hasten/dram-v0", "hasten/mapper-v0", "hasten/soc-v0"} <= set(listed)
    for label in listed:
        gymnasium.make(label).close()
    named = {name: needed for name in spaces.names() if (needed := spaces.needs(name))}
    assert set(named) == {"autodistill", "cascade", "once-for-all", "test-time", "tune"}
    for name in named:
        assert f"hasten/{name}-v0" in gymnasium.registry  # for whoever gives it what it needs
