"""Rational activations whose coefficients are learned and shared by groups of channels (GR-KAN).

With v an element of group g, a its numerator and b its denominator (the safe Pade unit of arXiv 2409.10594 and of
FlashKAT, arXiv 2505.13813, section 3):

    F(v) = P / Q,   P = a0 + a1 v + ... + am v^m,   Q = 1 + |b1| |v| + ... + |bn| |v|^n

so Q >= 1 and F has no pole. Channels split into equal contiguous groups; the numerator is one for all of them or one
a group, and so is the denominator. Gradients take sign(0) = +1 for v and for b: with b at exactly 0, where the
identity starts, the denominator still learns.

The compiled kernels are for degrees 5 and 4. Their gradient of the coefficients is summed in registers over 64 rows of
a group before it leaves the core, in an order that no number of threads changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.workload.operators import Call, elementwise, register

TOP, BOTTOM = 6, 4  # coefficients of the compiled degrees: P of degree 5, Q of degree 4
BLOCK_ROWS = 64

torch.library.define("hasten::rational", "(Tensor x, Tensor numerator, Tensor denominator, int groups) -> Tensor")
torch.library.define(
    "hasten::rational_backward",
    "(Tensor grad, Tensor x, Tensor numerator, Tensor denominator, int groups) -> (Tensor, Tensor, Tensor)",
)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor, groups: int = 1) -> Tensor:
    """F of every element, in fp32 inside.

    Args:
        x: (..., channels), fp32 or bf16 (fp64 runs in plain torch).
        numerator: (1 or groups, m + 1), from the constant up.
        denominator: (1 or groups, n), from the linear one up.
        groups: contiguous groups of channels.

    Returns:
        As x.

    Raises:
        ValueError: groups that do not divide the channels, or coefficients of another number of groups.
    """
    gate.no_tangents("rational", x, numerator, denominator)
    return torch.ops.hasten.rational(x, numerator, denominator, groups)


def _check(x: Tensor, numerator: Tensor, denominator: Tensor, groups: int) -> None:
    gate.dtypes("rational", gate.FLOATS, x=x, numerator=numerator, denominator=denominator)
    gate.sizes("rational", x=(x, "... c"), numerator=(numerator, "g m"), denominator=(denominator, "h n"))
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[-1]} channels")
    for name, coefficients in (("numerator", numerator), ("denominator", denominator)):
        if coefficients.ndim != 2 or coefficients.shape[0] not in (1, groups) or not coefficients.shape[1]:
            raise ValueError(f"the {name} is {tuple(coefficients.shape)}: it has 1 or {groups} rows of coefficients")


def reference(x: Tensor, numerator: Tensor, denominator: Tensor, groups: int = 1) -> Tensor:
    """`rational` in plain torch; autograd differentiates it, with sign(0) = 0."""
    v, wide = _grouped(x, groups)
    a, b = numerator.to(wide)[:, None], denominator.to(wide).abs()[:, None]
    return (_polynomial(a, v) / (1 + v.abs() * _polynomial(b, v.abs()))).reshape(x.shape).to(x.dtype)


def _grouped(x: Tensor, groups: int) -> tuple[Tensor, torch.dtype]:
    """x as (rows, groups, channels of a group) in the dtype to compute in."""
    wide = gate.wide(x.dtype)
    return x.to(wide).reshape(-1, groups, x.shape[-1] // groups), wide


def _polynomial(coefficients: Tensor, v: Tensor) -> Tensor:
    """Horner's scheme; coefficients (groups, 1, number), v (rows, groups, channels)."""
    value = coefficients[..., -1].expand_as(v)
    for i in range(coefficients.shape[-1] - 2, -1, -1):
        value = value * v + coefficients[..., i]
    return value


