"""Whole decoder layers left out: those that change their input least."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.methods.described_model import Stack, stack_of
from hasten.methods.editing import Draft, edit
from hasten.methods.method import Context, Method
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Phase, Role, Workload


@dataclass(frozen=True)
class DropLayers(Method):
    """Removes decoder layers.

    Args:
        layers: their numbers, from 0; `least_important` finds them.
    """

    name: ClassVar[str] = "drop-layers"
    kind: ClassVar[str] = "depth"
    order: ClassVar[int] = 10
    layerwise: ClassVar[bool] = True
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"layers-N": {"count": "N"}}
    source: ClassVar[str] = "block influence of ShortGPT, arXiv 2403.03853"

    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or any(type(i) is not int or i < 0 for i in self.layers):
            raise HastenError("drop-layers takes the numbers of the layers to drop, from 0")
        if len(set(self.layers)) < len(self.layers):
            raise HastenError(f"drop-layers names a layer twice: {', '.join(map(str, self.layers))[:80]}")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    @property
    def title(self) -> str:
        return f"without layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(str, self.layers))}"

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, LanguageModel):
            return "it is not a language model"
        count = len(model.layers)
        if max(self.layers) >= count or len(self.layers) >= count:
            return f"it has {count} layers"
        return None

    def apply(self, model: Any) -> Any:
        self.check(model)
        kept = [i for i in range(len(model.layers)) if i not in self.layers]
        if full := model.cache.full_layers:
            # What a layer reads is its own: it keeps that under its new number.
            model.cache = replace(model.cache, full_layers=tuple(kept.index(i) for i in full if i in kept))
        model.decoder.replace_layers([model.layers[i] for i in kept], kept)
        return model

    def why_not_described(self, workload: Workload) -> str | None:
        stack = stack_of(workload)
        if stack is None:
            return "it has no stack of layers"
        if max(self.layers) >= stack.count or len(self.layers) >= stack.count:
            return f"it has {stack.count} layers"
        for phase in workload.phases:
            for dropped in self.layers:
                if reason := _Layer(Draft(phase.cascade), stack, dropped).why_not_bypassed():
                    return reason
        return None

    @classmethod
    def spelled(cls, settings: Mapping[str, Any], workload: Workload) -> Self:
        """With a count for the numbers: so many before the last layer, where a layer does least as a rule (ShortGPT,
        figure 2). Which ones they are changes no prediction where all layers are of one kind."""
        count = settings.get("count")
        if count is None:
            return super().spelled(settings, workload)
        stack = stack_of(workload)
        if stack is None or not 0 < count < stack.count:
            of = "it has no stack of layers" if stack is None else f"it has {stack.count} layers"
            raise HastenError(f"layers-{count} does not apply to {workload.name}: {of}")
        last = max(stack.count - 1, count)
        return cls(tuple(range(last - count, last)))

    def rewrite(self, workload: Workload) -> Workload:
        stack = stack_of(workload)
        assert stack is not None, "a described decoder has layers"
        names = _Names(stack, self.layers, _caches_of(workload, stack))

        def change(phase: Phase, draft: Draft) -> None:
            for dropped in self.layers:
                _Layer(draft, stack, dropped).bypass()
            draft.einsums = [
                replace(
                    e,
                    module=names.module(e.module),
                    inputs=tuple(replace(a, tensor=names.tensor(a.tensor)) for a in e.inputs),
                    output=replace(e.output, tensor=names.tensor(e.output.tensor)),
                )
                for e in draft.einsums
            ]
            draft.tensors = {
                names.tensor(n): replace(t, name=names.tensor(n)) for n, t in draft.tensors.items() if not names.gone(n)
            }

        changed = edit(workload, change)
        attributes = dict(workload.attributes)
        full = [int(i) for i in str(attributes.get("full_layers", "")).split(",") if i]
        if full:
            attributes["full_layers"] = ",".join(str(names.moved(i)) for i in full if i not in self.layers)
        if own := str(attributes.get("own_windows", "")):
            pairs = [part.split(":") for part in own.split(",")]
            kept = [(names.cache(int(n)), w) for n, w in pairs if not names.gone(f"cache.{n}.keys")]
            attributes["own_windows"] = ",".join(f"{n}:{w}" for n, w in kept)
        return replace(
            changed,
            attributes=attributes,
            weights={names.tensor(n): b for n, b in workload.weights.items() if not names.gone(n)},
            state={names.tensor(n): b for n, b in workload.state.items() if not names.gone(n)},
        )

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        """None without text to measure importance on: see `candidates`."""
        return []

    @classmethod
    def candidates(cls, context: Context) -> list[Self]:
        """Without the one or two layers that do least to the run's text."""
        ids = torch.tensor(context.text[: context.judged], device=context.model.device)[None]
        values = influence(context.model, ids)
        order = sorted(range(len(values)), key=values.__getitem__)
        return [cls(tuple(order[:n])) for n in (1, 2) if n < len(values)]


