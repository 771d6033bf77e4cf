"""Residual stacks cut short: branches side by side in place of one after the other (arXiv 2309.08414).

A stack y = (I + F_D) ... (I + F_1) x expands into x, the sum of all F_i(x), and terms of two and more of them. Without
those it is one shallow layer of the same weights and multiply-accumulates, and D - 1 fewer steps wait for each other.
What is left out is small where the branches are; `taylor_gap` says how much it is on given data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from hasten.cost.preserving import evaluating, fold_normalization, hooked
from hasten.errors import HastenError
from hasten.nn.block import Block

__all__ = ["GroupSum", "ResidualBranch", "ResidualStack", "TaylorGap", "fuse_parallel", "taylor_gap", "to_parallel"]


class ResidualBranch(Block):
    """What a residual block adds to its input: ``block(x) - x``, whatever the block does after its sum.

    Args:
        block: of equal input and output shape; further arguments are passed on to it.

    Shapes: those of the block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.block(x, *args, **kwargs)
        return y - x

    if TYPE_CHECKING:
        __call__ = forward


class ResidualStack(Block):
    """Residual branches in groups: within a group side by side, one group after the other.

    Groups of one are the ordinary deep network, a single group the shallow one.

    Args:
        branches: F_i, from a tensor to one of its shape; further arguments of a call are passed on to each that is no
            ``nn.Sequential``, which takes none.
        groups: how many, of sizes that differ by one at most, the larger ones first; or the sizes themselves. As many
            as branches when None.
        order: 1 for the sum of branches; 2 adds F_j'(x) F_i(x) of each i before j of a group, by forward derivatives.

    Shapes: any, the same for input and output.

    Raises:
        HastenError: no branch, groups that do not divide the branches among them, or another order.

    >>> stack = ResidualStack([nn.Linear(4, 4) for _ in range(5)], groups=2)
    >>> stack.sizes
    (3, 2)
    """

    def __init__(
        self, branches: Sequence[nn.Module], groups: int | Sequence[int] | None = None, order: int = 1
    ) -> None:
        super().__init__()
        count = len(branches)
        groups = count if groups is None else groups
        if isinstance(groups, int):
            if not 1 <= groups <= count:
                raise HastenError(f"a stack of {count} branches has 1 to {count} groups, not {groups}")
            groups = [count // groups + (i < count % groups) for i in range(groups)]
        if not groups or min(groups) < 1 or sum(groups) != count:
            raise HastenError(f"a stack of {count} branches has groups of that sum, each from 1: got {list(groups)}")
        if order not in (1, 2):
            raise HastenError(f"a stack is expanded to order 1 or 2, not {order}")
        self.branches = nn.ModuleList(branches)
        self.sizes = tuple(groups)
        self.order = order

    def _groups(self) -> Iterator[list[nn.Module]]:
        first = 0
        for size in self.sizes:
            yield list(self.branches)[first : first + size]
            first += size

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        for group in self._groups():
            if self.order == 2 and len(group) > 1:
                x = x + _second_order(group, x, args, kwargs)
                continue
            # The first whole block has the input in it: a group of one is that block to the last bit.
            first, *others = group
            if isinstance(first, ResidualBranch):
                y: Tensor = first.block(x, *args, **kwargs)
            else:
                y = x + _added(first, x, args, kwargs)
            for branch in others:
                y = y + _added(branch, x, args, kwargs)
            x = y
        return x

    if TYPE_CHECKING:
        __call__ = forward


def _added(branch: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    y: Tensor = branch(x) if isinstance(branch, nn.Sequential) else branch(x, *args, **kwargs)
    return y


def _second_order(group: Sequence[nn.Module], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Sums of F_i(x) and of F_j'(x) F_i(x) for i before j."""
    added = total = _added(group[0], x, args, kwargs)
    # Fused attention has no forward derivative.
    with sdpa_kernel(SDPBackend.MATH):
        for branch in group[1:]:
            made, along = jvp(lambda v: _added(branch, v, args, kwargs), (x,), (added,))[:2]  # noqa: B023
            total = total + made + along
            added = added + made
    return total


def to_parallel(
    stack: ResidualStack | Sequence[nn.Module] | nn.Sequential | nn.ModuleList,
    groups: int = 1,
    order: int = 1,
    *,
    copied: bool = False,
) -> ResidualStack:
    """A stack of residual blocks with those of a group side by side.

    Args:
        stack: a `ResidualStack`, or whole residual blocks, each of equal input and output shape.
        groups: how many there are one after the other: 1 is wholly parallel.
        order: of `ResidualStack`.
        copied: whether it has weights of its own, rather than those of ``stack``.

    Raises:
        HastenError: as `ResidualStack`.

    >>> blocks = nn.Sequential(*(ResidualBranch(nn.Linear(4, 4)) for _ in range(3)))
    >>> x = torch.randn(2, 4)
    >>> torch.equal(to_parallel(blocks, groups=3)(x), blocks(x))
    True
    """
    if isinstance(stack, ResidualStack):
        branches = list(stack.branches)
    else:
        branches = [ResidualBranch(block) for block in stack]
    made = ResidualStack(branches, groups, order)
    return copy.deepcopy(made) if copied else made


class GroupSum(Block):
    """The sum of equal parts of the channels.

    Args:
        parts: how many.
        dim: of the channels, counted from the end where negative.

    Shapes: (..., parts x channels, ...) to (..., channels, ...).
    """

    def __init__(self, parts: int, dim: int) -> None:
        super().__init__()
        self.parts, self.dim = parts, dim

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(self.dim, (self.parts, -1)).sum(self.dim if self.dim >= 0 else self.dim - 1)

    if TYPE_CHECKING:
        __call__ = forward


_PLAIN = (nn.Conv2d, nn.Linear)
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU, nn.LeakyReLU,
    nn.Softplus, nn.Mish,
)  # fmt: skip


def fuse_parallel(stack: ResidualStack) -> ResidualStack:
    """A copy for inference that has one broad layer for alike branches of a group: the same in fewer, larger products.

    Such branches are a convolution or linear layer, an activation, and at most one layer more; a layer norm may stand
    before linear ones, and batch norms behind convolutions are folded first. First layers become one of all their
    outputs. Second ones become one, whose products are the sum already; without second ones parts are summed. Other
    branches of a group stay beside it.

    Args:
        stack: of order 1; stays as it is.

    Raises:
        HastenError: no two branches of a group are alike in all but their weights and inner widths, or the order is 2.
    """
    if stack.order != 1:
        raise HastenError("a stack of order 2 has derivatives between its branches: fuse one of order 1")
    # Nothing is trained in a copy for inference: dropout is gone, statistics are fixed.
    copied = fold_normalization(stack)
    groups = [_fused(group) for group in copied._groups()]
    made = [branch for group in groups for branch in group]
    if len(made) == len(stack.branches):
        raise HastenError(
            "no two branches of a group are a dense layer, an activation and at most one layer more, of equal kernels:"
            " nothing can be fused"
        )
    return ResidualStack(made, [len(group) for group in groups]).eval()


def _fused(group: Sequence[nn.Module]) -> list[nn.Module]:
    """A group's branches, alike ones as one."""
    alike: dict[object, list[nn.Module]] = {}
    for i, branch in enumerate(group):
        form = _branch_form(_parts(branch))
        alike.setdefault(i if form is None else form, []).append(branch)
    return [several[0] if len(several) == 1 else _broad(several) for several in alike.values()]


def _parts(branch: nn.Module) -> list[nn.Module]:
    """The layers that a branch is, one after the other."""
    if isinstance(branch, nn.Sequential):
        return [layer for part in branch for layer in _parts(part)]
    return [] if isinstance(branch, nn.Identity | nn.Dropout | nn.Dropout2d) else [branch]


def _branch_form(layers: Sequence[nn.Module]) -> tuple[object, ...] | None:
    """What branches of one form have in common; None for one that cannot be fused."""
    normed = bool(layers) and isinstance(layers[0], nn.LayerNorm)
    rest = layers[1:] if normed else layers
    fits = (
        len(rest) in (1, 2, 3)
        and type(rest[0]) in ((nn.Linear,) if normed else _PLAIN)
        and (len(rest) < 2 or isinstance(rest[1], _ACTIVATIONS))
        and (len(rest) < 3 or type(rest[2]) is type(rest[0]))
        and all(c.groups == 1 and c.padding_mode == "zeros" for c in rest if isinstance(c, nn.Conv2d))
        and not any(map(hooked, layers))
    )
    return tuple(_form(layer) for layer in layers) if fits else None


def _broad(group: Sequence[nn.Module]) -> nn.Sequential:
    """One branch that is the sum of several of one form."""
    columns = [_parts(branch) for branch in group]
    first = columns[0]
    made: list[nn.Module] = []
    if isinstance(first[0], nn.LayerNorm):
        made.append(nn.LayerNorm(first[0].normalized_shape, first[0].eps, elementwise_affine=False))
        firsts: list[nn.Module] = [_absorbed(column[0], column[1]) for column in columns]
        columns = [column[1:] for column in columns]
    else:
        firsts = [column[0] for column in columns]
    made.append(_side_by_side(firsts))
    made += columns[0][1:2]
    if len(columns[0]) == 3:
        made.append(_summed([column[2] for column in columns]))
    else:
        made.append(GroupSum(len(group), -3 if isinstance(firsts[0], nn.Conv2d) else -1))
    return nn.Sequential(*made)


def _form(layer: nn.Module) -> tuple[object, ...]:
    """What has to be the same for branches to be fused: all but the weights and the number of inner channels."""
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d, layer.kernel_size, layer.stride, layer.padding, layer.dilation
    if isinstance(layer, nn.LayerNorm):
        return nn.LayerNorm, layer.normalized_shape, layer.eps
    if isinstance(layer, nn.Linear):
        return (nn.Linear,)
    return type(layer), layer.extra_repr().replace("inplace=True", "").strip(", ")


def _bias(layer: Any) -> Tensor:
    return layer.bias.detach() if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))


