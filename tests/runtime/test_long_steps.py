"""Steps over a cache that no prompt was read into."""

from __future__ import annotations

import pytest

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.runtime.long_steps import steps_over


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_every_call_is_a_token_more() -> None:
    model = LanguageModel(tiny_model(layers=2).network)
    call = steps_over(model, 100, 3, 5)
    for _ in range(5):
        call()
    cache, _ = model._idle[1:]  # type: ignore[index]
    assert list(cache.lengths) == [105] * 3


def test_a_model_without_a_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "why_not_compiled", "it is not one of the families")
    with pytest.raises(HastenError, match="cannot be timed: it is not one of the families"):
        steps_over(LanguageModel(tiny_model(layers=1).network), 10, 1, 1)
