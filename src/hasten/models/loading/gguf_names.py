"""From which tensors of a GGUF file a network's parameters are made, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.loading.gguf import GGUFFile, Packed
from hasten.models.loading.gguf_architectures import EXPERTS, NOT_WEIGHTS, TOP, StoredArchitecture, TensorForm


class TensorSource(NamedTuple):
    """What a parameter is made of.

    Args:
        names: the file's tensors; none: zeros.
        form: how they make it.
        head: which of `TensorForm.HEADS`.
    """

    names: tuple[str, ...]
    form: TensorForm = TensorForm.SAME
    head: int = 0


def sources(file: GGUFFile, architecture: StoredArchitecture, config: Any) -> dict[str, TensorSource]:
    """What each parameter of a network is made of, by transformers' name.

    Raises:
        HastenError: a tensor that this architecture does not have, or some of a layer's experts' without the others.
    """
    found: dict[str, TensorSource] = {}
    experts: dict[tuple[str, str], set[str]] = {}
    for name, info in file.tensors.items():
        if name in NOT_WEIGHTS:
            continue
        layer, base, kind = _place(name)
        if layer and base in EXPERTS and architecture.experts is not None:
            experts.setdefault((layer, kind), set()).add(base)
            continue
        target = parameter_of(architecture, name)
        if target is None:
            raise HastenError(
                f"{file.path} holds the tensor {name[:60]!r}, which hasten does not know: it cannot load this variant"
            )
        form = architecture.forms.get(base, TensorForm.SAME)
        if form is TensorForm.HEADS:
            for head in range(info.shape[0]):
                found[f"{target.removesuffix('.weight')}.{head}.weight"] = TensorSource((name,), form, head)
        else:
            found[target] = TensorSource((name,), form)
    for (layer, kind), parts in experts.items():
        if parts != set(EXPERTS):
            lacking = next(p for p in EXPERTS if p not in parts)
            raise HastenError(f"{file.path} lacks blk.{layer}.{lacking}.{kind}: fetch or copy it again")
        found |= _experts(architecture, layer, kind)
    if getattr(config, "attention_bias", False):
        # transformers' switch adds four biases, some files have three.
        for layer in map(str, range(config.num_hidden_layers)):
            for bias in architecture.zeros:
                found.setdefault(f"model.layers.{layer}.{bias}", TensorSource(()))
    return found


def parameter_of(architecture: StoredArchitecture, name: str) -> str | None:
    """The parameter that a tensor is, or is a part of, by transformers' name; None: the architecture has no such
    tensor.

    >>> from hasten.models.loading.gguf_architectures import ARCHITECTURES
    >>> parameter_of(ARCHITECTURES["gpt-oss"][0], "blk.3.attn_sinks.weight")
    'model.layers.3.self_attn.sinks'
    """
    layer, base, kind = _place(name)
    if not layer:
        return TOP.get(name)
    if base in EXPERTS and architecture.experts is not None:
        bias = "_bias" if kind == "bias" else ""
        part = "down_proj" if base == EXPERTS[-1] else "gate_up_proj"
        return f"model.layers.{layer}.{architecture.experts[0]}.{part}{bias}"
    if f"{base}.{kind}" in architecture.layer:
        return f"model.layers.{layer}.{architecture.layer[f'{base}.{kind}']}"
    return f"model.layers.{layer}.{architecture.layer[base]}.{kind}" if base in architecture.layer else None


def _place(name: str) -> tuple[str, str, str]:
    """A tensor's layer (nothing: in none), name there, and whether it is a weight or a bias."""
    found = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", name)
    if found:
        return str(int(found[1])), found[2], found[3]
    base, _, kind = name.rpartition(".")
    return "", base, kind


def _experts(architecture: StoredArchitecture, layer: str, kind: str) -> dict[str, TensorSource]:
    assert architecture.experts is not None
    module, both, down = architecture.experts
    gate, up, out = (f"blk.{layer}.{part}.{kind}" for part in EXPERTS)
    owner = f"model.layers.{layer}.{module}"
    if kind == "bias":
        return {
            f"{owner}.gate_up_proj_bias": TensorSource((gate, up), TensorForm.ALTERNATING_BIAS),
            f"{owner}.down_proj_bias": TensorSource((out,)),
        }
    return {f"{owner}.gate_up_proj": TensorSource((gate, up), both), f"{owner}.down_proj": TensorSource((out,), down)}


