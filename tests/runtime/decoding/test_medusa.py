"""Trees of guesses: greedy text stays what it is with any heads; masks, sizes, acceptance."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.runtime import CacheSpec, LanguageModel, language_model
from hasten.runtime.decoding.medusa import MedusaHeads, Tree, accepted, chain_tree, decode, typical
from hasten.runtime.decoding.medusa_training import fit, own_text
from hasten.runtime.policies import BlockTopKPolicy, SnapKVPolicy

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
TREES = [
    Tree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2,), (2, 0)]),
    chain_tree(3),
    Tree([(r,) for r in range(20)]),
]


@pytest.mark.slow_except(every=3)
@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("tree", TREES, ids=len)
def test_greedy_text_stays(network: Any, dtype: str, tree: Tree) -> None:
    torch.manual_seed(3)
    model = LanguageModel(network, cache=CacheSpec(dtype))
    heads = MedusaHeads(128, 3)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.randint(0, 211, (1, 40))
    expected = model.generate(ids, max_new_tokens=60, eos_token_id=None, do_sample=False)
    found = decode(model, heads, tree, ids, 60)
    assert torch.equal(found.ids, expected)
    assert found.steps <= found.made


def wide(paths: int, depth: int = 5) -> Tree:
    """A tree of so many paths: a chain of ``depth`` guesses or fewer, and the rest in turn at each depth."""
    chain = [(0,) * d for d in range(1, min(depth, paths) + 1)]
    others = [(*path[:-1], rank) for rank in range(1, paths) for path in chain]
    return Tree([*chain, *others[: paths - len(chain)]])


def right_at_random(seed: int, expected: list[int], cache_of: Callable[[], Any]) -> Callable[..., torch.Tensor]:
    """Guesses of which at each depth one, often at the first rank, is what the model will write."""
    drawn = random.Random(seed)

    def made(model: Any, heads: Any, hidden: Any, ranks: int) -> torch.Tensor:
        at = cache_of().lengths[0] + cache_of().dropped[0] + 1
        rows = torch.randint(0, 211, (5, ranks), generator=torch.Generator().manual_seed(at))
        for k in range(5):
            rows[k, drawn.choice((0, drawn.randrange(ranks)))] = (expected[at + k :] or [0])[0]
        return rows

    return made


def decoded(
    model: LanguageModel, tree: Tree, ids: torch.Tensor, new: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, Any]:
    """Greedy text by itself, and decoded with guesses of which many are right."""
    expected = model.generate(ids, max_new_tokens=new, eos_token_id=None, do_sample=False)
    session, held = LanguageModel.session, []

    def watched(*given: Any) -> Any:
        held.append(session(*given))
        return held[-1]

    guessing = right_at_random(len(tree), expected[0].tolist(), lambda: held[-1][0])
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "session", watched)
        patch.setattr("hasten.runtime.decoding.medusa.guesses", guessing)
        return expected, decode(model, MedusaHeads(128, 5), tree, ids, new)


SIZES = [1, 2, 32, 33, 63, 64]


@pytest.mark.slow_except(every=3)
@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("paths", SIZES)
def test_trees_of_every_size_are_exact_compiled(
    llama: Any, dtype: str, paths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = LanguageModel(llama, cache=CacheSpec(dtype)), torch.arange(37)[None] * 5 % 211
    assert model.why_not_compiled is None
    expected, found = decoded(model, wide(paths), ids, 90, monkeypatch)
    assert torch.equal(found.ids, expected)
    assert found.steps < found.made  # some guesses were right: paths were kept


@pytest.mark.slow_except(every=4)
@pytest.mark.parametrize("dtype", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("paths", SIZES)
def test_trees_of_every_size_are_exact_in_plain_torch(
    llama: Any, dtype: str, paths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model.compiled, "why_not", lambda network: "it shall not")
    model, ids = LanguageModel(llama, cache=CacheSpec(dtype)), torch.arange(37)[None] * 5 % 211
    expected, found = decoded(model, wide(paths), ids, 40, monkeypatch)
    assert torch.equal(found.ids, expected)
    assert found.steps < found.made


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_networks_without_a_compiled_step_decode_trees(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    torch.manual_seed(2)
    config = transformers.GemmaConfig(
        vocab_size=211, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, hidden_act="relu",
    )  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    model = LanguageModel(network)
    assert model.why_not_compiled is not None
    expected, found = decoded(model, Tree.published(), torch.arange(20)[None], 40, monkeypatch)
    assert torch.equal(found.ids, expected)
    assert found.steps < found.made


@needs_kernels
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_trees_go_with_a_prompt_that_snapkv_cut(llama: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(llama, cache=CacheSpec(dtype, policy=SnapKVPolicy(40, window=8)))
    ids = torch.randint(0, 211, (1, 150), generator=torch.Generator().manual_seed(4))
    expected, found = decoded(model, Tree.published(), ids, 60, monkeypatch)
    assert torch.equal(found.ids, expected)
    assert found.steps < found.made


def test_the_published_tree() -> None:
    tree = Tree.published()
    assert (len(tree), tree.depth, max(map(max, tree.paths))) == (64, 4, 9)
    assert [sum(d == depth for d in tree.depths) for depth in range(5)] == [1, 10, 28, 23, 2]
    assert (0, 0, 0, 1) in tree.paths
    assert (0, 7, 0) in tree.paths


@pytest.mark.slow_except(every=3)
@needs_kernels
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_right_guesses_change_nothing_over_a_rounded_cache(
    network: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several rows at once read what one by one would: no path goes on into the next block."""
    model = LanguageModel(network, cache=CacheSpec(dtype))
    for seed in range(8):
        ids = torch.randint(0, 211, (1, 40), generator=torch.Generator().manual_seed(seed))
        expected = model.generate(ids, max_new_tokens=60, eos_token_id=None, do_sample=False)
        session, text = LanguageModel.session, expected[0].tolist()
        held: list[Any] = []

        def watched(*given: Any, of: Any = session, held: list[Any] = held) -> Any:
            held.append(of(*given))
            return held[-1]

        def right(*given: Any, text: list[int] = text, held: list[Any] = held) -> torch.Tensor:
            at = held[-1][0].lengths[0] + 1
            return torch.tensor([[(text[at + k :] or [0])[0], 5, 7] for k in range(3)])

        monkeypatch.setattr(LanguageModel, "session", watched)
        monkeypatch.setattr("hasten.runtime.decoding.medusa.guesses", right)
        found = decode(model, MedusaHeads(128, 3), TREES[0], ids, 60)
        monkeypatch.undo()
        assert torch.equal(found.ids, expected)
        assert found.steps < 30


