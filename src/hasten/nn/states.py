"""States and caches as torch's trees of tensors, and a module with one as a function: what exporting a step needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils import _pytree

from hasten.nn.block import Block

__all__ = ["Stepped"]


def state_kind(
    kind: type[Any],
    parts: Callable[[Any], dict[str, Any]] = vars,
    made: Callable[..., Any] | None = None,
    fixed: Callable[[Any], Any] = lambda state: (),
) -> None:
    """Registers a class of states as a tree, for `torch.export`, `torch.func` and whoever else takes trees.

    Args:
        kind: the class.
        parts: a state's tensors and numbers by name, always in the same order; numbers may differ from step to step.
            All that it has unless said otherwise.
        made: a state from its parts, in order, and from what is fixed; the class is called with its parts when None.
        fixed: what is the same for all states of a module; equal and printable where they are alike.
    """

    def flatten(state: Any) -> tuple[list[Any], Any]:
        return list(parts(state).values()), fixed(state)

    def flatten_with_keys(state: Any) -> tuple[list[tuple[Any, Any]], Any]:
        return [(_pytree.GetAttrKey(name), part) for name, part in parts(state).items()], fixed(state)

    _pytree.register_pytree_node(
        kind,
        flatten,
        lambda found, context: kind(*found) if made is None else made(*found, context),
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
        to_dumpable_context=list,
        from_dumpable_context=tuple,
    )


class Stepped(Block):
    """A module that moves its state on, as a function that returns it: to be exported, or traced by others.

    Args:
        module: called with its input and a state, such as `hasten.nn.Mamba` or a language model.

    Shape:
        x as of the module, and a state of its ``new_state`` or ``new_cache``, to (output, state).

    Example:
        ``torch.export.export(nn.Stepped(block), (x[:, :1], block.new_state(2)))``
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        answer = self.module(x, state)
        return answer if isinstance(answer, tuple) else (answer, state)

    if TYPE_CHECKING:
        __call__ = forward
