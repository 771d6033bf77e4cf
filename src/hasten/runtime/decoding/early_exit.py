"""Leaving a model before its last layer where it is already sure of the next token.

After each allowed layer the model's own norm and head read the state; when the best token is likely enough, the
remaining layers only store keys and values of that state, so that later tokens find something there (as in CALM, arXiv
2207.07061). Batch 1, greedy, plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.decoder_form import check_llama_like, own_windows
from hasten.nn.attention import half, turned
from hasten.runtime.generation_loop import numbers
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.quality import agreement


@dataclass(frozen=True)
class Exited:
    """Greedy ids (prompt and new), and for each new token after the first the layers that were run."""

    ids: Tensor
    layers: list[int]


def _layer(layer: Any, state: Tensor, turns: tuple[Tensor, Tensor], cache: Any) -> Tensor:
    out = layer(state, attention_mask=None, position_embeddings=turns, past_key_values=cache)
    return out[0] if isinstance(out, tuple) else out


def _store(layer: Any, state: Tensor, turns: tuple[Tensor, Tensor], cache: Any, index: int) -> None:
    attention, normed = layer.attention, layer.attention_norm(state)
    shape = (1, 1, -1, attention.head_dim)
    keys, values = (p(normed).view(shape).transpose(1, 2) for p in (attention.k_proj, attention.v_proj))
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    keys = turned(keys, *(half(t) for t in turns))
    cache.update(keys, values, index)


@torch.inference_mode()
def generate(
    model: LanguageModel, ids: Tensor, new_tokens: int, *, threshold: float, exits: Sequence[int] = ()
) -> Exited:
    """Greedy text of one prompt, each token by as many layers as it takes.

    Args:
        model: with a plain cache: no window, no policy.
        ids: (1, prompt).
        new_tokens: to make.
        threshold: probability of the best token from which on the model leaves; above 1 it never does.
        exits: layers after which it may, counted from 1; every fourth from the middle on when empty.

    Raises:
        HastenError: a model whose layers have more than Llama's, a batch, a window (the model's own too) or a policy, a
            text longer than the model's positions, or an output that is no number.
    """
    if own_windows(model.config, len(model.layers)):
        raise HastenError("early exit decodes models without a window of their own")
    check_llama_like(model.network, "early exit")
    if ids.shape[0] != 1 or model.cache.window is not None or model.cache.policy is not None:
        raise HastenError("early exit decodes one sequence with a cache that keeps everything")
    count = len(model.layers)
    allowed = set(exits or range(count // 2, count, 4))
    if allowed and not 0 < min(allowed) <= max(allowed) <= count:
        raise HastenError(f"exits are layers from 1 to {count}")
    decoder = model.decoder
    head, norm = decoder.head, decoder.norm
    cache = model.new_cache(1, ids.shape[1] + new_tokens)
    model.check_fits(ids.shape[1] + new_tokens)
    token = int(numbers(model.prefill(ids, cache)).argmax())
    made, used = [token], []
    while len(made) < new_tokens:
        state = decoder.embedding(torch.tensor([[token]]))
        turns = decoder.rotary(state, position_ids=torch.tensor([[cache.get_seq_length()]]))
        for index, layer in enumerate(model.layers):
            state = _layer(layer, state, turns, cache)
            if index + 1 in allowed and index + 1 < count:
                shares = torch.softmax(head(norm(state))[0, -1].float(), -1)
                if float(shares.max()) >= threshold:
                    for later in range(index + 1, count):
                        _store(decoder.layer(later), state, turns, cache, later)
                    break
        used.append(index + 1)
        token = int(numbers(head(norm(state))[0, -1]).argmax())
        made.append(token)
    return Exited(torch.cat((ids, torch.tensor([made])), 1), used)


def trade_off(
    model: LanguageModel, prompt: Tensor, expected: Tensor, new_tokens: int, thresholds: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """Threshold -> the share of layers that run, and the share of greedy tokens that are kept.

    Args:
        model: any that `generate` takes; it need not be trained for it.
        prompt: (1, length).
        expected: (1, length + at least new_tokens) the model's greedy text.
        new_tokens: to make.
        thresholds: of `generate`.
    """
    found = {}
    for threshold in thresholds:
        made = generate(model, prompt, new_tokens, threshold=threshold)
        start = prompt.shape[1]
        kept = agreement(made.ids[0, start:].tolist(), expected[0, start : start + new_tokens].tolist())
        found[threshold] = sum(made.layers) / len(made.layers) / len(model.layers), kept
    return found
