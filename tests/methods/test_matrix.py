"""The matrix of methods, models and paths (scripts/method_matrix.py): a seeded sample of its cells."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from hasten.methods import CacheFormat, LookupDecoding, Method, SlidingWindow, SnapKV, WeightOnly, registry
from hasten.methods.method import _REGISTRY
from hasten.runtime import LanguageModel

ROOT = Path(__file__).parents[2]


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("method_matrix", ROOT / "scripts" / "method_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules["method_matrix"] = module
    spec.loader.exec_module(module)
    return module


matrix = _loaded()


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sample() -> list[Any]:
    """Every method alone, each with another, and a few triples, over models and formats in turn."""
    every = [c for c in matrix.cells(triples=20, seed=1) if all(m.name in matrix.SETTINGS for m in c.methods)]
    places = itertools.cycle(itertools.product(matrix.FAMILIES, matrix.FORMATS))
    generator, found = random.Random(1), []
    alone = [m for m in matrix.candidates(first=True) if m.name in matrix.SETTINGS]
    found += [matrix.Cell(*next(places), (method,)) for method in alone]
    # The newest tokens of a rounded cache keep their room where others leave.
    found += [matrix.Cell("llama", "fp32", (CacheFormat(dtype), SnapKV(40, 8))) for dtype in ("int8", "int4")]
    for size, count in ((2, 16), (3, 8)):
        some = [c.methods for c in every if len(c.methods) == size and matrix.clash(c.methods) is None]
        found += [matrix.Cell(*next(places), methods) for methods in generator.sample(some, count)]
    return found


@pytest.mark.slow_except(every=3)
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("cell", sample(), ids=lambda c: c.key)
def test_a_method_means_the_same_everywhere(cell: Any) -> None:
    result = matrix.examine(cell)
    assert result["result"] != matrix.FAILED, result


def test_what_is_known_to_fail_does_not_grow() -> None:
    assert len(matrix.KNOWN) <= 0


def test_every_registered_method_has_cells() -> None:
    ours = {name for name, kind in registry().items() if kind.__module__.startswith("hasten.")}
    assert set(matrix.SETTINGS) == ours
    assert {m.name for c in matrix.cells(triples=1) for m in c.methods} >= ours
    alone = [c for c in matrix.cells(triples=1) if len(c.methods) == 1]
    assert len(alone) == 12 * len(matrix.candidates())


def user(wrong: bool) -> type[Method]:
    """A method as the page on methods has one: it packs weights, and says so, or says that a cache is int8."""

    @dataclass(frozen=True)
    class Mine(Method):
        name: ClassVar[str] = "mine"
        kind: ClassVar[str] = "my kind"

        title = "mine"

        def why_not(self, model: Any) -> str | None:
            return None if isinstance(model, LanguageModel) else "it is not a language model"

        def apply(self, model: Any) -> Any:
            return WeightOnly(8, 8).apply(model)

        def rewrite(self, workload: Any) -> Any:
            return (CacheFormat("int8") if wrong else WeightOnly(8, 8)).rewrite(workload)

        @classmethod
        def variants(cls, model: Any) -> Sequence[Mine]:
            return [cls()]

    return Mine


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("wrong", [False, True])
def test_a_users_method_joins_by_being_registered(wrong: bool) -> None:
    kind = user(wrong)
    try:
        mine = [c for c in matrix.cells(triples=1) if any(isinstance(m, kind) for m in c.methods)]
        assert len(mine) > 12 * 20
        result = matrix.examine(matrix.Cell("llama", "fp32", (kind(),)))
    finally:
        del _REGISTRY["mine"]
    assert result["result"] == (matrix.FAILED if wrong else matrix.PASSED), result
    assert result["properties"]["described"].startswith(matrix.FAILED if wrong else matrix.PASSED)


@pytest.mark.usefixtures("_one_thread")
def test_what_is_wrong_is_seen() -> None:
    """Each property fails for a fault of its own."""
    one = matrix.Examined(matrix.Cell("llama", "fp32", (SlidingWindow(40, 4), LookupDecoding(3, 4, 0.5))))
    for name, holds in matrix.PROPERTIES.items():
        assert holds(one), name
    one.tokens = [[(t + 1) % matrix.VOCABULARY for t in row] for row in one.tokens]
    one.logits = [x.roll(1, -1) for x in one.logits]
    for name in ("batched", "in pieces", "plain torch", "transformers' loop", "lossless"):
        with pytest.raises(matrix.Failure, match="row 0, token 0"):
            matrix.PROPERTIES[name](one)
    with pytest.raises(matrix.Failure, match="without a cache"):
        matrix.PROPERTIES["without a cache"](one)
    one.model.cache = replace(one.model.cache, dtype="bf16")
    with pytest.raises(matrix.Failure, match="the cache holds"):
        matrix.PROPERTIES["held"](one)
    del one.workload
    with pytest.raises(matrix.Failure, match=r"cache: .* rewritten after 0 changes"):
        matrix.PROPERTIES["described"](one)


def test_refusals_are_one_line_and_bare_errors_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = matrix.examine(matrix.Cell("llama", "fp32", (SlidingWindow(40, 4), SlidingWindow(30, 4))))
    assert refused["result"] == matrix.REFUSED
    assert "choose one" in refused["why"]

    def broken(self: Any, model: Any) -> Any:
        raise TypeError("bare")

    monkeypatch.setattr(CacheFormat, "apply", broken)
    assert matrix.examine(matrix.Cell("llama", "fp32", (CacheFormat("int8"),)))["result"] == matrix.FAILED


def test_a_run_is_resumed_and_tabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    done: list[str] = []

    def quick(cell: Any) -> dict[str, Any]:
        done.append(cell.key)
        bad = len(done) == 3
        state = "failed: two apart" if bad else "passed"
        return {"cell": cell.key, "result": state[:6], "properties": {"batched": state}}

    monkeypatch.setattr(matrix, "examine", quick)
    path = tmp_path / "cells.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["method_matrix.py", "--triples", "1", "--only", "qwen3 | bf16 | int8", "--results", str(path)]
    )
    assert matrix.main() == 1
    first = len(done)
    assert first > 20
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:5]) + '\n{"cell": "qw', "utf-8")
    assert matrix.main() == 1
    assert len(done) == 2 * first - 5
    assert matrix.main() == 1
    assert len(done) == 2 * first - 5
    told = capsys.readouterr().out
    assert "batched: failed: two apart" in told
    assert f"{first} of {first} cells" in told
