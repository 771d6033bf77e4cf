"""Pretrained causal language models from where users have them: GGUF files, Hugging Face folders, assets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
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
from hasten.models.loading.gguf import GGUFFile, Packed
from hasten.models.loading.gguf_tokenizer import build_tokenizer

__all__ = ["Loaded", "load_network", "load_packed"]

DEFAULT_MODEL = "smollm2-135m-instruct"

_FAMILIES = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
_GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")
# What changes the network behind these architectures' names, and hasten does not build.
_UNREAD = (
    "expert_count",
    "attention.scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "final_logit_softcapping",
    "attn_logit_softcapping",
)
_YARN_UNREAD = (
    "attn_factor",
    "yarn_log_multiplier",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# No model comes near these; a config beyond them would be built for hours, or into all memory.
_MOST_LAYERS, _WIDEST = 10_000, 1 << 27
_NOT_WEIGHTS = ("rope_freqs.weight",)
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

    Attributes:
        network: an ordinary transformers causal LM, in eval mode.
        name: for people.
        source: what it was loaded from, to load it again.
        fingerprint: the same for the same weights, wherever they lie.
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
        try:
            with _quiet():
                if self._gguf is not None:
                    return build_tokenizer(GGUFFile(self._gguf).metadata)
                assert self._folder is not None
                # Without any of these transformers makes an empty tokenizer and says nothing.
                if not any((self._folder / name).is_file() for name in _TOKENIZER_FILES):
                    raise HastenError(f"none of {', '.join(_TOKENIZER_FILES)} is there")
                from transformers import AutoTokenizer

                # Without an explicit no, a folder that brings its own code makes transformers ask on the terminal.
                return AutoTokenizer.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise HastenError(f"{self.name} has no readable tokenizer: {_one_line(error)}") from None

    def packed(self, name: str) -> Packed | None:
        """A parameter as its file packs it, code for code, rows in the network's order.

        Args:
            name: as in ``network.named_parameters()``.

        Returns:
            None when it does not come packed: not from GGUF, or in a format without a counterpart.
        """
        if self._gguf is None:
            return None
        file = GGUFFile(self._gguf)
        found = {_gguf_name(n): n for n in file.tensors}
        if name == "lm_head.weight":
            name = name if name in found else "model.embed_tokens.weight"
        weight = file.packed(found[name]) if name in found else None
        if weight is None:
            return None
        order = _unpermuted(torch.arange(len(weight.packed)), name, file, self.network.config)
        packed, scales, mins = (None if t is None else t[order] for t in weight[:3])
        assert packed is not None
        return Packed(packed, scales, mins, weight.bits)


def load_network(
    source: str | Path = DEFAULT_MODEL,
    *,
    dtype: torch.dtype = torch.float32,
    progress: assets.Progress = lambda message: None,
) -> Loaded:
    """Loads a causal language model.

    Args:
        source: a ``.gguf`` file, a folder with ``config.json`` and safetensors, the name of an asset, or a
            hub id that this machine has cached. Nothing is downloaded but an asset.
        dtype: what its weights become.
        progress: told what is happening.

    Raises:
        HastenError: nothing is there, or it is broken, or of a family that hasten does not load.
    """
    with _one_thread():
        return _load(source, dtype, progress)


def load_packed(
    source: str | Path = DEFAULT_MODEL,
    *,
    bf16: bool = False,
    int8: bool = False,
    progress: assets.Progress = lambda message: None,
) -> Loaded:
    """Loads a GGUF model with its weights as the file packs them: nothing is unpacked, nothing rounded again.

    Q4_0, Q4_1, Q8_0, F16 and BF16 matrices keep their codes; a matrix in another format is packed to 8 bits.

    Args:
        source: a ``.gguf`` file or the name of an asset that is one.
        bf16, int8: how many and few rows are multiplied, see `hasten.nn.PackedLinear`.
        progress: told what is happening.

    Raises:
        HastenError: not a GGUF file, or one that `load_network` refuses.
    """
    path = Path(source).expanduser()
    name, origin = path.stem, str(path.resolve())
    if any(a.name == str(source) for a in assets.assets()):
        name = origin = str(source)
        path = assets.get(origin, progress)
    if path.suffix != ".gguf":
        raise HastenError(f"{source} is not a GGUF file: only those come packed")
    with _one_thread():
        return _from_gguf_packed(path, name, origin, bf16, int8)


def _from_gguf_packed(path: Path, name: str, source: str, bf16: bool, int8: bool) -> Loaded:
    from hasten.kernels.packed_linear import quantize
    from hasten.nn.packed import PackedEmbedding, PackedLinear

    file = GGUFFile(path)
    config = _gguf_config(file)
    network = build(config)
    found = {_gguf_name(tensor): tensor for tensor in file.tensors if tensor not in _NOT_WEIGHTS}
    if None in found:
        raise HastenError(f"{path} holds tensors that hasten does not know: it cannot load this variant")

    def matrix(target: str) -> Packed:
        if target not in found:
            raise HastenError(f"{path} lacks {target}: fetch or copy it again")
        packed = file.packed(found[target])
        if packed is None:
            weight = file.dequantize(found[target])
            if weight.shape[-1] % 32:
                raise HastenError(f"{path}: {target} has {weight.shape[-1]} columns, which do not pack")
            codes, scales, mins = quantize(weight, 8)
            packed = Packed(codes, scales, mins, 8)
        if not all(bool(torch.isfinite(t.sum(dtype=torch.float32))) for t in packed[1:3] if t is not None):
            raise HastenError(f"{path}: {target} holds values that are not finite: fetch or copy it again")
        order = _unpermuted(torch.arange(len(packed.packed)), target, file, config)
        if bool((order[1:] > order[:-1]).all()):
            return packed
        scales, mins = (None if t is None else t[order] for t in packed[1:3])
        return Packed(packed.packed[order], scales, mins, packed.bits)

    for owner, parent in list(network.named_modules()):
        for child, module in list(parent.named_children()):
            full = f"{owner}.{child}" if owner else child
            if not isinstance(module, torch.nn.Linear | torch.nn.Embedding) or full == "lm_head":
                continue
            weight = matrix(f"{full}.weight")
            shape = (len(weight.packed), weight.packed.shape[1] * (2 if weight.bits == 4 else 1))
            if shape != tuple(module.weight.shape):
                raise HastenError(f"{path}: {full} has shape {shape}, its config asks for {tuple(module.weight.shape)}")
            with torch.device("meta"):
                if isinstance(module, torch.nn.Embedding):
                    new: Any = PackedEmbedding(*shape, bits=weight.bits)
                else:
                    new = PackedLinear(shape[1], shape[0], bits=weight.bits, bf16=bf16, int8=int8 and weight.bits < 16)
            new.fill(*weight[:3])
            if getattr(module, "bias", None) is not None:
                bias = file.dequantize(found[f"{full}.bias"]) if f"{full}.bias" in found else torch.zeros(shape[0])
                bias = _unpermuted(bias, f"{full}.bias", file, config)
                new.bias = torch.nn.Parameter(bias, requires_grad=False)
            setattr(parent, child, new)
    table = network.model.embed_tokens
    head = table if config.tie_word_embeddings else None
    weight = matrix("lm_head.weight") if head is None else Packed(table.packed, table.scales, table.mins, table.bits)
    with torch.device("meta"):
        network.lm_head = PackedLinear(
            config.hidden_size, config.vocab_size, bits=weight.bits, bf16=bf16, int8=int8 and weight.bits < 16
        )
    network.lm_head.fill(*weight[:3])
    for full, parameter in list(network.named_parameters()):
        if parameter.device.type == "meta":
            if full not in found:
                raise HastenError(f"{path} lacks {full}: fetch or copy it again")
            value = torch.nn.Parameter(file.dequantize(found[full]).reshape(parameter.shape), requires_grad=False)
            owner, _, leaf = full.rpartition(".")
            setattr(network.get_submodule(owner), leaf, value)
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    _set_ends(network, config, file)
    return Loaded(network.eval(), name, source, _fingerprint([path]), _gguf=path)


def _set_ends(network: Any, config: Any, file: GGUFFile) -> None:
    ends = [config.eos_token_id, file.metadata.get("tokenizer.ggml.eot_token_id")]
    if isinstance(ends[1], int) and 0 <= ends[1] < config.vocab_size and ends[0] not in (None, ends[1]):
        # A chat model ends its turn by a token of its own.
        network.generation_config.eos_token_id = ends


def _load(source: str | Path, dtype: torch.dtype, progress: assets.Progress) -> Loaded:
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, path.name, str(path.resolve()), dtype)
    if path.suffix in (".safetensors", ".json") and path.is_file():
        raise HastenError(f"{path} is one file of a model: give its folder")
    if path.suffix == ".gguf" or path.is_file():
        return _from_gguf(path, path.stem, str(path.resolve()), dtype)
    name = str(source)
    if any(a.name == name for a in assets.assets()):
        entry = assets.asset(name)
        if not (len(entry.files) == 1 and entry.files[0].path.endswith(".gguf")):
            raise HastenError(f"asset {name} is not a model: see hasten assets")
        return _from_gguf(assets.fetch(entry, progress), name, name, dtype)
    return _from_folder(_cached_snapshot(name), name, name, dtype)


def _cached_snapshot(name: str) -> Path:
    known = f"no model {name!r}: give a .gguf file, a model folder, or one of the assets ({DEFAULT_MODEL})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise HastenError(known)
    from huggingface_hub import snapshot_download

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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Hundreds of small operations: on a busy machine threads that wait for each other cost ten times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(config: Any) -> Any:
    """The transformers causal LM of a config, on the meta device: shapes without memory.

    Raises:
        HastenError: transformers has no causal LM for it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    except Exception as error:  # whatever a class makes of sizes that do not fit
        raise HastenError(f"no causal language model for this config: {_one_line(error)}") from None


