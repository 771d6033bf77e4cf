"""Networks from GGUF files, unpacked or as they are packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.kernels.packed_linear import quantize
from hasten.models.loading.assemble import assemble, check_layers, check_shapes, make_tables
from hasten.models.loading.config import build
from hasten.models.loading.gguf import GGUFFile, Packed
from hasten.models.loading.gguf_config import architecture_of, gguf_config
from hasten.models.loading.gguf_names import TensorSource, in_order, read, shapes, sources
from hasten.models.loading.loaded import Loaded, fingerprint
from hasten.nn.packed import PackedEmbedding, PackedLinear


def from_gguf(path: Path, name: str, source: str, dtype: torch.dtype) -> Loaded:
    file = GGUFFile(path)
    config = gguf_config(file)
    found = sources(file, architecture_of(file), config)
    check_layers(config, found, path)
    weights = {target: read(file, one, target, config).to(dtype) for target, one in found.items()}
    network = assemble(config, weights, path)
    _set_ends(network, config, file)
    return Loaded(network, name, source, fingerprint(list(file.paths)), _gguf=path)


def from_gguf_packed(path: Path, name: str, source: str, bf16: bool, int8: bool) -> Loaded:
    file = GGUFFile(path)
    config = gguf_config(file)
    found = sources(file, architecture_of(file), config)
    check_layers(config, found, path)
    network = build(config)
    check_shapes(network, config, shapes(file, found, config), path)

    def in_codes(weight: Packed) -> bool:
        return int8 and weight.bits not in (16, 32)

    for owner, parent in list(network.named_modules()):
        for child, module in list(parent.named_children()):
            full = f"{owner}.{child}" if owner else child
            if not isinstance(module, torch.nn.Linear | torch.nn.Embedding) or full == "lm_head":
                continue
            weight = _matrix(file, found, f"{full}.weight", config)
            shape = weight.shape
            with torch.device("meta"):
                if isinstance(module, torch.nn.Embedding):
                    scale = getattr(module, "scalar_embed_scale", None)
                    new: Any = PackedEmbedding(*shape, bits=weight.bits, scale=scale)
                else:
                    new = PackedLinear(shape[1], shape[0], bits=weight.bits, bf16=bf16, int8=in_codes(weight))
            new.fill(*weight[:3])
            if getattr(module, "bias", None) is not None:
                bias = _finite(read(file, found[f"{full}.bias"], f"{full}.bias", config), f"{full}.bias", path)
                new.bias = torch.nn.Parameter(bias, requires_grad=False)
            setattr(parent, child, new)
    table = network.model.embed_tokens
    if config.tie_word_embeddings:
        weight = Packed(table.packed, table.scales, table.mins, table.bits)
    else:
        weight = _matrix(file, found, "lm_head.weight", config)
    with torch.device("meta"):
        network.lm_head = PackedLinear(
            config.hidden_size,
            config.vocab_size,
            bits=weight.bits,
            bf16=bf16,
            int8=in_codes(weight),
        )
    network.lm_head.fill(*weight[:3])
    for full, parameter in list(network.named_parameters()):
        if parameter.device.type == "meta":
            value = _finite(read(file, found[full], full, config), full, path)
            owner, _, leaf = full.rpartition(".")
            setattr(network.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
    make_tables(network, config)
    _set_ends(network, config, file)
    return Loaded(network.eval(), name, source, fingerprint(list(file.paths)), _gguf=path)


def _matrix(file: GGUFFile, found: Mapping[str, TensorSource], target: str, config: Any) -> Packed:
    """A matrix as its file packs it, rows in the network's order; in 8 bits if the format has no counterpart."""
    path = file.path
    packed = in_order(file, found[target], target, config)
    if packed is None:
        weight = read(file, found[target], target, config)
        if weight.shape[-1] % 32:
            raise HastenError(f"{path}: {target} has {weight.shape[-1]} columns, which do not pack")
        try:
            packed = Packed(*quantize(weight, 8), 8)
        except HastenError as error:
            raise HastenError(f"{path}: {target}: {error}") from error
    if not packed.finite():
        raise HastenError(f"{path}: {target} holds values that are not finite: fetch or copy it again")
    return packed


def _finite(value: torch.Tensor, target: str, path: Path) -> torch.Tensor:
    if not all(bool(torch.isfinite(end)) for end in torch.aminmax(value)):
        raise HastenError(f"{path}: {target} holds values that are not finite: fetch or copy it again")
    return value


def _set_ends(network: Any, config: Any, file: GGUFFile) -> None:
    ends = [config.eos_token_id, file.metadata.get("tokenizer.ggml.eot_token_id")]
    if isinstance(ends[1], int) and 0 <= ends[1] < config.vocab_size and ends[0] not in (None, ends[1]):
        # A chat model ends its turn by a token of its own.
        network.generation_config.eos_token_id = ends
