"""Associative recall asks for what it showed."""

from __future__ import annotations

import pytest
import torch

from hasten.tasks.associative_recall import IGNORED, associative_recall


def test_every_key_is_asked_for_once_with_its_value() -> None:
    ids, targets = associative_recall(
        40, length=40, pairs=5, keys=9, values=7, generator=torch.Generator().manual_seed(0)
    )
    for row, wanted in zip(ids.tolist(), targets.tolist()):
        shown = {row[i]: row[i + 1] for i in range(20) if row[i] < 9}
        asked = {row[i]: wanted[i] for i in range(20, 40) if row[i] < 9}
        assert shown == asked
        assert len(shown) == 5
        assert all(9 <= value < 16 for value in shown.values())
        assert all((t == IGNORED) == (i < 20 or row[i] >= 9) for i, t in enumerate(wanted))
    with pytest.raises(ValueError, match="do not fit"):
        associative_recall(1, length=8, pairs=3)
