"""Changes to a network that change what it costs and not what it computes, and the one check that they keep that."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hasten.errors import HastenError

M = TypeVar("M", bound=nn.Module)


def fold_normalization(network: M) -> M:
    """A copy for inference, with the batch norm that follows a convolution in an `nn.Sequential` folded into it.

    Layers that stand in several places, have hooks or make their weight of others stay, as do norms without statistics.

    Args:
        network: stays as it is.
    """
    made = copy.deepcopy(network).eval()
    places = Counter(part for _, part in made.named_modules(remove_duplicate=False))
    for part in list(made.modules()):
        if isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward:
            for i in range(len(part) - 1):
                conv, norm = part[i], part[i + 1]
                if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
                    continue
                rest = _rest(norm)
                alone = places[conv] == places[norm] == 1 and not hooked(conv) and not hooked(norm)
                if rest is None or norm.running_mean is None or not alone or is_parametrized(conv):
                    continue
                transposed = isinstance(conv, nn.ConvTranspose2d)
                part[i], part[i + 1] = fuse_conv_bn_eval(conv, norm, transposed), rest
    return made


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within it a network is in evaluation mode; afterwards every part of it is in the mode that it was in: some may
    have been kept from training."""
    modes = [(part, part.training) for part in network.modules()]
    with contextlib.suppress(NotImplementedError):  # what torch.export makes has one mode
        network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def hooked(layer: nn.Module) -> bool:
    """Whether somebody's hooks see or change what goes into a layer or out of it: one in its place has none."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


class _Uses(TorchFunctionMode):
    """How many functions that make tensors read each of some tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) for t in tree_leaves(made)):
            for t in tree_leaves((args, dict(kwargs or {}))):
                if isinstance(t, Tensor) and id(t) in self.watched:
                    self.watched[id(t)] += 1
        return made


@torch.no_grad()
def norms_to_fold(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Paths of batch normalizations that a call runs on what a layer made and nothing else reads, and that layer's.

    Args:
        network: in evaluation mode; it is called once.
        args, kwargs: of the call.
    """
    places: dict[nn.Module, list[str]] = {}
    for path, part in network.named_modules(remove_duplicate=False):
        places.setdefault(part, []).append(path)
    uses, calls = _Uses(), dict.fromkeys(places, 0)
    made: dict[int, tuple[Tensor, nn.Module]] = {}
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = []

    def seen(part: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        calls[part] += 1
        if type(part) in _LAYERS and isinstance(answer, Tensor):
            made[id(answer)] = (answer, part)  # held, so that no other tensor gets its identity
            uses.watched[id(answer)] = 0
        elif isinstance(part, _NORMS) and given and id(given[0]) in made:
            pairs.append((made[id(given[0])][1], part, given[0]))

    hooks = [part.register_forward_hook(seen) for part in places if type(part) in _LAYERS or isinstance(part, _NORMS)]
    try:
        with uses:
            answers = network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    given_out = {id(t) for t in tree_leaves(answers)}
    pairs = [pair for pair in pairs if not hooked(pair[0]) and not hooked(pair[1])]
    return {
        places[norm][0]: places[layer][0]
        for layer, norm, between in pairs
        if uses.watched[id(between)] == 1 and id(between) not in given_out and calls[layer] == calls[norm] == 1
        and len(places[layer]) == len(places[norm]) == 1 and _rest(norm) is not None and not norm.training
        and norm.running_mean is not None
        and all(t.is_floating_point() for t in (*layer.parameters(), *norm.parameters()))
    }  # fmt: skip


def _rest(norm: nn.Module) -> nn.Module | None:
    """What is left of a normalization that is folded away; None where it is of a kind that does something unknown."""
    if type(norm) in _NORMS:
        return nn.Identity()
    parts = [getattr(norm, name, None) for name in ("drop", "act")]  # timm's, with an activation inside
    if type(norm).__name__ == "BatchNormAct2d" and all(isinstance(p, nn.Module) for p in parts):
        return nn.Sequential(*(p for p in parts if isinstance(p, nn.Module)))
    return None


def fold_norms(network: M, args: Sequence[Any], kwargs: Mapping[str, Any]) -> M:
    """``network`` with the normalizations of `norms_to_fold` folded; it is changed, its layers' tensors are not.

    Args:
        network, args, kwargs: of `norms_to_fold`.
    """
    for norm_path, layer_path in norms_to_fold(network, args, kwargs).items():
        norm: Any = network.get_submodule(norm_path)
        layer: Any = network.get_submodule(layer_path)
        if isinstance(layer, nn.Linear):
            fused: nn.Module = fuse_linear_bn_eval(layer, norm)
        else:
            fused = fuse_conv_bn_eval(layer, norm, isinstance(layer, _TRANSPOSED))
        rest = _rest(norm)
        assert rest is not None
        network.set_submodule(layer_path, fused)
        network.set_submodule(norm_path, rest)
    return network


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, inputs: Sequence[Any]) -> float:
    """How far two networks' answers lie apart: the largest difference over the largest magnitude of the first's;
    infinite where one is no number.

    Args:
        one, other: both asked in evaluation mode, and left in the mode they were in.
        inputs: of a call.

    Raises:
        HastenError: answers of different shapes.
    """
    answers = []
    for network in (one, other):
        with evaluating(network):
            answers.append([t for t in tree_leaves(network(*inputs)) if isinstance(t, Tensor)])
    a, b = answers
    if [t.shape for t in a] != [t.shape for t in b]:
        raise HastenError("these two networks answer with different shapes: they compute different things")
    wide = [torch.complex128 if x.is_complex() else torch.float64 for x in a]
    pairs = [(x.to(kind), y.to(kind)) for x, y, kind in zip(a, b, wide, strict=True) if x.numel()]
    largest = [float((x - y).abs().max()) for x, y in pairs]
    if not all(map(math.isfinite, largest)):  # what is no number is neither more nor less than another
        return math.inf
    apart = max(largest, default=0.0)
    most = max((float(x.abs().max()) for x, _ in pairs), default=0.0)
    return apart / most if most else apart


def check_same(one: nn.Module, other: nn.Module, inputs: Sequence[Any], within: float = 1e-5) -> None:
    """That two networks compute the same.

    Args:
        one, other, inputs: of `difference`.
        within: the largest that it may be.

    Raises:
        HastenError: they do not; it says how far apart they are.
    """
    apart = difference(one, other, inputs)
    if not apart <= within:  # not a number is no agreement
        raise HastenError(
            f"these two networks' answers lie {apart:.2g} of the largest apart, and {within:g} is allowed:"
            " what changed the one does not keep what it computes"
        )
