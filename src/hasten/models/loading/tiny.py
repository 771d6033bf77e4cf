"""A language model of random weights that reads bytes: where code shall run and no figure counts."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hasten.models.language.llama import small_llama
from hasten.models.loading.loaded import Loaded


def tiny_model(seed: int = 0, *, layers: int = 6, positions: int = 4096) -> Loaded:
    """A Llama of about a million random weights with a tokenizer of one token for each byte.

    It stands in for a pretrained model in quick runs and tests: it has all that one has, and is made in no time.

    Args:
        seed: of the weights; torch's own generator stays as it is.
        layers: decoder layers.
        positions: the longest text.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = small_llama(
            256, width=128, inner=256, layers=layers, heads=4, kv_heads=2, positions=positions, tied=True
        ).eval()
    network.generation_config.eos_token_id = network.generation_config.pad_token_id = None
    loaded = Loaded(network, f"{layers} random layers", f"tiny:{seed}:{layers}", f"tiny-{seed}-{layers}")
    loaded.__dict__["tokenizer"] = _bytes_tokenizer()
    return loaded


def _bytes_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
