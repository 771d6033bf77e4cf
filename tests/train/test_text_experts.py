from __future__ import annotations

import pytest

from hasten.errors import HastenError
from hasten.tasks.text import Text
from hasten.train.text_experts import composition_seen

LETTERS = Text("abcabdabcabe" * 60, 16)
NUMBERS = Text("1234512346" * 80, 16)


def test_experts_of_unlike_texts_are_told_apart_and_better() -> None:
    seen = composition_seen({"letters": LETTERS, "numbers": NUMBERS}, 25, 0, width=32, layers=1, size=8, windows=8)
    assert seen.routed == 1.0
    assert seen.composition == pytest.approx(seen.own)
    assert 0 < seen.own < 3
    assert 0 < seen.one < 3
    assert seen.gain == pytest.approx(1 - seen.composition / seen.one)


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(HastenError, match="two corpora"):
        composition_seen({"letters": LETTERS}, 1, 0)
    with pytest.raises(HastenError, match="one length"):
        composition_seen({"letters": LETTERS, "longer": Text("1234512346" * 80, 17)}, 1, 0)
