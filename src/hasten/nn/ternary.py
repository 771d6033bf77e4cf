"""Linear layers with ternary weights and int8 activations, to train (BitLinear) and to run packed (TernaryLinear)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.kernels import ternary_linear as kernel
from hasten.kernels.gate import differentiated_once, no_tangents, wide
from hasten.nn.block import Block, PackedBlock


def ternarize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as -1, 0 and 1 (in its dtype) and one scale: beta = max(mean|W|, 1e-5), round(W / beta) clipped."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


class _Fused(torch.autograd.Function):
    """Norm, quantization and product as one: keeps x and 1 / rms, and makes the rest again in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gain: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.to(wide(x.dtype)).square().mean(-1, keepdim=True) + eps)
        codes, scale = _codes(x, inverse, gain)
        ternary, beta = ternarize(weight)
        ctx.save_for_backward(x, inverse, weight, gain)
        return (F.linear(codes, ternary.to(codes.dtype)) * (beta / scale)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, inverse, weight, gain = ctx.saved_tensors
        with torch.no_grad():
            found = _Fused.gradients(grad, x, inverse, weight, gain)
        # Roundings have a gradient here by what is said, and no second one.
        return *differentiated_once("BitLinear", found, grad, x, weight, gain), None

    @staticmethod
    def gradients(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, gain: Tensor) -> list[Tensor]:
        codes, scale = _codes(x, inverse, gain)
        ternary, beta = ternarize(weight)
        grad = grad.to(codes.dtype)
        flat = grad.reshape(-1, grad.shape[-1])
        weight_grad = flat.T @ (codes / scale).reshape(-1, codes.shape[-1])
        inner = (grad @ ternary.to(codes.dtype)) * beta
        normal = x.to(codes.dtype) * inverse
        gain_grad = (inner * normal).reshape(-1, normal.shape[-1]).sum(0)
        inner = inner * gain
        x_grad = inverse * (inner - normal * (inner * normal).mean(-1, keepdim=True))
        return [x_grad.to(x.dtype), weight_grad.to(weight.dtype), gain_grad.to(gain.dtype)]


def _codes(x: Tensor, inverse: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Normed x as whole numbers in -127 .. 127 (fp32, fp64 for fp64) and their scale."""
    normed = x.to(inverse.dtype) * inverse * gain.to(inverse.dtype)
    scale = 127.0 / normed.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (normed * scale).round_(), scale


def _recorded() -> bool:
    """Whether operations are being written down for later: of a function with a gradient of its own that keeps none."""
    if torch.compiler.is_compiling():
        # Compiled alone it keeps its gradient.
        return torch.compiler.is_exporting()
    return torch.jit.is_tracing() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


class BitLinear(Block):
    """A linear layer whose product is ternary (arXiv 2406.02528, section 3.2; BitNet b1.58).

    The input goes through an RMSNorm of its own and is rounded to 8 bits, one scale a token; the weight is held in
    floats and rounded to -1, 0, 1 times one scale at every step. Gradients pass both roundings unchanged
    (straight-through).

    Args:
        in_features, out_features: as in ``torch.nn.Linear``; there is no bias.
        eps: of the norm.
        fused: keep only x and 1 / rms for the backward; False keeps what plain autograd keeps.
        device, dtype: as in ``torch.nn.Linear``.

    Shape:
        x (..., in_features) to (..., out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        eps: float = 1e-6,
        fused: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.eps, self.fused = in_features, out_features, eps, fused
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.norm = nn.Parameter(torch.empty(in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def _start(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.ones_(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and not _recorded():
            return _Fused.apply(x, self.weight, self.norm, self.eps)
        exact = x.to(wide(x.dtype))
        inverse = torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        normed = exact * inverse * self.norm
        scale = 127.0 / normed.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        rounded = (normed * scale).round() / scale
        codes = normed + (rounded - normed).detach()
        ternary, beta = ternarize(self.weight)
        weight = self.weight + (ternary * beta - self.weight).detach()
        return F.linear(codes, weight.to(codes.dtype)).to(x.dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def pack(self) -> TernaryLinear:
        """The same layer with 2 bits a weight, for inference."""
        return TernaryLinear.from_bitlinear(self)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, fused={self.fused}"


class _Straight(torch.autograd.Function):
    """A packed product of what is rounded to int8, whose gradient passes the rounding unchanged, as BitLinear's."""

    @staticmethod
    def forward(ctx: Any, normed: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.columns = normed.shape[-1]
        return _product(normed, packed, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        packed, scale = ctx.saved_tensors
        return grad @ kernel.unpack(packed, ctx.columns, grad.dtype) * scale, None, None


def _product(normed: Tensor, packed: Tensor, weight_scale: Tensor) -> Tensor:
    codes, scale = (torch.ops.hasten.ternary_quantize if _recorded() else kernel.quantize)(normed)
    return kernel.ternary_linear(codes, packed) * (weight_scale / scale)


class TernaryLinear(PackedBlock):
    """A BitLinear for inference: 2 bits a weight, int8 activations, additions (`hasten.kernels.ternary_linear`).

    A gradient passes the rounding of x unchanged, as in `BitLinear`; the weight has none. Codes, scale and norm keep
    their types under ``.to(dtype)`` and the like.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``.
        eps: of the norm.
        device, dtype: as in ``torch.nn.Linear``; the dtype is the norm's, fp32 when None.

    Shape:
        x (..., in_features) to (..., out_features).
    """

    packed: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.eps = in_features, out_features, eps
        size = -(-in_features // kernel.BLOCK) * 64
        self.register_buffer("packed", torch.zeros(out_features, size, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones((), device=device, dtype=torch.float32))
        norm = torch.ones(in_features, device=device, dtype=dtype or torch.float32)
        self.norm = nn.Parameter(norm, requires_grad=False)

    def _start(self) -> None:
        self.packed.zero_()
        self.scale.fill_(1.0)
        self.norm.fill_(1.0)

    @classmethod
    def from_bitlinear(cls, layer: BitLinear) -> TernaryLinear:
        found = cls(layer.in_features, layer.out_features, eps=layer.eps, device=layer.weight.device)
        if layer.weight.device.type != "meta":
            ternary, scale = ternarize(layer.weight.detach().float())
            found.packed, found.scale = kernel.pack(ternary), scale
        found.norm = nn.Parameter(layer.norm.detach().clone(), requires_grad=False)
        return found.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        kind = wide(x.dtype)
        normed = F.rms_norm(x.to(kind), (self.in_features,), self.norm.to(kind), self.eps)
        no_tangents("ternary_linear", normed)
        product = _Straight.apply if torch.is_grad_enabled() and normed.requires_grad else _product
        return product(normed, self.packed, self.scale).to(x.dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits=2"


def _swap(module: nn.Module, change: Callable[[nn.Module, str], nn.Module | None], prefix: str = "") -> int:
    count = 0
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        made = change(child, path)
        if made is not None:
            setattr(module, name, made)
            count += 1
        else:
            count += _swap(child, change, f"{path}.")
    return count


def use_bitlinear(model: nn.Module, skip: Callable[[str], bool] = lambda name: False) -> int:
    """Puts a BitLinear in the place of every ``nn.Linear`` without a bias, weights kept; returns how many.

    Args:
        model: changed in place.
        skip: names to leave alone.
    """

    def change(child: nn.Module, path: str) -> nn.Module | None:
        if type(child) is not nn.Linear or child.bias is not None or skip(path):
            return None
        made = BitLinear(child.in_features, child.out_features, device=child.weight.device)
        made.weight = child.weight
        return made

    return _swap(model, change)


def pack_bitlinear(model: nn.Module) -> int:
    """Packs every BitLinear of a model for inference, in place; returns how many."""
    return _swap(model, lambda child, path: child.pack() if isinstance(child, BitLinear) else None)
