"""Convolutions and linear layers of a network in int8: weights and what comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401  defines torch.ops.quantized_decomposed
from torch.nn import functional as F

from hasten.cost.preserving import hooked
from hasten.methods.editing import Draft, edit
from hasten.methods.network_method import NetworkMethod, let_layers_be_called
from hasten.runtime.network import Inputs, Network, quietly
from hasten.workload.einsum import Access, Einsum, Op, Phase, Role, Workload
from hasten.workload.einsum import Tensor as Described

# The largest code of a weight, and of what comes in.
_WEIGHT, _INPUT = 127, 255


@dataclass(frozen=True)
class Int8Products(NetworkMethod):
    """Weights of convolutions and linear layers in int8, a scale for each output channel, and what comes in in uint8, a
    scale for each tensor, found on the example inputs; sums leave as fp32.

    The processor's byte products do the rest, through oneDNN; with torch.compile rounding joins what comes before it.
    """

    name: ClassVar[str] = "int8-products"
    kind: ClassVar[str] = "weights"
    order: ClassVar[int] = 40
    source: ClassVar[str] = "integer-only inference, arXiv 1712.05877, section 2; a scale a channel, arXiv 1806.08342"

    @property
    def title(self) -> str:
        return "int8 products"

    def why_not_network(self, network: Network) -> str | None:
        if not torch.backends.mkldnn.is_available():
            return "this torch is built without oneDNN"
        return None if _places(network.module) else "it has no convolutions of images or linear layers in fp32"

    def change(self, network: Network) -> None:
        ranges = _ranges(network)
        module = network.module
        for path, part in _places(module).items():
            if path in ranges:
                conv = isinstance(part, nn.Conv2d)
                module.set_submodule(path, (_Int8Conv if conv else _Int8Linear)(part, *ranges[path]))
        let_layers_be_called(module)

    def rewrite(self, workload: Workload) -> Workload:
        return products_in_int8(workload)

    def why_not_described(self, workload: Workload) -> str | None:
        if (why := super().why_not_described(workload)) is not None:
            return why
        draft = Draft(workload.phases[0].cascade)
        return None if any(_weight_of(draft, e) for e in draft.einsums) else "it has no products by weights in fp32"

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls()] if isinstance(model, Network) else []


def _places(module: nn.Module) -> dict[str, nn.Module]:
    """Path -> layers that can be replaced; one that stands in several places, or that its parent reads, cannot."""
    seen: dict[nn.Module, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        plain = type(part) is nn.Linear or (
            type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)
        )
        # torch's attention reads the weight of its last layer itself, and so may whoever derives from a layer.
        if path and plain and part.weight.dtype is torch.float32 and not hooked(part):
            seen.setdefault(part, []).append(path)
    return {paths[0]: part for part, paths in seen.items() if len(paths) == 1}


def _ranges(network: Network) -> dict[str, tuple[float, float]]:
    """Path -> the least and the greatest number that comes into each layer, over the examples; 0 is among them."""
    found: dict[str, tuple[float, float]] = {}

    def watch(path: str) -> Callable[..., None]:
        def seen(module: nn.Module, given: tuple[Any, ...]) -> None:
            low, high = found.get(path, (0.0, 0.0))
            found[path] = min(low, float(given[0].min())), max(high, float(given[0].max()))

        return seen

    hooks = [part.register_forward_pre_hook(watch(path)) for path, part in _places(network.module).items()]
    examples: Sequence[Inputs] = network.examples
    try:
        for example in examples:
            network.answers(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """Codes of ``x`` in uint8."""
    return (x * (1 / scale) + zero).round().clamp(0, _INPUT).to(torch.uint8)


def _codes(x: Tensor, scale: float, zero: int) -> Tensor:
    """`_rounded`, in one pass where this torch still has one."""
    one_pass = getattr(torch, "quantize_per_tensor", None)
    return _rounded(x, scale, zero) if one_pass is None else one_pass(x, scale, zero, torch.quint8).int_repr()


class _Prepacked:
    """A weight as oneDNN has it, made when it is first used; a copy is made anew."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> _Prepacked:
        return _Prepacked()


