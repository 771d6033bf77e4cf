"""Heads of attention removed from a network: those that its answers change least without."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.errors import HastenError
from hasten.methods.editing import Draft, edit
from hasten.methods.method import Context
from hasten.methods.network_method import NetworkMethod
from hasten.models.attention_heads import AttentionLayer, attention_layers, heads_masked, prune_heads
from hasten.runtime.network import Network, difference
from hasten.workload.einsum import Access, Einsum, Op, Phase, Role, Tensor, Workload

# Of all heads, what is tried.
_SHARES = (0.25, 0.5)
# Seconds that ranking heads may take: fewer examples where there are many heads, and not at all where one is too much;
# and the share of a budget.
_RANKING, _MOST, _SHARE = 10.0, 60.0, 0.05
_LAYERS = "attention layers"
"""Where these are in `Network.derived`."""


@dataclass(frozen=True)
class HeadPruning(NetworkMethod):
    """Attention heads removed: their rows of the projections, and their columns of the layer behind.

    Heads are ranked by how far the network's answers move on its examples when one alone is masked (Michel et al.,
    section 3.2, with the answers' distance in place of a score); the lowest go, one stays in each layer. Where queries
    share keys and values, heads are those of keys and values, and all queries of one go with it.

    Args:
        share: of all heads that go.
        layers: of each module of attention its path, its heads and those of them that go; found on the network when
            empty, see `ranked`.

    Raises:
        HastenError: a share that is not between 0 and 1, or a layer of which no head stays.
    """

    name: ClassVar[str] = "head-pruning"
    kind: ClassVar[str] = "heads"
    order: ClassVar[int] = 5
    layerwise: ClassVar[bool] = True
    source: ClassVar[str] = "are sixteen heads really better than one, arXiv 1905.10650"

    share: float = 0.25
    layers: tuple[tuple[str, int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise HastenError(f"a share of heads between 0 and 1 is removed, not {self.share:g}")
        for layer in self.layers:
            known = len(layer) == 3 and isinstance(layer[0], str) and isinstance(layer[1], int)
            if not known or not {*layer[2]} < {*range(layer[1])}:
                raise HastenError(f"layers of head-pruning are (path, heads, those that go but not all), not {layer}")

    @property
    def title(self) -> str:
        return f"{self.share:.0%} of heads pruned"

    def ranked(self, network: Network) -> Self:
        """Itself with the heads that go, ranked on a network's examples; as it is where these are known."""
        return self if self.layers else self._chosen(head_importance(network))

    def _chosen(self, importance: Mapping[tuple[str, int], float]) -> Self:
        total: dict[str, int] = {}
        for path, _ in importance:
            total[path] = total.get(path, 0) + 1
        gone: dict[str, list[int]] = {path: [] for path in total}
        left = math.floor(self.share * len(importance) + 0.5)
        for path, head in sorted(importance, key=lambda one: importance[one]):
            if left and len(gone[path]) < total[path] - 1:
                gone[path].append(head)
                left -= 1
        layers = tuple((path, total[path], tuple(sorted(heads))) for path, heads in gone.items() if heads)
        return replace(self, layers=layers)

    def why_not_network(self, network: Network) -> str | None:
        found = {a.path: a.heads for a in _attention(network)}
        for path, heads, _ in self.layers:
            if found.get(path) != heads:
                return f"{path} is no attention of {heads} heads in it"
        return None if found else "it has no attention whose heads can be removed"

    def change(self, network: Network) -> None:
        heads = {path: gone for path, _, gone in self.ranked(network).layers}
        if not heads:
            raise HastenError(f"{self.share:.0%} of its heads is less than one")
        prune_heads(network.module, heads, network.inputs.args, network.inputs.kwargs)

    def why_not_described(self, workload: Workload) -> str | None:
        if (why := super().why_not_described(workload)) is not None:
            return why
        if not self.layers:
            return "which heads go is found on the network itself: ask ranked(network)"
        modules = {e.module for p in workload.phases for e in p.cascade.einsums}
        missing = next((p for p, _, _ in self.layers if not any(_inside(m, p) for m in modules)), None)
        return None if missing is None else f"it has no module {missing}"

    def rewrite(self, workload: Workload) -> Workload:
        weights = dict(workload.weights)

        def change(phase: Phase, draft: Draft) -> None:
            for path, heads, gone in self.layers:
                _narrow(draft, path, heads, heads - len(gone))

        made = edit(workload, change)
        for phase in made.phases:
            weights |= {n: t.nbytes for n, t in phase.cascade.tensors.items() if t.role is Role.WEIGHT and n in weights}
        return replace(made, weights=weights)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls(share) for share in _SHARES] if isinstance(model, Network) else []

    @classmethod
    def candidates(cls, context: Context) -> Sequence[Self]:
        one, found = cls(), cls.variants(context.model)
        if not found or one.why_not(context.model) or one.why_not_tried(context):
            return found[:1]
        importance = head_importance(context.model, _ranking(context))
        return [m for m in (one._chosen(importance) for one in found) if m.layers]

    def why_not_tried(self, context: Context) -> str | None:
        if self.layers or self.why_not(context.model):
            return None
        seconds = _seconds_to_rank(context.model)
        if seconds > _MOST:
            return f"ranking its heads would take about {seconds:.0f} s"
        if context.seconds is not None and seconds > _ranking(context):
            return f"ranking its heads would take about {seconds:.1f} s: a larger --budget has time for it"
        return None