def _absorbed(norm: nn.Module, layer: nn.Module) -> nn.Linear:
    """A linear layer that has the scale and shift of the norm before it in its weights."""
    made: Any = copy.deepcopy(layer)
    scale: Any = norm.weight
    shift: Any = norm.bias
    bias, weight = _bias(made), made.weight.detach()
    if shift is not None:
        bias = bias + weight @ shift.detach()
    if scale is not None:
        weight = weight * scale.detach()
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made


def _made(like: Any, weight: Tensor, bias: Tensor) -> nn.Module:
    """A layer as ``like`` with other weights."""
    made: Any = copy.deepcopy(like)
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    if isinstance(made, nn.Conv2d):
        made.out_channels, made.in_channels = weight.shape[:2]
    else:
        made.out_features, made.in_features = weight.shape
    return made


def _side_by_side(layers: Sequence[Any]) -> nn.Module:
    return _made(layers[0], torch.cat([c.weight.detach() for c in layers]), torch.cat([_bias(c) for c in layers]))


def _summed(layers: Sequence[Any]) -> nn.Module:
    weight = torch.cat([c.weight.detach() for c in layers], 1)
    return _made(layers[0], weight, torch.stack([_bias(c) for c in layers]).sum(0))


@dataclass(frozen=True)
class TaylorGap:
    """How far a stack is from its expansion, on given data.

    Args:
        first, second: the expansion's error to that order, over the size of the stack's change of its input.
        norms: the largest factor by which each branch's derivative at the data stretches a vector.
        bound: exp(sum of norms) - 1 - sum of norms: for linear branches no output is further off than so many of its
            input's lengths.
    """

    first: float
    second: float
    norms: tuple[float, ...]
    bound: float


