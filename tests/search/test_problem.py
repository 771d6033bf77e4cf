"""Problems: what evaluate must return, and Pareto fronts against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.search import Infeasible, Objective, Problem, Space, Trial, integer, pareto

SPACE = Space([integer("k", 1, 5)])


def dominates(a, b, objectives):
    pairs = [(o.sign * a.values[o.name], o.sign * b.values[o.name]) for o in objectives]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@st.composite
def cases(draw):
    directions = draw(st.lists(st.sampled_from(["minimize", "maximize"]), min_size=1, max_size=4))
    objectives = [Objective(f"o{i}", d) for i, d in enumerate(directions)]
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False))
    trials = [
        Trial(
            n,
            {"k": n},
            {o.name: draw(number) for o in objectives},
            {"c": draw(st.sampled_from([-1.0, 0.0, 1e-9, 2.0]))} if draw(st.booleans()) else {},
        )
        for n in range(draw(st.integers(0, 25)))
    ]
    return objectives, trials


@given(cases())
@settings(max_examples=300, deadline=None)
def test_pareto_equals_brute_force(case):
    objectives, trials = case
    feasible = [t for t in trials if all(c <= 0 for c in t.constraints.values())]
    expected = [t for t in feasible if not any(dominates(other, t, objectives) for other in feasible)]
    assert pareto(trials, objectives) == expected


def test_points_that_failed_are_never_on_the_front():
    objectives = [Objective("f")]
    failed = Trial(0, {"k": 1}, {}, reason="no")
    unknown = Trial(1, {"k": 2}, {"f": math.nan})
    good = Trial(2, {"k": 3}, {"f": 5.0})
    assert pareto([failed, unknown, good], objectives) == [good]


def problem(evaluate, **more):
    return Problem("p", SPACE, (Objective("f"),), evaluate, **more)


def test_score_splits_values_constraints_and_details():
    found = problem(lambda p: {"f": np.float32(2.5), "c": -1, "note": "x"}, constraints=("c",)).score({"k": 1})
    assert found == ({"f": 2.5}, {"c": -1.0}, {"note": "x"})


@pytest.mark.parametrize("returned", [None, 3.0, {}, {"f": "fast"}, {"f": None}, {"f": 1.0}])
def test_what_evaluate_must_return(returned):
    with pytest.raises(HastenError):
        problem(lambda p: returned, constraints=("c",)).score({"k": 1})


def test_not_a_number_is_infeasible_not_a_value():
    with pytest.raises(Infeasible, match="f is not a number"):
        problem(lambda p: {"f": math.nan}).score({"k": 1})


def test_wrong_problems_are_refused():
    with pytest.raises(HastenError, match="no objective"):
        Problem("p", SPACE, (), lambda p: {})
    with pytest.raises(HastenError, match="named twice"):
        problem(lambda p: {}, constraints=("f",))
    with pytest.raises(HastenError, match="direction"):
        Objective("f", "up")


def test_fingerprint_depends_on_all_that_scores_depend_on():
    base = problem(lambda p: {"f": 1})
    same = problem(lambda p: {"f": 2})
    others = [
        Problem("q", SPACE, (Objective("f"),), base.evaluate),
        Problem("p", Space([integer("k", 1, 6)]), (Objective("f"),), base.evaluate),
        Problem("p", SPACE, (Objective("f", "maximize"),), base.evaluate),
        problem(base.evaluate, constraints=("c",)),
        problem(base.evaluate, identity={"model": "m"}),
    ]
    assert base.fingerprint == same.fingerprint
    assert len({p.fingerprint for p in [base, *others]}) == len(others) + 1
