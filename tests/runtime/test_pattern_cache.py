"""Converted networks generate: every position as in one pass over the whole text, with caches that drop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.nn.block_sparse import Pattern, SinkWindow, VerticalStride, convert
from hasten.runtime.pattern_cache import PatternCache

IDS = torch.randint(0, 211, (2, 90), generator=torch.Generator().manual_seed(4))


PATTERNS = [
    SinkWindow(1, 2), SinkWindow(0, 1), VerticalStride(1, 3, heads=2),
    VerticalStride(1, 4, heads=2, offset=1, dense=(0,)),
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
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


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_padded_rows_go_on_as_each_alone(llama: Any, pattern: Pattern) -> None:
    """A batch with padding in front, behind and in later pieces; padding is not kept."""
    convert(llama, pattern, (1,), block=8)
    first = torch.tensor([[0] * 11 + [1] * 19, [1] * 30, [1] * 17 + [0] * 13])
    later = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1]])
    mask = torch.cat((first, later, torch.ones(3, 20, dtype=torch.int64)), 1)
    ids = torch.randint(0, 211, (3, 54), generator=torch.Generator().manual_seed(8))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, parts = PatternCache(llama), []
    with torch.inference_mode():
        for begin, end in ((0, 30), (30, 34), *((i, i + 1) for i in range(34, 54))):
            part = llama(
                ids[:, begin:end], attention_mask=mask[:, :end], position_ids=positions[:, begin:end],
                past_key_values=cache,
            )  # fmt: skip
            parts.append(part.logits)
        found = torch.cat(parts, 1)
        alone = [llama(ids[i : i + 1, mask[i].bool()], use_cache=False).logits[0] for i in range(3)]
        each = [PatternCache(llama) for _ in range(3)]
        for i in range(3):
            llama(ids[i : i + 1, mask[i].bool()], past_key_values=each[i])
    for i in range(3):
        torch.testing.assert_close(found[i, mask[i].bool()], alone[i], atol=1e-4, rtol=0)
    assert cache.nbytes == sum(c.nbytes for c in each)
    assert cache.get_seq_length() == 54


def test_padding_that_begins_late(llama: Any) -> None:
    """The cache held the rows together until then."""
    convert(llama, SinkWindow(1, 2), (1,), block=8)
    mask = torch.ones(2, 45, dtype=torch.int64)
    mask[1, 40:43] = 0
    positions, cache = mask.cumsum(1) - 1, PatternCache(llama)
    with torch.inference_mode():
        llama(IDS[:, :35], past_key_values=cache)
        found = llama(
            IDS[:, 35:45], attention_mask=mask, position_ids=positions[:, 35:], past_key_values=cache
        ).logits  # fmt: skip
        alone = llama(IDS[1:, :45][:, mask[1].bool()], use_cache=False).logits[0, -2:]
    torch.testing.assert_close(found[1, -2:], alone, atol=1e-4, rtol=0)


def test_transformers_own_loop_generates_from_padded_prompts(llama: Any) -> None:
    convert(llama, VerticalStride(1, 3, heads=2), (1,), block=8)
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[0, :13] = 0
    more: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = llama.generate(IDS[:, :40], attention_mask=mask, past_key_values=PatternCache(llama), **more)
    for row in range(2):
        text = IDS[row : row + 1, :40][:, mask[row].bool()]
        alone = llama.generate(text, past_key_values=PatternCache(llama), **more)
        assert torch.equal(found[row, 40:], alone[0, text.shape[1] :])


@pytest.mark.parametrize("padded", [False, True])
def test_beams(llama: Any, padded: bool) -> None:
    """Rows are taken in another order at every step: as the search does that reads each text anew."""
    convert(llama, SinkWindow(1, 2), (1,), block=8)
    mask = torch.ones(2, 30, dtype=torch.int64)
    mask[0, : 7 * padded] = 0
    more: dict[str, Any] = {
        "max_new_tokens": 16, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None,
        "attention_mask": mask,
    }  # fmt: skip
    found = llama.generate(IDS[:, :30], past_key_values=PatternCache(llama), **more)
    assert torch.equal(found, llama.generate(IDS[:, :30], use_cache=False, **more))


def test_a_pattern_that_comes_back_within_the_positions(llama: Any) -> None:
    class Back(Pattern):
        def reads(self, head: int, query: int, key: int) -> bool:
            return key == query or query % 100 == 99

    convert(llama, Back(), (), block=4)
    with pytest.raises(HastenError, match="comes back"):
        PatternCache(llama)
    llama.config.max_position_embeddings = 396
    cache = PatternCache(llama)
    with torch.inference_mode():
        llama(torch.zeros(1, 396, dtype=torch.int64), past_key_values=cache)
        with pytest.raises(HastenError, match="comes back"):
            llama(torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache)


def test_a_cache_takes_one_document_a_row(llama: Any) -> None:
    convert(llama, SinkWindow(1, 2), (1,), block=8)
    positions = torch.cat((torch.arange(20), torch.arange(15)))[None]
    with torch.inference_mode(), pytest.raises(HastenError, match="one text a row"):
        llama(IDS[:1, :35], position_ids=positions, past_key_values=PatternCache(llama))
