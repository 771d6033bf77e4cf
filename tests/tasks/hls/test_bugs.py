"""Buggy circuits: clean ones run and raise no alarm, every class of bug appears and shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.tasks.hls import bugs as hls_bugs
from hasten.tasks.hls.bugs import (
    DIRECTIVE,
    FUNCTIONAL,
    Case,
    build,
    check,
    classify,
    designs,
    evaluate,
    mutants,
    rank,
    run,
    run_all,
)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("c++") is None, reason="no C++ compiler"
)
EVERY = [m for d in designs() for m in mutants(d)]


def test_clean_designs_raise_no_alarm() -> None:
    every = designs(3)
    assert len(every) == 3 * len(designs())
    assert {d.name: check(d.source) for d in every if check(d.source)} == {}


def test_every_class_is_made_of_five_designs_and_differs_from_the_clean_one() -> None:
    for bug in (*FUNCTIONAL, *DIRECTIVE):
        assert len({m.name for m in EVERY if m.bug == bug}) >= 5, bug
    clean = {d.name: d.source for d in designs()}
    assert all(m.source != clean[m.name] for m in EVERY)


def test_directive_bugs_are_found_by_rule() -> None:
    some = [m for m in EVERY if m.bug in DIRECTIVE]
    hits = sum(m.bug in check(m.source) for m in some)
    assert hits >= 0.9 * len(some)


ROUTINE = """
void routine(int a[24], int b[24], int n) {
#pragma HLS INTERFACE mode=axis port=a
#pragma HLS ARRAY_PARTITION variable=b type=cyclic factor=3 dim=1
  for (int t = 0; t < 4; t++) {
    for (int s = 0; s < 6; s++) {
#pragma HLS UNROLL factor=3
      b[6 * t + s] = a[6 * t + s] + n;
    }
  }
}
"""


def test_rules_read_code_that_no_bug_was_put_into() -> None:
    assert check(ROUTINE.replace("mode=axis port=a", "mode=ap_memory port=a")) == []
    assert check(ROUTINE) == []  # in order, if through two loops
    assert check(ROUTINE.replace("6 * t + s] + n", "6 * t + 5 - s] + n")) == ["IDAP"]
    block = ROUTINE.replace("mode=axis port=a", "mode=bram port=a").replace("type=cyclic", "type=block")
    assert check(block) == ["APT"]
    assert check(block.replace("UNROLL factor=3", "UNROLL factor=1")) == []
    assert check(ROUTINE.replace("port=a", "port=n")) == ["SMA"]
    assert check(ROUTINE.replace("mode=axis", "mode=s_axilite").replace("s < 6", "s < 7")) == ["AMS", "FND"]


@needs_compiler
def test_bugs_show() -> None:
    some = [d for d in designs() if d.name in ("sum", "count")]
    cases = build(some)
    assert len(cases) > 15
    expected = {d.name: run(d).output for d in some}
    again = run_all(cases)
    assert again[0] == run(cases[0])
    for case, seen in zip(cases, again, strict=True):
        assert (seen.ok and seen.output == expected[case.name]) == (case.bug not in FUNCTIONAL)
    assert {r.reason for c, r in zip(cases, again, strict=True) if c.bug == "INF" and c.name == "sum"} == {
        "does not end"
    }


@needs_compiler
def test_one_that_does_not_compile_spoils_no_other() -> None:
    clean = designs()[0]
    broken = Case("broken", "int broken() { return }", "broken();")
    found = run_all([clean, broken])
    assert found[0] == run(clean)
    assert found[0].ok
    assert found[1].reason.startswith("does not compile")


@needs_compiler
@pytest.mark.slow
def test_the_whole_set_has_every_class() -> None:
    cases = build()
    for bug in (*FUNCTIONAL, *DIRECTIVE):
        assert len({c.name for c in cases if c.bug == bug}) >= 5, bug


@needs_compiler
def test_a_design_that_does_not_run() -> None:
    with pytest.raises(HastenError, match="does not run by itself"):
        build([Case("broken", "int broken() { return }", "broken();")])


@needs_compiler
def test_a_program_that_prints_no_text_ran() -> None:
    assert run(Case("bytes", "", 'std::fputs("\\xff\\xfe", stdout);')).output == "\ufffd\ufffd"


@pytest.mark.parametrize(("does", "said"), [("sleep 60", "not within 0.2 s"), ("exit 0", "does not compile")])
def test_a_compiler_that_hangs_or_makes_nothing(
    does: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n{does}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(hls_bugs, "_compiler", lambda: str(compiler))
    monkeypatch.setattr(hls_bugs, "_COMPILING", 0.2)
    ran = run(designs()[0])
    assert not ran.ok
    assert said in ran.reason


def test_detectors_are_scored() -> None:
    cases = [*designs(), *[m for m in EVERY if m.bug in DIRECTIVE]]
    found = evaluate(lambda source: bool(check(source)), cases)
    assert found.recall >= 0.9
    assert found.false_alarms == 0
    assert evaluate(lambda source: True, cases).false_alarms == 1
    with pytest.raises(HastenError, match="with and without"):
        evaluate(lambda source: True, designs())


def test_classes_are_scored() -> None:
    cases = [Case("a", "one", ""), Case("a", "two", ""), Case("a", "three", "", "APT"), Case("a", "four", "", "FND")]
    said = {"one": [], "two": ["APT"], "three": ["APT", "FND"], "four": ["DID"]}
    found = classify(lambda source: said[source], cases)
    assert found.recall == {"APT": 1.0, "FND": 0.0}
    assert found.precision == {"APT": 0.5, "FND": 0.0}
    assert (found.false_alarms, found.found) == (0.5, 0.5)
    assert classify(lambda source: [], cases).precision == {"APT": 1.0, "FND": 1.0}
    with pytest.raises(HastenError, match="with and without"):
        classify(lambda source: [], cases[:2])


def test_scores_are_ranked() -> None:
    cases = [*designs(), *[m for m in EVERY if m.bug == "FND" or "dim=4" in m.source]]
    found = rank(lambda source: float("dim=4" in source), cases)
    assert found.by_class == {"DID": 1.0, "FND": 0.5}
    assert 0.5 < found.area < 1
    assert rank(lambda source: 0.0, cases).area == 0.5
    with pytest.raises(HastenError, match="with and without"):
        rank(lambda source: 0.0, designs())


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hls_bugs.shutil, "which", lambda name: None)
    with pytest.raises(HastenError, match="install g"):
        run(designs()[0])
