"""Cascades as text: there and back without loss, and what is wrong is said with its place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.workload import Access, Cascade, Einsum, Op, Role, Tensor, language_model, trace
from hasten.workload.attention import attention
from hasten.workload.notation import default_op, format_cascade, format_einsum, parse_cascade

NAMES = st.one_of(
    st.sampled_from(
        ["A", "input", "ranks", "along", "inf", "model.layers.0.w", "%3", 'a "b"', "c # d", "x]y", "", "é"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=4),
)
MAPS = ["mul", "add", "sub", "div", "identity", "sub-exp", "a b", "sum", "max", "-inf", "3.5"]
RANKS = st.sampled_from(["i", "j", "m0", "a b", "x-y", "1", "q,r", 'q"]'])


@st.composite
def accesses(draw: st.DrawFn, ranks: list[str], name: str, output: bool) -> Access:
    own = draw(st.lists(st.sampled_from(ranks), unique=True, max_size=3)) if ranks else []
    elements = draw(st.none() | st.integers(0, 10**12))
    if draw(st.booleans()):
        return Access(name, tuple(own), elements)
    index = [f"{draw(st.integers(1, 3))}*{format_rank(rank)}+{draw(st.integers(0, 3))}" for rank in own]
    outside = None if output else draw(st.none() | st.floats(allow_nan=False))
    index += ["2"] if not index or draw(st.booleans()) else []
    return Access.at(name, *index, elements=elements, outside=outside)


def format_rank(rank: str) -> str:
    return format_einsum(
        Einsum("", Op.COPY, ((rank, 1),), (), Access("T", (rank,)), "0")
    ).split("[")[1].split("] =")[0]  # fmt: skip


@st.composite
def cascades(draw: st.DrawFn) -> Cascade:
    """Whatever can be said: names, kinds, operators and roles need not make sense."""
    names = draw(st.lists(NAMES, unique=True, min_size=2, max_size=5))
    einsums = []
    shapes: dict[str, int] = {}
    for number in range(draw(st.integers(0, 4))):
        ranks = draw(st.lists(RANKS, unique=True, max_size=3))
        output, *inputs = (
            draw(accesses(ranks, draw(st.sampled_from(names)), n == 0)) for n in range(draw(st.integers(1, 4)))
        )
        for access in (output, *inputs):
            if access.index is not None:
                shapes.setdefault(access.tensor, len(access.index))
        reduce = draw(st.none() | st.sampled_from(["sum", "max", "log sum", "f"]))
        map = draw(
            st.sampled_from(["mul", "add", "sub", "div", "identity", "sub-exp", "a b", "sum", "max", "-inf", "3.5"])
        )
        einsums.append(
            Einsum(
                name=draw(st.sampled_from([f"e{number}", "odd name"])),
                op=draw(st.sampled_from([default_op(map, reduce, ()), *Op])),
                ranks=tuple((r, draw(st.integers(1, 9))) for r in ranks),
                inputs=tuple(inputs),
                output=output,
                map=map,
                reduce=reduce,
                iterative=tuple(draw(st.lists(st.sampled_from(ranks), unique=True, max_size=1)) if ranks else ()),
                module=draw(NAMES),
                kernel=draw(st.integers(-1, 99)),
                source=draw(NAMES),
            )
        )
    roles, formats = st.sampled_from(list(Role)), st.sampled_from(["fp32", "int4"])
    tensors = {n: Tensor(n, (999,) * shapes.get(n, 3), draw(formats), draw(roles)) for n in names}
    try:
        return Cascade(tuple(einsums), tensors, tuple(draw(st.lists(NAMES, max_size=2))))
    except HastenError:  # the same tensor by indices of several lengths
        return Cascade((), tensors)


@settings(max_examples=150, deadline=None)
@given(cascades())
def test_any_cascade_comes_back_from_its_text(cascade: Cascade) -> None:
    text = format_cascade(cascade)
    assert parse_cascade(text) == cascade, text
    assert format_cascade(parse_cascade(text)) == text


@pytest.mark.parametrize("kind", ["three-pass", "two-pass", "local-max", "one-pass"])
def test_attention_comes_back(kind: str) -> None:
    cascade = attention(kind, p=4, m=24, e=8, f=3, m0=7, dtype="bf16")
    assert parse_cascade(format_cascade(cascade)) == cascade


def test_traced_networks_come_back() -> None:
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    image = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.MaxPool2d(2)).eval()
    works = language_model(config, prompt=7, new_tokens=4), trace(image, torch.zeros(1, 3, 16, 16))
    for phase in (p for work in works for p in work.phases):
        assert parse_cascade(format_cascade(phase.cascade)) == phase.cascade


def test_the_papers_running_values_are_each_an_einsum_of_their_own() -> None:
    text = format_cascade(attention("one-pass", p=2, m=8, e=4, f=4, m0=2))
    for line in (
        "RM[p, 0] = -inf",
        "RM[p, m1+1] = max(RM[p, m1], LM[p, m1]) along m1",
        "PRM[p, m1] = sub-exp(RM[p, m1], RM[p, m1+1])",
        "SPD[p, m1] = times(PRM[p, m1], RD[p, m1])",
        "RD[p, m1+1] = SPD[p, m1] + SLD[p, m1] along m1",
        "SPNV[p, m1, f] = times(PRM[p, m1], RNV[p, m1, f])",
        "RNV[p, m1+1, f] = SPNV[p, m1, f] + SLNV[p, m1, f] along m1",
        "AV[p, f] = RNV[p, 4, f] / RD[p, 4]",
    ):
        assert line in text.splitlines()


def test_what_is_written_by_hand_is_completed() -> None:
    cascade = parse_cascade("""
        ranks i=8, k=3              # sizes
        input A[i+k-1] fp16         # as long as its windows reach
        input F[k] fp16
        output D
        B[i] = sum(k) A[i+k] * F[k]
        D[i] = max(B[i], B[i-1 | 0])
        ranks i=4
        E[i] = exp(D[2*i])
    """)
    assert {n: (t.shape, t.dtype, t.role) for n, t in cascade.tensors.items()} == {
        "A": ((10,), "fp16", Role.INPUT),
        "F": ((3,), "fp16", Role.INPUT),
        "B": ((8,), "fp16", Role.INTERMEDIATE),
        "D": ((8,), "fp16", Role.OUTPUT),
        "E": ((4,), "fp16", Role.INTERMEDIATE),
    }
    assert [e.op for e in cascade] == [Op.MATMUL, Op.ELEMENTWISE, Op.ELEMENTWISE]
    assert cascade.einsums[0].sizes == {"i": 8, "k": 3}
    assert cascade.einsums[1].inputs[1] == Access.at("B", "i-1", outside=0.0)
    assert format_einsum(cascade.einsums[0], "e0") == "B[i] = sum(k) A[i+k] * F[k]"
    renamed = replace(cascade.einsums[2], name="last", kernel=3, module="layers.0")
    assert format_einsum(renamed) == 'E[i] = exp(D[2*i]) {kernel 3, name last, module "layers.0"}'


START = "ranks i=4, k=2\ninput A[6] fp32\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("B[i] = A[i", "line 3, column 9: the bracket is not closed"),
        ("B[i] = A[i*2]", "line 3, column 11: 'i.2' is no index: write a sum of ranks"),
        ("B[i] = A[i+q]", "line 3, column 10: rank q has no size: write ranks q=... above"),
        ("B[i] = A[i+9]", r"line 3, column 8: A\[i\+9\] runs from 9 to 12 in a dimension of 6: make it larger, or say"),
        ("B[i] = A[i, 1]", r"line 3, column 8: A\[i, 1\] has 2 dimensions where A has 1"),
        ("B[i, k] = A[i, k]", "line 3, column 11: 8 elements are named where A has 6"),
        ("B[i+k] = A[i] * A[k]", r"line 3, column 1: B\[i\+k\] writes elements twice"),
        ("B[i] = A[i-1 | x]", "line 3, column 15: 'x' is no number: write what is read outside"),
        ("B[i-1 | 0] = A[i]", "line 3, column 1: nothing is written outside of a tensor"),
        ("B[i] = C[i]", "line 3, column 8: nobody writes C: declare it as an input, or write it"),
        ("B[i] = 0", "line 3, column 1: no number format is known for B"),
        ("B[i] = A[i+k]", r"line 3, column 8: B lacks k: say how to fold, as in sum\(k\)"),
        ("B[i] = sum(i) A[i+k]", r"line 3, column 8: sum folds \(i\) where B lacks \(k\): see to k"),
        ("B[i] = A[i] * A[i] + A[i]", "line 3, column 20: two kinds of operator: write an Einsum for each"),
        ("B[i] = A[i] - A[i] - A[i]", "line 3, column 20: a second '-'"),
        ("B[i] = max(A[i]", r"line 3, column 16: found the end of the line where '\)' is needed"),
        ("B[i] = A[i] along q", "line 3, column 13: rank q has no size"),
        ("B[i] = A[i] {op magic}", "line 3, column 14: there is no op 'magic': use one of matmul"),
        ("B[i] = A[i] {colour 3}", "line 3, column 14: there is no property 'colour'"),
        ("B[i] = A[i] {kernel x}", "line 3, column 21: found 'x}' where a number is needed"),
        ("B[i] = A[i] {over k}", "line 3, column 13: rank i is not among those that it is over"),
        ("B[i] = A[i] A[i]", r"line 3, column 13: found 'A\[i\]' after the end of the statement"),
        ("B[i] A[i]", r"line 3, column 6: found 'A\[i\]' where '=' is needed"),
        ("input A[6] fp32", "line 3, column 7: A is declared twice"),
        ("input Q[6] fp33", "line 3, column 12: there is no number format 'fp33'"),
        ("input Q", "line 3, column 8: Q has no shape"),
        ("output Q", "line 3, column 8: nobody writes Q"),
        ("inputs Q[6] fp32", "line 3, column 1: 'inputs' begins no statement"),
        ("ranks j", "line 3, column 8: found the end of the line where '=' is needed: ranks are given as"),
        ("ranks j=-1", "line 3, column 9: found '-1' where a size is needed"),
        ("ranks j=99999999999999999999", "where a size is needed"),
        ('B[i] = "\\q"(A[i])', "line 3, column 8: .* is no text in quotes"),
        ("= A[i]", r"line 3, column 1: found '= A\[i\]' where a tensor is needed"),
        ("B[i] =", "line 3, column 7: found the end of the line where a tensor is needed"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(HastenError, match=message) as error:
        parse_cascade(START + text)
    assert "\n" not in str(error.value)


WORDS = ["sum(", "ranks ", "input ", " fp32", "\n", "A[i]", "B[i] = ", " along i", "{over "]
PIECES = [*'AB[]()=+-*/ik,|:{}"\\#01 ', *WORDS]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_text_ends_in_anything_but_a_cascade_or_an_error(text: str) -> None:
    try:
        cascade = parse_cascade(START + text)
    except HastenError as error:
        found = str(error)
    else:
        found = "line "
        assert parse_cascade(format_cascade(cascade)) == cascade
    assert found.startswith("line ")
