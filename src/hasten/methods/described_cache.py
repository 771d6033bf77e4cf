"""A described model's cache of keys and values, and the same model with another one.

A description writes keys and values into state called ``cache.N.keys`` and ``cache.N.values``, and attention reads them
from there. Where it was traced from a model in hasten's own loop, operators of `hasten.kernels.kv_cache` do both; where
it was made from a configuration, plain copies do. `appended` gives both the first form, which rewritings edit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import torch

from hasten import dtypes
from hasten.kernels import kv_cache
from hasten.methods.editing import Draft, edit
from hasten.runtime.cache import CacheSpec
from hasten.workload.einsum import Access, Einsum, Op, Phase, Role, Tensor, Workload

APPEND, READ = "hasten::kv_append", "hasten::kv_read"
_ATTENTION = ("scaled_dot_product_attention", "latent_attention")
_KEPT = re.compile(r"cache\.(\d+)\.(keys|values)")
# What any cache format keeps of keys and values that grow with the text; those of a cross attention do not.
_GROWING = re.compile(r"cache\.\d+\.(recent_)?(key|value)(s|_scales|_mins)")
_OWN = "own_windows"


def keeps_keys(workload: Workload) -> bool:
    """Whether a description has a cache of keys and values, and the sizes that it was made for."""
    attributes = workload.attributes
    return {"prompt", "new_tokens"} <= attributes.keys() and any(map(_KEPT.fullmatch, workload.state))


def other_state(workload: Workload) -> list[str]:
    """State that is no keys and values, nor what is kept with them: of recurrences and convolutions."""
    keys = re.compile(r"cache\.\d+\.(\w*(key|value)\w*|pooled)")
    return [name for name in workload.state if not keys.fullmatch(name)]


def channels(workload: Workload) -> set[int]:
    """Channels that the cached heads have."""
    phase = workload.phases[-1]
    return {e.sizes["e"] for e in appended(workload).phase(phase.name).cascade.einsums if e.source == APPEND}


def own_windows(workload: Workload) -> dict[int, int]:
    """Layers whose cache is shorter than the text by the model's own window, and that window."""
    told = str(appended(workload).attributes.get(_OWN, ""))
    return {int(n): int(w) for n, _, w in (part.partition(":") for part in told.split(",") if part)}


def before(workload: Workload, phase: str) -> int:
    """Tokens in the cache when a phase begins: those of the middle step stand for all steps."""
    asked = workload.attributes
    context = int(asked.get("context", 0))
    return context if phase == "prefill" else context + int(asked["prompt"]) + int(asked["new_tokens"]) // 2


def room(workload: Workload) -> int:
    """Tokens that there is room for at the end."""
    asked = workload.attributes
    return int(asked.get("context", 0)) + int(asked["prompt"]) + int(asked["new_tokens"])


def appended(workload: Workload) -> Workload:
    """The workload with its keys and values written and read by the operators of `hasten.kernels.kv_cache`."""
    if not keeps_keys(workload) or any(e.source == APPEND for p in workload.phases for e in p.cascade.einsums):
        return workload
    windows: dict[int, int] = {}
    formats: set[str] = set()
    whole = room(workload)

    def change(phase: Phase, draft: Draft) -> None:
        for i, e in enumerate(draft.einsums):
            if e.source in (APPEND, READ):
                continue
            written = draft.tensors[e.output.tensor]
            if (found := _KEPT.fullmatch(written.name)) and len(written.shape) == 4:
                formats.add(written.dtype)
                if written.shape[2] < whole:
                    windows[int(found[1])] = written.shape[2]
                new = e.points // (written.elements // written.shape[2])
                draft.einsums[i] = _named(e, written, new, APPEND)
            elif len(e.inputs) == 1 and e.op in (Op.COPY, Op.ELEMENTWISE) and _KEPT.fullmatch(e.inputs[0].tensor):
                held = draft.tensors[e.inputs[0].tensor]
                seen = e.points // (held.elements // held.shape[2])
                draft.einsums[i] = _named(e, held, seen, READ)

    changed = edit(workload, change)
    attributes = {**workload.attributes, _OWN: ",".join(f"{n}:{w}" for n, w in sorted(windows.items()))}
    if formats:
        attributes.setdefault("cache", formats.pop())
    return replace(changed, attributes=attributes)


