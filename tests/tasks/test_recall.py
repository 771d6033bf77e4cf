"""Generated recall tasks hold what they say."""

from __future__ import annotations

import itertools

import pytest
import torch

from hasten.tasks.recall import induction_heads, iterated_map, map_around_text, selective_copying


def test_selective_copying_hides_its_answers_in_order() -> None:
    ids, answers = selective_copying(50, noise=20, tokens=5, alphabet=7, generator=torch.Generator().manual_seed(0))
    assert ids.shape == (50, 25)
    assert torch.all(ids[:, 20:] == 8)
    for row, wanted in zip(ids[:, :20], answers):
        assert torch.equal(row[row != 7], wanted)
    again, _ = selective_copying(50, noise=20, tokens=5, alphabet=7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ids, again)
    with pytest.raises(ValueError, match="do not fit"):
        selective_copying(1, noise=2, tokens=3)


def test_induction_heads_have_one_mark_before_the_last() -> None:
    ids, answers = induction_heads(200, length=9, alphabet=5, generator=torch.Generator().manual_seed(0))
    assert torch.all((ids == 5).sum(1) == 2)
    assert torch.all(ids[:, -1] == 5)
    for row, wanted in zip(ids, answers):
        assert row[int((row == 5).nonzero()[0]) + 1] == wanted
        assert wanted < 5
    with pytest.raises(ValueError, match="no room"):
        induction_heads(1, length=2)


@pytest.mark.parametrize(("used", "filler"), [(None, 0), (None, 9), (3, 0), (4, 20)])
def test_a_map_is_followed_step_by_step(used: int | None, filler: int) -> None:
    symbols, longest, count = 6, 11, used or 6
    ids, written = iterated_map(
        40, symbols=symbols, longest=longest, used=used, filler=filler, generator=torch.Generator().manual_seed(0)
    )
    begin = 2 * count + filler
    assert ids.shape == (40, begin + 1 + longest)
    assert torch.equal(written, (torch.arange(ids.shape[1]) > begin).expand(40, -1))
    for row in ids.tolist():
        listed = [t for t in row[:begin] if t < 2 * symbols]
        pairs = dict(zip(listed[::2], listed[1::2], strict=True))
        assert sum(t >= 2 * symbols for t in row[:begin]) == filler
        assert sorted(pairs) == sorted(v - symbols for v in pairs.values())
        assert len(pairs) == count
        # A pair stands together.
        assert all(row[i + 1] == pairs[t] for i, t in enumerate(row[:begin]) if t < symbols)
        steps = row[begin:]
        assert all(pairs[a - symbols] == b for a, b in itertools.pairwise(steps))
        assert len(set(steps[:count])) == count  # one cycle through all


def test_a_map_around_text_leaves_the_text_between() -> None:
    text = torch.randint(0, 50, (5, 100), generator=torch.Generator().manual_seed(0))
    before = text.clone()
    ids, asked = map_around_text(text, 50, symbols=6, steps=20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(text, before)
    assert torch.equal(ids[:, 12:-21], text[:, 12:-21])
    assert int(ids[:, :12].min()) >= 50
    assert torch.equal(asked[0].nonzero()[:, 0], torch.arange(80, 85))
    for row in ids.tolist():
        pairs = dict(zip(row[:12:2], row[1:12:2], strict=True))
        assert all(pairs[a - 6] == b for a, b in itertools.pairwise(row[-21:]))
    places = torch.tensor([0, 67, 13, 50, 1])
    ids, _ = map_around_text(text, 50, symbols=6, steps=20, place=places, generator=torch.Generator().manual_seed(1))
    for row, place, old in zip(ids.tolist(), places.tolist(), text.tolist(), strict=True):
        listed = row[place : place + 12]
        pairs = dict(zip(listed[::2], listed[1::2], strict=True))
        assert all(pairs[a - 6] == b for a, b in itertools.pairwise(row[-21:]))
        assert row[:place] == old[:place]
        assert row[place + 12 : -21] == old[place + 12 : -21]
    for wrong in (-1, 68, torch.tensor([0, 0, 0, 0, 68])):
        with pytest.raises(ValueError, match="do not fit"):
            map_around_text(text, 50, symbols=6, steps=20, place=wrong)
