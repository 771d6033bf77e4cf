"""BlockFFNLM: published sizes, its cache, and speculative decoding that changes no token."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import BlockFFNConfig, BlockFFNLM, named
from hasten.runtime.decoding.chunked import speculate
from hasten.runtime.decoding.lookup import PromptLookup


@pytest.mark.parametrize(
    ("name", "millions"),
    [("blockffn-0.1b", 119.4), ("blockffn-0.5b", 494.7), ("blockffn-0.8b", 817.2), ("blockffn-1.2b", 1187.8)],
)
def test_published_sizes_without_embeddings(name: str, millions: float) -> None:
    model = named.build(name)
    assert isinstance(model, BlockFFNLM)
    count = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("embeddings", "lm_head")))
    assert round(count / 1e6, 1) == millions


def small(**options) -> BlockFFNLM:
    torch.manual_seed(0)
    return BlockFFNLM(BlockFFNConfig(32, 2, 2, 30, 8, 4, **options)).eval()


@pytest.mark.parametrize("options", [{}, {"latent": True, "scaled": True}, {"feed_forward": "top-k", "count": 2}])
def test_decoding_is_the_whole_forward(options: dict) -> None:
    model = small(**options)
    ids = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)
        state = model.new_state(2)
        parts = [model(ids[:, :2], state), model(ids[:, 2:5], state), model(ids[:, 5:], state)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_a_later_token_does_not_reach_back() -> None:
    model = small()
    ids = torch.randint(0, 30, (1, 9))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 30
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, :6], model(changed)[:, :6], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("draft", [1, 4, 7])
def test_speculation_changes_no_token(draft: int) -> None:
    model = small()
    ids = torch.tensor([3, 5, 7, 3, 5, 7, 3, 5])
    plain = model.generate(ids[None], 40)[0]
    found = speculate(model, ids, 40, PromptLookup(draft=draft))
    assert torch.equal(found.ids, plain)
    assert found.steps < 39
    assert found.experts <= found.without


def test_speculation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(HastenError, match="empty"):
        speculate(small(), torch.zeros(0, dtype=torch.int64), 3)
    with pytest.raises(HastenError, match="at most 16"):
        speculate(small(), torch.zeros(2, dtype=torch.int64), 3, PromptLookup(draft=20))


def test_routers_are_returned_for_the_losses() -> None:
    model = small().train()
    ids = torch.zeros(2, 5, dtype=torch.int64)
    logits, routings = model(ids, return_routing=True)
    assert torch.equal(logits, model(ids))
    assert [tuple(r.logits.shape) for r in routings] == [(2, 5, 8)] * 2
    assert small(feed_forward="dense").train()(ids, return_routing=True)[1] == []


def test_workload_has_a_growing_cache() -> None:
    short, long = (small().workload(prompt, 4) for prompt in (8, 80))
    assert long.state_bytes > 5 * short.state_bytes
    assert not long.unknown
