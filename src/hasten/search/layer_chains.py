"""Tree search for a chain of layers that answers one input, as short as can be (CoLa, arXiv 2507.07996).

The search is told whether an answer is right: it shows what a model's depth could do, not what can be used on an input
with an unknown answer. On a question with few options some path gives each of them; compare with a search for a wrong
one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.errors import HastenError

Path = tuple[int, ...]
Score = Callable[[Path], bool]


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
    """

    layers: int
    shortest: int
    longest: int
    runs: tuple[int, ...] = (1, 2, 3, 4)
    deeper: tuple[int, ...] = (1,)
    repeats: int = 2
    skip: bool = True
    repeat: bool = True

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
    """What a search saw: every path with whether it was right, in the order tried."""

    whole: Path
    seen: dict[Path, bool]
    root: Node | None = None

    @property
    def right_before(self) -> bool:
        """Whether the whole model was right."""
        return self.seen[self.whole]

    @property
    def best(self) -> Path | None:
        """The shortest right path, the first of equals; None when none was right."""
        right = [p for p, ok in self.seen.items() if ok]
        return min(right, key=len) if right else None


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
        score: whether the model is right along a path; called once for each.
        trials: paths tried beside the whole model.
        penalty: what a path as long as the model costs in the bound.
        explore: chance of a random child.
        seed: of every choice.
    """
    rng = random.Random(seed)
    whole = tuple(range(rules.layers))
    root = Node(whole)
    seen: dict[Path, bool] = {}
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