def _ranking(context: Context) -> float:
    """Seconds that ranking heads may take in a run."""
    return _RANKING if context.seconds is None else min(_RANKING, _SHARE * context.seconds)


def _attention(network: Network) -> Sequence[AttentionLayer]:
    """`attention_layers`, looked for once."""
    known = network.derived
    if _LAYERS not in known:
        known[_LAYERS] = attention_layers(network.module, network.inputs.args, network.inputs.kwargs)
    found: Sequence[AttentionLayer] = known[_LAYERS]
    return found


def _seconds_to_rank(network: Network) -> float:
    """By one example."""
    begun = time.perf_counter()
    network.answers()
    return (time.perf_counter() - begun) * sum(a.heads for a in _attention(network))


def head_importance(network: Network, seconds: float = _RANKING) -> dict[tuple[str, int], float]:
    """How far a network's answers move when a head alone is masked: a mean over its examples, of as many as the time
    allows, of one at least.

    Args:
        network: run once for each head and example.
        seconds: about how long that may take.

    Returns:
        (path of the attention, head) -> a share of the answers' size, see `difference`.
    """
    count = max(1, int(seconds / max(_seconds_to_rank(network), 1e-9)))
    examples = network.examples[:count]
    expected = [network.answers(example) for example in examples]
    found: dict[tuple[str, int], float] = {}
    with heads_masked(network.module, network.inputs.args, network.inputs.kwargs) as masks:
        for head, masked in masks.items():
            with masked:
                moved = [difference(e, network.answers(x)) for e, x in zip(expected, examples, strict=True)]
            found[head] = sum(moved) / len(moved)
    return found


# What they compute.


