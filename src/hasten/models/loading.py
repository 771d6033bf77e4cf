"""Pretrained causal language models from where users have them: GGUF files, Hugging Face folders, assets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.data import assets
from hasten.errors import HastenError
from hasten.models.gguf import GGUFFile

DEFAULT_MODEL = "smollm2-135m-instruct"

_FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass
class Loaded:
    """A network with what belongs to it.

    Args:
        network: an ordinary transformers causal LM, in eval mode.
        name: for people.
        source: what it was loaded from, to load it again.
        fingerprint: the same for the same weights.
    """

    network: Any
    name: str
    source: str
    fingerprint: str
    _folder: Path | None = field(default=None, repr=False)
    _gguf: Path | None = field(default=None, repr=False)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, read when it is first asked for.

        Raises:
            HastenError: the model came without a readable one.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            with _quiet():
                if self._gguf is None:
                    return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
                # The conversion takes seconds, so its result is kept.
                kept = assets.cache_folder() / "tokenizers" / self.fingerprint[:32]
                if (kept / "tokenizer.json").is_file():
                    with contextlib.suppress(Exception):
                        return PreTrainedTokenizerFast.from_pretrained(kept, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(self._gguf.parent, gguf_file=self._gguf.name)
                _keep_tokenizer(tokenizer, kept)
                return tokenizer
        except Exception as error:
            raise HastenError(f"{self.name} has no readable tokenizer: {_first_line(error)}") from None


def _keep_tokenizer(tokenizer: Any, kept: Path) -> None:
    aside = kept.with_name(f".{kept.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        tokenizer.save_pretrained(aside)
        aside.rename(kept)


def load_network(
    source: str | Path = DEFAULT_MODEL, *, progress: assets.Progress = lambda message: None
) -> Loaded:
    """Loads a causal language model in fp32.

    Args:
        source: a ``.gguf`` file, a folder with ``config.json`` and safetensors, the name of an asset, or a
            hub id that this machine has cached. Nothing is downloaded but an asset.
        progress: told what is happening.

    Raises:
        HastenError: nothing is there, or it is broken, or of a family that hasten does not load.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf" or (path.is_file() and path.suffix not in (".json", ".py")):
        return _from_gguf(path, path.stem, str(path.resolve()))
    if path.is_dir():
        return _from_folder(path, path.name, str(path.resolve()))
    name = str(source)
    if any(a.name == name for a in assets.assets()):
        found = assets.get(name, progress)
        if found.suffix != ".gguf":
            raise HastenError(f"asset {name} is not a model: see hasten assets")
        return _from_gguf(found, name, name)
    return _from_folder(_cached_snapshot(name), name, name)


