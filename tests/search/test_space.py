"""Spaces: size, enumeration, sampling, validation, and the way to and from Optuna and files."""

import json
import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.search import Space, categorical, integer, real


@st.composite
def spaces(draw, finite=True):
    """Spaces of up to five parameters with conditions on earlier ones."""
    parameters = []
    for index in range(draw(st.integers(1, 5))):
        name = f"p{index}"
        when = {}
        for other in parameters:
            if other.size <= 6 and draw(st.integers(0, 3)) == 0:
                values = list(other.values())
                when[other.name] = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True))
        kind = draw(st.sampled_from(["categorical", "int", "log int", "grid"] + ["float"] * (not finite)))
        if kind == "categorical":
            pool = ["a", "b", "", 0, 1, 2.5, True, False, None]
            parameters.append(categorical(name, draw(_distinct(pool)), when))
        elif kind == "int":
            low = draw(st.integers(-5, 5))
            parameters.append(
                integer(name, low, low + draw(st.integers(0, 7)), step=draw(st.integers(1, 3)), when=when)
            )
        elif kind == "log int":
            low = draw(st.integers(1, 5))
            parameters.append(integer(name, low, low + draw(st.integers(0, 5)), log=True, when=when))
        elif kind == "grid":
            low, step = draw(st.sampled_from([0.0, -0.3, 1e-3])), draw(st.sampled_from([0.1, 0.25, 1e-3]))
            parameters.append(real(name, low, low + step * draw(st.integers(0, 5)), step=step, when=when))
        else:
            parameters.append(real(name, 0.5, 2.0, log=draw(st.booleans()), when=when))
    return Space(parameters)


def _distinct(pool):
    return st.lists(st.sampled_from(pool), min_size=1, max_size=4, unique=True)


@given(spaces())
@settings(max_examples=150, deadline=None)
def test_size_is_the_number_of_points_enumerated_and_each_comes_once(space):
    points = list(space.enumerate()) if space.size <= 3000 else None
    if points is not None:
        assert len(points) == space.size
        assert len({space.key(p) for p in points}) == len(points)


@given(spaces(finite=False), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_sample_is_valid_and_survives_json(space, seed):
    params = space.sample(seed)
    assert space.validate(params) == params
    assert space.validate(json.loads(json.dumps(params))) == params
    assert space.sample(seed) == params


@given(spaces(finite=False))
@settings(max_examples=150, deadline=None)
def test_data_round_trip(space):
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(spaces(finite=False), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_what_optuna_suggests_is_a_point_of_the_space(space, seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    params = space.suggest(trial)
    assert space.validate(params) == params
    assert space.key(trial.params) == space.key(params)


def test_optuna_distributions_round_trip():
    space = Space([categorical("c", ["x", 1, None]), integer("i", 2, 64, log=True), real("r", 0, 1, step=0.25)])
    assert Space.from_optuna(space.to_optuna()) == space


def test_huge_conditional_space_is_counted_not_enumerated():
    parts = [categorical("on", [True, False])]
    parts += [integer(f"k{i}", 1, 1000, when={"on": True}) for i in range(10)]
    assert Space(parts).size == 1000**10 + 1
    assert Space([integer("big", 1, 10**12), real("x", 0, 1, step=0.5, when={"big": 7})]).size == 10**12 + 2
    assert Space([real("x", 0, 1)]).size == math.inf


def test_true_is_not_one():
    space = Space([categorical("c", [True, 2]), integer("k", 1, 3, when={"c": True})])
    assert space.size == 4
    with pytest.raises(HastenError, match="not among"):
        space.validate({"c": 1, "k": 1})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"m": "c"}, "not among"),
        ({"m": "a"}, "k is missing"),
        ({"m": "b", "k": 1}, "does not exist with the other values"),
        ({"m": "b", "z": 1}, "not a parameter"),
        ({"m": "a", "k": 9}, "not a whole number in"),
        ({"m": "a", "k": "1"}, "not a whole number in"),
        ({"m": "a", "k": 1.5}, "not a whole number in"),
        ({"m": "a", "k": math.nan}, "not a whole number in"),
    ],
)
def test_wrong_points_are_refused_in_one_line(params, message):
    space = Space([categorical("m", ["a", "b"]), integer("k", 1, 5, when={"m": "a"})])
    with pytest.raises(HastenError, match=message) as error:
        space.validate(params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: categorical("c", []),
        lambda: categorical("c", [1, 1]),
        lambda: categorical("c", [1, True]),
        lambda: categorical("c", [[1]]),
        lambda: integer("i", 3, 1),
        lambda: integer("i", 1.5, 3),
        lambda: integer("i", 0, 3, log=True),
        lambda: integer("i", 1, 9, step=0),
        lambda: integer("i", 1, 9, step=2, log=True),
        lambda: real("r", 0, math.inf),
        lambda: real("r", 1, 2, step=0.5, log=True),
        lambda: real("", 1, 2),
        lambda: Space([integer("i", 1, 2), integer("i", 1, 2)]),
        lambda: Space([integer("i", 1, 2, when={"later": 1}), integer("later", 1, 2)]),
        lambda: Space([integer("i", 1, 2), integer("j", 1, 2, when={"i": 7})]),
        lambda: Space([real("x", 1, 2), integer("j", 1, 2, when={"x": 1.5})]),
        lambda: Space.from_dict({}),
        lambda: Space.from_dict({"parameters": [{"name": "a", "kind": "flaot", "low": 1, "high": 2}]}),
        lambda: Space.from_dict({"parameters": [{"name": "a", "kind": "int", "low": 1}]}),
        lambda: Space.from_dict({"parameters": [{"name": "a", "kind": "int", "low": 1, "hihg": 3, "high": 2}]}),
        lambda: Space.from_dict({"parameters": [{"name": "a", "kind": "categorical", "choices": "abc"}]}),
        lambda: Space.from_dict({"parameters": [{"name": "a", "kind": "int", "low": "1", "high": 2}]}),
        lambda: Space.from_dict({"parameters": [{"name": "a", "kind": "int", "low": 1, "high": 2, "when": 3}]}),
    ],
)
def test_wrong_definitions_are_refused(make):
    with pytest.raises(HastenError):
        make()


