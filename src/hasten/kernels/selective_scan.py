"""The selective scan: a diagonal state-space layer whose step size and maps depend on the token.

Shapes: x, delta, z (batch, length, channels); A (channels, states), real; B, C (batch, length, states); D,
delta_bias (channels). Per channel c and state n (Mamba, arXiv 2312.00752, sections 2 and 3):

    d = softplus(delta + delta_bias)                        (or delta + delta_bias)
    h[t] = exp(d[t] A) h[t-1] + w[t] B[t] x[t]
    y[t] = (sum over n of C[t] h[t] + D x[t]) * silu(z[t])   (the gate only where there is a z)

with w = d (``euler``, what the released models were trained with) or w = (exp(d A) - 1) / A (``zoh``, the
zero-order hold of equation 4). Where ``starts`` is set, h[t-1] counts as zero: a new sequence begins there.

The compiled kernel keeps the states of sixteen channels in the first cache level; of what is
(batch, length, channels, states) large only every 32nd step is written, for the gradient to start from.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import LANES, native
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, axes, register

Discretization = Literal["euler", "zoh"]
MAX_STATES = 256  # what the compiled kernel has room for
CHUNK = 32  # steps between the states that are kept for the gradient
_SCHEMA = (
    "(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
    " Tensor? initial, Tensor? starts, bool softplus, bool exact"
)
torch.library.define("hasten::selective_scan", f"{_SCHEMA}, bool keep) -> (Tensor y, Tensor last, Tensor borders)")
torch.library.define(
    "hasten::selective_scan_backward",
    f"{_SCHEMA}, Tensor borders, Tensor y_grad, Tensor? last_grad) -> Tensor[]",
)


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial: Tensor | None = None,
    starts: Tensor | None = None,
    discretization: Discretization = "euler",
) -> tuple[Tensor, Tensor]:
    """The scan of this module's formulas: (y, last state).

    Args:
        x, delta, z: (batch, length, channels), fp32 or bf16 (fp64 runs in plain torch).
        A, B, C, D, delta_bias: as the module says; summed in fp32.
        initial: the state before the first step (batch, channels, states), zeros when None.
        starts: (batch, length) bool, where new sequences begin.

    Returns:
        y (batch, length, channels) in x's dtype, and the state after the last step (batch, channels, states)
        in fp32 (fp64 for fp64).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if discretization not in ("euler", "zoh"):
        raise ValueError(f"the discretization is euler or zoh, not {discretization!r}")
    given = (x, delta, A, B, C, D, z, delta_bias, initial)
    gate.no_tangents("selective_scan", *given)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    y, last, _ = torch.ops.hasten.selective_scan(*given, starts, delta_softplus, discretization == "zoh", keep)
    return y, last


def _check(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None,
) -> dict[str, int]:  # fmt: skip
    name = "selective_scan"
    gate.dtypes(name, gate.FLOATS, x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial=initial)
    return gate.sizes(
        name, x=(x, "b t c"), delta=(delta, "b t c"), A=(A, "c n"), B=(B, "b t n"), C=(C, "b t n"), D=(D, "c"),
        z=(z, "b t c"), delta_bias=(delta_bias, "c"), initial=(initial, "b c n"), starts=(starts, "b t"),
    )  # fmt: skip


def reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial: Tensor | None = None,
    starts: Tensor | None = None,
    discretization: Discretization = "euler",
) -> tuple[Tensor, Tensor]:
    """`selective_scan` step by step in plain torch; autograd differentiates it."""
    wide = gate.wide(x.dtype)
    d = _step_sizes(delta, delta_bias, delta_softplus, wide)
    inputs, A = x.to(wide), A.to(wide)
    h = initial.to(wide) if initial is not None else inputs.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    outputs = []
    for t in range(x.shape[1]):
        decay, factor = _discretize(d[:, t], A, discretization == "zoh")
        if starts is not None:
            decay = decay * (~starts[:, t].bool())[:, None, None]
        h = decay * h + factor * (inputs[:, t, :, None] * B[:, t, None, :].to(wide))
        outputs.append((h * C[:, t, None, :].to(wide)).sum(-1))
    y = torch.stack(outputs, 1) if outputs else inputs.new_zeros(x.shape)
    if D is not None:
        y = y + D.to(wide) * inputs
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(wide))
    return y.to(x.dtype), h


