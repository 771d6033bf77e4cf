"""C++ for synthesis is read whatever its layout; what is none of it ends in one line."""

from __future__ import annotations

import contextlib
import random
import sys

import pytest

from hasten.errors import HastenError, MissingExtraError
from hasten.tasks.hls import parsing
from hasten.tasks.hls.designs import designs
from hasten.tasks.hls.parsing import parse
from hasten.tasks.hls.syntax import Binary, Branch, Cases, Declare, Jump, Loop, Name, Variable, walk

FOREIGN = """
#include "ap_int.h"
#define ROWS 16
#define COLS (ROWS / 2)
typedef ap_uint<8> pixel_t;
using line_t = short;
typedef int row_t[COLS];
enum { TAPS = 3 };
namespace filter {
static const int LIMIT = TAPS * 2;
struct state { int sums[ROWS]; row_t last; };
template <int WIDTH, typename T>
class Core {
 public:
  void
  run(
    pixel_t const image[ROWS][COLS],
    hls::stream<T> &out,   // results
    row_t rows,
    volatile int *count,
    int shift = 2
  )
  {
    #pragma HLS interface m_axi port = image offset=slave
#pragma HLS INTERFACE mode=s_axilite port=shift
    int r, c = 0;
  row_loop:
    for (r = 0; r <= ROWS - 1; r += 2)
      #pragma HLS unroll factor = TAPS
      for (c = COLS - 1; c >= 0; --c) {
#pragma HLS Pipeline ii=1
        out.write(T(image[r][c] >> shift));
        if (c == WIDTH) break;
        else if (c > LIMIT) *count += 1;
        else { (*count)++; }
      }
    switch (shift) { case 1: rows[0] = 1; break; default: rows[1] = 2; }
    do { r--; } while (r > 0);
    while (1) { return; }
  }
};
}
extern "C" int top(float x[8]) { for (int i = 8; i != 0; i--) x[i - 1] = i; return 0; }
"""


def test_a_source_in_a_layout_of_its_own() -> None:
    found = parse(FOREIGN)
    assert found.errors == []
    assert [f.name for f in found.functions] == ["run", "top"]
    run = found.functions[0]
    assert run.template == ("WIDTH", "T")
    assert [(p.name, p.type, p.pointer, p.stream) for p in run.parameters] == [
        ("image", "ap_uint<8>", 0, False),
        ("out", "hls::stream<T>", 0, True),
        ("rows", "int", 0, False),
        ("count", "int", 1, False),
        ("shift", "int", 0, False),
    ]
    assert run.parameters[0].shape(run.constants) == (16, 8)
    assert run.parameters[2].shape(run.constants) == (8,)
    assert run.constants["TAPS"] == 3
    assert run.constants["LIMIT"] == 6
    assert [(p.kind, p.line) for p in run.pragmas] == [("interface", 24), ("interface", 25)]
    outer, inner, last, endless = run.loops
    assert (outer.label, outer.kind, outer.values(run.constants)) == ("row_loop", "for", range(0, 16, 2))
    assert [p.kind for p in outer.pragmas] == ["unroll"]
    assert (inner.values(run.constants), inner.outer, inner.line) == (range(7, -1, -1), (outer,), 30)
    assert [p.options for p in inner.pragmas] == [{"ii": "1"}]
    assert (last.kind, endless.kind, endless.outer) == ("do", "while", ())
    branch = next(s for s in walk(run.body) if isinstance(s, Branch))
    assert branch.condition == Binary("==", Name("c"), Name("WIDTH"))
    assert isinstance(branch.no[0], Branch)
    cases = next(s for s in walk(run.body) if isinstance(s, Cases))
    assert [len(part) for part in cases.parts] == [2, 1]
    assert found.structs["state"]["sums"].shape({}) == (16,)
    top = found.function("top")
    assert top is not None
    assert top.loops[0].values({}) == range(8, 0, -1)
    assert found.function("none") is None