def _caches_of(workload: Workload, stack: Stack) -> dict[int, int]:
    """The layer that each numbered part of the state belongs to, as the step reads and writes it."""
    found: dict[int, int] = {}
    for phase in workload.phases:
        for e in phase.cascade.einsums:
            layer = stack.number(e.module)
            for a in (*e.inputs, e.output) if layer is not None else ():
                if (number := re.match(r"cache\.(\d+)\.", a.tensor)) and layer is not None:
                    found.setdefault(int(number[1]), layer)
    return found


class _Names:
    """Names after some layers are gone and the others have moved up."""

    def __init__(self, stack: Stack, dropped: Sequence[int], caches: Mapping[int, int]) -> None:
        self._stack, self._dropped = stack, set(dropped)
        self._caches = sorted(number for number, layer in caches.items() if layer not in self._dropped)
        self._gone_caches = {number for number, layer in caches.items() if layer in self._dropped}
        # A cascade names each tensor and module many times.
        self.gone = functools.cache(self._gone)
        self.module = functools.cache(self._module)
        self.tensor = functools.cache(self._tensor)

    def _gone(self, name: str) -> bool:
        if found := re.match(r"^cache\.(\d+)\.", name):
            return int(found[1]) in self._gone_caches
        return self._stack.number(name) in self._dropped

    def _module(self, name: str) -> str:
        number = self._stack.number(name)
        if number is None or number in self._dropped:
            return name
        return ".".join(filter(None, (self._stack.path, str(self.moved(number)), self._stack.rest(name))))

    def _tensor(self, name: str) -> str:
        if found := re.match(r"^cache\.(\d+)\.(.*)$", name):
            return name if self.gone(name) else f"cache.{self.cache(int(found[1]))}.{found[2]}"
        return self.module(name)

    def moved(self, number: int) -> int:
        """A layer's new number."""
        return number - sum(1 for d in self._dropped if d < number)

    def cache(self, number: int) -> int:
        """The new number of a part of the state."""
        return number - sum(1 for gone in self._gone_caches if gone < number)


class _Layer:
    """A layer of a draft: its Einsums, what goes into it and what comes out."""

    def __init__(self, draft: Draft, stack: Stack, number: int) -> None:
        self._draft, self._number = draft, number
        self._inside = [e for e in draft.einsums if stack.number(e.module) == number]
        made = {e.output.tensor for e in self._inside if draft.tensors[e.output.tensor].role is not Role.STATE}
        members = {id(e) for e in self._inside}
        self._outside = [e for e in draft.einsums if id(e) not in members]
        read = {a.tensor for e in self._outside for a in e.inputs}
        self._results = [name for name in dict.fromkeys(e.output.tensor for e in self._inside) if name in made & read]
        self._made = made

    def why_not_bypassed(self) -> str | None:
        """Why the layer cannot be left out; None when it can."""
        if not self._inside:
            return None
        if len(self._results) != 1:
            return f"layer {self._number} has {len(self._results) or 'no'} results that others read: it cannot go alone"
        if self._entering() is None:
            return f"what goes into layer {self._number} is not of the size of what comes out"
        return None

    def _entering(self) -> str | None:
        """The hidden state that goes in: the last made before the layer, of the result's size, that it reads."""
        tensors = self._draft.tensors
        wanted = tensors[self._results[0]].elements
        place = {e.output.tensor: i for i, e in enumerate(self._draft.einsums)}
        roles = (Role.INTERMEDIATE, Role.INPUT)
        read = [a.tensor for e in self._inside for a in e.inputs if a.tensor not in self._made]
        fitting = [n for n in dict.fromkeys(read) if tensors[n].role in roles and tensors[n].elements == wanted]
        return max(fitting, key=lambda n: place.get(n, -1), default=None)

    def bypass(self) -> None:
        """Takes the layer's Einsums out; who reads its result reads what the layer read."""
        if not self._inside:
            return
        entering, leaving = self._entering(), self._results[0]
        assert entering is not None, "a layer's hidden state goes in"
        self._draft.einsums = [
            replace(e, inputs=tuple(replace(a, tensor=entering) if a.tensor == leaving else a for a in e.inputs))
            for e in self._outside
        ]


@torch.inference_mode()
def influence(model: LanguageModel, ids: Tensor) -> list[float]:
    """Block influence of every layer on a text: 1 - mean cosine of its input and its output (equation 1).

    Args:
        model: unchanged, or changed.
        ids: (batch, length) tokens.
    """
    found: list[float] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        found.append(1 - float(nn.functional.cosine_similarity(before, after, dim=-1).mean()))

    handles = [layer.register_forward_hook(watch, with_kwargs=True) for layer in model.layers]
    try:
        model.network(ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found


def least_important(model: LanguageModel, ids: Tensor, count: int) -> DropLayers:
    """The method that drops the ``count`` layers of least influence on the text ``ids``."""
    values = influence(model, ids)
    if not 0 < count < len(values):
        raise HastenError(f"of {len(values)} layers, 1 to {len(values) - 1} can be dropped, not {count}")
    order = sorted(range(len(values)), key=values.__getitem__)
    return DropLayers(tuple(order[:count]))
