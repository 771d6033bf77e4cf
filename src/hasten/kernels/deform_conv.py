"""Deformable convolution: each tap of a kernel reads where an offset of that place points, between four neighbours.

With g_k the place of tap k in the kernel, from its middle, and o_k(p) its offset at place p (down and across):

    y(p) = sum_k W_k x(p + g_k + o_k(p))

at stride 1, on a map that is 0 outside (arXiv 1703.06211; a depthwise W_k is a number a channel). A point between
places is interpolated: with d and a its distances down and across from the neighbour above and to the left, the four
neighbours count (1 - d)(1 - a), (1 - d) a, d (1 - a) and d a. Where a point is on a place its offset's slope is the one
towards below and right. However far off the map a point is, and where its offset is no number, it reads 0.

The compiled kernels hold a map with the channels of a place side by side: a sample is a sum of up to four rows.
Depthwise they add the taps up in registers; else they lay samples of some places out as a matrix that stays in the
cache, for a product. Gradients run compiled too, a map after the other.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

Form: TypeAlias = Literal["original", "bound", "square"]
FORMS: tuple[Form, ...] = get_args(Form)
"""How taps may be moved: each as far as it likes, each within a bound, all together so that they form a square."""

TAPS = 9  # of a 3x3 kernel, the one whose taps these forms move
MOST_SIDE = 7  # of a compiled kernel

# Numbers of the matrix of samples that is laid out at once: 1 MB, within a second cache.
_SAMPLES = 1 << 18

torch.library.define(
    "hasten::deform_conv2d", "(Tensor x, Tensor offset, Tensor weight, bool depthwise) -> Tensor"
)  # fmt: skip
torch.library.define(
    "hasten::deform_conv2d_backward",
    "(Tensor grad, Tensor x, Tensor offset, Tensor weight, bool depthwise) -> (Tensor, Tensor, Tensor)",
)


OPERATOR: Any = torch.ops.hasten.deform_conv2d


def deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool = False) -> Tensor:
    """The convolution of the formula above, in fp32 inside (fp64 for fp64): to (maps, outputs, height, width).

    Args:
        x: (maps, channels, height, width).
        offset: (maps, 2 side^2, height, width), in places: down and across of each tap, row by row of the kernel.
        weight: (outputs, channels, side, side), or (channels, 1, side, side) if depthwise; sides are odd.
        depthwise: whether each channel has a kernel of its own.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    gate.no_tangents("deform_conv2d", x, offset, weight)
    return torch.ops.hasten.deform_conv2d(x, offset, weight, depthwise)


def _check(x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool) -> None:
    name = "deform_conv2d"
    gate.dtypes(name, gate.FLOATS, x=x, offset=offset, weight=weight)
    found = gate.sizes(name, x=(x, "n c h w"), weight=(weight, "c 1 k k" if depthwise else "o c k k"))
    if found["k"] % 2 == 0:
        raise ValueError(f"{name}: a kernel of {found['k']} x {found['k']} has no middle: sides are odd")
    gate.sizes(name, found, x=(x, "n c h w"), offset=(offset, f"n {2 * found['k'] ** 2} h w"))


