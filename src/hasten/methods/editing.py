"""Editing a workload: what several methods' rewritings share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from hasten import dtypes
from hasten.kernels import kv_cache
from hasten.runtime.cache import CacheSpec
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload

APPEND, READ, ATTENTION = "hasten::kv_append", "hasten::kv_read", "scaled_dot_product_attention"


class Draft:
    """A cascade being edited."""

    def __init__(self, cascade: Cascade) -> None:
        self.einsums = list(cascade.einsums)
        self.tensors = dict(cascade.tensors)
        self.unknown = cascade.unknown
        self._kernel = max((e.kernel for e in self.einsums), default=0)
        self._names = 0

    def kernel(self) -> int:
        """A launch number of its own."""
        self._kernel += 1
        return self._kernel

    def temporary(self, shape: tuple[int, ...], dtype: str) -> str:
        """A new intermediate tensor's name."""
        self._names += 1
        name = f"new{self._names}"
        while name in self.tensors:
            self._names += 1
            name = f"new{self._names}"
        self.tensors[name] = Tensor(name, shape, dtype, Role.INTERMEDIATE)
        return name

    def cascade(self) -> Cascade:
        """The edited cascade; tensors that nothing uses any more are gone."""
        used = {a.tensor for e in self.einsums for a in (*e.inputs, e.output)}
        einsums = tuple(replace(e, name=f"e{i}") for i, e in enumerate(self.einsums))
        return Cascade(einsums, {n: t for n, t in self.tensors.items() if n in used}, self.unknown)


def edit(workload: Workload, change: Callable[[Phase, Draft], None]) -> Workload:
    """``workload`` with ``change`` made to each phase's draft."""
    phases = []
    for phase in workload.phases:
        draft = Draft(phase.cascade)
        change(phase, draft)
        phases.append(replace(phase, cascade=draft.cascade()))
    return replace(workload, phases=tuple(phases))


def cache_of(workload: Workload) -> CacheSpec:
    """The cache format that a language model's workload was made with."""
    attributes = workload.attributes
    window = int(attributes.get("window", 0)) or None
    full = tuple(int(i) for i in str(attributes.get("full_layers", "")).split(",") if i)
    return CacheSpec(str(attributes.get("cache", "fp32")), window, int(attributes.get("sinks", 0)), full)


def with_cache(workload: Workload, spec: CacheSpec) -> Workload:
    """The workload with another cache: its state, the writes into it, and what attention reads.

    A plain cache in the format that attention computes in is read where it lies; any other is read into an
    intermediate first. A prompt attends to its own fresh keys and values.
    """
    attributes = {
        **workload.attributes,
        "cache": spec.dtype,
        "window": spec.window or 0,
        "sinks": spec.sinks,
        "full_layers": ",".join(map(str, spec.full_layers)),
    }
    workload = replace(workload, attributes=attributes)
    prompt, made = int(attributes["prompt"]), int(attributes["new_tokens"])
    capacity = prompt + made + 1
    state: dict[str, Tensor] = {}

    def change(phase: Phase, draft: Draft) -> None:
        before = 0 if phase.name == "prefill" else prompt + made // 2
        for module in _attention_modules(draft.einsums):
            _recache(draft, module, spec, capacity, before, state)

    changed = edit(workload, change)
    sizes = {t.name: t.nbytes for t in state.values()}
    # Every layer's buffers exist in both phases, whatever a phase touches of them.
    return replace(changed, state=sizes or changed.state)


def _attention_modules(einsums: Iterable[Einsum]) -> list[str]:
    return list(dict.fromkeys(e.module for e in einsums if e.source == APPEND))


def _recache(draft: Draft, module: str, spec: CacheSpec, capacity: int, before: int, state: dict[str, Tensor]) -> None:
    mine = [e for e in draft.einsums if e.module == module]
    appends = [e for e in mine if e.source == APPEND]
    attention = [e for e in mine if ATTENTION in e.source]
    layer = appends[0].output.tensor.split(".")[1]
    spec = spec.of_layer(int(layer))
    fresh: dict[str, Access] = {}
    for e in appends:
        fresh.setdefault("values" if "value" in e.output.tensor else "keys", e.inputs[0])
    sizes = appends[0].sizes
    batch, heads, new, dim = sizes["b"], sizes["h"], sizes["t"], sizes["e"]
    for name, (shape, dtype) in spec.layout(batch, heads, dim, capacity).items():
        full = f"cache.{layer}.{name}"
        described, shape = _described(spec, name, shape, dtype)
        state[full] = draft.tensors[full] = Tensor(full, shape, described, Role.STATE)
    for stale in [t for t in draft.tensors if t.startswith(f"cache.{layer}.") and t not in state]:
        del draft.tensors[stale]
    seen, coded = _seen(spec, before, new)
    built: list[Einsum] = []
    replacement: dict[str, str] = {}
    for which in ("keys", "values"):
        built += _append(draft, appends[0], which, layer, spec, fresh[which])
        compute = draft.tensors[fresh[which].tensor].dtype
        if before == 0:
            replacement[which] = fresh[which].tensor
        elif spec.window is None and spec.dtype == compute:
            replacement[which] = f"cache.{layer}.{which}"
        else:
            name = draft.temporary((batch, heads, seen, dim), compute)
            built.append(_reading(draft, appends[0], which, layer, spec, name, seen, coded))
            replacement[which] = name
    kernels = {e.kernel for e in attention}
    products = [e for e in attention if e.op is Op.MATMUL]
    swapped = {products[0].inputs[1].tensor: replacement["keys"], products[1].inputs[1].tensor: replacement["values"]}
    first = next(i for i, e in enumerate(draft.einsums) if e.module == module and e.source == APPEND)
    rest = [e for e in draft.einsums if not (e.module == module and (e.source in (APPEND, READ)))]
    # Everything before the first append stays before; the rest follows the rebuilt cache operators.
    cut = sum(1 for e in draft.einsums[:first] if not (e.module == module and e.source in (APPEND, READ)))
    length = sizes_of(attention, "m") if before == 0 else seen
    for i, e in enumerate(rest):
        if e.module == module and e.kernel in kernels and before:
            rest[i] = _resized(draft, e, "m", length, swapped)
    draft.einsums = rest[:cut] + built + rest[cut:]


