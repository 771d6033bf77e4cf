"""Heads of any network's attention: found by running it once, and removed for good (arXiv 1905.10650).

    layers = attention_layers(network, (images,))
    prune_heads(network, {layers[0].path: (1, 3)}, (images,))  # in place: smaller matrices

No class is known by its name but torch's own attention. A module that has heads and linear layers (or convolutions of
one pixel) is attention where it answers, with a head's rows and columns cut out of its matrices, just as it does whole
with that head masked: this is tried on what the module is given in the run, for each way in which rows may be ordered.
Where queries share keys and values, a head goes with all queries that read it; a bias for each head goes with its head.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils._pytree import tree_leaves, tree_map

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError

__all__ = ["AttentionLayer", "attention_layers", "heads_masked", "prune_heads"]

# What modules call their number of heads, and the size of each.
_COUNTS = ("num_heads", "heads", "num_attention_heads", "n_heads", "n_head", "nhead")
# And that of keys and values, where queries share them.
_SHARED = ("num_kv_heads", "num_key_value_heads", "kv_heads", "n_kv_heads", "num_query_groups", "num_groups")
_SIZES = ("head_dim", "head_size", "attention_head_size", "dim_head")


@dataclass(frozen=True)
class AttentionLayer:
    """A module whose heads can be removed.

    Args:
        path: of the module, as `named_modules` has it.
        heads: that it has; where queries share keys and values, heads of these, each of which is removed with all
            queries that share it.
        queries: heads of queries to each.
    """

    path: str
    heads: int
    queries: int = 1


@dataclass(frozen=True)
class _Cut:
    """How a module's heads are cut out.

    Args:
        heads: of keys and values that it has.
        queries: heads of queries to each.
        projections: of the layers that make queries, keys and values: path in the module, and heads of each of these
            that it makes, for one head of keys.
        out: the layer that reads the heads' results.
        heads_first: whether rows of a projection are those of the first head's queries, keys and values, then the next
            one's; else all queries come first.
        numbers: whole numbers in the module that go with the number of heads: path, name, and how much is of each head.
        tables: parameters in the module with numbers of each head, such as a bias for positions: path, name, axis.
        rewritten: whether the module is written anew, its own code being for one number of heads.
    """

    heads: int
    queries: int
    projections: tuple[tuple[str, tuple[int, ...]], ...]
    out: str
    heads_first: bool = False
    numbers: tuple[tuple[str, str, int], ...] = ()
    tables: tuple[tuple[str, str, int], ...] = ()
    rewritten: bool = False


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextlib.contextmanager
def _whole_layers() -> Iterator[None]:
    """torch's encoder layers call the attention in them, and do not read its weights themselves."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _is_linear(module: nn.Module) -> bool:
    """A linear layer, or a convolution that is one of each pixel."""
    if type(module) is nn.Conv2d:
        return module.kernel_size == module.stride == (1, 1) and module.groups == 1
    return type(module) is nn.Linear


def _sizes(layer: Any) -> tuple[int, int]:
    """Numbers that it reads and makes."""
    return int(layer.weight.shape[1]), int(layer.weight.shape[0])


