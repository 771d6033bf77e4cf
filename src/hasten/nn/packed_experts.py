"""A mixture's experts with packed weights, in place of transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.kernels import packed_experts as kernel
from hasten.kernels import packed_linear
from hasten.kernels.packed_linear import GROUP
from hasten.nn.block import PackedBlock
from hasten.nn.packed import PackedWeight
from hasten.workload.routing import routed

# By the names that configurations have for them.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class ClampedGate(NamedTuple):
    """gpt-oss's gate: ``(up + 1) * gate * sigmoid(alpha * gate)``, gate at most ``limit``, up between ``-limit`` and
    ``limit`` (arXiv 2508.10925, section 2.3).

    Attributes:
        alpha, limit: as said.
    """

    alpha: float = 1.702
    limit: float = 7.0


class PackedMatrices(PackedWeight):
    """A packed weight (rows, columns) for each expert, one behind the other in one tensor.

    To fill it: ``matrices.fill(packed, scales, mins)`` with (experts, rows, ...) as `hasten.kernels.packed_linear` has
    a single weight's (rows, ...): a GGUF file's expert tensor as it lies in the file, viewed so. ``fill`` copies
    nothing. A bias is set by ``matrices.bias = nn.Parameter(tensor, requires_grad=False)``, (experts, rows) fp32.

    Args:
        experts: how many weights.
        rows, columns: of each: channels that go out and come in.
        bits, group, device: as for `PackedLinear`.
        bias: whether there is one, zeros to begin with.
    """

    def __init__(
        self,
        experts: int,
        rows: int,
        columns: int,
        *,
        bits: int = 4,
        group: int = GROUP,
        bias: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((experts, rows), columns, bits, group, device)
        self.experts, self.rows, self.columns = experts, rows, columns
        made = torch.zeros(experts, rows, device=device, dtype=torch.float32) if bias else None
        self.bias = None if made is None else nn.Parameter(made, requires_grad=False)

    def _start(self) -> None:
        super()._start()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def of(self, expert: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The packed weight of one expert: views of its rows, no copies."""
        packed, scales, mins = (None if t is None else t[expert] for t in (self.packed, self.scales, self.mins))
        assert packed is not None
        return packed, scales, mins

    def dequantize(self) -> Tensor:
        """The weights in fp32, (experts, rows, columns)."""
        every = [packed_linear.dequantize(*self.of(e), self.bits, self.group) for e in range(self.experts)]
        return torch.stack(every) if every else torch.empty(0, self.rows, self.columns)

    def pack(self, weights: Sequence[Tensor]) -> None:
        """Packs a weight (rows, columns) for each expert, of 16, 8 or 4 bits; on the meta device only the shapes.

        Raises:
            HastenError: a weight is not finite, or larger than the format reaches.
        """
        if any(w.device.type == "meta" for w in weights):
            return
        made = [packed_linear.quantize(w.detach(), self.bits, self.group) for w in weights]
        packed, scales, mins = ([parts[i] for parts in made] for i in range(3))
        self.fill(
            torch.stack([t for t in packed if t is not None]),
            None if scales[0] is None else torch.stack([t for t in scales if t is not None]),
            None if mins[0] is None else torch.stack([t for t in mins if t is not None]),
        )

    def extra_repr(self) -> str:
        packing = f"bits={self.bits}" if self.bits <= 32 else f"format={self.format}"
        return f"{self.experts} of {self.columns}, {self.rows}, {packing}, bias={self.bias is not None}"


