"""Layers that are equal are traced once: the others repeat their Einsums over their own weights and state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hasten.workload.dispatch import Tracer
from hasten.workload.einsum import Einsum, Role
from hasten.workload.recorder import Recorder

# A layer's own number, which makes no layer another one.
_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "layer_depth")
_SIMPLE = (int, str, bool, type(None), tuple)


def outer_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of layers of a model, without those inside a layer."""
    found: list[nn.ModuleList] = []
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop(0)
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            found.append(module)
        else:
            waiting.extend(module.children())
    return found


@dataclass
class _Traced:
    """One layer as it was traced."""

    layer: nn.Module
    path: str
    einsums: list[Einsum]
    arguments: list[str]
    results: list[Any]
    spec: TreeSpec
    shapes: list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype] | None]


class _Repeater:
    """Stands for the layers of a model while it is traced."""

    def __init__(self, model: nn.Module, tracer: Tracer, cache: Any) -> None:
        self._recorder: Recorder = tracer.recorder
        self._tracer, self._cache = tracer, cache
        self._paths = {id(m): name for name, m in model.named_modules()}
        config = getattr(model, "config", None)
        self._config = config.get_text_config(decoder=True) if config is not None else None
        self._known: dict[object, _Traced | None] = {}

    def call(self, layer: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        key = self._key(layer, leaves, spec)
        known = self._known.get(key)
        if known is not None:
            return self._again(known, layer, leaves)
        if key in self._known:
            return forward(*args, **kwargs)
        start = len(self._recorder.einsums)
        arguments = [self._recorder.name_of(a) for a in leaves if isinstance(a, Tensor)]
        shared = [(a, len(a), list(a.values())) for a in leaves if _is_table(a)]
        result = forward(*args, **kwargs)
        self._known[key] = None
        einsums = self._recorder.einsums[start:]
        unchanged = all(len(a) == n and all(x is y for x, y in zip(a.values(), v)) for a, n, v in shared)
        if unchanged and self._repeatable(layer, einsums):
            results, shape = tree_flatten(result)
            self._known[key] = _Traced(
                layer, self._paths[id(layer)], einsums, arguments,
                [self._recorder.name_of(r) if isinstance(r, Tensor) else r for r in results], shape,
                [(tuple(r.shape), r.stride(), r.dtype) if isinstance(r, Tensor) else None for r in results],
            )  # fmt: skip
        return result

    # -- what makes two layers equal -------------------------------------------------------------

    def _key(self, layer: nn.Module, leaves: list[Any], spec: TreeSpec) -> object:
        given = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                given.append((tuple(leaf.shape), leaf.stride(), leaf.dtype))
            elif isinstance(leaf, _SIMPLE):
                given.append((type(leaf), leaf))  # type: ignore[arg-type]
            else:
                given.append((type(leaf), id(leaf)))  # type: ignore[arg-type]
        return str(spec), tuple(given), self._kind(layer)

    def _kind(self, layer: nn.Module) -> object:
        parts = []
        for name, module in layer.named_modules():
            own = tuple(
                (k, v) for k, v in vars(module).items()
                if isinstance(v, _SIMPLE) and k not in _NUMBERS and not k.startswith("_") and _hashable(v)
            )  # fmt: skip
            parts.append((name, type(module), own))
        weights = tuple((n, tuple(p.shape), p.dtype) for n, p in layer.named_parameters(remove_duplicate=False))
        # Which of its parts share a number, and what is known of those numbers.
        numbers = _numbers(layer)
        shared = tuple(numbers.index(n) for n in numbers)
        return tuple(parts), weights, shared, tuple(self._place(n) for n in dict.fromkeys(numbers))

    def _place(self, number: int) -> object:
        """What the configuration and the cache say of the layer with a number."""
        config = vars(self._config) if self._config is not None else {}
        depth = getattr(self._config, "num_hidden_layers", None)
        said = tuple(
            (k, str(v[number])) for k, v in config.items()
            if isinstance(v, list | tuple) and len(v) == depth and number < depth and list(v) != list(range(depth))
        )  # fmt: skip
        layers = getattr(self._cache, "layers", ())
        kept = layers[number] if number < len(layers) else None
        shapes = tuple(
            (name.split(".")[2], t.shape, t.dtype)
            for name, t in self._recorder.tensors.items()
            if t.role is Role.STATE and name.startswith(f"cache.{number}.")
        )
        return said, type(kept), getattr(kept, "sliding_window", None), getattr(kept, "filled", None), shapes

    def _repeatable(self, layer: nn.Module, einsums: list[Einsum]) -> bool:
        """Whether all state that a layer touches is told apart by the layer's numbers."""
        numbers = set(map(str, _numbers(layer)))
        for name in _touched(einsums):
            if self._recorder.tensors[name].role is Role.STATE:
                parts = name.split(".")
                if len(parts) != 3 or parts[0] != "cache" or parts[1] not in numbers:
                    return False
        return True

    # -- once more -------------------------------------------------------------------------------

    def _again(self, known: _Traced, layer: nn.Module, leaves: list[Any]) -> Any:
        recorder = self._recorder
        now = [recorder.name_of(a) for a in leaves if isinstance(a, Tensor)]
        names = dict(zip(known.arguments, now, strict=True))
        of = dict(_weights(layer))
        for name, tensor in _weights(known.layer):
            if recorder.known(tensor):
                names[recorder.name_of(tensor)] = recorder.name_of(of[name])
        numbers = dict(zip(map(str, _numbers(known.layer)), map(str, _numbers(layer)), strict=True))
        for name in _touched(known.einsums):
            described = recorder.tensors[name]
            if described.role is Role.STATE:
                _, number, which = name.split(".")
                names[name] = own = f"cache.{numbers[number]}.{which}"
                recorder.tensors.setdefault(own, replace(described, name=own))
        old, new = known.path, self._paths[id(layer)]
        recorder.repeat(known.einsums, names, lambda path: new + path.removeprefix(old) if _in(path, old) else path)
        results = []
        for result, shape in zip(known.results, known.shapes, strict=True):
            if shape is None:
                results.append(result)
                continue
            with self._tracer.quiet():
                made = torch.empty_strided(shape[0], shape[1], dtype=shape[2])
            recorder.bind_to(made, names.get(result, result))
            results.append(made)
        return tree_unflatten(results, known.spec)


def _is_table(value: Any) -> bool:
    return hasattr(value, "values") and hasattr(value, "items") and not isinstance(value, Tensor | nn.Module)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _touched(einsums: list[Einsum]) -> dict[str, None]:
    return {a.tensor: None for e in einsums for a in (*e.inputs, e.output)}


def _in(path: str, old: str) -> bool:
    return path == old or path.startswith(f"{old}.")


def _weights(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False)]


def _numbers(layer: nn.Module) -> list[int]:
    """The places in a cache that a layer's parts have, part by part; its own number where no part has one."""
    inner = [module for module in layer.modules() if module is not layer]
    for modules in (inner, [layer]):
        found = [v for m in modules for k in _NUMBERS if isinstance(v := vars(m).get(k), int)]
        if found:
            return found
    return []


@contextmanager
def repeated_layers(model: nn.Module, tracer: Tracer, cache: Any) -> Iterator[None]:
    """Within, layers that are equal to one before them are not run again."""
    repeater = _Repeater(model, tracer, cache)
    layers = list({id(layer): layer for found in outer_lists(model) for layer in found}.values())
    layers = [layer for layer in layers if type(layer).forward is not nn.Module.forward]
    for layer in layers:

        def forward(*args: Any, layer: Any = layer, plain: Any = layer.forward, **kwargs: Any) -> Any:
            return repeater.call(layer, plain, args, kwargs)

        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
