"""A feed-forward layer of many small experts that reads those experts alone that are in use.

For a chunk of tokens x (tokens, width), scores a (tokens, experts), and experts of ``each`` inner values whose rows lie
together in both weights U and D, (experts * each, width):

    y[t] = sum over experts i of a[t, i] * sum over their rows j of silu(U[j] . x[t]) D[j]

An expert is inactive for a token where its score is exactly 0 (or where ``active`` says so), and is not read at all
where it is so for the whole chunk (BlockFFN, arXiv 2507.08771, section 3.3): the cost is that of the union of the
tokens' experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

# Beyond so many tokens the rows in use are gathered and multiplied by the platform's matrix product.
FEW_TOKENS = 16
# With more experts than this share in use, gathering them costs more than it saves.
_DENSE = 0.7

torch.library.define(
    "hasten::expert_ffn", "(Tensor x, Tensor scores, Tensor up, Tensor down, Tensor? active=None) -> Tensor"
)
torch.library.define(
    "hasten::expert_ffn_backward",
    "(Tensor grad, Tensor x, Tensor scores, Tensor up, Tensor down, Tensor? active=None) -> Tensor[]",
)


def expert_ffn(x: Tensor, scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None = None) -> Tensor:
    """The layer of this module's formula.

    Args:
        x: (..., width), fp32 or bf16 (fp64 in plain torch).
        scores: (..., experts); 0 is inactive, unless ``active`` says otherwise.
        active: (..., experts) bool: which experts a token uses, where a score may be 0 by itself, as where a gain is
            exactly 0: its gradient is not.
        up, down: U and D (experts * each, width), fp32 or bf16.

    Returns:
        As x.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if not x.ndim or up.shape != down.shape or up.shape[-1] != x.shape[-1] or up.shape[0] % max(scores.shape[-1], 1):
        raise ValueError(
            f"weights {tuple(up.shape)} and {tuple(down.shape)} do not fit x {tuple(x.shape)} and "
            f"{scores.shape[-1]} experts"
        )
    if scores.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"scores {tuple(scores.shape)} are not of the tokens of x {tuple(x.shape)}")
    if active is not None and active.shape != scores.shape:
        raise ValueError(f"active is {tuple(active.shape)}, not {tuple(scores.shape)} as the scores")
    tokens, experts = math.prod(x.shape[:-1]), scores.shape[-1]
    flags = None if active is None else active.reshape(tokens, experts)
    flat = x.reshape(tokens, x.shape[-1]), scores.reshape(tokens, experts)
    gate.no_tangents("expert_ffn", x, scores, up, down)
    return torch.ops.hasten.expert_ffn(*flat, up, down, flags).reshape(x.shape)


def _check(x: Tensor, scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None) -> None:
    gate.dtypes("expert_ffn", gate.FLOATS, x=x, scores=scores, up=up, down=down)
    gate.dtypes("expert_ffn", (torch.bool,), active=active)
    found = gate.sizes(
        "expert_ffn", x=(x, "m k"), scores=(scores, "m e"), up=(up, "n k"), down=(down, "n k"), active=(active, "m e")
    )
    if found["n"] % max(found["e"], 1) or (found["n"] and not found["e"]):
        raise ValueError(
            f"weights {tuple(up.shape)} and {tuple(down.shape)} do not fit x {tuple(x.shape)} and {found['e']} experts"
        )


