"""Layers in another order: against the model really built so, with and without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.runtime.decoding import layer_chain
from hasten.runtime.decoding.layer_chain import ChainAnswers, Chains, PathPredictor, ask_exactly, ask_options, chain
from hasten.tasks.questions import Question

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


@pytest.mark.parametrize("path", PATHS)
def test_cached_logits_are_those_without_a_cache(network: Any, path: tuple[int, ...]) -> None:
    ids = torch.randint(0, 211, (1, 20))
    model, chains = LanguageModel(network), Chains(LanguageModel(network), ids[0])
    with chain(model, path), torch.inference_mode():
        cache = model.new_cache(1, 20)
        rows = [model.prefill(ids[:, :12], cache)]
        rows += [model(ids[:, i : i + 1], past_key_values=cache).logits[0] for i in range(12, 20)]
    torch.testing.assert_close(torch.cat(rows), chains.logits(path, 9), atol=1e-4, rtol=0)


def test_the_whole_path_s_logits(network: Any) -> None:
    ids = torch.randint(0, 211, (1, 20))
    with torch.inference_mode():
        expected = network(ids).logits[0]
    found = Chains(LanguageModel(network), ids[0]).logits(range(3), 20)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_earlier_paths_left_changes_no_later_one(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_chain, "_BRANCHES", 5)  # some are given up in between
    model, ids = LanguageModel(llama), torch.randint(0, 211, (12,))
    depth = len(model.layers)
    whole = tuple(range(depth))
    paths = [whole, (0, *whole), (0, *whole[2:]), (0, *whole, depth - 1), (0, 0), (0, *whole), whole[::-1], (0, 0, 0)]
    chains = Chains(model, ids)
    for path in paths:
        assert torch.equal(chains.logits(path, 3), Chains(model, ids).logits(path, 3))


@pytest.mark.parametrize("path", PATHS)
def test_several_inputs_at_once(llama: Any, path: tuple[int, ...]) -> None:
    """Padding behind the shorter ones changes nothing: a static chain is scored in one batch."""
    model = LanguageModel(llama)
    inputs = [torch.randint(0, 211, (n,)) for n in (7, 19, 12)]
    together = Chains(model, inputs)
    alone = [Chains(model, ids) for ids in inputs]
    torch.testing.assert_close(
        together.logits(path, 5), torch.stack([c.logits(path, 5) for c in alone]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(together.mean_state(), torch.stack([c.mean_state() for c in alone]), atol=1e-4, rtol=0)


def test_experts_are_chosen_anew_in_a_repeated_layer() -> None:
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=211, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=128,
        sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.MixtralForCausalLM(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    ids, path = torch.randint(0, 211, (1, 15)), (0, 1, 1, 2)
    with torch.inference_mode():
        expected = built(network, path)(ids).logits[0]
    torch.testing.assert_close(Chains(LanguageModel(network), ids[0]).logits(path, 15), expected, atol=1e-4, rtol=1e-4)
    chosen: list[torch.Tensor] = []
    gate = network.model.layers[1].mlp.gate
    gate.register_forward_hook(lambda module, args, out: chosen.append(args[0].reshape(-1, 64) @ module.weight.t()))
    Chains(LanguageModel(network), ids[0]).logits(path)
    # The whole model once, then the repeated pass: the router saw another state.
    assert len(chosen) == 2
    assert not torch.equal(chosen[0].topk(2).indices, chosen[1].topk(2).indices)


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


def test_inputs_that_cannot_be(llama: Any) -> None:
    model = LanguageModel(llama)
    with pytest.raises(HastenError, match="512 positions"):
        Chains(model, torch.zeros(513, dtype=torch.int64))
    for none in (torch.zeros(0, dtype=torch.int64), []):
        with pytest.raises(HastenError, match="at least one token"):
            Chains(model, none)
    with pytest.raises(HastenError, match="ask for fewer"):
        Chains(model, torch.zeros(3, dtype=torch.int64)).logits(range(3), 4)
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    broken = Chains(model, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(HastenError, match="not a number"):
        broken.logits(range(3))
    assert torch.isfinite(broken.logits((0, 2))).all(), "a path around the damage still answers"


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


def test_what_is_asked_along_chains() -> None:
    loaded = tiny_model(layers=3)
    model = LanguageModel(loaded.network, loaded.tokenizer)
    whole = (0, 1, 2)
    question = Question("Which one?", ("this", "that", "none", "all"), 2)
    asked = ask_options(model, question)
    said = asked.answers(whole)
    assert asked.right(whole) == (said == (2,))
    assert not asked.wrong(whole), "the wrong answer is not what the whole model says"
    assert set(asked.answers.said) == {whole}
    prompt = "1 + 1 ="
    ids = loaded.tokenizer(prompt)["input_ids"]
    with torch.inference_mode():
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        second = int(model(torch.tensor([[*ids, first]])).logits[0, -1].argmax())
    greedy = ChainAnswers(Chains(model, torch.tensor([*ids, first])), last=2)
    assert greedy(whole) == (first, second)
    told = ask_exactly(model, prompt, " 2", " 3")
    assert len(told.answers(whole)) == 2
    assert not (told.right(whole) and told.wrong(whole))
