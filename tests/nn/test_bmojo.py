"""B'MOJO: every part against a query-by-query reference, its special cases, causality, decoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from hasten.nn import MLGRU, S5, BMojo, Mamba
from hasten.nn.attention import Rotary
from hasten.nn.bmojo import attend, innovation, merge
from hasten.train.recurrent_ppo import GRUMemory


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
    assert state.recent[0].shape[2] < module.window + (module.commit if module.memory else 0)
    assert state.fading[0].shape[2] <= 2 * module.window
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


@pytest.mark.parametrize("value", [8.0, 4.0, 0.1, 0.0, -0.5, -1.0, -8.0, 100.0])
def test_a_spike_scores_above_the_tokens_behind_it(value: float) -> None:
    """Loud, quiet and negative ones; what the predictor remembers of them is no innovation."""
    s = torch.ones(1, 50, 6)
    s[0, 30] = value
    found = innovation(s)[0]
    assert int(found.argmax()) == 30
    assert float(found[30]) > 4 * float(found[31:35].max())
    assert float(found[:30].max()) < 1e-10  # the first one too: nothing predicted it
    assert float(found[35:].max()) < 1e-10


def test_innovation_has_no_unit() -> None:
    s = torch.randn(2, 40, 6)
    torch.testing.assert_close(innovation(s * 1e-3), innovation(s), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loud", [1.0, 2.0, 4.0, 100.0])
def test_all_spikes_are_kept_however_loud(loud: float) -> None:
    """Through a state that is the input itself; the old scale kept 17, 11 and 0 of 20 at 1, 2 and 4 times the norm."""
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(16, generator=generator)
    u = usual + 0.02 * torch.randn(1, 400, 16, generator=generator)
    spikes = torch.arange(12, 392, 19)
    assert len(spikes) == 20
    directions = F.normalize(torch.randn(20, 16, generator=generator), dim=-1)
    u[0, spikes] = loud * usual.norm() * directions
    module = BMojo(16, heads=2, window=4, memory=20, ssm=torch.nn.Identity())
    state = module.new_state(1)
    with torch.no_grad():
        module(u, state)
    assert state.kept[3][0].tolist() == spikes.tolist()


def test_innovation_in_pieces_is_that_of_the_whole() -> None:
    s = torch.randn(2, 30, 6)
    whole = innovation(s)
    norms = s.double().norm(dim=-1)
    for cut in (1, 2, 7, 29):
        rest = innovation(s[:, cut:], past=s[:, :cut], total=norms[:, :cut].sum(1), position=cut)
        torch.testing.assert_close(rest, whole[:, cut:], rtol=1e-5, atol=1e-7)


class Decay(torch.nn.Module):
    """A state-space block of the smallest kind, without ``new_state``."""

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        state, out = torch.zeros_like(x[:, 0]) if state is None else state, []
        for t in range(x.shape[1]):
            state = 0.9 * state + x[:, t]
            out.append(state)
        return torch.stack(out, 1), state


@pytest.mark.parametrize(
    "ssm",
    [
        lambda: S5(16),
        lambda: S5(16, gated=False, norm="before"),
        lambda: Mamba(16),
        lambda: MLGRU(16),
        lambda: GRUMemory(16),
        lambda: torch.nn.GRU(16, 16, batch_first=True),
        lambda: torch.nn.LSTM(16, 16, batch_first=True),
        torch.nn.Identity,
        Decay,
    ],
)
def test_any_state_space_block_goes_in_the_slot(ssm: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    module = BMojo(16, heads=2, window=4, memory=3, ssm=ssm()).eval()
    u = torch.randn(2, 23, 16)
    with torch.no_grad():
        whole = module(u)
        for pieces in ([23], [9, 1, 1, 5, 7], [1] * 23):
            state = module.new_state(2)
            parts = torch.cat([module(part, state) for part in u.split(pieces, 1)], 1)
            torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)
            assert state.position == 23
    assert {name: t.shape for name, t in module.state_at(2, 23).tensors().items() if not name.startswith("ssm")} == {
        name: t.shape for name, t in state.tensors().items() if not name.startswith("ssm")
    }


def test_a_block_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="must keep the size"):
        BMojo(16, ssm=torch.nn.Linear(16, 8))(torch.randn(1, 9, 16))


def test_decoding_holds_each_key_head_once() -> None:
    sizes = {}
    for kv_heads in (1, 8):
        module = BMojo(64, heads=8, kv_heads=kv_heads, window=4, memory=3)
        state = module.new_state(2)
        with torch.no_grad():
            module(torch.randn(2, 30, 64), state)
        held = (*state.recent[:2], *state.fading, *state.kept[:2])
        assert all(t.shape[1] == kv_heads for t in held)
        # Nothing longer is held on to.
        assert all(t.untyped_storage().nbytes() <= 2 * t.nbytes for t in held)
        sizes[kv_heads] = sum(t.nbytes for t in held)
    assert sizes[8] == 8 * sizes[1]


@pytest.mark.parametrize("begin", [0, 5])
def test_gradients_are_finite_where_commits_are_wider_than_the_window(begin: int) -> None:
    """The last chunk has places behind the end, which see nothing."""
    module = layer(commit=9, window=2)
    state = module.new_state(2)
    if begin:
        with torch.no_grad():
            module(torch.randn(2, begin, 16), state)
    module(torch.randn(2, 10, 16), state if begin else None).square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


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
