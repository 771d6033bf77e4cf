"""Beside every value stands its unit, in one spelling, wherever a search is written; numbers can be sorted by."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pytest

from hasten import spaces
from hasten.cost.chips.dataflow import ConvShape
from hasten.report import trials_document, write_search
from hasten.search import Objective, Problem, Space, Study, integer
from hasten.search.codesign.chips import ChipSpace, chip_problem

SPELLED = {"", "s", "W", "J", "B", "mm^2", "dB", "parameters", "tokens", "eTFLOP"}
QUICK: dict[str, Callable[[], Problem]] = {n: partial(spaces.build, n) for n in ("dram", "mapper", "soc")}
QUICK["asic"] = lambda: chip_problem([[ConvShape(8, 8, 3, 3, 8, 8)]], ChipSpace())


def score(params):
    return {
        "area": 2.0 * params["x"],
        "cost": 1.0,
        "over": -1.0,
        "energy": 3.0,
        "seen": {"decode": 0.5, "of": {"it": 2}, "how": "well", "sure": True},
    }


PROBLEM = Problem(
    "units",
    Space([integer("x", 1, 4)]),
    (Objective("area", unit="mm^2"), Objective("cost")),
    score,
    constraints=("over",),
    units={"over": "s", "energy": "J", "seen.decode": "s", "detail.of.another": "B"},
)


def test_the_study_has_units_and_flat_numbers_and_gives_back_what_was_kept() -> None:
    study = Study()
    found = study.run(PROBLEM, sampler="exhaustive")
    kept = optuna.load_study(study_name="units", storage=study._memory)
    assert kept.metric_names == ["area, mm^2", "cost"]
    trial = kept.trials[0]
    assert trial.user_attrs["energy, J"] == 3.0
    assert trial.user_attrs["hasten:seen.decode, s"] == 0.5
    assert trial.user_attrs["hasten:seen.of.it"] == 2
    assert not any(k.startswith(("hasten:seen.how", "hasten:seen.sure")) for k in trial.user_attrs)
    assert "over, s" in trial.constraints
    assert study.read(PROBLEM).trials == found.trials
    assert found.trials[0].details == {"energy": 3.0, "seen": score({"x": 1})["seen"]}
    assert found.trials[0].constraints == {"over": -1.0}


def test_tables_have_units(tmp_path: Path) -> None:
    found = Study().run(PROBLEM, sampler="exhaustive")
    assert {p.suffix for p in write_search(PROBLEM, found, tmp_path)} >= {".csv", ".json", ".html"}
    with (tmp_path / "search.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    assert {"value.area [mm^2]", "value.cost", "constraint.over [s]", "seconds [s]", "param.x"} <= set(heading)
    assert [float(r[heading.index("value.area [mm^2]")]) for r in rows] == [t.values["area"] for t in found.trials]
    parquet = pytest.importorskip("pyarrow.parquet")
    fields = parquet.read_schema(tmp_path / "search.parquet")
    units = {f.name: f.metadata[b"unit"].decode() for f in fields if f.metadata and b"unit" in f.metadata}
    assert units == {"value.area": "mm^2", "constraint.over": "s", "seconds": "s"}
    assert trials_document(PROBLEM, found)["units"]["energy"] == "J"


@pytest.mark.parametrize("name", QUICK)
def test_every_quick_space_spells_units_alike(name: str) -> None:
    problem = QUICK[name]()
    assert {o.unit for o in problem.objectives} | set(problem.units.values()) <= SPELLED
    assert any(o.unit for o in problem.objectives)


def test_the_dashboard_shows_what_a_study_says() -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    import io
    import json

    study = Study()
    found = study.run(spaces.build("mapper"), sampler="random", trials=12)
    app = dashboard.wsgi(study._memory)
    asked = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/0", "QUERY_STRING": "after=0", "SERVER_NAME": "here",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }  # fmt: skip
    seen = json.loads(b"".join(app(asked, lambda status, headers, error=None: None)))
    assert seen["objective_names"] == ["time, s", "energy, J", "area, mm^2"]
    assert {t.feasible for t in found.trials} == {True, False}
    assert {"key": "traffic, B", "sortable": True} in seen["union_user_attrs"]
    shown = {t["number"]: t for t in seen["trials"]}
    for trial in found.trials:
        assert shown[trial.number]["state"] == "Complete"
        assert any(c > 0 for c in shown[trial.number]["constraints"]) == (not trial.feasible)
