"""State that a model keeps in a way of its own: found by letting it read a prompt, unrecorded, before the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# What a forward pass returns beside a state.
_NO_STATE = ("logits", "loss", "hidden_states", "attentions", "last_hidden_state", "router_logits")


def tensors_in(value: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in lists, tables and plain objects within each other, with a path of names and numbers."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type) and not callable(value):
        items = list(vars(value).items())
    for name, part in items:
        yield from tensors_in(part, f"{path}.{name}" if path else str(name), seen)


def returned_state(result: Any) -> dict[str, Any]:
    """What a forward pass returned that the next one takes, by its argument's name."""
    if not isinstance(result, Mapping):
        return {}
    return {k: v for k, v in result.items() if k not in _NO_STATE and next(tensors_in(v), None) is not None}


def attribute_state(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules hold as plain attributes, by path."""
    return {
        f"{name}.{key}" if name else key: value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """Modules get back the attributes that they had: what they keep in them is of this call."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, known in before:
            for key, value in list(vars(module).items()):
                if isinstance(value, Tensor) and known.get(key) is not value:
                    if key in known:
                        vars(module)[key] = known[key]
                    else:
                        del vars(module)[key]
