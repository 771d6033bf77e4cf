"""The tree search over layer chains: its actions, its bookkeeping, its limits."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.search.layer_chains import (
    ChainResult,
    Node,
    Rules,
    by_thirds,
    compare,
    often_right,
    random_search,
    score_by_length,
    search,
    static_chains,
    ucb,
    use_of_layers,
)

RULES = Rules(10, 6, 12)


def nodes(root: Node) -> list[Node]:
    return [root, *(n for c in root.children for n in nodes(c))]


def test_candidates_at_the_root() -> None:
    free = Rules(10, 1, 40)
    whole = tuple(range(10))
    # Runs of 1 to 4 skipped, and as many repeated.
    assert len(free.next(whole, root=True)) == 2 * sum(10 - k + 1 for k in range(1, 5))
    assert len(free.next(whole)) == 20
    doubled = (0, 1, 1, 2)
    assert len([p for p in Rules(3, 1, 9).next(doubled) if len(p) == 3]) == 3, "either of two equal steps is one path"
    assert all(max(p.count(i) for i in p) <= 2 for p in Rules(3, 1, 9).next(doubled))


def test_runs_that_trade_places() -> None:
    order = Rules(5, 5, 5, skip=False, repeat=False, reorder=True, runs=(1, 2))
    whole = tuple(range(5))
    assert order.next(whole) == [(1, 0, 2, 3, 4), (0, 2, 1, 3, 4), (0, 1, 3, 2, 4), (0, 1, 2, 4, 3)]
    assert order.next(whole, root=True)[4:] == [(2, 3, 0, 1, 4), (0, 3, 4, 1, 2)]
    wanted = (1, 0, 2, 4, 3)
    assert search(order, lambda p: p == wanted, trials=60, seed=2).best == wanted
    assert Rules(5, 5, 5, skip=False, repeat=False).next(whole) == []


def test_the_books_balance() -> None:
    result = search(RULES, lambda path: sum(path) % 3 == 0, trials=80, seed=1)
    assert len(result.seen) == 81
    assert result.root is not None
    for node in nodes(result.root):
        own = int(node.path in result.seen)
        assert node.visits == own + sum(c.visits for c in node.children)
        assert node.total == own * result.seen.get(node.path, 0) + sum(c.total for c in node.children)
        if node.visits:
            expected = node.total / node.visits - 5 * len(node.path) / 10 + math.sqrt(2 * math.log(82) / node.visits)
            assert ucb(node, 81, 10, 5.0) == pytest.approx(expected)
    assert all(6 <= len(p) <= 12 for p in result.seen)
    paths = [n.path for n in nodes(result.root)]
    assert len(paths) == len(set(paths))


def test_a_budget_of_nothing_and_the_same_seed() -> None:
    assert list(search(RULES, lambda p: True, trials=0).seen) == [tuple(range(10))]
    one, two = (search(RULES, lambda p: len(p) == 8, trials=40, seed=5).seen for _ in range(2))
    assert list(one) == list(two)
    assert list(one) != list(search(RULES, lambda p: len(p) == 8, trials=40, seed=6).seen)


def test_a_heavy_penalty_prefers_short_paths() -> None:
    long = Node(tuple(range(10)), visits=3, total=3)
    short = Node(tuple(range(7)), visits=9, total=0)
    assert ucb(short, 20, 10, 1e6) > ucb(long, 20, 10, 1e6)
    assert ucb(short, 20, 10, 0.0) < ucb(long, 20, 10, 0.0)
    assert ucb(Node((0,)), 20, 10, 0.0) == -math.inf


@pytest.mark.parametrize("seed", range(4))
def test_under_an_endless_penalty_the_shortest_is_opened_first(seed: int) -> None:
    result = search(RULES, lambda p: len(p) > 9, trials=60, penalty=1e9, explore=0.0, seed=seed)
    assert result.root is not None
    order = {path: number for number, path in enumerate(result.seen)}
    for node in nodes(result.root):
        opened = [c for c in node.children if c.children]
        for one in opened:
            first = min(order[c.path] for c in one.children if c.path in order)
            waiting = [
                c
                for c in node.children
                if c.path in order and order[c.path] < first and not c.children and not c.explored
            ]
            assert all(len(one.path) <= len(c.path) for c in waiting)


def test_a_static_chain_has_a_share_as_its_score() -> None:
    result = search(RULES, lambda p: (10 - abs(len(p) - 7)) / 10, trials=60, seed=2)
    assert len(result.ranked[0]) == 7
    assert [result.seen[p] for p in result.ranked] == sorted(result.seen.values(), reverse=True)
    assert not result.right_before


def test_what_the_chains_are_made_of() -> None:
    whole = (0, 1, 2, 3)
    result = ChainResult(whole, {whole: 0, (0, 1, 3): 1, (0, 3): 0, (0, 1, 1, 2, 3): 1, (0, 2, 3): 0})
    assert result.ranked == [(0, 1, 3), (0, 1, 1, 2, 3), (0, 3), (0, 2, 3), whole]
    assert result.front == [(0, 3), (0, 1, 3)]
    assert result.best == (0, 1, 3)
    assert use_of_layers([(0, 1, 3), (0, 1, 1, 3)], 4) == ([0, 0, 1, 0], [0, 0.5, 0, 0])
    assert use_of_layers([], 2) == ([0, 0], [0, 0])
    assert score_by_length([result]) == {2: 0, 3: 0.5, 4: 0, 5: 1}


def test_the_whole_tree_is_walked_and_ends() -> None:
    rules = Rules(3, 2, 3, runs=(1,))
    result = search(rules, lambda p: p == (0, 2), trials=1000)
    assert result.best == (0, 2)
    assert result.root is not None
    assert result.root.explored
    assert set(random_search(rules, lambda p: False, trials=1000).seen) <= set(result.seen) | {(0, 1, 2)}


def test_rules_keep_the_whole_model() -> None:
    with pytest.raises(HastenError, match="shortest <= layers"):
        Rules(10, 11, 12)


def test_what_the_arms_of_a_comparison_may_do() -> None:
    whole = tuple(range(10))
    found = compare(RULES, lambda path: len(path) != 10, lambda path: False, trials=20)
    for name in ("tree", "random", "skip", "repeat", "reorder", "control"):
        assert len(getattr(found, name).seen) == 21, name
    assert max(map(len, found.skip.seen)) == 10
    assert min(map(len, found.repeat.seen)) == 10
    assert found.tree.shorter
    assert not found.repeat.shorter
    assert found.control.best is None
    assert any(sorted(path) == list(whole) and path != whole for path in found.reorder.seen)


def test_chains_that_are_often_right_and_thirds() -> None:
    whole, one, other = (0, 1, 2), (0, 1), (1, 2)
    results = [ChainResult(whole, {whole: 1.0, one: 1.0, other: right}) for right in (0.0, 1.0, 0.0)]
    assert often_right(results, 1) == [one]
    assert often_right(results, 4) == [one, other]
    assert by_thirds([0.0, 1.0, 0.5, 0.5, 1.0]) == [0.5, 0.5, 1.0]


def test_chains_that_do_not_look_at_the_input() -> None:
    loaded = tiny_model(layers=4)
    model = LanguageModel(loaded.network, loaded.tokenizer)
    found = static_chains(model, torch.arange(20)[None], counts=(1, 2))
    assert found["leaving at layer 3"] == (0, 1, 2)
    assert [len(p) for p in found.values()] == [3, 2, 3, 2]
    assert set(found["2 layers of least influence dropped"]) < set(found["1 layers of least influence dropped"])