def test_files(tmp_path):
    space = Space([categorical("m", ["a", "b"]), integer("k", 1, 5, when={"m": ["a"]})])
    (tmp_path / "s.json").write_text(json.dumps(space.to_dict()))
    (tmp_path / "s.toml").write_text(
        '[[parameters]]\nname = "m"\nkind = "categorical"\nchoices = ["a", "b"]\n'
        '[[parameters]]\nname = "k"\nkind = "int"\nlow = 1\nhigh = 5\nwhen = { m = ["a"] }\n'
    )
    source = "from hasten.search import Space, categorical, integer\n"
    source += 'space = Space([categorical("m", ["a", "b"]), integer("k", 1, 5, when={"m": "a"})])\n'
    source += "def make():\n    return space\nother = 3\n"
    (tmp_path / "s.py").write_text(source)
    for name in ("s.json", "s.toml", "s.py", "s.py:space", "s.py:make"):
        assert Space.load(tmp_path / name) == space, name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.toml", None, "cannot read"),
        ("bad.toml", "[[[", "cannot be parsed"),
        ("bad.json", "{", "cannot be parsed"),
        ("empty.toml", "", "parameters"),
        ("bad.py", "1/0", "ZeroDivisionError"),
        ("no.py", "x = 1", "defines no 'space'"),
        ("other.py", "space = 1", "not a hasten.search.Space"),
        ("missing.py", None, "there is no file"),
        ("deep.json", "[" * 10_000 + "]" * 10_000, "nested deeper"),
        ("deep.toml", "a = " + "[" * 10_000 + "]" * 10_000, "nested deeper"),
        ("keys.toml", ".".join("a" * 10_000) + " = 1", "nested deeper"),
        ("exits.py", "import sys; sys.exit(3)", "fails when it is run: SystemExit: 3"),
        ("odd.py", "class Odd(BaseException): pass\nraise Odd", "fails when it is run: Odd"),
        ("made.py", "def space(): raise SystemExit", "space failed: SystemExit"),
        ("a" * 5000 + ".toml", None, "too long"),
        ("a" * 5000 + ".py", None, "too long"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(HastenError, match=message) as error:
        Space.load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_binary_file_is_refused(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HastenError, match="UTF-8"):
        Space.load(tmp_path / "s.toml")
