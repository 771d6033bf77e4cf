"""A language model as a detector of bugs in circuits: what `hasten.tasks.hls.bugs.rank` and ``evaluate`` ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hasten.runtime.language_model import LanguageModel

QUESTION = "Review this C++ function for hardware synthesis.\n{}\nDoes it contain a bug? Answer yes or no:"


def suspicion(model: LanguageModel, tokenizer: Any, question: str = QUESTION) -> Callable[[str], float]:
    """From a source to how much likelier the model says yes than no when asked for a bug, in nats.

    A small model says the same word to nearly everything; how much more it means it can still tell.

    Args:
        model: any.
        tokenizer: its own.
        question: with ``{}`` where the source stands; what follows is the answer.

    Raises:
        HastenError: a source longer than the model's positions (when asked).
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    yes, no = ids(" yes")[0], ids(" no")[0]

    def score(source: str) -> float:
        row = torch.tensor([ids(question.format(source))], device=model.device)
        model.check_fits(row.shape[1])
        logits = model.prefill(row, model.new_cache(1, row.shape[1]))[0]
        return float(logits[yes] - logits[no])

    return score
