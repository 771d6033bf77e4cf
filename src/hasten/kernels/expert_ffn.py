"""A feed-forward layer of many small experts that reads those experts alone that are in use.

For a chunk of tokens x (tokens, width), scores a (tokens, experts), and experts of ``each`` inner values whose rows lie
together in both weights U and D, (experts * each, width):

    y[t] = sum over experts i of a[t, i] * sum over their rows j of silu(U[j] . x[t]) D[j]

An expert is inactive for a token where its score is exactly 0, and is not read at all where it is so for the whole
chunk (BlockFFN, arXiv 2507.08771, section 3.3): the cost is that of the union of the tokens' experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.kernels.compiled import native
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

# Beyond so many tokens the rows in use are gathered and multiplied by the platform's matrix product.
FEW_TOKENS = 16
# With more experts than this share in use, gathering them costs more than it saves.
_DENSE = 0.7

torch.library.define("hasten::expert_ffn", "(Tensor x, Tensor scores, Tensor up, Tensor down) -> Tensor")
torch.library.define(
    "hasten::expert_ffn_backward", "(Tensor grad, Tensor x, Tensor scores, Tensor up, Tensor down) -> Tensor[]"
)


def expert_ffn(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The layer of this module's formula.

    Args:
        x: (..., width), fp32 or bf16 (fp64 in plain torch).
        scores: (..., experts); 0 is inactive.
        up, down: U and D (experts * each, width), fp32 or bf16.

    Returns:
        As x.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if up.shape != down.shape or up.shape[1] != x.shape[-1] or up.shape[0] % max(scores.shape[-1], 1):
        raise ValueError(
            f"weights {tuple(up.shape)} and {tuple(down.shape)} do not fit x {tuple(x.shape)} and "
            f"{scores.shape[-1]} experts"
        )
    if scores.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"scores {tuple(scores.shape)} are not of the tokens of x {tuple(x.shape)}")
    y = torch.ops.hasten.expert_ffn(x.reshape(-1, x.shape[-1]), scores.reshape(-1, scores.shape[-1]), up, down)
    return y.reshape(x.shape)


def reference(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`expert_ffn` as a dense layer in plain torch; autograd differentiates it."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    each = up.shape[0] // scores.shape[-1]
    inner = F.silu(x.to(wide) @ up.to(wide).T) * scores.to(wide).repeat_interleave(each, -1)
    return (inner @ down.to(wide)).to(x.dtype)


def used(scores: Tensor) -> Tensor:
    """Experts (count), int64, that at least one token of scores (..., experts) uses, in order."""
    return (scores.reshape(-1, scores.shape[-1]) != 0).any(0).nonzero()[:, 0]


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
    x32, a32, chosen = x.float().contiguous(), scores.float().contiguous(), union.to(torch.int32)
    up, down = up.contiguous(), down.to(up.dtype).contiguous()
    inner, y = torch.empty(max(1, len(chosen) * each), tokens), torch.empty(tokens, width)
    products = module.expert_ffn(
        x32.data_ptr(), a32.data_ptr(), up.data_ptr(), down.data_ptr(), up.dtype is torch.bfloat16, chosen.data_ptr(),
        len(chosen), tokens, width, experts, each, inner.data_ptr(), y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y.to(x.dtype), products


def _rows(union: Tensor, each: int) -> Tensor:
    """Weight rows of some experts."""
    return (union[:, None] * each + torch.arange(each, device=union.device)).reshape(-1)


def _gathered(scores: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scores and weights of the experts in use, and their rows; all, and None, where gathering does not pay."""
    union, experts = used(scores), scores.shape[1]
    if len(union) > _DENSE * experts:
        return scores, up, down, None
    rows = _rows(union, up.shape[0] // experts)
    return scores[:, union], up[rows], down[rows], rows


@torch.library.impl("hasten::expert_ffn", ("cpu", "cuda", "mps"))
def _expert_ffn(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
    if (
        0 < x.shape[0] <= FEW_TOKENS
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and up.dtype in (torch.float32, torch.bfloat16)
        and native() is not None
    ):
        return _compiled(x, scores, up, down, used(scores))[0]
    a, u, d, _ = _gathered(scores, up, down)
    if not u.shape[0]:
        return torch.zeros_like(x)
    return reference(x, a, u, d)


@torch.library.register_fake("hasten::expert_ffn")
def _(x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
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
def _expert_ffn_backward(grad: Tensor, x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> list[Tensor]:
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    experts = scores.shape[1]
    each = up.shape[0] // experts
    # The scores' gradient needs every expert that has one: an inactive expert's score is 0 by the router's ReLU, which
    # lets no gradient through, so the experts in use are enough.
    a, u, d, rows = (
        t if t is None else t.to(wide) if t.is_floating_point() else t for t in _gathered(scores, up, down)
    )
    assert a is not None
    assert u is not None
    assert d is not None
    g, v = grad.to(wide), x.to(wide)
    before = v @ u.T
    gate = torch.sigmoid(before)
    active = before * gate
    weight = a.repeat_interleave(each, 1)
    back = g @ d.T
    scores_part = (back * active).reshape(x.shape[0], -1, each).sum(2)
    inner = back * weight * gate * (1 + before * (1 - gate))
    down_part, up_part = (active * weight).T @ g, inner.T @ v
    scores_grad = torch.where(scores != 0, _spread(scores_part, used(scores), experts, rows), 0)
    whole = [part if rows is None else torch.zeros_like(w, dtype=wide).index_copy_(0, rows, part)
             for part, w in ((up_part, up), (down_part, down))]  # fmt: skip
    return [(inner @ u).to(x.dtype), scores_grad.to(scores.dtype), whole[0].to(up.dtype), whole[1].to(down.dtype)]


def _spread(part: Tensor, union: Tensor, experts: int, rows: Tensor | None) -> Tensor:
    if rows is None:
        return part
    return part.new_zeros(part.shape[0], experts).index_copy_(1, union, part)


@torch.library.register_fake("hasten::expert_ffn_backward")
def _(grad: Tensor, x: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, scores, up, down)]


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.ops.hasten.expert_ffn_backward(grad, *ctx.saved_tensors))  # type: ignore[attr-defined]


torch.library.register_autograd("hasten::expert_ffn", _gradients, setup_context=_keep)
