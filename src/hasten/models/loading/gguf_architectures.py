"""The architectures of GGUF files that hasten loads: which metadata are which settings of transformers, which tensors
which parameters, and what is stored in another form there.

Facts from llama.cpp: its converters (``conversion/*.py``) say what a file holds, its models (``src/models/*.cpp``)
what is computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class TensorForm(StrEnum):
    """How the tensors of a file make a parameter."""

    SAME = "same"
    ROTARY = "rotary"  # rows of each head alternate between the two halves that rotary positions turn
    SHIFTED = "shifted"  # a norm's weight, with the 1 added that the class adds by itself
    ROW = "row"  # a vector that is a matrix of one row
    HEADS = "heads"  # one norm for each head, in a matrix
    EXPERTS = "experts"  # (experts, out, in)
    EXPERTS_TURNED = "experts turned"  # (experts, out, in), where the class has (experts, in, out)
    JOINED = "joined"  # gate and up, (experts, out, in) each, where the class has one of both, gate first
    ALTERNATING = "alternating"  # as before, turned, and a column of gate before each of up
    ALTERNATING_BIAS = "alternating bias"  # (experts, out) each


@dataclass(frozen=True)
class FileSetting:
    """A setting that the metadata say.

    Args:
        name: transformers' name.
        key: GGUF's, without the architecture in front.
        whole: whether it is a whole number.
        default: where the file says none; None where it must say one.
        optional: whether nothing is set where the file says none.
        by_head: whether it is one over the root of a head's channels where the file says none.
    """

    name: str
    key: str
    whole: bool = False
    default: float | None = None
    optional: bool = False
    by_head: bool = False


@dataclass(frozen=True)
class WindowedLayers:
    """Layers that see a window of the last positions only.

    Args:
        period: of this many layers the last sees all positions; None where every layer has the window.
        default: positions, where the file says none; None: no layer has a window then.
        theta: the base of rotary positions in layers with a window, where it is another than in those without and the
            file says none; 0: it is the same, unscaled; None: positions are the same in all layers.
    """

    period: int | None = None
    default: int | None = None
    theta: float | None = None


@dataclass(frozen=True)
class StoredArchitecture:
    """One kind of network behind a name of ``general.architecture``.

    Args:
        config: the configuration's class in transformers.
        layer: tensors of a layer, by GGUF's name without ``.weight`` and ``.bias``, or with it where the parameter is
            called otherwise: transformers' name within the layer.
        forms: of those that are not the same in both, by GGUF's name.
        experts: the module of a layer that holds the experts, with the forms of gate and up, and of down.
        when: the kind is meant only where this metadata key is given (and not 0).
        settings: what the metadata say beside the sizes that all have.
        fixed: what holds for all of them, and no file says.
        present: settings that are whether layer 0 has a tensor; ``!`` in front: whether it lacks it.
        zeros: biases that files may lack although the class has them, by transformers' name within a layer.
        windows: of layers that do not see all positions.
        partial: whether a part of a head's channels may be turned by positions.
        yarn: what all of them have beside the numbers of positions that are scaled so.
        scaled_by_width: the number of layers of the one size whose attention is scaled by the width of all heads
            instead of one's; for Gemma.
    """

    config: str
    layer: Mapping[str, str]
    forms: Mapping[str, TensorForm] = field(default_factory=dict)
    experts: tuple[str, TensorForm, TensorForm] | None = None
    when: str = ""
    settings: tuple[FileSetting, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    windows: WindowedLayers | None = None
    partial: bool = False
    yarn: Mapping[str, Any] = field(default_factory=dict)
    scaled_by_width: int | None = None


TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output_norm.bias": "model.norm.bias",
    "output.weight": "lm_head.weight",
}
NOT_WEIGHTS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_DENSE = {**_BEFORE, **_ATTENTION, **_GATED}
_ROUTED = {**_BEFORE, **_ATTENTION, "ffn_gate_inp": "mlp.gate"}
_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_PAIRS = {"attn_q": TensorForm.ROTARY, "attn_k": TensorForm.ROTARY}
_JOINED = ("mlp.experts", TensorForm.JOINED, TensorForm.EXPERTS)

_RMS = FileSetting("rms_norm_eps", "attention.layer_norm_rms_epsilon", default=1e-5)
_EXPERT_COUNT = FileSetting("num_local_experts", "expert_count", whole=True)
_USED = FileSetting("num_experts_per_tok", "expert_used_count", whole=True)
_BIASES = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"}
_O_BIAS = ("self_attn.o_proj.bias",)

_LLAMA = StoredArchitecture(
    "LlamaConfig", _DENSE, forms=_PAIRS, settings=(_RMS,), present=_BIASES, zeros=_O_BIAS,
)  # fmt: skip
_GRANITE = replace(
    _LLAMA,
    config="GraniteConfig",
    settings=(
        _RMS,
        FileSetting("attention_multiplier", "attention.scale", by_head=True),
        FileSetting("embedding_multiplier", "embedding_scale", default=1.0),
        FileSetting("residual_multiplier", "residual_scale", default=1.0),
        FileSetting("logits_scaling", "logit_scale"),
    ),
)
_QWEN2 = StoredArchitecture("Qwen2Config", _DENSE, settings=(_RMS,))
_GEMMA = StoredArchitecture(
    "GemmaConfig",
    _DENSE,
    forms=dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), TensorForm.SHIFTED),
    settings=(_RMS,),
)
_GEMMA2 = replace(
    _GEMMA,
    config="Gemma2Config",
    layer={**_ATTENTION, **_GATED, **_AFTER, "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"},
    forms=dict.fromkeys(
        ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "output_norm", "attn_q_norm", "attn_k_norm"),
        TensorForm.SHIFTED,
    ),
    settings=(
        _RMS,
        FileSetting("attn_logit_softcapping", "attn_logit_softcapping", default=50.0),
        FileSetting("final_logit_softcapping", "final_logit_softcapping", default=30.0),
    ),
    windows=WindowedLayers(period=2, default=4096),
    scaled_by_width=46,
)
_OLMO2 = StoredArchitecture("Olmo2Config", {**_ATTENTION, **_GATED, **_AFTER}, settings=(_RMS,))

# By ``general.architecture``; of several kinds the first whose key is given.
ARCHITECTURES: dict[str, tuple[StoredArchitecture, ...]] = {
    "llama": (
        # llama.cpp files Mixtral and Mistral under llama: the same network, but for the experts and the window.
        replace(
            _LLAMA,
            config="MixtralConfig",
            layer=_ROUTED,
            experts=_JOINED,
            when="expert_count",
            settings=(_RMS, _EXPERT_COUNT, _USED),
            present={},
            zeros=(),
            windows=WindowedLayers(),
        ),
        replace(
            _LLAMA,
            config="MistralConfig",
            when="attention.sliding_window",
            present={},
            zeros=(),
            windows=WindowedLayers(),
        ),
        _LLAMA,
    ),
    "qwen2": (_QWEN2,),
    "qwen3": (StoredArchitecture("Qwen3Config", _DENSE, settings=(_RMS,), present={"attention_bias": "attn_q.bias"}),),
    "qwen2vl": (_QWEN2,),  # text alone: its positions are a Qwen2's
    "qwen2moe": (
        StoredArchitecture(
            "Qwen2MoeConfig",
            {**_ROUTED, **_SHARED},
            forms={"ffn_gate_inp_shexp": TensorForm.ROW},
            experts=_JOINED,
            settings=(
                _RMS,
                FileSetting("num_experts", "expert_count", whole=True),
                _USED,
                FileSetting("moe_intermediate_size", "expert_feed_forward_length", whole=True),
                FileSetting("shared_expert_intermediate_size", "expert_shared_feed_forward_length", whole=True),
            ),
            fixed={"norm_topk_prob": False},
            present={"qkv_bias": "attn_q.bias"},
        ),
    ),
    "qwen3moe": (
        StoredArchitecture(
            "Qwen3MoeConfig",
            _ROUTED,
            experts=_JOINED,
            settings=(
                _RMS,
                FileSetting("num_experts", "expert_count", whole=True),
                _USED,
                FileSetting("moe_intermediate_size", "expert_feed_forward_length", whole=True),
            ),
            fixed={"norm_topk_prob": True},
            present={"attention_bias": "attn_q.bias"},
        ),
    ),
    "gemma": (_GEMMA,),
    "gemma2": (_GEMMA2,),
    "gemma3": (
        replace(
            _GEMMA2,
            config="Gemma3TextConfig",
            settings=(_RMS, FileSetting("final_logit_softcapping", "final_logit_softcapping", optional=True)),
            windows=WindowedLayers(period=6, theta=10000.0),
            scaled_by_width=62,
        ),
    ),
    "phi3": (
        StoredArchitecture(
            "Phi3Config",
            {
                **_BEFORE,
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
            settings=(
                _RMS,
                FileSetting(
                    "original_max_position_embeddings",
                    "rope.scaling.original_context_length",
                    whole=True,
                    optional=True,
                ),
            ),
            windows=WindowedLayers(),
            partial=True,
        ),
    ),
    "olmo2": (
        replace(
            _OLMO2, config="Olmo3Config", when="attention.sliding_window", windows=WindowedLayers(period=4, theta=0)
        ),
        _OLMO2,
    ),
    "olmoe": (
        StoredArchitecture(
            "OlmoeConfig",
            _ROUTED,
            experts=_JOINED,
            settings=(_RMS, FileSetting("num_experts", "expert_count", whole=True), _USED),
            fixed={"norm_topk_prob": False},
        ),
    ),
    "smollm3": (replace(_LLAMA, config="SmolLM3Config", fixed={"no_rope_layer_interval": 4}),),
    "granite": (_GRANITE,),
    "granitemoe": (
        replace(
            _GRANITE,
            config="GraniteMoeConfig",
            layer={**_BEFORE, **_ATTENTION, "ffn_gate_inp": "block_sparse_moe.router"},
            experts=("block_sparse_moe.experts", TensorForm.JOINED, TensorForm.EXPERTS),
            settings=(*_GRANITE.settings, _EXPERT_COUNT, _USED),
            present={"attention_bias": "attn_q.bias"},
        ),
    ),
    "stablelm": (
        StoredArchitecture(
            "StableLmConfig",
            {**_DENSE, "attn_q_norm": "self_attn.q_layernorm.norms", "attn_k_norm": "self_attn.k_layernorm.norms"},
            forms={"attn_q_norm": TensorForm.HEADS, "attn_k_norm": TensorForm.HEADS},
            settings=(FileSetting("layer_norm_eps", "attention.layer_norm_epsilon"),),
            present={
                "use_qkv_bias": "attn_q.bias",
                "qk_layernorm": "attn_q_norm.weight",
                "use_parallel_residual": "!ffn_norm.weight",
            },
            partial=True,
        ),
    ),
    "seed_oss": (
        StoredArchitecture(
            "SeedOssConfig",
            {**_ATTENTION, **_GATED, "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
            settings=(_RMS,),
            present={"attention_bias": "attn_q.bias", "attention_out_bias": "attn_output.bias"},
        ),
    ),
    "gpt-oss": (
        StoredArchitecture(
            "GptOssConfig",
            {
                **_ATTENTION,
                "attn_norm": "input_layernorm",
                "post_attention_norm": "post_attention_layernorm",
                "attn_sinks.weight": "self_attn.sinks",
                "ffn_gate_inp": "mlp.router",
            },
            experts=("mlp.experts", TensorForm.ALTERNATING, TensorForm.EXPERTS_TURNED),
            settings=(
                _RMS,
                _EXPERT_COUNT,
                _USED,
                FileSetting("intermediate_size", "expert_feed_forward_length", whole=True),
            ),
            fixed={"attention_bias": True},
            windows=WindowedLayers(period=2),
            yarn={"truncate": False},
        ),
    ),
}
