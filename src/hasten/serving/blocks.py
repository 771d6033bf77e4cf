"""Which blocks of a cache are free, which are being written, and which hold the beginning of what texts."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.kernels.kv_cache import BLOCK


@dataclass(eq=False)
class PrefixBlock:
    """A whole block whose text is known: the tokens of its path from the root and its own.

    Attributes:
        block: its number in the pool.
        tokens: its own `BLOCK`.
        parent: the block before it; None for the root, which has no block.
        children: what follows it, by their tokens.
        users: texts that read it at the moment; each also uses all blocks before it.
        used: rises with every use.
    """

    block: int
    tokens: tuple[int, ...] = ()
    parent: PrefixBlock | None = None
    children: dict[tuple[int, ...], PrefixBlock] = field(default_factory=dict)
    users: int = 0
    used: int = 0


class BlockTree:
    """The blocks of a pool, and a tree of those that hold texts' beginnings, shared by all texts that begin so.

    A block is free, taken (its text is still being written), or in the tree. Of the tree the least recently used leaf
    that no text reads gives its block to whoever takes one when none is free.

    Args:
        blocks: of the pool.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self.root = PrefixBlock(-1)
        self._known = 0
        self._idle = 0  # blocks of the tree that no text uses
        self._clock = 0
        # Leaves that nobody uses, by when they were used; entries that hold no longer are left out when they come up.
        self._leaves: list[tuple[int, int, PrefixBlock]] = []

    @property
    def cached(self) -> int:
        """Blocks of the tree that no text uses at the moment: they are given away as needed."""
        return self._idle

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that running texts read or write."""
        return self.blocks - self._idle - len(self._free)

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return self._idle + len(self._free)

    def after(self, path: Sequence[PrefixBlock], tokens: Sequence[int]) -> PrefixBlock | None:
        """The block that holds ``tokens`` (`BLOCK`) behind a path from the root; None where there is none."""
        return (path[-1] if path else self.root).children.get(tuple(tokens))

    def match(self, tokens: Sequence[int], most: int) -> list[PrefixBlock]:
        """The blocks, at most so many, that hold the beginning of a text; nobody uses them by that."""
        path: list[PrefixBlock] = []
        while len(path) < most:
            found = self.after(path, tokens[len(path) * BLOCK : (len(path) + 1) * BLOCK])
            if found is None:
                break
            path.append(found)
        return path

    def use(self, path: Sequence[PrefixBlock]) -> None:
        """Counts a text that reads these blocks from now on."""
        for node in path:
            self._idle -= node.users == 0
            node.users += 1
            self._touch(node)

    def release(self, path: Sequence[PrefixBlock]) -> None:
        """Undoes `use`: the text does not read these blocks any more."""
        for node in reversed(path):
            node.users -= 1
            self._touch(node)
            if not node.users:
                self._idle += 1
                self._offer(node)

    def _touch(self, node: PrefixBlock) -> None:
        self._clock += 1
        node.used = self._clock

    def _offer(self, node: PrefixBlock) -> None:
        if not node.users and not node.children and node.parent is not None:
            heapq.heappush(self._leaves, (node.used, node.block, node))
            if len(self._leaves) > 4 * self.blocks + 64:
                self._leaves = [entry for entry in self._leaves if self._holds(entry)]
                heapq.heapify(self._leaves)

    def _holds(self, entry: tuple[int, int, PrefixBlock]) -> bool:
        used, _, node = entry
        return node.used == used and not node.users and not node.children and node.parent is not None

    def take(self, count: int) -> list[int] | None:
        """So many blocks to write into, or None where fewer can be taken."""
        if count > self.available:
            return None
        while len(self._free) < count:
            self._drop_oldest()
        return [self._free.pop() for _ in range(count)]

    def _drop_oldest(self) -> None:
        while True:
            entry = heapq.heappop(self._leaves)
            if self._holds(entry):
                break
        node = entry[2]
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        node.parent = None
        self._idle -= 1
        self._free.append(node.block)
        self._offer(parent)

    def give_back(self, blocks: Sequence[int]) -> None:
        """Taken blocks are free again."""
        self._free.extend(blocks)

    def enter(self, path: Sequence[PrefixBlock], tokens: Sequence[int], block: int) -> PrefixBlock:
        """A taken block, now whole, stands in the tree behind ``path``, used by its writer.

        Returns:
            Its node, or that of another block with the same text: then the given one is free again.
        """
        parent = path[-1] if path else self.root
        node = self.after(path, tokens)
        if node is None:
            node = PrefixBlock(block, tuple(tokens), parent, users=1)
            parent.children[node.tokens] = node
            self._touch(node)
        else:
            self.use([node])
            self._free.append(block)
        return node

    def forget(self) -> None:
        """Empties the tree of all that no text uses."""
        while self._idle:
            self._drop_oldest()
