"""The search of neighbours of the front: begins anywhere, goes by steps, repeats nothing, keeps to constraints."""

from __future__ import annotations

import pytest

from hasten.errors import HastenError
from hasten.search import Objective, Problem, Space, Study, categorical, integer, make_sampler

SPACE = Space([integer("x", 0, 30), integer("y", 0, 30), categorical("kind", ["a", "b"]),
               integer("z", 0, 5, when={"kind": "b"})])  # fmt: skip


def problem(limit: float | None = None) -> Problem:
    def evaluate(params):  # type: ignore[no-untyped-def]
        far = (params["x"] - 21) ** 2 + (params["y"] - 4) ** 2 + (params["kind"] == "a") * 50 + params.get("z", 0)
        found = {"far": far, "x": params["x"]}
        return found if limit is None else {**found, "over": params["y"] - limit}

    return Problem("bowl", SPACE, (Objective("far"),), evaluate, constraints=() if limit is None else ("over",))


def test_it_finds_the_bottom_of_a_bowl_where_random_points_do_not() -> None:
    best = {s: Study().run(problem(), sampler=s, trials=160, seed=1).best().values["far"] for s in ("front", "random")}
    assert best["front"] == 0
    assert best["random"] > 0


def test_no_point_is_tried_twice() -> None:
    result = Study().run(problem(), sampler="front", trials=120, seed=2)
    points = [tuple(sorted(t.params.items())) for t in result.trials]
    assert len(set(points)) == 120


def test_it_comes_to_what_is_feasible() -> None:
    result = Study().run(problem(limit=2), sampler="front", trials=150, seed=0)
    assert result.best().params["y"] == 2
    assert result.best().params["x"] == 21


def test_it_begins_with_a_sample() -> None:
    with pytest.raises(HastenError, match="at least 1 point"):
        make_sampler("front", SPACE, 0, first=0)
