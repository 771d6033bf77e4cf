"""Experts in a folder's tensors: one tensor a matrix as hubs have them, stacked as transformers' classes do; MXFP4."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels import block_formats
from hasten.models.loading.int4_folder import Int4
from hasten.nn.packed_experts import PackedGatedExperts, plain_parts

# The number of the format among `hasten.kernels.block_formats`, and its block.
_MXFP4 = 139
_BLOCK = 32
# The largest scale of which all numbers are finite in fp32.
_LARGEST = 252
# The two names that hubs have for an expert's three matrices: Mixtral's, and everybody else's.
_EXPERT = re.compile(r"(.+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight")
_PARTS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_OLD_ROUTER = ".block_sparse_moe.gate."


def stack_experts(weights: dict[str, Tensor], where: Path) -> None:
    """Turns the tensors of single experts into those of all of a layer's, and old names of routers into new ones.

    Of what is stacked nothing is kept twice.

    Raises:
        HastenError: a layer lacks a matrix of an expert, or they differ in shape.
    """
    for key in [k for k in weights if _OLD_ROUTER in k]:
        weights[key.replace(_OLD_ROUTER, ".mlp.gate.")] = weights.pop(key)
    for layer, (count, keys) in _experts_by_layer(weights, where).items():
        try:
            both = [torch.cat((weights.pop(keys["gate", e]), weights.pop(keys["up", e]))) for e in range(count)]
            weights[f"{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
            del both
            weights[f"{layer}.mlp.experts.down_proj"] = torch.stack(
                [weights.pop(keys["down", e]) for e in range(count)]
            )
        except RuntimeError:
            raise HastenError(f"{where}: experts of {layer[:60]} differ in shape: fetch or copy it again") from None


def _experts_by_layer(names: Iterable[str], where: Path) -> dict[str, tuple[int, dict[tuple[str, int], str]]]:
    """Of each layer that has experts, by the name before theirs, how many and the names of their matrices by part
    (``gate``, ``up``, ``down``) and number.

    Raises:
        HastenError: a layer lacks a matrix of an expert.
    """
    layers: dict[str, dict[tuple[str, int], str]] = {}
    for name in names:
        if found := _EXPERT.fullmatch(name):
            layers.setdefault(found[1], {})[_PARTS[found[3]], int(found[2])] = name
    complete = {}
    for layer, keys in layers.items():
        count = 1 + max(number for _, number in keys)
        if len(keys) != 3 * count:
            raise HastenError(f"{where}: {layer[:60]} lacks matrices of some of its {count} experts: fetch it again")
        complete[layer] = count, keys
    return complete


def fill_int4_experts(
    network: Any, weights: dict[str, Int4], where: Path, *, bf16: bool = False, int8: bool = False
) -> None:
    """Puts `PackedGatedExperts` in the place of experts whose matrices are int4, one tensor a matrix.

    Args:
        network: on the meta device.
        weights: int4 weights by name; those of experts are taken out.
        where: the folder, for messages.
        bf16, int8: as for `PackedGatedExperts`.

    Raises:
        HastenError: a layer lacks a matrix of an expert, or has them in other shapes or groups than the network asks
            for, or of a kind that cannot be packed.
    """
    modules = dict(network.named_modules())
    for layer, (count, keys) in _experts_by_layer(weights, where).items():
        name = f"{layer}.mlp.experts"
        experts = modules.get(name)
        reason = "its config asks for none" if experts is None else PackedGatedExperts.why_not(experts)
        if experts is None or reason:
            raise HastenError(f"{where}: int4 experts {name[:60]!r} have no counterpart here: {reason}")
        plain = plain_parts(experts)
        found = {pair: weights.pop(key) for pair, key in keys.items()}
        groups = {weight.group for weight in found.values()}
        shapes = {"gate": (plain.inner, plain.hidden), "down": (plain.hidden, plain.inner)}
        right = all(tuple(w.codes.shape) == shapes.get(part, shapes["gate"]) for (part, _), w in found.items())
        if count != plain.experts or not right or plain.biases is not None:
            raise HastenError(f"{where}: experts {name[:60]!r} have other shapes than its config asks for")
        if len(groups) > 1:
            raise HastenError(f"{where}: experts {name[:60]!r} are in groups of several sizes: give a GGUF file")
        with torch.device("meta"):
            made = PackedGatedExperts(
                count,
                plain.hidden,
                plain.inner,
                bits=4,
                group=groups.pop(),
                activation=plain.activation,
                clamped=plain.clamped,
                bf16=bf16,
                int8=int8,
            )
        for stack, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            each = [[found.pop((part, e)).packed() for part in parts] for e in range(count)]
            codes, scales, mins = (torch.stack([torch.cat([w[i] for w in own]) for own in each]) for i in range(3))
            made.stack(stack).fill(codes, scales, mins)
        owner, _, child = name.rpartition(".")
        setattr(network.get_submodule(owner), child, made)


class MxExperts(NamedTuple):
    """gpt-oss's experts as its folders have them: MXFP4 (OCP Microscaling Formats, version 1.0).

    A weight is a table's number, named by 4 bits, times a power of two that 32 of them share.

    Attributes:
        blocks: (experts, out, groups, 16) uint8, of each byte the low nibble first.
        scales: (experts, out, groups) uint8, exponents with 127 added.
    """

    blocks: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, out, in."""
        experts, out, groups = self.scales.shape
        return experts, out, groups * _BLOCK

    def packed(self) -> Tensor:
        """The same weights in ggml's blocks, (experts, out, bytes): as many bytes, nothing is rounded.

        A block of ggml's has value j in the low nibble of byte j, and value j + 16 in its high one.
        """
        experts, out, groups = self.scales.shape
        made = torch.empty(experts, out, groups, 1 + _BLOCK // 2, dtype=torch.uint8)
        made[..., 0] = self.scales
        for expert in range(experts):
            even, odd = self.blocks[expert] & 15, self.blocks[expert] >> 4
            codes = torch.stack((even, odd), -1).flatten(-2)
            made[expert, ..., 1:] = codes[..., : _BLOCK // 2] | codes[..., _BLOCK // 2 :] << 4
        return made.flatten(2)

    def dequantize(self) -> Tensor:
        """The weights (experts, out, in) in fp32."""
        return block_formats.decode(self.packed(), _MXFP4)


def fill_experts(network: Any, weights: dict[str, Tensor], where: Path) -> None:
    """Puts `PackedGatedExperts` in the place of a gpt-oss network's experts, weights as they are in the folder.

    Args:
        network: on the meta device.
        weights: the folder's tensors. Packed ones are taken out; biases get the names and the order that they have now.
        where: the folder, for messages.

    Raises:
        HastenError: see `take_mxfp4`; or there are experts that the configuration does not ask for.
    """
    found, modules = take_mxfp4(weights, where), dict(network.named_modules())
    for name in sorted({key.rpartition(".")[0] for key in found}):
        owner, _, child = name.rpartition(".")
        experts, both, down = modules.get(name), found.get(f"{name}.gate_up_proj"), found.get(f"{name}.down_proj")
        if experts is None or PackedGatedExperts.why_not(experts) or both is None or down is None:
            raise HastenError(f"{where} holds experts {name[:60]!r}, which its config does not ask for")
        plain = plain_parts(experts)
        shapes = (plain.experts, 2 * plain.inner, plain.hidden), (plain.experts, plain.hidden, plain.inner)
        if (both.shape, down.shape) != shapes:
            raise HastenError(
                f"{where}: {name[:60]} has shapes {both.shape} and {down.shape}, its config asks for others"
            )
        with torch.device("meta"):
            made = PackedGatedExperts(
                plain.experts,
                plain.hidden,
                plain.inner,
                bits=_MXFP4,
                bias=plain.biases is not None,
                activation=plain.activation,
                clamped=plain.clamped,
            )
        # Rows of gate and up come by turns.
        made.stack("gate_up_proj").fill(_by_turns(both.packed()), None, None)
        made.stack("down_proj").fill(down.packed(), None, None)
        for part in ("gate_up_proj", "down_proj"):
            bias = weights.pop(f"{name}.{part}_bias", None)
            if bias is not None:
                weights[f"{name}.{part}.bias"] = bias if part == "down_proj" else _by_turns(bias)
        setattr(network.get_submodule(owner), child, made)


def _by_turns(rows: Tensor) -> Tensor:
    """(experts, rows, ...) with all even rows before all odd ones."""
    return torch.cat((rows[:, ::2], rows[:, 1::2]), 1)


def take_mxfp4(weights: dict[str, Tensor], where: Path) -> dict[str, MxExperts]:
    """Takes packed experts out of a folder's tensors, by the names that their parameters have (``....gate_up_proj``).

    Raises:
        HastenError: blocks without scales, of other shapes or types than the format has, or with scales that are NaN.
    """
    found = {}
    for key in [k for k in weights if k.endswith("_blocks")]:
        name = key.removesuffix("_blocks")
        blocks, scales = weights.pop(key), weights.pop(f"{name}_scales", None)
        right = scales is not None and blocks.dtype is scales.dtype is torch.uint8 and blocks.dim() == 4
        if not right or scales is None or tuple(blocks.shape) != (*scales.shape, _BLOCK // 2):
            raise HastenError(f"{where}: {name[:60]} is no MXFP4 weight with its scales: fetch or copy it again")
        if bool((scales > _LARGEST).any()):
            raise HastenError(f"{where}: {name[:60]} holds values that are not finite: fetch or copy it again")
        found[name] = MxExperts(blocks, scales)
    if not found:
        raise HastenError(f"{where} says that it holds quantized weights (mxfp4), but has none: fetch it again")
    return found


def packs_mxfp4(said: Mapping[str, Any]) -> bool:
    """Whether a folder's ``quantization_config`` is gpt-oss's."""
    return str(said.get("quant_method") or "").lower() == "mxfp4"
