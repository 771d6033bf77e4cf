"""Weights of two bits of which two in four are left out, solved with a calibration text (AccLLM)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hasten.data.text import default_text, documentation, sources
from hasten.dtypes import BITS
from hasten.errors import HastenError
from hasten.kernels import sparse_linear as kernel
from hasten.kernels.groups import check_range
from hasten.methods.described_model import WeightProduct, product_of, products, stack_of
from hasten.methods.editing import Draft, edit
from hasten.methods.method import Method
from hasten.methods.recovery import LowBitLinear, last_states, recover
from hasten.methods.solvers import Rounding, magnitude, round_to_nearest, sweep, sweep_with_scales, wanda
from hasten.nn.block import PackedBlock
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Access, Einsum, Phase, Role, Workload
from hasten.workload.einsum import Tensor as Described


class SparseLinear(PackedBlock):
    """A linear layer over `hasten.kernels.sparse_linear`: x (..., in) to (..., out); its tensors keep their
    types under ``.to(dtype)`` and the like."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, packed: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        self.in_features, self.out_features = packed.shape[1] * 4, packed.shape[0]

    def _start(self) -> None:
        for tensor in (self.packed, self.scales, self.zeros, self.bias):
            if tensor is not None:
                tensor.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = kernel.sparse_linear(x, self.packed, self.scales, self.zeros)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Int8Activations(nn.Module):
    """A linear layer whose input rows are rounded to int8, one scale a row: A8 of W2A8KV4."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = kernel.encode(x.reshape(-1, x.shape[-1]).float())
        return self.linear((codes * scale[:, None]).to(x.dtype).reshape(x.shape))


Change = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def compress(
    model: LanguageModel,
    ids: Tensor,
    change: Change,
    finish: Callable[[nn.Linear, slice], nn.Module] | None = None,
) -> None:
    """Changes every linear layer within the decoder layers, in order, each knowing its inputs as the changed layers
    before it make them. Those that read the same input are solved as one matrix, which their rows allow.

    Args:
        model: changed in place; give a copy of one that is still needed.
        ids: (n, length) calibration tokens.
        change: from a weight (out, in) and H = X^T X to the new weight.
        finish: what replaces a changed layer, given where its rows were in what was solved; itself when None.

    Raises:
        HastenError: a weight is not finite, or beyond what scales of fp16 reach.
    """
    decoder = model.decoder
    states = list(decoder.embedding(ids).split(2))
    turns = decoder.rotary(states[0], position_ids=torch.arange(ids.shape[1])[None])

    def run(layer: Any, state: Tensor) -> Tensor:
        out = layer(state, attention_mask=None, position_embeddings=turns, past_key_values=None)
        return out[0] if isinstance(out, tuple) else out

    for layer in model.layers:
        linears = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        read: list[tuple[str, Tensor]] = []
        handles = [
            m.register_forward_pre_hook(lambda _, args, name=n, read=read: read.append((name, args[0])))
            for n, m in linears.items()
        ]
        grams: dict[tuple[str, ...], Tensor] = {}
        for state in states:
            read.clear()
            run(layer, state)
            # What was read is held till now: another tensor could have a freed one's identity.
            inputs = {id(given): given for _, given in read}
            for key, given in inputs.items():
                names = tuple(name for name, other in read if id(other) == key)
                x = given.reshape(-1, given.shape[-1]).float()
                grams[names] = grams.get(names, 0) + x.t() @ x
        for handle in handles:
            handle.remove()
        for names, gram in grams.items():
            modules = [linears[name] for name in names]
            weights = torch.cat([m.weight.detach().float() for m in modules])
            check_range(weights, 2)
            solved = change(weights, gram)
            first = 0
            for name, module in zip(names, modules, strict=True):
                rows = slice(first, first + module.out_features)
                first = rows.stop
                # A new tensor: copies of the model may share the old one.
                module.weight = nn.Parameter(solved[rows].to(module.weight.dtype, copy=True), requires_grad=False)
                if finish is not None:
                    owner, _, leaf = name.rpartition(".")
                    setattr(layer.get_submodule(owner), leaf, finish(module, rows))
        states = [run(layer, state) for state in states]


_CHANGES: dict[str, Callable[[Rounding | None], Change]] = {
    "magnitude": lambda rounding: lambda w, h: magnitude(w),
    "wanda": lambda rounding: wanda,
    "sparsegpt": lambda rounding: sweep,
    "round": lambda rounding: lambda w, h: round_to_nearest(w, _given(rounding)),
    "gptq": lambda rounding: lambda w, h: sweep(w, h, sparse=False, rounding=_given(rounding)),
    "joint": lambda rounding: lambda w, h: sweep(w, h, rounding=_given(rounding)),
    "prune, then round": lambda rounding: lambda w, h: _prune_then_round(w, h, _given(rounding)),
}


def _given(rounding: Rounding | None) -> Rounding:
    if rounding is None:
        raise HastenError("this solver rounds: give it a rounding")
    return rounding


def _prune_then_round(weight: Tensor, hessian: Tensor, rounding: Rounding) -> Tensor:
    pruned = sweep(weight, hessian)
    return round_to_nearest(pruned, rounding) * (pruned != 0)


def solver(name: str, rounding: Rounding | None = None) -> Change:
    """One of the solvers by name.

    Raises:
        HastenError: another name.
    """
    if name not in _CHANGES:
        raise HastenError(f"unknown solver {name!r}: one of {', '.join(_CHANGES)}")
    return _CHANGES[name](rounding)


def calibration(model: LanguageModel, sequences: int, length: int) -> Tensor:
    """Tokens (sequences, length), of documentation and of sources in turn, apart from the text that quality is
    measured on.

    Raises:
        HastenError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise HastenError("calibration reads a text: give the model its tokenizer")
    tested = {*default_text()[:20000].split("\n\n")}
    prose = "\n\n".join(p for p in documentation(sequences * length * 8).split("\n\n") if p not in tested)
    rows = []
    for text, count in ((prose, (sequences + 1) // 2), (sources(sequences * length * 8), sequences // 2)):
        found = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(found) < count * length:
            raise HastenError(f"the text has {len(found)} tokens, calibration needs {count * length}")
        rows.append(torch.tensor(found[: count * length]).reshape(count, length))
    mixed = [row for pair in zip_longest(*rows) for row in pair if row is not None]
    return torch.stack(mixed)


def not_compressible(model: Any, columns: int, groups: str) -> str | None:
    """Why a model's matrices cannot be compressed in groups of so many columns, which are called ``groups``."""
    if not isinstance(model, LanguageModel):
        return "it is not a language model"
    linears = [m for m in model.layers.modules() if isinstance(m, nn.Linear)]
    if not linears:
        return "its weights are packed already"
    odd = [m.in_features for m in linears if m.in_features % columns]
    return f"a layer of {odd[0]} columns does not divide into {groups}" if odd else None


@dataclass(frozen=True)
class SparseLowBit(Method):
    """2:4 pruned weights of two bits and int8 activations, pruning and rounding solved together.

    Two of every four inputs of a weight are left out and the rest has four levels in groups of 64, with the errors
    passed on to the columns that follow. Made for models of billions of parameters; small ones lose much.

    Args:
        sequences, length: of the calibration text.
        recovery: seconds of training it back towards the whole model, on three times as much text.
    """

    name: ClassVar[str] = "sparse-low-bit"
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"2:4-int2": {}}
    untried: ClassVar[str] = "seconds of calibration a trial, and models that fit a small machine lose too much"
    kind: ClassVar[str] = "weights"
    order: ClassVar[int] = 20
    source: ClassVar[str] = "AccLLM, arXiv 2505.03745"

    sequences: int = 10
    length: int = 512
    recovery: float = 0.0

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.length < 1:
            raise HastenError("calibration takes at least one sequence of one token")
        if self.recovery < 0:
            raise HastenError("recovery takes seconds, 0 for none")

    @property
    def title(self) -> str:
        return "2:4 sparse 2-bit weights"

    def why_not(self, model: Any) -> str | None:
        if (why := not_compressible(model, kernel.GROUP, f"groups of {kernel.GROUP}")) is not None:
            return why
        return "it has no tokenizer to calibrate with" if model.tokenizer is None else None

    def apply(self, model: Any) -> Any:
        self.check(model)
        # A longer calibration text begins with the shorter one.
        text = calibration(model, (3 if self.recovery else 1) * self.sequences, self.length)
        states = last_states(model, text) if self.recovery else None
        trainable(model, text[: self.sequences])
        if states is not None:
            recover(model, text, states, seconds=self.recovery)
        pack(model)
        return model

    def why_not_described(self, workload: Workload) -> str | None:
        stack = stack_of(workload)
        found = products(workload, lambda e: stack is not None and stack.number(e.module) is not None)
        if not found:
            return "it has no stack of layers with linear ones"
        wide = [p for p in found if BITS[p.weight.dtype] > 2]
        if not wide:
            return f"its weights are {' and '.join(sorted({p.weight.dtype for p in found}))} already"
        if all(p.columns % kernel.GROUP for p in wide):
            return f"a layer of {wide[0].columns} columns does not divide into groups of {kernel.GROUP}"
        return None

    def rewrite(self, workload: Workload) -> Workload:
        weights = dict(workload.weights)
        stack = stack_of(workload)

        def change(phase: Phase, draft: Draft) -> None:
            for i, e in enumerate(draft.einsums):
                if stack is None or stack.number(e.module) is None:
                    continue
                found = product_of(draft, e)
                if found is not None and BITS[found.weight.dtype] > 2 and not found.columns % kernel.GROUP:
                    draft.einsums[i] = _product(draft, e, found, weights)

        return replace(edit(workload, change), weights=weights)

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        """None, see ``untried``."""
        return []


class _Solving:
    """Solves a layer and keeps the very scales it was solved with."""

    def __init__(self) -> None:
        self._scales: tuple[Tensor, Tensor] | None = None

    def change(self, weight: Tensor, hessian: Tensor) -> Tensor:
        found, *scales = sweep_with_scales(weight, hessian, rounding=Rounding(2, kernel.GROUP))
        self._scales = (scales[0], scales[1])
        return found

    def finish(self, linear: nn.Linear, rows: slice) -> LowBitLinear:
        assert self._scales is not None
        scales, zeros = (t[rows] for t in self._scales)
        return LowBitLinear(linear.weight, scales, zeros, linear.bias)


def trainable(model: LanguageModel, ids: Tensor) -> None:
    """Solves every linear layer within the decoder layers for 2:4 and two bits; they can be trained on, or packed."""
    solving = _Solving()
    compress(model, ids, solving.change, solving.finish)


def int8_activations(model: LanguageModel) -> LanguageModel:
    """The model with `Int8Activations` in front of every linear layer of its decoder layers, changed in place."""
    for layer in model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                owner, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(owner), leaf, Int8Activations(module))
    return model


