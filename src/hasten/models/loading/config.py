"""A hub-style ``config.json``, and the network without weights that it describes."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.files import parse_json, read_bytes

# What hasten loads: model types of transformers, and their configurations.
FAMILIES = {
    "gemma": "GemmaConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gpt_oss": "GptOssConfig",
    "granite": "GraniteConfig",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "olmo2": "Olmo2Config",
    "olmo3": "Olmo3Config",
    "olmoe": "OlmoeConfig",
    "phi3": "Phi3Config",
    "qwen2": "Qwen2Config",
    "qwen2_moe": "Qwen2MoeConfig",
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "seed_oss": "SeedOssConfig",
    "smollm3": "SmolLM3Config",
    "stablelm": "StableLmConfig",
}

# No model comes near these; a config beyond them would be built for hours, or into all memory. By the names that the
# families of transformers give one size: (names, least, most).
_MOST_LAYERS, _WIDEST, _MOST_HEADS, _WIDEST_HEAD = 1024, 1 << 24, 1 << 14, 1 << 14
_BOUNDS: tuple[tuple[tuple[str, ...], int, int], ...] = (
    (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1, _MOST_LAYERS),
    (("encoder_layers", "decoder_layers"), 0, _MOST_LAYERS),
    (("hidden_size", "n_embd", "d_model", "dim", "vocab_size"), 1, _WIDEST),
    (("intermediate_size", "ffn_dim", "d_ff", "n_inner", "moe_intermediate_size", "d_inner", "q_lora_rank",
      "kv_lora_rank", "shared_expert_intermediate_size", "state_size", "d_state", "conv_kernel"), 0, _WIDEST),
    (("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), 1, _MOST_HEADS),
    (("head_dim", "d_kv"), 1, _WIDEST_HEAD),
    (("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim"), 0, _WIDEST_HEAD),
    (("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"), 0,
     1 << 16),
    (("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"), 1, 1 << 31),
)  # fmt: skip
_SIZES = {name: (least, most) for names, least, most in _BOUNDS for name in names}
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
# Numbers that are divided by, or a root is taken of.
_POSITIVE = ("rope_theta", "factor", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")


def check_sizes(data: Any, origin: str | Path) -> None:
    """Refuses sizes that no model has, before anything is built from them.

    Args:
        data: settings as a ``config.json`` holds them, those of a model's parts (``text_config``) included.
        origin: where they are from, for the message.

    Raises:
        HastenError: a size is no whole number, or out of its bounds; heads that do not share keys and values evenly.
    """
    if isinstance(data, list):
        for value in data:
            check_sizes(value, origin)
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if isinstance(value, dict) or (isinstance(value, list) and key not in _SIZES):
            check_sizes(value, origin)
        elif key in _SIZES:
            least, most = _SIZES[key]
            for one in value if isinstance(value, list) else [value]:  # some families give a size for each layer
                whole = isinstance(one, int) and not isinstance(one, bool)
                if one is not None and not (whole and least <= one <= most):
                    raise HastenError(
                        f"{origin} says {key} is {str(one)[:40]}, not {least} to {most:,}: fetch or copy it again"
                    )
        elif key in _POSITIVE and value is not None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise HastenError(f"{origin} says {key} is {str(value)[:40]}, not above 0: fetch or copy it again")
    heads, groups, width = (data.get(k) for k in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise HastenError(f"{origin} says {heads} heads share {groups} of keys and values: fetch or copy it again")
    each = data.get("head_dim")
    if isinstance(heads, int) and isinstance(width, int) and each is None and width < heads:
        raise HastenError(f"{origin} says {heads} heads have {width} channels in all: fetch or copy it again")
    if isinstance(heads, int) and isinstance(each, int) and heads * each > _WIDEST:
        raise HastenError(f"{origin} says {heads} heads have {each} channels each: fetch or copy it again")


def read_config(path: str | Path) -> Any:
    """A hub-style ``config.json`` as a transformers config; no code of the model's is ever run.

    Raises:
        HastenError: missing, not JSON, or an architecture that the installed transformers does not know.
    """
    return config_of(json_object(Path(path)), Path(path))


def json_object(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(read_bytes(path))
    except ValueError:
        raise HastenError(f"{path} is not JSON: give a model's config.json") from None
    if not isinstance(data, dict):
        raise HastenError(f"{path} is not a JSON object: give a model's config.json")
    return data


def config_of(data: dict[str, Any], path: Path) -> Any:
    from transformers import CONFIG_MAPPING

    kind = data.get("model_type") or _kind_of(data)
    for key, whose, wanted in _OTHERS:
        if kind is None and key in data:
            raise HastenError(f"{path} is a configuration of {whose}, not of transformers: give {wanted}")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise HastenError(f"{path} names the model type {str(kind)[:40]!r}, which this transformers does not know")
    check_sizes(data, path)
    quantized = data.get("quantization_config")
    data = {k: v for k, v in data.items() if k not in ("auto_map", "quantization_config")}
    try:
        with quiet():
            config = CONFIG_MAPPING[kind].from_dict({**data, "model_type": kind})
    except Exception as error:
        raise HastenError(f"{path} is not a usable config: {one_line(error)}") from None
    if getattr(config, "vision_config", None) is not None and not data.get("vision_config"):
        config.tower_unsaid = True  # a class fills in sizes of no model
    if isinstance(quantized, dict):
        config.quantization_config = quantized  # as it is written: transformers would look for the kernels
    return config


# What tells configurations of other libraries: a key that they have, the library, what to give instead.
_OTHERS = (
    ("_class_name", "diffusers", "the config.json of a text encoder or of another transformers model"),
    ("pretrained_cfg", "timm", "the model's name, such as resnet50"),
)


def _kind_of(data: dict[str, Any]) -> str | None:
    """The model type of a configuration that names its class alone, as old ones do."""
    import transformers

    for name in data.get("architectures") or () if isinstance(data.get("architectures"), list) else ():
        kind = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        found = getattr(getattr(kind, "config_class", None), "model_type", None)
        if isinstance(found, str) and found:
            return found
    return None


def build(config: Any) -> Any:
    """The transformers causal LM of a config, on the meta device: shapes without memory.

    Raises:
        HastenError: transformers has no causal LM for it.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            class_ = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
            # transformers has no soft caps and no sinks in torch's own attention.
            how = "sdpa" if getattr(class_, "_supports_sdpa", True) else "eager"
            return AutoModelForCausalLM.from_config(config, attn_implementation=how).eval()
    except Exception as error:  # whatever a class makes of sizes that do not fit
        raise HastenError(f"no causal language model for this config: {one_line(error)}") from None


