"""Values in an order: samplers know them by their places, people by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from hasten import spaces
from hasten.errors import HastenError
from hasten.search import Objective, Parameter, Problem, Space, Study, categorical, ordinal, samplers
from hasten.search.codesign.chips import ChipSpace
from hasten.search.exploring import Explorer

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SPACE = Space(
    [ordinal("size", SIZES), categorical("kind", ["a", "b"]), ordinal("clock", [0.5, 1.0], when={"size": [8, 128]})]
)
# Numbers that stand for something else: which element runs a task.
NAMES_IN_NUMBERS = ("run_",)


def _problem() -> Problem:
    return Problem("ordered", SPACE, (Objective("off"),), lambda p: {"off": abs(p["size"] - 8) + p.get("clock", 1.0)})


@pytest.mark.parametrize("name", samplers())
def test_every_sampler_chooses_values_and_a_study_gives_them_back(name: str) -> None:
    problem, study = _problem(), Study()
    first = {"size": 128, "kind": "b", "clock": 0.5}
    run = study.run(problem, sampler=name, trials=5, seed=0, first=[first])
    kept = optuna.load_study(study_name="ordered", storage=study._memory)
    kept.enqueue_trial({"size": SIZES.index(16)})  # Optuna's own users fix a place
    more = study.run(problem, sampler=name, trials=8, seed=0)
    assert more.trials[:5] == run.trials
    assert more.trials[0].params == first
    assert any(t.params["size"] == 16 for t in more.trials)
    assert all(SPACE.validate(t.params) == t.params for t in more.trials)
    for trial in kept.trials:
        if "size" in trial.params and "hasten:param.size" in trial.user_attrs:
            assert SIZES[trial.params["size"]] == trial.user_attrs["hasten:param.size"]


def test_their_distribution_is_of_places() -> None:
    assert SPACE.to_optuna() == {
        "size": IntDistribution(0, 7), "kind": CategoricalDistribution(["a", "b"]), "clock": IntDistribution(0, 1),
    }  # fmt: skip
    assert Space.from_dict(SPACE.to_dict()) == SPACE
    assert str(ordinal("n", [1, 2, 4])) == "{1 < 2 < 4}"
    ordered = Study().run(_problem(), order=lambda p: -p["size"], trials=3)
    assert [t.params["size"] for t in ordered.trials] == [128] * 3


def test_what_is_not_in_an_order_is_refused() -> None:
    with pytest.raises(HastenError, match="in order already"):
        Parameter("n", "int", low=0, high=3, ordered=True)
    with pytest.raises(HastenError, match="true or false"):
        Space.from_dict({"parameters": [{"name": "n", "kind": "categorical", "choices": [1], "ordered": "yes"}]})
    with pytest.raises(HastenError, match="not among"):
        SPACE.to_trial({"size": 3})


def test_neighbours_are_alike_to_a_sampler_that_knows_the_order() -> None:
    """Of sizes 1 to 2**39, the cost falls towards one pair of them: by places a model goes there, by names not."""
    sizes = [2**i for i in range(40)]

    def tried(make: Callable[..., Parameter], seed: int) -> int:
        problem = Problem(
            "valley", Space([make("a", sizes), make("b", sizes)]), (Objective("off"),),
            lambda p: {"off": float((sizes.index(p["a"]) - 29) ** 2 + (sizes.index(p["b"]) - 11) ** 2)},
        )  # fmt: skip
        return min(t.values["off"] for t in Study().run(problem, sampler="tpe", trials=40, seed=seed).trials)

    assert sum(tried(ordinal, s) for s in range(3)) < sum(tried(categorical, s) for s in range(3))


MADE: dict[str, Callable[[], Space]] = {
    **{name: (lambda n=name: spaces.build(n).space) for name in ("dram", "mapper", "soc")},
    "asic": lambda: ChipSpace().space,
}


@pytest.mark.parametrize("name", MADE)
def test_numbers_that_grow_are_in_an_order(name: str) -> None:
    for p in MADE[name]():
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in p.choices)
        if p.choices and numbers and len(p.choices) > 2 and list(p.choices) == sorted(p.choices):
            assert p.ordered != p.name.startswith(NAMES_IN_NUMBERS), p.name


def test_agents_know_them_as_before() -> None:
    explorer = Explorer(_problem(), lambda v: -v["off"])
    assert explorer.codec.sizes == (8, 2, 2)
    point: dict[str, Any] = {"size": 8, "kind": "a", "clock": 1.0}
    assert explorer.codec.decode(explorer.codec.encode(point)) == point
