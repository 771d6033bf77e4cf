"""Tiny models of each family, and GGUF files written from them by the format's own writer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hasten.data import assets
from hasten.errors import HastenError

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # transformers' config, GGUF's architecture, what makes it different
    "llama": ("LlamaConfig", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "llama with biases": ("LlamaConfig", "llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "llama", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", "qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "qwen3", {"head_dim": 64}),
}

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "1 2", "i n", "in g")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def alphabet() -> list[str]:
    """A character for each byte, in the order of GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def vocabulary() -> list[str]:
    return [*CONTROL, *alphabet(), *("".join(m.split(" ")) for m in MERGES)]


def random_network(kind: str, centre: float = 1.0, **settings: Any) -> Any:
    """A random network of a few layers whose norms and biases are not the usual ones and zeros.

    Args:
        kind: of transformers' configurations.
        centre: of a norm's weights.
        settings: of the configuration, in place of those that make it tiny.
    """
    import transformers

    sizes = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, kind)(**{**sizes, **settings})
    class_ = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    torch.manual_seed(3)
    network = class_._from_config(config, attn_implementation="sdpa" if class_._supports_sdpa else "eager").eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or "sinks" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, centre, 0.2)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.08)
    return network


def tiny(family: str, **changes: Any) -> Any:
    """`random_network` of a family."""
    kind, _, extra = FAMILIES[family]
    return random_network(kind, **{"rms_norm_eps": 1e-5, **extra, **changes})


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in which llama.cpp keeps q and k of its ``llama`` architecture."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    network: Any,
    path: Path,
    family: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    pre: str = "smollm",
    tensors: dict[str, np.ndarray] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Writes ``network`` as llama.cpp's converter would; ``metadata`` adds or replaces float and whole values."""
    architecture = FAMILIES[family][1]
    config = network.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    if family == "mistral":
        values["attention.sliding_window"] = config.sliding_window
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    weights: dict[str, np.ndarray] = {}
    for name, parameter in network.named_parameters():
        weight = parameter.detach().float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = permuted(weight, heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        weights[target] = weight
    return write_file(
        path, architecture, {**values, **(metadata or {})}, weights, kind, pre=pre, as_they_are=tensors or {}
    )


def write_file(
    path: Path,
    architecture: str,
    metadata: dict[str, Any],
    weights: dict[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    pre: str = "smollm",
    as_they_are: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a file with a tiny vocabulary: matrices in ``kind``, all else in fp32, or as it is."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"{architecture}.{key}", value)
        elif isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        else:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(vocabulary()) - len(CONTROL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, weight in weights.items():
        stored = kind if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(weight), stored), raw_dtype=stored)
    for name, values in (as_they_are or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random_gguf() -> Any:
    """`scripts/random_gguf.py`, which is no part of the package."""
    path = Path(__file__).parents[2] / "scripts" / "random_gguf.py"
    spec = importlib.util.spec_from_file_location("random_gguf", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


random_gguf = _random_gguf()
random_blocks, write_random = random_gguf.random_blocks, random_gguf.write


def logits(network: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(ids).logits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, len(vocabulary()), (1, 24), generator=generator)


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The default model's file; the asset tests skip without it."""
    found = assets.cached("smollm2-135m-instruct")
    if found is None:
        try:
            found = assets.get("smollm2-135m-instruct")
        except HastenError as error:
            pytest.skip(f"needs `hasten assets get smollm2-135m-instruct`: {error}")
    return found
