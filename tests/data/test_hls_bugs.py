"""Buggy circuits: clean ones run and raise no alarm, every class of bug appears and shows."""

from __future__ import annotations

import shutil

import pytest

from hasten.data import hls_bugs
from hasten.data.hls_bugs import DIRECTIVE, FUNCTIONAL, Case, build, check, designs, evaluate, mutants, run
from hasten.errors import HastenError

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("c++") is None, reason="no C++ compiler"
)
EVERY = [m for d in designs() for m in mutants(d)]


def test_clean_designs_raise_no_alarm() -> None:
    assert [check(d.source) for d in designs()] == [[]] * len(designs())


def test_every_class_is_made_and_differs_from_the_clean_design() -> None:
    assert {m.bug for m in EVERY} == set(FUNCTIONAL) | set(DIRECTIVE)
    clean = {d.name: d.source for d in designs()}
    assert all(m.source != clean[m.name] for m in EVERY)


def test_directive_bugs_are_found_by_rule() -> None:
    some = [m for m in EVERY if m.bug in DIRECTIVE]
    hits = sum(m.bug in check(m.source) for m in some)
    assert hits >= 0.9 * len(some)


@needs_compiler
def test_bugs_show() -> None:
    some = [d for d in designs() if d.name in ("sum", "count")]
    cases = build(some)
    assert len(cases) > 10
    expected = {d.name: run(d).output for d in some}
    for case in cases:
        seen = run(case, seconds=1.0)
        if case.bug in FUNCTIONAL:
            assert not seen.ok or seen.output != expected[case.name]
        else:
            assert seen.ok
            assert seen.output == expected[case.name]


@needs_compiler
@pytest.mark.slow
def test_the_whole_set_has_every_class() -> None:
    cases = build()
    assert {c.bug for c in cases} == {"", *FUNCTIONAL, *DIRECTIVE}


@needs_compiler
def test_a_design_that_does_not_run() -> None:
    with pytest.raises(HastenError, match="does not run by itself"):
        build([Case("broken", "int broken() { return }", "broken();")])


def test_detectors_are_scored() -> None:
    cases = [*designs(), *[m for m in EVERY if m.bug in DIRECTIVE]]
    found = evaluate(lambda source: bool(check(source)), cases)
    assert found.recall >= 0.9
    assert found.false_alarms == 0
    assert evaluate(lambda source: True, cases).false_alarms == 1
    with pytest.raises(HastenError, match="with and without"):
        evaluate(lambda source: True, designs())


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hls_bugs.shutil, "which", lambda name: None)
    with pytest.raises(HastenError, match="install g"):
        run(designs()[0])
