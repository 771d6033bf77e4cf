"""Heads removed from attention of every kind: answers as with them masked, smaller matrices, one description."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.methods import Context, HeadPruning, from_dict
from hasten.methods.editing import outline
from hasten.methods.network_heads import head_importance
from hasten.models.attention_heads import AttentionLayer, attention_layers, prune_heads
from hasten.nn.denoising_blocks import MapCrossTransformer
from hasten.nn.lowtention import Lowtention, MapAttention
from hasten.nn.mask_unit import MaskUnitAttention
from hasten.runtime.network import Inputs, Network, difference

WIDTH, HEADS = 24, 4


class Fused(nn.Module):
    """One layer for all three, eager arithmetic, and code that takes its width from what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Interleaved(nn.Module):
    """Rows of the first head's queries, keys and values come first; code for any number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.n_heads, 3, -1)).transpose(1, 2).unbind(3)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))


class Apart(nn.Module):
    """Three layers and a norm of each head; the last is in another module, as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_head_size, self.all_head_size = WIDTH // HEADS, WIDTH
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.RMSNorm(WIDTH // HEADS)
        self.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        shape = (*x.shape[:-1], -1, self.attention_head_size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(self.norm(q), self.norm(k), v)
        return self.output["dense"](y.transpose(1, 2).reshape(*x.shape[:-1], self.all_head_size)), None


class Grouped(nn.Module):
    """Two heads of queries to each of keys and values, in three layers or in one, rows of each group together."""

    def __init__(self, how: str = "apart") -> None:
        super().__init__()
        self.how, self.num_heads, self.num_kv_heads = how, 2 * HEADS, HEADS
        self.wide, self.size = 2 * WIDTH, WIDTH // HEADS
        if how == "apart":
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, n * WIDTH) for n in (2, 1, 1))
        else:
            self.qkv = nn.Linear(WIDTH, 4 * WIDTH)
        self.o_proj = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        size, groups = self.size, self.num_kv_heads
        if self.how == "apart":
            q, k, v = (layer(x).unflatten(-1, (-1, size)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        elif self.how == "together":
            rows = self.qkv(x).split([self.wide, groups * size, groups * size], -1)
            q, k, v = (t.unflatten(-1, (-1, size)) for t in rows)
        else:  # the queries of a group, its keys, its values
            q, k, v = self.qkv(x).unflatten(-1, (groups, 4, size)).split([2, 1, 1], -2)
            q, k, v = (t.flatten(-3, -2) for t in (q, k, v))
        k, v = (t.repeat_interleave(self.num_heads // groups, -2) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:-1], self.wide))


class Windows(nn.Module):
    """As in Swin: windows of 3x3 positions, and a table with a bias of each head for how far two of them lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.relative_position_bias_table = nn.Parameter(torch.randn(25, HEADS))
        places = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        apart = places[:, None] - places + 2
        self.register_buffer("relative_position_index", apart[..., 0] * 5 + apart[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()].view(9, 9, -1)
        weights = (q * self.scale @ k.transpose(-2, -1) + bias.permute(2, 0, 1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class First(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.attn = module

    def forward(self, *given: Any) -> Tensor:
        found = self.attn(*given)
        return found[0] if isinstance(found, tuple) else found


class Torchs(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **masks: Any) -> Tensor:
        return self.attn(query, key, value, **masks)[0]


def kinds() -> dict[str, tuple[nn.Module, tuple[Any, ...], str]]:
    """Name -> a module, what it is called with, and the layer that reads its heads."""
    x, image = torch.randn(2, 9, WIDTH), torch.randn(2, WIDTH, 4, 6)
    encoder = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=True))
    return {
        "fused": (First(Fused()), (x,), "attn.proj"),
        "interleaved": (First(Interleaved()), (x,), "attn.proj"),
        "apart": (First(Apart()), (x,), "attn.output.dense"),
        "grouped": (First(Grouped()), (x,), "attn.o_proj"),
        "grouped, one layer": (First(Grouped("together")), (x,), "attn.o_proj"),
        "grouped, heads first": (First(Grouped("groups")), (x,), "attn.o_proj"),
        "windows": (First(Windows()), (x,), "attn.proj"),
        "torch's layer": (encoder, (x,), "0.self_attn.out_proj"),
        "torch's to others": (Torchs(bias=False), (x, *[torch.randn(7, 9, WIDTH)] * 2), "attn.out_proj"),
        "three inputs": (Torchs(), tuple(torch.randn(2, 3, WIDTH) for _ in range(3)), "attn.out_proj"),
        "maps": (First(MapAttention(WIDTH, WIDTH // HEADS)), (image,), "attn.project"),
        "lowtention": (First(Lowtention(240, fused=False)), (torch.randn(2, 240, 4, 6),), "attn.project"),
        "mask units": (First(MaskUnitAttention(WIDTH, WIDTH, HEADS, 4, pool=True)), (torch.randn(2, 8, WIDTH),),
                       "attn.project"),
    }  # fmt: skip


NAMES = list(kinds())


def made(kind: str) -> tuple[Network, str]:
    torch.manual_seed(1)
    module, args, out = kinds()[kind]
    if kind == "torch's to others":
        args = (torch.randn(3, 9, WIDTH), *args[1:])
    return Network(module.eval(), Inputs(args)), out


def masked(module: nn.Module, out: str, heads: tuple[int, ...]) -> None:
    """What a head makes is multiplied by zeros in the layer behind."""
    weight: Any = module.get_submodule(out).weight
    size = weight.shape[1] // HEADS
    with torch.no_grad():
        for head in heads:
            weight[:, head * size : (head + 1) * size] = 0


@pytest.mark.parametrize("kind", NAMES)
def test_without_heads_it_answers_as_with_them_masked(kind: str) -> None:
    base, out = made(kind)
    assert [a.heads for a in attention_layers(base.module, base.inputs.args)] == [HEADS]
    path = attention_layers(base.module, base.inputs.args)[0].path
    method = HeadPruning(0.5, ((path, HEADS, (0, 3)),))
    before, weights = base.answers(), {k: v.clone() for k, v in base.module.state_dict().items()}
    changed = method.apply(base.twin())
    reference, _ = made(kind)
    masked(reference.module, out, (0, 3))
    assert difference(reference.answers(), changed.answers()) < 1e-5
    assert difference(before, changed.answers()) > 1e-3
    assert base.held_bytes - changed.held_bytes > 0.4 * 4 * 4 * WIDTH * WIDTH
    assert difference(before, base.answers()) == 0
    assert all(torch.equal(v, weights[k]) for k, v in base.module.state_dict().items())
    assert outline(method.rewrite(base.workload())) == outline(changed.workload())
    assert method.rewrite(base.workload()).flops < base.workload().flops


def test_masks_of_torch_s_attention_mean_what_they_meant() -> None:
    torch.manual_seed(2)
    x, causal = torch.randn(2, 5, WIDTH), nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    each = torch.randn(2 * HEADS, 5, 5)
    for masks in (
        {"attn_mask": causal, "need_weights": False},
        {"attn_mask": causal < 0, "key_padding_mask": padding},
        {"attn_mask": each, "need_weights": False},
        {"key_padding_mask": padding, "need_weights": False},
    ):
        module = Torchs(batch_first=True).eval()
        expected = Torchs(batch_first=True).eval()
        expected.load_state_dict(module.state_dict())
        masked(expected, "attn.out_proj", (1,))
        prune_heads(module, {"attn": (1,)}, (x, x, x))
        assert torch.allclose(module(x, x, x, **masks), expected(x, x, x, **masks), atol=1e-6), masks
        assert torch.allclose(module(x[0], x[0], x[0]), expected(x[0], x[0], x[0]), atol=1e-6)
        weights = module.attn(x, x, x, **{**masks, "need_weights": True})[1]
        assert torch.allclose(weights.sum(-1), torch.ones(2, 5), atol=1e-5)


def test_layers_of_transformers_and_of_this_library_are_found() -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    vit = Network(ViTModel(config, add_pooling_layer=False).eval(), Inputs((torch.randn(1, 3, 16, 16),)))
    found = attention_layers(vit.module, vit.inputs.args)
    assert [a.heads for a in found] == [4, 4]
    method = HeadPruning(0.25).ranked(vit)
    assert sum(len(gone) for _, _, gone in method.layers) == 2
    changed = method.apply(vit.twin())
    assert outline(method.rewrite(vit.workload())) == outline(changed.workload())
    block = MapCrossTransformer(32, 16, 8)
    given = (torch.randn(1, 32, 3, 3), torch.randn(1, 5, 16))
    assert [a.heads for a in attention_layers(block, given)] == [4, 4]


def test_queries_of_a_group_and_a_head_s_bias_go_with_it() -> None:
    torch.manual_seed(4)
    grouped, x = First(Grouped()).eval(), torch.randn(2, 9, WIDTH)
    assert attention_layers(grouped, (x,)) == [AttentionLayer("attn", HEADS, 2)]
    prune_heads(grouped, {"attn": (1,)}, (x,))
    made: Any = grouped.attn
    assert (made.num_heads, made.num_kv_heads, made.wide) == (6, 3, 36)
    assert [made.q_proj.out_features, made.k_proj.out_features, made.o_proj.in_features] == [36, 18, 36]
    assert attention_layers(grouped, (x,)) == [AttentionLayer("attn", HEADS - 1, 2)]
    windows = First(Windows()).eval()
    table: Any = windows.attn.relative_position_bias_table
    prune_heads(windows, {"attn": (0, 2)}, (x,))
    assert torch.equal(windows.attn.relative_position_bias_table, table[:, [1, 3]])


def test_swin_and_grouped_layers_of_transformers_are_found() -> None:
    from transformers import LlamaConfig, LlamaModel, SwinConfig, SwinModel

    swin = SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=2),
        add_pooling_layer=False,
    )
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=8,
            num_key_value_heads=2,
        )
    )  # fmt: skip
    for module, given, heads, queries in (
        (swin, torch.randn(1, 3, 16, 16), [2, 4], 1),
        (llama, torch.tensor([[1, 5, 3]]), [2], 4),
    ):
        network = Network(module.eval(), Inputs((given,)))
        found = attention_layers(network.module, network.inputs.args)
        assert [(a.heads, a.queries) for a in found] == [(h, queries) for h in heads]
        method = HeadPruning(0.5, tuple((a.path, a.heads, (1,)) for a in found))
        changed = method.apply(network.twin())
        assert outline(method.rewrite(network.workload())) == outline(changed.workload())


def test_the_heads_that_matter_least_go_and_one_stays_in_each_layer() -> None:
    torch.manual_seed(3)
    layers = [nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True) for _ in range(2)]
    network = Network(nn.Sequential(*layers).eval(), Inputs((torch.randn(2, 5, WIDTH),)))
    size = WIDTH // HEADS
    with torch.no_grad():  # of the first layer's heads only 2 is read, and of the second's all
        weight = layers[0].self_attn.out_proj.weight
        weight[:, : 2 * size] = 0
        weight[:, 3 * size :] = 0
    importance = head_importance(network)
    assert [importance["0.self_attn", h] for h in (0, 1, 3)] == [0, 0, 0]
    assert min(importance[k] for k in importance if k not in {("0.self_attn", h) for h in (0, 1, 3)}) > 0
    assert HeadPruning(3 / 8).ranked(network).layers == (("0.self_attn", HEADS, (0, 1, 3)),)
    most = HeadPruning(0.9).ranked(network)
    assert [len(gone) for _, _, gone in most.layers] == [3, 3]
    before = network.answers()
    assert difference(before, HeadPruning(3 / 8).apply(network.twin()).answers()) < 1e-5
    assert torch.equal(weight, layers[0].self_attn.out_proj.weight)  # as it was after the masks
    assert difference(before, network.answers()) == 0


def test_a_short_budget_ranks_few_examples_or_none() -> None:
    network, _ = made("torch's layer")

    def context(seconds: float | None) -> Context:
        return Context(network, (), None, (), 0, seconds=seconds)

    assert HeadPruning.candidates(context(None)) == HeadPruning.candidates(context(600.0))
    (short,) = HeadPruning.candidates(context(1e-6))
    assert not short.layers
    assert "a larger --budget" in str(short.why_not_tried(context(1e-6)))
    assert head_importance(network, 0.0).keys() == head_importance(network).keys()


def test_it_is_written_with_its_heads_and_refused_in_a_line() -> None:
    network, _ = made("torch's layer")
    method = HeadPruning(0.5).ranked(network)
    assert from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert "no attention" in str(HeadPruning().why_not(Network(nn.Linear(2, 2), Inputs((torch.ones(1, 2),)))))
    assert "found on the network itself" in str(HeadPruning().why_not_described(network.workload()))
    assert "no attention of 4 heads" in str(HeadPruning(0.5, (("1.attn", 4, (0,)),)).why_not(network))
    for wrong in ({"share": 1.0}, {"layers": (("a", 2, (0, 1)),)}):
        with pytest.raises(HastenError):
            HeadPruning(**wrong)
    with pytest.raises(HastenError, match="one of which stays"):
        prune_heads(network.module, {"0.self_attn": (0, 1, 2, 3)}, network.inputs.args)
    with pytest.raises(HastenError, match="no attention whose heads"):
        prune_heads(network.module, {"0.linear1": (0,)}, network.inputs.args)
    assert attention_layers(network.module, network.inputs.args) == [AttentionLayer("0.self_attn", HEADS)]