def reference(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`expert_ffn` as a dense layer in plain torch; autograd differentiates it."""
    wide = gate.wide(x.dtype)
    each = up.shape[0] // scores.shape[-1]
    inner = F.silu(x.to(wide) @ up.to(wide).T) * scores.to(wide).repeat_interleave(each, -1)
    return (inner @ down.to(wide)).to(x.dtype)


def used(scores: Tensor, active: Tensor | None = None) -> Tensor:
    """Experts (count), int64, that at least one token of scores, or of active (..., experts), uses, in order."""
    uses = scores != 0 if active is None else active.bool()
    return uses.reshape(-1, scores.shape[-1]).any(0).nonzero()[:, 0]


def rows_multiplied(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> int:
    """How many rows of U the compiled kernel multiplies with a token: the work that it really does.

    Raises:
        ValueError: the compiled kernels are missing.
    """
    if native() is None:
        raise ValueError("the compiled kernels are not installed")
    return _compiled(x, scores, up, down, used(scores))[1]


def _compiled(x: Tensor, scores: Tensor, up: Tensor, down: Tensor, union: Tensor) -> tuple[Tensor, int]:
    module = native()
    assert module is not None
    tokens, width = x.shape
    experts = scores.shape[1]
    each = up.shape[0] // experts
    x32, a32, chosen = x.float().contiguous(), scores.float().contiguous(), union.to(torch.int32).contiguous()
    up, down = up.contiguous(), down.to(up.dtype).contiguous()
    inner, y = gate.buffer(max(1, len(chosen) * each), tokens), gate.buffer(tokens, width)
    fp32, rows = torch.float32, experts * each
    products = module.expert_ffn(
        gate.address(x32, fp32, tokens, width), gate.address(a32, fp32, tokens, experts),
        gate.address(up, up.dtype, rows, width), gate.address(down, up.dtype, rows, width), up.dtype is torch.bfloat16,
        gate.address(chosen, torch.int32, len(chosen)), len(chosen), tokens, width, experts, each,
        gate.address(inner, fp32, *inner.shape), gate.address(y, fp32, tokens, width), torch.get_num_threads(),
    )  # fmt: skip
    return y.to(x.dtype), products


def _rows(union: Tensor, each: int) -> Tensor:
    """Weight rows of some experts."""
    return (union[:, None] * each + torch.arange(each, device=union.device)).reshape(-1)


def _gathered(
    scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scores and weights of the experts in use, and their rows; all, and None, where gathering does not pay."""
    union, experts = used(scores, active), scores.shape[1]
    if len(union) > _DENSE * experts:
        return scores, up, down, None
    rows = _rows(union, up.shape[0] // experts)
    return scores[:, union], up[rows], down[rows], rows


@torch.library.impl("hasten::expert_ffn", ("cpu", "cuda", "mps"))
def _expert_ffn(x: Tensor, scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None = None) -> Tensor:
    _check(x, scores, up, down, active)
    if (
        0 < x.shape[0] <= FEW_TOKENS
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and up.dtype in (torch.float32, torch.bfloat16)
        and native() is not None
    ):
        return _compiled(x, scores, up, down, used(scores))[0]
    a, u, d, _ = _gathered(scores, up, down, None)  # a score of 0 adds nothing, whatever is active
    if not u.shape[0]:
        return torch.zeros_like(x)
    return reference(x, a, u, d)


@gate.register_fake("hasten::expert_ffn")
def _(x: Tensor, scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape)


@register("hasten::expert_ffn")
def _(call: Call) -> None:
    """Both products over every expert: which of them are in use only real tokens tell."""
    x, scores, up, down = call["x"], call["scores"], call["up"], call["down"]
    m, k = x.shape
    ranks = (("m", m), ("n", up.shape[0]), ("k", k))
    inner = call.temporary((m, up.shape[0]), x.dtype)
    call.emit(Op.MATMUL, ranks, [call.read(x, ["m", "k"]), call.read(up, ["n", "k"])], inner, ["m", "n"], reduce="sum")
    scored = [call.read(inner, ["m", "n"]), call.read(scores, ["m", "n"], scores.numel())]
    active = call.temporary((m, up.shape[0]), x.dtype)
    call.emit(Op.ELEMENTWISE, ranks[:2], scored, active, ["m", "n"], map="silu")
    swapped = (("m", m), ("n", k), ("k", up.shape[0]))
    inputs = [call.read(active, ["m", "k"]), call.read(down, ["k", "n"])]
    call.emit(Op.MATMUL, swapped, inputs, call.outputs[0], ["m", "n"], reduce="sum")


@torch.library.impl("hasten::expert_ffn_backward", ("cpu", "cuda", "mps"))
def _expert_ffn_backward(
    grad: Tensor, x: Tensor, scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None = None
) -> list[Tensor]:
    _check(x, scores, up, down, active)
    gate.dtypes("expert_ffn_backward", gate.FLOATS, grad=grad)
    gate.sizes("expert_ffn_backward", x=(x, "m k"), grad=(grad, "m k"))
    wide = gate.wide(x.dtype)
    experts = scores.shape[1]
    each = up.shape[0] // max(experts, 1)
    # The scores' gradient needs every expert that has one: an inactive expert's score is 0 by the router's ReLU, which
    # lets no gradient through, so the experts in use are enough.
    a, u, d, rows = (
        t if t is None else t.to(wide) if t.is_floating_point() else t for t in _gathered(scores, up, down, active)
    )
    assert a is not None
    assert u is not None
    assert d is not None
    g, v = grad.to(wide), x.to(wide)
    before = v @ u.T
    opened = torch.sigmoid(before)
    values = before * opened
    weight = a.repeat_interleave(each, 1)
    back = g @ d.T
    scores_part = (back * values).unflatten(1, (a.shape[1], each)).sum(2)
    inner = back * weight * opened * (1 + before * (1 - opened))
    down_part, up_part = (values * weight).T @ g, inner.T @ v
    uses = scores != 0 if active is None else active
    scores_grad = torch.where(uses, _spread(scores_part, used(scores, active), experts, rows), 0)
    whole = [part if rows is None else torch.zeros_like(w, dtype=wide).index_copy_(0, rows, part)
             for part, w in ((up_part, up), (down_part, down))]  # fmt: skip
    return [(inner @ u).to(x.dtype), scores_grad.to(scores.dtype), whole[0].to(up.dtype), whole[1].to(down.dtype)]


def _spread(part: Tensor, union: Tensor, experts: int, rows: Tensor | None) -> Tensor:
    if rows is None:
        return part
    return part.new_zeros(part.shape[0], experts).index_copy_(1, union, part)


@gate.register_fake("hasten::expert_ffn_backward")
def _(grad: Tensor, x: Tensor, scores: Tensor, up: Tensor, down: Tensor, active: Tensor | None = None) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, scores, up, down)]