def corners_of(offset: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every tap and place, all (maps, side^2, height, width): the neighbours' places among those of a map, 4 of them
    first, whether they are on it, and how far the point lies down and across from the first of them."""
    height, width = offset.shape[2:]
    taps = torch.arange(side * side, device=offset.device)
    down = (taps // side - side // 2)[:, None, None] + torch.arange(height, device=offset.device)[:, None]
    across = (taps % side - side // 2)[:, None, None] + torch.arange(width, device=offset.device)
    y, x = down + offset[:, 0::2], across + offset[:, 1::2]
    near = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    y, x = y.where(near, -2), x.where(near, -2)  # off the map, where infinities and what is no number are too
    top, left = y.floor(), x.floor()
    rows, columns = torch.stack((top, top, top + 1, top + 1)), torch.stack((left, left + 1, left, left + 1))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = (rows * width + columns).where(inside, 0).long()
    return places, inside, y - top, x - left


def shares_of(inside: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Of the four neighbours of each point, 0 where they are off the map."""
    parts = ((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across)
    return torch.stack(parts) * inside


def _neighbours(x: Tensor, places: Tensor) -> Tensor:
    """Values (4, maps, channels, side^2, height, width) of x at the places of `corners_of`."""
    channels = x.shape[1]
    where = places.flatten(2)[:, :, None].expand(-1, -1, channels, -1)
    return x.flatten(2).expand(4, -1, -1, -1).gather(3, where).unflatten(3, places.shape[2:])


def reference(x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool = False) -> Tensor:
    """`deform_conv2d` in plain torch, in x's dtype: four gathers; autograd differentiates it."""
    places, inside, down, across = corners_of(offset, weight.shape[-1])
    samples = (_neighbours(x, places) * shares_of(inside, down, across)[:, :, None]).sum(0)
    if depthwise:
        return (samples * weight.flatten(1)[:, :, None, None]).sum(2)
    return torch.einsum("nckhw,ock->nohw", samples, weight.flatten(2))


def backward_reference(
    grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, offset and weight by their formulas, in plain torch."""
    places, inside, down, across = corners_of(offset, weight.shape[-1])
    values = _neighbours(x, places) * inside[:, :, None]
    shares = shares_of(inside, down, across)[:, :, None]
    samples = (values * shares).sum(0)
    if depthwise:
        back = grad[:, :, None] * weight.flatten(1)[:, :, None, None]
        weight_grad = (grad[:, :, None] * samples).sum((0, 3, 4))
    else:
        back = torch.einsum("nohw,ock->nckhw", grad, weight.flatten(2))
        weight_grad = torch.einsum("nohw,nckhw->ock", grad, samples)
    x_grad = torch.zeros_like(x).flatten(2)
    for corner, share in zip(places, shares, strict=True):
        x_grad.scatter_add_(2, corner.flatten(1)[:, None].expand_as(back.flatten(2)), (back * share).flatten(2))
    product = (back * values).sum(2)
    slopes = (
        (1 - across) * (product[2] - product[0]) + across * (product[3] - product[1]),
        (1 - down) * (product[1] - product[0]) + down * (product[3] - product[2]),
    )
    offset_grad = torch.stack(slopes, 2).flatten(1, 2)
    return x_grad.view_as(x), offset_grad, weight_grad.view_as(weight)


def _compiled() -> Any:
    """The compiled kernels; None where there are none, or older ones than these sources."""
    module = native()
    return module if hasattr(module, "deform_sample") else None


def _compiled_takes(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype is not torch.float64
        and weight.shape[-1] <= MOST_SIDE
        and _compiled() is not None
    )


def _laid(x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """A map with the channels of a place side by side, and its offsets, as the compiled kernels read them."""
    return x.float().permute(0, 2, 3, 1).contiguous(), offset.float().contiguous()


class _Map:
    """What every compiled kernel is told of a map and its offsets."""

    def __init__(self, x: Tensor, offset: Tensor, side: int) -> None:
        self.rows, self.offset = _laid(x, offset)
        self.maps, self.height, self.width, self.channels = self.rows.shape
        self.side, self.taps, self.places = side, side * side, self.maps * self.height * self.width
        self.module = _compiled()

    def sizes(self) -> tuple[int, ...]:
        """Height, width, channels and the kernel's side, then the addresses of x and offset."""
        return (
            self.height, self.width, self.channels, self.side,
            gate.address(self.rows, torch.float32, self.maps, self.height, self.width, self.channels),
            gate.address(self.offset, torch.float32, self.maps, 2 * self.taps, self.height, self.width),
        )  # fmt: skip

    def samples(self, first: int, places: int) -> Tensor:
        """Of some places over all maps: (places, side^2 channels)."""
        made = gate.buffer(places, self.taps * self.channels)
        out = gate.address(made, torch.float32, places, self.taps * self.channels)
        self.module.deform_sample(*self.sizes(), first, places, out, torch.get_num_threads())
        return made

    def depthwise(self, weight: Tensor) -> Tensor:
        """(places, channels) of kernels (side^2, channels)."""
        made = gate.buffer(self.places, self.channels)
        self.module.deform_depthwise(
            self.maps, *self.sizes(), gate.address(weight, torch.float32, self.taps, self.channels),
            gate.address(made, torch.float32, self.places, self.channels), torch.get_num_threads(),
        )  # fmt: skip
        return made

    def block(self) -> int:
        """Places whose samples are laid out at once."""
        return max(16, _SAMPLES // (self.taps * self.channels))

    def maps_again(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """(places, channels) as (maps, channels, height, width)."""
        return rows.view(self.maps, self.height, self.width, -1).permute(0, 3, 1, 2).to(dtype).contiguous()


def _by_tap(weight: Tensor) -> Tensor:
    """(side^2 channels, outputs) of a dense kernel, (side^2, channels) of a depthwise one's (channels, 1, ...)."""
    return weight.float().permute(2, 3, 1, 0).contiguous()


@torch.library.impl("hasten::deform_conv2d", ("cpu", "cuda", "mps"))
def _deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool) -> Tensor:
    _check(x, offset, weight, depthwise)
    outputs = weight.shape[0]
    if not x.numel() or not outputs:
        return x.new_zeros(x.shape[0], outputs, *x.shape[2:])
    if not _compiled_takes(x, weight):
        wide = gate.wide(x.dtype)
        return reference(x.to(wide), offset.to(wide), weight.to(wide), depthwise).to(x.dtype).contiguous()
    m, kernel = _Map(x, offset, weight.shape[-1]), _by_tap(weight)
    if depthwise:
        return m.maps_again(m.depthwise(kernel.view(m.taps, m.channels)), x.dtype)
    made, kernel = gate.buffer(m.places, outputs), kernel.view(m.taps * m.channels, outputs)
    for first in range(0, m.places, m.block()):
        part = made[first : first + m.block()]
        torch.mm(m.samples(first, len(part)), kernel, out=part)
    return m.maps_again(made, x.dtype)


@gate.register_fake("hasten::deform_conv2d")
def _(x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


@register("hasten::deform_conv2d")
def _(call: Call) -> None:
    """A sample of every tap, then a convolution of these."""
    x, offset, weight, output = call["x"], call["offset"], call["weight"], call.outputs[0]
    maps, channels, height, width = x.shape
    side = weight.shape[-1]
    groups = channels if call["depthwise"] else 1
    split = [("g", groups), ("c", channels // max(groups, 1))]
    places, taps = [("o0", height), ("o1", width)], [("r0", side), ("r1", side)]
    sampled = ["n", "g", "c", "o0", "o1", "r0", "r1"]
    samples = call.temporary((maps, channels, height, width, side, side), x.dtype)
    read = [call.read(x, sampled, x.numel()), call.read(offset, ["n", "o0", "o1", "r0", "r1"], offset.numel())]
    call.emit(
        Op.ELEMENTWISE, [("n", maps), *split, *places, *taps], read, samples, sampled, map="bilinear"
    )  # fmt: skip
    ranks = [("n", maps), ("g", groups), ("k", weight.shape[0] // max(groups, 1)), split[1], *places, *taps]
    inputs = [call.read(samples, sampled), call.read(weight, ["g", "k", "c", "r0", "r1"])]
    call.emit(Op.CONV, ranks, inputs, output, ["n", "g", "k", "o0", "o1"], reduce="sum")


@torch.library.impl("hasten::deform_conv2d_backward", ("cpu", "cuda", "mps"))
def _deform_conv2d_backward(
    grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, offset, weight, depthwise)
    name = "deform_conv2d_backward"
    gate.dtypes(name, gate.FLOATS, grad=grad)
    gate.sizes(name, {"o": weight.shape[0]}, x=(x, "n c h w"), grad=(grad, "n o h w"))
    if not x.numel() or not weight.shape[0]:
        return torch.zeros_like(x), torch.zeros_like(offset), torch.zeros_like(weight)
    if not _compiled_takes(x, weight):
        wide = gate.wide(x.dtype)
        found = backward_reference(grad.to(wide), x.to(wide), offset.to(wide), weight.to(wide), depthwise)
    else:
        found = _compiled_backward(grad, x, offset, weight, depthwise)
    x_grad, offset_grad, weight_grad = found
    return (
        x_grad.to(x.dtype).contiguous(),
        offset_grad.to(offset.dtype).contiguous(),
        weight_grad.to(weight.dtype).contiguous(),
    )


def _compiled_backward(
    grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    m, kernel, outputs = _Map(x, offset, weight.shape[-1]), _by_tap(weight), weight.shape[0]
    given = grad.float().permute(0, 2, 3, 1).reshape(m.places, outputs)
    if depthwise:
        kernel = kernel.view(m.taps, m.channels)
        samples = m.samples(0, m.places).view(m.places, m.taps, m.channels)
        kernel_grad = torch.einsum("pc,ptc->tc", given, samples)
        back = (given[:, None] * kernel).reshape(m.places, m.taps * m.channels).contiguous()
    else:
        kernel = kernel.view(m.taps * m.channels, outputs)
        kernel_grad = torch.zeros_like(kernel)
        for first in range(0, m.places, m.block()):
            part = given[first : first + m.block()]
            kernel_grad.addmm_(m.samples(first, len(part)).t(), part)
        back = given @ kernel.t()
    x_grad, offset_grad = gate.zeros(*m.rows.shape), gate.buffer(*m.offset.shape)
    m.module.deform_scatter(
        m.maps, *m.sizes(), gate.address(back, torch.float32, m.places, m.taps * m.channels),
        gate.address(x_grad, torch.float32, *m.rows.shape), gate.address(offset_grad, torch.float32, *m.offset.shape),
        torch.get_num_threads(),
    )  # fmt: skip
    side, channels = m.side, 1 if depthwise else m.channels
    weight_grad = kernel_grad.view(side, side, channels, outputs).permute(3, 2, 0, 1)
    return x_grad.permute(0, 3, 1, 2), offset_grad, weight_grad


@gate.register_fake("hasten::deform_conv2d_backward")
def _(grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor, depthwise: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), offset.new_empty(offset.shape), weight.new_empty(weight.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, depthwise = inputs
    ctx.save_for_backward(*tensors)
    ctx.depthwise = depthwise  # type: ignore[attr-defined]


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors, depthwise = ctx.saved_tensors, ctx.depthwise  # type: ignore[attr-defined]
    return (*torch.ops.hasten.deform_conv2d_backward(grad, *tensors, depthwise), None)


torch.library.register_autograd("hasten::deform_conv2d", _gradients, setup_context=_keep)
gate.once_differentiable("hasten::deform_conv2d_backward")