def test_declarations() -> None:
    body = "int a[2][3] = {{1}}, b = 3, *c, d{4}; static const int e = 2; ap_int<4> f(7); int g[e];"
    body += ' hls::stream<int> s("s");'
    function = parse(f"void f() {{ {body} }}").functions[0]
    made = {s.variable.name: s.variable for s in function.body if isinstance(s, Declare)}
    assert made["a"].shape({}) == (2, 3)
    assert made["a"].initialized
    assert [made[n].value is None for n in "abcdef"] == [False, False, True, False, False, False]
    assert (made["c"].pointer, made["e"].constant, made["e"].static, made["s"].stream) == (1, True, True, True)
    assert made["g"].shape(function.constants) == (2,)
    assert function.variables["b"].line == 1


def test_names_within_a_function_are_not_those_of_the_file() -> None:
    loop = "{ for (int i = 0; i < n; i++) ; }"
    f, g = parse(f"const int n = 4;\nvoid f(int n) {loop}\nvoid g() {loop}").functions
    assert f.loops[0].values(f.constants) is None
    assert g.loops[0].values(g.constants) == range(4)


def test_a_part_that_is_no_code_spoils_no_other() -> None:
    broken = "void f() { int ] = 3; for (int i = 0; i < 3; i++) g(i); }\n"
    found = parse(broken + "some stray words;\nint h() { return 1; }\n")
    assert [f.name for f in found.functions] == ["f", "h"]
    assert found.errors
    assert isinstance(found.functions[1].body[0], Jump)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "no function with a body"),
        ("// nothing", "no function with a body"),
        ("int f();", "no function with a body"),
        ("\x00\xff\ufffd \ud800", "no function with a body"),
        ("]]]] what is (this", "line 1 is no C"),
        ("void f() " + "{" * 5000, "no function with a body|nested over"),
        ("void f() {" + "if (a) {" * 300 + "}" * 300 + "}", "line 1: statements are nested over 100 deep"),
        ("void f() {" + "for(;;)" * 300 + ";}", "statements are nested over 100 deep"),
        ("x" * 1_000_001, "at most 1,000,000"),
    ],
)  # fmt: skip
def test_what_is_no_circuit_is_refused_in_one_line(source: str, said: str) -> None:
    with pytest.raises(HastenError, match=said) as error:
        parse(source)
    assert "\n" not in str(error.value)


def test_long_and_deep_expressions_are_read() -> None:
    source = "int f(int a) { return " + "(" * 3000 + "a" + ")" * 3000 + " + a" * 3000 + "; }"
    assert parse(source).functions[0].name == "f"
    for begin, end in (("h(", ")"), ("a[", "]"), ("-", ""), ("a ? 1 : ", "")):
        assert parse("int f(int a) { return " + begin * 3000 + "a" + end * 3000 + "; }").functions[0].body
    chain = " else ".join(f"if (a == {i}) a = {i + 1};" for i in range(400))
    assert len(parse(f"void f(int a) {{ {chain} }}").functions[0].body) == 1


def test_garbage_never_crashes() -> None:
    chosen = random.Random(0)
    texts = [d.source for d in designs()] + [FOREIGN]
    for _ in range(150):
        text = list(chosen.choice(texts))
        for _ in range(chosen.choice([1, 5, 40])):
            at, to = sorted(chosen.sample(range(len(text)), 2))
            match chosen.randrange(4):
                case 0:
                    del text[at : min(to, at + 30)]
                case 1:
                    text[at:at] = chosen.choice(
                        ["{", "}", "(", "#if", "\n#define int ", "/*", '"', "<", "é", "\\\n", "\0"]
                    )
                case 2:
                    text[at], text[to] = text[to], text[at]
                case _:
                    text += text[at : min(to, at + 50)]
            text = text or [" ", " "]
        with contextlib.suppress(HastenError):
            parse("".join(text))


def test_a_missing_grammar_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_cpp", None)
    with pytest.raises(MissingExtraError, match=r"tree-sitter-cpp is not installed: run pip install 'hasten\[hls\]'"):
        parsing.parse("void f() {}")


def test_loops_are_compared_by_themselves() -> None:
    one, two = parse("void f() { while (1) ; while (1) ; }").functions[0].loops
    assert one != two
    assert len({one, two, one}) == 2
    assert isinstance(one, Loop)
    assert not Variable("stream_width").stream