def pack(model: LanguageModel) -> None:
    """Puts every `LowBitLinear` of the decoder layers into its eight bits for four weights."""
    for layer in model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, LowBitLinear):
                owner, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(owner), leaf, SparseLinear(*module.pack(), module.bias))


def _product(draft: Draft, e: Einsum, found: WeightProduct, weights: dict[str, int]) -> Einsum:
    rows, columns, base = found.rows, found.columns, found.base
    groups = columns // kernel.GROUP
    pieces = [
        Described(f"{base}.packed", (rows, columns // 4), "uint8", Role.WEIGHT),
        Described(f"{base}.scales", (rows, groups), "fp16", Role.WEIGHT),
        Described(f"{base}.zeros", (rows, -(-groups // 4)), "uint8", Role.WEIGHT),
    ]
    for name in (found.weight.name, *found.beside):
        weights.pop(name, None)
    for piece in pieces:
        draft.tensors[piece.name] = piece
        weights[piece.name] = piece.nbytes
    share = e.touched(found.access) / found.weight.elements
    given = [a for a in e.inputs if a.tensor not in (found.weight.name, *found.beside)]
    own = [Access(p.name, found.access.ranks, math.ceil(p.elements * share)) for p in pieces]
    sizes = e.sizes
    if share < 1 or {"m", "n", "k"} - sizes.keys() or len(found.weight.shape) != 2:
        return replace(e, inputs=(given[0], *own, *given[1:]), source="hasten::sparse_part")
    ranks = (("m", sizes["m"] * sizes.get("b", 1)), ("n", sizes["n"]), ("k", sizes["k"]))
    inputs = (
        Access(given[0].tensor, ("m", "k"), given[0].elements),
        *(Access(p.name, ("k", "n"), p.elements) for p in pieces),
    )
    return replace(
        e, ranks=ranks, inputs=inputs, output=Access(e.output.tensor, ("m", "n")), source="hasten::sparse_linear"
    )
