"""What a language model computes for a prompt and new tokens, read off the model itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hasten.kernels import kv_cache
from hasten.runtime.cache import CacheSpec, KVCache
from hasten.runtime.decoding.lookup import PromptLookup
from hasten.runtime.policies import Policy
from hasten.workload import Access, Cascade, Einsum, Op, Phase, Role, Workload, trace_cascade
from hasten.workload.einsum import Tensor as Described
from hasten.workload.routing import share_hit

_ATTENTION = ("scaled_dot_product_attention", "latent_attention")


class Describable(Protocol):
    """What a description is read off; `hasten.runtime.LanguageModel` is one.

    Attributes:
        cache: how keys and values are kept; changed while it is traced, and put back.
        lookup: how drafts are found, or None.
        name: for people.
        network: that reads tokens.
    """

    cache: CacheSpec
    lookup: PromptLookup | None
    name: str
    network: Any

    def new_cache(self, batch: int = 1, capacity: int = 0) -> KVCache:
        """Empty buffers."""


def workload(model: Describable, prompt: int, new_tokens: int, batch: int = 1) -> Workload:
    """Phases ``prefill`` (once) and ``decode`` (a step for each token; fewer, wider ones with drafts).

    The decode step stands for all of them: it is taken in the middle, at ``prompt + new_tokens // 2`` positions, and
    what grows with length grows linearly.

    Args:
        model: traced on fake tensors, as it stands.
        prompt: tokens of each prompt.
        new_tokens: tokens made for each sequence.
        batch: sequences.
    """
    # What is chosen depends on the data, which fake tensors have none of: the policy says what is read. Turning a query
    # back for capped positions is all that differs from a plain window. Drafts are more rows of the same step.
    spec, lookup = model.cache, model.lookup
    model.cache, model.lookup = replace(spec, policy=None, capped=False), None
    try:
        whole = _whole(model, prompt, new_tokens, batch)
    finally:
        model.cache, model.lookup = spec, lookup
    return _as_read(whole, spec.policy, lookup)


def _whole(model: Describable, prompt: int, new_tokens: int, batch: int) -> Workload:
    """As `workload`, of a model that reads its whole cache or a window of it, one token a step."""
    capacity = prompt + new_tokens + 1

    def call(new: int, filled: int) -> tuple[Any, dict[str, int], dict[str, int]]:
        def prepare() -> tuple[tuple[Any, ...], Mapping[str, Any]]:
            cache = model.new_cache(batch, capacity)
            arguments: dict[str, Any] = {"past_key_values": cache, "logits_to_keep": 1}
            if filled:
                cache.lengths[:] = [filled] * batch
                if model.cache.quantized:
                    cache.quantized[:] = [filled // kv_cache.BLOCK] * batch
            return (torch.zeros(batch, new, dtype=torch.int64),), arguments

        assert isinstance(model, nn.Module)
        # The network itself: a window's mask, which the model makes for plain torch, is no part of the work, and with
        # it torch would attend in another way than where the same window is a rewriting.
        return trace_cascade(model.network, module=model, prepare=prepare, state=_buffers)

    prefill, weights, _ = call(prompt, 0)
    decode, _, state = call(1, prompt + new_tokens // 2)
    return Workload(
        model.name,
        (Phase("prefill", prefill), Phase("decode", decode, new_tokens)),
        weights,
        state,
        {
            "prompt": prompt,
            "new_tokens": new_tokens,
            "batch": batch,
            "rows": 1,
            "cache": model.cache.dtype,
            "window": model.cache.window or 0,
            "sinks": model.cache.sinks,
            "full_layers": ",".join(map(str, model.cache.full_layers)),
        },
    )


@dataclass(frozen=True)
class ReadWorkload(Workload):
    """A workload whose decode steps read what a policy chooses, or verify drafts, beside what it was before both.

    Args:
        whole: with every step reading the whole cache, or its window, for one token.
        policy: what chooses, or None.
        lookup: what drafts, or None.
    """

    whole: Workload = field(default_factory=lambda: Workload("", ()), repr=False, compare=False)
    policy: Policy | None = field(default=None, compare=False)
    lookup: PromptLookup | None = field(default=None, compare=False)


def beneath(workload: Workload, change: Callable[[Workload], Workload]) -> Workload:
    """``change`` made to what a workload is without its policy and its drafts, which then hold of what became of it.

    So it does not matter whether a model was changed before or after it was described.
    """
    if not isinstance(workload, ReadWorkload):
        return change(workload)
    found = change(workload.whole)
    if isinstance(found, ReadWorkload):
        return _as_read(found.whole, found.policy or workload.policy, found.lookup or workload.lookup)
    return _as_read(found, workload.policy, workload.lookup)


def _as_read(whole: Workload, policy: Policy | None, lookup: PromptLookup | None) -> Workload:
    found = whole
    if policy is not None:
        found = _chosen(found, policy)
    if lookup is not None:
        found = _drafted(found, lookup)
    if found is whole:
        return whole
    return ReadWorkload(
        found.name, found.phases, found.weights, found.state, found.attributes, found.notes, whole, policy, lookup
    )  # fmt: skip


def with_policy(workload: Workload, policy: Policy) -> Workload:
    """The workload whose decode steps read what ``policy`` chooses of the cache.

    Attention reads the policy's budget; where tokens leave the cache for good, its buffers shrink too.
    """
    return beneath(workload, lambda whole: _as_read(whole, policy, None))


def with_drafts(workload: Workload, lookup: PromptLookup) -> Workload:
    """The workload whose decode steps verify the drafts of ``lookup``: fewer steps, of more rows."""
    return beneath(workload, lambda whole: _as_read(whole, None, lookup))


def _drafted(workload: Workload, lookup: PromptLookup) -> Workload:
    rows = lookup.rows
    steps = math.ceil(int(workload.attributes["new_tokens"]) / (1 + lookup.accepted))
    phases = tuple(
        replace(p, cascade=with_rows(p.cascade, rows), repeats=steps) if p.name == "decode" else p
        for p in workload.phases
    )
    return replace(workload, phases=phases, attributes={**workload.attributes, "rows": rows})


def _chosen(workload: Workload, policy: Policy) -> Workload:
    prompt, made = int(workload.attributes["prompt"]), int(workload.attributes["new_tokens"])
    prompt += int(workload.attributes.get("context", 0))
    length = prompt + made // 2
    budget = policy.budget(prompt) + made // 2 if policy.drops else policy.budget(length)
    attributes = {**workload.attributes, "policy": repr(policy)}
    state = {**workload.state, **_kept_beside(workload, policy)}
    if budget >= length:
        return replace(workload, state=state, attributes=attributes)

    def smaller(cascade: Cascade) -> Cascade:
        tensors = dict(cascade.tensors)
        choosing = {m for m in _attending(cascade) if not policy.dense(_layer_of(m))}
        einsums = []
        for e in cascade.einsums:
            rank = "t" if "t" in e.sizes else "m"
            if e.module not in choosing or rank not in e.sizes or not _reads(e):
                einsums.append(e)
                continue
            # A layer with a window of its own has fewer tokens to choose from.
            size = max(1, min(e.sizes[rank], budget))
            share = size / e.sizes[rank]
            ranks = tuple((n, size if n == rank else s) for n, s in e.ranks)
            inputs = []
            for a in e.inputs:
                tensor = tensors[a.tensor]
                if tensor.role is Role.STATE or a.elements is not None:
                    whole = a.elements if a.elements is not None else _count(e, a)
                    inputs.append(replace(a, elements=max(1, round(whole * share))))
                else:
                    inputs.append(a)
            known = tensors[e.output.tensor]
            if rank in e.output.ranks and known.role is Role.INTERMEDIATE:
                tensors[known.name] = replace(known, shape=tuple(dict(ranks)[r] for r in e.output.ranks))
            einsums.append(replace(e, ranks=ranks, inputs=tuple(inputs)))
        return replace(cascade, einsums=tuple(einsums), tensors=tensors)

    phases = tuple(replace(p, cascade=smaller(p.cascade)) if p.name == "decode" else p for p in workload.phases)
    if policy.drops:
        # Buffers are made in whole blocks.
        kept = _blocks(policy.budget(prompt) + made + 1) / _blocks(prompt + made + 1)
        # What is newest, and not rounded yet, has as much room in a small cache as in a large one.
        shrinks = re.compile(r"cache\.\d+\.(key|value|pooled)")
        state = {n: round(size * min(1.0, kept)) if shrinks.match(n) else size for n, size in state.items()}
    return replace(workload, phases=phases, state=state, attributes=attributes)


def _blocks(tokens: int) -> int:
    return -(-tokens // kv_cache.BLOCK)


def _kept_beside(workload: Workload, policy: Policy) -> dict[str, int]:
    """Bytes of what a policy keeps beside keys and values, by name."""
    asked = workload.attributes
    blocks = _blocks(int(asked.get("context", 0)) + int(asked["prompt"]) + int(asked["new_tokens"]) + 1)
    found: dict[str, int] = {}
    for e in workload.phase("decode").cascade.einsums:
        if e.source == "hasten::kv_append" and "key" in e.output.tensor:
            layer, sizes = _layer_of(e.module), e.sizes
            with torch.device("meta"):
                own = policy.tensors(layer, sizes["b"], sizes["h"], blocks, sizes["e"])
            found |= {f"cache.{layer}.{name}": tensor.nbytes for name, tensor in own.items()}
    return found


def _attending(cascade: Cascade) -> set[str]:
    return {e.module for e in cascade.einsums if e.source == "hasten::kv_append"}


def _reads(e: Einsum) -> bool:
    return e.source == "hasten::kv_read" or any(name in e.source for name in _ATTENTION)


def _layer_of(module: str) -> int:
    return next((int(part) for part in module.split(".") if part.isdigit()), -1)


def _count(e: Einsum, access: Access) -> int:
    return math.prod(e.sizes[r] for r in access.ranks)


def with_rows(cascade: Cascade, rows: int) -> Cascade:
    """A decode step that verifies ``rows`` tokens of each sequence at once.

    Everything that a token has of its own (intermediates, inputs, outputs, what it writes into the cache) gains a rank
    ``d`` over the tokens; weights and the cache are read once for all of them.
    """
    if rows == 1:
        return cascade
    own = (Role.INTERMEDIATE, Role.INPUT, Role.OUTPUT)

    def widened(e: Einsum, access: Access, writes: bool) -> Access:
        tensor = cascade.tensors[access.tensor]
        if tensor.role not in own and not writes:
            return _of_more_experts(e, access, tensor, rows)
        count = None if access.elements is None else access.elements * rows
        return replace(access, ranks=("d", *access.ranks), elements=count)

    def wider(e: Einsum) -> Einsum:
        if e.source == "hasten::kv_read" or (e.op is Op.COPY and not e.inputs):
            return e
        inputs = tuple(a if a.tensor in read else widened(e, a, False) for a in e.inputs)
        return replace(e, ranks=(("d", rows), *e.ranks), inputs=inputs, output=widened(e, e.output, True))

    # What was read out of the cache, or made from nothing, is the same for every token.
    read = {
        e.output.tensor for e in cascade.einsums if e.source == "hasten::kv_read" or (e.op is Op.COPY and not e.inputs)
    }
    tensors = {
        n: replace(t, shape=(rows, *t.shape)) if t.role in own and n not in read else t
        for n, t in cascade.tensors.items()
    }
    return replace(cascade, einsums=tuple(wider(e) for e in cascade.einsums), tensors=tensors)


def _of_more_experts(e: Einsum, access: Access, tensor: Described, rows: int) -> Access:
    """What is read of a weight for so many rows as one row reads ``access``: experts that one leaves, others hit."""
    if tensor.role is not Role.WEIGHT or e.op is not Op.MATMUL or "expert" not in e.module or access.elements is None:
        return access
    share = share_hit(access.elements / tensor.elements, rows)
    return replace(access, elements=min(tensor.elements, round(tensor.elements * share)))


def _buffers(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    cache = arguments["past_key_values"]
    return {f"cache.{i}.{name}": t for i, layer in enumerate(cache.layers) for name, t in layer.tensors.items()}
