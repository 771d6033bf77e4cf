"""Results on disk: what is added stays, what a crash cut short is left out, other files are refused and stay whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.papers.results import Result, ResultFile, machine, read_results, versions


def result(claim: str = "A", **changed: Any) -> Result:
    fields: dict[str, Any] = {
        "slug": "toy", "claim": claim, "metric": "speed", "paper": "2x", "seen": "1.9×", "verdict": "holds",
        "seconds": 1.5,
    }  # fmt: skip
    return Result(**{**fields, **changed})


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    file = ResultFile(path)
    assert read_results(path) == []
    for one in (result("A"), result("B", verdict="not judged: needs 3 s"), result("C", seen='a \n"line"\u2028 of <b>')):
        file.add(one)
    assert [r.claim for r in read_results(path)] == ["A", "B", "C"]
    assert read_results(path)[2].seen == 'a \n"line"\u2028 of <b>'
    assert len(path.read_bytes().splitlines()) == 3
    assert ResultFile(path).results == read_results(path)


def test_the_newest_of_a_run_counts(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "r")
    for one in (result(seen="old"), result("B"), result(seen="other seed", seed=1), result(seen="new")):
        file.add(one)
    assert [(r.claim, r.seen) for r in read_results(tmp_path / "r")] == [
        ("B", "1.9×"), ("A", "other seed"), ("A", "new"),
    ]  # fmt: skip


@pytest.mark.parametrize("keep", [1, 9, 40, -2])
def test_a_last_line_cut_short_is_left_out_and_replaced(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "r"
    file = ResultFile(path)
    for claim in "AB":
        file.add(result(claim))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:keep])
    assert [r.claim for r in read_results(path)] == ["A"]
    ResultFile(path).add(result("C"))
    assert [r.claim for r in read_results(path)] == ["A", "C"]


def test_a_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r"
    ResultFile(path).add(result("A"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    ResultFile(path).add(result("B"))
    assert [r.claim for r in read_results(path)] == ["A", "B"]


BAD = {
    "prose": b"dear diary",
    "prose of two lines": b"dear diary\nhello\n",
    "another JSON": b'{"a": 1}\n',
    "a list": b"[" * 9000 + b"\n",
    "bytes": bytes(range(256)),
    "a verdict that is none": result().model_dump_json().replace('"holds"', '"is true"').encode() + b"\n",
    "seconds that are none": json.dumps(result().model_dump() | {"seconds": float("nan")}).encode() + b"\n",
    "a corrupt line before the last": b'{"slug": "to\n' + result().model_dump_json().encode() + b"\n",
    "a corrupt last line": b'{"slug": "to\n',
}


@pytest.mark.parametrize("case", BAD)
def test_another_file_is_refused_in_one_line_and_stays_whole(case: str, tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_bytes(BAD[case])
    for read in (read_results, ResultFile):
        with pytest.raises(HastenError, match="line 1 is no result of a check") as raised:
            read(path)
        assert len(str(raised.value).splitlines()) == 1
    assert path.read_bytes() == BAD[case]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        for read in (read_results, ResultFile):
            with pytest.raises(HastenError, match="it is no file"):
                read(path)
    with pytest.raises(HastenError, match="No such file"):
        read_results(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(HastenError, match="cannot write"):
        ResultFile(tmp_path / "file" / "r")


def test_where_it_was_seen() -> None:
    assert {"hasten", "python", "torch"} <= set(versions())
    assert set(machine()) == {"processor", "cores", "system"}
    assert all(machine().values())
    assert result(verdict="not judged: needs 3 s").kind == "not judged"
