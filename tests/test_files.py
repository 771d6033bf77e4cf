"""Reading what others wrote: bounds of size, depth and names, each told in one line."""

import json
import math
from pathlib import Path

import pytest

from hasten import files
from hasten.errors import HastenError, users_code


def test_a_file_without_end_is_left_at_the_limit() -> None:
    with pytest.raises(HastenError, match="longer than 1,000 bytes"):
        files.read_bytes("/dev/zero", most=1000)


def test_what_fits_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    assert len(files.read_bytes(tmp_path / "a", most=1000)) == 1000
    assert files.read_text(tmp_path / "a") == "x" * 1000


def test_toml_has_whole_numbers_of_64_bits() -> None:
    assert files.parse_toml(f"a = [{2**63 - 1}, {-(2**63)}]") == {"a": [2**63 - 1, -(2**63)]}
    for text in (f"a = {2**63}", f"[[a.b]]\nc = [{{d = {-(2**63) - 1}}}]"):
        with pytest.raises(ValueError, match="more than 64 bits"):
            files.parse_toml(text)


def test_a_mark_of_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("name,to\n", "utf-8-sig")
    assert files.read_text(tmp_path / "a") == "name,to\n"


@pytest.mark.parametrize(
    ("name", "why"), [("a" * 5000, "too long"), ("a\0b", "zero byte"), ("~no-such-user-here/x", "home directory")]
)
def test_names_that_no_file_can_have(name: str, why: str) -> None:
    for use in (files.named_path, files.read_bytes):
        with pytest.raises(HastenError, match=why) as told:
            use(name)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 300


DEEP = 10_000
DOTTED = 2_000  # deeper than Python's stack; a parser's time grows with the square
NESTED = {
    "json lists": ("[" * DEEP + "]" * DEEP, files.parse_json),
    "json objects": ('{"a":' * DEEP + "1" + "}" * DEEP, files.parse_json),
    "toml lists": ("a = " + "[" * DEEP + "]" * DEEP, files.parse_toml),
    "toml keys": (".".join("a" * DOTTED) + " = 1", files.parse_toml),
    "toml tables": ("[" + ".".join("a" * DOTTED) + "]", files.parse_toml),
    "json just too deep": ("[" * (files.DEEPEST + 1) + "]" * (files.DEEPEST + 1), files.parse_json),
}


@pytest.mark.parametrize("case", NESTED)
def test_deep_nesting_is_refused(case: str) -> None:
    text, parse = NESTED[case]
    with pytest.raises(ValueError, match="nested deeper"):
        parse(text)


def test_what_is_as_deep_as_allowed_is_read() -> None:
    value = files.parse_json("[" * files.DEEPEST + "]" * files.DEEPEST)
    for _ in range(files.DEEPEST - 1):
        (value,) = value
    assert value == []


class Odd(BaseException):
    """What a user's code may raise."""


@pytest.mark.parametrize("error", [SystemExit(3), Odd("a\nb"), ValueError("no"), RecursionError("deep")])
def test_however_a_users_code_ends_is_one_line(error: BaseException) -> None:
    with pytest.raises(HastenError, match=r"net\.py failed: ") as told, users_code("net.py failed"):
        raise error
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), HastenError("own")])
def test_ctrl_c_and_our_own_errors_come_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as told, users_code("net.py failed"):
        raise error
    assert told.value is error


def test_json_has_no_number_that_is_none() -> None:
    value = {"a": [1.0, math.inf, (-math.inf,)], math.nan: {"b": math.nan}, "c": Path("x"), "d": None, "e": "NaN"}
    text = files.to_json(value)

    def refuse(token: str) -> None:
        raise ValueError(token)

    assert json.loads(text, parse_constant=refuse) == {
        "a": [1.0, "Infinity", ["-Infinity"]], "NaN": {"b": "NaN"}, "c": "x", "d": None, "e": "NaN",
    }  # fmt: skip


def test_a_file_that_others_read_is_plain_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    assert files.checked_file(path, most=3) == path
    for wrong, most, why in ((path, 2, "longer than 2 bytes"), (tmp_path, 0, "no plain"), ("/dev/zero", 0, "no plain")):
        with pytest.raises(HastenError, match=why):
            files.checked_file(wrong, most=most)
    with pytest.raises(HastenError, match="No such file"):
        files.checked_file(tmp_path / "none")
