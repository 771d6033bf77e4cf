"""Affine indices: their text, and how many elements they name, against sets of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.workload.index import Index, distinct

RANKS = ("i", "j", "k")


@st.composite
def indices(draw: st.DrawFn) -> Index:
    ranks = draw(st.lists(st.sampled_from(RANKS), unique=True, max_size=3))
    factor = st.integers(-7, 7).filter(bool)
    return Index(tuple((rank, draw(factor)) for rank in ranks), draw(st.integers(-5, 5)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(indices(), min_size=1, max_size=3),
    st.fixed_dictionaries({rank: st.integers(0, 6) for rank in RANKS}),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.booleans(),
)
def test_elements_are_counted_as_a_set_has_them(
    index: list[Index], sizes: dict[str, int], shape: list[int], clip: bool
) -> None:
    ranks = list(dict.fromkeys(r for i in index for r in i.ranks))
    found = set()
    for place in itertools.product(*(range(sizes[r]) for r in ranks)):
        point = dict(zip(ranks, place, strict=True))
        found.add(tuple(i.offset + sum(f * point[r] for r, f in i.terms) for i in index))
    if clip:
        found = {at for at in found if all(0 <= x < n for x, n in zip(at, shape, strict=False))}
    assert distinct(index, sizes, shape[: len(index)] if clip else None) == len(found)


@given(indices())
def test_an_index_comes_back_from_its_text(index: Index) -> None:
    assert Index.of(str(index)) == index


def test_texts_of_indices() -> None:
    assert Index.of(" 2*i + k-1 ") == Index((("i", 2), ("k", 1)), -1)
    assert Index.of("7 - i") == Index((("i", -1),), 7)
    assert Index.of("i-i+3") == Index((), 3)
    assert str(Index((("a b", 2),), 1)) == '2*"a b"+1'
    assert Index.of('2*"a b"+1').ranks == ("a b",)
    for wrong, at in (("", 0), ("i j", 2), ("i*2", 1), ("2*", 1), ("i+", 1), ("3.5", 1), ("i+*k", 1)):
        with pytest.raises(ValueError, match="no index") as error:
            Index.of(wrong)
        assert error.value.args[1] == at, wrong


def test_large_accesses_are_counted_by_formula_or_refused() -> None:
    big = {"i": 1 << 20, "j": 1 << 20, "k": 3}
    assert distinct([Index.of("i+k-1")], big) == (1 << 20) + 2
    assert distinct([Index.of("i+k-1")], big, [1 << 20]) == 1 << 20
    assert distinct([Index.of("4*i+k")], big) == 3 << 20
    assert distinct([Index.of("i"), Index.of("i")], big) == 1 << 20
    assert distinct([Index.of("i+j"), Index.of("j")], big) == 1 << 40
    with pytest.raises(HastenError, match="too many to count: give the access its number of elements"):
        distinct([Index.of("i+j"), Index.of("i+j")], big)
    with pytest.raises(HastenError, match="names a rank twice"):
        Index((("i", 1), ("i", 2)))
