"""The benchmark of searches: each beside random search in its space, the winner, a run that goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

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
    return nas.Found(accuracy, 1e-3, 2e-3, 4, 10.0)


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
    assert "random on darts: 60.0 ± 10.0 %" in capsys.readouterr().err
    assert (
        "PC-DARTS wins with 90.0 %, 3.0 points before EAS: more than half the spread of the seeds, 1.0"
        in nas.winner("digits", results)
    )


def test_a_second_run_goes_on(
    nas: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def searched(arm: str, *rest: Any) -> Any:
        asked.append((arm, rest[3:5]))
        return "nothing within the limit" if arm == "EAS" else found(nas, 0.5)

    def here(function: Any, arms: Any, each: Any) -> None:
        for number, arm in enumerate(arms):
            each(number, nas.searched(*arm))

    monkeypatch.setattr(nas, "searched", searched)
    monkeypatch.setattr(nas, "run_arms", here)
    arguments = ["nas.py", "--folder", str(tmp_path), "--seeds", "1", "--arm", "EAS", "--arm", "random on plain"]
    for extra in ([], ["--seeds", "2"]):
        monkeypatch.setattr(sys, "argv", arguments + extra)
        assert nas.main() == 0
    assert len(asked) == 8
    assert "EAS found nothing: nothing within the limit" in capsys.readouterr().err
    assert {budget for _, budget in asked} == {(60.0, None), (None, 10)}
