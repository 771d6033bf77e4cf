"""Rotary positions as files scale them: what transformers makes of the same rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.models import load_network

from ..conftest import logits, tiny, write_gguf

SCALE = "rope.scaling."


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 200, (1, 100), generator=torch.Generator().manual_seed(1))


def scaled(**rope: Any) -> Any:
    return tiny("llama", rope_parameters={"rope_theta": 1e5, **rope})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GROWN = 1 + 0.1 * float(np.log(4))
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kind and factor": (
        {SCALE + "type": "linear", SCALE + "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "factor alone": ({SCALE + "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "the older key": ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "a factor of 0": ({SCALE + "type": "linear", SCALE + "factor": 0.0}, {"rope_type": "default"}),
    "none, and a factor": ({SCALE + "type": "none", SCALE + "factor": 4.0}, {"rope_type": "default"}),
    "yarn": (
        {SCALE + "type": "yarn", SCALE + "factor": 4.0, SCALE + "original_context_length": 32},
        YARN,
    ),
    "yarn of other turns": (
        {
            SCALE + "type": "yarn",
            SCALE + "factor": 4.0,
            SCALE + "original_context_length": 32,
            SCALE + "yarn_beta_fast": 16.0,
            SCALE + "yarn_beta_slow": 2.0,
            SCALE + "yarn_ext_factor": -1.0,
        },
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    ),
    "yarn of another attention": (
        {
            SCALE + "type": "yarn",
            SCALE + "factor": 4.0,
            SCALE + "original_context_length": 32,
            SCALE + "attn_factor": 0.8,
        },
        {**YARN, "attention_factor": 0.8 * GROWN},
    ),
    "yarn as DeepSeek's": (
        {
            SCALE + "type": "yarn",
            SCALE + "factor": 4.0,
            SCALE + "original_context_length": 32,
            SCALE + "yarn_log_multiplier": 0.5,
        },
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_scaled_positions_are_those_of_transformers(tmp_path: Path, ids: torch.Tensor, case: str) -> None:
    metadata, rope = CASES[case]
    network = scaled(**rope)
    found = load_network(write_gguf(network, tmp_path / "m.gguf", "llama", metadata=metadata)).network
    torch.testing.assert_close(logits(found, ids), logits(network, ids), rtol=0, atol=1e-5)


def test_divisors_of_frequencies_are_read_from_their_tensors(tmp_path: Path, ids: torch.Tensor) -> None:
    short, long = (np.linspace(1, most, 16, dtype=np.float32) for most in (2, 9))
    network = scaled(
        rope_type="longrope",
        short_factor=short.tolist(),
        long_factor=long.tolist(),
        original_max_position_embeddings=64,
        attention_factor=1.25,
    )
    path = write_gguf(
        network,
        tmp_path / "m.gguf",
        "llama",
        metadata={SCALE + "type": "longrope", SCALE + "original_context_length": 64, SCALE + "attn_factor": 1.25},
        tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
    )
    found = load_network(path).network
    for length in (40, 100):
        torch.testing.assert_close(logits(found, ids[:, :length]), logits(network, ids[:, :length]), rtol=0, atol=1e-5)
    plain = tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e5})
    found = load_network(write_gguf(plain, tmp_path / "d.gguf", "llama", tensors={"rope_freqs.weight": short})).network
    expected = plain.model.rotary_emb.inv_freq / torch.from_numpy(short)
    torch.testing.assert_close(found.model.rotary_emb.inv_freq, expected)


def test_divisors_that_are_none_are_one_line(tmp_path: Path) -> None:
    for number, wrong in enumerate((np.ones(5, np.float32), np.zeros(16, np.float32))):
        path = write_gguf(tiny("llama"), tmp_path / f"{number}.gguf", "llama", tensors={"rope_freqs.weight": wrong})
        with pytest.raises(HastenError, match="no rotary frequencies of heads of 32: fetch it again"):
            load_network(path)


def test_scaling_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    for number, wrong in enumerate(({"type": "spiral"}, {"type": "yarn", "factor": 2.0, "yarn_ext_factor": 0.5})):
        metadata = {SCALE + key: value for key, value in wrong.items()}
        path = write_gguf(tiny("llama"), tmp_path / f"{number}.gguf", "llama", metadata=metadata)
        with pytest.raises(HastenError, match="scales its rotary positions"):
            load_network(path)
