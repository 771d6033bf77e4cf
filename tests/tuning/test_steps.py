"""The steps of tuning one by one: each takes what those before it returned; methods are asked, never known by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.kernels import native
from hasten.methods import CacheFormat, Context, Method, from_dict
from hasten.methods.method import _REGISTRY
from hasten.runtime import LanguageModel
from hasten.search.problem import Infeasible
from hasten.tuning import measure, tune
from hasten.tuning.predict import choices, predict
from hasten.tuning.prepare import Deadline, Prepared, TimeIsUp, prepare
from hasten.tuning.settings import Settings, Silent

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(100))
SETTINGS = Settings(prompt=64, new_tokens=8, text=TEXT, text_name="birds", floor=0.5, seconds=None, trials=4, runs=1)


class Half(Method):
    """What the methods below share: a cache of half the size."""

    kind: ClassVar[str] = "halving"

    @property
    def title(self) -> str:
        return self.name

    def why_not(self, model: Any) -> str | None:
        return None if isinstance(model, LanguageModel) else "it is not a language model"

    def apply(self, model: Any) -> Any:
        return CacheFormat("bf16").apply(model)

    def rewrite(self, workload: Any) -> Any:
        return CacheFormat("bf16").rewrite(workload)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Any]:
        return [cls()]


@pytest.fixture(autouse=True)
def _nothing_stays_defined() -> Iterator[None]:
    known = dict(_REGISTRY)
    for name, kind in known.items():
        if not kind.__module__.startswith("hasten."):
            del _REGISTRY[name]
    yield
    _REGISTRY.clear()
    _REGISTRY.update(known)


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Prepared:
    return prepare(folder, SETTINGS)


def context(prepared: Prepared) -> Context:
    return Context(prepared.base, prepared.tokens, prepared.ids, tuple(range(8)), SETTINGS.new_tokens)


def test_a_method_of_the_user_is_asked_everything_that_hastens_own_are(prepared: Prepared) -> None:
    @dataclass(frozen=True)
    class Wide(Half):
        name: ClassVar[str] = "wide"
        size: int = 10

        @property
        def title(self) -> str:
            return f"wide {self.size}"

        def reach(self, prompt: int) -> int | None:
            return self.size

        @classmethod
        def variants(cls, model: Any) -> list[Wide]:
            return [cls(10), cls(64)]

    @dataclass(frozen=True)
    class Fitted(Half):
        name: ClassVar[str] = "fitted"
        kind: ClassVar[str] = "fitting"
        longest: int = 0

        def fitted(self, context: Context) -> Fitted:
            return replace(self, longest=max(context.text) + len(context.continuation))

    @dataclass(frozen=True)
    class OfTheText(Half):
        name: ClassVar[str] = "of-the-text"
        kind: ClassVar[str] = "text"
        first: int = 0

        @classmethod
        def candidates(cls, context: Context) -> list[OfTheText]:
            return [cls(context.text[0])]

    @dataclass(frozen=True)
    class Shy(Half):
        name: ClassVar[str] = "shy"

        def why_not_tried(self, context: Context) -> str | None:
            return f"not for {context.prompt} tokens"

    found = choices(context(prepared))
    assert list(found.options["halving"]) == ["unchanged", "wide 10"]
    assert found.skipped["wide 64"] == "it would read the whole prompt: it would change nothing"
    assert found.skipped["shy"] == "not for 64 tokens"
    assert found.options["fitting"]["fitted"] == Fitted(max(prepared.tokens) + 8)
    assert found.options["text"]["of-the-text"] == OfTheText(prepared.tokens[0])


def test_prompts_are_priced_as_they_run(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled where steps are, unless a policy looks at them; in plain torch where nothing is compiled."""
    from hasten.methods import SnapKV
    from hasten.tuning import predict as predicting

    schedules: list[object] = []
    monkeypatch.setattr(predicting, "estimate", lambda *given, schedule="eager": schedules.append(schedule))
    workload, device = prepared.base.workload(64, 8), load_device("cpu2")
    predicting.estimated(prepared, device, workload)
    predicting.estimated(prepared, device, SnapKV().rewrite(workload))
    monkeypatch.setattr("hasten.runtime.step.native", lambda: None)
    predicting.estimated(prepared, device, workload)
    compiled = [{"prefill": "fused", "decode": "fused"}, {"prefill": "eager", "decode": "fused"}, "eager"]
    assert schedules == (compiled if native() is not None else ["eager"] * 3)