def check_positions(config: Any, length: int) -> None:
    """Whether a model has as many positions as a text has tokens.

    Raises:
        HastenError: it has fewer.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    limit = next((n for name in _POSITIONS if isinstance(n := getattr(text, name, None), int) and n > 0), None)
    if limit is not None and length > limit:
        raise HastenError(f"{length} tokens are more than the model's {limit} positions: shorten the prompt")


def build_as(config: Any, implementation: str, dtype: torch.dtype, kind: Any = None) -> Any:
    """The transformers causal LM of a config, or its model of class ``kind``, on the meta device.

    Args:
        config: of the model.
        implementation: of its attention, by name.
        dtype: of its weights, but for those that the class always keeps in fp32.
        kind: a class of transformers; None for the causal language model.

    The config stays as it was. What the class raises comes through.
    """
    from transformers import AutoModelForCausalLM

    own = copy.deepcopy(config)  # the class writes its type and its attention into it
    with quiet(), torch.device("meta"):
        make = AutoModelForCausalLM.from_config if kind is None else kind._from_config
        model = make(own, attn_implementation=implementation, dtype=dtype).eval()
        wide = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        for path, module in model.named_modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and tensor.dtype is dtype and wide & {name, *path.split(".")}:
                        tensor.data = tensor.data.float()
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers reports what hasten knows already, its progress bars would mix with ours, and torch prints what a
    model fails of while it is traced."""
    logger, tracing = logging.getLogger("transformers"), logging.getLogger("torch._subclasses.fake_tensor")
    level, disabled = logger.level, tracing.disabled
    logger.setLevel(logging.ERROR)
    tracing.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        tracing.disabled = disabled


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
