"""Whole decoder layers left out: those that change their input least."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.methods.editing import Draft, edit
from hasten.methods.method import Context, Method
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Phase, Workload

_LAYER = re.compile(r"^(.*\blayers)\.(\d+)(\..*)?$")

# Tokens of a text on which `candidates` judges layers.
_READ = 512


@dataclass(frozen=True)
class DropLayers(Method):
    """Removes decoder layers.

    Args:
        layers: their numbers, from 0; `least_important` finds them.
    """

    name: ClassVar[str] = "drop-layers"
    kind: ClassVar[str] = "depth"
    order: ClassVar[int] = 10
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

    def rewrite(self, workload: Workload) -> Workload:
        names = _Names(self.layers)

        def change(phase: Phase, draft: Draft) -> None:
            for dropped in self.layers:
                _bypass(draft, dropped)
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
        full = [int(i) for i in str(workload.attributes.get("full_layers", "")).split(",") if i]
        moved = [i - sum(d < i for d in self.layers) for i in full if i not in self.layers]
        attributes = {**workload.attributes, "full_layers": ",".join(map(str, moved))}
        return replace(
            changed,
            attributes=attributes if full else workload.attributes,
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
        ids = torch.tensor(context.text[:_READ])[None]
        counts = [n for n in (1, 2) if n < len(context.model.layers)]
        return [cls(least_important(context.model, ids, n).layers) for n in counts]


class _Names:
    """Names after some layers are gone and the others have moved up."""

    def __init__(self, dropped: Sequence[int]) -> None:
        self._dropped = set(dropped)
        # A cascade names each tensor and module many times.
        self.gone = functools.cache(self._gone)
        self.module = functools.cache(self._module)
        self.tensor = functools.cache(self._tensor)

    def _gone(self, name: str) -> bool:
        found = self._number(name)
        return found is not None and found in self._dropped

    def _module(self, name: str) -> str:
        found = _LAYER.match(name)
        if not found or int(found[2]) in self._dropped:
            return name
        return f"{found[1]}.{self._moved(int(found[2]))}{found[3] or ''}"

    def _tensor(self, name: str) -> str:
        if found := re.match(r"^cache\.(\d+)\.(.*)$", name):
            return name if self.gone(name) else f"cache.{self._moved(int(found[1]))}.{found[2]}"
        return self.module(name)

    def _number(self, name: str) -> int | None:
        found = re.match(r"^cache\.(\d+)\.", name)
        if found:
            return int(found[1])
        layer = _LAYER.match(name)
        return int(layer[2]) if layer else None

    def _moved(self, number: int) -> int:
        return number - sum(1 for d in self._dropped if d < number)


def _bypass(draft: Draft, number: int) -> None:
    """Takes a layer's Einsums out; who read its result reads what the layer read."""
    inside = [e for e in draft.einsums if (m := _LAYER.match(e.module)) and int(m[2]) == number]
    if not inside:
        return
    made = {e.output.tensor for e in inside}
    # The hidden state enters through the first norm, and leaves by the last addition.
    entering = inside[0].inputs[0].tensor
    leaving = inside[-1].output.tensor
    members = {id(e) for e in inside}
    draft.einsums = [
        replace(e, inputs=tuple(replace(a, tensor=entering) if a.tensor == leaving else a for a in e.inputs))
        for e in draft.einsums
        if id(e) not in members
    ]
    assert not any(a.tensor in made for e in draft.einsums for a in e.inputs), "a layer has one result"


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
