"""Files of block formats run in the compiled step as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.kernels import native
from hasten.models import load_packed
from hasten.runtime import LanguageModel

from ..models.conftest import write_random


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K", "IQ4_XS"])
def test_a_file_in_blocks_runs_in_the_compiled_step(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    write_random(path, (256, 2, 4, 2, 512, 300), kind)
    ids = torch.randint(1, 300, (1, 20), generator=torch.Generator().manual_seed(2))
    for int8 in (False, True):
        network = load_packed(path, int8=int8).network
        model = LanguageModel(network)
        assert model.why_not_compiled is None
        expected = network.generate(ids, max_new_tokens=8, do_sample=False)
        assert model.generate(ids, max_new_tokens=8, do_sample=False).tolist() == expected.tolist()
