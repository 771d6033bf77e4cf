"""Each rule on code in a layout of its own: what breaks it, and what looks like it and does not."""

from __future__ import annotations

import contextlib
import random

import pytest

from hasten.errors import HastenError
from hasten.tasks.hls.rules import check, findings
from hasten.tasks.hls.varied import varied


def interface(mode: str, signature: str, body: str, more: str = "") -> list[str]:
    return check(f"void top(\n  {signature}\n)\n{{\n#pragma HLS interface {mode}\n{more}\n{body}\n}}\n")


COPY = "for (int i = 0; i < 8; i++)\n    b[i] = a[i] + n;"


@pytest.mark.parametrize("mode", ["ap_memory", "bram", "m_axi", "ap_fifo", "axis"])
@pytest.mark.parametrize("kind", ["int", "ap_uint<4>", "const unsigned short", "data_t", "float"])
def test_one_value_on_an_arrays_interface(mode: str, kind: str) -> None:
    assert interface(f"{mode} port=n", f"int a[8], int b[8], {kind} n", COPY) == ["SMA"]
    assert interface(f"MODE = {mode} port = n", f"int a[8], int b[8], {kind} n", COPY) == ["SMA"]


@pytest.mark.parametrize("mode", ["ap_none", "ap_vld", "ap_ack", "ap_ovld", "s_axilite"])
@pytest.mark.parametrize("array", ["int a[8]", "ap_int<7> a[8]", "const T *a", "vec_t a"])
def test_an_array_on_one_values_interface(mode: str, array: str) -> None:
    source = (
        f"typedef int vec_t[8];\nvoid top({array}, int b[8], int n) {{\n#pragma HLS INTERFACE {mode} port=a\n{COPY} }}"
    )
    assert check(source) == ["AMS"]


def test_what_is_no_wrong_interface() -> None:
    signature = "int a[8], int b[8], int n"
    for mode in ("ap_memory", "bram", "m_axi", "axis", "ap_fifo", "ap_stable"):
        assert interface(f"{mode} port=a", signature, COPY) == []
    for mode in ("s_axilite", "ap_none", "ap_vld"):
        assert interface(f"{mode} port=n", signature, COPY) == []
    # A memory bus whose address is in a register, and registers that are ports.
    both = "#pragma HLS INTERFACE s_axilite port=a bundle=control"
    assert interface("m_axi port=a offset=slave", signature, COPY, both) == []
    assert interface("ap_none port=a", signature, COPY, "#pragma HLS array_partition variable=a complete") == []
    # What has an interface that fits no channel; local variables.
    channel = "void top(hls::stream<int> &n) {{\n#pragma HLS interface {} port=n\n n.read(); int k; int t[4];\n{}\n}}"
    for mode, bugs in {"ap_none": ["AMS"], "bram": ["IDAP"], "axis": [], "register ap_fifo": []}.items():
        assert check(channel.format(mode, "")) == bugs
    assert check(channel.format("axis", "#pragma HLS interface bram port=k")) == ["SMA"]
    assert check(channel.format("axis", "#pragma HLS interface ap_vld port=t")) == ["AMS"]
    # Channels, structures, bursts under control of their own, a single value behind a pointer.
    for kind in ("hls::stream<int> &n", "point n", "hls::burst_maxi<int> n", "channel_t &n", "int *n"):
        body = "struct point {{ int x; }};\nvoid top({}) {{\n#pragma HLS interface axis port=n\n  {}; }}"
        use = "*n = 1" if "*" in kind else "n.read()"
        assert check(body.format(kind, use)) == [], kind
    assert interface("axis port=return", signature, COPY) == []
    assert interface("axis port=nobody", signature, COPY) == []


def order(mode: str, loops: str, signature: str = "int a[4][6], int b[24], int n, int where[4]") -> list[str]:
    return interface(f"{mode} port=a", signature, loops)


ROWS = "for (int i = 0; i < 4; i++) for (int j = 0; j < 6; j++) "


