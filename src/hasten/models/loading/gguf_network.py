"""Networks from GGUF files, unpacked or as they are packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.packed_linear import quantize
from hasten.models.loading.assemble import assemble
from hasten.models.loading.config import build
from hasten.models.loading.gguf import GGUFFile, Packed
from hasten.models.loading.gguf_config import gguf_config
from hasten.models.loading.gguf_names import NOT_WEIGHTS, gguf_name, unpermuted
from hasten.models.loading.loaded import Loaded, fingerprint
from hasten.nn.packed import PackedEmbedding, PackedLinear


def from_gguf(path: Path, name: str, source: str, dtype: torch.dtype) -> Loaded:
    file = GGUFFile(path)
    config = gguf_config(file)
    weights: dict[str, Tensor] = {}
    for tensor in file.tensors:
        if tensor in NOT_WEIGHTS:
            continue
        target = gguf_name(tensor)
        if target is None:
            raise HastenError(
                f"{path} holds the tensor {tensor[:60]!r}, which hasten does not know: it cannot load this variant"
            )
        weights[target] = unpermuted(file.dequantize(tensor), target, file, config).to(dtype)
    if getattr(config, "attention_bias", False) and config.model_type == "llama":
        for layer in range(config.num_hidden_layers):
            # transformers' switch adds four biases, some files of this architecture have three.
            weights.setdefault(
                f"model.layers.{layer}.self_attn.o_proj.bias", torch.zeros(config.hidden_size, dtype=dtype)
            )
    network = assemble(config, weights, path)
    _set_ends(network, config, file)
    return Loaded(network, name, source, fingerprint(list(file.paths)), _gguf=path)


def from_gguf_packed(path: Path, name: str, source: str, bf16: bool, int8: bool) -> Loaded:
    file = GGUFFile(path)
    config = gguf_config(file)
    network = build(config)
    found = {gguf_name(tensor): tensor for tensor in file.tensors if tensor not in NOT_WEIGHTS}
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
            try:
                packed = Packed(*quantize(weight, 8), 8)
            except HastenError as error:
                raise HastenError(f"{path}: {target}: {error}") from error
        if not packed.finite():
            raise HastenError(f"{path}: {target} holds values that are not finite: fetch or copy it again")
        order = unpermuted(torch.arange(len(packed.packed)), target, file, config)
        if bool((order[1:] > order[:-1]).all()):
            return packed
        scales, mins = (None if t is None else t[order] for t in packed[1:3])
        return Packed(packed.packed[order], scales, mins, packed.bits)

    def in_codes(weight: Packed) -> bool:
        return int8 and weight.bits not in (16, 32)

    for owner, parent in list(network.named_modules()):
        for child, module in list(parent.named_children()):
            full = f"{owner}.{child}" if owner else child
            if not isinstance(module, torch.nn.Linear | torch.nn.Embedding) or full == "lm_head":
                continue
            weight = matrix(f"{full}.weight")
            shape = weight.shape
            if shape != tuple(module.weight.shape):
                raise HastenError(f"{path}: {full} has shape {shape}, its config asks for {tuple(module.weight.shape)}")
            with torch.device("meta"):
                if isinstance(module, torch.nn.Embedding):
                    new: Any = PackedEmbedding(*shape, bits=weight.bits)
                else:
                    new = PackedLinear(shape[1], shape[0], bits=weight.bits, bf16=bf16, int8=in_codes(weight))
            new.fill(*weight[:3])
            if getattr(module, "bias", None) is not None:
                bias = file.dequantize(found[f"{full}.bias"]) if f"{full}.bias" in found else torch.zeros(shape[0])
                bias = unpermuted(bias, f"{full}.bias", file, config)
                new.bias = torch.nn.Parameter(bias, requires_grad=False)
            setattr(parent, child, new)
    table = network.model.embed_tokens
    head = table if config.tie_word_embeddings else None
    weight = matrix("lm_head.weight") if head is None else Packed(table.packed, table.scales, table.mins, table.bits)
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
            if full not in found:
                raise HastenError(f"{path} lacks {full}: fetch or copy it again")
            value = torch.nn.Parameter(file.dequantize(found[full]).reshape(parameter.shape), requires_grad=False)
            owner, _, leaf = full.rpartition(".")
            setattr(network.get_submodule(owner), leaf, value)
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    _set_ends(network, config, file)
    return Loaded(network.eval(), name, source, fingerprint(list(file.paths)), _gguf=path)


def _set_ends(network: Any, config: Any, file: GGUFFile) -> None:
    ends = [config.eos_token_id, file.metadata.get("tokenizer.ggml.eot_token_id")]
    if isinstance(ends[1], int) and 0 <= ends[1] < config.vocab_size and ends[0] not in (None, ends[1]):
        # A chat model ends its turn by a token of its own.
        network.generation_config.eos_token_id = ends