@register("hasten::expert_ffn_backward")
def _(call: Call) -> None:
    """Five products over every expert: U x again, D's gradient and what goes back through it, U's, and x's."""
    grad, x, scores, up, down = (call[name] for name in ("grad", "x", "scores", "up", "down"))
    x_grad, scores_grad, up_grad, down_grad = call.outputs
    ranks, mk, nk, mn = (("m", x.shape[0]), ("n", up.shape[0]), ("k", x.shape[1])), ["m", "k"], ["n", "k"], ["m", "n"]
    before, back, inner, values = (call.temporary((x.shape[0], up.shape[0]), x.dtype) for _ in range(4))
    call.emit(Op.MATMUL, ranks, [call.read(x, mk), call.read(up, nk)], before, mn, reduce="sum")
    call.emit(Op.MATMUL, ranks, [call.read(grad, mk), call.read(down, nk)], back, mn, reduce="sum")
    scored = call.read(scores, mn, scores.numel())
    both = [call.read(before, mn), call.read(back, mn)]
    call.emit(Op.ELEMENTWISE, ranks[:2], [call.read(before, mn), scored], values, mn, map="silu")
    call.emit(Op.REDUCE, ranks[:2], both, scores_grad, mn, elements=scores.numel(), map="silu", reduce="sum")
    call.emit(Op.ELEMENTWISE, ranks[:2], [*both, scored], inner, mn, map="silu-slope")
    call.emit(Op.MATMUL, ranks, [call.read(values, mn), call.read(grad, mk)], down_grad, nk, reduce="sum")
    call.emit(Op.MATMUL, ranks, [call.read(inner, mn), call.read(x, mk)], up_grad, nk, reduce="sum")
    call.emit(Op.MATMUL, ranks, [call.read(inner, mn), call.read(up, nk)], x_grad, mk, reduce="sum")


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.hasten.expert_ffn_backward(grad, *ctx.saved_tensors), None)  # type: ignore[attr-defined]


torch.library.register_autograd("hasten::expert_ffn", _gradients, setup_context=_keep)
gate.once_differentiable("hasten::expert_ffn_backward")