def _cached_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    known = f"no model {name!r}: give a .gguf file, a model folder, or one of the assets ({DEFAULT_MODEL})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise HastenError(known)
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:
        raise HastenError(f"{known}; a hub id works once the model is in this machine's hub cache") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports what hasten knows already; its progress bars would mix with ours."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def build(config: Any) -> Any:
    """The transformers causal LM of a config, on the meta device: shapes without memory.

    Raises:
        HastenError: transformers has no causal LM for it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise HastenError(f"no causal language model for this config: {_first_line(error)}") from None


def _assemble(config: Any, weights: dict[str, Tensor], origin: str) -> Any:
    """The network of ``config`` with ``weights``, no memory written twice."""
    network = build(config)
    expected = {n: tuple(p.shape) for n, p in network.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", torch.empty(0)))
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise HastenError(f"{origin} lacks {len(missing)} tensors (first: {missing[0]}): fetch or copy it again")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise HastenError(f"{origin}: {name} has shape {got}, its config asks for {shape}")
    network.load_state_dict({n: weights[n] for n in expected}, assign=True)
    if config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    # Buffers that no file carries (rotary frequencies) are still on the meta device.
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def _from_gguf(path: Path, name: str, source: str) -> Loaded:
    file = GGUFFile(path)
    config = _gguf_config(file)
    weights: dict[str, Tensor] = {}
    for tensor in file.tensors:
        target = _gguf_name(tensor)
        if target is None:
            continue
        weights[target] = _unpermuted(file.dequantize(tensor), target, file, config)
    network = _assemble(config, weights, str(path))
    return Loaded(network, name, source, _fingerprint([path]), _gguf=path)


def _gguf_name(name: str) -> str | None:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _LAYER_NAMES:
        return None
    return f"model.layers.{found[1]}.{_LAYER_NAMES[found[2]]}.{found[3]}"


def _unpermuted(weight: Tensor, name: str, file: GGUFFile, config: Any) -> Tensor:
    """llama.cpp interleaves the two rotary halves of q and k, for its ``llama`` architecture alone."""
    if file.metadata.get("general.architecture") != "llama" or not re.search(r"[qk]_proj\.", name):
        return weight
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    rest = weight.shape[1:]
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _gguf_config(file: GGUFFile) -> Any:
    import transformers

    meta = file.metadata
    architecture = meta.get("general.architecture")
    # llama.cpp files Mistral under llama: the same network.
    if architecture not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise HastenError(f"{file.path} is a {architecture!r} model; hasten loads {known}")

    def value(key: str, default: Any = None) -> Any:
        found = meta.get(f"{architecture}.{key}", default)
        if found is None:
            raise HastenError(f"{file.path} lacks the metadata {architecture}.{key}: fetch or copy the file again")
        return found

    scaling = meta.get(f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none", "linear") or "rope_freqs.weight" in file.tensors:
        raise HastenError(f"{file.path} scales its rotary positions ({scaling or 'per frequency'}), which hasten does not read")
    heads, hidden = value("attention.head_count"), value("embedding_length")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise HastenError(f"{file.path} lacks token_embd.weight: fetch or copy the file again")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(value("rope.freq_base", 10000.0))}
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": float(value("rope.scaling.factor"))}
    settings: dict[str, Any] = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": meta.get(f"{architecture}.attention.key_length", hidden // heads if heads else 0),
        "max_position_embeddings": value("context_length", 2048),
        "rms_norm_eps": float(value("attention.layer_norm_rms_epsilon", 1e-5)),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
    }
    whole = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    if any(not isinstance(settings[k], int) or not 0 < settings[k] < 1 << 24 for k in whole):
        raise HastenError(f"{file.path} has impossible sizes in its metadata: fetch or copy the file again")
    if architecture == "mistral":
        settings["sliding_window"] = meta.get("mistral.attention.sliding_window")
    if architecture == "llama":
        settings["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    return getattr(transformers, _FAMILIES[architecture][0])(**settings)


def read_config(path: str | Path) -> Any:
    """A hub-style ``config.json`` as a transformers config; no code of the model's is ever run.

    Raises:
        HastenError: missing, not JSON, or an architecture that the installed transformers does not know.
    """
    from transformers import CONFIG_MAPPING

    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise HastenError(f"cannot read {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise HastenError(f"{path} is not JSON: give a model's config.json") from None
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise HastenError(f"{path} names the model type {kind!r}, which this transformers does not know")
    for key in ("auto_map", "quantization_config"):
        data.pop(key, None)
    try:
        with _quiet():
            return CONFIG_MAPPING[kind].from_dict(data)
    except Exception as error:
        raise HastenError(f"{path} is not a usable config: {_first_line(error)}") from None


def _from_folder(folder: Path, name: str, source: str) -> Loaded:
    from safetensors import SafetensorError, safe_open

    config = read_config(folder / "config.json")
    if config.model_type not in _FAMILIES:
        raise HastenError(f"{folder} is a {config.model_type!r} model; hasten loads {', '.join(sorted(_FAMILIES))}")
    if config.tie_word_embeddings is None:
        config.tie_word_embeddings = False
    shards = _shards(folder)
    weights: dict[str, Tensor] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    weights[key] = file.get_tensor(key).float()
        except FileNotFoundError:
            raise HastenError(f"{folder} lacks {shard.name}: fetch or copy it again") from None
        except (SafetensorError, OSError, ValueError):
            raise HastenError(f"{shard} is truncated or corrupted: fetch or copy it again") from None
    network = _assemble(config, weights, str(folder))
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        with contextlib.suppress(OSError, ValueError):
            network.generation_config = GenerationConfig.from_pretrained(folder)
    return Loaded(network, name, source, _fingerprint([folder / "config.json", *shards]), _folder=folder)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, UnicodeDecodeError):
            raise HastenError(f"{index} is not a readable index: fetch or copy it again") from None
        if any(not isinstance(n, str) or Path(n).name != n for n in names):
            raise HastenError(f"{index} names files outside its folder: do not use this model")
        return [folder / n for n in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if list(folder.glob("*.bin")):
        raise HastenError(f"{folder} has only pickled weights (.bin), which can run code: convert them to safetensors")
    raise HastenError(f"{folder} has no model.safetensors: give a folder with safetensors weights")


def _fingerprint(paths: list[Path]) -> str:
    """A hash of sizes and of samples throughout each file: cheap for a large model, and sure enough to tell
    one model from another."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 14))
    return digest.hexdigest()