def sizes_of(einsums: Iterable[Einsum], rank: str) -> int:
    """The size of ``rank`` in the first Einsum that has it."""
    return next((e.sizes[rank] for e in einsums if rank in e.sizes), 1)


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


def _append(draft: Draft, like: Einsum, which: str, layer: str, spec: CacheSpec, new: Access) -> list[Einsum]:
    kernel = draft.kernel()
    short = which[:-1]
    count = 1
    for _, size in like.ranks:
        count *= size
    targets: list[tuple[str, str, Op, int]] = []
    main = f"cache.{layer}.{which}"
    if not spec.quantized:
        targets.append((main, "copy", Op.COPY, min(count, draft.tensors[main].elements)))
    else:
        targets.append((main, "quantize", Op.ELEMENTWISE, min(count, draft.tensors[main].elements)))
        for part in (f"cache.{layer}.{short}_scales", f"cache.{layer}.{short}_mins"):
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
            inputs=(new,),
            output=Access(target, names, None if elements == count else elements),
            map=label,
            kernel=kernel,
            source=APPEND,
        )
        for target, label, op, elements in targets
    ]


def _reading(
    draft: Draft, like: Einsum, which: str, layer: str, spec: CacheSpec, output: str, seen: int, coded: int
) -> Einsum:
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


def _resized(draft: Draft, e: Einsum, rank: str, size: int, swapped: dict[str, str]) -> Einsum:
    """``e`` with ``rank`` of ``size``, its intermediates as long, and some inputs replaced."""
    ranks = tuple((n, size if n == rank else s) for n, s in e.ranks)
    inputs = tuple(
        replace(a, tensor=swapped.get(a.tensor, a.tensor), elements=None if a.tensor in swapped else a.elements)
        for a in e.inputs
    )
    known = draft.tensors[e.output.tensor]
    if rank in e.output.ranks:
        shape = tuple(dict(ranks)[r] for r in e.output.ranks)
        draft.tensors[known.name] = replace(known, shape=shape)
    return replace(e, ranks=ranks, inputs=inputs)


Outline = dict[str, object]


def outline(workload: Workload) -> Outline:
    """What a workload says that a cost model goes by, without torch's incidental plumbing.

    Of each phase: its repeats; every contraction with its module, FLOPs, product, and the bytes and formats of
    weights that it reads; the bytes read and written of each state tensor. And all weights and state in bytes. Two
    workloads with equal outlines differ at most in views, masks and copies, which eager torch arranges by shape.
    """
    phases: dict[str, object] = {}
    for phase in workload.phases:
        cascade = phase.cascade
        contractions = []
        read: dict[str, int] = {}
        written: dict[str, int] = {}
        for e in cascade.einsums:
            for a in e.inputs:
                if cascade.tensors[a.tensor].role is Role.STATE:
                    read[a.tensor] = read.get(a.tensor, 0) + cascade.access_bytes(e, a)
            if cascade.tensors[e.output.tensor].role is Role.STATE:
                name = e.output.tensor
                written[name] = written.get(name, 0) + cascade.access_bytes(e, e.output)
            if e.flops:
                weights = sorted(
                    (a.tensor, cascade.tensors[a.tensor].dtype, cascade.access_bytes(e, a))
                    for a in e.inputs
                    if cascade.tensors[a.tensor].role is Role.WEIGHT
                )
                contractions.append((e.module, e.flops, e.map, tuple(weights)))
        phases[phase.name] = (phase.repeats, contractions, sorted(read.items()), sorted(written.items()))
    return {
        "phases": phases,
        "weights": sorted(workload.weights.items()),
        "state": sorted(workload.state.items()),
        "attributes": sorted(workload.attributes.items()),
    }
