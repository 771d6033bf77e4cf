"""One view of a decoder, over transformers' families and hasten's own models."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.decoder import Decoder, Layout, chained, decoder_of, is_decoder
from hasten.models.language.blockffn_lm import BlockFFNConfig, BlockFFNLM
from hasten.models.language.bmojo_lm import BMojoConfig, BMojoLM
from hasten.models.language.mamba_lm import MambaConfig, MambaLM
from hasten.models.language.matmul_free import MatMulFreeConfig, MatMulFreeLM
from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text")


def tiny(family: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


OWN = {
    "mamba": lambda: MambaLM(MambaConfig(32, 2, 60)),
    "matmul-free": lambda: MatMulFreeLM(MatMulFreeConfig(32, 2, 60)),
    "smallthinker": lambda: SmallThinkerLM(SmallThinkerConfig(width=32, layers=2, heads=2, kv_heads=1, head_dim=16)),
    "blockffn": lambda: BlockFFNLM(BlockFFNConfig(layers=2)),
    "bmojo": lambda: BMojoLM(BMojoConfig("bw")),
}


def by_hand(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a transformers network, put together from the view's parts."""
    state = decoder.embedding(ids)
    places = torch.arange(ids.shape[1])[None]
    mask = torch.full((ids.shape[1], ids.shape[1]), -1e9).triu(1)[None, None]
    # Gemma 3 turns its windowed layers at another base.
    kinds = getattr(decoder.config, "layer_types", None)
    for i in range(len(decoder.layers)):
        if type(decoder.network).__name__.startswith("Gemma3"):
            turns = decoder.rotary(state, places, kinds[i])
        else:
            turns = decoder.rotary(state, places)
        out = decoder.layer(i).module(state, position_embeddings=turns, attention_mask=mask)
        state = out[0] if isinstance(out, tuple) else out
    logits = decoder.head(decoder.norm(state))
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_network_is_the_sum_of_its_parts(family: str) -> None:
    network = tiny(family)
    network.config._attn_implementation = "eager"
    decoder = decoder_of(network)
    assert isinstance(decoder, Decoder)
    assert decoder.network is network
    assert decoder.config is network.config
    assert len(decoder.layers) == 3
    assert decoder.embedding is network.get_input_embeddings()
    assert decoder.head is network.get_output_embeddings()
    ids = torch.randint(0, 60, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(by_hand(decoder, ids), network(ids).logits, atol=2e-5, rtol=1e-4)
        state = decoder.new_state(2)
        first = network(ids[:, :4], past_key_values=state).logits
        then = network(ids[:, 4:], past_key_values=state).logits
        torch.testing.assert_close(torch.cat((first, then), 1), network(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_norms_what_its_parts_read(family: str) -> None:
    network = tiny(family)
    decoder = decoder_of(network)
    for i in range(3):
        layer = decoder.layer(i)
        seen: dict[str, torch.Tensor] = {}

        def before(module: Any, args: Any, kwargs: Any, name: str, seen: dict[str, Any] = seen) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        def after(module: Any, args: Any, out: Any, name: str, seen: dict[str, Any] = seen) -> None:
            seen[name] = out

        for name in ("attention", "feed_forward"):
            getattr(layer, name).register_forward_pre_hook(
                lambda m, a, k, name=name, f=before: f(m, a, k, name), with_kwargs=True
            )
            getattr(layer, f"{name}_norm").register_forward_hook(
                lambda m, a, o, name=name, f=after: f(m, a, o, f"{name}_norm")
            )
        with torch.no_grad():
            network(torch.arange(5)[None])
        for name in ("attention", "feed_forward"):
            assert torch.equal(seen[name], seen[f"{name}_norm"])


@pytest.mark.parametrize("name", OWN)
def test_models_of_hasten_are_decoders(name: str) -> None:
    torch.manual_seed(0)
    model = OWN[name]().eval()
    decoder = decoder_of(model)
    assert len(decoder.layers) == 2
    assert decoder.config is model.config
    assert decoder.rotary is None
    ids = torch.randint(0, 60, (1, 7))
    seen: list[str] = []
    for i in range(2):
        layer = decoder.layer(i)
        assert layer.module is decoder.layers[i]
        layer.attention.register_forward_hook(lambda *_, i=i: seen.append(f"attention {i}"))
        assert layer.attention_norm is not None
        assert (layer.feed_forward is None) == (layer.feed_forward_norm is None)
        if layer.feed_forward is not None:
            layer.feed_forward.register_forward_hook(lambda *_, i=i: seen.append(f"feed-forward {i}"))
    decoder.norm.register_forward_hook(lambda *_: seen.append("norm"))
    decoder.head.register_forward_hook(lambda *_: seen.append("head"))
    decoder.embedding.register_forward_hook(lambda *_: seen.append("embedding"))
    with torch.no_grad():
        whole = model(ids)
        state = decoder.new_state(1)
        steps = [model(ids[:, t : t + 1], state) for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-3)
    parts = [p for i in range(2) for p in (f"attention {i}", f"feed-forward {i}")]
    assert seen[: seen.index("head") + 1] == [
        "embedding", *(p for p in parts if name != "mamba" or p.startswith("attention")), "norm", "head"
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_leave(family: str) -> None:
    network = tiny(family)
    kinds = list(getattr(network.config, "layer_types", None) or [])
    decoder = decoder_of(network)
    first, _, last = decoder.layers
    decoder.replace_layers([first, last], [0, 2])
    assert list(decoder.layers) == [first, last]
    assert network.config.num_hidden_layers == 2
    assert [decoder.layer(i).attention.layer_idx for i in range(2)] == [0, 1]
    if kinds:
        assert network.config.layer_types == [kinds[0], kinds[2]]
    with torch.no_grad():
        network.generate(torch.arange(1, 5)[None], max_new_tokens=3, do_sample=False)
    with pytest.raises(ValueError, match="one number each"):
        decoder.replace_layers([first], [0, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_shares_weights_and_leaves_no_trace(family: str) -> None:
    network = tiny(family)
    decoder = decoder_of(network)
    ids = torch.randint(0, 60, (1, 6))
    kinds = list(getattr(network.config, "layer_types", None) or [])
    with torch.no_grad():
        before = network(ids).logits
        with chained(decoder, (2, 0, 0, 1)):
            assert len(decoder.layers) == network.config.num_hidden_layers == 4
            weights = [decoder.layer(i).attention.q_proj for i in (1, 2)]
            assert weights[0] is weights[1]
            text = network.generate(ids, max_new_tokens=3, do_sample=False)
            # Each occurrence has its own place in the cache: a step equals the whole text read again.
            assert int(network(text[:, :-1]).logits[0, -1].argmax()) == int(text[0, -1])
        assert torch.equal(network(ids).logits, before)
    assert list(getattr(network.config, "layer_types", None) or []) == kinds


def test_a_class_of_the_users_own_says_where_its_parts_are() -> None:
    class Mine(nn.Module):
        layout: ClassVar[Layout] = Layout(
            layers=("blocks",), embedding=("table",), norm=("last",), head=("out",), rotary=(), attention=("mix",)
        )

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.ModuleDict({"mix": nn.Linear(4, 4)})])
            self.table, self.last, self.out = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)

    mine = Mine()
    decoder = decoder_of(mine)
    assert decoder.layer(0).attention is mine.blocks[0]["mix"]
    assert decoder.layer(0).feed_forward is None
    assert decoder.head is mine.out
    assert decoder.rotary is None


def test_what_is_no_decoder_is_refused_in_one_line() -> None:
    assert not is_decoder(nn.Linear(2, 2))
    assert is_decoder(tiny("Llama"))
    with pytest.raises(HastenError, match="the layers of Linear are nowhere that hasten knows: give its class"):
        decoder_of(nn.Linear(2, 2))
