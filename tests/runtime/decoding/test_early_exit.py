"""Early exit: never leaving is greedy decoding, leaving is shorter, every layer keeps a place for every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.decoding.early_exit import generate, trade_off


def test_never_leaving_is_greedy(network: Any) -> None:
    model, ids = LanguageModel(network), torch.randint(0, 211, (1, 11))
    found = generate(model, ids, 14, threshold=1.1)
    assert torch.equal(found.ids, model.generate(ids, max_new_tokens=14, eos_token_id=None, do_sample=False))
    assert found.layers == [3] * 13


def test_leaving_at_once(llama: Any) -> None:
    model, ids = LanguageModel(llama), torch.randint(0, 211, (1, 11))
    found = generate(model, ids, 14, threshold=0.0, exits=(1,))
    assert found.layers == [1] * 13
    assert found.ids.shape == (1, 25)
    mixed = generate(model, ids, 30, threshold=0.03, exits=(1, 2)).layers
    assert min(mixed) < 3


def test_what_is_kept_is_told_with_what_is_run(llama: Any) -> None:
    model, ids = LanguageModel(llama), torch.randint(0, 211, (1, 11))
    expected = model.generate(ids, max_new_tokens=14, eos_token_id=None, do_sample=False)
    found = trade_off(model, ids, expected, 14, (1.1, 0.0))
    assert found[1.1] == (1.0, 1.0)
    assert found[0.0][0] == pytest.approx(1 / 3)  # of three layers it may leave after the first
    assert found[0.0][1] <= 1


def test_what_it_does_not_do(llama: Any) -> None:
    ids = torch.randint(0, 211, (1, 11))
    with pytest.raises(HastenError, match="one sequence"):
        generate(LanguageModel(llama, cache=CacheSpec("fp32", 8)), ids, 3, threshold=0.5)
    with pytest.raises(HastenError, match="512 positions"):
        generate(LanguageModel(llama), ids, 600, threshold=0.5)
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(HastenError, match="not a number"):
        generate(LanguageModel(llama), ids, 3, threshold=1.1)
    with pytest.raises(HastenError, match="layers from 1 to 3"):
        generate(LanguageModel(llama), ids, 3, threshold=0.5, exits=(4,))
