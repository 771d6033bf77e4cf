"""A token behind a prompt: the same as when it is read with the prompt, and one further at each call."""

from __future__ import annotations

import torch

from hasten.models.language.llama import small_llama
from hasten.models.language.mamba_lm import small_mamba
from hasten.runtime.far_tokens import next_token, token_seconds


def test_a_step_goes_on_behind_the_prompt() -> None:
    torch.manual_seed(0)
    llama = small_llama(32, width=32, layers=1, heads=2).eval()
    mamba = small_mamba(32, width=16).eval()
    ids = torch.randint(0, 32, (2, 9))
    further = torch.cat([ids, torch.zeros(2, 2, dtype=torch.int64)], 1)
    with torch.inference_mode():
        for model, logits in ((llama, lambda out: out.logits), (mamba, lambda out: out)):
            call = next_token(model, ids)
            whole = logits(model(further))
            for position in (9, 10):
                torch.testing.assert_close(logits(call())[:, -1], whole[:, position], rtol=1e-4, atol=1e-5)


def test_each_position_has_a_time() -> None:
    told = []
    models = {"Mamba": small_mamba(32, width=16).eval()}
    found = token_seconds(
        models, (4, 8), vocabulary=32, rounds=2, progress=lambda message, share: told.append((message, share))
    )
    assert len(found["Mamba"]) == 2
    assert min(found["Mamba"]) > 0
    assert told == [("position 4", 0.0), ("position 8", 0.5)]
