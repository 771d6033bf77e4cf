"""Token selection: full budgets change nothing, choices against brute force, the compiled step against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import (
    BlockTopKPolicy,
    KeepEnds,
    LocalShare,
    LocalWindow,
    Policy,
    RandomKeep,
    RandomTokens,
    SnapKVPolicy,
    SparseWindowPolicy,
    Strided,
    StridedBlocks,
    TopK,
    attend,
)
from hasten.runtime.step import CompiledStep

IDS = torch.randint(0, 211, (1, 120), generator=torch.Generator().manual_seed(3))
EVERYTHING = [
    BlockTopKPolicy(50, 2), TopK(500), SparseWindowPolicy(1.0), SparseWindowPolicy(1.0, history=-1), Strided(1.0),
    LocalShare(1.0), LocalWindow(500), SnapKVPolicy(500), RandomKeep(500), KeepEnds(500),
    BlockTopKPolicy(30, 1, 4, sinks=4), StridedBlocks(30, 1, 4), RandomTokens(500), RandomTokens(500, weighted=True),
]  # fmt: skip
PARTS = [
    BlockTopKPolicy(1, 2, block=16), BlockTopKPolicy(3, 2, block=8), TopK(16, 8, 2), SparseWindowPolicy(0.3),
    SparseWindowPolicy(0.3, history=-1), Strided(0.3), LocalShare(0.3, 2), LocalWindow(20, 2), SnapKVPolicy(40, 8),
    RandomKeep(40, 8), KeepEnds(40, 4), BlockTopKPolicy(3, 2, 8, sinks=4), StridedBlocks(3, 2, 8),
    RandomTokens(16, 8, 2), RandomTokens(16, 8, 2, weighted=True),
]  # fmt: skip


def through(network: Any, policy: Policy | None, dtype: str = "fp32") -> Tensor:
    model = LanguageModel(network, cache=CacheSpec(dtype, policy=policy))
    cache = model.new_cache(1, 120)
    with torch.inference_mode():
        rows = [model.prefill(IDS[:, :80], cache)]
        rows += [model(IDS[:, i : i + 1], past_key_values=cache).logits[0] for i in range(80, 110)]
        rows.append(model(IDS[:, 110:], past_key_values=cache).logits[0])
    return torch.cat(rows)


@pytest.mark.slow_except("llama-*")
@pytest.mark.parametrize("policy", EVERYTHING, ids=repr)
def test_a_full_budget_is_no_method(network: Any, policy: Policy) -> None:
    torch.testing.assert_close(through(network, policy), through(network, None), atol=1e-5, rtol=1e-5)
    model = LanguageModel(network, cache=CacheSpec(policy=policy))
    plain = LanguageModel(network).generate(IDS[:, :60], max_new_tokens=20, do_sample=False)
    assert torch.equal(model.generate(IDS[:, :60], max_new_tokens=20, do_sample=False), plain)


@pytest.mark.parametrize("policy", PARTS, ids=repr)
def test_a_part_is_a_part(llama: Any, policy: Policy) -> None:
    found = through(llama, policy)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found[5:], through(llama, None)[5:], atol=1e-4)
    pieces = LanguageModel(llama, cache=CacheSpec(policy=policy)).generate(IDS, max_new_tokens=8, do_sample=False)
    assert pieces.shape == (1, 128)


class _Layer:
    def __init__(self, heads: int = 2) -> None:
        self.memory: dict[str, Tensor] = {}
        self.index, self.heads, self.seen_length = 1, heads, 0
        self.keys = torch.zeros(1, heads, 0, 8)


def test_block_scores_are_means_of_token_scores() -> None:
    torch.manual_seed(0)
    query, keys = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 100, 8)
    policy = BlockTopKPolicy(3, 2, block=8)
    chosen = policy.choose(_Layer(), query, keys, 1.0)  # type: ignore[arg-type]
    assert chosen is not None
    local = (100 - 1) // 8 + 1 - 2
    tokens = (query.reshape(1, 2, 2, 8).mean(2, keepdim=True) @ keys.transpose(-1, -2))[:, :, 0]
    means = tokens[..., 8 : local * 8].unflatten(-1, (-1, 8)).mean(-1)
    for head in range(2):
        best = means[0, head].topk(3).indices + 1
        expected = {int(b) * 8 + t for b in best for t in range(8)} | set(range(8)) | set(range(local * 8, 100))
        assert set(chosen[0, head].tolist()) == expected
        assert chosen.shape[-1] == len(expected)


@pytest.mark.parametrize("length", [30, 44, 45, 51, 52, 100])
@pytest.mark.parametrize("sinks", [0, 4])
def test_blocks_behind_sinks_and_the_rest_of_a_block_is_local(length: int, sinks: int) -> None:
    """As the paper cuts a cache: sinks, whole blocks from there on, and behind them at least the local tokens."""
    torch.manual_seed(0)
    query, keys = torch.randn(1, 4, 1, 8), torch.randn(1, 2, length, 8)
    scored, strided = BlockTopKPolicy(3, 2, 8, sinks=sinks), StridedBlocks(3, 2, 8, sinks)
    whole = max(0, length - sinks - 16) // 8  # blocks in the middle
    end = sinks + whole * 8
    for policy in (scored, strided):
        chosen = policy.choose(_Layer(), query, keys, 1.0)  # type: ignore[arg-type]
        if length <= sinks + 3 * 8 + 2 * 8 or whole <= 3:
            assert chosen is None
            assert policy.budget(length) == length
            continue
        assert chosen is not None
        tokens = (query.reshape(1, 2, 2, 8).mean(2, keepdim=True) @ keys.transpose(-1, -2))[:, :, 0]
        for head in range(2):
            means = tokens[0, head, sinks:end].unflatten(-1, (-1, 8)).mean(-1)
            blocks = means.topk(3).indices.tolist() if policy is scored else [0, whole // 3, 2 * whole // 3]
            read = {sinks + b * 8 + t for b in blocks for t in range(8)} | {*range(sinks)} | {*range(end, length)}
            assert set(chosen[0, head].tolist()) == read
            assert chosen.shape[-1] == len(read) == policy.budget(length)
        assert 16 <= length - end < 24, "local tokens, and what a whole block has no room for"


def test_only_whole_first_blocks_run_compiled() -> None:
    assert BlockTopKPolicy().compiled
    assert not BlockTopKPolicy(sinks=4).compiled
    assert not BlockTopKPolicy(block=16).compiled


def test_random_tokens_are_drawn_anew_and_again() -> None:
    keys, query = torch.zeros(2, 2, 300, 8), torch.zeros(2, 4, 1, 8)
    policy, layer = RandomTokens(40, 8, 4), _Layer()
    drawn = policy.choose(layer, query, keys, 1.0)  # type: ignore[arg-type]
    assert drawn is not None
    assert drawn.shape == (2, 2, 52)
    for row in drawn.flatten(0, 1).tolist():
        assert len(set(row)) == 52
        assert {*range(4), *range(292, 300)} <= {*row}
    assert len({tuple(sorted(row)) for row in drawn.flatten(0, 1).tolist()}) == 4, "each head draws its own"
    assert torch.equal(drawn, policy.choose(layer, query, keys, 1.0)), "a step made again reads the same"  # type: ignore[arg-type]
    longer = torch.zeros(2, 2, 301, 8)
    other = policy.choose(layer, query, longer, 1.0)  # type: ignore[arg-type]
    assert other is not None
    assert {*drawn[0, 0, :40].tolist()} != {*other[0, 0, :40].tolist()}
    seen = torch.zeros(300)
    for length in range(300, 500):
        found = policy.choose(layer, query, torch.zeros(2, 2, length, 8), 1.0)  # type: ignore[arg-type]
        assert found is not None
        seen[found[found < 292]] += 1
    assert (seen[4:200] > 0).all(), "every token of the middle is drawn now and then"


def test_a_weighted_draw_stands_for_the_middle() -> None:
    """With equal logits the drawn tokens weigh as much as the whole middle does; unweighted ones less."""
    keys, query = torch.zeros(1, 2, 300, 8), torch.zeros(1, 4, 1, 8)
    values = torch.zeros(1, 2, 300, 8)
    values[:, :, 4:292] = 1.0
    layer = _Layer()
    rows = [
        float(RandomTokens(40, 8, 4, weighted=w).row(layer, query, keys, values, 1.0)[0, 0, 0, 0])  # type: ignore[arg-type]
        for w in (True, False)
    ]
    assert rows == [pytest.approx(288 / 300), pytest.approx(40 / 52)]
    # Far below a window of the model's own nothing is seen, whatever stands for it.
    least = RandomTokens(40, 8, 4, weighted=True).row(layer, query, keys, values, 1.0, 292)  # type: ignore[arg-type]
    assert torch.equal(least, torch.zeros_like(least))


def test_a_weighted_draw_is_nearer_to_all_than_an_unweighted_one() -> None:
    torch.manual_seed(0)
    keys, values, query = torch.randn(1, 2, 2000, 8), torch.randn(1, 2, 2000, 8), torch.randn(1, 4, 1, 8)
    whole, off = attend(query, keys, values, 0.35), {}
    for weighted in (True, False):
        draws = [
            RandomTokens(200, 200, 4, weighted, seed).row(_Layer(), query, keys, values, 0.35)  # type: ignore[arg-type]
            for seed in range(40)
        ]
        off[weighted] = float((torch.stack(draws).mean(0) - whole).norm())
    assert off[True] < 0.5 * off[False]


@pytest.mark.parametrize("history", [0, -1, 5])
def test_the_sparse_window_against_brute_force(history: int) -> None:
    torch.manual_seed(1)
    policy, layer = SparseWindowPolicy(0.4, history), _Layer()
    keys = torch.randn(1, 2, 60, 8)
    values = torch.randn(1, 2, 60, 8)
    queries = torch.randn(1, 4, 60, 8)
    policy.prompt(layer, queries[:, :, :20], keys[:, :, :20], 0.5, 0)  # type: ignore[arg-type]
    rows = torch.zeros(2, 60, 60)
    scores = queries[:, :, :20] @ keys[:, :, :20].repeat_interleave(2, 1).transpose(-1, -2) * 0.5
    dense = torch.softmax(scores.masked_fill(~torch.ones(20, 20, dtype=torch.bool).tril(), -torch.inf), -1)
    rows[:, :20, :20] = dense.reshape(2, 2, 20, 20).mean(1)
    for n in range(21, 61):
        layer.seen_length = n
        query, some = queries[:, :, n - 1 : n], keys[:, :, :n]
        local, others = policy.split(n)
        chosen = policy.choose(layer, query, some, 0.5)  # type: ignore[arg-type]
        assert chosen is not None
        for head in range(2):
            mine = set(chosen[0, head].tolist())
            assert len(mine) == chosen.shape[-1] == local + others == policy.budget(n)
            assert set(range(n - local, n)) <= mine
            first = 0 if history == -1 else n - 1 - (history or local)
            score = rows[head, first : n - 1, : n - local].sum(0)
            least = min(float(score[i]) for i in mine if i < n - local)
            assert least >= float(score.topk(others).values[-1]) - 1e-6
        policy.row(layer, query, some, values[:, :, :n], 0.5)  # type: ignore[arg-type]
        for head in range(2):
            scores = (queries[0, 2 * head : 2 * head + 2, n - 1] @ keys[0, head, chosen[0, head]].t()) * 0.5
            rows[head, n - 1, chosen[0, head]] = torch.softmax(scores, -1).mean(0)


@pytest.mark.parametrize("history", [0, 5])
def test_the_first_step_after_any_prompt_in_any_pieces(history: int) -> None:
    """As many rows count as the step has local tokens, one more than the prompt has after 19, 29, ... at 0.2."""
    torch.manual_seed(3)
    policy = SparseWindowPolicy(0.2, history)
    keys, queries = torch.randn(1, 2, 61, 8), torch.randn(1, 4, 61, 8)
    scores = queries @ keys.repeat_interleave(2, 1).transpose(-1, -2) * 0.5
    hidden = ~torch.ones(61, 61, dtype=torch.bool).tril()
    rows = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1).reshape(2, 2, 61, 61).mean(1)
    for n in range(12, 61):
        local, others = policy.split(n + 1)
        wanted = (
            rows[:, max(0, n - (history or local)) : n, : n + 1 - local].sum(1).topk(others).indices.sort(-1).values
        )
        for cuts in ([n], [n - 1, n], [*range(7, n, 7), n], list(range(1, n + 1))):
            layer, begin = _Layer(), 0
            for end in cuts:
                policy.prompt(layer, queries[:, :, begin:end], keys[:, :, :end], 0.5, begin)  # type: ignore[arg-type]
                begin = end
            chosen = policy.choose(layer, queries[:, :, n : n + 1], keys[:, :, : n + 1], 0.5)  # type: ignore[arg-type]
            assert chosen is not None
            assert torch.equal(chosen[0, :, :others].sort(-1).values, wanted), (n, cuts)
            assert torch.equal(chosen[0, :, others:], torch.arange(n + 1 - local, n + 1).expand(2, -1))


@pytest.mark.parametrize("prompt", [19, 20, 29, 39, 49, 63])
def test_a_sparse_window_reads_the_same_after_one_piece_or_many(
    llama: Any, prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = LanguageModel(llama, cache=CacheSpec(policy=SparseWindowPolicy(0.2))), []
    for chunk in (1024, 16, 7):
        monkeypatch.setattr("hasten.runtime.language_model.CHUNK", chunk)
        found.append(model.generate(IDS[:, :prompt], max_new_tokens=16, eos_token_id=None, do_sample=False))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_snapkv_keeps_its_window_and_the_best() -> None:
    torch.manual_seed(0)
    policy, layer = SnapKVPolicy(24, window=8, kernel=1), _Layer()
    query, keys = torch.randn(1, 4, 60, 8), torch.randn(1, 2, 60, 8)
    policy.prompt(layer, query, keys, 0.35, 0)  # type: ignore[arg-type]
    kept = policy.kept(layer, 60)  # type: ignore[arg-type]
    assert kept.shape == (1, 2, 24)
    assert torch.equal(kept[..., -8:], torch.arange(52, 60).expand(1, 2, -1))
    scores = query[:, :, -8:] @ keys.repeat_interleave(2, 1).transpose(-1, -2) * 0.35
    scores = scores.masked_fill(torch.arange(60) > torch.arange(52, 60)[:, None], -torch.inf)
    votes = torch.softmax(scores, -1).sum(2).reshape(1, 2, 2, 60).mean(2)[..., :52]
    assert torch.equal(kept[..., :16], votes.topk(16).indices.sort(-1).values)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_snapkv_pools_summed_votes_before_it_chooses(pooling: str) -> None:
    """However a prompt is cut into pieces; each head pools for itself, then heads of a kv head are averaged."""
    torch.manual_seed(0)
    query, keys = torch.randn(1, 4, 60, 8), torch.randn(1, 2, 60, 8)
    policy, found = SnapKVPolicy(24, window=8, kernel=5, pooling=pooling), []
    for cuts in ([60], [57, 60], [55, 58, 60], list(range(1, 61))):
        layer, begin = _Layer(), 0
        for end in cuts:
            policy.prompt(layer, query[:, :, begin:end], keys[:, :, :end], 0.35, begin)  # type: ignore[arg-type]
            begin = end
        found.append(policy.kept(layer, 60))  # type: ignore[arg-type]
    assert all(torch.equal(f, found[0]) for f in found)
    for head in range(2):
        votes = torch.zeros(2, 52)
        for q in range(2):
            for row in range(52, 60):
                votes[q] += torch.softmax(0.35 * keys[0, head, : row + 1] @ query[0, 2 * head + q, row], 0)[:52]
        near = [votes[:, max(0, i - 2) : i + 3] for i in range(52)]
        # At the ends what is missing counts as zero.
        smooth = torch.stack([n.sum(1) / 5 if pooling == "mean" else n.amax(1) for n in near]).mean(1)
        assert found[0][0, head, :16].tolist() == sorted(smooth.topk(16).indices.tolist())


@pytest.mark.slow_except("llama-*", "qwen3-*")
@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize(
    ("policy", "dtype"),
    # With rounded keys a choice between blocks may fall either way.
    [
        (BlockTopKPolicy(1, 2), "fp32"),
        *[(p, d) for p in (SnapKVPolicy(70, 16), KeepEnds(64, 4)) for d in ("fp32", "bf16", "int8")],
    ],
    ids=repr,
)
def test_the_compiled_step_follows(network: Any, policy: Policy, dtype: str) -> None:
    model = LanguageModel(network, cache=CacheSpec(dtype, policy=policy))
    ids = torch.randint(0, 211, (1, 260), generator=torch.Generator().manual_seed(5))
    plain, fast = model.new_cache(1, 280), model.new_cache(1, 280)
    step = CompiledStep(model.network, fast)
    tolerance = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.1}[dtype]
    with torch.inference_mode():
        for cache in (plain, fast):
            model.prefill(ids[:, :200], cache)
        for at in range(200, 240):
            expected = model(ids[:, at : at + 1], past_key_values=plain).logits[0]
            found = step([int(ids[0, at])], [0], [fast.lengths[0]], turns=[at])
            fast.advance([1])
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_tokens_that_leave_take_their_memory_with_them(llama: Any) -> None:
    model = LanguageModel(llama, cache=CacheSpec(policy=SnapKVPolicy(32, 8)))
    cache = model.new_cache(1, 130)
    before = cache.nbytes
    model.prefill(IDS, cache)
    assert cache.get_seq_length() == 32
    assert cache.dropped == [88]
    assert cache.nbytes < before / 2
    cache.clear()
    assert cache.nbytes == before
    assert cache.dropped == [0]


def test_capped_positions(llama: Any) -> None:
    ids = torch.randint(0, 211, (1, 100))
    whole = LanguageModel(llama, cache=CacheSpec("fp32", 200, 4, capped=True))
    with torch.inference_mode():
        same = whole(ids, past_key_values=whole.new_cache(1, 120)).logits
        torch.testing.assert_close(same, llama(ids).logits, atol=1e-5, rtol=1e-5)
    model = LanguageModel(llama, cache=CacheSpec("fp32", 20, 4, capped=True))
    streamed, at_once = model.new_cache(1, 120), model.new_cache(1, 120)
    with torch.inference_mode():
        rows = [model(ids[:, i : i + 1], past_key_values=streamed).logits[0] for i in range(100)]
        chunks = [model(ids[:, i : i + 25], past_key_values=at_once).logits[0] for i in range(0, 100, 25)]
    torch.testing.assert_close(torch.cat(rows), torch.cat(chunks), atol=1e-4, rtol=0)
    assert streamed.layers[0].keys.shape[2] <= 20 + 4 + 3 * 32 + 32
    plain = LanguageModel(llama, cache=CacheSpec("fp32", 20, 4))
    far = plain.new_cache(1, 120)
    with torch.inference_mode():
        other = torch.cat([plain(ids[:, i : i + 1], past_key_values=far).logits[0] for i in range(100)])
    assert torch.allclose(torch.cat(rows)[:20], other[:20], atol=1e-4)
    assert not torch.allclose(torch.cat(rows)[60:], other[60:], atol=1e-4)


def test_what_does_not_go_together() -> None:
    with pytest.raises(HastenError, match="both say"):
        CacheSpec("fp32", 10, policy=SnapKVPolicy())
    with pytest.raises(HastenError, match="capped by a window"):
        CacheSpec(capped=True)
    with pytest.raises(HastenError, match="give a window"):
        CacheSpec(full_layers=(1,))
    for wrong in (
        lambda: BlockTopKPolicy(0),
        lambda: BlockTopKPolicy(4, 1),
        lambda: BlockTopKPolicy(4, 2, sinks=-1),
        lambda: StridedBlocks(0),
        lambda: RandomTokens(0),
        lambda: SparseWindowPolicy(0.0),
        lambda: SnapKVPolicy(8, 8),
        lambda: SnapKVPolicy(8, 2, pooling="sum"),
    ):
        with pytest.raises(HastenError):
            wrong()
    with pytest.raises(HastenError, match="a cache's policy"):
        CacheSpec(policy="snapkv")  # type: ignore[arg-type]


def test_batches_of_different_lengths(llama: Any) -> None:
    ids = torch.randint(0, 211, (2, 50))
    mask = torch.ones_like(ids)
    mask[0, :10] = 0
    model = LanguageModel(llama, cache=CacheSpec(policy=SnapKVPolicy(16, 4)))
    with pytest.raises(HastenError, match="one length"):
        model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    blocks = LanguageModel(llama, cache=CacheSpec(policy=BlockTopKPolicy(1, 2)))
    assert blocks.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False).shape == (2, 54)


@pytest.mark.parametrize("policy", [SparseWindowPolicy(0.4), SnapKVPolicy(16, 4)], ids=repr)
def test_a_mask_that_the_layers_would_not_follow_is_refused(llama: Any, policy: Policy) -> None:
    model = LanguageModel(llama, cache=CacheSpec(policy=policy))
    mask = torch.ones(1, 20, dtype=torch.int64)
    same = model(IDS[:, :20], past_key_values=model.new_cache(1, 30), attention_mask=mask).logits
    torch.testing.assert_close(same, llama(IDS[:, :20]).logits, atol=1e-5, rtol=1e-5)
    mask[0, :5] = 0
    for wrong in (mask, torch.ones(1, 1, 20, 20, dtype=torch.bool).tril(-1)):
        with pytest.raises(HastenError, match="take no attention_mask"):
            model(IDS[:, :20], past_key_values=model.new_cache(1, 30), attention_mask=wrong)


@pytest.mark.parametrize(
    "cache", [CacheSpec(window=8, sinks=2), CacheSpec(window=8, sinks=2, full_layers=(1,))], ids=repr
)
def test_a_mask_does_not_take_a_windows_place(llama: Any, cache: CacheSpec) -> None:
    model = LanguageModel(llama, cache=cache)
    mask = torch.ones(1, 20, dtype=torch.int64)
    windowed = model(IDS[:, :20]).logits
    assert not torch.allclose(windowed, llama(IDS[:, :20]).logits, atol=1e-3)
    for past in ({}, {"past_key_values": model.new_cache(1, 30)}):
        torch.testing.assert_close(model(IDS[:, :20], attention_mask=mask, **past).logits, windowed)
        with pytest.raises(HastenError, match="take no attention_mask"):
            model(IDS[:, :20], attention_mask=mask.index_fill(1, torch.arange(5), 0))
