"""Sequences in one pool of blocks against each in a cache of its own: the same numbers, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.runtime import CacheSpec, LanguageModel, PagedCache
from hasten.runtime.policies import BlockTopKPolicy
from hasten.runtime.step import CompiledStep

pytestmark = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")

FORMATS = ["fp32", "fp16", "bf16", "int8", "int4"]


def texts(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 211, (count, length), generator=generator).tolist()


@pytest.mark.parametrize("dtype", FORMATS)
def test_texts_beside_each_other_in_scattered_blocks(
    llama: Any, dtype: str, read_in_pieces: Callable[..., Tensor]
) -> None:
    """Pieces of prompts and single tokens mixed in one step give what each text gives alone."""
    model = LanguageModel(llama, cache=CacheSpec(dtype))
    cut = [[30, 7, 1, 1, 25, 1, 1, 1, 32, 1], [1, 40, 1, 1, 1, 1, 30, 1, 23, 1], [5, 1, 1, 1, 1, 1, 1, 1, 1, 1]]
    given = [text[: sum(pieces)] for text, pieces in zip(texts(3, 100), cut, strict=True)]
    expected = [read_in_pieces(model, text, pieces) for text, pieces in zip(given, cut, strict=True)]
    cache = model.new_paged_cache(sequences=4, capacity=128, blocks=20)
    step = CompiledStep(model.network, cache)
    places = list(range(20))
    random.Random(2).shuffle(places)
    numbers = [3, 0, 2]
    for i, number in enumerate(numbers):
        cache.set_table(number, places[4 * i : 4 * i + 4])
    for turn in range(10):
        ids, sequences, positions, counts = [], [], [], {}
        for text, pieces, number in zip(given, cut, numbers, strict=True):
            at, count = cache.lengths[number], pieces[turn]
            ids += text[at : at + count]
            sequences += [number] * count
            positions += range(at, at + count)
            counts[number] = count
        found = step(ids, sequences, positions)
        row = 0
        for whole, number in zip(expected, numbers, strict=True):
            at = cache.lengths[number]
            assert torch.equal(found[row : row + counts[number]], whole[at : at + counts[number]])
            row += counts[number]
        cache.advance(counts)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_shared_beginning_is_read_once(llama: Any, dtype: str, read_in_pieces: Callable[..., Tensor]) -> None:
    model = LanguageModel(llama, cache=CacheSpec(dtype))
    one, other = texts(2, 80)
    other[:64] = one[:64]
    expected = read_in_pieces(model, other, [32, 32, 16])
    cache = model.new_paged_cache(sequences=2, capacity=96, blocks=6)
    step = CompiledStep(model.network, cache)
    cache.set_table(0, [4, 1, 2])
    for at, count in ((0, 32), (32, 32), (64, 16)):
        step(one[at : at + count], [0] * count, list(range(at, at + count)), answered=[])
        cache.advance({0: count})
    cache.set_table(1, [4, 1, 0])
    cache.start(1, 64)
    # The first text goes on beside it.
    found = step([9, *other[64:]], [0] + [1] * 16, [80, *range(64, 80)], answered=range(1, 17))
    assert torch.equal(found, expected[64:])


def test_a_copied_block_goes_on_by_itself(llama: Any, read_in_pieces: Callable[..., Tensor]) -> None:
    model = LanguageModel(llama, cache=CacheSpec("fp16"))
    text = texts(1, 60)[0]
    expected = read_in_pieces(model, text, [30, 15, 15])
    cache = model.new_paged_cache(sequences=2, capacity=64, blocks=4)
    step = CompiledStep(model.network, cache)
    cache.set_table(0, [2, 0])
    step(text[:45], [0] * 45, list(range(45)), answered=[])
    cache.advance({0: 45})
    cache.copy_block(0, 3)
    cache.set_table(1, [2, 3])
    cache.start(1, 45)
    rows = list(range(45, 60))
    # Both go on, in blocks of their own.
    found = step([7] * 15 + text[45:], [0] * 15 + [1] * 15, rows + rows, answered=range(15, 30))
    assert torch.equal(found, expected[45:])


def test_rows_that_are_answered_come_in_the_order_asked_for(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = model.new_paged_cache(sequences=1, capacity=32, blocks=1)
    step = CompiledStep(llama, cache)
    cache.set_table(0, [0])
    text, rows = texts(1, 20)[0], list(range(20))
    every = step(text, [0] * 20, rows).clone()
    hidden = torch.empty(3, 128)
    assert torch.equal(step(text, [0] * 20, rows, answered=[7, 19, 0], hidden=hidden), every[[7, 19, 0]])
    torch.testing.assert_close(hidden @ llama.lm_head.weight.T, every[[7, 19, 0]], rtol=0, atol=1e-3)
    with pytest.raises(IndexError, match="row that is not there"):
        step(text, [0] * 20, rows, answered=[20])


def test_tokens_given_back_and_sequences_cleared(llama: Any) -> None:
    cache = LanguageModel(llama, cache=CacheSpec("int8")).new_paged_cache(sequences=2, capacity=96, blocks=5)
    cache.set_table(1, [3, 4, 0])
    cache.advance({1: 33})
    cache.advance({1: 9})
    assert cache.quantized == [0, 1]
    cache.retract(1, 9)
    with pytest.raises(ValueError, match="give 20 tokens back"):
        cache.retract(1, 20)
    with pytest.raises(ValueError, match="a text of 33"):
        cache.set_table(1, [3])
    cache.clear(1)
    assert (cache.lengths, cache.quantized, cache.table(1)) == ([0, 0], [0, 0], [])
    assert cache.block_bytes * 5 < cache.nbytes


def test_what_does_not_fit_is_refused(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = model.new_paged_cache(sequences=2, capacity=64, blocks=4)
    step = CompiledStep(llama, cache)
    with pytest.raises(IndexError, match="no block for position 0"):
        step([1], [0], [0])
    with pytest.raises(IndexError, match="sequence 2 is not"):
        step([1], [2], [0])
    with pytest.raises(IndexError, match="block 4 is not one of the pool's 4"):
        cache.set_table(0, [1, 4])
    with pytest.raises(ValueError, match="a block twice"):
        cache.set_table(0, [1, 1])
    with pytest.raises(ValueError, match="3 blocks"):
        cache.set_table(0, [1, 2, 3])
    cache.set_table(0, [1])
    cache.set_table(1, [1])
    with pytest.raises(ValueError, match="would write into block 1"):
        step([1, 1], [0, 1], [0, 0])
    with pytest.raises(ValueError, match="do not hold 33"):
        cache.start(0, 33)
    with pytest.raises(ValueError, match="do not hold 33"):
        cache.advance({0: 33})
    with pytest.raises(IndexError, match="block -1"):
        cache.copy_block(0, -1)
    for bent in (4, -1, 1 << 30):
        cache.tables[1, 1] = bent
        with pytest.raises(ValueError, match="of a pool of 4"):
            step([1], [0], [0])
    cache.tables = cache.tables.long()
    with pytest.raises(ValueError, match="block tables are"):
        step([1], [0], [0])


def test_caches_that_forget_have_no_pool(llama: Any) -> None:
    for spec in (CacheSpec(window=8), CacheSpec(policy=BlockTopKPolicy(2))):
        with pytest.raises(HastenError, match="keeps everything"):
            LanguageModel(llama, cache=spec).new_paged_cache(1, 32, 1)
    with pytest.raises(HastenError, match="hold nothing"):
        PagedCache(CacheSpec(), layers=1, sequences=1, heads=1, head_dim=8, capacity=32, blocks=0)
