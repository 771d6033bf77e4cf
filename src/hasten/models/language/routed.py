"""Language models with a cache a layer, whose experts say what their routers did where that is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor, nn

from hasten.models.language.recurrent import RecurrentLM
from hasten.nn.attention import LayerCache
from hasten.nn.moe import Routing

__all__: list[str] = []


def through(
    layers: Iterable[nn.Module], x: Tensor, state: list[LayerCache] | None, routings: list[Routing] | None
) -> Tensor:
    """x (batch, length, width) behind all layers, each with its cache; their routings are added to ``routings``."""
    for i, layer in enumerate(layers):
        cache = None if state is None else state[i]
        if routings is None:
            x = layer(x, cache)
        else:
            x, routing = layer(x, cache, return_routing=True)
            routings += [] if routing is None else [routing]
    return x


class RoutedLM(RecurrentLM[list[LayerCache]]):
    """A `RecurrentLM` that returns every layer's `Routing` too where it is asked to; ``lm_head`` makes its logits."""

    lm_head: nn.Linear

    @abstractmethod
    def hidden(self, ids: Tensor, state: list[LayerCache] | None, routings: list[Routing] | None) -> Tensor:
        """Token numbers (batch, length) to what the head reads (batch, length, width), see `through`."""

    def new_state(self, batch: int) -> list[LayerCache]:
        return self.state_at(batch, 0)

    @abstractmethod
    def state_at(self, batch: int, length: int) -> list[LayerCache]: ...

    def state_tensors(self, state: list[LayerCache]) -> dict[str, Tensor]:
        return {f"cache.{i}.{name}": getattr(c, name) for i, c in enumerate(state) for name in ("keys", "values")}

    @overload
    def forward(
        self,
        ids: Tensor,
        state: list[LayerCache] | None = None,
        *,
        logits_to_keep: int = 0,
        return_routing: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def forward(
        self, ids: Tensor, state: list[LayerCache] | None = None, *, logits_to_keep: int = 0,
        return_routing: Literal[True],
    ) -> tuple[Tensor, list[Routing]]: ...  # fmt: skip
    def forward(
        self,
        ids: Tensor,
        state: list[LayerCache] | None = None,
        *,
        logits_to_keep: int = 0,
        return_routing: bool = False,
    ) -> Any:
        """Logits of every position, or of the last ``logits_to_keep``; ``state`` grows by these tokens.

        With ``return_routing`` a list too: the `Routing` of every layer that has experts.
        """
        routings: list[Routing] = []
        x = self.hidden(ids, state, routings if return_routing else None)
        logits = self.lm_head(x[:, -logits_to_keep:])
        return (logits, routings) if return_routing else logits

    if TYPE_CHECKING:
        __call__ = forward
