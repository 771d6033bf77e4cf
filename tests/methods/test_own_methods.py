"""A method of the user's own: fields of any kind are written and read back, or refused before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from hasten import spaces
from hasten.hardware import load_device
from hasten.methods import Context, DropLayers, Method, from_dict, unwritable
from hasten.methods.method import _REGISTRY
from hasten.models import load_network
from hasten.runtime import LanguageModel
from hasten.search import Infeasible, Study
from hasten.tuning.outcome import TuneResult
from hasten.tuning.predict import choices
from hasten.tuning.tune import Settings, load, save, tune

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(100))
SETTINGS = Settings(prompt=64, new_tokens=4, text=TEXT, floor=50.0, seconds=None, trials=6, runs=1)


@pytest.fixture(autouse=True)
def _only_those_of_the_test() -> Iterator[None]:
    known = dict(_REGISTRY)
    _REGISTRY.clear()
    yield
    _REGISTRY.clear()
    _REGISTRY.update(known)


class Own(Method):
    kind: ClassVar[str] = "halving"
    order: ClassVar[int] = 10

    @property
    def title(self) -> str:
        return self.name

    def why_not(self, model: Any) -> str | None:
        return None

    def apply(self, model: Any) -> Any:
        return DropLayers((1,)).apply(model)

    def rewrite(self, workload: Any) -> Any:
        return DropLayers((1,)).rewrite(workload)

    @classmethod
    def variants(cls, model: Any) -> list[Any]:
        return []


def methods() -> list[Method]:
    @dataclass(frozen=True)
    class NoDefault(Own):
        name: ClassVar[str] = "no-default"
        rank: int

    @dataclass(frozen=True)
    class NoneDefault(Own):
        name: ClassVar[str] = "none-default"
        rank: int | None = None

    @dataclass(frozen=True)
    class Factory(Own):
        name: ClassVar[str] = "factory"
        ranks: tuple[int, ...] = field(default_factory=tuple)

    @dataclass(frozen=True)
    class Nested(Own):
        name: ClassVar[str] = "nested"
        pairs: tuple[tuple[int, tuple[float, ...]], ...] = ()

    @dataclass(frozen=True)
    class Bare(Own):
        name: ClassVar[str] = "bare"
        pairs: tuple = ()

    return [NoDefault(3), NoneDefault(3), NoneDefault(), Factory((1, 2)), Nested(((1, (0.5,)), (2, ()))),
            Bare(((1, 2), (3,)))]  # fmt: skip


def test_settings_of_plain_types_reach_a_file_and_come_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = methods()
    for method in every:
        assert unwritable(method) is None
        assert from_dict(json.loads(json.dumps(method.to_dict()))) == method
        kind = type(method)
        monkeypatch.setattr(kind, "variants", lambda model, of=kind: [m for m in every if type(m) is of])
    found = tune(folder, SETTINGS, device=load_device("cpu2"))
    assert len(found.combinations) == len(every)
    whole = LanguageModel(load_network(folder).network)
    for method in every:
        one = next(c for c in found.combinations if c.methods == [method.to_dict()])
        assert one.measured is not None
        # Whatever the best one was here: this one is to be written.
        monkeypatch.setattr(TuneResult, "best", property(lambda self, of=one: of))
        save(found, tmp_path / "tuned.json")
        assert len(load(tmp_path / "tuned.json").layers) == len(whole.layers) - 1


@dataclass(frozen=True)
class Inner:
    rank: int = 1


@pytest.mark.parametrize("value", [torch.bfloat16, {"rank": 1}, frozenset((1,)), float("inf"), Inner(), 1j], ids=repr)
def test_settings_that_no_file_holds_are_refused_before_a_run(value: Any) -> None:
    @dataclass(frozen=True)
    class Odd(Own):
        name: ClassVar[str] = "odd"
        setting: Any = None

        @classmethod
        def variants(cls, model: Any) -> list[Any]:
            return [cls(value)]

    reason = unwritable(Odd(value))
    assert reason is not None
    assert "settings cannot be written" in reason
    assert "\n" not in reason
    found = choices(Context(None, (), torch.zeros(1, 8), (), 4))
    assert found.skipped["odd"] == reason
    assert "halving" not in found.options


def test_a_conflict_of_a_users_methods_is_infeasible_and_not_the_end(folder: Path) -> None:
    @dataclass(frozen=True)
    class One(Own):
        name: ClassVar[str] = "one"
        conflicts: ClassVar[tuple[str, ...]] = ("other",)

        @classmethod
        def variants(cls, model: Any) -> list[Any]:
            return [cls()]

    @dataclass(frozen=True)
    class Other(Own):
        name: ClassVar[str] = "other"
        kind: ClassVar[str] = "another kind"

        @classmethod
        def variants(cls, model: Any) -> list[Any]:
            return [cls()]

    for measured in (True, False):
        problem = spaces.build(
            "tune", model=folder, settings=SETTINGS, device=load_device("cpu2"), measured=measured
        )  # fmt: skip
        both: dict[str, Any] = {"halving": "one", "another kind": "other"}
        with pytest.raises(Infeasible, match="do not go together"):
            problem.evaluate(both)
    result = Study().run(problem, sampler="exhaustive", trials=4, seed=0)
    assert len(result.trials) == 4
    assert sum(not t.values for t in result.trials) == 1