def _inside(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")


def _narrow(draft: Draft, path: str, heads: int, kept: int) -> None:
    """Every Einsum between the projections of the attention at ``path`` and what reads its heads, for fewer heads."""
    places = [i for i, e in enumerate(draft.einsums) if _inside(e.module, path)]
    made, read = _projections(draft, places)
    wide: set[str] = set()  # tensors that hold all heads
    done: set[str] = set()  # weights of a module that is called again
    biases = {draft.tensors[weight].shape[0] for weight in made}
    queries = _queries(draft, made, read)
    for i in places:
        e = draft.einsums[i]
        weight = _weight(draft, e)
        weight = weight if weight in made | read else None
        last = weight in read
        table = None if weight is not None else _table(draft, e, made | read, heads * queries)
        if table is not None and table not in done:
            shape = draft.tensors[table].shape
            _resize(draft, table, len(shape) - 1 - shape[::-1].index(heads * queries), heads, kept)
            done.add(table)
        if weight is None and table is None and not any(a.tensor in wide for a in e.inputs):
            continue
        rank = _rank(e, heads, queries, weight, last)
        if rank is None:
            continue
        narrow = {rank: e.sizes[rank] * kept // heads}
        if weight is not None:
            if weight not in done:
                _resize(draft, weight, 1 if last else 0, heads, kept)
                done.add(weight)
        else:
            for a in e.inputs:
                one = draft.tensors[a.tensor]
                mine = _holds_numbers(one) and len(one.shape) == 1 and a.tensor not in done
                if mine and one.shape[0] in biases:
                    _resize(draft, a.tensor, 0, heads, kept)
                    done.add(a.tensor)
        output = e.output
        if rank in output.ranks:
            wide.add(output.tensor)
            shape = draft.tensors[output.tensor].shape
            whole = [j for j, n in enumerate(shape) if not n % heads]
            place = output.ranks.index(rank) if len(output.ranks) == len(shape) else whole[0] if whole else 0
            _resize(draft, output.tensor, place, heads, kept)
        draft.einsums[i] = replace(
            e, ranks=tuple((r, narrow.get(r, n)) for r, n in e.ranks),
            inputs=tuple(_fewer(a, rank, heads, kept) for a in e.inputs), output=_fewer(output, rank, heads, kept),
        )  # fmt: skip


def _projections(draft: Draft, places: Sequence[int]) -> tuple[set[str], set[str]]:
    """Weights whose products attention's own products read, and those that are multiplied by what these make."""
    made, read = set[str](), set[str]()
    scores: set[str] = set()  # that come from a product of two results, with no weight between
    for i in places:
        e = draft.einsums[i]
        weight = _weight(draft, e)
        if any(a.tensor in scores for a in e.inputs) and weight:
            read.add(weight)
        elif not weight and (e.op is Op.MATMUL or any(a.tensor in scores for a in e.inputs)):
            scores.add(e.output.tensor)
    wanted: set[str] = set()  # that such a product reads, likewise
    for i in reversed(places):
        e = draft.einsums[i]
        weight = _weight(draft, e)
        if weight and e.output.tensor in wanted:
            made.add(weight)
        elif not weight and (e.op is Op.MATMUL or e.output.tensor in wanted):
            wanted |= {a.tensor for a in e.inputs}
    return made, read


def _weight(draft: Draft, e: Einsum) -> str | None:
    """The matrix that a layer multiplies by; None where an Einsum is none."""
    if e.op not in (Op.MATMUL, Op.CONV):
        return None
    return next((a.tensor for a in e.inputs if draft.tensors[a.tensor].role is Role.WEIGHT), None)


def _queries(draft: Draft, made: set[str], read: set[str]) -> int:
    """Heads of queries to each of keys, by the rows that make all three and the columns that read them."""
    inner = max((draft.tensors[w].shape[1] for w in read), default=0)
    keys = (sum(draft.tensors[w].shape[0] for w in made) - inner) // 2
    return max(1, inner // keys) if keys > 0 else 1


def _table(draft: Draft, e: Einsum, layers: set[str], heads: int) -> str | None:
    """A parameter with numbers of each head that an Einsum reads, such as a bias for positions."""
    for a in () if e.op in (Op.MATMUL, Op.CONV) else e.inputs:
        one = draft.tensors[a.tensor]
        if _holds_numbers(one) and a.tensor not in layers and len(one.shape) > 1 and heads in one.shape:
            return a.tensor
    return None


def _holds_numbers(tensor: Tensor) -> bool:
    """Whether it is a parameter, and no indices into one."""
    return tensor.role is Role.WEIGHT and "int" not in tensor.dtype


def _rank(e: Einsum, heads: int, queries: int, weight: str | None, last: bool) -> str | None:
    """The rank of an Einsum whose size goes with the number of heads."""
    sizes = e.sizes
    if weight is not None:
        made, read = ("k", "c") if e.op is Op.CONV else ("n", "k")
        return read if last else made
    if e.op is Op.MATMUL:
        return next((r for r in ("h", "b") if r in sizes and not sizes[r] % heads), None)
    if "h" in sizes:
        return "h"

    def fitting() -> Iterator[str]:
        yield from (r for r, n in e.ranks if n in (heads, heads * queries) and r in e.output.ranks)
        yield from (r for r, n in reversed(e.ranks) if not n % heads and r in e.output.ranks)
        yield from (r for r, n in e.ranks if n in (heads, heads * queries))

    return next(fitting(), None)


def _resize(draft: Draft, name: str, axis: int, heads: int, kept: int) -> None:
    told = draft.tensors[name]
    shape = tuple(n * kept // heads if i == axis else n for i, n in enumerate(told.shape))
    draft.tensors[name] = replace(told, shape=shape)


def _fewer(access: Access, rank: str, heads: int, kept: int) -> Access:
    if access.elements is None or rank not in access.ranks:
        return access
    return replace(access, elements=access.elements * kept // heads)
