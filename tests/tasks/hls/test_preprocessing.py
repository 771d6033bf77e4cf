"""Comments, conditions, macros and pragmas are taken off a source; its lines stay where they were."""

from __future__ import annotations

import pytest

from hasten.errors import HastenError
from hasten.tasks.hls.preprocessing import preprocess, read_pragma


def test_comments_and_branches_that_are_not_taken_go() -> None:
    made = preprocess(
        "int a; // #pragma HLS PIPELINE\n/* #pragma HLS UNROLL\n */ int b;\n#if 0\nint c;\n#elif 1 + 1 == 2\nint d;\n"
        '#else\nint e;\n#endif\n#ifndef __SYNTHESIS__\nint f;\n#endif\nchar g[] = "// kept";\n'
    )
    assert made.pragmas == []
    assert [line.strip() for line in made.code.split("\n") if line.strip()] == [
        "int a;", "int b;", "int d;", 'char g[] = "// kept";',
    ]  # fmt: skip
    assert made.code.count("\n") == 15


def test_macros_are_expanded() -> None:
    made = preprocess(
        "#define N 4\n#define TWICE(x) ((x) * 2)\n#define NAME(a, b) a##_##b\n#define TEXT(x) #x\n#define ME ME + 1\n"
        'int NAME(in, N)[TWICE(N + 1)]; char t[] = TEXT(N); int m = ME; "N";\n#undef N\nint n = N; int f = TWICE;\n'
    )
    lines = [line for line in made.code.split("\n") if line.strip()]
    assert lines[0] == 'int in_4[((4 + 1) * 2)]; char t[] = "4"; int m = ME + 1; "N";'
    assert lines[1] == "int n = N; int f = TWICE;"


def test_pragmas_in_every_notation() -> None:
    made = preprocess(
        "#define F 2\n#pragma HLS UNROLL factor = F\n"
        "  # pragma hls array_partition variable=a, b \\\n   dim=1 cyclic factor=F*2\n"
        'x;\n#pragma once\n#pragma omp parallel\n_Pragma("HLS interface mode=m_axi port=p bundle=\\"g\\" depth=F") y;\n'
    )
    unroll, partition, interface = [pragma for _, pragma in made.pragmas]
    assert (unroll.kind, unroll.options, unroll.line) == ("unroll", {"factor": "2"}, 2)
    assert partition.kind == "array_partition"
    assert partition.names("variable") == ["a", "b"]
    assert (partition.options["factor"], partition.options["dim"], partition.flags) == ("2*2", "1", ("cyclic",))
    assert (interface.options, interface.line) == ({"mode": "m_axi", "port": "p", "bundle": "g", "depth": "2"}, 8)
    assert made.code.split("\n")[4] == "x;"
    assert "y;" in made.code
    assert "_Pragma" not in made.code
    again = read_pragma("HLS interface axis port=a port=b")
    assert again is not None
    assert (again.flags, again.names("port")) == (("axis",), ["a", "b"])
    assert read_pragma("HLS") is None
    assert read_pragma("GCC ivdep") is None


def test_what_grows_or_nests_without_end_is_refused() -> None:
    laughs = "\n".join(f"#define A{i} A{i + 1} A{i + 1} A{i + 1} A{i + 1}" for i in range(30))
    with pytest.raises(HastenError, match="macros grow"):
        preprocess(laughs + "\nA0\n")
    with pytest.raises(HastenError, match="nested over 64 deep"):
        preprocess("#if 1\n" * 100)
    with pytest.raises(HastenError, match="calls of macros are nested over 64 deep"):
        preprocess("#define f(x) x\n" + "f(" * 3000 + "1" + ")" * 3000)
    assert preprocess("#define f(x) x\n" + "f(" * 60 + "1" + ")" * 60).code.strip() == "1"
    with pytest.raises(HastenError, match="at most 1,000,000"):
        preprocess(" " * 1_000_001)


@pytest.mark.parametrize("condition", ["1 << 999999999999", "9 ** 99999999", "1 / 0", "(", "f(3)", "'a'", "1.5 > 1"])
def test_conditions_that_have_no_value_do_not_hold(condition: str) -> None:
    assert preprocess(f"#if {condition}\nint a;\n#endif\n").code.strip() == ""
