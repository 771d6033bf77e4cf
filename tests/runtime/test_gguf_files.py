"""Packed GGUF files of every family give the tokens of the network that was converted."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from hasten.models import load_network, load_packed
from hasten.runtime import LanguageModel

from ..models.conftest import vocabulary
from ..models.converted import CONVERTED, convert, tiny_network


@pytest.mark.parametrize("family", CONVERTED)
def test_a_packed_file_gives_the_networks_tokens(tmp_path: Path, family: str) -> None:
    path = convert(tiny_network(family), tmp_path / "m.gguf", family, gguf.GGMLQuantizationType.Q8_0)
    ids = torch.randint(3, len(vocabulary()), (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = load_network(path).network.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    model = LanguageModel(load_packed(path).network)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None), expected)
