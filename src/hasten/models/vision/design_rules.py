"""Principles of plain networks (arXiv 1608.06037) as rules that any network for images can be held to.

Each says whether a network keeps it, by how much, and why. Thresholds are ours; all published SimpleNets keep them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError
from hasten.nn.parallel_residual import ResidualBranch, ResidualStack

FINE = 32
"""Height of a map from which on it may be made smaller at once: an image has more pixels than detail there."""
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Layers that rules are about: others may be called with anything, and give anything.
_SEEN = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, *_DROPOUTS)


@dataclass(frozen=True)
class DesignFinding:
    """What a rule found in a network.

    Args:
        rule: its name.
        holds: whether the network keeps it.
        score: from 0 to 1, of layers or of what else the rule counts; 1 is best.
        message: what was found, and what the rule is for.
    """

    rule: str
    holds: bool
    score: float
    message: str


class _Place(NamedTuple):
    """Where a layer is in a `ResidualStack`: which call of which one, the group and the branch, and its order."""

    call: int
    group: int
    branch: int
    order: int


@dataclass(frozen=True)
class _Layer:
    """A layer as it was called: ``conv``, ``pool``, ``whole`` (over all positions) or ``dropout``."""

    kind: str
    module: Any
    height: int  # of its input
    made: int  # of its output
    products: int = 0
    places: tuple[_Place, ...] = ()  # in stacks, the outermost first

    @property
    def reach(self) -> int:
        """Positions of its input beside the first that an output sees."""
        spread = getattr(self.module, "dilation", 1)
        return (self.kernel - 1) * int(spread if isinstance(spread, int) else spread[0])

    @property
    def kernel(self) -> int:
        size = self.module.kernel_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def stride(self) -> int:
        size = self.module.stride
        return int(size if isinstance(size, int) else size[0])

    @property
    def weights(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def _layers(network: nn.Module, image: Sequence[int]) -> list[_Layer]:
    """Layers in the order in which they are called; functions that are no modules are not seen."""
    found: list[_Layer] = []
    places: list[_Place] = []

    def seen(module: Any, given: tuple[Tensor, ...], made: Any) -> None:
        made = made[0] if isinstance(made, tuple) else made  # a pooling may say where it found what it gives
        x = given[0] if given else made
        height = int(x.shape[2]) if x.ndim == 4 else 1
        after = int(made.shape[2]) if made.ndim == 4 else 1
        if isinstance(module, nn.Conv2d):
            products = module.weight.numel() * made[0, 0].numel()
            found.append(_Layer("conv", module, height, after, products, tuple(places)))
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            found.append(_Layer("pool", module, height, after, 0, tuple(places)))
        elif isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d):
            found.append(_Layer("whole", module, height, after, 0, tuple(places)))
        elif isinstance(module, _DROPOUTS):
            found.append(_Layer("dropout", module, height, after, 0, tuple(places)))

    # Hooks are called in the order of registration: a branch that is a layer is seen before it is left.
    hooks = [part.register_forward_hook(seen) for part in network.modules() if isinstance(part, _SEEN)]
    hooks += _follow(network, places)
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    try:
        with evaluating(network), torch.no_grad():
            network(torch.zeros(1, *image, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _follow(network: nn.Module, places: list[_Place]) -> list[RemovableHandle]:
    """Keeps in a list in which branches of stacks a call is."""
    count = itertools.count()
    stacks = [part for part in network.modules() if isinstance(part, ResidualStack)]
    return [hook for stack in stacks for hook in _follow_stack(stack, count, places)]


def _follow_stack(stack: ResidualStack, count: Iterator[int], places: list[_Place]) -> list[RemovableHandle]:
    calls: list[int] = []

    def begins(module: Any, given: Any) -> None:
        calls.append(next(count))

    def ends(module: Any, given: Any, made: Any) -> None:
        calls.pop()

    def entering(group: int, branch: int) -> Callable[[Any, Any], None]:
        def entered(module: Any, given: Any) -> None:
            places.append(_Place(calls[-1], group, branch, stack.order))

        return entered

    def left(module: Any, given: Any, made: Any) -> None:
        places.pop()

    hooks = [stack.register_forward_pre_hook(begins), stack.register_forward_hook(ends)]
    groups = [group for group, size in enumerate(stack.sizes) for _ in range(size)]
    for i, (branch, group) in enumerate(zip(stack.branches, groups, strict=True)):
        # A stack may call a whole block in place of what that adds.
        called = branch.block if isinstance(branch, ResidualBranch) else branch
        hooks += [called.register_forward_pre_hook(entering(group, i)), called.register_forward_hook(left)]
    return hooks


def image_of(inputs: Sequence[Any]) -> tuple[int, int, int]:
    """Channels, height and width of the images that a network's example inputs are.

    Raises:
        HastenError: they are no single tensor (batch, channels, height, width).
    """
    first = inputs[0] if len(inputs) == 1 else None
    if not isinstance(first, Tensor) or first.ndim != 4 or not first.is_floating_point():
        raise HastenError("the rules are for networks of one tensor of images: (batch, channels, height, width)")
    return int(first.shape[1]), int(first.shape[2]), int(first.shape[3])


# Of layers, the image's height and all weights: whether a rule holds, its score, and what was found.
_Judge = Callable[[list[_Layer], int, int], tuple[bool, float, str]]
_RULES: dict[str, _Judge] = {}


def _rule(name: str) -> Callable[[_Judge], _Judge]:
    def register(judge: _Judge) -> _Judge:
        _RULES[name] = judge
        return judge

    return register


def design_rules(network: nn.Module, image: Sequence[int]) -> list[DesignFinding]:
    """What each rule finds in a network.

    Layers are taken in the order in which they are called, as plain networks have them: branches count as if one came
    after the other. Only the receptive field knows branches side by side, those of a `hasten.nn.ResidualStack`.

    Args:
        network: images to anything; on the meta device or any other.
        image: channels, height and width.

    Raises:
        HastenError: it has no convolution.

    >>> found = design_rules(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3)), (3, 8, 8))
    >>> [f.rule for f in found if not f.holds]
    ['local correlation', 'balance', 'receptive field']
    """
    layers = _layers(network, image)
    if not any(layer.kind == "conv" for layer in layers):
        raise HastenError("this network calls no convolution: the rules are for networks of convolutions")
    weights = sum(p.numel() for p in network.parameters())
    found = []
    for name, judge in _RULES.items():
        holds, score, message = judge(layers, image[1], weights)
        found.append(DesignFinding(name, holds, min(1.0, max(0.0, score)), message))
    return found


def _convs(layers: list[_Layer]) -> list[_Layer]:
    return [layer for layer in layers if layer.kind == "conv"]


def _wide(layers: list[_Layer]) -> list[int]:
    """Channels of the convolutions that see more than a pixel."""
    return [c.module.out_channels for c in _convs(layers) if c.kernel > 1]


def _late(layers: list[_Layer]) -> float:
    """The number of convolutions before the last third."""
    return 2 * len(_convs(layers)) / 3


@_rule("gradual growth")
def _growth(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    pairs = list(pairwise(_wide(layers)))
    jumps = [(a, b) for a, b in pairs if b > 2 * a]
    said = ", ".join(f"{a} to {b}" for a, b in jumps) or "no width more than doubles"
    return not jumps, 1 - len(jumps) / max(1, len(pairs)), f"{said}: widths that jump are rarely used up"


@_rule("homogeneous groups")
def _groups(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    pairs = list(pairwise(_wide(layers)))
    score = sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0
    return score >= 0.5, score, f"{score:.0%} of layers are as wide as the one before: widths change between groups"


@_rule("local correlation")
def _local(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    early = [c for i, c in enumerate(_convs(layers)) if i < _late(layers)]
    points = sum(c.kernel == 1 for c in early)
    message = f"{points} of the first {len(early)} convolutions see one pixel: neighbours matter most at the beginning"
    return not points, 1 - points / len(early), message


@_rule("late pooling")
def _pooling(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    """Between two reductions of a map of at most `FINE` pixels stand two convolutions, but for the last third."""
    since = total = hasty = reductions = 0
    for layer in layers:
        if layer.kind not in ("conv", "pool"):
            continue
        reduces = layer.made < layer.height and layer.stride > 1
        if reduces and layer.height <= FINE and total < _late(layers):
            reductions += 1
            hasty += since + (layer.kind == "conv") < 2
        if reduces:
            since = 0
        if layer.kind == "conv":
            since, total = since + 1, total + 1  # one that reduces stands on the smaller map
    message = f"{hasty} of {reductions} early reductions follow fewer than two convolutions: detail is lost unseen"
    return not hasty, 1 - hasty / max(1, reductions), message


@_rule("balance")
def _balance(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    share = max(c.weights for c in _convs(layers)) / weights
    return (
        share <= 0.3,
        1 - share,
        f"the largest layer holds {share:.0%} of all weights: over 30 % the others starve",
    )


def _reach(layers: list[_Layer], depth: int, step: int) -> tuple[int, int]:
    """Pixels beside the first that an output sees, and those from one output to the next.

    Of branches side by side it is the widest one's, of a group of order 2 those of the two widest: they have a term of
    both.
    """
    total = 0
    for group, found in groupby(layers, lambda c: c.places[depth][:2] if len(c.places) > depth else None):
        inner = list(found)
        if group is not None:
            branches = groupby(inner, lambda c: c.places[depth].branch)
            reaches = sorted(_reach(list(branch), depth + 1, step)[0] for _, branch in branches)
            total += sum(reaches[-inner[0].places[depth].order :])
            continue
        for layer in inner:
            if layer.kind in ("conv", "pool"):
                total, step = total + layer.reach * step, step * layer.stride
    return total, step


@_rule("receptive field")
def _field(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    field = 1 + _reach(layers, 0, 1)[0]
    message = f"an output sees {field} pixels of {image}: what no output sees whole is told from its parts alone"
    return field >= image, field / image, message


@_rule("global maximum")
def _maximum(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    means = [layer for layer in layers if layer.kind == "whole" and isinstance(layer.module, nn.AdaptiveAvgPool2d)]
    said = "the mean over all positions" if means else "no mean over all positions"
    return not means, float(not means), f"{said}: a maximum keeps what is seen in one place"


@_rule("dropout everywhere")
def _dropout(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    chances = [layer.module.p for layer in layers if layer.kind == "dropout" and layer.module.p > 0]
    last = max(i for i, layer in enumerate(layers) if layer.kind == "conv")
    early = sum(layer.kind == "dropout" and layer.module.p > 0 for layer in layers[:last])
    if not chances:
        return True, 1.0, "there is none"
    message = f"{early} of {len(chances)} stand before the last convolution, the largest is {max(chances):g}"
    return early > 0 and max(chances) <= 0.3, early / len(chances), f"{message}: little everywhere, not much at the end"


@_rule("fast operators")
def _fast(layers: list[_Layer], image: int, weights: int) -> tuple[bool, float, str]:
    convs = _convs(layers)
    dense = sum(c.products for c in convs if c.kernel == 3 and c.module.groups == 1)
    score = dense / max(1, sum(c.products for c in convs))
    return score >= 0.5, score, f"{score:.0%} of products are in dense 3x3 convolutions, which libraries run best"
