"""Published names: registered beside what builds them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hasten.models
from hasten.errors import HastenError
from hasten.models import named, registry
from hasten.runtime.subject import read_subject


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    registry.builders()
    before = dict(registry._BUILDERS)
    yield
    registry._BUILDERS.clear()
    registry._BUILDERS.update(before)
    registry._load.cache_clear()


def test_a_decorator_in_a_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from hasten.models.registry import published\nfrom torch import nn\n\n\n"
        '@published(["mine-1m"])\ndef build(name):\n    return nn.Linear(4, 4)\n'
    )
    monkeypatch.setattr(hasten.models, "__path__", [*hasten.models.__path__, str(tmp_path)])
    registry._load.cache_clear()
    assert "mine-1m" in named.names()
    model: Any = named.build("mine-1m")
    assert (model.weight.device.type, model.weight.dtype) == ("meta", torch.bfloat16)
    importlib.import_module("hasten.models.mine")


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match=r"name of MambaLM\.named already"):
        registry.published(["mamba-130m"])(lambda name: None)
    assert named.is_named("mamba-130m")
    with pytest.raises(HastenError, match="no model is called 'mamba-131m'"):
        named.build("mamba-131m")


# Parameters of the releases' own cards, in billions.
@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-2-7b", 6.74), ("llama-2-13b", 13.02), ("llama-2-70b", 68.98), ("llama-3.1-8b", 8.03),
     ("llama-3.1-70b", 70.55)],
)  # fmt: skip
def test_llama_at_its_published_sizes(name: str, billions: float) -> None:
    model = named.build(name)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_name_is_a_subject_to_estimate() -> None:
    subject = read_subject("llama-2-7b", prompt=32, new_tokens=4)
    workload = subject.workload()
    decode = workload.phases[1].cascade
    # Two operations a weight and token, but for the table of tokens.
    assert sum(e.flops for e in decode.einsums) == pytest.approx(2 * 6.6e9, rel=0.02)
    with pytest.raises(HastenError, match="more than the model's 4096 positions"):
        read_subject("llama-2-7b", prompt=5000)