def taylor_gap(stack: ResidualStack | Sequence[nn.Module], x: Tensor, rounds: int = 20) -> TaylorGap:
    """How well one group of branches stands for a stack of them, before anything is trained again.

    Args:
        stack: as `to_parallel` takes it; its grouping counts for nothing.
        x: what goes into it, such as what a network's earlier layers make of real data.
        rounds: of power iteration, for the norms.

    Raises:
        HastenError: as `to_parallel`.
    """
    whole = to_parallel(stack)
    with evaluating(whole):
        with torch.no_grad():
            branches = list(whole.branches)
            deep = ResidualStack(branches)(x)
            size = float((deep - x).norm())
            gaps = [
                float((ResidualStack(branches, 1, order)(x) - deep).norm()) / size if size else 0.0 for order in (1, 2)
            ]
        norms = tuple(_norm(branch, x, rounds) for branch in branches)
    total = sum(norms)
    return TaylorGap(gaps[0], gaps[1], norms, math.exp(min(total, 700.0)) - 1 - total)


def _norm(branch: nn.Module, x: Tensor, rounds: int) -> float:
    """The largest singular value of a branch's derivative at x."""
    call: Callable[[Tensor], Tensor] = branch
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    length = 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(rounds):
            direction = direction / direction.norm()
            along = jvp(call, (x,), (direction,))[1]
            length = float(along.detach().norm())
            if not length:
                return 0.0
            direction = vjp(call, x)[1](along.detach())[0].detach()
    return length
