"""The benchmark of searches: each beside random search in its space, the winner, a run that goes on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hasten.search.networks.architecture_space import architecture_spaces
from hasten.search.networks.searching import network_searches

from .test_rows import module  # noqa: F401


@pytest.fixture
def nas(module: Any) -> Any:  # noqa: F811
    return module("nas")


def test_every_search_and_space_is_there(nas: Any) -> None:
    searches, spaces = network_searches(), architecture_spaces()
    assert {search for search, _, _ in nas.ARMS.values()} == set(searches)
    for search, space, _ in nas.ARMS.values():
        assert space in spaces
        assert f"random on {space}" in nas.ARMS, f"{search} is held against nothing in {space}"


def found(nas: Any, accuracy: float) -> Any:
    return nas.Found(accuracy, 1e-3, 4, 10.0, [1], 2e-3)


def test_a_search_stands_beside_random_search_in_its_space(nas: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = {
        "random on darts": [found(nas, 0.5), found(nas, 0.7)],
        "PC-DARTS": [found(nas, 0.9), found(nas, 0.9)],
        "EAS": [found(nas, 0.88), found(nas, 0.86)],
    }
    rows = nas.told("digits, 3 s", results)
    accuracies = {r.subject: r for r in rows if r.case == "digits, 3 s: accuracy"}
    assert (accuracies["PC-DARTS"].peer, accuracies["PC-DARTS"].ratio) == ("random on darts", pytest.approx(1.5))
    assert accuracies["EAS"].peer is None  # random search in its space did not run
    Console(width=140).print(nas.ranked("digits, 3 s", results))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    took = ["2", "1.000", "2.00", "4", "10.0"]  # seeds, milliseconds modelled and here, trainings, seconds
    best, *others = [line for line in lines if line[-5:] == took]
    assert best == ["PC-DARTS", "90.0", "0.0", "+30.0", *took]
    assert others == [["EAS", "87.0", "1.0", *took], ["random", "on", "darts", "60.0", "10.0", *took]]
    assert (
        "PC-DARTS wins with 90.0 %, 3.0 points before EAS: more than half the spread of the seeds, 1.0"
        in nas.winner("digits", results)
    )
    alone = {arm: found[:1] for arm, found in results.items()}
    assert nas.winner("digits", alone).endswith("before EAS; one seed has no spread to hold that against")


ASKED = ["--task", "digits", "--latency-on", "pi5", "--arm", "EAS", "--arm", "random on plain"]


def test_a_second_run_goes_on(
    nas: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, float | None, int | None]] = []

    def searched(plan: Any, until: float) -> Any:
        asked.append((plan.arm, plan.seconds, plan.trainings))
        if len(asked) == 2:
            raise ZeroDivisionError("oh")
        return "nothing within the limit" if plan.arm == "EAS" else found(nas, 0.5)

    def here(function: Any, arms: Any, each: Any, processes: Any) -> None:
        for number, arm in enumerate(arms):
            each(number, function(*arm))

    monkeypatch.setattr(nas, "searched", searched)
    monkeypatch.setattr(nas, "run_arms", here)
    codes = []
    for extra in ([], [], ["--seeds", "2"], ["--seeds", "2", "--seconds", "0"]):
        monkeypatch.setattr(sys, "argv", ["nas.py", *ASKED, "--seeds", "1", "--folder", str(tmp_path), *extra])
        codes.append(nas.main())
    # What failed ran again, what found nothing did not.
    assert codes == [1, 0, 0, 0]
    assert len(asked) == 8 + 1
    told = capsys.readouterr().err
    assert "random on plain, seed 0: ZeroDivisionError: oh" in told
    assert "EAS, seed 0: nothing within the limit" in told
    assert {(seconds, trainings) for _, seconds, trainings in asked} == {(60.0, None), (None, 10)}
    assert len(list(tmp_path.iterdir())) == 8


def test_what_is_found_is_held_to_limit_and_budget(nas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = nas.Plan("random on plain", "digits", "pi5", 3e-3, None, 1, 1, 0)
    done = nas.searched(plan)
    assert 0 <= done.accuracy <= 1
    assert 0 < done.modelled <= plan.limit
    assert done.trainings == 1
    _, space = nas._space(plan)
    assert space.valid(space.from_json(done.arch))
    assert nas.searched(plan, until=0) is None
    assert "raise the limit" in nas.searched(replace(plan, limit=1e-9))
    random = nas.network_searches()["random"]

    def careless(task: Any, space: Any, latency: Any, limit: float, **given: Any) -> Any:
        return random(task, space, latency, plan.limit, **(given | {"trainings": 1}))

    monkeypatch.setattr(nas, "network_searches", lambda: {"random": careless})
    for wrong, why in (({"limit": 1e-9}, "found a network of"), ({"trainings": 0}, "took 1 trainings of 0")):
        with pytest.raises(RuntimeError, match=why):
            nas.searched(replace(plan, **wrong))