def backward_reference(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, numerator and denominator by their formulas, with sign(0) = +1."""
    v, wide = _grouped(x, groups)
    o, _ = _grouped(grad, groups)
    a, b = numerator.to(wide)[:, None], denominator.to(wide).abs()[:, None]
    size, sign = v.abs(), torch.where(v < 0, -1.0, 1.0).to(wide)
    p, q = _polynomial(a, v), 1 / (1 + size * _polynomial(b, size))
    m = -p * q * q
    rising, falling = (torch.arange(1, n, dtype=wide, device=x.device) for n in (a.shape[-1], b.shape[-1] + 1))
    up = _polynomial(a[..., 1:] * rising, v) if a.shape[-1] > 1 else torch.zeros_like(v)
    down = _polynomial(b * falling, size)
    dx = o * (up * q + sign * down * m)
    da = torch.stack([(o * q * v**i).sum((0, 2)) for i in range(a.shape[-1])], -1)
    db = torch.stack([(o * m * size ** (j + 1)).sum((0, 2)) for j in range(b.shape[-1])], -1)
    db = db * torch.where(denominator < 0, -1.0, 1.0).to(wide)
    return dx.reshape(x.shape).to(x.dtype), _shared(da, numerator), _shared(db, denominator)


def _shared(sums: Tensor, coefficients: Tensor) -> Tensor:
    """Sums of every group as the gradient of coefficients that one or all of them share."""
    if coefficients.shape[0] == 1 and sums.shape[0] > 1:
        sums = sums.sum(0, keepdim=True)
    return sums.to(coefficients.dtype).reshape(coefficients.shape)


def _compiled_takes(x: Tensor, numerator: Tensor, denominator: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and numerator.shape[1] == TOP
        and denominator.shape[1] == BOTTOM
        and x.numel() > 0
        and native() is not None
    )


def _call(
    x: Tensor, numerator: Tensor, denominator: Tensor, groups: int, y: Tensor, grad: Tensor | None, sums: Tensor | None
) -> tuple[object, tuple[Tensor | None, ...]]:
    """The compiled kernels' arguments, and the tensors that must outlive them."""
    module = native()
    assert module is not None
    a, b = numerator.float().contiguous(), denominator.float().contiguous()
    channels = x.shape[-1]
    call = module.rational(
        gate.address(x, x.dtype, *y.shape), gate.address(grad, x.dtype, *x.shape),
        gate.address(a, torch.float32, a.shape[0], TOP), a.shape[0],
        gate.address(b, torch.float32, b.shape[0], BOTTOM), b.shape[0],
        x.numel() // channels, channels, groups, x.dtype is torch.bfloat16, gate.address(y, x.dtype, *x.shape),
        0 if sums is None else gate.address(sums, torch.float32, *sums.shape[:-2], groups, TOP + BOTTOM),
    )  # fmt: skip
    return call, (x, a, b, y, grad, sums)


@torch.library.impl("hasten::rational", ("cpu", "cuda", "mps"))
def _rational(x: Tensor, numerator: Tensor, denominator: Tensor, groups: int) -> Tensor:
    _check(x, numerator, denominator, groups)
    if not _compiled_takes(x, numerator, denominator):
        return reference(x, numerator, denominator, groups)
    module = native()
    assert module is not None
    x = x.contiguous()
    y = torch.empty_like(x)
    call, _kept = _call(x, numerator, denominator, groups, y, None, None)
    module.rational_forward(call, torch.get_num_threads())
    return y


@gate.register_fake("hasten::rational")
def _(x: Tensor, numerator: Tensor, denominator: Tensor, groups: int) -> Tensor:
    return x.new_empty(x.shape)


@register("hasten::rational")
def _(call: Call) -> None:
    elementwise(call, "rational", [call["x"]])


@torch.library.impl("hasten::rational_backward", ("cpu", "cuda", "mps"))
def _rational_backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, numerator, denominator, groups)
    gate.dtypes("rational_backward", gate.FLOATS, grad=grad)
    if grad.shape != x.shape or grad.device != x.device:
        raise ValueError(f"the gradient is {tuple(grad.shape)} on {grad.device}, x {tuple(x.shape)} on {x.device}")
    if not _compiled_takes(x, numerator, denominator):
        return backward_reference(grad, x, numerator, denominator, groups)
    module = native()
    assert module is not None
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    dx = torch.empty_like(x)
    blocks = -(-(x.numel() // x.shape[-1]) // BLOCK_ROWS)
    sums = gate.buffer(blocks, groups, TOP + BOTTOM)
    call, _kept = _call(x, numerator, denominator, groups, dx, grad, sums)
    module.rational_backward(call, torch.get_num_threads())
    # An operator's results share no memory.
    top, bottom = _split(sums.sum(0), numerator, denominator)
    return dx, top.clone(), bottom.clone()


def _split(total: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    return _shared(total[:, :TOP], numerator), _shared(total[:, TOP:], denominator)


def naive_backward(
    grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, groups: int = 1, repeats: int = 1
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The gradient as KAT's kernel took it: every element adds its ten shares to its group's addresses, atomically.

    Sums are pooled per group, those of a numerator that all groups share too (48 of them at eight groups), and the
    groups' are added up at the end. For comparison with what `rational` does; compiled, so the two differ in the order
    of the sums alone. With ``repeats`` the quotient is evaluated so often, P, Q and the division, to no other effect
    than its arithmetic's time.

    Returns:
        Gradients of x, numerator and denominator, and the number of shared additions.

    Raises:
        ValueError: the compiled kernels are missing, or do not take these tensors.
    """
    _check(x, numerator, denominator, groups)
    if not x.numel():
        return torch.zeros_like(x), torch.zeros_like(numerator), torch.zeros_like(denominator), 0
    if grad.shape != x.shape or not _compiled_takes(x, numerator, denominator):
        raise ValueError("the naive kernel is compiled, for CPU tensors and degrees 5 and 4")
    module = native()
    assert module is not None
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    dx, sums = torch.empty_like(x), gate.zeros(groups, TOP + BOTTOM)
    # Coefficients that groups share stand there once a group, so that each group has sums of its own.
    own = [c.expand(groups, -1) if c.shape[0] == 1 else c for c in (numerator, denominator)]
    call, _kept = _call(x, own[0], own[1], groups, dx, grad, sums)
    additions = module.rational_naive_backward(call, repeats, torch.get_num_threads())
    return dx, *_split(sums, numerator, denominator), additions


def shared_additions(rows: int, groups: int) -> int:
    """Additions to shared sums that `rational`'s gradient makes: ten a block of 64 rows and group."""
    return -(-rows // BLOCK_ROWS) * groups * (TOP + BOTTOM)


@gate.register_fake("hasten::rational_backward")
def _(grad: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(numerator), torch.empty_like(denominator)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, groups = inputs
    ctx.save_for_backward(*tensors)
    ctx.groups = groups  # type: ignore[attr-defined]


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, numerator, denominator = ctx.saved_tensors  # type: ignore[attr-defined]
    return (*torch.ops.hasten.rational_backward(grad, x, numerator, denominator, ctx.groups), None)  # type: ignore[attr-defined]


torch.library.register_autograd("hasten::rational", _gradients, setup_context=_keep)
gate.once_differentiable("hasten::rational_backward")
