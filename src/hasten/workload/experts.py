"""Mixtures of experts with static shapes, as tracing needs them: which experts are hit, no shape tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor as TorchTensor
from torch import nn

from hasten.workload.routing import routed


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
    with routed(hidden.shape[0], ids.shape[-1] / total):
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
    """A transformers mixture of experts loops over the experts that were hit, which no shape tells, or multiplies every
    token with every expert; its grouped form computes the same with static shapes, for the experts chosen alone."""
    modules = [] if module is None else list(module.modules())
    experts = [m for m in modules if "Experts" in type(m).__name__]
    configs = {id(c): c for m in experts if (c := getattr(m, "config", None)) is not None}
    chosen = {key: getattr(c, "_experts_implementation", None) for key, c in configs.items()}
    for key, config in configs.items():
        if chosen[key] != "batched_mm":
            config._experts_implementation = "grouped_mm"
    replaced = {id(m): (m, forward) for m in modules if (forward := _static(m)) is not None}
    for m, forward in replaced.values():
        m.__dict__["forward"] = forward
    try:
        yield
    finally:
        for m, _ in replaced.values():
            del m.__dict__["forward"]
        for key, config in configs.items():
            config._experts_implementation = chosen[key]


def _static(module: Any) -> Callable[..., Any] | None:
    """What stands in for the ``forward`` of a part of a mixture of experts; None for any other module."""
    kind = type(module).__name__
    if kind in _OWN:
        return _OWN[kind](module)
    if "Experts" not in kind:
        return None
    if getattr(module, "config", None) is not None:
        return _announced(module)
    return _gated(module) if hasattr(module, "gate_up_proj") and hasattr(module, "act_fn") else None


def _announced(module: Any) -> Callable[..., Any]:
    """A module with a grouped form of its own: how many experts it hits is said."""

    def forward(hidden_states: TorchTensor, top_k_index: Any = None, *args: Any, **options: Any) -> Any:
        given = () if top_k_index is None else (top_k_index,)
        experts = getattr(module, "num_experts", 0)
        if not isinstance(top_k_index, TorchTensor) or top_k_index.is_floating_point() or not experts:
            return type(module).forward(module, hidden_states, *given, *args, **options)
        tokens = hidden_states.numel() // hidden_states.shape[-1]
        with routed(tokens, top_k_index.shape[-1] / experts):
            return type(module).forward(module, hidden_states, top_k_index, *args, **options)

    return forward


def _gated(module: Any) -> Callable[..., Any]:
    def forward(hidden_states: TorchTensor, top_k_index: TorchTensor, top_k_weights: TorchTensor) -> TorchTensor:
        return grouped_experts(
            hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj, module.act_fn
        )

    return forward


def _llama4(module: Any) -> Callable[..., Any]:
    """Llama 4 runs all tokens through all experts, with zeros for those that a token did not choose."""

    def forward(hidden_states: TorchTensor) -> tuple[TorchTensor, TorchTensor]:
        flat = hidden_states.reshape(-1, module.hidden_dim)
        logits = nn.functional.linear(flat, module.router.weight)
        scores, ids = torch.topk(logits, module.top_k, dim=1)
        weights = (module.experts.gate_up_proj.transpose(-2, -1), module.experts.down_proj.transpose(-2, -1))
        made = grouped_experts(flat, ids, scores.sigmoid(), *weights, module.experts.act_fn)
        return module.shared_expert(flat) + made, logits

    return forward


def _dbrx(module: Any) -> Callable[..., Any]:
    """DBRX keeps gates and inputs of its experts in two weights."""

    def forward(hidden_states: TorchTensor, top_k_index: TorchTensor, top_k_weights: TorchTensor) -> TorchTensor:
        experts, parts = module.num_experts, module.mlp
        shape = (experts, module.ffn_hidden_size, module.hidden_size)
        flat = hidden_states.reshape(-1, module.hidden_size)
        each = top_k_index.numel() // flat.shape[0]
        order = torch.sort(top_k_index.reshape(-1)).indices
        ends = torch.cumsum(torch.histc(top_k_index.reshape(-1).float(), experts), 0, dtype=torch.int32)
        rows = flat[order // each]
        with routed(flat.shape[0], each / experts):
            gate, up = (
                torch._grouped_mm(rows, w.view(shape).transpose(-2, -1), offs=ends) for w in (parts.w1, parts.v1)
            )
            made = torch._grouped_mm(parts.activation_fn(gate) * up, parts.w2.view(shape), offs=ends)
        made = made * top_k_weights.reshape(-1)[order, None]
        return torch.zeros_like(flat).index_add_(0, order // each, made.to(flat.dtype)).view(hidden_states.shape)

    return forward


def _jetmoe_gate(module: Any) -> Callable[..., Any]:
    def forward(hidden_states: TorchTensor) -> tuple[Any, ...]:
        logits = module.layer(hidden_states).float()
        scores, ids = logits.topk(module.top_k, dim=1)
        gates = torch.softmax(scores, dim=1).type_as(hidden_states)
        order = ids.flatten().sort(0).indices
        sizes = torch.histc(ids.flatten().float(), module.num_experts)
        tokens = order.div(module.top_k, rounding_mode="trunc")
        return order, tokens, gates.flatten()[order], (sizes, module.top_k), logits

    return forward


def _jetmoe_experts(module: Any) -> Callable[..., Any]:
    def forward(inputs: TorchTensor, expert_size: tuple[TorchTensor, int]) -> TorchTensor:
        sizes, each = expert_size
        ends = torch.cumsum(sizes, 0, dtype=torch.int32)
        with routed(inputs.shape[0] // each, each / module.num_experts):
            return torch._grouped_mm(inputs, module.weight.transpose(-2, -1), offs=ends)

    return forward


# Classes of transformers whose experts are neither of the two usual forms.
_OWN: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "Llama4TextMoe": _llama4,
    "DbrxExperts": _dbrx,
    "JetMoeTopKGating": _jetmoe_gate,
    "JetMoeParallelExperts": _jetmoe_experts,
}
