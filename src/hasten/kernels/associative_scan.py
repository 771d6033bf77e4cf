"""Linear recurrences, element by element, that can be reset within a sequence.

    h[t] = a[t] (1 - resets[t]) h[t-1] + b[t]

Real or complex. Complex numbers are planes of the last dimension: all real parts, then all imaginary ones, so that a
projection to them and back is one real matrix product. ``a`` is one for every step or its own at each.

Pairs (a, b) under (a1, b1) o (a2, b2) = (a2 a1, a2 b1 + b2) are associative, and stay so with the reset flag of S5 in
reinforcement learning (arXiv 2303.03982, section 3.3): `combine`. On few cores a pass in order is the fastest way to
take the scan: it reads and writes each number once, a tree moves them log(length) times. `associative` is the tree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

_SCHEMA = "(Tensor a, Tensor b, Tensor? initial, Tensor? resets, bool complex"
torch.library.define("hasten::associative_scan", f"{_SCHEMA}) -> (Tensor h, Tensor last)")
torch.library.define(
    "hasten::associative_scan_backward", f"{_SCHEMA}, Tensor h, Tensor h_grad, Tensor? last_grad) -> Tensor[]"
)


def associative_scan(
    a: Tensor, b: Tensor, initial: Tensor | None = None, resets: Tensor | None = None, *, complex: bool = False
) -> tuple[Tensor, Tensor]:
    """The recurrence of this module: every h, and the last one.

    Args:
        a: (width) for every step, or (batch, length, width).
        b: (batch, length, width), fp32 or bf16 (fp64 runs in plain torch); with ``complex`` width is twice the states.
        initial: h before the first step (batch, width), zeros when None.
        resets: (batch, length) bool: True where what came before is forgotten and the input kept.
        complex: whether numbers are planes of real and imaginary parts.

    Returns:
        h (batch, length, width) in b's dtype, and the last h (batch, width) in fp32 (fp64 for fp64).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    gate.no_tangents("associative_scan", a, b, initial)
    return torch.ops.hasten.associative_scan(a, b, initial, resets, complex)


def _check(a: Tensor, b: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool) -> dict[str, int]:
    name = "associative_scan"
    gate.dtypes(name, gate.FLOATS, a=a, b=b, initial=initial)
    found = gate.sizes(name, b=(b, "b t n"), initial=(initial, "b n"), resets=(resets, "b t"))
    if a.shape not in ((found["n"],), b.shape):
        raise ValueError(f"a is {tuple(a.shape)}: it must be ({found['n']},) or {tuple(b.shape)}")
    gate.sizes(name, b=(b, "b t n"), a=(a, "n" if a.ndim == 1 else "b t n"))
    if complex and found["n"] % 2:
        raise ValueError(f"complex numbers need an even width, not {found['n']}")
    return found


def multiply(x: Tensor, y: Tensor, complex: bool) -> Tensor:
    """x y, element by element, of numbers as this module has them."""
    if not complex:
        return x * y
    (xr, xi), (yr, yi) = x.chunk(2, -1), y.chunk(2, -1)
    return torch.cat([xr * yr - xi * yi, xr * yi + xi * yr], -1)


def _conjugate(x: Tensor, complex: bool) -> Tensor:
    if not complex:
        return x
    re, im = x.chunk(2, -1)
    return torch.cat([re, -im], -1)


def reference(
    a: Tensor, b: Tensor, initial: Tensor | None = None, resets: Tensor | None = None, *, complex: bool = False
) -> tuple[Tensor, Tensor]:
    """`associative_scan` step by step in plain torch; autograd differentiates it."""
    wide = gate.wide(b.dtype)
    inputs, factors = b.to(wide), a.to(wide)
    h = initial.to(wide) if initial is not None else inputs.new_zeros(b.shape[0], b.shape[2])
    found = []
    for t in range(b.shape[1]):
        if resets is not None:
            h = h * (~resets[:, t].bool())[:, None]
        h = multiply(factors if a.ndim == 1 else factors[:, t], h, complex) + inputs[:, t]
        found.append(h)
    return (torch.stack(found, 1) if found else inputs.new_zeros(b.shape)).to(b.dtype), h


Element = tuple[Tensor, Tensor, Tensor]


def combine(left: Element, right: Element, complex: bool = False) -> Element:
    """The associative operator with resets: elements (a, b, reset), reset broadcast over the last dimension.

    (a1, b1, c1) o (a2, b2, c2) is (a2 a1, a2 b1 + b2, c1) where c2 is False and (a2, b2, True) where it is True.
    """
    (a1, b1, c1), (a2, b2, c2) = left, right
    a = torch.where(c2, a2, multiply(a2, a1, complex))
    b = torch.where(c2, b2, multiply(a2, b1, complex) + b2)
    return a, b, c1 | c2


