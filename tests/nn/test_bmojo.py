"""B'MOJO: every part against a query-by-query reference, its special cases, causality, decoding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hasten.nn import BMojo
from hasten.nn.attention import Rotary
from hasten.nn.bmojo import attend, innovation, merge


def layer(**options) -> BMojo:
    torch.manual_seed(0)
    return BMojo(16, **{"heads": 2, "window": 4, "memory": 3} | options).eval()


def reference(module: BMojo, u: torch.Tensor) -> torch.Tensor:
    """Query by query: one softmax over all that it may see."""
    batch, length, _ = u.shape
    w, rows = module.window, []
    s = module.ssm(u) if module.ssm is not None else None
    place = torch.arange(length)
    q = module._queries(u, place, module.query)
    k, v = module._keys(u, place, module.key_value)
    if module.fading:
        fq = q if module.fading_query is None else module._queries(u, place, module.fading_query)
        fk, fv = module._keys(s, place, module.fading_key_value or module.key_value)
    scores = module._scores(s, length, batch, 0, u.device) if module.memory else torch.zeros(batch, length)
    for b in range(batch):
        out = []
        for i in range(length):
            recent = list(range(max(0, i - w + 1), i + 1))
            begin = i // module.commit * module.commit
            ready = [t for t in range(begin - w + 1) if scores[b, t] > -torch.inf]
            kept = sorted(ready, key=lambda t: (-float(scores[b, t]), t))[: module.memory]
            entries = [(q, k[b, :, t], v[b, :, t]) for t in recent + kept]
            if module.fading:
                entries += [(fq, fk[b, :, t], fv[b, :, t]) for t in range(max(0, i - 2 * w + 1), i - w + 1)]
            logits = torch.stack([(p[b, :, i] * key).sum(-1) * module.size**-0.5 for p, key, _ in entries], -1)
            weights = logits.softmax(-1)
            out.append(sum(weights[:, n : n + 1] * value for n, (_, _, value) in enumerate(entries)).reshape(-1))
        rows.append(torch.stack(out))
    return module.out(torch.stack(rows))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False, "norm": True, "kv_heads": 1},
        {"memory": 0},
        {"fading": False},
        {"fading": False, "memory": 0},
        {"store": "random"},
        {"store": "recent", "commit": 2},
        {"commit": 1},
        {"commit": 7, "window": 3, "memory": 50},
        {"threshold": 0.5, "rotary": False},
    ],
)
def test_chunks_and_steps_are_the_reference(options: dict) -> None:
    module = layer(**options)
    u = torch.randn(2, 3 * module.window + 5, 16)
    with torch.no_grad():
        wanted = reference(module, u)
        torch.testing.assert_close(module(u), wanted, rtol=1e-4, atol=1e-5)
        state = module.new_state(2)
        steps = torch.stack([module.step(u[:, t], state) for t in range(u.shape[1])], 1)
    torch.testing.assert_close(steps, wanted, rtol=1e-4, atol=1e-5)
    assert len(state.window) <= module.window
    assert len(state.fading) <= 2 * module.window
    assert state.kept[0].shape[2] <= module.memory


def full_attention(module: BMojo, u: torch.Tensor, window: int | None = None) -> torch.Tensor:
    length = u.shape[1]
    place = torch.arange(length)
    q, (k, v) = module._queries(u, place, module.query), module._keys(u, place, module.key_value)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    if window:
        mask &= ~torch.ones(length, length, dtype=torch.bool).tril(-window)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return module.out(y.transpose(1, 2).reshape(u.shape))


def test_special_cases() -> None:
    u = torch.randn(2, 19, 16)
    whole = layer(window=19)
    torch.testing.assert_close(whole(u), full_attention(whole, u), rtol=1e-4, atol=1e-5)
    sliding = layer(memory=0, fading=False)
    assert sliding.ssm is None
    torch.testing.assert_close(sliding(u), full_attention(sliding, u, 4), rtol=1e-4, atol=1e-5)
    keeps_all = layer(memory=19, fading=False, commit=1)
    torch.testing.assert_close(keeps_all(u), full_attention(keeps_all, u), rtol=1e-4, atol=1e-5)
    fades = layer(memory=0)
    # No fading part within the first window.
    torch.testing.assert_close(fades(u)[:, :4], full_attention(fades, u, 4)[:, :4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"commit": 1}, {"store": "random"}])
def test_later_tokens_do_not_reach_back(options: dict) -> None:
    module, u = layer(**options), torch.randn(1, 30, 16)
    changed = u.clone()
    changed[:, 17] += 5
    with torch.no_grad():
        assert torch.equal(module(u)[:, :17], module(changed)[:, :17])


def test_merging_is_one_softmax() -> None:
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    seen = torch.rand(5, 9) < 0.7
    seen[:, 0] = True
    seen[0, 4:] = False  # the second part absent for one query
    whole, _ = attend(q, k, v, seen)
    parts = [attend(q, k[:, :, part], v[:, :, part], seen[:, part]) for part in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(merge([p[0] for p in parts], [p[1] for p in parts]), whole, rtol=1e-5, atol=1e-6)


def test_innovation_finds_what_was_not_expected() -> None:
    s = torch.ones(1, 20, 6)
    quiet = innovation(s)
    assert float(quiet[0, 4:].max()) < 1e-10
    s[0, 13] = -3.0
    assert int(innovation(s)[0, 1:].argmax()) + 1 == 13


def test_gradient_reaches_what_is_kept_but_not_the_choice() -> None:
    module = layer(fading=False, window=2, memory=1)
    u = torch.randn(1, 9, 16, requires_grad=True)
    y = module(u)
    y[0, -1].sum().backward()
    kept = u.grad.abs().sum(-1)[0] > 0
    assert int(kept.sum()) == 3  # two of the window, one of the store
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in module.ssm.parameters())


def test_rotary_positions_are_relative() -> None:
    q, k = torch.randn(2, 1, 8)
    rotary = Rotary(8)
    one = (rotary.turn(q, torch.tensor([3])) * rotary.turn(k, torch.tensor([1]))).sum()
    other = (rotary.turn(q, torch.tensor([12])) * rotary.turn(k, torch.tensor([10]))).sum()
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bad_arguments() -> None:
    for options, message in (({"heads": 3}, "heads"), ({"window": 0}, "at least 1"), ({"store": "best"}, "keeps by")):
        with pytest.raises(ValueError, match=message):
            BMojo(16, **options)
