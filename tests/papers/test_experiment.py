"""What checks stand on: shares of the budget, verdicts, what is made once, arms, errors that stay apart."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.papers.experiment import BUDGETS, Check, Experiment, Failure, Runner, Seen, check, shared


def ok(experiment: Experiment) -> Seen:
    return experiment.judge("seen", holds=True)


def run(function: Any, needs: float = 0.0, **options: Any) -> Any:
    """The outcome of one check."""
    return Runner("toy", {"a": check("A", needs=needs)(function)}, **options).run("A")


def test_the_budget_is_divided_by_weight() -> None:
    seen: dict[str, float] = {}

    def note(experiment: Experiment) -> Seen:
        seen[experiment.name] = experiment.budget
        return Seen("", True)

    @shared(weight=3)
    def part(experiment: Experiment) -> float:
        seen["part"] = experiment.budget
        return experiment.budget

    def uses(experiment: Experiment) -> Seen:
        experiment.once(part)
        return note(experiment)

    namespace = {"a": check("A")(note), "b": check("B", weight=4)(uses), "part": part, "again": part, "other": 3}
    runner = Runner("toy", namespace, budget=80)
    for claim in ("A", "B"):
        runner.run(claim)
    assert seen == {"toy A": 10.0, "toy B": 40.0, "part": 30.0}
    assert sum(seen.values()) == 80


def test_shares_do_not_depend_on_what_is_planned_but_progress_does() -> None:
    told: list[float] = []
    namespace = {"a": check("A")(lambda e: Seen(str(e.budget), True)), "b": check("B", weight=3)(ok)}
    runner = Runner("toy", namespace, budget=8, planned=["A"], progress=lambda message, share: told.append(share))
    assert runner.run("A").seen == "2.0"
    assert told == [0.0]

    def half(experiment: Experiment) -> Seen:
        experiment.tell("half", 0.5)
        return Seen("", True)

    told.clear()
    runner = Runner(
        "toy", {"a": check("A")(half), "b": check("B", weight=3)(half)},
        progress=lambda message, share: told.append(share),
    )  # fmt: skip
    runner.run("A")
    runner.run("B")
    assert told == [0.0, 0.125, 0.25, 0.625]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be positive"):
        check("A", weight=weight)(ok)
    with pytest.raises(ValueError, match="weight must be positive"):
        shared(weight=weight)(ok)
    with pytest.raises(ValueError, match="cannot need"):
        Check("A", ok, 1.0, -1.0)


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(HastenError, match="positive number of seconds"):
        Runner("toy", {"a": check("A")(ok)}, budget=budget)


def test_two_checks_of_a_claim_are_refused() -> None:
    with pytest.raises(HastenError, match="two checks of toy"):
        Runner("toy", {"a": check("A")(ok), "b": check("A")(ok)})
    one = check("A")(ok)
    assert Runner("toy", {"a": one, "same": one}).run("A").verdict == "holds"


def test_verdicts() -> None:
    assert Seen("x", True).verdict == "holds"
    assert Seen("x", False).verdict == "does not hold"
    assert Seen("x", False, direction=True).verdict == "direction holds"
    assert Seen("x", None, why="needs 3 s").verdict == "not judged: needs 3 s"
    assert run(ok).verdict == "holds"
    assert run(ok, needs=100, budget=99).verdict == "not judged: needs 100 s"
    assert run(ok, needs=100, budget=100).verdict == "holds"


@pytest.mark.parametrize("budget", [None, 10_000])
def test_quick_never_judges(budget: float | None) -> None:
    assert run(ok, length="quick", budget=budget).verdict == "not judged: quick run"
    outcome = run(lambda experiment: Seen("0.3", False), length="quick", budget=budget)
    assert (outcome.seen, outcome.verdict) == ("0.3", "not judged: quick run")


def test_too_short_is_not_judged_and_quick_goes_on() -> None:
    def long(experiment: Experiment) -> Seen:
        experiment.require(400)
        return experiment.judge("went on", holds=False)

    assert run(long).verdict == "not judged: needs 400 s"
    assert run(long, budget=400).verdict == "does not hold"
    quick = run(long, length="quick")
    assert (quick.seen, quick.verdict) == ("went on", "not judged: quick run")


def test_a_slow_machine_needs_a_larger_budget() -> None:
    def slow(experiment: Experiment) -> Seen:
        experiment.require_more()
        return experiment.judge("went on", holds=False)

    assert run(slow, budget=200).verdict == "not judged: needs 400 s"
    assert run(slow, length="quick").seen == "went on"


@pytest.mark.parametrize(("budget", "allowed"), [(1199, False), (1200, True)])
def test_what_only_a_long_budget_has_time_for(budget: float, allowed: bool) -> None:
    assert run(lambda e: Seen(str(e.allows(1200)), True), budget=budget).seen == str(allowed)


def test_lengths_steps_and_seeds() -> None:
    seen: dict[str, Any] = {}

    def note(experiment: Experiment) -> Seen:
        seen[experiment.length] = (
            experiment.steps(600), experiment.at(quick=1, normal=5, long=9), experiment.at(quick=1, normal=5),
            experiment.seeds(3, long=4), experiment.paper_budget,
        )  # fmt: skip
        return Seen("", True)

    for length in BUDGETS:
        run(note, length=length, seed=7)
    assert seen == {
        "quick": (10, 1, 1, [7], 6.0),
        "normal": (600, 5, 5, [7, 8, 9], 360.0),
        "long": (600, 9, 5, [7, 8, 9, 10], 3600.0),
    }
    assert run(lambda e: Seen(str(e.steps(600, least=50)), True), length="quick").seen == "50"
    assert run(lambda e: Seen(str(e.steps(600, most=900)), True), length="long").seen == "900"
    assert run(lambda e: Seen(str(e.steps(600)), True), budget=180).seen == "300"


def test_what_is_shared_is_made_once_in_a_run() -> None:
    calls: list[tuple[Any, ...]] = []

    @shared(weight=2)
    def part(experiment: Experiment, *args: Any) -> int:
        calls.append(args)
        return len(calls)

    def uses(experiment: Experiment) -> Seen:
        return Seen(f"{experiment.once(part)} {experiment.once(part, 'b')} {experiment.once(part)}", True)

    namespace = {"a": check("A")(uses), "b": check("B")(uses), "part": part}
    runner = Runner("toy", namespace)
    assert [runner.run(c).seen for c in "AB"] == ["1 2 1", "1 2 1"]
    assert calls == [(), ("b",)]
    assert Runner("toy", namespace).run("A").seen == "3 4 3"


def test_a_shared_part_that_fails_is_not_made_again() -> None:
    calls = []

    @shared()
    def part(experiment: Experiment) -> None:
        calls.append(1)
        raise ZeroDivisionError("oh")

    def uses(experiment: Experiment) -> Seen:
        experiment.once(part)
        return Seen("", True)

    runner = Runner("toy", {"a": check("A")(uses), "b": check("B")(uses), "c": check("C")(ok), "part": part})
    assert [runner.run(c).verdict for c in "ABC"] == ["error: ZeroDivisionError: oh"] * 2 + ["holds"]
    assert len(calls) == 1


def test_errors_stay_apart() -> None:
    def breaks(experiment: Experiment) -> Seen:
        raise ZeroDivisionError("oh\nno")

    def exits(experiment: Experiment) -> Seen:
        raise SystemExit(3)

    def lacks(experiment: Experiment) -> Seen:
        raise HastenError("the text is missing:\nfetch it")

    def says_nothing(experiment: Experiment) -> Any: ...

    functions = {"A": breaks, "B": exits, "C": lacks, "D": says_nothing, "E": ok}
    runner = Runner("toy", {c: check(c)(f) for c, f in functions.items()})
    found = {c: runner.run(c) for c in functions}
    assert {c: o.verdict for c, o in found.items()} == {
        "A": "error: ZeroDivisionError: oh no",
        "B": "error: SystemExit: 3",
        "C": "not checkable here: the text is missing: fetch it",
        "D": "error: the check returned NoneType, not what it saw",
        "E": "holds",
    }
    assert found["A"].detail.endswith("in breaks")
    assert __file__ in found["A"].detail


def test_an_interrupt_ends_the_run() -> None:
    def interrupted(experiment: Experiment) -> Seen:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)


def test_arms_here_fail_alone() -> None:
    def uses(experiment: Experiment) -> Seen:
        found = experiment.arms(divided, {"half": (1, 2), "none": (1, 0), "exit": (1, None)}, processes=1)
        assert found["half"] == (0.5, os.getpid())
        assert found["none"] == Failure("ZeroDivisionError: division by zero")
        assert found["exit"] == Failure("SystemExit: ")
        assert list(found) == ["half", "none", "exit"]
        return Seen("fine", True)

    assert run(uses).verdict == "holds"


def divided(a: float, b: float | None) -> tuple[float, int]:
    if b is None:
        raise SystemExit
    return a / b, os.getpid()


def test_an_experiment_may_be_an_argument_of_what_is_remembered() -> None:
    calls: list[int] = []

    @shared()
    def part(experiment: Experiment, other: Experiment) -> int:
        calls.append(1)
        return len(calls)

    def uses(experiment: Experiment) -> Seen:
        return Seen(f"{experiment.once(part, experiment)} {experiment.once(part, experiment)}", True)

    assert [run(uses).seen, run(uses).seen] == ["1 1", "2 2"]
