"""How good a language model is, measured through the very cache and weights that it runs with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.kv_cache import MOST_NEW
from hasten.runtime.cache import CacheSpec
from hasten.runtime.language_model import LanguageModel
from hasten.tasks.questions import Question, hidden_number, key_values

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


def perplexities(
    model: LanguageModel, ids: Sequence[int] | Tensor, caches: Mapping[str, CacheSpec], **options: Any
) -> dict[str, float]:
    """Name -> perplexity of one model with each way to keep and to read its cache.

    Args:
        model: keeps the cache that it has.
        ids, options: see `perplexity`.
        caches: by name.
    """
    before, found = model.cache, {}
    try:
        for name, cache in caches.items():
            model.cache = cache
            found[name] = perplexity(model, ids, **options).value
    finally:
        model.cache = before
    return found


def losses_by_position(model: LanguageModel, rows: Tensor, piece: int = MOST_NEW) -> tuple[Tensor, float]:
    """Loss at each position of texts that are read through the cache in small pieces, from their first token on.

    Args:
        model: what is measured.
        rows: (texts, length + 1) tokens.
        piece: tokens read at once.

    Returns:
        mean over the texts in nats (length), and bytes of the cache at the end.
    """
    length = rows.shape[1] - 1
    cache = model.new_cache(len(rows), length)
    losses = []
    with torch.inference_mode():
        for at in range(0, length, piece):
            target = rows[:, at + 1 : at + 1 + piece]
            logits = model(rows[:, at : at + target.shape[1]], past_key_values=cache).logits
            losses.append(_losses(logits, target).mean(0))
    return torch.cat(losses), float(cache.nbytes)


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


@torch.inference_mode()
def _answers(model: LanguageModel, prompt: list[int], answer: list[int]) -> tuple[bool, float]:
    """Whether greedy decoding would say ``answer`` after ``prompt``, and the answer's log-likelihood.

    The answer is read token by token through the cache, as it would be made.
    """
    cache = model.new_cache(1, len(prompt) + len(answer))
    rows = [model.prefill(torch.tensor([prompt], device=model.device), cache)]
    if len(answer) > 1:
        text = torch.tensor([answer[:-1]], device=model.device)
        rows += [model(part, past_key_values=cache).logits[0].float() for part in text.split(MOST_NEW, 1)]
    logits, wanted = torch.cat(rows), torch.tensor(answer, device=model.device)
    likelihood = torch.log_softmax(logits, -1).gather(1, wanted[:, None]).sum()
    return bool((logits.argmax(-1) == wanted).all()), float(likelihood)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def needle(
    model: LanguageModel,
    tokenizer: Any,
    filler: Sequence[int],
    *,
    length: int = 1024,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    progress: Progress = lambda share: None,
) -> dict[float, bool]:
    """Whether a number hidden in a long text is found again, for each depth (0: the text's beginning).

    Args:
        model: what is measured.
        tokenizer: its own.
        filler: tokens of a text to hide it in, at least ``length``.
        length: tokens of the prompt.
        depths: where it is hidden, as shares of the text.
        progress: told the share done.

    Raises:
        HastenError: the filler is too short.
    """
    found = {}
    for i, depth in enumerate(depths):
        sentence, question, answer = (_ids(tokenizer, t) for t in hidden_number(i))
        room = length - len(sentence) - len(question)
        if room < 0 or len(filler) < room:
            raise HastenError(f"the text has {len(filler)} tokens, a needle test of {length} needs more")
        cut = round(room * depth)
        prompt = [*filler[:cut], *sentence, *filler[cut:room], *question]
        found[depth] = _answers(model, prompt, answer)[0]
        progress((i + 1) / len(depths))
    return found


def recall(
    model: LanguageModel,
    tokenizer: Any,
    filler: Sequence[int],
    *,
    pairs: int = 12,
    length: int = 1024,
    asked: int = 6,
    progress: Progress = lambda share: None,
) -> float:
    """Share of numbers found again in a list of words and numbers that stands before a long text.

    Args:
        model, tokenizer, filler, progress: as for `needle`.
        pairs: entries of the list.
        length: tokens of the prompt.
        asked: entries that are asked for, spread over the list.
    """
    entries = key_values(pairs)
    listing = _ids(tokenizer, "Numbers:\n" + "".join(f"{word}: {number}\n" for word, number in entries))
    right = 0
    for i in range(asked):
        word, number = entries[i * pairs // asked]
        question = _ids(tokenizer, f"\nNumbers:\n{word}:")
        room = length - len(listing) - len(question)
        if room < 0 or len(filler) < room:
            raise HastenError(f"the text has {len(filler)} tokens, a recall test of {length} needs more")
        right += _answers(model, [*listing, *filler[:room], *question], _ids(tokenizer, f" {number}"))[0]
        progress((i + 1) / asked)
    return right / asked


def choice(
    model: LanguageModel, tokenizer: Any, questions: Sequence[Question], progress: Progress = lambda share: None
) -> float:
    """Share of questions whose right option is the likeliest answer, by mean log-likelihood of its tokens."""
    right = 0
    for i, question in enumerate(questions):
        prompt = _ids(tokenizer, f"Question: {question.text}\nAnswer:")
        scores = []
        for option in question.options:
            answer = _ids(tokenizer, f" {option}")
            scores.append(_answers(model, prompt, answer)[1] / len(answer))
        right += scores.index(max(scores)) == question.answer
        progress((i + 1) / len(questions))
    return right / len(questions)