@pytest.mark.parametrize(
    ("loops", "stream", "bus"),
    [
        (ROWS + "b[0] += a[i][j];", [], []),
        (ROWS + "a[i][j] = 1;", [], []),
        ("int k = 0; " + ROWS + "if (b[k] > 0) a[i][j] = b[k++]; else a[i][j] = 0;", [], []),
        ("for (int j = 0; j < 6; j++) for (int i = 0; i < 4; i++) b[0] += a[i][j];", ["IDAP"], ["RAMB"]),
        (ROWS + "b[0] += a[where[i]][j];", ["IDAP"], ["RAMB"]),
        (ROWS + "b[0] += a[i][5 - j];", ["IDAP"], ["RAMB"]),
        (ROWS + "b[0] += a[i][j] * a[i][j];", ["IDAP"], []),
        (ROWS + "a[i][j] += 1;", ["IDAP"], []),
        ("for (int i = 0; i < 3; i++) for (int j = 0; j < 6; j++) b[0] += a[i + 1][j];", ["IDAP"], []),
        ("for (int i = 0; i < 4; i++) for (int j = 0; j < 3; j++) b[0] += a[i][j];", ["IDAP"], []),
        ("for (int r = 0; r < 2; r++) " + ROWS + "b[0] += a[i][j];", ["IDAP"], []),
        (ROWS + "b[0] += a[i][j];" + ROWS + "b[0] += a[i][j];", ["IDAP"], []),
        ("elsewhere(a);", [], []),
    ],
)  # fmt: skip
def test_streams_and_buses_are_read_in_order(loops: str, stream: list[str], bus: list[str]) -> None:
    assert order("axis", loops) == stream
    assert order("ap_fifo", loops) == stream
    assert order("m_axi", loops) == bus


def test_the_published_example_of_a_random_bus() -> None:
    body = "for (int i = 0; i < 16; i++) for (int j = 0; j < 3; j++) b[i] += a[i + j];"
    assert interface("m_axi port=a", "int a[32], int b[16]", body) == ["RAMB"]
    assert interface("m_axi port=a", "int a[32], int b[16]", body.replace("i + j", "i * 3 + j")) == []
    kept = "#pragma HLS array_stencil variable=a"
    assert interface("m_axi port=a", "int a[32], int b[16]", body, kept) == []
    assert interface("m_axi port=a", "int a[32], int b[16]", "for (int i = 0; i < 16; i++) b[i] = a[i];") == []


def test_order_through_functions_pointers_and_sizes_that_nobody_says() -> None:
    callee = "void get(int *from, int to[8]) { for (int i = 0; i < 8; i++) to[i] = *from++; }\n"
    top = "template <int N>\nvoid top(int a[8], T b[N][N]) {{ int c[8];\n#pragma HLS interface axis port=a\n"
    top += "#pragma HLS interface ap_fifo port=b\n get(a, c);\n"
    top += "for (int r = 0; r < N; r++) for (int s = 0; s < N; s++) {} = 1; }}"
    assert check(callee + top.format("b[r][s]")) == []
    assert check(callee + top.format("b[s][r]")) == ["IDAP"]
    unknown = "for (int i = 0; i < 4; i++) for (int j = 0; j < 9; j++) s.write(a[i][j]);"
    assert interface("m_axi port=a", "int a[H][W], hls::stream<int> &s", unknown) == []
    random = unknown.replace("a[i]", "a[s.read()]")
    assert interface("m_axi port=a", "int a[H][W], hls::stream<int> &s", random) == ["RAMB"]
    moved = "do { int n = s.read(); for (int i = 0; i < n; i++) a[i] = 1; a += n; } while (!s.empty());"
    assert interface("m_axi port=a", "int *a, hls::stream<int> &s", moved) == []


def partition(text: str, body: str, declared: str = "int t[12]") -> list[str]:
    return check(
        f"void top(int x[12], int n) {{\n  {declared};\n  #pragma HLS array_partition variable=t {text}\n{body}\n}}"
    )


EACH = "for (int i = 0; i < 12; i++) {\n#pragma HLS unroll factor=4\n t[i] = x[i]; }"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cyclic factor=4 dim=1", []),
        ("type=cyclic factor = 4", []),
        ("factor=2*2 type=cyclic dim=0", []),
        ("complete", []),
        ("dim=1", []),
        ("block factor=3", ["APT"]),
        ("cyclic dim=1", ["APT"]),
        ("block", ["APT"]),
        ("complete factor=4", ["APT"]),
        ("type=cyclical factor=4", ["APT"]),
        ("factor=4 dim=1", []),
        ("factor=7 dim=1", ["FND"]),
        ("cyclic factor=7 dim=0", ["FND"]),
        ("cyclic factor=5", ["FND"]),
        ("factor=24 block", ["FND"]),
        ("complete dim=2", ["DID"]),
        ("cyclic factor=4 dim=3", ["DID"]),
        ("complete dim=-1", ["DID"]),
    ],
)  # fmt: skip
def test_partitions(text: str, expected: list[str]) -> None:
    assert partition(text, EACH) == expected


