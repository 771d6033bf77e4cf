"""Any network's residual blocks side by side in place of one after the other (arXiv 2309.08414).

`residual_runs` finds them by running the network once; `parallelize` gives a copy with some of each run side by side:

    shallow = parallelize(network, (images,), together=2)
    print(difference(network, shallow, (images,)))  # hasten.cost.preserving: how far its answers are off

Weights and products stay what they were, and answers do not: look at them, and train from there on.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError
from hasten.models.vision.receptive_field import averaged_share
from hasten.nn.parallel_residual import ResidualBranch, ResidualStack, fuse_parallel

__all__ = ["ResidualRun", "parallelize", "residual_runs"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ResidualRun:
    """Residual blocks that follow each other in an `nn.Sequential` or `nn.ModuleList`.

    Args:
        path: of the list, as `named_modules` has it.
        first: number of the first block in it.
        count: of blocks, from 2.
    """

    path: str
    first: int
    count: int


@dataclass(frozen=True)
class _Call:
    """What a block was given, and what it gave."""

    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def goes_on(self, other: _Call) -> bool:
        """Whether the other block was given this one's result, and the same beside it."""
        return (
            other.x is self.output
            and len(self.args) == len(other.args)
            and all(a is b for a, b in zip(self.args, other.args, strict=True))
            and self.kwargs.keys() == other.kwargs.keys()
            and all(self.kwargs[k] is other.kwargs[k] for k in self.kwargs)
        )


