"""What a rule for the cache is: which cached tokens a new token attends to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from hasten.runtime.policies.attending import attend, taken


class PolicyLayer(Protocol):
    """What a policy sees of a cache's layer.

    Attributes:
        index: the layer's number in the model.
        heads: key-value heads.
        memory: what the policy keeps between steps, by name; cleared with the cache.
        seen_length: cached tokens up to the row that is attended from, itself included.
    """

    index: int
    heads: int
    memory: dict[str, Tensor]
    seen_length: int
    # Of one type in each cache; a policy asks for the batch's size alone.
    keys: Any


class PolicyCache(Protocol):
    """What a policy sees of a cache whose prompt is read."""

    @property
    def layers(self) -> Sequence[Any]:
        """A `PolicyLayer` for each of the model's layers."""

    def get_seq_length(self) -> int:
        """Tokens of each sequence."""

    def keep(self, kept: list[Tensor]) -> None:
        """Keeps positions (batch, kv heads, n) of each layer, rising; the others leave."""


class Policy(ABC):
    """A rule for what is read. Subclasses are frozen dataclasses; a layer's memory is in ``layer.memory``.

    Class attributes:
        compiled: whether the compiled step follows it.
        drops: whether tokens leave the cache after the prompt.
        remembers: whether what is read depends on earlier steps: then no draft can be computed and taken back.
    """

    compiled: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    drops: ClassVar[bool] = False

    def tensors(self, index: int, batch: int, heads: int, blocks: int, head_dim: int) -> dict[str, Tensor]:
        """What layer ``index`` keeps beside keys and values."""
        return {}

    def dense(self, index: int) -> bool:
        """Whether layer ``index`` reads everything."""
        return False

    @abstractmethod
    def budget(self, length: int) -> int:
        """Tokens that a step reads of ``length`` cached ones."""

    @abstractmethod
    def row(
        self, layer: PolicyLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float, first: int = 0
    ) -> Tensor:
        """Attention of one new token, query (batch, heads, 1, d), to the cache up to itself (batch, kv heads, n, d).

        Of what the policy chooses only positions from ``first`` on are seen: a model may have a window of its own.
        """

    def prompt(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float, start: int) -> None:  # noqa: B027
        """Sees a piece of the prompt: its queries (batch, heads, new, d) at ``start`` on, and all keys so far."""

    def prefilled(self, cache: PolicyCache) -> None:  # noqa: B027
        """The prompt is in the cache."""


class Selecting(Policy):
    """A policy that picks positions at every step."""

    @abstractmethod
    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        """Positions (batch, kv heads, k) that are read, without repeats; None for all."""

    def row(
        self, layer: PolicyLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float, first: int = 0
    ) -> Tensor:
        chosen = None if self.dense(layer.index) else self.choose(layer, query, keys, scaling)
        if chosen is None:
            self.seen(layer, None, query, keys, scaling)
            return attend(query, keys[:, :, first:], values[:, :, first:], scaling)
        some = taken(keys, chosen)
        self.seen(layer, chosen, query, some, scaling)
        mask = None
        if first:
            mask = (chosen >= first).repeat_interleave(query.shape[1] // keys.shape[1], 1)[:, :, None]
        return attend(query, some, taken(values, chosen), scaling, mask)

    def seen(self, layer: PolicyLayer, chosen: Tensor | None, query: Tensor, keys: Tensor, scaling: float) -> None:
        """What was read and by what: for policies that remember weights."""


class Dropping(Policy):
    """A policy that keeps ``capacity`` tokens of a prompt, and all that follow."""

    drops: ClassVar[bool] = True
    capacity: int

    def budget(self, length: int) -> int:
        return min(length, self.capacity)

    def row(
        self, layer: PolicyLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float, first: int = 0
    ) -> Tensor:
        return attend(query, keys[:, :, first:], values[:, :, first:], scaling)

    @abstractmethod
    def kept(self, layer: PolicyLayer, length: int) -> Tensor:
        """The positions (batch, kv heads, capacity) that stay, rising."""

    def prefilled(self, cache: PolicyCache) -> None:
        length = cache.get_seq_length()
        if length > self.capacity:
            cache.keep([self.kept(layer, length) for layer in cache.layers])
        for layer in cache.layers:
            layer.memory.clear()
