"""BMojoLM: patterns, decoding, and its special cases as whole models."""

from __future__ import annotations

import pytest
import torch

from hasten.models import BMojoConfig, BMojoLM
from hasten.nn import BMojo, Mamba


def small(pattern: str, **options) -> BMojoLM:
    torch.manual_seed(0)
    return BMojoLM(BMojoConfig(pattern, 16, 2, 30, window=4, memory=3, ratio=2, **options)).eval()


@pytest.mark.parametrize("pattern", ["b", "f", "w", "a", "m", "bmw"])
def test_decoding_is_the_whole_forward(pattern: str) -> None:
    model = small(pattern, convolution=3, positions="rotary")
    ids = torch.randint(0, 30, (2, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)
        state = model.new_state(2)
        parts = [model(ids[:, :9], state), *(model(ids[:, t : t + 1], state) for t in range(9, 15))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-3, atol=1e-4)
    assert model.generate(ids[:, :3], 4).shape == (2, 7)


def test_patterns_are_layers() -> None:
    mixers = [layer.mixer for layer in small("mbw").layers]
    assert isinstance(mixers[0], Mamba)
    assert isinstance(mixers[1], BMojo)
    assert mixers[2].ssm is None
    with pytest.raises(ValueError, match="made of"):
        small("x")


def test_learned_positions_end() -> None:
    model = small("a", positions="learned", longest=8)
    with pytest.raises(ValueError, match="more than the 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
