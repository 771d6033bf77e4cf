"""Blocks of a pool and the tree of those that hold texts' beginnings, against a plain account of them."""

from __future__ import annotations

import random

import pytest

from hasten.kernels.kv_cache import BLOCK
from hasten.serving.blocks import BlockTree, PrefixBlock


def text(*names: int) -> list[int]:
    """A text of whole blocks, each its name over and over."""
    return [name for name in names for _ in range(BLOCK)]


def written(tree: BlockTree, *names: int) -> list[PrefixBlock]:
    """A text that reads what is known of it and enters the rest, still in use."""
    tokens = text(*names)
    path = tree.match(tokens, len(names))
    tree.use(path)
    taken = tree.take(len(names) - len(path))
    assert taken is not None
    for block in taken:
        path.append(tree.enter(path, tokens[len(path) * BLOCK : (len(path) + 1) * BLOCK], block))
    return path


def test_beginnings_are_found_and_shared() -> None:
    tree = BlockTree(8)
    first = written(tree, 1, 2, 3)
    second = written(tree, 1, 2, 4)
    assert [n.block for n in first[:2]] == [n.block for n in second[:2]]
    assert first[2].block != second[2].block
    assert (tree.used, tree.cached, tree.free) == (4, 0, 4)
    tree.release(first)
    assert (tree.used, tree.cached, tree.free) == (3, 1, 4)
    assert tree.match(text(1, 2, 3), 3) == first
    assert tree.match(text(1, 2, 3), 2) == first[:2]
    assert tree.match(text(2, 2), 2) == []


def test_the_least_recently_used_leaf_leaves_first() -> None:
    tree = BlockTree(4)
    for names in ((1, 2), (3,), (4,)):
        tree.release(written(tree, *names))
    tree.release(written(tree, 1))  # used again, but not block 2 behind it
    kept = tree.take(1)
    assert kept is not None
    assert len(tree.match(text(1, 2), 2)) == 1
    assert len(tree.match(text(3), 1)) == 1
    assert tree.take(4) is None
    assert tree.take(3) is not None
    assert tree.available == 0


def test_a_block_in_use_never_leaves() -> None:
    tree = BlockTree(3)
    path = written(tree, 1, 2)
    assert tree.take(2) is None
    tree.release(path)
    assert tree.take(3) is not None


def test_two_writers_of_one_text_share_in_the_end() -> None:
    tree = BlockTree(4)
    one, other = tree.take(1), tree.take(1)
    assert one is not None
    assert other is not None
    first = tree.enter([], text(5), one[0])
    second = tree.enter([], text(5), other[0])
    assert first is second
    assert (first.users, tree.free) == (2, 3)


@pytest.mark.parametrize("seed", range(3))
def test_random_texts_lose_no_block(seed: int) -> None:
    choice, tree = random.Random(seed), BlockTree(20)
    running: list[list[PrefixBlock]] = []
    for _ in range(2000):
        if running and choice.random() < 0.5:
            tree.release(running.pop(choice.randrange(len(running))))
        else:
            names = [choice.randrange(3) for _ in range(choice.randint(1, 5))]
            known = tree.match(text(*names), len(names))
            tree.use(known)
            enough = tree.available >= len(names) - len(known)
            tree.release(known)
            if enough:
                running.append(written(tree, *names))
        in_use = {node.block for path in running for node in path}
        assert tree.used == len(in_use)
        assert tree.used + tree.cached + tree.free == tree.blocks
    for path in running:
        tree.release(path)
    assert tree.used == 0
    tree.forget()
    assert tree.free == tree.blocks
