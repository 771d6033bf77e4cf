"""What a token costs far into a text: networks that carry a state beside those that keep every key and value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hasten.cost.measuring import alternating
from hasten.models.language.recurrent import RecurrentLM


@torch.inference_mode()
def next_token(model: nn.Module, ids: Tensor) -> Callable[[], object]:
    """A call that runs a step of one token behind a prompt, which is read here; each call is one token further.

    Args:
        model: a `RecurrentLM`, or a causal language model of transformers.
        ids: the prompt, (batch, length).
    """
    token = torch.zeros(len(ids), 1, dtype=torch.int64)
    if isinstance(model, RecurrentLM):
        state = model.new_state(len(ids))
        model(ids, state, logits_to_keep=1)
        return functools.partial(model, token, state)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    return functools.partial(model, token, past_key_values=cache, use_cache=True)


@torch.inference_mode()
def token_seconds(
    models: Mapping[str, nn.Module],
    positions: Sequence[int],
    *,
    vocabulary: int,
    rounds: int,
    progress: Callable[[str, float], None] = lambda message, share: None,
) -> dict[str, list[float]]:
    """Name -> the least seconds of a token behind random prompts of each length, the models timed in turn.

    Args:
        models: as of `next_token`.
        positions: lengths of the prompts.
        vocabulary: tokens to draw from, by torch's own generator.
        rounds: steps of each model at each position.
        progress: told the position, and the share done.
    """
    spent: dict[str, list[float]] = {name: [] for name in models}
    for number, position in enumerate(positions):
        progress(f"position {position}", number / len(positions))
        ids = torch.randint(0, vocabulary, (1, position))
        calls = {name: next_token(model, ids) for name, model in models.items()}
        for name, times in alternating(calls, rounds).items():
            spent[name].append(min(times))
    return spent