@torch.no_grad()
def _calls(network: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, list[dict[int, _Call]]]:
    """Of every list of modules its runs: number of a block -> its call."""
    lists = {p: m for p, m in network.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList) and len(m) > 1}
    seen: dict[int, list[_Call | None]] = {}

    def called(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        call, x = None, args[0] if args else None
        if isinstance(x, Tensor) and isinstance(output, Tensor) and x.is_floating_point():
            same = (output.shape, output.dtype) == (x.shape, x.dtype)
            call = _Call(x, args[1:], given, output) if same else None
        seen.setdefault(id(module), []).append(call)

    blocks = {id(b): b for m in lists.values() for b in m}
    hooks = [b.register_forward_hook(called, with_kwargs=True) for b in blocks.values()]
    with evaluating(network):
        try:
            network(*inputs, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        found: dict[str, list[dict[int, _Call]]] = {}
        # The innermost first: what has a run within is a stage, not a block.
        for path in sorted(lists, key=lambda p: -(p.count(".") + bool(p))):
            run: dict[int, _Call] = {}
            for i, block in enumerate(lists[path]):
                calls = seen.get(id(block), [])
                call = calls[0] if len(calls) == 1 else None
                inside = f"{path}.{i}" if path else str(i)
                stage = any(f"{p}.".startswith(f"{inside}.") and any(len(r) > 1 for r in found[p]) for p in found)
                if call is None or stage or not _is_residual(block, call):
                    run = {}
                    continue
                if not run or not run[i - 1].goes_on(call):
                    run = {}
                    found.setdefault(path, []).append(run)
                run[i] = call
        return {path: found[path] for path in lists if path in found}


def _is_residual(block: nn.Module, call: _Call) -> bool:
    """Whether a block without weights gives back what it was given: then all else is added to that."""
    zeros = {name: torch.zeros_like(p) for name, p in block.named_parameters()}
    if not zeros:
        return False
    try:
        made = torch.func.functional_call(block, zeros, (call.x, *call.args), call.kwargs)
    except Exception:  # it keeps something of its first call, such as a cache, or refuses weights of zero
        return False
    return isinstance(made, Tensor) and torch.allclose(made, call.x, atol=1e-6)


def residual_runs(
    network: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> list[ResidualRun]:
    """Runs of two and more residual blocks that are called once each, one on the other's result.

    A block is residual if it would give back its input without its weights: blocks of ResNets (but for those that
    change the shape), inverted bottlenecks and transformer layers, whoever wrote them.

    Args:
        network: run once in evaluation mode, and left as it was.
        inputs, kwargs: of a call. Language models are called with ``use_cache=False``.

    >>> block = lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    >>> residual_runs(nn.Sequential(nn.Linear(4, 8), block(), block(), block()), (torch.zeros(1, 3, 4),))
    [ResidualRun(path='', first=1, count=3)]
    """
    found = _calls(network, inputs, kwargs or {})
    return [
        ResidualRun(path, min(run), len(run)) for path, runs in found.items() for run in runs if len(run) > 1
    ]  # fmt: skip


class _InPlace(nn.Module):
    """Stands where a block was, and answers for it what a network asks of its blocks besides calling them.

    Args:
        stack: of the block and what now is beside it; None where the block is in another's, and nothing is left to do:
            blocks behind it keep their numbers.
        block: that was here.
    """

    def __init__(self, stack: ResidualStack | None, block: nn.Module) -> None:
        super().__init__()
        self.stack = stack
        # Its settings, without its weights, and no part of this module.
        self.__dict__["replaced"] = (copy.deepcopy(block).to("meta"),)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            replaced = self.__dict__.get("replaced")
            if replaced is None or name.startswith("__"):
                raise
            return getattr(replaced[0], name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x if self.stack is None else self.stack(x, *args, **kwargs)


def parallelize(
    network: M,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    together: int | None = 2,
    runs: Sequence[ResidualRun] | None = None,
    order: int = 1,
    split: bool = False,
    fused: bool = False,
) -> M:
    """A copy of a network with residual blocks side by side.

    Args:
        network: stays as it is.
        inputs, kwargs: of `residual_runs`.
        together: blocks that stand side by side; all of a run when None. With ``split`` it may be 1: then attention and
            the feed-forward layer of each block stand side by side.
        runs: which; all of the network when None. A run may be a part of one that `residual_runs` finds.
        order: of `ResidualStack`.
        split: whether transformer layers are taken apart into attention and feed-forward layer, as torch's own (norm
            first), transformers' decoders and timm's are; each copy is held to the layer that it is of.
        fused: whether alike branches become one broad layer (`fuse_parallel`), for inference; where none are, they stay
            apart.

    Warns where the head averages positions that see less of the image than all, and less than they did: no output then
    sees it whole, and the copy is no match for the network however it is trained.

    Raises:
        HastenError: nothing stands side by side, or a run is not there.
    """
    if together is not None and together < (1 if split else 2):
        raise HastenError(f"from {1 if split else 2} blocks on stand side by side, not {together}")
    calls = _calls(network, inputs, kwargs or {})
    known = {p: {i: c for run in r for i, c in run.items()} for p, r in calls.items()}
    if runs is None:
        least = 1 if split else 2
        runs = [ResidualRun(p, min(run), len(run)) for p, r in calls.items() for run in r if len(run) >= least]
    for run in runs:
        if not {*range(run.first, run.first + run.count)} <= known.get(run.path, {}).keys():
            raise HastenError(f"{run} is no run of this network: residual_runs lists them")
    made = copy.deepcopy(network)
    count = 0
    for run in runs:
        blocks: Any = made.get_submodule(run.path)
        size = together or run.count
        for first in range(run.first, run.first + run.count, size):
            group = range(first, min(first + size, run.first + run.count))
            branches: list[nn.Module] = []
            for i in group:
                branches += (_split(blocks[i], known[run.path][i]) if split else None) or [ResidualBranch(blocks[i])]
            if len(branches) < 2:
                continue
            stack = ResidualStack(branches, 1, order)
            if fused:
                try:
                    stack = fuse_parallel(stack)
                except HastenError:
                    stack = stack.eval()
            stack.train(network.training and not fused)
            for i in group:
                blocks[i] = _InPlace(stack if i == first else None, blocks[i])
            count += 1
    if not count:
        raise HastenError("this network has no residual blocks that follow each other: nothing can stand side by side")
    if said := short_sight(network, made, inputs, kwargs):
        warnings.warn(said, stacklevel=2)
    return made


def short_sight(
    before: nn.Module, after: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> str | None:
    """What `parallelize` warns of, in words; None where there is nothing.

    Args:
        before, after: a network and its copy with blocks side by side.
        inputs, kwargs: of `residual_runs`.
    """
    share = averaged_share(after, inputs, kwargs)
    if share is None or share >= 1:
        return None
    known = averaged_share(before, inputs, kwargs)
    if known is None or known <= share:
        return None
    return (
        f"its head averages positions that see {share:.0%} of the image each, and saw {known:.0%}: put fewer blocks"
        " side by side, or let the head read every position"
    )


class _Normed(nn.Module):
    """A norm, a part of a layer, and what scales its result."""

    def __init__(self, norm: nn.Module, part: nn.Module, scale: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.part, self.scale = norm, part, scale

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.part(self.norm(x), *args, **kwargs)
        y = y[0] if isinstance(y, tuple) else y
        return y if self.scale is None else self.scale(y)


class _SelfAttention(nn.Module):
    """torch's attention of a tensor to itself, with a mask as its encoder layer takes it."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, x: Tensor, src_mask: Tensor | None = None, is_causal: bool = False,
        src_key_padding_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self.attention(
            x, x, x, key_padding_mask=src_key_padding_mask, need_weights=False, attn_mask=src_mask, is_causal=is_causal
        )[0]


def _decoder_parts(layer: Any) -> list[nn.Module]:
    return [
        _Normed(layer.input_layernorm, layer.self_attn), nn.Sequential(layer.post_attention_layernorm, layer.mlp),
    ]  # fmt: skip


def _timm_parts(layer: Any) -> list[nn.Module]:
    mlp = layer.mlp
    inner = [mlp.fc1, mlp.act, mlp.fc2] if type(mlp).__name__ == "Mlp" else [mlp]
    return [_Normed(layer.norm1, layer.attn, layer.ls1), nn.Sequential(layer.norm2, *inner, layer.ls2)]


def _torch_parts(layer: Any) -> list[nn.Module]:
    act = layer.activation
    acts = {"relu": nn.ReLU(), "gelu": nn.GELU()}
    made = act if isinstance(act, nn.Module) else acts[act.__name__]
    feed_forward = nn.Sequential(layer.norm2, layer.linear1, made, layer.linear2)
    return [_Normed(layer.norm1, _SelfAttention(layer.self_attn)), feed_forward]


_SPLITS: tuple[Callable[[Any], list[nn.Module]], ...] = (_decoder_parts, _timm_parts, _torch_parts)


def _split(layer: nn.Module, call: _Call) -> list[nn.Module] | None:
    """A transformer layer's two branches, which one after the other give what it gave; None where it has no such."""
    for parts in _SPLITS:
        try:
            branches = parts(layer)
            with torch.no_grad():
                made = ResidualStack(branches).eval()(call.x, *call.args, **call.kwargs)
        except Exception:  # it is no layer of this kind
            continue
        if made.shape == call.output.shape and torch.allclose(made, call.output, rtol=1e-4, atol=1e-4):
            return branches
    return None
