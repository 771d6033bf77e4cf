"""What a decoder's mixture of experts computes, as data: how experts are chosen, and where their matrices are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.packed_experts import ClampedGate, PackedGatedExperts, plain_parts


@dataclass(frozen=True)
class RouterKind:
    """How a router's class makes weights of logits.

    Args:
        softmax_first: of a softmax over all experts, not over the chosen ones.
        normed: whether the weights of those chosen are then divided by their sum; None: as its ``norm_topk_prob`` says.
    """

    softmax_first: bool
    normed: bool | None


# Routers of transformers by the names of their classes.
ROUTERS = {
    "GptOssTopKRouter": RouterKind(False, False),
    "MixtralTopKRouter": RouterKind(True, True),
    "OlmoeTopKRouter": RouterKind(True, None),
    "Qwen2MoeTopKRouter": RouterKind(True, None),
    "Qwen3MoeTopKRouter": RouterKind(True, None),
}


@dataclass(frozen=True)
class ExpertStack:
    """One matrix of each expert, (experts, rows, columns), as `hasten.kernels.packed_linear` has one's parts.

    Args:
        packed, scales, mins: (experts, rows, ...).
        bits, group: of the format; 32 and 16 are fp32 and bf16.
        bias: (experts, rows), or None.
        int8: whether rows are rounded to int8 before they are multiplied.
    """

    packed: Tensor
    scales: Tensor | None
    mins: Tensor | None
    bits: int
    group: int
    bias: Tensor | None
    int8: bool


@dataclass(frozen=True)
class MixtureForm:
    """A feed-forward part of which a token uses some experts.

    Args:
        router: the module that has the weight (experts, hidden), and may have a bias, that logits are made with.
        experts: the module that holds the experts: of transformers, or a `PackedGatedExperts`.
        top: experts that a token goes to.
        kind: how logits become weights.
        activation: of the experts, as their module names it.
        clamped: gpt-oss's gate, in place of the activation.
        beside: an MLP that every token goes to too, or None: `hasten.models.decoder_form.GatedFeedForward` in a form,
            the module itself as `mixture_of` gives it.
        beside_router: the layer whose sigmoid weighs it.
    """

    router: Any
    experts: Any
    top: int
    kind: RouterKind
    activation: str
    clamped: ClampedGate | None = None
    beside: Any = None
    beside_router: Any = None

    @property
    def inner(self) -> int:
        """Channels within an expert."""
        if isinstance(self.experts, PackedGatedExperts):
            return self.experts.inner
        return plain_parts(self.experts).inner

    def stacks(self) -> tuple[ExpertStack, ExpertStack, ExpertStack]:
        """Gate, up and down of all experts: views of the module's own tensors.

        But gpt-oss's plain experts are copied, for its class holds them in columns.
        """
        if isinstance(self.experts, PackedGatedExperts):
            return _packed_stacks(self.experts)
        parts = plain_parts(self.experts)
        if parts.in_rows:
            both, down = self.experts.gate_up_proj.detach(), self.experts.down_proj.detach()
            gate, up = both[:, : parts.inner], both[:, parts.inner :]
        else:
            pairs = [parts.gate_up(e) for e in range(parts.experts)]
            gate, up = (torch.stack([pair[i] for pair in pairs]).detach() for i in (0, 1))
            down = torch.stack([parts.down(e) for e in range(parts.experts)]).detach()
        biases: tuple[Tensor | None, ...] = (None, None, None)
        if parts.biases is not None:
            first, last = (bias.detach().float() for bias in parts.biases)
            biases = (first[:, : parts.inner], first[:, parts.inner :], last)
        bits = 32 if gate.dtype is torch.float32 else 16
        made = [ExpertStack(w, None, None, bits, 32, bias, False) for w, bias in zip((gate, up, down), biases)]
        return made[0], made[1], made[2]


def _packed_stacks(experts: PackedGatedExperts) -> tuple[ExpertStack, ExpertStack, ExpertStack]:
    def rows(name: str, start: int, stop: int | None) -> ExpertStack:
        stack, part = experts.stack(name), slice(start, stop)
        packed, scales, mins = (None if t is None else t[:, part] for t in (stack.packed, stack.scales, stack.mins))
        assert packed is not None
        bias = None if stack.bias is None else stack.bias.detach().float()[:, part]
        return ExpertStack(packed, scales, mins, stack.bits, stack.group, bias, experts.int8)

    down = rows("down_proj", 0, None)
    if experts.fused:
        return rows("gate_up_proj", 0, experts.inner), rows("gate_up_proj", experts.inner, None), down
    return rows("gate_proj", 0, None), rows("up_proj", 0, None), down


def mixture_of(module: Any) -> MixtureForm | None:
    """The `MixtureForm` of a layer's feed-forward part; None where it is no mixture.

    Raises:
        HastenError: it is one that no form says; the message goes on from "because".
    """
    experts = getattr(module, "experts", None)
    if experts is None:
        return None
    router = next((r for name in ("gate", "router") if (r := getattr(module, name, None)) is not None), None)
    kind = ROUTERS.get(type(router).__name__)
    if router is None or kind is None:
        raise HastenError(f"its experts are chosen by a {type(router).__name__}")
    if isinstance(experts, PackedGatedExperts):
        activation, clamped = experts.activation, experts.clamped
    else:
        reason = PackedGatedExperts.why_not(experts)
        if reason:
            raise HastenError(reason)
        parts = plain_parts(experts)
        activation, clamped = parts.activation, parts.clamped
    normed = kind.normed if kind.normed is not None else bool(router.norm_topk_prob)
    beside = getattr(module, "shared_expert", None)
    weighs = getattr(module, "shared_expert_gate", None)
    if (beside is None) != (weighs is None) or (weighs is not None and not isinstance(weighs, nn.Module)):
        raise HastenError("an expert that all tokens go to has no weight of its own")
    return MixtureForm(
        router, experts, int(router.top_k), RouterKind(kind.softmax_first, normed), activation, clamped, beside, weighs
    )
