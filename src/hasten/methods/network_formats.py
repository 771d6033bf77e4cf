"""Formats and layouts of a whole network: bf16 numbers, channels as the innermost dimension."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hasten.kernels.packed_linear import fast_bf16
from hasten.methods.network_method import NetworkMethod
from hasten.runtime.network import Network
from hasten.workload.einsum import Role, Workload
from hasten.workload.einsum import Tensor as Described

_NARROWED = ("fp32", "fp64")


def narrow_numbers(workload: Workload, dtype: str) -> Workload:
    """``workload`` with weights and results of fp32 in ``dtype``; what comes in and goes out stays as it was."""

    def told(tensor: Described) -> Described:
        inner = tensor.role in (Role.WEIGHT, Role.INTERMEDIATE)
        return replace(tensor, dtype=dtype) if inner and tensor.dtype in _NARROWED else tensor

    weights = dict(workload.weights)
    phases = []
    for phase in workload.phases:
        tensors = {name: told(t) for name, t in phase.cascade.tensors.items()}
        weights |= {n: t.nbytes for n, t in tensors.items() if t.role is Role.WEIGHT and n in weights}
        phases.append(replace(phase, cascade=replace(phase.cascade, tensors=tensors)))
    return replace(workload, phases=tuple(phases), weights=weights)


@dataclass(frozen=True)
class Bf16Network(NetworkMethod):
    """Weights and everything computed in bf16; inputs are rounded first, answers come in the format that they had."""

    name: ClassVar[str] = "bf16-network"
    kind: ClassVar[str] = "weights"
    order: ClassVar[int] = 60
    source: ClassVar[str] = "bf16 products by the processor, arXiv 1905.12322"

    @property
    def title(self) -> str:
        return "bf16"

    def why_not_network(self, network: Network) -> str | None:
        formats = {t.dtype for t in network.module.parameters() if t.is_floating_point()}
        if formats - {torch.float32, torch.float64}:
            return f"it has weights in {str(min(map(str, formats))).removeprefix('torch.')} already"
        return None if formats else "it has no weights"

    def change(self, network: Network) -> None:
        module = copy.deepcopy(network.module).to(torch.bfloat16)
        wide = [t.dtype for t in network.answers()]
        module.register_forward_pre_hook(_rounded, with_kwargs=True)
        module.register_forward_hook(functools.partial(_as_before, wide))
        network.module = module

    def rewrite(self, workload: Workload) -> Workload:
        return narrow_numbers(workload, "bf16")

    def why_not_tried(self, context: Any) -> str | None:
        return None if fast_bf16() else "this processor does not multiply bf16 itself"

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls()] if isinstance(model, Network) else []


def _rounded(module: Any, args: Any, kwargs: Any) -> Any:
    """Before a call: every number in bf16."""
    return tree_map(lambda t: t.to(torch.bfloat16) if _is_wide(t) else t, (args, kwargs))


def _is_wide(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)


def _as_before(wide: Sequence[torch.dtype], module: Any, args: Any, answer: Any) -> Any:
    """After a call: each tensor in the format that the unchanged module answers in."""
    formats = iter(wide)
    return tree_map(lambda t: t.to(next(formats, t.dtype)) if isinstance(t, Tensor) else t, answer)


@dataclass(frozen=True)
class ChannelsLast(NetworkMethod):
    """Images and feature maps in memory with the channels of a pixel side by side, as vector units read them."""

    name: ClassVar[str] = "channels-last"
    kind: ClassVar[str] = "layout"
    order: ClassVar[int] = 30
    source: ClassVar[str] = "PyTorch's channels-last memory format"

    @property
    def title(self) -> str:
        return "channels last"

    def why_not_network(self, network: Network) -> str | None:
        if any(t.ndim == 4 for t in network.module.parameters()) and any(t.ndim == 4 for t in network.inputs.tensors):
            return None
        return "it convolves no images"

    def change(self, network: Network) -> None:
        module = copy.deepcopy(network.module)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module.register_forward_pre_hook(_in_channels_last, with_kwargs=True)
        network.module = module

    def rewrite(self, workload: Workload) -> Workload:
        """The same: the layout of a tensor is not priced."""
        return workload

    def remarks(self, workload: Workload) -> Sequence[str]:
        return ("channels last: the same numbers in another order, which no prediction sees",)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls()] if isinstance(model, Network) else []


def _in_channels_last(module: Any, args: Any, kwargs: Any) -> Any:
    def laid(value: Any) -> Any:
        image = isinstance(value, Tensor) and value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if image else value

    return tree_map(laid, (args, kwargs))