def _named(e: Einsum, held: Tensor, tokens: int, source: str) -> Einsum:
    """A copy into or out of a cache tensor (batch, heads, tokens, channels), by ranks of these names."""
    ranks = tuple(zip("bhte", (*held.shape[:2], tokens, held.shape[3]), strict=True))
    names = tuple("bhte")
    inputs = (replace(e.inputs[0], ranks=names, elements=None, index=None),)
    return replace(
        e, ranks=ranks, inputs=inputs, output=replace(e.output, ranks=names, elements=None, index=None), source=source
    )


def cache_of(workload: Workload) -> CacheSpec:
    """The cache format that a language model's workload was made with."""
    attributes = appended(workload).attributes
    window = int(attributes.get("window", 0)) or None
    full = tuple(int(i) for i in str(attributes.get("full_layers", "")).split(",") if i)
    return CacheSpec(str(attributes.get("cache", "fp32")), window, int(attributes.get("sinks", 0)), full)


def with_cache(workload: Workload, spec: CacheSpec) -> Workload:
    """The workload with another cache: its state, the writes into it, and what attention reads.

    A plain cache in the format that attention computes in is read where it lies; any other is read into an
    intermediate first. A prompt attends to its own fresh keys and values, and to what was there before it.
    """
    own = own_windows(workload)
    workload = appended(workload)
    attributes = {
        **workload.attributes,
        "cache": spec.dtype,
        "window": spec.window or 0,
        "sinks": spec.sinks,
        "full_layers": ",".join(map(str, spec.full_layers)),
    }
    workload = replace(workload, attributes=attributes)
    state: dict[str, Tensor] = {}

    # hasten's own loop has room for one token more
    joined, capacity = _OWN in attributes, room(workload) + (_OWN not in attributes)

    def change(phase: Phase, draft: Draft) -> None:
        appends: dict[int, list[Einsum]] = {}
        reads: dict[int, list[Einsum]] = {}
        old: dict[int, set[str]] = {}
        layers: dict[str, tuple[int, Einsum]] = {}
        for e in draft.einsums:
            if e.source == APPEND:
                appends.setdefault(_layer_of(e.output.tensor), []).append(e)
            elif e.source == READ:
                reads.setdefault(_layer_of(e.inputs[0].tensor), []).append(e)
                layers[e.output.tensor] = _layer_of(e.inputs[0].tensor), e
            elif e.map == "cast" and e.inputs[0].tensor in layers:
                # Attention computes in another format than what was read: what is read now is in that one.
                layer, read = layers[e.inputs[0].tensor]
                reads[layer].append(replace(e, inputs=read.inputs))
        for name in filter(_GROWING.fullmatch, draft.tensors):
            old.setdefault(_layer_of(name), set()).add(name)
        made = []
        for layer, found in appends.items():
            kept = _narrower(spec.of_layer(layer), own.get(layer))
            one = _Recaching(draft, layer, kept, found, before(workload, phase.name), state, joined)
            one.make(capacity, old[layer], reads.get(layer, []))
            made.append(one)
        _put(draft, made)

    changed = edit(workload, change)
    if not state:
        return changed
    # Every layer's buffers exist in both phases, whatever a phase touches of them.
    replaced = {t.split(".")[1] for t in state}
    beside = {n: b for n, b in workload.state.items() if not (_GROWING.fullmatch(n) and n.split(".")[1] in replaced)}
    return replace(changed, state={**beside, **{t.name: t.nbytes for t in state.values()}})


def _narrower(spec: CacheSpec, own: int | None) -> CacheSpec:
    """What a layer keeps that has a window of its own."""
    if own is None or (spec.window is not None and spec.window + spec.sinks <= own):
        return spec
    return replace(spec, window=own, sinks=0)


