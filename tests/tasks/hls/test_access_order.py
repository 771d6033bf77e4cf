"""Loops are followed on whole numbers: which elements are touched, in which order, and which at the same time."""

from __future__ import annotations

import pytest

from hasten.tasks.hls.access_order import Followed, follow, together
from hasten.tasks.hls.parsing import parse


def followed(source: str, *, taken: bool = True) -> Followed:
    parsed = parse(source)
    return follow(parsed, parsed.functions[-1], taken=taken)


def order(source: str, array: str, *, write: bool | None = None, taken: bool = True) -> list[tuple[int | None, ...]]:
    touches = followed(source, taken=taken).touches
    return [t.element for t in touches if t.array == array and write in (None, t.write)]


def test_loops_of_every_form_visit_the_same_elements() -> None:
    for loop in (
        "for (int i = 0; i < 4; i++) x = a[i];",
        "for (int i = 3; i >= 0; --i) x = a[3 - i];",
        "int i = 0; while (i < 4) x = a[i++];",
        "int i = 0; do { x = a[i]; i += 1; } while (i != 4);",
        "for (int i = 0, k = 0; i < 8; i += 2, k++) { if (i % 2) x = a[9]; else x = a[k]; }",
        "for (int i = 0; ; i++) { if (i == 4) break; x = a[i]; }",
        "for (int i = 0; i < 5; i++) { if (i == 2) continue; x = a[i < 2 ? i : i - 1]; }",
        "int k = 0; for (int i = 0; i < 2; i++) for (int j = 0; j < 2; j++) x = a[k++];",
        "int *p = a; for (int i = 0; i < 4; i++) x = *p++;",
        "int *p = &a[1]; for (int i = 0; i < 4; i++) x = *(p + i - 1);",
        "enum { E = 4 }; switch (n) { default: for (int i = 0; i < 4; ++i) x = a[i]; }",
    ):
        assert order(f"void f(int a[4], int n) {{ int x; {loop} }}", "a") == [(0,), (1,), (2,), (3,)], loop


def test_reads_and_writes() -> None:
    source = "void f(int a[4], int b[2][3]) { a[1] = b[1][2]; a[b[0][0]] += a[0]; a[2]++; (*a)--; }"
    assert order(source, "a", write=True) == [(1,), (None,), (2,), (0,)]
    assert order(source, "a", write=False) == [(0,), (None,), (2,), (0,)]
    assert order(source, "b") == [(1, 2), (0, 0)]


def test_fields_and_vectors() -> None:
    source = """struct point { int x; int trail[3]; };
void f(point p[4], point *q, int v[2]) { point s; p[1].x = p[2].x; s.trail[2] = q->x; v[0] = p[3].trail[1]; }"""
    touches = followed(source).touches
    assert [(t.array, t.element, t.write, t.part) for t in touches] == [
        ("p", (2,), False, True), ("p", (1,), True, True), ("q", (0,), False, True), ("s.trail", (2,), True, False),
        ("p", (3,), False, False), ("v", (0,), True, False),
    ]  # fmt: skip


def test_conditions_on_data_go_as_asked() -> None:
    source = "void f(int a[4], int c[1]) { if (c[0] > 1) a[1] = 0; else a[2] = 0; if (c[0] && 0) a[3] = 0; }"
    assert order(source, "a") == [(1,)]
    assert order(source, "a", taken=False) == [(2,)]


def test_functions_of_the_source_are_entered() -> None:
    source = """
void copy(int *from, int to[2], int n) { for (int i = 0; i < n; i++) to[i] = from[i]; }
int next(int i) { return i + 1; }
void f(int a[8], int b[3][2]) { int rest[2]; copy(a + 4, b[1], 2); copy(a, rest, 1); int k = next(2); a[k] = 0; }
"""
    assert order(source, "a") == [(4,), (5,), (0,), (3,)]
    assert order(source, "b") == [(1, 0), (1, 1)]
    assert followed(source).passed == set()
    assert followed("void f(int a[2]) { elsewhere(a); }").passed == {"a"}
    assert followed("void f(int n) { f(n); g(n); } void g(int n) { f(n); }").touches == []


def test_what_a_source_does_not_say_is_supposed() -> None:
    source = "template <int N> void f(int a[N][N], int n) { for (int i = 0; i < N; i++) a[i][n] = LIMIT; }"
    found = followed(source)
    assert set(found.supposed) == {"N", "n", "LIMIT"}
    assert len({t.element[1] for t in found.touches}) == 1
    assert len(found.touches) == found.supposed["N"]


def test_what_goes_on_for_long_is_cut_and_the_rest_is_seen() -> None:
    source = "void f(int a[4]) { int k = 0; while (1) k++; a[k] = 0; for (int i = 0; i < 2; i++) a[i] = 0; }"
    found = followed(source)
    assert found.cut == {1}
    assert [t.element for t in found.touches] == [(None,), (0,), (1,)]
    deep = "int f(int a) { return " + "-" * 190 + "a; }"
    assert followed(deep).cut == set()


def test_what_happens_at_the_same_time() -> None:
    source = """void f(int a[12], int b[4]) {
  for (int i = 0; i < 3; i++) {
    b[0] = i;
    for (int j = 0; j < 4; j++) a[4 * i + j] = 0;
  }
}"""
    parsed = parse(source)
    outer, inner = parsed.functions[0].loops
    touches = follow(parsed, parsed.functions[0]).touches

    def sizes(parallel: dict[object, int | None], array: str = "a") -> list[int]:
        groups = together(touches, parallel)  # type: ignore[arg-type]
        return [len(g) for group in groups if (g := [t for t in group if t.array == array])]

    assert sizes({}) == [1] * 12
    assert sizes({inner: 2}) == [2] * 6
    assert sizes({inner: None}) == [4, 4, 4]
    assert sizes({outer: 0}) == [4, 4, 4]
    assert sizes({outer: 0}, "b") == [1, 1, 1]
    assert sizes({outer: None, inner: None}) == [12]


@pytest.mark.parametrize(
    "body", ["for (;;) ;", "goto there;", "int a[3]; a[0][1] = 2;", "x.y.z = 1;", "auto g = [&](int i) { return i; };"]
)
def test_odd_code_is_followed_without_a_word(body: str) -> None:
    followed(f"void f(int n) {{ {body} }}")
