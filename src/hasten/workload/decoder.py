"""The sizes of a decoder-only language model, and what follows from them: parameters, bytes of weights and cache.

One description for all who reckon with such a model: the workload of a configuration, the cost of serving, an FPGA's
engine. Made from a transformers configuration by `DecoderSizes.of`, or written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from hasten.dtypes import BITS
from hasten.errors import HastenError


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a decoder.

    Sizes that are 0 are not there (no experts, no window, no latent cache), but for ``kv_heads``, ``head_dim``,
    ``value_dim`` and ``hidden``, which then follow from the others.

    Args:
        name: of the model.
        layers: that it has.
        attentions: of a layer.
        hidden: channels between the layers.
        heads, kv_heads: query heads of an attention, and heads that keys and values have.
        head_dim: channels of a head, of queries and keys.
        value_dim: channels of a head of values.
        inner: channels within the feed-forward part of a layer without experts.
        matrices: of a feed-forward part: 3 with a gate, 2 without.
        vocabulary: rows of the embedding and of the output head.
        tied: one matrix is both.
        experts: of a layer; ``experts_per_token`` of them are used for a token.
        shared_experts: used for every token beside those.
        zero_experts: further ones to choose that pass their input on, and have no weights.
        expert_inner: channels within an expert.
        beside_experts: feed-forward parts without experts that a layer has beside its experts.
        dense_layers: numbers of the layers that have no experts, where others have.
        window: tokens that an attention looks back; ``full_layers`` are the layers that see everything all the same.
        query_rank: channels that queries are made from, in latent attention.
        kv_rank: channels that keys and values are expanded from, which are cached in their stead.
        rotary_dim: channels of a key that carry the position; in latent attention they are cached too.
        dtype: of weights and activations.
        cache_dtype: of the cache; as ``dtype`` when empty.
        parameters: active ones, where a published number stands for what the sizes give.

    Raises:
        HastenError: a negative size, no heads or layers, heads that do not share their keys evenly, an unknown number
            format.

    >>> small = DecoderSizes("small", layers=2, hidden=64, heads=4, inner=128, vocabulary=100)
    >>> small.layer_parameters, small.total_parameters, small.token_bytes
    (81920, 94720, 512)
    """

    name: str
    _: KW_ONLY
    layers: int
    heads: int
    attentions: int = 1
    hidden: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    inner: int = 0
    matrices: int = 3
    vocabulary: int = 0
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    zero_experts: int = 0
    expert_inner: int = 0
    beside_experts: int = 0
    dense_layers: tuple[int, ...] = ()
    window: int = 0
    full_layers: tuple[int, ...] = ()
    query_rank: int = 0
    kv_rank: int = 0
    rotary_dim: int = 0
    dtype: str = "bf16"
    cache_dtype: str = ""
    parameters: float | None = None

    def __post_init__(self) -> None:
        found = {k: v for k, v in vars(self).items() if isinstance(v, int) and v < 0}
        if found:
            raise HastenError(f"{self.name}: {', '.join(found)} below 0: a size is 0 or more")
        if not self.layers or not self.heads or not (self.hidden or self.head_dim):
            raise HastenError(f"{self.name} has no layers, no heads or no channels: give layers, heads and hidden")
        for name, value in (
            ("hidden", self.hidden or self.heads * self.head_dim),
            ("kv_heads", self.kv_heads or self.heads),
            ("head_dim", self.head_dim or self.hidden // self.heads),
        ):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "value_dim", self.value_dim or self.head_dim)
        if self.heads % self.kv_heads:
            raise HastenError(f"{self.name}: {self.heads} heads cannot share {self.kv_heads} heads of keys evenly")
        for dtype in (self.dtype, self.cache_dtype or self.dtype):
            if dtype not in BITS:
                raise HastenError(f"{self.name}: unknown number format {dtype!r}: choose one of {', '.join(BITS)}")

    # -- widths

    @property
    def query_width(self) -> int:
        """Channels of all query heads of an attention."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all key heads of an attention."""
        return self.kv_heads * self.head_dim

    @property
    def cached_width(self) -> int:
        """Numbers that one token leaves in the cache of an attention."""
        if self.kv_rank:
            return self.kv_rank + self.rotary_dim
        return self.kv_heads * (self.head_dim + self.value_dim)

    # -- layers

    def has_experts(self, layer: int) -> bool:
        """Whether layer number ``layer`` has experts."""
        return self.experts > 0 and layer not in self.dense_layers

    def window_of(self, layer: int) -> int | None:
        """Tokens that layer number ``layer`` looks back; None for all."""
        return self.window if self.window and layer not in self.full_layers else None

    # -- parameters

    @property
    def attention_parameters(self) -> int:
        """Of the linear layers of one attention."""
        hidden, heads = self.hidden, self.heads
        out = heads * self.value_dim * hidden
        queries = self.query_rank * (hidden + self.query_width) if self.query_rank else hidden * self.query_width
        if self.kv_rank:
            expanded = heads * (self.head_dim - self.rotary_dim + self.value_dim)
            return queries + hidden * (self.kv_rank + self.rotary_dim) + self.kv_rank * expanded + out
        return queries + hidden * self.kv_heads * (self.head_dim + self.value_dim) + out

    def _layer_parameters(self, used: int) -> int:
        """Of the linear layers of all layers, where ``used`` routed experts count."""
        routed = sum(map(self.has_experts, range(self.layers)))
        expert = self.matrices * self.hidden * self.expert_inner
        router = (self.experts + self.zero_experts) * self.hidden
        plain = self.matrices * self.hidden * self.inner
        dense = self.layers - routed + routed * self.beside_experts
        with_experts = routed * ((used + self.shared_experts) * expert + router)
        return self.layers * self.attentions * self.attention_parameters + dense * plain + with_experts

    @property
    def layer_parameters(self) -> int:
        """Of the layers' linear layers, as many as one token uses."""
        return self._layer_parameters(self.experts_per_token)

    @property
    def active_parameters(self) -> float:
        """All that one token uses; ``parameters`` where that was given."""
        if self.parameters is not None:
            return self.parameters
        return self.layer_parameters + self._embeddings

    @property
    def total_parameters(self) -> int:
        """All of the linear layers and embeddings, whether used or not."""
        return self._layer_parameters(self.experts) + self._embeddings

    @property
    def _embeddings(self) -> int:
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    # -- bytes

    @property
    def cache_bits(self) -> int:
        """Of a number in the cache."""
        return BITS[self.cache_dtype or self.dtype]

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in the cache, all layers together."""
        return -(-self.layers * self.attentions * self.cached_width * self.cache_bits // 8)

    @property
    def weight_bytes(self) -> float:
        """Bytes of `total_parameters`."""
        return self.total_parameters * BITS[self.dtype] / 8

    @classmethod
    def of(cls, config: Any, *, dtype: str = "bf16", cache_dtype: str = "") -> DecoderSizes:
        """The sizes in a transformers configuration.

        Args:
            config: an object, or a mapping like the one in its ``config.json``.
            dtype, cache_dtype: of weights and cache.

        Raises:
            HastenError: it has no heads, layers or width.

        >>> DecoderSizes.of({"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
        ...             "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100}).kv_width
        32
        """
        read = _Reader(config)
        kind = str(read("model_type") or "")
        heads = read.size("num_attention_heads", "n_head", "num_heads", "n_heads")
        hidden = read.size("hidden_size", "n_embd", "d_model")
        # LongCat-Flash counts pairs of sublayers.
        paired = kind == "longcat_flash"
        names = ("num_layers",) if paired else ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        layers = read.size(*names)
        if not (heads and hidden and layers):
            raise HastenError(
                "the configuration is not a decoder's: give num_hidden_layers, num_attention_heads and hidden_size"
            )
        experts = read.size("num_local_experts", "n_routed_experts", "num_experts")
        rank, rotary, value = read.size("kv_lora_rank"), read.size("qk_rope_head_dim"), read.size("v_head_dim")
        inner = read.size("ffn_hidden_size" if paired else "intermediate_size", "ffn_dim", "n_inner", "d_ff")
        ungated = kind in ("gpt2", "opt", "gpt_neox", "bloom", "phi", "falcon", "gptj", "gpt_bigcode")
        return cls(
            str(read("name_or_path") or read("_name_or_path") or kind or "decoder"),
            layers=layers,
            heads=heads,
            hidden=hidden,
            kv_heads=heads if rank else read.size("num_key_value_heads"),
            head_dim=read.size("qk_nope_head_dim") + rotary if rank else read.size("head_dim"),
            value_dim=value if rank else 0,
            inner=inner or (4 * hidden if ungated else 0),
            matrices=2 if ungated else 3,
            vocabulary=read.size("vocab_size"),
            tied=bool(read("tie_word_embeddings")),
            experts=experts,
            experts_per_token=read.size("moe_topk", "num_experts_per_tok") if experts else 0,
            shared_experts=read.size("n_shared_experts"),
            zero_experts=read.size("zero_expert_num"),
            expert_inner=(read.size("expert_ffn_hidden_size", "moe_intermediate_size") or inner) if experts else 0,
            dense_layers=_dense_layers(read, layers) if experts else (),
            window=_window(read),
            full_layers=_full_layers(read),
            query_rank=read.size("q_lora_rank"),
            kv_rank=rank,
            rotary_dim=rotary,
            attentions=2 if paired else 1,
            beside_experts=2 if paired else 0,
            dtype=dtype,
            cache_dtype=cache_dtype,
        )


class _Reader:
    """Settings of a configuration, whether it is an object or a mapping; what is not there is None."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __call__(self, name: str) -> Any:
        return self._config.get(name) if isinstance(self._config, Mapping) else getattr(self._config, name, None)

    def size(self, *names: str) -> int:
        """The first of ``names`` that is there; 0 where none is."""
        found = next((v for n in names if (v := self(n)) is not None), 0)
        if isinstance(found, bool) or not isinstance(found, int):
            raise HastenError(f"the configuration's {names[0]} is {found!r:.20}: it must be a whole number")
        return found


def _dense_layers(read: _Reader, layers: int) -> tuple[int, ...]:
    """Layers before the first with experts, or between them, or named."""
    first, step = read.size("first_k_dense_replace"), read.size("decoder_sparse_step") or 1
    named = read("mlp_only_layers") or ()
    return tuple(i for i in range(layers) if i < first or i in named or (i + 1) % step)


def _window(read: _Reader) -> int:
    used = read("use_sliding_window")
    return 0 if used is not None and not used else read.size("sliding_window")


def _full_layers(read: _Reader) -> tuple[int, ...]:
    return tuple(i for i, kind in enumerate(read("layer_types") or ()) if kind != "sliding_attention")
