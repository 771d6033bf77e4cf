"""What a decoder computes, as data: the norms, rotary positions, windows and factors in which families differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.decoder import Decoder, DecoderLayer, decoder_of
from hasten.models.mixture_form import MixtureForm, mixture_of

# Networks of transformers whose forward is what a `DecoderForm` says. What they have of it is read from their modules.
FAMILIES = (
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoeForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
)
# Gemma's classes add one to a norm's weight, and Gemma 2 alone caps scores: both stand in code, not in a module.
_ADDS_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
_CAPS_SCORES = ("Gemma2ForCausalLM",)
# gpt-oss makes each cosine once, for both halves of a head.
_HALF_TABLES = ("GptOssRotaryEmbedding",)
_ACTIVATIONS = {
    **dict.fromkeys(("SiLU", "SiLUActivation"), "silu"),
    **dict.fromkeys(("GELUActivation",), "gelu"),
    **dict.fromkeys(("GELUTanh", "PytorchGELUTanh", "NewGELUActivation"), "gelu_tanh"),
}
_STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")


@dataclass(frozen=True)
class RowNorm:
    """What divides a row by its root mean square, or by its standard deviation about its mean.

    Args:
        modules: whose weights it has: one, or one for each head.
        epsilon: added to the mean square.
        centred: about the mean (LayerNorm).
        offset: added to the weights.
    """

    modules: tuple[Any, ...]
    epsilon: float
    centred: bool = False
    offset: float = 0.0

    @property
    def width(self) -> int:
        """How many weights it has."""
        return sum(_width_of(module) for module in self.modules)

    def weight(self, width: int) -> Tensor:
        """Its weights (width) in fp32, repeated where it has fewer."""
        parts = [torch.ones(_width_of(m)) if m.weight is None else m.weight.detach().float() for m in self.modules]
        return (torch.cat(parts) + self.offset).repeat(width // max(1, self.width)).contiguous()

    def bias(self, width: int) -> Tensor | None:
        """Its biases (width) in fp32, repeated likewise; None without any."""
        parts = [module.bias for module in self.modules if getattr(module, "bias", None) is not None]
        if len(parts) < len(self.modules):
            return None
        return torch.cat([part.detach().float() for part in parts]).repeat(width // max(1, self.width)).contiguous()


def _width_of(module: Any) -> int:
    return int(module.normalized_shape[-1] if module.weight is None else module.weight.numel())


@dataclass(frozen=True)
class WeightRows:
    """Rows of a linear layer's weight, all or those from ``start`` to before ``stop`` (Phi-3's fused projections)."""

    module: Any
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class GatedFeedForward:
    """``down(activation(gate(x)) * up(x))``; the activation is one of `hasten.kernels.compiled.ACTIVATIONS`."""

    gate: WeightRows
    up: WeightRows
    down: WeightRows
    activation: str

    @property
    def weights(self) -> tuple[WeightRows, ...]:
        return self.gate, self.up, self.down


@dataclass(frozen=True)
class LayerForm:
    """One layer.

    Args:
        query, key, value, output: its attention's projections.
        feed_forward: what works on each token alone: an MLP or experts.
        attention_norm, feed_forward_norm: what norms their inputs, or None.
        attention_after, feed_forward_after: what norms their results before they are added, or None.
        query_norm, key_norm: of each head's channels, or of all heads' together; None without.
        norm_together: of all heads' together (OLMo 2).
        window: newest tokens that a token attends to, itself included; None: all.
        rotary: which of `DecoderForm.rotaries` turns its queries and keys; None: nothing does.
        sinks: of each head a score (heads) that takes its share of attention and has no value (gpt-oss), or None.
        parallel: the feed-forward reads what attention reads.
    """

    query: WeightRows
    key: WeightRows
    value: WeightRows
    output: WeightRows
    feed_forward: GatedFeedForward | MixtureForm
    attention_norm: RowNorm | None
    feed_forward_norm: RowNorm | None
    attention_after: RowNorm | None = None
    feed_forward_after: RowNorm | None = None
    query_norm: RowNorm | None = None
    key_norm: RowNorm | None = None
    norm_together: bool = False
    window: int | None = None
    rotary: int | None = 0
    sinks: Tensor | None = None
    parallel: bool = False

    @property
    def weights(self) -> tuple[WeightRows, ...]:
        """Every matrix that it multiplies by, but for its experts' and what chooses among them."""
        own = self.query, self.key, self.value, self.output
        mlp = self.feed_forward.beside if isinstance(self.feed_forward, MixtureForm) else self.feed_forward
        return own if mlp is None else (*own, *mlp.weights)


