"""Tuning a mixture of experts, for real."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from hasten.hardware import load_device
from hasten.tuning.tune import Settings, tune

TEXT = " ".join(f"The {n} birds of the river see {n * n} stones and the moon." for n in range(30))


def test_a_mixture_is_tuned_with_its_experts_packed(folder: Path, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    path = shutil.copytree(folder, tmp_path / "mixture")
    torch.manual_seed(5)
    config = MixtralConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, num_local_experts=4, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(path)
    settings = Settings(
        prompt=32, new_tokens=4, text=TEXT, text_name="birds", floor=0.5, seconds=None, trials=3, runs=1,
        reference="none",
    )  # fmt: skip
    found = tune(path, settings, device=load_device("cpu2"))
    measured = [c.measured for c in found.combinations if c.measured is not None]
    assert len(measured) >= 2
    assert min(figures.memory for figures in measured) < max(figures.memory for figures in measured)