def test_partitions_along_the_dimension_that_is_read_at_once() -> None:
    body = ROWS.replace(") for", ") {\n#pragma HLS pipeline\n for").replace("i < 4", "i < 6") + "n += t[i][j]; }"
    square = "int t[6][6]"
    assert partition("complete dim=2", body, square) == []
    assert partition("complete dim=1", body, square) == ["DID"]
    both = "complete dim=1\n#pragma HLS array_partition variable=t complete dim=2"
    assert partition(both, body, square) == []
    # Too few dimensions are no wrong one.
    more = "for (int i = 0; i < 6; i++) {\n#pragma HLS unroll\n for (int j = 0; j < 6; j++) {\n#pragma HLS unroll\n"
    assert partition("complete dim=1", more + "n += t[i][j]; } }", square) == []
    # Two at once are what a memory's two ports give.
    two = "for (int i = 0; i < 6; i++) {\n#pragma HLS pipeline\n n += t[i][0] + t[i][1]; }"
    assert partition("complete dim=1", two, square) == []


def test_partitions_of_fields_and_of_what_nobody_knows() -> None:
    source = "struct S {{ int v[6]; }};\nvoid f(S s, T q, int *p) {{\n#pragma HLS array_partition variable={}\n}}"
    assert check(source.format("s.v complete dim=2")) == ["DID"]
    assert check(source.format("s.v cyclic factor=4")) == ["FND"]
    assert check(source.format("p cyclic factor=4")) == []
    for name in ("s.other", "q", "nobody", "q.v"):
        assert check(source.format(f"{name} complete dim=4")) == []


def nest(outer: str, inner: str, function: str = "", trip: str = "12") -> list[str]:
    return check(f"""
#define TRIP {trip}
void f(int a[8][12], int n) {{
  {function}
L0: for (int i = 0; i < 8; i++)
    {outer}
    for (int j = 0; j < TRIP; ++j) {{
      {inner}
      a[i][j] = n;
    }}
}}""")


def pragma(text: str) -> str:
    return f"#pragma HLS {text}"


def test_pipelines_in_one_another() -> None:
    assert nest(pragma("pipeline"), pragma("PIPELINE II=1")) == ["MLP"]
    assert nest("", pragma("pipeline II=2"), pragma("pipeline")) == ["MLP"]
    assert nest(pragma("pipeline"), "") == []
    assert nest("", pragma("pipeline")) == []
    assert nest(pragma("pipeline off"), pragma("pipeline")) == []
    assert nest("// " + pragma("pipeline"), pragma("pipeline")) == []


def test_loops_unrolled_around_others() -> None:
    whole = pragma("unroll")
    assert nest(whole, "") == ["ILNU"]
    assert nest(pragma("unroll factor=4"), pragma("unroll factor=6")) == ["ILNU"]
    assert nest(pragma("unroll factor = 4"), pragma("pipeline")) == ["ILNU"]
    assert nest(whole, whole) == []
    assert nest(pragma("UNROLL factor=2"), pragma("UNROLL factor=TRIP")) == []
    assert nest(pragma("unroll factor=1"), "") == []
    assert nest(pragma("unroll off=true"), "") == []
    # Everything in a pipeline is unrolled.
    assert nest(whole, "", pragma("pipeline")) == []
    assert nest("", whole, "") == []
    assert nest(pragma("unroll factor=3"), whole) == ["FND"]
    assert nest("", pragma("unroll factor=5")) == ["FND"]
    helper = (
        "int sum(int a[4][4]) {\nfor (int i = 0; i < 4; i++) {\n#pragma HLS unroll\nfor (int j = 0; j < 4; j++) ; } }\n"
    )
    caller = "void f(int a[4][4], int n) {{ for (int i = 0; i < 9; i++) {{\n{}\nif (n) n += sum(a); }} }}"
    assert check(helper + caller.format(whole.replace("unroll", "pipeline"))) == []
    assert check(helper + caller.format("")) == ["ILNU"]
    # How often it goes round, or is unrolled, another file says.
    assert nest(whole, pragma("unroll factor=TRIP"), trip="CONFIG_T::n_in") == []
    assert nest(whole, "", trip="CONFIG_T::n_in") == ["ILNU"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("load(x, y); store(y, z);", []),
        ("hls::fft<config>(x, y);", []),
        ("write(x, y); read(y, z);", []),
        ("obj.process(x); obj.mix(y);", []),
        ("hls_thread_local hls::task t(work, x, y);", []),
        ("for (int i = 0; i < 4; i++) y[i] = x[i]; for (int i = 0; i < 4; i++) z[i] = y[i];", []),
        ("if (n) { load(x); } else { store(y); }", []),
        ("for (int i = 0; i < 4; i++) y[i] = x[i];", ["DFP"]),
        ("z[0] = x[0] + clip(x[1]);", ["DFP"]),
        ("s.write(x[0]);", ["DFP"]),
        ("assert(n);", ["DFP"]),
    ],
)  # fmt: skip
def test_dataflow_stands_where_tasks_are(body: str, expected: list[str]) -> None:
    assert check(f"void f(int x[4], int y[4], int z[4], int n) {{\n#pragma HLS dataflow\n{body} }}") == expected
    assert check(f"void f(int x[4], int n) {{ while (n) {{\n#pragma HLS DATAFLOW\n{body} }} }}") == expected


