"""Networks from hub-style folders with safetensors."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hasten.dtypes import nbytes
from hasten.errors import HastenError
from hasten.models.loading.assemble import assemble, fill_network
from hasten.models.loading.config import FAMILIES, build, config_of, json_object, quiet
from hasten.models.loading.expert_tensors import (
    fill_experts,
    fill_int4_experts,
    packs_mxfp4,
    stack_experts,
    take_mxfp4,
)
from hasten.models.loading.int4_folder import Int4, take_int4
from hasten.models.loading.loaded import Loaded, check_descriptions, fingerprint
from hasten.nn.packed import PackedLinear

CONFIG = "config.json"
_FREQUENCIES = "rotary_emb.inv_freq"
_TYPES = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def from_folder(folder: Path, name: str, source: str, dtype: torch.dtype) -> Loaded:
    """A folder's network, quantized weights unpacked."""
    config, said = _described(folder)
    shards = _shards(folder)
    weights = _read(shards, quantized=bool(said))
    if packs_mxfp4(said):
        # The class holds them in columns.
        weights |= {key: w.dequantize().transpose(1, 2).contiguous() for key, w in take_mxfp4(weights, folder).items()}
    elif said:
        weights |= {key: weight.dequantize() for key, weight in take_int4(said, weights, folder).items()}
    stack_experts(weights, folder)
    network = assemble(config, {key: weight.to(dtype) for key, weight in weights.items()}, folder)
    _set_generation(network, folder)
    return Loaded(network, name, source, fingerprint([folder / CONFIG, *shards]), _folder=folder)


def from_folder_packed(folder: Path, name: str, source: str, bf16: bool, int8: bool = False) -> Loaded:
    """A folder's network with its int4 weights, or its MXFP4 experts, as they are, and the rest in fp32.

    Raises:
        HastenError: the folder's weights are not quantized, or not as hasten reads them.
    """
    if not json_object(folder / CONFIG).get("quantization_config"):
        raise HastenError(f"{folder} is not a GGUF file, and its weights are not quantized: only those come packed")
    config, said = _described(folder)
    shards = _shards(folder)
    weights = _read(shards, quantized=True)
    network = build(config)
    packed: dict[str, Int4] = {}
    if packs_mxfp4(said):
        fill_experts(network, weights, folder)
    else:
        packed = take_int4(said, weights, folder)
        fill_int4_experts(network, packed, folder, bf16=bf16, int8=int8)
        stack_experts(weights, folder)
    modules = dict(network.named_modules())
    for key, weight in packed.items():
        owner, _, child = key.removesuffix(".weight").rpartition(".")
        old = modules.get(key.removesuffix(".weight"))
        if old is not None and not isinstance(old, torch.nn.Linear):
            weights[key] = weight.dequantize()  # a router's, which is no linear layer
            continue
        if old is None or tuple(old.weight.shape) != tuple(weight.codes.shape):
            shape = tuple(weight.codes.shape)
            raise HastenError(f"{folder}: {key[:60]} has shape {shape}, its config asks for another")
        with torch.device("meta"):
            new = PackedLinear(
                old.in_features,
                old.out_features,
                old.bias is not None,
                bits=4,
                group=weight.group,
                bf16=bf16,
                int8=int8,
            )
        new.fill(*weight.packed())
        setattr(network.get_submodule(owner), child, new)
    weights = {key: weight.float() for key, weight in weights.items()}
    fill_network(network, config, weights, folder)
    _set_generation(network, folder)
    return Loaded(network, name, source, fingerprint([folder / CONFIG, *shards]), _folder=folder)


def _described(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A folder's configuration, and what it says of quantization."""
    data = json_object(folder / CONFIG)
    config = config_of(data, folder / CONFIG)
    if config.model_type not in FAMILIES:
        raise HastenError(f"{folder} is a {config.model_type!r} model; hasten loads {', '.join(sorted(FAMILIES))}")
    if config.tie_word_embeddings is None:
        config.tie_word_embeddings = False
    said = data.get("quantization_config")
    return config, said if isinstance(said, dict) else {}


def _read(shards: dict[Path, set[str] | None], quantized: bool) -> dict[str, Tensor]:
    """All tensors, as they are stored; whole numbers where weights are quantized."""
    weights: dict[str, Tensor] = {}
    for shard, promised in shards.items():
        try:
            with safe_open(shard, framework="pt") as file:
                # Old checkpoints carry the rotary frequencies, which follow from the config.
                held = {key for key in file.keys() if not key.endswith(_FREQUENCIES)}  # noqa: SIM118 - no mapping
                if promised is not None and promised != held:
                    odd = sorted(promised ^ held)[0]
                    raise HastenError(
                        f"{shard} and the index disagree (first: {odd[:60]!r}): fetch or copy the folder again"
                    )
                for key in held:
                    tensor = file.get_tensor(key)
                    plain = tensor.is_floating_point() and tensor.element_size() > 1
                    if not plain and not (quantized and tensor.dtype in (torch.int32, torch.int64, torch.uint8)):
                        raise HastenError(
                            f"{shard}: {key[:60]!r} is {tensor.dtype}: give a folder with unquantized weights"
                        )
                    weights[key] = tensor
        except FileNotFoundError:
            raise HastenError(f"{shard.parent} lacks {shard.name}: fetch or copy it again") from None
        except (SafetensorError, OSError, ValueError):
            raise HastenError(f"{shard} is truncated or corrupted: fetch or copy it again") from None
    return weights


def _set_generation(network: Any, folder: Path) -> None:
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        with contextlib.suppress(Exception), quiet():
            check_descriptions(folder)
            network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files of weights, and what the index promises of each; None without an index."""
    if (folder / "model.safetensors").is_file():
        return {
            folder / "model.safetensors": None
        }  # an index beside it is of another time, and transformers reads none
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        promised: dict[Path, set[str] | None] = {}
        try:
            pairs = list(json_object(index)["weight_map"].items())
        except (HastenError, KeyError, AttributeError):
            raise HastenError(f"{index} is not a readable index: fetch or copy it again") from None
        for key, shard in sorted(pairs, key=str):
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise HastenError(f"{index} names files outside its folder: do not use this model")
            held = promised.setdefault(folder / shard, set())
            assert held is not None
            if not str(key).endswith(_FREQUENCIES):
                held.add(key)
        if not promised:
            raise HastenError(f"{index} names no files: fetch or copy it again")
        return promised
    if list(folder.glob("*.bin")):
        raise HastenError(f"{folder} has only pickled weights (.bin), which can run code: convert them to safetensors")
    raise HastenError(f"{folder} has no model.safetensors: give a folder with safetensors weights")


def has_weights(folder: Path) -> bool:
    """Whether a folder has safetensors, or an index that promises them."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def tensor_types(folder: Path) -> dict[str, tuple[str, int]]:
    """The number format and the bytes of each tensor, by the headers alone.

    Raises:
        HastenError: a file is missing or broken, or has numbers that hasten has no name for.
    """
    found: dict[str, tuple[str, int]] = {}
    for shard in _shards(folder):
        try:
            with safe_open(shard, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    part = file.get_slice(key)
                    name = _TYPES.get(part.get_dtype())
                    if name is None:
                        raise HastenError(f"{shard}: {key[:60]!r} is {part.get_dtype()}: give a folder of another type")
                    found[key] = (name, nbytes(math.prod(part.get_shape()), name))
        except FileNotFoundError:
            raise HastenError(f"{folder} lacks {shard.name}: fetch or copy it again") from None
        except (SafetensorError, OSError, ValueError):
            raise HastenError(f"{shard} is truncated or corrupted: fetch or copy it again") from None
    return found
