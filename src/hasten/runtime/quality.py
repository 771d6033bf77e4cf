"""How good a language model is, measured through the very cache and weights that it runs with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.kv_cache import MOST_NEW
from hasten.runtime.language_model import LanguageModel

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of scored tokens.

    Args:
        value: the perplexity.
        error: its standard error, from the spread of tokens (delta method).
        tokens: how many were scored.
    """

    value: float
    error: float
    tokens: int


def perplexity(
    model: LanguageModel,
    ids: Sequence[int] | Tensor,
    *,
    context: int = 256,
    scored: int = 256,
    segments: int = 6,
    progress: Progress = lambda share: None,
) -> Perplexity:
    """Perplexity on a text, read the way a running model reads: a prompt, then on through the cache.

    The text is cut into segments spread over it. Of each, ``context`` tokens are a prompt; the ``scored`` ones behind
    it are fed in small pieces through the cache, so that a quantized cache or a window is what they attend to.

    Args:
        model: what is measured.
        ids: tokens of the text.
        context, scored: tokens of a segment.
        segments: at most; fewer where the text is short.
        progress: told the share done.

    Raises:
        HastenError: the text is too short for one segment.
    """
    text = torch.as_tensor(ids, dtype=torch.int64).reshape(-1)
    model.check_fits(context + scored)
    size = context + scored + 1
    count = min(segments, len(text) // size)
    if count < 1:
        raise HastenError(f"the text has {len(text)} tokens, quality needs {size}: give a longer text file")
    starts = torch.linspace(0, len(text) - size, count).long().tolist()
    batch = torch.stack([text[s : s + size] for s in starts]).to(model.device)
    cache = model.new_cache(count, context + scored)
    losses: list[Tensor] = []
    with torch.inference_mode():
        logits = model.prefill(batch[:, :context], cache)[:, None]
        losses.append(_losses(logits, batch[:, context : context + 1]))
        done = 0
        while done < scored - 1:
            step = min(MOST_NEW, scored - 1 - done)
            part = slice(context + done, context + done + step)
            logits = model(batch[:, part], past_key_values=cache).logits
            losses.append(_losses(logits, batch[:, part.start + 1 : part.stop + 1]))
            done += step
            progress(done / scored)
    every = torch.cat(losses, 1).double().reshape(-1)
    if not torch.isfinite(every).all():
        return Perplexity(math.inf, math.inf, len(every))
    value = math.exp(min(float(every.mean()), 700.0))
    return Perplexity(value, value * float(every.std()) / math.sqrt(len(every)), len(every))


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none"
    )
    return flat.reshape(targets.shape)


def agreement(tokens: Sequence[int], expected: Sequence[int]) -> float:
    """Share of ``expected`` that ``tokens`` repeats before it first differs."""
    same = 0
    for a, b in zip(tokens, expected, strict=False):
        if a != b:
            break
        same += 1
    return same / len(expected) if expected else 1.0
