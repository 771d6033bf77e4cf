"""Mixtures of experts with static shapes, as tracing needs them: which experts are hit, no shape tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor as TorchTensor
from torch import nn


def grouped_experts(
    hidden: TorchTensor,
    ids: TorchTensor,
    scores: TorchTensor,
    gate_up: TorchTensor,
    down: TorchTensor,
    activation: Callable[[TorchTensor], TorchTensor],
) -> TorchTensor:
    """A mixture of gated experts with static shapes: rows sorted by expert, one grouped matmul a projection.

    Args:
        hidden: (tokens, D).
        ids, scores: (tokens, k), the experts chosen and their weights. Ids beyond the experts that ``down``
            has stand for experts that pass their input on; balanced routing sends them their share.
        gate_up: (experts or more, 2 I, D).
        down: (experts, D, I).
    """
    total, experts = gate_up.shape[0], down.shape[0]
    chosen = -(-ids.numel() * experts // total)
    order = torch.sort(ids.reshape(-1)).indices
    flat = scores.reshape(-1)
    real, passed = order[:chosen], order[chosen:]
    ends = torch.cumsum(torch.histc(ids.reshape(-1).float(), experts), 0, dtype=torch.int32)
    rows = hidden[real // ids.shape[-1]]
    gate, up = torch._grouped_mm(rows, gate_up[:experts].transpose(-2, -1), offs=ends).chunk(2, -1)
    made = torch._grouped_mm(activation(gate) * up, down.transpose(-2, -1), offs=ends)
    made = (made * flat[real, None]).to(hidden.dtype)
    result = torch.zeros_like(hidden).index_add_(0, real // ids.shape[-1], made)
    if passed.numel():
        token = passed // ids.shape[-1]
        result.index_add_(0, token, (hidden[token] * flat[passed, None]).to(hidden.dtype))
    return result


@contextmanager
def static_experts(module: nn.Module | None) -> Iterator[None]:
    """A transformers mixture of experts loops over the experts that were hit, which no shape tells; its
    grouped form computes the same with static shapes."""
    experts = [] if module is None else [m for m in module.modules() if "Experts" in type(m).__name__]
    configs = {id(c): c for m in experts if (c := getattr(m, "config", None)) is not None}
    chosen = {key: getattr(c, "_experts_implementation", None) for key, c in configs.items()}
    loops = [
        m for m in experts
        if getattr(m, "config", None) is None and hasattr(m, "gate_up_proj") and hasattr(m, "act_fn")
    ]  # fmt: skip
    for key, config in configs.items():
        if chosen[key] != "batched_mm":
            config._experts_implementation = "grouped_mm"
    for loop in loops:

        def forward(
            hidden_states: TorchTensor,
            top_k_index: TorchTensor,
            top_k_weights: TorchTensor,
            loop: Any = loop,
        ) -> TorchTensor:
            return grouped_experts(
                hidden_states, top_k_index, top_k_weights, loop.gate_up_proj, loop.down_proj, loop.act_fn
            )

        loop.__dict__["forward"] = forward
    try:
        yield
    finally:
        for loop in loops:
            del loop.__dict__["forward"]
        for key, config in configs.items():
            config._experts_implementation = chosen[key]
