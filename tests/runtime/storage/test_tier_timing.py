"""The ways of two tiers give the same tokens, each within its memory."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.runtime.storage.tier_timing import time_tiers


def test_every_way_is_timed_and_gives_the_same_tokens() -> None:
    model = LanguageModel(tiny_model(layers=1).network)
    ids = torch.randint(0, 256, (4, 256), generator=torch.Generator().manual_seed(0))
    found = time_tiers(model, ids, 4, link=1e9)
    assert found.same
    assert min(found.alone, found.two, found.three, found.int8, found.split, found.waves) > 0
    assert 0 <= found.int8_moved < found.moved
    with pytest.raises(HastenError, match="holds none of 2 sequences"):
        time_tiers(model, ids[:2], 4)