@dataclass
class _Recaching:
    """Gives one layer of a draft another cache.

    In hasten's own loop reading what is not plain is an operator of its own; of what is described from a configuration
    it is a part of attention's kernel (``joined``), as engines have it.
    """

    draft: Draft
    layer: int
    spec: CacheSpec
    appends: list[Einsum]
    before: int
    state: dict[str, Tensor]
    joined: bool
    # What is made: the operators, and what is read in place of what, with its elements.
    built: list[Einsum] = field(default_factory=list)
    swapped: dict[str, tuple[str, int]] = field(default_factory=dict)
    seen: int = 0

    def make(self, capacity: int, old: set[str], reads: list[Einsum]) -> None:
        """Makes the buffers and the operators.

        Args:
            capacity: tokens that there is room for.
            old: names of the buffers until now.
            reads: the operators that read them.
        """
        draft, spec, layer = self.draft, self.spec, self.layer
        fresh: dict[str, Einsum] = {}
        for e in self.appends:
            fresh.setdefault("values" if "value" in e.output.tensor else "keys", e)
        held: set[str] = set()
        for which, e in fresh.items():
            sizes = e.sizes
            for name, (shape, dtype) in spec.layout(sizes["b"], sizes["h"], sizes["e"], capacity).items():
                if which[:-1] in name:
                    full = f"cache.{layer}.{name}"
                    described, shape = _described(spec, name, shape, dtype)
                    self.state[full] = draft.tensors[full] = Tensor(full, shape, described, Role.STATE)
                    held.add(full)
        for stale in old - held:
            del draft.tensors[stale]
        self.seen, coded = _seen(spec, self.before, self.appends[0].sizes["t"])
        for which, e in fresh.items():
            self.built += self._append(e, which)
            if self.before == 0:
                continue
            compute = draft.tensors[e.inputs[0].tensor].dtype
            sizes = e.sizes
            if spec.window is None and spec.dtype == compute:
                name = f"cache.{layer}.{which}"
            else:
                name = draft.temporary((sizes["b"], sizes["h"], self.seen, sizes["e"]), compute)
                self.built.append(self._reading(e, which, name, self.seen, coded))
            count = sizes["b"] * sizes["h"] * self.seen * sizes["e"]
            known = [r.output.tensor for r in reads if any(which[:-1] in a.tensor for a in r.inputs)]
            self.swapped |= dict.fromkeys((f"cache.{layer}.{which}", *known), (name, count))

    def _append(self, like: Einsum, which: str) -> list[Einsum]:
        draft, spec, layer = self.draft, self.spec, self.layer
        kernel = draft.kernel()
        count = math.prod(size for _, size in like.ranks)
        targets: list[tuple[str, str, Op, int]] = []
        main = f"cache.{layer}.{which}"
        if not spec.quantized:
            targets.append((main, "copy", Op.COPY, min(count, draft.tensors[main].elements)))
        else:
            targets.append((main, "quantize", Op.ELEMENTWISE, min(count, draft.tensors[main].elements)))
            for part in (f"cache.{layer}.{which[:-1]}_scales", f"cache.{layer}.{which[:-1]}_mins"):
                if part in draft.tensors:
                    share = min(-(-count // kv_cache.BLOCK), draft.tensors[part].elements)
                    targets.append((part, "quantize-scale", Op.ELEMENTWISE, share))
            recent = f"cache.{layer}.recent_{which}"
            targets.append((recent, "copy", Op.COPY, min(count, draft.tensors[recent].elements)))
        names = tuple(r for r, _ in like.ranks)
        return [
            replace(
                like,
                op=op,
                inputs=(like.inputs[0],),
                output=Access(target, names, None if elements == count else elements),
                map=label,
                kernel=kernel,
                source=APPEND,
            )
            for target, label, op, elements in targets
        ]

    def _reading(self, like: Einsum, which: str, output: str, seen: int, coded: int) -> Einsum:
        draft, spec, layer = self.draft, self.spec, self.layer
        sizes = {**like.sizes, "t": seen}
        names = tuple(sizes)
        rows, dim = sizes["b"] * sizes["h"], sizes["e"]
        main = f"cache.{layer}.{which}"
        inputs = []
        if not spec.quantized:
            inputs.append(Access(main, names))
        else:
            if coded:
                inputs.append(Access(main, names, rows * coded * dim))
                for part in (f"cache.{layer}.{which[:-1]}_scales", f"cache.{layer}.{which[:-1]}_mins"):
                    if part in draft.tensors:
                        share = min(draft.tensors[part].elements, rows * -(-coded * dim // kv_cache.BLOCK))
                        inputs.append(Access(part, names, share))
            if seen > coded:
                recent = f"cache.{layer}.recent_{which}"
                inputs.append(Access(recent, names, min(draft.tensors[recent].elements, rows * (seen - coded) * dim)))
        same = draft.tensors[main].dtype == draft.tensors[output].dtype
        label = "dequantize" if spec.quantized else "copy" if same else "cast"
        return replace(
            like,
            op=Op.COPY if label == "copy" else Op.ELEMENTWISE,
            ranks=tuple(sizes.items()),
            inputs=tuple(inputs),
            output=Access(output, names),
            map=label,
            kernel=draft.kernel(),
            source=READ,
        )


def _put(draft: Draft, made: list[_Recaching]) -> None:
    """The new operators where the old ones began; who read what was cached reads what is cached now."""
    owner = {name: one for one in made for name in one.swapped}
    swapped = {name: found for one in made for name, found in one.swapped.items()}
    attends = [e for e in draft.einsums if any(name in e.source for name in _ATTENTION)]
    kernels: dict[int, _Recaching] = {}
    for e in attends:
        for a in e.inputs:
            if a.tensor in owner:
                kernels.setdefault(e.kernel, owner[a.tensor])
    # Where reading is a part of attention, it stands right before it; else with what writes.
    first: dict[int, int] = {}
    for kernel, one in kernels.items():
        first.setdefault(one.layer, kernel)
    within = {one.layer: first[one.layer] for one in made if one.joined and one.layer in first}
    waiting = {one.layer: one for one in made}
    reading = {within[one.layer]: one for one in made if one.layer in within}
    einsums: list[Einsum] = []
    for e in draft.einsums:
        if e.source == APPEND:
            written = waiting.pop(_layer_of(e.output.tensor), None)
            if written is not None:
                einsums += [b for b in written.built if b.source == APPEND or written.layer not in within]
            continue
        if e.source == READ or e.output.tensor in swapped:
            continue
        if (read := reading.pop(e.kernel, None)) is not None:
            einsums += [_within(b, e.kernel) for b in read.built if b.source == READ]
        if e.kernel in kernels and any(name in e.source for name in _ATTENTION):
            e = _resized(draft, e, "m", kernels[e.kernel].seen, swapped)
        elif any(a.tensor in swapped for a in e.inputs):
            inputs = tuple(replace(a, tensor=swapped[a.tensor][0]) if a.tensor in swapped else a for a in e.inputs)
            e = replace(e, inputs=inputs)
        einsums.append(e)
    draft.einsums = einsums


def _layer_of(name: str) -> int:
    """The number in the name of a cache's tensor."""
    return int(name.split(".")[1])


def _within(reading: Einsum, kernel: int) -> Einsum:
    """A reading of the cache as a part of attention's kernel, by attention's rank of keys."""
    names = {"t": "m"}

    def renamed(access: Access) -> Access:
        return replace(access, ranks=tuple(names.get(r, r) for r in access.ranks))

    ranks = tuple((names.get(r, r), size) for r, size in reading.ranks)
    inputs = tuple(map(renamed, reading.inputs))
    return replace(reading, ranks=ranks, inputs=inputs, output=renamed(reading.output), kernel=kernel)


def _described(spec: CacheSpec, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[str, tuple[int, ...]]:
    """Number format and shape of a cache tensor as the codes mean them."""
    if spec.dtype == "int4" and name in ("keys", "values"):
        return "int4", (*shape[:-1], shape[-1] * 2)
    return dtypes.name_of(dtype), shape


def _seen(spec: CacheSpec, before: int, new: int) -> tuple[int, int]:
    """Positions that the new tokens read, and how many of those are codes."""
    length = before + new
    if before == 0:
        return new, 0
    sinks, low = kv_cache.visible(length, new, spec.window, spec.sinks)
    seen = sinks + length - low
    if not spec.quantized:
        return seen, 0
    fresh = min(seen, length - kv_cache.BLOCK * kv_cache.quantized_after(before, new))
    return seen, seen - max(fresh, 0)


def _resized(draft: Draft, e: Einsum, rank: str, size: int, swapped: dict[str, tuple[str, int]]) -> Einsum:
    """``e`` with ``rank`` of ``size``, its intermediates as long, and some inputs replaced."""
    ranks = tuple((n, size if n == rank else s) for n, s in e.ranks)
    sizes = dict(ranks)
    inputs = []
    for a in e.inputs:
        if a.tensor in swapped:
            name, count = swapped[a.tensor]
            plain = math.prod(sizes[r] for r in a.ranks) == count
            inputs.append(replace(a, tensor=name, elements=None if plain else count))
        else:
            inputs.append(a)
    known = draft.tensors[e.output.tensor]
    if rank in e.output.ranks:
        draft.tensors[known.name] = replace(known, shape=tuple(sizes[r] for r in e.output.ranks))
    return replace(e, ranks=ranks, inputs=tuple(inputs))