def test_settings_of_any_plain_type_are_written_and_read() -> None:
    @dataclass(frozen=True)
    class NoDefault(Half):
        name: ClassVar[str] = "no-default"
        rank: int

    @dataclass(frozen=True)
    class NoneDefault(Half):
        name: ClassVar[str] = "none-default"
        rank: int | None = None
        pairs: tuple[tuple[int, int], ...] = ()

    for method in (NoDefault(3), NoneDefault(), NoneDefault(3, ((1, 2), (3, 4)))):
        assert from_dict(method.to_dict()) == method
    for wrong in ({"method": "no-default", "rank": "3"}, {"method": "none-default", "rank": 2.5}):
        with pytest.raises(HastenError, match="rank is of type"):
            from_dict(wrong)
    with pytest.raises(HastenError, match="no-default"):
        from_dict({"method": "no-default"})


def test_what_cannot_be_written_is_left_out_before_anything_is_measured(prepared: Prepared) -> None:
    @dataclass(frozen=True)
    class Open(Half):
        name: ClassVar[str] = "open"
        rule: Any = len

    @dataclass(frozen=True)
    class Listed(Half):
        name: ClassVar[str] = "listed"
        names: Any = ()

        @classmethod
        def variants(cls, model: Any) -> list[Listed]:
            return [cls([1])]

    found = choices(context(prepared))
    for name in ("open", "listed"):
        assert "written and read back" in found.skipped[name]


def test_two_variants_with_one_title_are_both_tried(prepared: Prepared) -> None:
    @dataclass(frozen=True)
    class Twice(Half):
        name: ClassVar[str] = "twice"
        kind: ClassVar[str] = "other"
        size: int = 1

        @classmethod
        def variants(cls, model: Any) -> list[Twice]:
            return [cls(1), cls(2)]

    found = choices(context(prepared))
    assert list(found.options["other"]) == ["unchanged", "twice (twice size 1)", "twice (twice size 2)"]
    workload = prepared.base.workload(64, 8)
    plan = predict(prepared, load_device("cpu2"), workload, replace(found, options={"other": found.options["other"]}))
    assert list(plan.combinations) == ["twice (twice size 1)", "twice (twice size 2)"]


def test_no_measurement_begins_or_goes_on_after_the_deadline(prepared: Prepared) -> None:
    over = Deadline(time.monotonic() - 1)
    assert over.left == 0
    assert Deadline().left is None
    with pytest.raises(TimeIsUp):
        measure.figures(prepared, prepared.base, [], runs=1, deadline=over)
    checks: list[float] = []

    class Later(Deadline):
        def check(self) -> None:
            checks.append(0)
            if len(checks) == 3:
                raise TimeIsUp

    with pytest.raises(TimeIsUp):
        measure.figures(prepared, prepared.base, [], runs=1, deadline=Later())
    assert len(checks) == 3, "in the middle of perplexity"


def test_the_budget_bounds_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine: the budget is over once the unchanged model is measured."""
    monkeypatch.setattr(Deadline, "after", classmethod(lambda cls, seconds: cls(time.monotonic() - 1)))
    settings = replace(SETTINGS, seconds=1e-6, trials=None, runs=5)
    found = tune.tune(folder, settings, device=load_device("cpu2"))
    assert found.stopped == "seconds"
    assert not any(c.measured or c.failure for c in found.combinations)
    assert found.best == found.baseline


def test_methods_that_fail_together_are_infeasible(prepared: Prepared) -> None:
    before = measure.unchanged(prepared, load_device("cpu2"), Silent())
    with pytest.raises(Infeasible, match="already"):
        measure.tried(prepared, [_Twice(), CacheFormat("int8")], before)


@dataclass(frozen=True)
class _Twice(Half):
    kind: ClassVar[str] = "more"
    order: ClassVar[int] = 1

    @property
    def title(self) -> str:
        return "twice"
