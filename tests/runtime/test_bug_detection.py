"""Any model can be asked for bugs, and its answers ranked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.runtime import LanguageModel
from hasten.runtime.bug_detection import suspicion
from hasten.tasks.hls.bugs import DIRECTIVE, designs, mutants, rank


class Letters:
    """A tokenizer: a token a character."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 211 for c in text.removeprefix(" ")]}


def test_a_model_is_asked(llama: Any) -> None:
    model = LanguageModel(llama)
    ask = suspicion(model, Letters(), "{} bug?")
    cases = [d for d in designs() if len(d.source) < 400][:3]
    cases += [m for m in mutants(cases[0]) if m.bug in DIRECTIVE and len(m.source) < 400][:4]
    found = rank(ask, cases)
    assert 0 <= found.area <= 1
    assert set(found.by_class) == {c.bug for c in cases if c.bug}
    row = torch.tensor([Letters()(cases[0].source + " bug?")["input_ids"]])
    with torch.inference_mode():
        logits = llama(row).logits[0, -1]
    yes, no = ord("y"), ord("n")
    assert ask(cases[0].source) == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)


def test_a_source_that_is_too_long(llama: Any) -> None:
    with pytest.raises(HastenError, match="512 positions"):
        suspicion(LanguageModel(llama), Letters())("int f() {}\n" * 100)