def test_directives_right_before_a_function_are_its_own() -> None:
    before = "#pragma HLS interface bram port=n\n{}template <int N>\nvoid f(int n) {{ }}"
    assert check(before.format("")) == ["SMA"]
    assert check(before.format("int other;\n")) == []


def test_findings_say_where_and_why() -> None:
    found = findings("void f(\n  int n) {\n#pragma HLS interface m_axi port=n\n#pragma HLS dataflow\n}")
    assert [(f.line, f.bug, f.reason) for f in found] == [
        (3, "SMA", "n is one value, m_axi is for arrays"),
        (4, "DFP", "no loops or calls are here, nothing runs beside another"),
    ]


def test_what_is_no_source_is_refused() -> None:
    for text in ("", "hello", "int f();"):
        with pytest.raises(HastenError, match="no function"):
            check(text)


def test_sources_cut_anywhere_are_checked_or_refused() -> None:
    chosen = random.Random(3)
    texts = [case.source for case in varied(1, seed=3)]
    for _ in range(120):
        text = chosen.choice(texts)
        at, to = sorted(chosen.sample(range(len(text)), 2))
        for cut in (
            text[:at],
            text[:at] + text[min(to, at + 60) :],
            text[:to] + chosen.choice("(){}[];*#") + text[to:],
        ):
            with contextlib.suppress(HastenError):
                check(cut)


@pytest.mark.parametrize(
    "body",
    [
        "a[" * 150 + "0" + "]" * 150 + " = 1;",
        "for (int i = 0; i < 99999999; i++) for (int j = 0; j < 99999999; j++) a[i + j] = 0;",
        "for (;;) top(a);",
        "a[1 << 1000] = a[-5] / 0 % 0;",
        "int a; a[0] = 0; a = *a++;",
        "".join(f"if (a[{i}]) " for i in range(90)) + "a[0] = 0;",
        "int b[0]; int c[0 - 3];\n#pragma HLS array_partition variable=b,c cyclic factor=2\n b[0] = c[0] = b[1];",
        "int b[8];\n#pragma HLS array_partition variable=b block factor=-200\n b[a[0]] = b[1];",
        "int b[4][4];\n#pragma HLS array_partition variable=b cyclic factor=-200 dim=2\n"
        "#pragma HLS array_partition variable=b complete\n#pragma HLS unroll factor=((\n"
        "b[0][1] = b[1][0] + b[1][1] + b[1][2];",
        "#pragma HLS array_partition variable=a dim=(1+\n#pragma HLS unroll factor=<\n#pragma HLS interface\n",
        "int *p = &a[0]; while (p != a + 5) *p++ = *(p - 1);",
    ],
)  # fmt: skip
def test_hard_code_ends_soon(body: str) -> None:
    directives = "\n#pragma HLS interface axis port=a\n#pragma HLS array_partition variable=a cyclic factor=999999\n"
    check(f"void top(int a[64]) {{{directives}{body} }}")