def _assemble(config: Any, weights: dict[str, Tensor], origin: Path) -> Any:
    """The network of ``config`` with ``weights``, no memory written twice."""
    layers = {int(found[1]) for name in weights if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    # Before anything is built: a wrong count in a config could ask for millions of layers.
    if len(layers) != config.num_hidden_layers or max(layers, default=0) >= len(layers):
        raise HastenError(
            f"{origin} holds {len(layers)} layers, its config says {config.num_hidden_layers}: fetch or copy it again"
        )
    network = build(config)
    expected = {n: tuple(p.shape) for n, p in network.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise HastenError(f"{origin} lacks {len(missing)} tensors (first: {missing[0][:60]!r}): fetch or copy it again")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise HastenError(
            f"{origin} holds {len(extra)} tensors that a {config.model_type} network does not have "
            f"(first: {extra[0][:60]!r}): hasten cannot load this variant"
        )
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise HastenError(f"{origin}: {name} has shape {got}, its config asks for {shape}")
        # A sum is finite when every value is; no mask of the weight's size is made.
        if not torch.isfinite(weights[name].sum(dtype=torch.float32)):
            raise HastenError(f"{origin}: {name} holds values that are not finite: fetch or copy it again")
    network.load_state_dict({n: weights[n] for n in expected}, assign=True)
    if config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    # Buffers that no file carries (rotary frequencies) are still on the meta device.
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def _from_gguf(path: Path, name: str, source: str, dtype: torch.dtype) -> Loaded:
    file = GGUFFile(path)
    config = _gguf_config(file)
    weights: dict[str, Tensor] = {}
    for tensor in file.tensors:
        if tensor in _NOT_WEIGHTS:
            continue
        target = _gguf_name(tensor)
        if target is None:
            raise HastenError(
                f"{path} holds the tensor {tensor[:60]!r}, which hasten does not know: it cannot load this variant"
            )
        weights[target] = _unpermuted(file.dequantize(tensor), target, file, config).to(dtype)
    if getattr(config, "attention_bias", False) and config.model_type == "llama":
        for layer in range(config.num_hidden_layers):
            # transformers' switch adds four biases, some files of this architecture have three.
            weights.setdefault(
                f"model.layers.{layer}.self_attn.o_proj.bias", torch.zeros(config.hidden_size, dtype=dtype)
            )
    network = _assemble(config, weights, path)
    _set_ends(network, config, file)
    return Loaded(network, name, source, _fingerprint([path]), _gguf=path)


def _gguf_name(name: str) -> str | None:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    found = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _LAYER_NAMES:
        return None
    return f"model.layers.{int(found[1])}.{_LAYER_NAMES[found[2]]}.{found[3]}"


def _unpermuted(weight: Tensor, name: str, file: GGUFFile, config: Any) -> Tensor:
    """llama.cpp interleaves the two rotary halves of q and k, for its ``llama`` architecture alone."""
    if file.metadata.get("general.architecture") != "llama" or not re.search(r"[qk]_proj\.", name):
        return weight
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    if weight.shape[0] % (heads * 2):
        raise HastenError(f"{file.path}: {name} has {weight.shape[0]} rows for {heads} heads: fetch or copy it again")
    rest = weight.shape[1:]
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


class _Metadata:
    """A GGUF file's values of its architecture, each checked when it is read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.metadata.get("general.architecture")

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def _value(self, key: str, default: float | None) -> Any:
        found = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if found is None:
            raise HastenError(f"{self.file.path} lacks {self.architecture}.{key}: fetch or copy the file again")
        return found

    def _wrong(self, key: str, found: object) -> HastenError:
        shown = str(found)[:40]
        return HastenError(f"{self.file.path} says {self.architecture}.{key} is {shown}: hasten cannot load that")

    def whole(self, key: str, default: int | None = None) -> int:
        found = self._value(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 1 << 27:
            raise self._wrong(key, found)
        return found

    def number(self, key: str, default: float | None = None) -> float:
        found = self._value(key, default)
        if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
            raise self._wrong(key, found)
        return float(found)

    def token(self, key: str, vocabulary: int) -> int | None:
        found = self.file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if found is not None and (not isinstance(found, int) or not 0 <= found < vocabulary):
            raise HastenError(f"{self.file.path} has an impossible {key} token ({str(found)[:40]}): fetch it again")
        return found


def _gguf_config(file: GGUFFile) -> Any:
    import transformers

    meta = _Metadata(file)
    architecture = meta.architecture
    if architecture not in _GGUF_ARCHITECTURES:
        known = ", ".join(_GGUF_ARCHITECTURES)
        raise HastenError(f"{file.path} is a {str(architecture)[:40]!r} model; hasten loads {known}")
    for key in _UNREAD:
        if file.metadata.get(f"{architecture}.{key}"):
            raise HastenError(f"{file.path} sets {architecture}.{key}: hasten cannot load this variant")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise HastenError(f"{file.path} has no token_embd.weight matrix: fetch or copy the file again")
    vocabulary = embedding.shape[0]
    heads, hidden = meta.whole("attention.head_count"), meta.whole("embedding_length")
    head_dim = meta.whole("attention.key_length", max(hidden // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if meta.whole(key, head_dim) != head_dim:
            raise HastenError(
                f"{file.path}: {key} differs from the {head_dim} of a head: hasten cannot load this variant"
            )
    kv_heads = meta.whole("attention.head_count_kv", heads)
    if heads % kv_heads or head_dim % 2:
        raise HastenError(
            f"{file.path} has {heads} heads of {head_dim} for {kv_heads} KV heads: fetch or copy it again"
        )
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": meta.whole("feed_forward_length"),
        "num_hidden_layers": meta.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": meta.whole("context_length", 2048),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": _rope(meta, head_dim),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": meta.token("bos", vocabulary),
        "eos_token_id": meta.token("eos", vocabulary),
        "pad_token_id": meta.token("padding", vocabulary),
    }
    family = architecture
    if architecture == "llama":
        # llama.cpp files Mistral under llama: the same network, but for the window.
        if meta.has("attention.sliding_window"):
            family = "mistral"
            settings["sliding_window"] = meta.whole("attention.sliding_window")
        else:
            settings["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
            settings["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if architecture == "qwen3":
        settings["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    try:
        return getattr(transformers, _FAMILIES[family])(**settings)
    except Exception as error:
        raise HastenError(f"{file.path} does not describe a usable model: {_one_line(error)}") from None


def _rope(meta: _Metadata, head_dim: int) -> dict[str, Any]:
    """Rotary positions as transformers names them."""
    theta = meta.number("rope.freq_base", 10000.0)
    plain = {"rope_type": "default", "rope_theta": theta}
    kind = meta.file.metadata.get(f"{meta.architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in meta.file.tensors:
        factors = meta.file.dequantize("rope_freqs.weight").flatten()
        if factors.shape == (head_dim // 2,) and kind == "none":
            found = _llama3_rope(factors, theta)
            if found is not None:
                return found
        raise HastenError(f"{meta.file.path} scales its rotary frequencies in a way that hasten does not know")
    if kind == "none":
        return plain
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": meta.number("rope.scaling.factor")}
    if kind == "yarn" and not any(meta.has(f"rope.scaling.{k}") for k in _YARN_UNREAD):
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": meta.number("rope.scaling.factor"),
            "original_max_position_embeddings": meta.whole("rope.scaling.original_context_length"),
        }
    raise HastenError(
        f"{meta.file.path} scales its rotary positions ({str(kind)[:40]}) in a way that hasten does not know"
    )


def _llama3_rope(factors: Tensor, theta: float) -> dict[str, Any] | None:
    """The rule of Llama 3.1 and 3.2 behind a file's divisors of rotary frequencies; None if it is another."""
    if bool((factors == 1).all()):
        return {"rope_type": "default", "rope_theta": theta}
    factor, low, high, trained = float(factors.max()), 1.0, 4.0, 8192
    half = len(factors)
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turns = trained * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    rule = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(factors.double(), rule, rtol=1e-3):
        return None
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }


def read_config(path: str | Path) -> Any:
    """A hub-style ``config.json`` as a transformers config; no code of the model's is ever run.

    Raises:
        HastenError: missing, not JSON, or an architecture that the installed transformers does not know.
    """
    return _config_of(_json_object(Path(path)), Path(path))


def _json_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise HastenError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise HastenError(f"{path} is not JSON: give a model's config.json") from None
    if not isinstance(data, dict):
        raise HastenError(f"{path} is not a JSON object: give a model's config.json")
    return data


def _config_of(data: dict[str, Any], path: Path) -> Any:
    from transformers import CONFIG_MAPPING

    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise HastenError(f"{path} names the model type {str(kind)[:40]!r}, which this transformers does not know")
    for key, most in (("num_hidden_layers", _MOST_LAYERS), ("hidden_size", _WIDEST), ("vocab_size", _WIDEST)):
        size = data.get(key)
        if isinstance(size, int | float) and not 0 < size <= most:
            raise HastenError(f"{path} says {key} is {size}: fetch or copy it again")
    data = {k: v for k, v in data.items() if k not in ("auto_map", "quantization_config")}
    try:
        with _quiet():
            return CONFIG_MAPPING[kind].from_dict(data)
    except Exception as error:
        raise HastenError(f"{path} is not a usable config: {_one_line(error)}") from None


def _from_folder(folder: Path, name: str, source: str, dtype: torch.dtype) -> Loaded:
    from safetensors import SafetensorError, safe_open

    data = _json_object(folder / "config.json")
    if "quantization_config" in data:
        raise HastenError(f"{folder} holds quantized weights: give the model's unquantized folder, or a GGUF file")
    config = _config_of(data, folder / "config.json")
    if config.model_type not in _FAMILIES:
        raise HastenError(f"{folder} is a {config.model_type!r} model; hasten loads {', '.join(sorted(_FAMILIES))}")
    if config.tie_word_embeddings is None:
        config.tie_word_embeddings = False
    weights: dict[str, Tensor] = {}
    shards = _shards(folder)
    for shard, promised in shards.items():
        try:
            with safe_open(shard, framework="pt") as file:
                held = set(file.keys())
                if promised is not None and promised != held:
                    odd = sorted(promised ^ held)[0]
                    raise HastenError(
                        f"{shard} and the index disagree (first: {odd[:60]!r}): fetch or copy the folder again"
                    )
                for key in held:
                    tensor = file.get_tensor(key)
                    if not tensor.is_floating_point() or tensor.element_size() < 2:
                        raise HastenError(
                            f"{shard}: {key[:60]!r} is {tensor.dtype}: give a folder with unquantized weights"
                        )
                    # Old checkpoints carry the rotary frequencies, which follow from the config.
                    if not key.endswith("rotary_emb.inv_freq"):
                        weights[key] = tensor.to(dtype)
        except FileNotFoundError:
            raise HastenError(f"{folder} lacks {shard.name}: fetch or copy it again") from None
        except (SafetensorError, OSError, ValueError):
            raise HastenError(f"{shard} is truncated or corrupted: fetch or copy it again") from None
    network = _assemble(config, weights, folder)
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        with contextlib.suppress(Exception), _quiet():
            network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return Loaded(network, name, source, _fingerprint([folder / "config.json", *shards]), _folder=folder)


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files of weights, and what the index promises of each; None without an index."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        promised: dict[Path, set[str] | None] = {}
        try:
            pairs = list(_json_object(index)["weight_map"].items())
        except (HastenError, KeyError, AttributeError):
            raise HastenError(f"{index} is not a readable index: fetch or copy it again") from None
        for key, shard in sorted(pairs, key=str):
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise HastenError(f"{index} names files outside its folder: do not use this model")
            held = promised.setdefault(folder / shard, set())
            assert held is not None
            held.add(key)
        if not promised:
            raise HastenError(f"{index} names no files: fetch or copy it again")
        return promised
    if (folder / "model.safetensors").is_file():
        return {folder / "model.safetensors": None}
    if list(folder.glob("*.bin")):
        raise HastenError(f"{folder} has only pickled weights (.bin), which can run code: convert them to safetensors")
    raise HastenError(f"{folder} has no model.safetensors: give a folder with safetensors weights")


def _fingerprint(paths: list[Path]) -> str:
    """A hash of sizes and of samples throughout each file: cheap for a large model, and sure enough to tell
    one model from another."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 14))
    return digest.hexdigest()