def associative(
    a: Tensor, b: Tensor, initial: Tensor | None = None, resets: Tensor | None = None, *, complex: bool = False
) -> tuple[Tensor, Tensor]:
    """The same by `combine` in log2(length) rounds, with the initial state as an element before the first."""
    batch, length, width = b.shape
    factors = (a.expand_as(b) if a.ndim == 1 else a).to(b.dtype)
    flags = resets.bool() if resets is not None else b.new_zeros(batch, length, dtype=torch.bool)
    one = b.new_ones(batch, 1, width)
    if complex:
        one[..., width // 2 :] = 0
    start = initial if initial is not None else b.new_zeros(batch, width)
    elements: Element = (
        torch.cat([one, factors], 1),
        torch.cat([start[:, None].to(b.dtype), b], 1),
        torch.cat([flags.new_zeros(batch, 1), flags], 1)[..., None],
    )
    distance = 1
    while distance <= length:
        left = tuple(x[:, :-distance] for x in elements)
        right = tuple(x[:, distance:] for x in elements)
        joined = combine(left, right, complex)  # type: ignore[arg-type]
        elements = tuple(torch.cat([x[:, :distance], y], 1) for x, y in zip(elements, joined))  # type: ignore[assignment]
        distance *= 2
    h = elements[1][:, 1:]
    return h, elements[1][:, -1]


def _backward_reference(
    a: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool, h: Tensor, h_grad: Tensor,
    last_grad: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of a, b and initial by the recurrence run backwards."""
    wide = gate.wide(h.dtype)
    states, factors, gradient = h.to(wide), _conjugate(a.to(wide), complex), h_grad.to(wide)
    first = initial.to(wide) if initial is not None else states.new_zeros(h.shape[0], h.shape[2])
    # An operator returns no tensor that it was given.
    carry = last_grad.to(wide, copy=True) if last_grad is not None else torch.zeros_like(first)
    a_grad, b_grad = torch.zeros_like(a, dtype=wide), torch.zeros_like(states)
    for t in reversed(range(h.shape[1])):
        g = gradient[:, t] + carry
        b_grad[:, t] = g
        before = states[:, t - 1] if t else first
        keep = 1.0 if resets is None else (~resets[:, t].bool()).to(wide)[:, None]
        share = multiply(_conjugate(before, complex), g, complex) * keep
        if a.ndim == 1:
            a_grad += share.sum(0)
        else:
            a_grad[:, t] = share
        carry = multiply(factors if a.ndim == 1 else factors[:, t], g, complex) * keep
    return a_grad, b_grad, carry


def _compiled_takes(b: Tensor) -> bool:
    return (
        b.device.type == "cpu" and b.dtype in (torch.float32, torch.bfloat16) and b.numel() > 0 and native() is not None
    )


def _describe(
    a: Tensor, b: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool
) -> tuple[object, tuple[Tensor | None, ...]]:
    """The compiled scan's arguments, and the tensors that must outlive them."""
    module = native()
    assert module is not None
    batch, length, width = b.shape
    constant = a.ndim == 1
    factors = a.float().contiguous() if constant else a.to(b.dtype).contiguous()
    inputs = b.contiguous()
    flags = None if resets is None else resets.to(torch.uint8).contiguous()
    first = None if initial is None else initial.float().contiguous()
    call = module.linear_scan(
        batch, length, width // 2 if complex else width, complex, constant, b.dtype is torch.bfloat16,
        gate.address(factors, torch.float32 if constant else b.dtype, *a.shape),
        gate.address(inputs, b.dtype, *b.shape), gate.address(flags, torch.uint8, batch, length),
        gate.address(first, torch.float32, batch, width),
    )  # fmt: skip
    return call, (factors, inputs, flags, first)


@torch.library.impl("hasten::associative_scan", ("cpu", "cuda", "mps"))
def _associative_scan(
    a: Tensor, b: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool
) -> tuple[Tensor, Tensor]:
    _check(a, b, initial, resets, complex)
    if not _compiled_takes(b):
        h, last = reference(a, b, initial, resets, complex=complex)
        return h, last.clone()  # an operator's results share no memory
    module = native()
    assert module is not None
    call, _kept = _describe(a, b, initial, resets, complex)
    h, last = gate.buffer(*b.shape, dtype=b.dtype), gate.buffer(b.shape[0], b.shape[2])
    places = gate.address(h, b.dtype, *b.shape), gate.address(last, torch.float32, *last.shape)
    module.linear_scan_forward(call, *places, torch.get_num_threads())
    return h, last


@gate.register_fake("hasten::associative_scan")
def _(a: Tensor, b: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), b.new_empty(b.shape[0], b.shape[2], dtype=gate.wide(b.dtype))


@register("hasten::associative_scan")
def _(call: Call) -> None:
    a, b = call["a"], call["b"]
    h, last = call.outputs
    ranks = (("b", b.shape[0]), ("t", b.shape[1]), ("n", b.shape[2]))
    names = [r for r, _ in ranks]
    state = [call.read(call["initial"], ["b", "n"])] if call["initial"] is not None else []
    flags = [call.read(call["resets"], ["b", "t"])] if call["resets"] is not None else []
    inputs = [call.read(a, ["n"] if a.dim() == 1 else names), call.read(b, names), *flags, *state]
    call.emit(Op.SCAN, ranks, inputs, h, names, map="decay-add", iterative=["t"])
    call.emit(Op.COPY, (ranks[0], ranks[2]), [call.read(h, ["b", "n"], last.numel())], last, ["b", "n"], map="copy")


@torch.library.impl("hasten::associative_scan_backward", ("cpu", "cuda", "mps"))
def _associative_scan_backward(
    a: Tensor, b: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool, h: Tensor, h_grad: Tensor,
    last_grad: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    known = _check(a, b, initial, resets, complex)
    gate.dtypes("associative_scan_backward", gate.FLOATS, h=h, h_grad=h_grad, last_grad=last_grad)
    gate.sizes(
        "associative_scan_backward", known, b=(b, "b t n"), h=(h, "b t n"), h_grad=(h_grad, "b t n"),
        last_grad=(last_grad, "b n"),
    )  # fmt: skip
    if not _compiled_takes(b):
        a_grad, b_grad, initial_grad = _backward_reference(a, initial, resets, complex, h, h_grad, last_grad)
    else:
        module = native()
        assert module is not None
        call, _kept = _describe(a, b, initial, resets, complex)
        gradient, states = h_grad.to(b.dtype).contiguous(), h.to(b.dtype).contiguous()
        end = None if last_grad is None else last_grad.float().contiguous()
        constant = a.ndim == 1
        ends = (b.shape[0], b.shape[2])
        a_grad = gate.buffer(*ends) if constant else gate.buffer(*b.shape, dtype=b.dtype)
        b_grad, initial_grad = gate.buffer(*b.shape, dtype=b.dtype), gate.buffer(*ends)
        module.linear_scan_backward(
            call, gate.address(states, b.dtype, *b.shape), gate.address(gradient, b.dtype, *b.shape),
            gate.address(end, torch.float32, *ends), gate.address(a_grad, a_grad.dtype, *a_grad.shape),
            gate.address(b_grad, b.dtype, *b.shape), gate.address(initial_grad, torch.float32, *ends),
            torch.get_num_threads(),
        )  # fmt: skip
        if constant:
            a_grad = a_grad.sum(0)
    first = b.new_empty(0) if initial is None else initial_grad.to(initial.dtype)
    return [a_grad.to(a.dtype), b_grad.to(b.dtype), first]


@gate.register_fake("hasten::associative_scan_backward")
def _(
    a: Tensor, b: Tensor, initial: Tensor | None, resets: Tensor | None, complex: bool, h: Tensor, h_grad: Tensor,
    last_grad: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    return [
        a.new_empty(a.shape),
        b.new_empty(b.shape),
        b.new_empty(0) if initial is None else initial.new_empty(initial.shape),
    ]


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    *tensors, complex = inputs
    ctx.save_for_backward(*tensors, output[0])
    ctx.complex = complex  # type: ignore[attr-defined]


def _gradients(
    ctx: torch.autograd.function.FunctionCtx, h_grad: Tensor, last_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    a, b, initial, resets, h = ctx.saved_tensors  # type: ignore[attr-defined]
    found = torch.ops.hasten.associative_scan_backward(a, b, initial, resets, ctx.complex, h, h_grad, last_grad)  # type: ignore[attr-defined]
    return found[0], found[1], None if initial is None else found[2], None, None


torch.library.register_autograd("hasten::associative_scan", _gradients, setup_context=_keep)
gate.once_differentiable("hasten::associative_scan_backward")