@needs_kernels
def test_a_chain_is_speculative_verification(llama: Any) -> None:
    """As many steps as when each head's best guess is held, in turn, against the text that the model writes alone."""
    model, heads, depth, prompt, new = LanguageModel(llama), MedusaHeads(128, 3), 3, 8, 60
    torch.manual_seed(1)
    ids, states = own_text(model, torch.randint(0, 211, (4, prompt)), new + 8)
    fit(heads, model, ids, states, seconds=2)
    for row, state in zip(ids.tolist(), states, strict=True):
        at, steps = prompt, 0
        while at - prompt + 1 < new:
            with torch.inference_mode():
                guessed = model.network.lm_head(heads(state[at - 1])).argmax(-1).tolist() if steps else []
            kept = 0
            while kept < len(guessed) and guessed[kept] == row[at + 1 + kept]:
                kept += 1
            at, steps = at + kept + 1, steps + 1
        found = decode(model, heads, chain_tree(depth), torch.tensor([row[:prompt]]), new)
        assert (found.steps, found.made) == (steps, at - prompt)
        assert found.made > found.steps


def test_at_their_start_heads_say_what_the_model_says(llama: Any) -> None:
    h = torch.randn(5, 128)
    assert torch.equal(MedusaHeads(128, 3)(h), h[:, None].expand(5, 3, 128))


def test_trees() -> None:
    tree = TREES[0]
    assert [bin(m).count("1") for m in tree.masks] == [d + 1 for d in tree.depths]
    assert len(Tree([(i,) for i in range(64)])) == 65
    with pytest.raises(HastenError, match="at most 64 guesses"):
        Tree([(i,) for i in range(65)])
    with pytest.raises(HastenError, match="parent"):
        Tree([(0, 1)])
    accuracy = [[0.6, 0.2, 0.1], [0.4, 0.1, 0.05]]
    best = Tree.best(accuracy, 3)
    assert best.paths == [(0,), (1,), (0, 0)]
    assert best.expected(accuracy) == pytest.approx(1 + 0.6 + 0.2 + 0.24)


def test_acceptance_takes_the_longest_path() -> None:
    tree = Tree([(0,), (1,), (1, 0)])
    allowed = {(0, 10), (0, 11), (2, 12)}
    assert accepted(tree, [5, 10, 11, 12], lambda node, token: (node, token) in allowed) == [0, 2, 3]
    assert accepted(tree, [5, 10, 11, 12], lambda node, token: False) == [0]
    # Of equally long ones the likeliest.
    wide, likely = Tree([(0,), (1,), (2,)]), {10: -2.0, 11: -0.5, 12: -1.0}
    found = accepted(wide, [5, 10, 11, 12], lambda node, token: True, lambda node, token: likely[token])
    assert found == [0, 2]
    assert accepted(wide, [5, 10, 11, 12], lambda node, token: True) == [0, 1]


@needs_kernels
def test_typical_acceptance_decodes(llama: Any) -> None:
    torch.manual_seed(0)
    model, ids = LanguageModel(llama), torch.randint(0, 211, (1, 12))
    heads = MedusaHeads(128, 2)
    greedy = model.generate(ids, max_new_tokens=20, eos_token_id=None, do_sample=False)
    # So cold that the model is sure of every token.
    assert torch.equal(decode(model, heads, chain_tree(2), ids, 20, temperature=1e-4).ids, greedy)
    warm = decode(model, heads, chain_tree(2), ids, 20, temperature=1.0).ids
    assert warm.shape == greedy.shape
    assert not torch.equal(warm, greedy)


def test_typical_acceptance_depends_on_certainty() -> None:
    flat = torch.full((1000,), 1e-3)
    sure = torch.tensor([0.97, *[0.03 / 999] * 999])
    assert typical(flat, 3)
    assert typical(sure, 0)
    assert not typical(sure, 3)


@needs_kernels
def test_what_it_does_not_do(llama: Any) -> None:
    ids = torch.randint(0, 211, (2, 9))
    with pytest.raises(HastenError, match="one sequence"):
        decode(LanguageModel(llama), MedusaHeads(128), TREES[0], ids, 4)
    with pytest.raises(HastenError, match="512 positions"):
        decode(LanguageModel(llama), MedusaHeads(128), TREES[0], ids[:1], 600)
    for cache in (CacheSpec(window=16), CacheSpec(policy=BlockTopKPolicy(2, 2))):
        with pytest.raises(HastenError, match="reads all of its cache: a new token reads a part"):
            decode(LanguageModel(llama, cache=cache), MedusaHeads(128), TREES[0], ids[:1], 4)
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(HastenError, match="not a number"):
        decode(LanguageModel(llama), MedusaHeads(128), TREES[0], ids[:1], 4)