class _Int8Layer(nn.Module):
    """What both layers share: the codes of a weight (out, ...), their scales (out), and how inputs are rounded."""

    weight: Tensor
    scales: Tensor

    def __init__(self, layer: Any, low: float, high: float) -> None:
        super().__init__()
        weight = layer.weight.detach()
        largest = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        scales = largest / _WEIGHT
        codes = torch.round(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
        self.register_buffer("weight", codes.clamp(-_WEIGHT, _WEIGHT).to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = layer.bias
        self._zeros = torch.zeros(len(scales), dtype=torch.int64)
        self.scale = max((high - low) / _INPUT, 1e-12)
        self.zero = min(_INPUT, max(0, round(-low / self.scale)))
        self._packed = _Prepacked()

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # What torch's compiler knows as a product in int8.
            rounding = (self.scale, self.zero, 0, _INPUT, torch.uint8)
            ops = torch.ops.quantized_decomposed
            x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *rounding), *rounding)
            limits = (-_WEIGHT - 1, _WEIGHT, torch.int8)
            weight = ops.dequantize_per_channel(self.weight, self.scales, self._zeros, 0, *limits)
            return self.plain(x, weight)
        if isinstance(x, FakeTensor):
            return self.product(_rounded(x, self.scale, self.zero), self.unpacked())
        if self._packed.weight is None:
            with quietly():  # torch says once that its quantized tensors will go
                _codes(x, self.scale, self.zero)
                self._packed.weight = self.packed(x)
        return self.product(_codes(x, self.scale, self.zero), self._packed.weight)

    def plain(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer with a weight in fp32."""
        raise NotImplementedError

    def packed(self, x: Tensor) -> Tensor:
        """The weight as oneDNN wants it for inputs like ``x``."""
        raise NotImplementedError

    def unpacked(self) -> Tensor:
        """The weight as a tensor of the shape that oneDNN takes."""
        raise NotImplementedError

    def product(self, codes: Tensor, weight: Tensor) -> Tensor:
        """The layer on codes."""
        raise NotImplementedError


class _Int8Conv(_Int8Layer):
    def __init__(self, layer: Any, low: float, high: float) -> None:
        super().__init__(layer, low, high)
        self._how = (list(layer.stride), list(map(int, layer.padding)), list(layer.dilation), layer.groups)

    def plain(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, *self._how)

    def unpacked(self) -> Tensor:
        return self.weight

    def packed(self, x: Tensor) -> Tensor:
        return torch.ops.onednn.qconv_prepack(
            self.weight, self.scales, self.scale, self.zero, *self._how, list(x.shape)
        )  # fmt: skip

    def product(self, codes: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.onednn.qconv_pointwise(
            codes, self.scale, self.zero, weight, self.scales, self._zeros.to(torch.int32), self.bias, *self._how,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


class _Int8Linear(_Int8Layer):
    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def plain(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def unpacked(self) -> Tensor:
        return self.weight.t()

    def packed(self, x: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(self.weight, [x.numel() // x.shape[-1], x.shape[-1]])

    def product(self, codes: Tensor, weight: Tensor) -> Tensor:
        rows = codes.reshape(-1, codes.shape[-1])
        found = torch.ops.onednn.qlinear_pointwise(
            rows, self.scale, self.zero, weight, self.scales, self._zeros.to(torch.int32), self.bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return found.reshape(*codes.shape[:-1], -1)


# What they compute.


def _weight_of(draft: Draft, e: Einsum) -> Described | None:
    """The fp32 weight that a layer multiplies by; None where it is no product by one."""
    if e.op not in (Op.CONV, Op.MATMUL) or e.source.startswith("hasten::"):
        return None
    names = [draft.tensors[a.tensor] for a in e.inputs if draft.tensors[a.tensor].role is Role.WEIGHT]
    found = next((t for t in names if t.name.endswith("weight") and len(t.shape) in (2, 4)), None)
    return found if found is not None and found.dtype == "fp32" else None


def products_in_int8(workload: Workload) -> Workload:
    """``workload`` with products by fp32 weights in int8: inputs are rounded before them, sums scaled after them."""
    weights = dict(workload.weights)

    def change(phase: Phase, draft: Draft) -> None:
        einsums: list[Einsum] = []
        for e in draft.einsums:
            weight = _weight_of(draft, e)
            if weight is None:
                einsums.append(e)
                continue
            einsums += _in_int8(draft, e, weight, weights)
        draft.einsums = einsums

    return replace(edit(workload, change), weights=weights)


def _in_int8(draft: Draft, e: Einsum, weight: Described, weights: dict[str, int]) -> list[Einsum]:
    """An Einsum's three: rounding, the product, scaling."""
    scales = f"{weight.name.removesuffix('weight')}scales"
    draft.tensors[weight.name] = replace(weight, dtype="int8")
    draft.tensors[scales] = Described(scales, (weight.shape[0],), "fp32", Role.WEIGHT)
    weights |= {name: draft.tensors[name].nbytes for name in (weight.name, scales)}
    given = next(a for a in e.inputs if a.tensor != weight.name)
    shape = draft.tensors[given.tensor].shape
    codes, sums = draft.temporary(shape, "uint8"), draft.temporary(draft.tensors[e.output.tensor].shape, "fp32")
    incoming = tuple((f"d{i}", n) for i, n in enumerate(shape))
    outgoing = tuple((f"d{i}", n) for i, n in enumerate(draft.tensors[sums].shape))
    whole, made = tuple(r for r, _ in incoming), tuple(r for r, _ in outgoing)
    channel = made[1] if e.op is Op.CONV else made[-1]
    product = replace(
        e,
        inputs=tuple(replace(a, tensor=codes) if a is given else a for a in e.inputs),
        output=replace(e.output, tensor=sums),
    )
    like: Mapping[str, Any] = {"reduce": None, "module": e.module, "source": "hasten::int8", "map": "round"}
    rounding = replace(
        e, op=Op.ELEMENTWISE, ranks=incoming, inputs=(replace(given, ranks=whole, elements=None, index=None),),
        output=Access(codes, whole), kernel=draft.kernel(), **like,
    )  # fmt: skip
    scaling = replace(
        e, op=Op.ELEMENTWISE, ranks=outgoing, inputs=(Access(sums, made), Access(scales, (channel,))),
        output=replace(e.output, ranks=made, elements=None, index=None), kernel=e.kernel, **{**like, "map": "mul"},
    )  # fmt: skip
    return [rounding, product, scaling]
