"""What a search leaves: a table, Parquet that reads back, and a page with front, convergence and importances."""

import json
import math
import re

import pytest

from hasten.files import read_parquet
from hasten.report import search_plots as plots
from hasten.report import search_table, write_search
from hasten.report.search import importances
from hasten.search import Infeasible, Objective, Problem, Space, Study, categorical, integer, real

EVIL = "<script>alert('x')</script>\"&"


def score(params):
    if params["n"] == 3:
        raise Infeasible("no kernel for three")
    time = params["n"] * (1 + params["x"]) * 1e-6
    return {"time": time, "quality": 30 - 10 / params["n"], "too_slow": time - 9e-6, "note": EVIL}


@pytest.fixture(scope="module")
def problem():
    space = Space([integer("n", 1, 12), real("x", 0, 1, step=0.1), categorical("who", ["a", EVIL], when={"n": [1, 2]})])
    objectives = (Objective("time", unit="s"), Objective("quality", "maximize", "dB"))
    return Problem(f"toy {EVIL}", space, objectives, score, ("too_slow",), {"model": EVIL})


@pytest.fixture(scope="module")
def result(problem):
    study = Study()
    study.run(problem, sampler="random", trials=30)
    return study.run(problem, sampler="nsga2", trials=60)


@pytest.fixture(scope="module")
def written(problem, result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    return {path.suffix: path for path in write_search(problem, result, folder)}


def test_parquet_reads_back_what_was_tried(problem, result, written):
    rows = read_parquet(written[".parquet"])
    assert len(rows) == 60
    front = {t.number for t in result.pareto()}
    for row, t in zip(rows, result.trials, strict=True):
        assert row["number"] == t.number
        assert row["front"] == (t.number in front)
        assert {p: row[f"param.{p}"] for p in t.params} == t.params
        assert row["value.time"] == t.values.get("time")
        assert row["constraint.too_slow"] == t.constraints.get("too_slow")
        assert (row["reason"], row["sampler"]) == (t.reason, t.sampler)
        assert json.loads(row["details"]) == t.details
    assert json.loads(written[".json"].read_text())["objectives"][1] == {
        "name": "quality", "direction": "maximize", "unit": "dB",
    }  # fmt: skip


def test_the_table_is_the_front_best_first(problem, result):
    table = search_table(problem, result)
    assert [int(row[0]) for row in table.rows] == [
        t.number for t in sorted(result.pareto(), key=lambda t: t.values["time"])
    ]
    assert ">time, s" in table.columns


def test_the_page_is_whole_and_inert(result, written):
    text = written[".html"].read_text("utf-8")
    assert "<script>alert" not in text
    assert not re.search(r'(?:src|href)="https?:', re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    found = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])
    assert set(found) == {"plot-front", "plot-convergence", "plot-importance"}
    broken = sum(t.constraints.get("too_slow", 0) > 0 for t in result.trials)
    assert f"{broken} break the constraint too_slow" in text
    assert "could not be had: no kernel for three" in text


def test_the_front_shows_every_trial_with_values_and_its_units(problem, result):
    figure = plots.tried(problem, result)
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in marks) == sum(bool(t.values) for t in result.trials)
    assert "quality, dB (more is better)" in figure.layout.yaxis.title.text
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis.ticksuffix) == ("time (less is better)", "s")


def test_convergence_is_the_best_so_far_of_each_sampler(problem, result):
    figure = plots.convergence(problem, result)
    assert {trace.name for trace in figure.data} == {"random", "nsga2"}
    by_number = {t.number: t for t in result.trials}
    quality = [trace for trace in figure.data if trace.yaxis == "y3"]
    for trace in quality:
        numbers = result.chosen[trace.name]
        seen = [by_number[n].values["quality"] for n in numbers if by_number[n].feasible]
        assert trace.y[-1] == max(seen)
        assert len(trace.y) == len(numbers)
    volume = [trace for trace in figure.data if trace.yaxis == "y"]
    for trace in volume:
        assert list(trace.y) == sorted(trace.y)
        assert 0 <= trace.y[-1] <= 1 + 1e-9


def test_one_objective_three_and_none_feasible(tmp_path):
    space = Space([integer("n", 1, 30)])
    one = Problem("one", space, (Objective("y"),), lambda p: {"y": p["n"]})
    three = Problem(
        "three", space, tuple(map(Objective, "abc")), lambda p: {"a": p["n"], "b": -p["n"], "c": p["n"] % 3}
    )
    never = Problem("never", space, (Objective("y"),), lambda p: {"y": 1, "c": 1}, ("c",))
    for name, problem in (("one", one), ("three", three), ("never", never)):
        result = Study().run(problem, sampler="random", trials=12)
        write_search(problem, result, tmp_path / name)
        text = (tmp_path / name / "search.html").read_text("utf-8")
        assert ("No point tried is feasible" in text) == (name == "never")
        assert ("plot-convergence" in text) == (name != "never")
    assert len({trace.xaxis for trace in plots.tried(three, Study().run(three, sampler="random", trials=5)).data}) == 3


def test_importances_name_what_matters():
    space = Space([integer("matters", 0, 9), integer("idle", 0, 9)])
    problem = Problem("p", space, (Objective("y"),), lambda p: {"y": p["matters"] ** 2})
    result = Study().run(problem, sampler="random", trials=60)
    shares = importances(problem, result)["y"]
    assert next(iter(shares)) == "matters"
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(problem, Study().run(problem, sampler="random", trials=5)) == {}


def test_search_json_is_strict_whatever_is_found(tmp_path):
    """RFC 8259 has no NaN and no Infinity: such values are texts that say what they are."""

    def evaluate(point):
        if point["n"] == 0:
            return {"e": math.inf, "extra": math.nan}
        return {"e": float(point["n"]), "extra": -math.inf, "list": [1.5, math.nan, {"deep": math.inf}]}

    problem = Problem("finite", Space([integer("n", 0, 3)]), (Objective("e", unit="J"),), evaluate)
    result = Study().run(problem, sampler="exhaustive")
    write_search(problem, result, tmp_path)

    def refuse(token):
        raise ValueError(token)

    read = json.loads((tmp_path / "search.json").read_text(), parse_constant=refuse)
    first, second = read["trials"][:2]
    assert (first["values"]["e"], first["details"]["extra"]) == ("Infinity", "NaN")
    assert float(first["values"]["e"]) == math.inf
    assert second["values"]["e"] == 1.0
    assert second["details"] == {"extra": "-Infinity", "list": [1.5, "NaN", {"deep": "Infinity"}]}