@dataclass(frozen=True)
class RotaryForm:
    """One kind of rotary positions.

    Args:
        module: makes cosines and sines.
        kind: the kind of layer that they are for, where it makes several (Gemma 3), or None.
        most_positions: of longer texts every position turns otherwise; None: that never is.
    """

    module: Any
    kind: str | None = None
    most_positions: int | None = None

    def table(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (positions, width) in fp32."""
        with torch.inference_mode():
            kinds = () if self.kind is None else (self.kind,)
            cosines, sines = self.module(torch.empty(1, dtype=torch.float32), torch.arange(positions)[None], *kinds)
        if type(self.module).__name__ in _HALF_TABLES:
            cosines, sines = (torch.cat((half, half), -1) for half in (cosines, sines))
        return cosines[0].contiguous(), sines[0].contiguous()


@dataclass(frozen=True)
class DecoderForm:
    """A decoder.

    Args:
        layers: first to last.
        embedding, head: its ends' modules.
        norm: before the head.
        heads, kv_heads, head_dim: of attention.
        hidden, intermediate: widths of a token's state, and within the MLP of layers without experts; 0 where all have.
        scaling: that queries are multiplied by.
        rotaries: kinds of rotary positions, by number.
        embedding_scale: that embedded tokens are multiplied by.
        residual_scale: that what a layer adds is multiplied by.
        logit_scale: that logits are multiplied by.
        score_cap, logit_cap: x becomes ``cap * tanh(x / cap)``, of scores and of logits; None: it stays.
    """

    layers: tuple[LayerForm, ...]
    embedding: Any
    head: Any
    norm: RowNorm
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    scaling: float
    rotaries: tuple[RotaryForm, ...]
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    score_cap: float | None = None
    logit_cap: float | None = None

    @property
    def most_positions(self) -> int | None:
        """Tokens of the longest text whose positions turn as those of shorter ones do; None: any."""
        found = [rotary.most_positions for rotary in self.rotaries if rotary.most_positions is not None]
        return min(found) if found else None


def check_llama_like(network: Any, who: str) -> None:
    """For what puts a layer together by hand, out of Llama's parts; a network of no form is its own to look at.

    Args:
        network: of transformers.
        who: what puts it together, for the message.

    Raises:
        HastenError: the form of this network has more in it.
    """
    if type(network).__name__ not in FAMILIES:
        return
    form = form_of(network)
    more = (
        (form.embedding_scale, form.residual_scale, form.logit_scale) != (1.0, 1.0, 1.0)
        or (form.score_cap, form.logit_cap) != (None, None)
        or len(form.rotaries) > 1
        or form.rotaries[0].table(1)[0].shape[1] != form.head_dim
        or any(
            layer.attention_norm is None
            or layer.feed_forward_norm is None
            or (layer.attention_after, layer.feed_forward_after, layer.sinks) != (None, None, None)
            or layer.parallel
            or layer.norm_together
            or layer.rotary is None
            or layer.query.stop is not None
            for layer in form.layers
        )
    )
    if more:
        raise HastenError(f"{who} puts layers together as Llama does, and those of {type(network).__name__} have more")


def turning_point(network: Any) -> int | None:
    """`DecoderForm.most_positions` of any network; None where its positions turn alike in all texts."""
    config = getattr(network, "config", None)
    said = getattr(config, "rope_parameters", None)
    if config is None or not isinstance(said, dict):
        return None
    kinds = [kind for kind in said.values() if isinstance(kind, dict)] or [said]
    found = [
        int(kind["original_max_position_embeddings"])
        for kind in kinds
        if kind.get("rope_type") == "longrope" and "original_max_position_embeddings" in kind
    ]
    return min(found) if found and min(found) < config.max_position_embeddings else None


def own_windows(config: Any, layers: int) -> tuple[int | None, ...]:
    """The window of each layer that a model itself has, by its configuration; empty where no layer has one."""
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return ()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    found = tuple(int(window) if "sliding" in kind else None for kind in kinds)
    return found if any(found) else ()


def form_of(network: Any) -> DecoderForm:
    """The `DecoderForm` of a transformers network, read from its modules and its configuration.

    Nothing is copied: the form names the network's own modules.

    Raises:
        HastenError: it is not of `FAMILIES`, or does what no form says; the message goes on from "because".
    """
    name = type(network).__name__
    if name not in FAMILIES:
        raise HastenError(f"{name} is not one of {', '.join(FAMILIES)}")
    config, decoder = network.config, decoder_of(network)
    layers = [decoder.layer(i) for i in range(len(decoder.layers))]
    attention = [layer.attention for layer in layers]
    if getattr(config, "use_bidirectional_attention", False):
        raise HastenError("its tokens attend to those behind them")
    rotaries, turned = _rotaries(decoder, len(layers))
    windows = own_windows(config, len(layers)) or (None,) * len(layers)
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, int(attention[0].head_dim)
    norm = _norm(decoder.norm)
    if norm is None:
        raise HastenError("it has no norm before its head")
    if getattr(config, "clip_qkv", None) is not None:
        raise HastenError("its queries, keys and values are clipped")
    forms = tuple(
        _layer(layer, heads, kv_heads, head_dim, window, rotary)
        for layer, window, rotary in zip(layers, windows, turned, strict=True)
    )
    mixed = all(isinstance(form.feed_forward, MixtureForm) for form in forms)
    return DecoderForm(
        layers=forms,
        embedding=decoder.embedding,
        head=decoder.head,
        norm=norm,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=config.hidden_size,
        intermediate=0 if mixed else config.intermediate_size,
        scaling=_one("scaling of queries", [float(a.scaling) for a in attention]),
        rotaries=rotaries,
        embedding_scale=_embedding_scale(decoder.embedding) * float(getattr(config, "embedding_multiplier", 1.0)),
        residual_scale=_one("factor", [float(getattr(layer.module, "residual_multiplier", 1.0)) for layer in layers]),
        logit_scale=1.0 / float(getattr(config, "logits_scaling", 1.0)),
        score_cap=getattr(config, "attn_logit_softcapping", None) if name in _CAPS_SCORES else None,
        logit_cap=getattr(config, "final_logit_softcapping", None),
    )


def _one(what: str, found: Sequence[float]) -> float:
    if len(set(found)) != 1:
        raise HastenError(f"its layers have each a {what} of their own")
    return found[0]


def _embedding_scale(embedding: Any) -> float:
    scale = getattr(embedding, "embed_scale", None)
    if scale is None:
        return 1.0
    # A buffer is rounded to the weights' type before it multiplies.
    return float(scale.to(embedding.weight.dtype) if isinstance(scale, Tensor) else scale)


def _rotaries(decoder: Decoder, layers: int) -> tuple[tuple[RotaryForm, ...], list[int | None]]:
    """The kinds of rotary positions, and which one each layer has."""
    rotary, config = decoder.rotary, decoder.config
    several = isinstance(getattr(rotary, "rope_type", None), dict)
    kinds: list[str | None] = sorted(set(config.layer_types)) if several else [None]
    forms = []
    for kind in kinds:
        said = config.rope_parameters if kind is None else config.rope_parameters[kind]
        # As the module has it, which was made of the configuration.
        rope = rotary.rope_type if kind is None else rotary.rope_type[kind]
        most = None
        if rope == "longrope":
            original = int(said["original_max_position_embeddings"])
            most = original if original < config.max_position_embeddings else None
        elif rope not in _STATIC_ROPE:
            raise HastenError(f"its rotary positions change with length ({rope})")
        forms.append(RotaryForm(rotary, kind, most))
    which = [kinds.index(config.layer_types[i]) if several else 0 for i in range(layers)]
    has = [bool(getattr(decoder.layer(i).attention, "use_rope", True)) for i in range(layers)]
    return tuple(forms), [number if turns else None for number, turns in zip(which, has, strict=True)]


def _norm(module: Any) -> RowNorm | None:
    if module is None:
        return None
    parts = tuple(module.norms) if type(module).__name__ == "StableLmLayerNormPerHead" else (module,)
    if all(isinstance(part, nn.LayerNorm) for part in parts):
        return RowNorm(parts, float(parts[0].eps), centred=True)
    name = type(module).__name__
    if not name.endswith("RMSNorm") or getattr(module, "weight", None) is None:
        raise HastenError(f"a norm is a {name}")
    epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if epsilon is None:
        raise HastenError(f"a norm ({name}) has no epsilon of its own")
    return RowNorm(parts, float(epsilon), offset=1.0 if name in _ADDS_ONE else 0.0)


def _child(module: Any, *names: str) -> Any:
    return next((getattr(module, name) for name in names if getattr(module, name, None) is not None), None)


def _layer(
    layer: DecoderLayer, heads: int, kv_heads: int, head_dim: int, window: int | None, rotary: int | None
) -> LayerForm:
    attention = layer.attention
    fused = _child(attention, "qkv_proj")
    if fused is not None:
        query, key = heads * head_dim, (heads + kv_heads) * head_dim
        parts = (WeightRows(fused, 0, query), WeightRows(fused, query, key), WeightRows(fused, key))
    else:
        q, k, v = (WeightRows(_needed(attention, name)) for name in ("q_proj", "k_proj", "v_proj"))
        parts = (q, k, v)
    query_norm, key_norm = (_norm(_child(attention, f"{which}_norm", f"{which}_layernorm")) for which in "qk")
    for norm, each in ((query_norm, heads), (key_norm, kv_heads)):
        if norm is not None and norm.width not in (head_dim, each * head_dim):
            raise HastenError(f"a norm of queries or keys has {norm.width} weights for heads of {head_dim}")
    return LayerForm(
        query=parts[0],
        key=parts[1],
        value=parts[2],
        output=WeightRows(_needed(attention, "o_proj")),
        feed_forward=_feed_forward(layer.feed_forward),
        attention_norm=_norm(layer.attention_norm),
        feed_forward_norm=_norm(layer.feed_forward_norm),
        attention_after=_norm(layer.attention_after),
        feed_forward_after=_norm(layer.feed_forward_after),
        query_norm=query_norm,
        key_norm=key_norm,
        norm_together=query_norm is not None and len(query_norm.modules) == 1 and query_norm.width > head_dim,
        window=window,
        rotary=rotary,
        sinks=getattr(attention, "sinks", None),
        parallel=bool(getattr(layer.module, "use_parallel_residual", False)),
    )


def _needed(module: Any, name: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise HastenError(f"a layer is a {type(module).__name__}, without {name}")
    return found


def _feed_forward(module: Any) -> GatedFeedForward | MixtureForm:
    mixture = mixture_of(module)
    if mixture is None:
        return _gated(module)
    return mixture if mixture.beside is None else replace(mixture, beside=_gated(mixture.beside))


def _gated(module: Any) -> GatedFeedForward:
    made = _child(module, "act_fn", "activation_fn")
    activation = _ACTIVATIONS.get(type(made).__name__)
    if activation is None:
        raise HastenError(f"its activation is {type(made).__name__}")
    fused, down = _child(module, "gate_up_proj"), WeightRows(_needed(module, "down_proj"))
    if fused is not None:
        half = int(fused.out_features) // 2
        return GatedFeedForward(WeightRows(fused, 0, half), WeightRows(fused, half), down, activation)
    gate, up = (WeightRows(_needed(module, name)) for name in ("gate_proj", "up_proj"))
    return GatedFeedForward(gate, up, down, activation)