# Dimensions of the tensors that a form takes.
_RANKS = {
    TensorForm.HEADS: 2,
    TensorForm.ALTERNATING_BIAS: 2,
    TensorForm.EXPERTS_TURNED: 3,
    TensorForm.JOINED: 3,
    TensorForm.ALTERNATING: 3,
}


def made(source: TensorSource, tensors: Sequence[Tensor], target: str, config: Any, origin: Path) -> Tensor:
    """A parameter out of the file's tensors; of their shapes alone on the meta device.

    Args:
        source: of the parameter.
        tensors: those that it names.
        target: the parameter's name.
        config: of the network.
        origin: the file, for messages.

    Raises:
        HastenError: their shapes do not go together.
    """
    form = source.form
    if not tensors:
        return torch.zeros(config.hidden_size)
    shapes = [tuple(t.shape) for t in tensors]
    if form in _RANKS and (len(set(shapes)) > 1 or len(shapes[0]) != _RANKS[form]):
        told = " and ".join(f"{name} has shape {shape}" for name, shape in zip(source.names, shapes))
        raise HastenError(f"{origin}: {told}, which makes no {target}: fetch or copy it again")
    first = tensors[0]
    match form:
        case TensorForm.ROTARY:
            return _halved(first, target, config, origin)
        case TensorForm.SHIFTED:
            return first - 1
        case TensorForm.ROW:
            return first.reshape(1, -1)
        case TensorForm.HEADS:
            return first[source.head]
        case TensorForm.EXPERTS_TURNED:
            return first.transpose(1, 2).contiguous()
        case TensorForm.JOINED:
            return torch.cat(list(tensors), dim=1)
        case TensorForm.ALTERNATING:
            return torch.stack(list(tensors), dim=2).flatten(1, 2).transpose(1, 2).contiguous()
        case TensorForm.ALTERNATING_BIAS:
            return torch.stack(list(tensors), dim=2).flatten(1)
    return first


def read(file: GGUFFile, source: TensorSource, target: str, config: Any) -> Tensor:
    """A parameter in fp32.

    Raises:
        HastenError: its tensors cannot be read, or do not go together.
    """
    return made(source, [file.dequantize(name) for name in source.names], target, config, file.path)


def shapes(file: GGUFFile, found: Mapping[str, TensorSource], config: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that a file holds, without reading them.

    Raises:
        HastenError: those of a parameter's tensors do not go together.
    """

    def shape(target: str, source: TensorSource) -> tuple[int, ...]:
        tensors = [torch.empty(file.tensors[name].shape, device="meta") for name in source.names]
        return tuple(made(source, tensors, target, config, file.path).shape)

    return {target: shape(target, source) for target, source in found.items()}


def in_order(file: GGUFFile, source: TensorSource, target: str, config: Any) -> Packed | None:
    """A matrix as its file packs it, its rows in the network's order.

    Returns:
        None when it does not come packed: its format has no counterpart, or it is made of several tensors.

    Raises:
        HastenError: its rows are no whole number of heads.
    """
    if source.form is TensorForm.ROW:
        return Packed(read(file, source, target, config), None, None, 32)
    if source.form not in (TensorForm.SAME, TensorForm.ROTARY) or len(source.names) != 1:
        return None
    packed = file.packed(source.names[0])
    if packed is None or source.form is not TensorForm.ROTARY:
        return packed
    order = _halved(torch.arange(len(packed.packed)), target, config, file.path)
    codes, scales, mins = (None if t is None else t[order] for t in packed[:3])
    assert codes is not None
    return Packed(codes, scales, mins, packed.bits)


def _halved(weight: Tensor, target: str, config: Any, origin: Path) -> Tensor:
    """Rows of q or k with the first half of each head's before the second."""
    heads = config.num_attention_heads if "q_proj" in target else config.num_key_value_heads
    if weight.shape[0] % (heads * 2):
        raise HastenError(f"{origin}: {target} has {weight.shape[0]} rows for {heads} heads: fetch or copy it again")
    rest = weight.shape[1:]
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *rest)
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()