def _is_torchs(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and bool(module._qkv_same_embed_dim)
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _numbers(module: nn.Module, names: Sequence[str] = ()) -> Iterator[tuple[str, str, int]]:
    """Whole numbers in a module and what is in it, but for its layers: path, name, value."""
    for path, part in module.named_modules():
        if not _is_linear(part):
            for name, value in vars(part).items():
                if type(value) is int and value > 1 and (not names or name in names):
                    yield path, name, value


def _run(
    network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], watched: Mapping[str, nn.Module]
) -> tuple[dict[str, _Call], list[nn.Module]]:
    """What each module was first given in a call of the network, and its linear layers as they were called."""
    calls: dict[str, _Call] = {}
    order: list[nn.Module] = []

    def first(path: str) -> Any:
        def seen(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if path not in calls:
                calls[path] = _Call(*_fresh((given, named)))

        return seen

    hooks = [m.register_forward_pre_hook(first(p), with_kwargs=True) for p, m in watched.items()]
    layers = [m for m in network.modules() if _is_linear(m)]
    hooks += [m.register_forward_pre_hook(lambda module, given: order.append(module)) for m in layers]
    try:
        with evaluating(network), torch.no_grad(), _whole_layers():
            network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, list(dict.fromkeys(order))


def _cuts(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, tuple[_Cut, _Call]]:
    """Path -> how heads are cut out of the module there, and a call of it."""
    having = {
        path: module
        for path, module in network.named_modules()
        if path and (_is_torchs(module) or next(_numbers(module, _COUNTS + _SIZES), None))
    }
    calls, order = _run(network, args, kwargs, having)
    found: dict[str, tuple[_Cut, _Call]] = {}
    # The innermost first: what has attention within is a layer, not attention.
    for path in sorted(having, key=lambda p: -p.count(".")):
        module = having[path]
        if path not in calls or any(p.startswith(f"{path}.") for p in found):
            continue
        if (cut := _cut_of(module, calls[path], order)) is not None:
            found[path] = cut, calls[path]
    return {path: found[path] for path in having if path in found}


def _cut_of(module: nn.Module, call: _Call, order: Sequence[nn.Module]) -> _Cut | None:
    """How heads are cut out of a module; None where no way keeps what it answers without a head."""
    if _is_torchs(module):
        attention: Any = module
        return _Cut(int(attention.num_heads), 1, (), "") if attention.num_heads > 1 else None
    places = {part: path for path, part in module.named_modules() if _is_linear(part)}
    layers: list[Any] = [part for part in order if part in places]
    if not 2 <= len(layers) <= 4 or len(layers) != len(places):
        return None
    *projections, out = layers
    inner = _sizes(out)[0]
    made = [_sizes(layer)[1] for layer in projections]
    keys = (sum(made) - inner) // 2  # rows that make keys, and those that make values
    if sum(made) != inner + 2 * keys or keys < 1 or inner % keys:
        return None
    counts = {value for _, _, value in _numbers(module, _COUNTS)}
    counts |= {inner // value for _, _, value in _numbers(module, _SIZES) if not inner % value}
    paths = [places[p] for p in projections]
    shared = inner // keys  # heads of queries to each of keys
    for heads in sorted(n // shared for n in counts if not inner % n and not n % shared):
        if heads < 2:
            continue
        for parts in _parts(made, keys, shared):
            named = tuple(zip(paths, parts, strict=True))
            for cut in _ways(module, heads, shared, inner, named, places[out]):
                if _holds(module, cut, call, (heads // 2,)):
                    return cut
    return None


def _parts(made: Sequence[int], keys: int, queries: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Ways to share queries, keys and values out to layers: of each its heads for one head of keys.

    Args:
        made: rows of each layer.
        keys: rows that make keys.
        queries: heads of queries to each of keys.
    """
    for order in dict.fromkeys(((queries, 1, 1), (1, 1, queries), (1, queries, 1))):
        ends = [0, *itertools.accumulate(n * keys for n in order)]
        cuts = [0, *itertools.accumulate(made)]
        if set(cuts) <= set(ends):
            yield tuple(order[ends.index(a) : ends.index(b)] for a, b in itertools.pairwise(cuts))


def _ways(
    module: nn.Module,
    heads: int,
    queries: int,
    inner: int,
    projections: tuple[tuple[str, tuple[int, ...]], ...],
    out: str,
) -> Iterator[_Cut]:
    """Ways to cut heads out of a module that are worth a try, its own code first."""
    orders = (False, True) if any(len(parts) > 1 for _, parts in projections) else (False,)
    size = inner // heads // queries
    counts = tuple((p, n, queries) for p, n, value in _numbers(module, _COUNTS) if value == heads * queries)
    counts += tuple((p, n, 1) for p, n, value in _numbers(module, _SHARED) if value == heads)
    known = {(p, n) for p, n, _ in counts}
    widths = tuple(
        (p, n, value // heads)
        for p, n, value in _numbers(module)
        if value in (inner, heads * size) and (p, n) not in known and n not in _COUNTS + _SHARED
    )
    tables = dict.fromkeys(((), _tables(module, heads * queries, last=True), _tables(module, heads * queries)))
    for some, more, first in itertools.product(tables, dict.fromkeys(((), widths)), orders):
        yield _Cut(heads, queries, projections, out, first, counts + more, some)
    # Its parts in the order in which they are called are queries, keys and values, and direct children of it.
    if not any("." in p or not p for p in (out, *(p for p, _ in projections))):
        for first in orders:
            yield _Cut(heads, queries, projections, out, first, rewritten=True)


def _tables(module: nn.Module, heads: int, last: bool = False) -> tuple[tuple[str, str, int], ...]:
    """Parameters of a module, but its layers', that have an axis of ``heads``: path, name, the first or last such."""
    found = []
    for path, part in module.named_modules():
        for name, parameter in () if _is_linear(part) else part.named_parameters(recurse=False):
            axes = [i for i, n in enumerate(parameter.shape) if n == heads]
            if axes:
                found.append((path, name, axes[-1 if last else 0]))
    return tuple(found)


def _holds(module: nn.Module, cut: _Cut, call: _Call, removed: Sequence[int]) -> bool:
    """Whether a module without some heads answers as it does with them masked, and otherwise than whole."""
    with torch.no_grad(), _whole_layers():
        try:
            whole = _answer(module, call)
            masked = _without(module, cut, removed)
            expected = _answer(masked, call)
            found = _answer(_cut_out(copy.deepcopy(module), cut, removed), call)
        except Exception:
            return False  # its code is for all of its heads
    if whole is None or expected is None or found is None or found.shape != expected.shape:
        return False
    size = float(expected.abs().max())
    return float((whole - expected).abs().max()) > 1e-6 * size and torch.allclose(
        found, expected, rtol=1e-3, atol=1e-4 * size
    )


def _answer(module: nn.Module, call: _Call) -> Tensor | None:
    """The first tensor that a module answers with: behind it there may be weights of each head."""
    args, kwargs = _fresh((call.args, call.kwargs))
    with evaluating(module):
        leaves = tree_leaves(module(*args, **kwargs))
    return next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)


def _fresh(given: Any) -> Any:
    """What a call was given, with copies of what it may change, such as a cache that keys are written to."""

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor | int | float | str):
            return value
        try:
            return copy.deepcopy(value)
        except (TypeError, RuntimeError, NotImplementedError):
            return value  # a lock, an open file: nothing that a call writes its results to

    return tree_map(copied, given)


def _out(module: nn.Module, cut: _Cut) -> Any:
    """The layer that reads the heads' results."""
    return module.out_proj if _is_torchs(module) else module.get_submodule(cut.out)


def _columns(cut: _Cut, width: int, heads: Sequence[int]) -> list[int]:
    """Of the heads' results (width,) those of some heads."""
    size = width // cut.heads
    return [h * size + i for h in heads for i in range(size)]


def _without(module: nn.Module, cut: _Cut, removed: Sequence[int]) -> nn.Module:
    """A copy with heads masked: nobody reads what they make."""
    made = copy.deepcopy(module)
    out = _out(made, cut)
    out.weight = nn.Parameter(out.weight.detach().clone(), requires_grad=False)
    out.weight[:, _columns(cut, out.weight.shape[1], removed)] = 0
    return made


def _cut_out(module: nn.Module, cut: _Cut, removed: Sequence[int]) -> nn.Module:
    """A module without some heads: itself, or what stands in its place. Its tensors stay as they are."""
    kept = [h for h in range(cut.heads) if h not in removed]
    if type(module) is nn.MultiheadAttention:
        return _FewerHeads(module, kept)
    inner = int(_out(module, cut).weight.shape[1])
    size = inner // cut.heads // cut.queries
    for path, parts in cut.projections:
        rows = torch.arange(cut.heads * sum(parts) * size)
        blocks = [rows] if cut.heads_first else rows.split([cut.heads * n * size for n in parts])
        chosen = torch.cat([block.view(cut.heads, -1)[kept].flatten() for block in blocks])
        _take(module.get_submodule(path), chosen, 0)
    _take(module.get_submodule(cut.out), torch.tensor(_columns(cut, inner, kept)), 1)
    if cut.rewritten:
        return _PlainHeads(module, cut, len(kept))
    queries = torch.arange(cut.heads * cut.queries).view(cut.heads, -1)[kept].flatten()
    for path, name, axis in cut.tables:
        holder = module.get_submodule(path)
        setattr(holder, name, _some(getattr(holder, name), axis, queries))
    for path, name, each in cut.numbers:
        setattr(module.get_submodule(path), name, len(kept) * each)
    return module


def _some(old: Tensor, axis: int, chosen: Tensor) -> nn.Parameter:
    """Some of a parameter's rows or columns, in a new tensor."""
    return nn.Parameter(old.detach().index_select(axis, chosen.to(old.device)), old.requires_grad)


def _take(layer: Any, chosen: Tensor, axis: int) -> None:
    """Some of a layer's rows (axis 0, with their bias) or columns, in new tensors."""
    layer.weight = _some(layer.weight, axis, chosen)
    if axis == 0 and layer.bias is not None:
        layer.bias = _some(layer.bias, 0, chosen)
    names = ("in_channels", "out_channels") if isinstance(layer, nn.Conv2d) else ("in_features", "out_features")
    setattr(layer, names[1 - axis], len(chosen))


class _PlainHeads(nn.Module):
    """Attention of a tensor to itself by the projections of another module, of which it has some heads.

    Shapes: (batch, tokens, width) to the same.
    """

    def __init__(self, module: nn.Module, cut: _Cut, heads: int) -> None:
        super().__init__()
        self.heads, self._heads_first = heads, cut.heads_first
        self._size = int(_out(module, cut).weight.shape[1]) // heads // cut.queries
        self._parts, self._last = cut.projections, cut.out
        for name in (*(p for p, _ in cut.projections), cut.out):
            setattr(self, name, module.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for name, parts in self._parts:
            rows = getattr(self, name)(x)
            if self._heads_first:
                made += rows.unflatten(-1, (self.heads, sum(parts), self._size)).split(parts, -2)
            else:
                blocks = rows.split([self.heads * n * self._size for n in parts], -1)
                made += [b.unflatten(-1, (self.heads, n, self._size)) for b, n in zip(blocks, parts, strict=True)]
        q, k, v = (t.flatten(-3, -2).transpose(1, 2) for t in made)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
        found: Tensor = getattr(self, self._last)(y.transpose(1, 2).flatten(2))
        return found


class _FewerHeads(nn.Module):
    """torch's attention with some of its heads, called as that is.

    Weights that it answers with are a mean over the heads that are left; they have no more of each removed one.
    """

    def __init__(self, attention: nn.MultiheadAttention, kept: Sequence[int]) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        width, size = attention.embed_dim, attention.head_dim
        rows = torch.arange(3 * width).view(3, attention.num_heads, size)[:, list(kept)].flatten()
        rows = rows.to(attention.in_proj_weight.device)

        self.in_proj_weight = _some(attention.in_proj_weight, 0, rows)
        self.in_proj_bias = None if attention.in_proj_bias is None else _some(attention.in_proj_bias, 0, rows)
        last = attention.out_proj
        self.out_proj = NonDynamicallyQuantizableLinear(len(kept) * size, width, bias=False, device="meta")
        self.out_proj.weight = _some(last.weight, 1, rows[: len(kept) * size])
        self.out_proj.bias = last.bias
        self.embed_dim, self.num_heads, self.head_dim, self.kept = width, len(kept), size, tuple(kept)
        self.whole = attention.num_heads
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self._qkv_same_embed_dim = False  # or torch's encoder layer would read these weights by itself

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As `torch.nn.MultiheadAttention`, ``is_causal`` a hint of what the mask says."""
        given = (query, key, value)
        single = query.dim() == 2
        axis = 0 if self.batch_first or single else 1

        def first(x: Tensor) -> Tensor:  # (batch, tokens, width)
            return x[None] if single else x.transpose(0, axis)

        q, k, v = (
            t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in self._projected(given, first)
        )
        mask = self._mask(attn_mask, key_padding_mask, q, single)
        weights = None
        drop = self.dropout if self.training else 0.0
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), drop)
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, drop)
        y = F.linear(y.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if single:
            return y[0], None if weights is None else weights[0]
        return y.transpose(0, axis), weights

    def _projected(self, given: Sequence[Tensor], first: Any) -> Sequence[Tensor]:
        query, key, value = given
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key and key is value:
            return F.linear(first(query), weight, bias).chunk(3, -1)
        inner = self.num_heads * self.head_dim
        parts = [inner, 2 * inner] if key is value else [inner] * 3
        biases = [None] * len(parts) if bias is None else bias.split(parts)
        made = [F.linear(first(x), w, b) for x, w, b in zip(given, weight.split(parts), biases, strict=False)]
        return (made[0], *made[1].chunk(2, -1)) if key is value else made

    def _mask(self, mask: Tensor | None, padding: Tensor | None, like: Tensor, single: bool) -> Tensor | None:
        """Both masks as what is added to scores (batch, heads, queries, keys)."""

        def added(given: Tensor) -> Tensor:
            if given.dtype is not torch.bool:
                return given.to(like.dtype)
            return torch.zeros_like(given, dtype=like.dtype).masked_fill(given, float("-inf"))

        found = None
        if mask is not None:
            found = added(mask)
            if mask.dim() == 3:  # one for each head
                found = found.unflatten(0, (-1, self.whole))[:, list(self.kept)]
        if padding is not None:
            rows = added(padding[None] if single else padding)[:, None, None]
            found = rows if found is None else found + rows
        return found


def attention_layers(
    network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> list[AttentionLayer]:
    """Modules that attend with several heads, each of which can be removed.

    They are torch's attention, and any module whose queries, keys and values are made by one to three linear layers,
    queries as wide as what its last one reads: timm's, transformers' and most people's own, with fewer heads of keys
    and values than of queries, or a bias of each head for positions, too.

    Args:
        network: run once in evaluation mode, and left as it was.
        args, kwargs: of a call.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> attention_layers(nn.Sequential(layer), (torch.zeros(1, 3, 8),))
    [AttentionLayer(path='0.self_attn', heads=2, queries=1)]
    """
    found = _cuts(network, args, kwargs or {})
    return [AttentionLayer(path, cut.heads, cut.queries) for path, (cut, _) in found.items()]


def prune_heads(
    network: nn.Module,
    heads: Mapping[str, Sequence[int]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Removes heads in place: rows of projections and columns of the layer behind them. Tensors are new ones.

    Args:
        network: that has them.
        heads: of each module, by its path, which to remove; of keys and values where queries share them.
        args, kwargs: of a call, see `attention_layers`.

    Raises:
        HastenError: no such module or head, or all heads of one.
    """
    known = _cuts(network, args, kwargs or {})
    for path, removed in heads.items():
        if path not in known:
            raise HastenError(
                f"{path or 'the network'} is no attention whose heads can be removed: see attention_layers"
            )
        count = known[path][0].heads
        if not {*removed} < {*range(count)}:
            raise HastenError(f"{path} has heads 0 to {count - 1}, one of which stays: cannot remove {tuple(removed)}")
    for path, removed in heads.items():
        if removed:
            module = network.get_submodule(path)
            made = _cut_out(module, known[path][0], sorted(removed))
            if made is not module:
                network.set_submodule(path, made.train(module.training))


@contextlib.contextmanager
def heads_masked(
    network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> Iterator[Mapping[tuple[str, int], contextlib.AbstractContextManager[None]]]:
    """Of each (path, head) of a network a context within which nobody reads what that head makes.

    Within the whole, weights that are masked are copies: tensors that are shared with other networks stay.

    Args:
        network, args, kwargs: of `attention_layers`.
    """
    known = _cuts(network, args, kwargs or {})
    layers = {path: _out(network.get_submodule(path), cut) for path, (cut, _) in known.items()}
    before = {path: layer.weight for path, layer in layers.items()}

    @contextlib.contextmanager
    def masked(path: str, head: int) -> Iterator[None]:
        weight = layers[path].weight
        columns = _columns(known[path][0], weight.shape[1], (head,))
        kept = weight[:, columns].clone()
        weight[:, columns] = 0
        try:
            yield
        finally:
            weight[:, columns] = kept

    try:
        with torch.no_grad():
            for layer in layers.values():
                layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
            yield {(path, h): masked(path, h) for path, (cut, _) in known.items() for h in range(cut.heads)}
    finally:
        for path, layer in layers.items():
            layer.weight = before[path]
