"""Networks from GGUF files, unpacked or as they are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from hasten.nn.packed_experts import PackedGatedExperts, plain_parts


def from_gguf(path: Path, name: str, source: str, dtype: torch.dtype) -> Loaded:
    file = GGUFFile(path)
    config = gguf_config(file)
    found = sources(file, architecture_of(file), config)
    check_layers(config, found, path)
    weights = {target: read(file, one, target, config).to(dtype) for target, one in found.items()}
    network = assemble(config, weights, path)
    set_ends(network, config, file)
    return Loaded(network, name, source, fingerprint(list(file.paths)), _gguf=path)


def from_gguf_packed(path: Path, name: str, source: str, bf16: bool, int8: bool) -> Loaded:
    file = GGUFFile(path)
    config = gguf_config(file)
    architecture = architecture_of(file)
    found = sources(file, architecture, config)
    check_layers(config, found, path)
    network = build(config)
    check_shapes(network, config, shapes(file, found, config), path)

    def in_codes(*weights: Packed) -> bool:
        return int8 and all(weight.bits not in (16, 32) for weight in weights)

    experts = architecture.experts
    for owner, parent in list(network.named_modules()) if experts is not None else []:
        for child, module in list(parent.named_children()):
            full = f"{owner}.{child}"
            if f"{full}.gate_up_proj" in found and f"{full}.down_proj" in found:
                setattr(parent, child, _experts(file, module, full, found, bf16, in_codes))
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
    set_ends(network, config, file)
    return Loaded(network.eval(), name, source, fingerprint(list(file.paths)), _gguf=path)


def _matrix(file: GGUFFile, found: Mapping[str, TensorSource], target: str, config: Any) -> Packed:
    """A matrix as its file packs it, rows in the network's order; in 8 bits if the format has no counterpart."""
    packed = in_order(file, found[target], target, config)
    if packed is None:
        packed = _in_eight_bits(file.path, target, read(file, found[target], target, config))
    return _checked(file.path, target, packed)


def _experts(
    file: GGUFFile,
    module: torch.nn.Module,
    name: str,
    found: Mapping[str, TensorSource],
    bf16: bool,
    in_codes: Callable[..., bool],
) -> PackedGatedExperts:
    """A layer's experts as the file packs them: gate, up and down, (experts, out, in) each.

    Args:
        file, found: as `from_gguf_packed` has them.
        module: transformers' experts, on the meta device.
        name: of the module.
        bf16: as `PackedGatedExperts` has it.
        in_codes: whether rows are rounded to int8 that these weights are multiplied with.
    """
    why = PackedGatedExperts.why_not(module)
    if why:
        raise HastenError(f"{file.path}: {name}: {why}: load it unpacked")
    names = (*found[f"{name}.gate_up_proj"].names, *found[f"{name}.down_proj"].names)
    weights = []
    for tensor in names:
        packed = file.packed(tensor)
        if packed is None:
            packed = _in_eight_bits(file.path, tensor, file.dequantize(tensor).flatten(0, 1))
        weights.append(_checked(file.path, tensor, packed))
    plain = plain_parts(module)
    with torch.device("meta"):
        made = PackedGatedExperts(
            plain.experts,
            plain.hidden,
            plain.inner,
            bits=[weight.bits for weight in weights],
            fused=False,
            bias=plain.biases is not None,
            activation=plain.activation,
            clamped=plain.clamped,
            bf16=bf16,
            int8=in_codes(*weights),
        )
    for stack, weight, tensor in zip(made.stacks().values(), weights, names):
        codes, scales, mins = (None if t is None else t.unflatten(0, (plain.experts, -1)) for t in weight[:3])
        assert codes is not None
        stack.fill(codes, scales, mins)
        if plain.biases is not None:
            bias = _finite(file.dequantize(f"{tensor.removesuffix('weight')}bias"), tensor, file.path)
            stack.bias = torch.nn.Parameter(bias, requires_grad=False)
    return made


def _in_eight_bits(path: Path, target: str, weight: torch.Tensor) -> Packed:
    if weight.shape[-1] % 32:
        raise HastenError(f"{path}: {target} has {weight.shape[-1]} columns, which do not pack")
    try:
        return Packed(*quantize(weight, 8), 8)
    except HastenError as error:
        raise HastenError(f"{path}: {target}: {error}") from error


def _checked(path: Path, target: str, packed: Packed) -> Packed:
    if not packed.finite():
        raise HastenError(f"{path}: {target} holds values that are not finite: fetch or copy it again")
    return packed


def _finite(value: torch.Tensor, target: str, path: Path) -> torch.Tensor:
    if not all(bool(torch.isfinite(end)) for end in torch.aminmax(value)):
        raise HastenError(f"{path}: {target} holds values that are not finite: fetch or copy it again")
    return value


# Tokens that end a chat model's turn, whatever their numbers; in a file of gpt-oss <|end|> ends a part of it.
_TURN_ENDS = ("<end_of_turn>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|return|>", "<|call|>")
_CONTROL = (3, 4)  # types of tokens that stand for themselves


def set_ends(network: Any, config: Any, file: GGUFFile) -> None:
    """Tells a network's generation settings which tokens end a text: the file's, and those that end a turn by name."""
    meta = file.metadata
    said = [meta.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")]
    ends = [n for n in said if isinstance(n, int) and 0 <= n < config.vocab_size]
    tokens, types = (meta.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if isinstance(tokens, list) and isinstance(types, list):
        pairs = zip(tokens, types)
        named = {t: i for i, (t, kind) in enumerate(pairs) if kind in _CONTROL and t in _TURN_ENDS}
        if "<|return|>" in named and "<|call|>" in named:
            named.pop("<|end|>", None)
        ends += [number for number in named.values() if number < config.vocab_size]
    ends = list(dict.fromkeys([*([] if config.eos_token_id is None else [config.eos_token_id]), *ends]))
    if len(ends) > 1 or config.eos_token_id is None:
        # A chat model ends its turn by a token of its own.
        network.generation_config.eos_token_id = ends or None
