"""A model of random weights is all that a pretrained one is: a tokenizer, a cache, the compiled step."""

from __future__ import annotations

import torch

from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel


def test_a_byte_is_a_token_and_comes_back() -> None:
    tokenizer = tiny_model(layers=1).tokenizer
    ids = tokenizer("Fig. 1: 5 µs", add_special_tokens=False)["input_ids"]
    assert len(ids) == len("Fig. 1: 5 µs".encode())
    assert len(set(ids)) > 5
    assert max(ids) < 256
    assert tokenizer.decode(ids) == "Fig. 1: 5 µs"


def test_the_same_seed_is_the_same_model_and_torch_s_generator_stays() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (tiny_model(seed, layers=1).network for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_it_generates_as_many_tokens_as_asked() -> None:
    loaded = tiny_model(layers=2)
    model = LanguageModel(loaded.network, loaded.tokenizer)
    found = model.generate(torch.arange(9)[None], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert found.shape == (1, 14)
