"""A sampler is a file of the folder: told by its source, imported when it is asked for."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.search import Objective, Problem, Space, Study, integer, make_sampler, real, register, samplers
from hasten.search.samplers import check_name, describe
from hasten.search.samplers.exhaustive import EXHAUSTIVE_LIMIT

PACKAGE = importlib.import_module("hasten.search.samplers")
SPACE = Space([integer("a", 0, 9)])
OWN = """
from optuna.samplers import RandomSampler
from hasten.search.samplers import register

@register("first-file", "a file of one's own")
def first(space, seed, **options):
    return RandomSampler(seed, **options)
"""


def test_one_file_adds_a_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_file.py").write_text(OWN)
    monkeypatch.setattr(PACKAGE, "__path__", [*PACKAGE.__path__, str(tmp_path)])
    monkeypatch.setattr(PACKAGE, "_factories", dict(PACKAGE._factories))
    PACKAGE._folder.cache_clear()
    try:
        assert "first-file" in samplers()
        assert describe("first-file") == "a file of one's own"
        assert "hasten.search.samplers.first_file" not in sys.modules
        problem = Problem("line", SPACE, (Objective("y"),), lambda params: {"y": float(params["a"])})
        assert len(Study().run(problem, sampler="first-file", trials=4).trials) == 4
        with pytest.raises(HastenError, match="already there"):
            register("first-file")(lambda space, seed: None)
        with pytest.raises(HastenError, match="sampler 'first-file': "):
            make_sampler("first-file", SPACE, 0, speed=3)
    finally:
        PACKAGE._folder.cache_clear()
        sys.modules.pop("hasten.search.samplers.first_file", None)


def test_a_name_of_the_folder_is_taken_before_its_file_is_imported() -> None:
    code = (
        "from hasten.search import register, samplers\n"
        "import sys\n"
        "try: register('nsga2')(lambda space, seed: None)\n"
        "except Exception as error: print(error)\n"
        "print('tpe' in samplers(), 'hasten.search.samplers.parzen' in sys.modules, 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0].startswith("a sampler named 'nsga2' is already there")
    assert told[1] == "True False False"


def test_every_sampler_says_what_it_does_and_is_made() -> None:
    for name in ("random", "tpe", "nsga2", "exhaustive"):
        check_name(name)
        assert describe(name)
        assert make_sampler(name, SPACE, 0) is not None
    assert f"{EXHAUSTIVE_LIMIT:,} points" in describe("exhaustive")


@pytest.mark.parametrize("space", [Space([real("x", 0, 1)]), Space([integer("a", 0, EXHAUSTIVE_LIMIT)])])
def test_too_many_points_to_try_all(space: Space) -> None:
    how_many = "infinitely many" if space.size == math.inf else "10,001"
    with pytest.raises(HastenError, match=f"has {how_many} points"):
        make_sampler("exhaustive", space, 0)


@pytest.mark.parametrize(
    ("name", "package"), [("GPSampler", "scipy"), ("CmaEsSampler", "cmaes"), ("QMCSampler", "scipy")]
)
def test_a_package_that_a_sampler_lacks_is_named_before_the_first_trial(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    found = PACKAGE.find_spec
    monkeypatch.setattr(PACKAGE, "find_spec", lambda asked: None if asked == package else found(asked))
    tried: list[object] = []
    problem = Problem("line", SPACE, (Objective("y"),), lambda params: tried.append(params) or {"y": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of them experimental
        inner = getattr(optuna.samplers, name)()
        given = [inner, optuna.samplers.PartialFixedSampler({"a": 1}, inner), *(["gp"] if name == "GPSampler" else [])]
    for sampler in given:
        with pytest.raises(HastenError, match=rf"{package}.*not installed: run pip install"):
            Study().run(problem, sampler=sampler, trials=3)
    assert not tried
