"""Converted networks generate: every position as in one pass over the whole text, with caches that drop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.nn.block_sparse import Pattern, SinkWindow, VerticalStride, convert
from hasten.runtime.pattern_cache import PatternCache

IDS = torch.randint(0, 211, (2, 90), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("pattern", [SinkWindow(1, 2), SinkWindow(0, 1), VerticalStride(1, 3, heads=2)], ids=repr)
def test_decoding_with_eviction_is_the_whole_text(llama: Any, pattern: Pattern) -> None:
    convert(llama, pattern, (1,), block=8, rope_scale=50.0)
    cache = PatternCache(llama)
    with torch.inference_mode():
        whole = llama(IDS, use_cache=False).logits
        parts = [llama(IDS[:, :35], past_key_values=cache).logits]
        parts += [llama(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(35, 80)]
        parts.append(llama(IDS[:, 80:], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)
    # The newest of 90 tokens stands in block 11, of which two places are filled.
    tokens = sum(len(pattern.blocks(h, 11)) * 8 - 6 for h in range(2))
    token = 2 * 2 * 32 * 4
    assert cache.nbytes == token * (2 * tokens + 2 * 90)


def test_transformers_own_loop_generates(llama: Any) -> None:
    convert(llama, SinkWindow(1, 2), (1,), block=8)
    found = llama.generate(IDS[:, :40], past_key_values=PatternCache(llama), max_new_tokens=30, do_sample=False)
    with torch.inference_mode():
        logits = llama(found, use_cache=False).logits
    assert torch.equal(found[:, 40:], logits[:, 39:-1].argmax(-1))
    with pytest.raises(HastenError, match="PatternCache"):
        llama.generate(IDS[:, :40], max_new_tokens=3, do_sample=False)


def test_all_layers_full_is_the_model_itself(llama: Any) -> None:
    expected = llama.generate(IDS, max_new_tokens=12, do_sample=False)
    convert(llama, SinkWindow(0, 1), (0, 1, 2), block=8)
    assert torch.equal(
        llama.generate(IDS, past_key_values=PatternCache(llama), max_new_tokens=12, do_sample=False), expected
    )
