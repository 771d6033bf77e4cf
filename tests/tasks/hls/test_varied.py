"""Circuits in many styles: all are read, the rules find their bugs and suspect no other."""

from __future__ import annotations

from collections import Counter

import pytest

from hasten.errors import HastenError
from hasten.tasks.hls.bugs import DIRECTIVE
from hasten.tasks.hls.parsing import parse
from hasten.tasks.hls.rules import check
from hasten.tasks.hls.varied import varied

SOME = varied(2, seed=7)


def test_every_class_in_many_kernels() -> None:
    assert {c.bug for c in SOME} == {"", *DIRECTIVE}
    assert len({c.name for c in SOME}) >= 14
    assert sum(not c.bug for c in SOME) == 2 * len({c.name for c in SOME})
    assert len({c.source for c in SOME}) > 0.9 * len(SOME)
    assert varied(1, seed=7) == SOME[: len(varied(1, seed=7))]
    assert varied(1, seed=8)[0].source != SOME[0].source


def test_each_style_is_read() -> None:
    text = "".join(c.source for c in SOME)
    for sign in (
        "#pragma hls", "#pragma HLS", "_Pragma(", "template <typename T>", "namespace", 'extern "C"', "while (",
        "#define", "constexpr", "enum {", "void\n", "hls::stream<", "ap_int<16>", "{\n", "\\\n",
    ):  # fmt: skip
        assert sign in text, sign
    for case in SOME:
        found = parse(case.source)
        assert found.errors == [], case.source
        assert found.function(case.name) is not None


def test_rules_find_what_was_put_in_and_nothing_in_clean_ones() -> None:
    found: Counter[str] = Counter()
    for case in SOME:
        bugs = check(case.source)
        if case.bug:
            found[case.bug] += case.bug in bugs
        else:
            assert bugs == [], case.source
    made = Counter(c.bug for c in SOME if c.bug)
    for bug in DIRECTIVE:
        assert found[bug] >= 0.9 * made[bug], (bug, found[bug], made[bug])


def test_no_rounds() -> None:
    with pytest.raises(HastenError, match="at least 1"):
        varied(0)
