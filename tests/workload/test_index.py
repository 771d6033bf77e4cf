"""Affine indices: their text, and how many elements they name, against sets of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.workload.index import AffineIndex, distinct

RANKS = ("i", "j", "k")


@st.composite
def indices(draw: st.DrawFn) -> AffineIndex:
    ranks = draw(st.lists(st.sampled_from(RANKS), unique=True, max_size=3))
    factor = st.integers(-7, 7).filter(bool)
    return AffineIndex(tuple((rank, draw(factor)) for rank in ranks), draw(st.integers(-5, 5)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(indices(), min_size=1, max_size=3),
    st.fixed_dictionaries({rank: st.integers(0, 6) for rank in RANKS}),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.booleans(),
)
def test_elements_are_counted_as_a_set_has_them(
    index: list[AffineIndex], sizes: dict[str, int], shape: list[int], clip: bool
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
def test_an_index_comes_back_from_its_text(index: AffineIndex) -> None:
    assert AffineIndex.of(str(index)) == index


def test_texts_of_indices() -> None:
    assert AffineIndex.of(" 2*i + k-1 ") == AffineIndex((("i", 2), ("k", 1)), -1)
    assert AffineIndex.of("7 - i") == AffineIndex((("i", -1),), 7)
    assert AffineIndex.of("i-i+3") == AffineIndex((), 3)
    assert str(AffineIndex((("a b", 2),), 1)) == '2*"a b"+1'
    assert AffineIndex.of('2*"a b"+1').ranks == ("a b",)
    for wrong, at in (("", 0), ("i j", 2), ("i*2", 1), ("2*", 1), ("i+", 1), ("3.5", 1), ("i+*k", 1)):
        with pytest.raises(ValueError, match="no index") as error:
            AffineIndex.of(wrong)
        assert error.value.args[1] == at, wrong


def test_large_accesses_are_counted_by_formula_or_refused() -> None:
    big = {"i": 1 << 20, "j": 1 << 20, "k": 3}
    assert distinct([AffineIndex.of("i+k-1")], big) == (1 << 20) + 2
    assert distinct([AffineIndex.of("i+k-1")], big, [1 << 20]) == 1 << 20
    assert distinct([AffineIndex.of("4*i+k")], big) == 3 << 20
    assert distinct([AffineIndex.of("i"), AffineIndex.of("i")], big) == 1 << 20
    assert distinct([AffineIndex.of("i+j"), AffineIndex.of("j")], big) == 1 << 40
    with pytest.raises(HastenError, match="too many to count: give the access its number of elements"):
        distinct([AffineIndex.of("i+j"), AffineIndex.of("i+j")], big)
    with pytest.raises(HastenError, match="names a rank twice"):
        AffineIndex((("i", 1), ("i", 2)))
