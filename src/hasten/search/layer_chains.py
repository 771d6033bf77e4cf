"""Tree search for a chain of layers that answers one input, as short as can be (CoLa, arXiv 2507.07996).

The search is told whether an answer is right: it shows what a model's depth could do, not what can be used on an input
with an unknown answer. On a question with few options some path gives each of them; compare with a search for a wrong
one.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hasten.errors import HastenError
from hasten.methods.drop_layers import least_important

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.runtime.language_model import LanguageModel

Path = tuple[int, ...]
Score = Callable[[Path], float]  # 1 or True: right; the share of right answers for several inputs


@dataclass(frozen=True)
class Rules:
    """Which paths may be tried.

    Args:
        layers: of the model.
        shortest, longest: steps of a path.
        runs: lengths of a run that one action skips or repeats at the root.
        deeper: the same below the root.
        repeats: times a layer may stand in a path.
        skip, repeat: which actions there are.
        reorder: whether a run may also trade places with the run of as many steps behind it; not among the paper's.
    """

    layers: int
    shortest: int
    longest: int
    runs: tuple[int, ...] = (1, 2, 3, 4)
    deeper: tuple[int, ...] = (1,)
    repeats: int = 2
    skip: bool = True
    repeat: bool = True
    reorder: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.layers <= self.longest:
            raise HastenError("a chain search keeps the whole model among its paths: shortest <= layers <= longest")

    def next(self, path: Path, root: bool = False) -> list[Path]:
        """Paths one action away, in a fixed order, without repeats."""
        found: dict[Path, None] = {}
        for length in self.runs if root else self.deeper:
            for i in range(len(path) - length + 1):
                if self.skip and len(path) - length >= self.shortest:
                    found[path[:i] + path[i + length :]] = None
                if self.repeat and len(path) + length <= self.longest:
                    doubled = path[: i + length] + path[i:]
                    if max(doubled.count(layer) for layer in path[i : i + length]) <= self.repeats:
                        found[doubled] = None
                if self.reorder and i + 2 * length <= len(path):
                    middle, end = i + length, i + 2 * length
                    found[path[:i] + path[middle:end] + path[i:middle] + path[end:]] = None
        found.pop(path, None)
        return list(found)


@dataclass
class Node:
    """A path in the tree; without children until it is expanded."""

    path: Path
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    explored: bool = False


@dataclass
class ChainResult:
    """What a search saw: the score of every path, in the order tried; for one input 1 or 0, right or wrong."""

    whole: Path
    seen: dict[Path, float]
    root: Node | None = None

    @property
    def right_before(self) -> bool:
        """Whether the whole model was right."""
        return self.seen[self.whole] == 1

    @property
    def best(self) -> Path | None:
        """The shortest right path, the first of equals; None when none was right."""
        right = [p for p, score in self.seen.items() if score == 1]
        return min(right, key=len) if right else None

    @property
    def shorter(self) -> bool:
        """Whether a path shorter than the whole model was right."""
        return self.best is not None and len(self.best) < len(self.whole)

    @property
    def ranked(self) -> list[Path]:
        """Every path tried, the best score first, among equals the shortest."""
        return sorted(self.seen, key=lambda p: (-self.seen[p], len(p)))

    @property
    def front(self) -> list[Path]:
        """The paths than which none tried is both shorter and no worse, or better and no longer; shortest first."""
        found: list[Path] = []
        for path in sorted(self.seen, key=lambda p: (len(p), -self.seen[p])):
            if not found or self.seen[path] > self.seen[found[-1]]:
                found.append(path)
        return found


def often_right(results: Iterable[ChainResult], count: int) -> list[Path]:
    """The ``count`` paths, of those shorter than the whole model, that were right for most inputs, best first."""
    often = Counter(
        path for result in results for path, score in result.seen.items() if score and len(path) < len(result.whole)
    )
    return [path for path, _ in often.most_common(count)]


def static_chains(model: LanguageModel, ids: Tensor, counts: Sequence[int] = (3, 6)) -> dict[str, Path]:
    """Shorter chains that do not look at the input: leaving early, and dropping the layers of least influence.

    Args:
        model: whose layers they are made of.
        ids: (batch, length) tokens of a text that influence is measured on.
        counts: layers fewer.

    Returns:
        What is done, in words -> the chain.
    """
    layers = len(model.layers)
    found = {f"leaving at layer {layers - n}": tuple(range(layers - n)) for n in counts}
    for count in counts:
        dropped = least_important(model, ids, count).layers
        found[f"{count} layers of least influence dropped"] = tuple(i for i in range(layers) if i not in dropped)
    return found


def by_thirds(shares: Sequence[float]) -> list[float]:
    """Means over the first, the middle and the last third of the layers."""
    third = -(-len(shares) // 3)
    parts = [shares[i : i + third] for i in range(0, len(shares), third)]
    return [sum(part) / len(part) for part in parts]


def use_of_layers(paths: Iterable[Path], layers: int) -> tuple[list[float], list[float]]:
    """For each layer the share of ``paths`` that skip it, and of those that repeat it."""
    known = list(paths)
    count = max(1, len(known))
    skipped = [sum(i not in p for p in known) / count for i in range(layers)]
    repeated = [sum(p.count(i) > 1 for p in known) / count for i in range(layers)]
    return skipped, repeated


def score_by_length(results: Iterable[ChainResult]) -> dict[int, float]:
    """Length of a path -> mean score of all paths of that length that were tried."""
    found: dict[int, list[float]] = {}
    for result in results:
        for path, score in result.seen.items():
            found.setdefault(len(path), []).append(float(score))
    return {length: sum(scores) / len(scores) for length, scores in sorted(found.items())}


def ucb(node: Node, trials: int, layers: int, penalty: float) -> float:
    """Mean reward, less the path's share of the depth, plus what is still unknown (the paper's extended UCB)."""
    if not node.visits:
        return -math.inf
    unknown = math.sqrt(2 * math.log(trials + 1) / node.visits)
    return node.total / node.visits - penalty * len(node.path) / layers + unknown


def search(
    rules: Rules, score: Score, *, trials: int = 100, penalty: float = 5.0, explore: float = 0.1, seed: int = 0
) -> ChainResult:
    """Monte Carlo tree search over paths.

    Args:
        rules: which paths there are.
        score: whether the model is right along a path, or how often over several inputs (a static chain); called once
            for each path.
        trials: paths tried beside the whole model.
        penalty: what a path as long as the model costs in the bound.
        explore: chance of a random child.
        seed: of every choice.
    """
    rng = random.Random(seed)
    whole = tuple(range(rules.layers))
    root = Node(whole)
    seen: dict[Path, float] = {}
    in_tree = {whole}

    def evaluate(node: Node) -> None:
        seen[node.path] = score(node.path)
        above: Node | None = node
        while above is not None:
            above.visits += 1
            above.total += seen[node.path]
            above = above.parent

    evaluate(root)
    while len(seen) <= trials and not root.explored:
        node = root
        while node.children:
            options = [c for c in node.children if not c.explored]
            if not options:
                break
            if rng.random() < explore:
                node = rng.choice(options)
            else:
                # One that was never tried counts least: the search goes deep along what it knows.
                node = max(options, key=lambda c: ucb(c, root.visits, rules.layers, penalty))
        if not node.visits:
            evaluate(node)
            continue
        if not node.children:
            new = [p for p in rules.next(node.path, node is root) if p not in in_tree]
            in_tree.update(new)
            node.children = [Node(p, node) for p in new]
            if new:
                evaluate(rng.choice(node.children))
                continue
        node.explored = all(c.explored for c in node.children)
    return ChainResult(whole, seen, root)


def random_search(rules: Rules, score: Score, *, trials: int = 100, seed: int = 0, steps: int = 4) -> ChainResult:
    """As many different paths by up to ``steps`` random actions from the whole model: what the tree must beat."""
    rng = random.Random(seed)
    whole = tuple(range(rules.layers))
    seen = {whole: score(whole)}
    idle = 0
    while len(seen) <= trials and idle < 1000:
        path = whole
        for step in range(rng.randint(1, steps)):
            options = rules.next(path, root=step == 0)
            if options:
                path = rng.choice(options)
        if path in seen:
            idle += 1
            continue
        seen[path] = score(path)
    return ChainResult(whole, seen)


@dataclass
class Comparison:
    """Searches for one input, at equal evaluations.

    Attributes:
        tree: with both actions.
        random: `random_search` under the same rules.
        skip, repeat: the tree with one action alone.
        reorder: the tree, where runs may trade places too.
        control: the tree's search for a wrong answer: how much it finds only because it may try many paths.
    """

    tree: ChainResult
    random: ChainResult
    skip: ChainResult
    repeat: ChainResult
    reorder: ChainResult
    control: ChainResult


def compare(rules: Rules, right: Score, wrong: Score, *, trials: int = 100, seed: int = 0) -> Comparison:
    """Every search of a `Comparison`.

    Args:
        rules: of the tree with both actions.
        right: as for `search`.
        wrong: the same for an answer that is not right.
        trials, seed: of each search.
    """
    one = {
        "skip": replace(rules, longest=rules.layers, repeat=False),
        "repeat": replace(rules, shortest=rules.layers, skip=False),
        "reorder": replace(rules, reorder=True),
    }
    return Comparison(
        tree=search(rules, right, trials=trials, seed=seed),
        random=random_search(rules, right, trials=trials, seed=seed),
        control=search(rules, wrong, trials=trials, seed=seed),
        **{name: search(some, right, trials=trials, seed=seed) for name, some in one.items()},
    )
