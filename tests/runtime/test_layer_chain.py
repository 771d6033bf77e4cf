"""Layers in another order: against the model really built so, with and without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.runtime import LanguageModel
from hasten.runtime.layer_chain import Chains, PathPredictor, chain

PATHS = [(0, 1, 2), (0, 2), (0, 1, 1, 2), (2, 0, 1, 0, 2), (1,)]


def built(network: Any, path: tuple[int, ...]) -> Any:
    """The network with its modules deleted and copied, weights and all."""
    other = copy.deepcopy(network)
    other.model.layers = nn.ModuleList(copy.deepcopy(network.model.layers[i]) for i in path)
    for i, layer in enumerate(other.model.layers):
        layer.self_attn.layer_idx = i
    other.config.num_hidden_layers = len(path)
    if getattr(other.config, "layer_types", None):
        other.config.layer_types = ["full_attention"] * len(path)
    return other


@pytest.mark.parametrize("path", PATHS)
def test_a_chain_is_the_model_built_so(network: Any, path: tuple[int, ...]) -> None:
    ids = torch.randint(0, 211, (1, 23))
    model = LanguageModel(network)
    with torch.inference_mode():
        expected = built(network, path)(ids).logits[0]
    torch.testing.assert_close(Chains(model, ids[0]).logits(path, 23), expected, atol=1e-4, rtol=0)
    with chain(model, path), torch.inference_mode():
        torch.testing.assert_close(model(ids).logits[0], expected, atol=1e-4, rtol=0)
    assert len(model.layers) == 3


@pytest.mark.parametrize("path", PATHS)
def test_cached_decoding_is_decoding_anew(llama: Any, path: tuple[int, ...]) -> None:
    prompt = torch.randint(0, 211, (1, 12))
    model = LanguageModel(llama)
    with chain(model, path):
        assert model.new_cache(1, 40).layers.__len__() == len(path)
        made = model.generate(prompt, max_new_tokens=12, do_sample=False)
    again = built(llama, path)
    with torch.inference_mode():
        for at in range(12, made.shape[1]):
            assert int(again(made[:, :at]).logits[0, -1].argmax()) == int(made[0, at])


def test_the_whole_path_changes_nothing(llama: Any) -> None:
    prompt = torch.randint(0, 211, (1, 9))
    model = LanguageModel(llama)
    before = model.generate(prompt, max_new_tokens=15, do_sample=False)
    with chain(model, range(3)):
        assert torch.equal(model.generate(prompt, max_new_tokens=15, do_sample=False), before)
    assert torch.equal(model.generate(prompt, max_new_tokens=15, do_sample=False), before)


def test_a_path_with_other_layers_is_refused(llama: Any) -> None:
    for path in ([], [0, 3], [-1]):
        with pytest.raises(HastenError, match="a path is a list of layers"), chain(LanguageModel(llama), path):
            pass


def test_the_predictor_learns_which_path_suits() -> None:
    torch.manual_seed(0)
    states = torch.randn(64, 8)
    valid = torch.stack([states[:, 0] > 0, states[:, 0] <= 0], 1)
    predictor = PathPredictor(8, [(0, 1), (0, 2)], threshold=0.6)
    predictor.fit(states, valid)
    assert predictor.choose(torch.tensor([3.0, *[0.1] * 7])) == (0, 1)
    assert predictor.choose(torch.tensor([-3.0, *[0.1] * 7])) == (0, 2)
    sure = PathPredictor(8, [(0, 1)], threshold=1.1)
    assert sure.choose(states[0]) is None