class PackedGatedExperts(PackedBlock):
    """A layer's gated experts, ``down(activation(gate(x)) * up(x))``, weights packed.

    It stands where transformers has its own (``layer.mlp.experts`` of Mixtral, Qwen2-MoE, Qwen3-MoE, gpt-oss), and is
    called as they are. Gate and up are one stack, ``gate_up_proj``, the gate's rows first in each expert; or, with
    ``fused=False``, two stacks ``gate_proj`` and ``up_proj``, as GGUF files have them. ``down_proj`` is the third. How
    to fill them: `PackedMatrices`.

    Args:
        experts: how many.
        hidden: channels that come in and go out.
        inner: channels within an expert.
        bits: of all weights, or of each stack in the order above; as for `PackedLinear`.
        group: columns that share a scale.
        fused: whether gate and up are one stack.
        bias: whether the products have biases (gpt-oss).
        activation: ``silu``, ``gelu``, ``gelu_pytorch_tanh`` or ``relu``.
        clamped: gpt-oss's gate, in place of the activation.
        bf16, int8: as for `PackedLinear`.
        device: as in ``torch.nn.Linear``.

    Shape:
        x (tokens, hidden), numbers of chosen experts (tokens, k) and their weights (tokens, k) to (tokens, hidden).

    Example:
        ``layer.mlp.experts = PackedGatedExperts.from_experts(layer.mlp.experts, bits=4)``
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        inner: int,
        *,
        bits: int | Sequence[int] = 4,
        group: int = GROUP,
        fused: bool = True,
        bias: bool = False,
        activation: str = "silu",
        clamped: ClampedGate | None = None,
        bf16: bool = False,
        int8: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise HastenError(f"experts' activation is one of {', '.join(_ACTIVATIONS)}, not {activation}")
        apart = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
        shapes = {"gate_up_proj": (2 * inner, hidden)} if fused else apart
        shapes["down_proj"] = (hidden, inner)
        each = [bits] * len(shapes) if isinstance(bits, int) else list(bits)
        if len(each) != len(shapes):
            raise ValueError(f"bits are one number, or one for each of {', '.join(shapes)}")
        for (name, (rows, columns)), stored in zip(shapes.items(), each):
            stack = PackedMatrices(experts, rows, columns, bits=stored, group=group, bias=bias, device=device)
            setattr(self, name, stack)
        self.num_experts, self.hidden, self.inner, self.fused = experts, hidden, inner, fused
        self.activation, self.clamped, self.bf16, self.int8 = activation, clamped, bf16, int8

    @classmethod
    def from_experts(
        cls, experts: nn.Module, bits: int, group: int = GROUP, bf16: bool = False, int8: bool = False
    ) -> PackedGatedExperts:
        """Packs transformers' experts; on the meta device only the shapes.

        Raises:
            HastenError: they are of a kind that it does not know (`why_not`), or a weight is not finite, or larger than
                the format reaches.
            ValueError: a width is not a multiple of ``group``.
        """
        reason = cls.why_not(experts)
        if reason:
            raise HastenError(reason)
        parts = plain_parts(experts)
        with torch.device("meta"):
            packed = cls(
                parts.experts,
                parts.hidden,
                parts.inner,
                bits=bits,
                group=group,
                bias=parts.biases is not None,
                activation=parts.activation,
                clamped=parts.clamped,
                bf16=bf16,
                int8=int8,
            )
        device = parts.device
        packed = packed.to_empty(device=device)
        if device.type != "meta":
            packed.stack("gate_up_proj").pack([torch.cat(parts.gate_up(e)) for e in range(parts.experts)])
            packed.stack("down_proj").pack([parts.down(e) for e in range(parts.experts)])
        if parts.biases is not None:
            for stack, bias in zip(packed.stacks().values(), parts.biases):
                stack.bias = nn.Parameter(bias.detach().float().contiguous(), requires_grad=False)
        return packed.train(experts.training)

    @staticmethod
    def why_not(experts: nn.Module) -> str | None:
        """Why a module cannot be packed as experts; None when it can."""
        name = type(experts).__name__
        weights = [getattr(experts, n, None) for n in ("gate_up_proj", "down_proj")]
        if not all(isinstance(w, Tensor) and w.dim() == 3 for w in weights):
            return f"{name} holds its experts in another way than Mixtral, Qwen-MoE and gpt-oss do"
        if _gate_of(experts) is None and _name_of(experts) not in _ACTIVATIONS:
            return f"the experts' activation is {_name_of(experts)}"
        return None

    def stacks(self) -> dict[str, PackedMatrices]:
        """The stacks of weights by name, in order."""
        names = ("gate_up_proj", "down_proj") if self.fused else ("gate_proj", "up_proj", "down_proj")
        return {name: self.stack(name) for name in names}

    def stack(self, name: str) -> PackedMatrices:
        """One of its stacks of weights, by name."""
        stack = self._modules[name]
        assert isinstance(stack, PackedMatrices)
        return stack

    def _product(self, name: str, rows: Tensor, sorted_ids: Tensor, ends: Tensor) -> Tensor:
        stack = self.stack(name)
        # Not as a module's call: the product is the experts', as it is where they are not packed.
        y = kernel.packed_experts(
            rows, stack.packed, stack.scales, stack.mins, ends, stack.bits, stack.group, self.bf16, self.int8
        )
        return y if stack.bias is None else y + stack.bias[sorted_ids].to(y.dtype)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        each = top_k_index.shape[-1]
        ids, order = torch.sort(top_k_index.reshape(-1), stable=True)
        counts = ids.new_zeros(self.num_experts).scatter_add_(0, ids, torch.ones_like(ids))
        ends = torch.cumsum(counts, 0)
        rows = hidden_states[order // each]
        with routed(hidden_states.shape[0], each / self.num_experts):
            if self.fused:
                gate, up = self._product("gate_up_proj", rows, ids, ends).chunk(2, -1)
            else:
                gate, up = (self._product(n, rows, ids, ends) for n in ("gate_proj", "up_proj"))
            made = self._product("down_proj", self._gated(gate, up), ids, ends)
        made = made * top_k_weights.reshape(-1)[order, None]
        # Back in the order of choices, and summed in it: the same sum whatever other tokens there are.
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0], device=order.device)
        return made[back].unflatten(0, (-1, each)).sum(1).to(hidden_states.dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.clamped is None:
            return _ACTIVATIONS[self.activation](gate) * up
        alpha, limit = self.clamped
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * (gate * torch.sigmoid(gate * alpha))

    def extra_repr(self) -> str:
        gate = self.activation if self.clamped is None else self.clamped
        return f"{self.num_experts} of {self.hidden}, {self.inner}, {gate}"


class ExpertWeights(NamedTuple):
    """transformers' experts of one layer, as hasten reads them.

    Attributes:
        experts, hidden, inner: sizes, as `PackedGatedExperts` has them.
        gate_up: an expert's number to its gate and up, (inner, hidden) each.
        down: an expert's number to its down, (hidden, inner).
        biases: of gate and up, (experts, 2 inner), the gate's first, and of down, (experts, hidden); None without.
        activation, clamped: as `PackedGatedExperts` has them.
        device: of the weights.
        in_rows: whether the matrices are views of rows that lie together.
    """

    experts: int
    hidden: int
    inner: int
    gate_up: Callable[[int], tuple[Tensor, Tensor]]
    down: Callable[[int], Tensor]
    biases: tuple[Tensor, Tensor] | None
    activation: str
    clamped: ClampedGate | None
    device: torch.device
    in_rows: bool


def plain_parts(experts: Any) -> ExpertWeights:
    """What transformers' experts hold, where `PackedGatedExperts.why_not` is None.

    gpt-oss's matrices come in columns, gate and up by turns; those of the others in rows, all of the gate first.
    """
    both, down = experts.gate_up_proj, experts.down_proj
    turned = bool(getattr(experts, "is_transposed", False))
    alternate = not getattr(experts, "is_concatenated", True)
    count, inner = both.shape[0], both.shape[2 if turned else 1] // 2
    biases = None
    if getattr(experts, "gate_up_proj_bias", None) is not None:
        first = experts.gate_up_proj_bias
        biases = (torch.cat((first[:, ::2], first[:, 1::2]), 1) if alternate else first, experts.down_proj_bias)

    def gate_up(expert: int) -> tuple[Tensor, Tensor]:
        rows = both[expert].t() if turned else both[expert]
        return (rows[::2], rows[1::2]) if alternate else (rows[:inner], rows[inner:])

    return ExpertWeights(
        count,
        both.shape[1 if turned else 2],
        inner,
        gate_up,
        lambda expert: down[expert].t() if turned else down[expert],
        biases,
        _name_of(experts),
        _gate_of(experts),
        both.device,
        not turned and not alternate,
    )


def _name_of(experts: Any) -> str:
    """The name of the activation of transformers' experts."""
    return str(getattr(getattr(experts, "config", None), "hidden_act", type(getattr(experts, "act_fn", None)).__name__))


def _gate_of(experts: Any) -> ClampedGate | None:
    alpha, limit = getattr(experts, "alpha", None), getattr(experts, "limit", None)
    return None if alpha is None or limit is None else ClampedGate(float(alpha), float(limit))
