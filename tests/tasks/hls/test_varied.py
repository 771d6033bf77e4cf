"""Circuits in many styles: all are read, the rules find their bugs and suspect no other."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

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


HEADERS = """
template <int N> using ap_int = long;
template <int N> using ap_uint = unsigned long;
namespace hls { template <typename T> struct stream { T read(); void write(const T &); }; }
using hls::stream;
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_circuits_are_cpp(tmp_path: Path) -> None:
    (tmp_path / "types.h").write_text("typedef short sample_t;\n")
    (tmp_path / "synthesis.h").write_text(HEADERS)
    sources = random.Random(0).sample([case.source for case in SOME], 24)
    for number, source in enumerate(sources):
        file = tmp_path / f"{number}.cpp"
        file.write_text(source)
        command = ["g++", "-fsyntax-only", "-w", "-std=c++17", "-include", str(tmp_path / "synthesis.h"), str(file)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr + source