def _step_sizes(delta: Tensor, bias: Tensor | None, softplus: bool, wide: torch.dtype) -> Tensor:
    d = delta.to(wide)
    if bias is not None:
        d = d + bias.to(wide)
    # torch's own softplus turns into the identity at 20, which is 2e-9 off: a higher bound keeps fp64 exact.
    return torch.nn.functional.softplus(d, threshold=40.0) if softplus else d


def _discretize(d: Tensor, A: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """exp(d A) and the input's factor, (batch, channels, states), of one step's sizes d (batch, channels)."""
    u = d[..., None] * A
    if exact:
        return torch.exp(u), torch.expm1(u) / A
    return torch.exp(u), d[..., None]


def _hold_bend(d: Tensor, A: Tensor, whole: Tensor, factor: Tensor) -> Tensor:
    """d/dA of (exp(d A) - 1) / A; its closed form cancels where d A is small, so there it is the series."""
    u = d * A
    series = sum(u**k / (math.factorial(k) * (k + 2)) for k in range(13))
    return torch.where(u.abs() < 0.5, d * d * series, (d * whole - factor) / A)


def _forward_reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, last = reference(
        x, delta, A, B, C, D, z, delta_bias, delta_softplus=softplus, initial=initial, starts=starts,
        discretization="zoh" if exact else "euler",
    )  # fmt: skip
    # An operator returns no tensor that it was given.
    return y, last.clone() if x.shape[1] == 0 else last


def _backward_reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
    y_grad: Tensor, last_grad: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """Gradients to x, delta, A, B, C, D, z, delta_bias, initial by the recurrence run backwards."""
    wide = gate.wide(x.dtype)
    d = _step_sizes(delta, delta_bias, softplus, wide)
    xs, As, Bs, Cs, gradient = x.to(wide), A.to(wide), B.to(wide), C.to(wide), y_grad.to(wide)
    batch, length, channels = x.shape
    h = initial.to(wide) if initial is not None else xs.new_zeros(batch, channels, A.shape[1])
    keep = None if starts is None else (~starts.bool()).to(wide)
    states, decays, factors = [h], [], []
    for t in range(length):
        decay, factor = _discretize(d[:, t], As, exact)
        factors.append((decay, factor))
        if keep is not None:
            decay = decay * keep[:, t, None, None]
        decays.append(decay)
        states.append(decay * states[-1] + factor * (xs[:, t, :, None] * Bs[:, t, None, :]))
    z_grad = xs.new_zeros(0)
    if z is not None:
        before = z.to(wide)
        plain = [(h * Cs[:, t, None, :]).sum(-1) for t, h in enumerate(states[1:])]
        y = torch.stack(plain, 1) if plain else torch.zeros_like(xs)
        if D is not None:
            y = y + D.to(wide) * xs
        opened = torch.sigmoid(before)
        z_grad = gradient * y * opened * (1 + before * (1 - opened))
        gradient = gradient * before * opened
    carry = last_grad.to(wide) if last_grad is not None else torch.zeros_like(h)
    x_grad, d_grad = torch.zeros_like(xs), torch.zeros_like(d)
    A_grad, B_grad, C_grad = torch.zeros_like(As), torch.zeros_like(Bs), torch.zeros_like(Cs)
    for t in reversed(range(length)):
        g = gradient[:, t, :, None] * Cs[:, t, None, :] + carry
        carry = decays[t] * g
        C_grad[:, t] = (gradient[:, t, :, None] * states[t + 1]).sum(1)
        through = carry * states[t]
        whole, factor = factors[t]
        fed = g * Bs[:, t, None, :]
        B_grad[:, t] = (g * factor * xs[:, t, :, None]).sum(1)
        x_grad[:, t] = (fed * factor).sum(-1)
        fed = fed * xs[:, t, :, None]
        d_grad[:, t] = (through * As).sum(-1) + (fed * whole if exact else fed).sum(-1)
        A_grad += (through * d[:, t, :, None]).sum(0)
        if exact:
            A_grad += (fed * _hold_bend(d[:, t, :, None], As, whole, factor)).sum(0)
    D_grad = (gradient * xs).sum((0, 1)) if D is not None else xs.new_zeros(0)
    if D is not None:
        x_grad = x_grad + gradient * D.to(wide)
    if softplus:
        d_grad = d_grad * -torch.expm1(-d)
    bias_grad = d_grad.sum((0, 1)) if delta_bias is not None else xs.new_zeros(0)
    initial_grad = carry.clone() if initial is not None else xs.new_zeros(0)
    return _as_given(
        [x_grad, d_grad, A_grad, B_grad, C_grad, D_grad, z_grad, bias_grad, initial_grad],
        (x, delta, A, B, C, D, z, delta_bias, initial),
    )


def _as_given(gradients: list[Tensor], given: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [g if t is None else g.to(t.dtype) for g, t in zip(gradients, given)]


def _compiled_takes(x: Tensor, A: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and 1 <= A.shape[1] <= MAX_STATES
        and x.numel() > 0
        and native() is not None
    )


def _padded(vector: Tensor | None, width: int) -> Tensor | None:
    if vector is None:
        return None
    return torch.nn.functional.pad(vector.float(), (0, width - vector.shape[-1])).contiguous()


class _Prepared:
    """A compiled scan and the tensors it points to."""

    def __init__(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
        borders: Tensor | None,
    ) -> None:  # fmt: skip
        module = native()
        assert module is not None
        batch, length, channels = x.shape
        states, kind = A.shape[1], x.dtype
        width = -(-channels // LANES) * LANES
        self.width = width
        (x, x_row), (delta, delta_row) = gate.rows(x, kind), gate.rows(delta, kind)
        z, z_row = (None, 0) if z is None else gate.rows(z, kind)
        # -1 in the channels that are not there: an exact hold divides by A.
        rates = torch.nn.functional.pad(A.float().t(), (0, width - channels), value=-1.0).contiguous()
        B, C = B.float().contiguous(), C.float().contiguous()
        D, delta_bias = _padded(D, width), _padded(delta_bias, width)
        starts = None if starts is None else starts.to(torch.uint8).contiguous()
        initial = None if initial is None else initial.float().contiguous()
        self.kept = (x, delta, z, rates, B, C, D, delta_bias, starts, initial, borders)
        self.scan = module.Scan(batch, length, channels, states, kind is torch.bfloat16, softplus, exact)
        wide, shape, fp32 = (batch, length, states), (batch, length, channels), torch.float32
        self.scan.inputs(
            gate.rows_address(x, x_row, kind, shape), x_row,
            gate.rows_address(delta, delta_row, kind, shape), delta_row,
            gate.rows_address(z, z_row, kind, shape), z_row, gate.address(rates, fp32, states, width),
            gate.address(B, fp32, *wide), gate.address(C, fp32, *wide), gate.address(D, fp32, width),
            gate.address(delta_bias, fp32, width), gate.address(starts, torch.uint8, batch, length),
            gate.address(initial, fp32, batch, channels, states),
            gate.address(borders, fp32, *_border_shape(x, A, True)),
        )  # fmt: skip


def _border_shape(x: Tensor, A: Tensor, keep: bool) -> tuple[int, ...]:
    """(batch, channels / 16, chunks, states, 16) as one dimension: compilers guard on each that may be 1."""
    if not keep:
        return (0,)
    return (x.shape[0] * -(-x.shape[2] // LANES) * -(-x.shape[1] // CHUNK) * A.shape[1] * LANES,)


@torch.library.impl("hasten::selective_scan", ("cpu", "cuda", "mps"))
def _selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _check(x, delta, A, B, C, D, z, delta_bias, initial, starts)
    wide = gate.wide(x.dtype)
    borders = x.new_empty(_border_shape(x, A, keep), dtype=wide)
    if not _compiled_takes(x, A):
        y, last = _forward_reference(x, delta, A, B, C, D, z, delta_bias, initial, starts, softplus, exact)
        return y.contiguous(), last.contiguous(), borders.zero_()
    scan = _Prepared(x, delta, A, B, C, D, z, delta_bias, initial, starts, softplus, exact, borders if keep else None)
    y = x.new_empty(x.shape)
    last = x.new_empty(x.shape[0], x.shape[2], A.shape[1], dtype=torch.float32)
    scan.scan.forward(
        gate.address(y, x.dtype, *x.shape), gate.address(last, torch.float32, x.shape[0], x.shape[2], A.shape[1]),
        torch.get_num_threads(),
    )  # fmt: skip
    return y, last, borders


@gate.register_fake("hasten::selective_scan")
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = gate.wide(x.dtype)
    last = x.new_empty(x.shape[0], x.shape[2], A.shape[1], dtype=wide)
    return x.new_empty(x.shape), last, x.new_empty(_border_shape(x, A, keep), dtype=wide)


@register("hasten::selective_scan")
def _(call: Call) -> None:
    """Two Einsums over (batch, time, channel, state) in one launch; the running state is all that stays.

    Only when a gradient is wanted are the states at the chunks' borders written too.
    """
    x, rates = call["x"], call["A"]
    y, last, borders = call.outputs
    batch, length, channels = x.shape
    ranks = (("b", batch), ("t", length), ("c", channels), ("n", rates.shape[1]))
    btc, btn, cn, bcn = ["b", "t", "c"], ["b", "t", "n"], ["c", "n"], ["b", "c", "n"]
    state = [call.read(call["initial"], bcn)] if call["initial"] is not None else []
    vectors = [call.read(t, ["c"]) for t in (call["delta_bias"],) if t is not None]
    driven = [call.read(x, btc), call.read(call["delta"], btc), call.read(rates, cn), call.read(call["B"], btn)]
    call.emit(Op.SCAN, ranks, [*driven, *vectors, *state], last, bcn, map="exp-decay", iterative=["t"])
    gates = [call.read(t, btc) for t in (call["z"],) if t is not None]
    skips = [call.read(t, ["c"]) for t in (call["D"],) if t is not None]
    read = [call.read(last, bcn), call.read(call["C"], btn), *skips, *gates]
    call.emit(Op.REDUCE, ranks, read, y, btc, map="mul", reduce="sum")
    if call["keep"]:
        kept = axes(borders.shape)
        names = [r for r, _ in kept]
        call.emit(Op.COPY, kept, [call.read(last, names, last.numel())], borders, names, map="copy")


@torch.library.impl("hasten::selective_scan_backward", ("cpu", "cuda", "mps"))
def _selective_scan_backward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
    borders: Tensor, y_grad: Tensor, last_grad: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    given = (x, delta, A, B, C, D, z, delta_bias, initial)
    known = _check(*given, starts)
    gate.dtypes("selective_scan_backward", gate.FLOATS, borders=borders, y_grad=y_grad, last_grad=last_grad)
    gate.sizes("selective_scan_backward", known, y_grad=(y_grad, "b t c"), last_grad=(last_grad, "b c n"))
    if tuple(borders.shape) != _border_shape(x, A, True):
        raise ValueError(
            "selective_scan_backward: the states to start from were not kept: run the forward pass with keep=True, "
            "under enabled gradients"
        )
    if not _compiled_takes(x, A):
        return _backward_reference(*given, starts, softplus, exact, y_grad, last_grad)
    scan = _Prepared(*given, starts, softplus, exact, borders.float().contiguous())
    threads = torch.get_num_threads()
    (batch, length, channels), states, width = x.shape, A.shape[1], scan.width
    gradient, fp32, kind = y_grad.to(x.dtype).contiguous(), torch.float32, x.dtype
    state_gradient = None if last_grad is None else last_grad.float().contiguous()
    x_grad, delta_grad = x.new_empty(x.shape), x.new_empty(x.shape)
    z_grad = x.new_empty(x.shape if z is not None else 0)
    A_grad = gate.zeros(threads, states, width)
    B_grad, C_grad = gate.zeros(2, threads, batch, length, states)
    D_grad, bias_grad = gate.zeros(2, threads, width)
    initial_grad = x.new_empty((batch, channels, states) if initial is not None else 0, dtype=torch.float32)
    scan.scan.backward(
        gate.address(gradient, kind, *x.shape), gate.address(state_gradient, fp32, batch, channels, states),
        gate.address(x_grad, kind, *x.shape), gate.address(delta_grad, kind, *x.shape),
        gate.address(z_grad, kind, *z_grad.shape), gate.address(A_grad, fp32, threads, states, width),
        gate.address(B_grad, fp32, threads, batch, length, states),
        gate.address(C_grad, fp32, threads, batch, length, states), gate.address(D_grad, fp32, threads, width),
        gate.address(bias_grad, fp32, threads, width),
        gate.address(initial_grad if initial is not None else None, fp32, batch, channels, states), threads,
    )  # fmt: skip
    return _as_given(
        [
            x_grad, delta_grad, A_grad.sum(0)[:, :channels].t().contiguous(), B_grad.sum(0), C_grad.sum(0),
            D_grad.sum(0)[:channels].clone() if D is not None else x.new_zeros(0, dtype=torch.float32), z_grad,
            bias_grad.sum(0)[:channels].clone() if delta_bias is not None else x.new_zeros(0, dtype=torch.float32),
            initial_grad,
        ],
        given,
    )  # fmt: skip


def random_inputs(length: int, channels: int, states: int, generator: torch.Generator) -> list[Tensor]:
    """x, delta, A, B and C of one random sequence, which gradients are asked of: for timing."""
    found = [
        torch.randn(1, length, channels, generator=generator),
        torch.rand(1, length, channels, generator=generator) * 0.1,
        -torch.rand(channels, states, generator=generator) * 16,
        torch.randn(1, length, states, generator=generator),
        torch.randn(1, length, states, generator=generator),
    ]
    return [tensor.requires_grad_() for tensor in found]


@gate.register_fake("hasten::selective_scan_backward")
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial: Tensor | None, starts: Tensor | None, softplus: bool, exact: bool,
    borders: Tensor, y_grad: Tensor, last_grad: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    given = (x, delta, A, B, C, D, z, delta_bias, initial)
    wide = gate.wide(x.dtype)
    return [x.new_empty(0, dtype=wide) if t is None else t.new_empty(t.shape) for t in given]


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    *tensors, softplus, exact, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = (softplus, exact)  # type: ignore[attr-defined]


def _gradients(
    ctx: torch.autograd.function.FunctionCtx, y_grad: Tensor, last_grad: Tensor | None, _: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, borders = ctx.saved_tensors  # type: ignore[attr-defined]
    gradients = torch.ops.hasten.selective_scan_backward(*tensors, *ctx.options, borders, y_grad, last_grad)  # type: ignore[attr-defined]
    wanted = [g if t is not None else None for g, t in zip(gradients, tensors)]
    return (*wanted, None, None, None, None)


torch.library.register_autograd("hasten::selective_scan", _gradients, setup_context=_keep)
gate.once_differentiable("hasten::selective_scan_backward")
