"""Linear layers and experts with weights of 16 (bf16), 8 or 4 bits, and activations as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import nn

from hasten.cost.preserving import hooked
from hasten.dtypes import BITS
from hasten.errors import HastenError
from hasten.kernels.packed_linear import GROUP, fast_bf16, product_map
from hasten.methods.described_model import WeightProduct, is_head, is_router, product_of, products
from hasten.methods.editing import Draft, edit
from hasten.methods.method import LANGUAGE_MODEL, NETWORK, Context, Method
from hasten.nn import PackedEmbedding, PackedGatedExperts, PackedLinear
from hasten.nn.packed_experts import plain_parts
from hasten.workload.einsum import Access, Einsum, Op, Phase, Role, Tensor, Workload

_STORED = {16: "bf16", 8: "int8", 4: "int4"}


@dataclass(frozen=True)
class WeightOnly(Method):
    """Packs the weights of linear layers and of a mixture's experts, with a scale for each group of columns.

    Rounding to nearest in groups: int8 symmetric, int4 with a scale and a minimum (the formats of
    `hasten.kernels.packed_linear`). A token's row is multiplied in fp32 with the unpacked weight. What chooses among
    experts stays as it is.

    Args:
        bits: 16, 8 or 4, of the layers' weights.
        head_bits: of the output head, and of the embedding when the two are tied; 0 leaves both.
        group: columns that share a scale.
        bf16: multiply many rows, such as a prompt's, in bf16.
        int8: round activations to int8 in groups of 32, and multiply few rows as whole numbers.
    """

    name: ClassVar[str] = "weight-only"
    kind: ClassVar[str] = "weights"
    order: ClassVar[int] = 20
    subjects: ClassVar[tuple[str, ...]] = (LANGUAGE_MODEL, NETWORK)
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "int4": {"bits": 4},
        "int8": {"bits": 8},
        "bf16": {"bits": 16, "head_bits": 16},
    }
    source: ClassVar[str] = "group-wise rounding as in GGUF; bf16 products by the processor"

    bits: int = 4
    head_bits: int = 8
    group: int = GROUP
    bf16: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        if self.bits not in _STORED or self.head_bits not in (0, *_STORED) or self.group < GROUP or self.group % GROUP:
            raise HastenError(
                f"weight-only takes bits 16, 8 or 4, head_bits also 0, and groups of a multiple of {GROUP}"
            )
        if self.int8 and (self.bits == 16 or self.group != GROUP):
            raise HastenError(f"int8 activations go with weights of 8 or 4 bits in groups of {GROUP}")

    @property
    def title(self) -> str:
        head = "" if self.head_bits in (0, self.bits) else f", head {_STORED[self.head_bits]}"
        return (
            f"{_STORED[self.bits]} weights{head}"
            + (", int8 activations" if self.int8 else "")
            + (", bf16 prompt" if self.bf16 else "")
        )

    def why_not(self, model: Any) -> str | None:
        if any(isinstance(m, PackedLinear | PackedGatedExperts) for m in model.modules()):
            return "its weights are packed already"
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if not linears:
            return "it has no linear layers"
        mixtures = [m for m in model.modules() if _holds_experts(m)]
        for reason in filter(None, map(PackedGatedExperts.why_not, mixtures)):
            return reason
        parts = [plain_parts(m) for m in mixtures]
        columns = [m.in_features for m in linears] + [n for p in parts for n in (p.hidden, p.inner)]
        odd = [n for n in columns if n % self.group]
        if odd:
            return f"a layer of {odd[0]} columns does not divide into groups of {self.group}"
        if isinstance(model, nn.Linear):
            return "it is a linear layer by itself, which cannot be changed in place: PackedLinear.from_linear packs it"
        return self._why_not_heads(model)

    def _why_not_heads(self, model: Any) -> str | None:
        for network in _with_heads(model) if self.head_bits else ():
            table = network.get_input_embeddings()
            if table.weight is network.lm_head.weight and _own_forward(table) and not hasattr(table, "embed_scale"):
                return f"its tied embedding is a {type(table).__name__}, which adds something of its own: head_bits 0"
        return None

    def apply(self, model: Any) -> Any:
        self.check(model)
        # A layer that stands in several places is packed once, and stays shared. All are packed before one is replaced:
        # a weight that no scale reaches leaves the model as it was.
        packed: dict[nn.Module, PackedLinear | PackedGatedExperts] = {}
        places: list[tuple[nn.Module, str, nn.Module]] = []
        for path, parent in model.named_modules():
            for name, child in parent._modules.items():
                if child is None or name == "lm_head" or (is_router(name) and hasattr(parent, "experts")):
                    continue
                if hooked(child):
                    continue
                if not _holds_experts(child) and (not isinstance(child, nn.Linear) or _own_forward(child)):
                    continue
                if child not in packed:
                    packed[child] = self._pack(child, self.bits, f"{path}.{name}" if path else name)
                places.append((parent, name, child))
        heads = [(n, self._pack(n.lm_head, self.head_bits, "lm_head")) for n in _with_heads(model) if self.head_bits]
        for parent, name, child in places:
            setattr(parent, name, packed[child])
        for network, head in heads:
            table = network.get_input_embeddings()
            tied = table.weight is network.lm_head.weight
            network.lm_head = head
            if tied:
                network.set_input_embeddings(_like(table, head))
        return model

    def _pack(self, layer: nn.Module, bits: int, name: str) -> Any:
        pack: Any = PackedLinear.from_linear if isinstance(layer, nn.Linear) else PackedGatedExperts.from_experts
        try:
            return pack(layer, bits, self.group, self.bf16, self.int8 and bits < 16)
        except HastenError as error:
            raise HastenError(f"{name}: {error}") from error

    def why_not_described(self, workload: Workload) -> str | None:
        found = self._products(workload)
        if not found:
            return "it has no linear layers"
        wide = [p for p in found if self._narrows(p.weight)]
        if not wide:
            return f"its weights are {' and '.join(sorted({p.weight.dtype for p in found}))} already"
        if all(p.columns % self.group for p in wide):
            return f"a layer of {wide[0].columns} columns does not divide into groups of {self.group}"
        return None

    def remarks(self, workload: Workload) -> Sequence[str]:
        found = self._products(workload)
        left = sorted({p.weight.dtype for p in found if not self._narrows(p.weight)})
        odd = sorted({p.columns for p in found if self._narrows(p.weight) and p.columns % self.group})
        told = [f"{self.title}: weights that are {' and '.join(left)} stay so"] if left else []
        if odd:
            told.append(
                f"{self.title}: layers of {', '.join(map(str, odd))} columns do not divide into groups of {self.group}"
                " and stay as they are"
            )
        return told

    def _products(self, workload: Workload) -> list[WeightProduct]:
        return products(workload, lambda e: bool(self.head_bits) or not is_head(e))

    def _narrows(self, weight: Tensor) -> bool:
        known = BITS[weight.dtype]
        return known > self.bits or known == self.bits == 16

    def rewrite(self, workload: Workload) -> Workload:
        weights = dict(workload.weights)
        tables = _embedding_tables(workload)
        mixtures = {name.rpartition(".experts.")[0] for name in workload.weights if ".experts." in name}

        def change(phase: Phase, draft: Draft) -> None:
            for i, e in enumerate(draft.einsums):
                if e.op is Op.GATHER:
                    table = _table(draft, e)
                    if table is not None and self.head_bits and table in tables and _tied(workload, table):
                        draft.einsums[i] = self._gather(draft, e, table, weights)
                    continue
                found = product_of(draft, e)
                if found is None or not self._narrows(found.weight) or found.columns % self.group:
                    continue
                owner, _, last = found.base.rpartition(".")
                if owner in mixtures and is_router(last):
                    continue
                bits = self.head_bits if is_head(e) or found.weight.name in tables else self.bits
                if bits and BITS[found.weight.dtype] >= bits:
                    draft.einsums[i] = self._product(draft, e, found, bits, weights)

        changed = edit(workload, change)
        return replace(changed, weights=weights)

    def _pieces(self, draft: Draft, found: WeightProduct, bits: int, weights: dict[str, int]) -> list[Tensor]:
        pieces = [Tensor(f"{found.base}.packed", found.weight.shape, _STORED[bits], Role.WEIGHT)]
        groups = (found.rows, found.columns // self.group)
        if bits != 16:
            pieces.append(Tensor(f"{found.base}.scales", groups, "fp16", Role.WEIGHT))
        if bits == 4:
            pieces.append(Tensor(f"{found.base}.mins", groups, "fp16", Role.WEIGHT))
        for name in (found.weight.name, *found.beside):
            weights.pop(name, None)
        for piece in pieces:
            draft.tensors[piece.name] = piece
            weights[piece.name] = piece.nbytes
        return pieces

    def _product(self, draft: Draft, e: Einsum, found: WeightProduct, bits: int, weights: dict[str, int]) -> Einsum:
        packed, *scales = self._pieces(draft, found, bits, weights)
        sizes = e.sizes
        if e.touched(found.access) != packed.elements or {"m", "n", "k"} - sizes.keys() or len(packed.shape) != 2:
            return self._of_some(e, found, packed, scales)
        ranks = (("m", sizes["m"] * sizes.get("b", 1)), ("n", sizes["n"]), ("k", sizes["k"]))
        given = next(a for a in e.inputs if a.tensor not in (found.weight.name, *found.beside))
        inputs = (
            Access(given.tensor, ("m", "k"), given.elements),
            Access(packed.name, ("k", "n")),
            *(Access(s.name, ("n", "k"), s.elements) for s in scales),
        )
        output = Access(e.output.tensor, ("m", "n"))
        product = product_map(bits, ranks[0][1], self.bf16, self.int8)
        return replace(e, ranks=ranks, inputs=inputs, output=output, map=product, source="hasten::packed_linear")

    def _of_some(self, e: Einsum, found: WeightProduct, packed: Tensor, scales: list[Tensor]) -> Einsum:
        """A product by a part of its weight: of the experts that tokens go to, of some heads' rows."""
        touched = e.touched(found.access)
        kept = [a for a in e.inputs if a.tensor not in (found.weight.name, *found.beside)]
        own = [replace(found.access, tensor=packed.name, elements=touched, index=None)]
        own += [Access(s.name, found.access.ranks, -(-touched // self.group)) for s in scales]
        bits = BITS[packed.dtype]
        product = product_map(bits, e.sizes["m"], self.bf16, self.int8) if _of_experts(packed) else "mul"
        return replace(e, inputs=(kept[0], *own, *kept[1:]), map=product, source="hasten::packed_part")

    def _gather(self, draft: Draft, e: Einsum, weight: str, weights: dict[str, int]) -> Einsum:
        known = draft.tensors[weight]
        whole = WeightProduct(known, e.inputs[0], known.shape[-1])
        packed, *scales = self._pieces(draft, whole, self.head_bits, weights)
        table, *ids = e.inputs
        touched = min(e.points, packed.elements)
        inputs = (
            replace(table, tensor=packed.name),
            *(Access(s.name, table.ranks, -(-touched // self.group)) for s in scales),
            *ids,
        )
        return replace(e, inputs=inputs, map="dequantize", source="hasten::packed_embedding")

    def why_not_tried(self, context: Context) -> str | None:
        device = getattr(context.model, "device", None)
        where = "cpu" if device is None else device.type
        return None if where == "cpu" else f"its kernels are for processors: on {where} weights are unpacked every time"

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        native = fast_bf16()
        plain = [cls(bits, head, bf16=native) for bits, head in ((16, 16), (8, 8), (4, 8), (4, 4))]
        return plain + [cls(bits, head, bf16=native, int8=True) for bits, head in ((8, 8), (4, 8), (4, 4))]


def _with_heads(model: Any) -> list[Any]:
    """The networks within ``model`` whose head is a linear layer."""
    return [m for m in model.modules() if isinstance(getattr(m, "lm_head", None), nn.Linear)]


def _holds_experts(module: nn.Module) -> bool:
    """Whether a module holds the matrices of several experts, each weight of them in one tensor."""
    named = "Experts" in type(module).__name__ and not isinstance(module, PackedGatedExperts)
    return named and any(p.dim() == 3 for p in module.parameters(recurse=False))


def _of_experts(weight: Tensor) -> bool:
    return len(weight.shape) == 3 and ".experts." in weight.name


def _own_forward(module: nn.Module) -> bool:
    """Whether a class derived from torch's layer computes something else than that."""
    base = nn.Linear if isinstance(module, nn.Linear) else nn.Embedding
    return type(module).forward is not base.forward


def _like(table: nn.Embedding, head: PackedLinear) -> PackedEmbedding:
    scale = getattr(table, "embed_scale", None)
    empty = PackedEmbedding(0, table.embedding_dim, bits=head.bits, group=head.group, scale=scale)
    empty.num_embeddings = table.num_embeddings
    return empty.tie(head)


def _table(draft: Draft, e: Einsum) -> str | None:
    """The embedding that ``e`` reads rows of."""
    if e.source.startswith("hasten::"):
        return None
    found = (draft.tensors[a.tensor] for a in e.inputs)
    return next((t.name for t in found if t.role is Role.WEIGHT and len(t.shape) == 2), None)


def _embedding_tables(workload: Workload) -> set[str]:
    found = set()
    for phase in workload.phases:
        for e in phase.cascade.einsums:
            if e.op is Op.GATHER:
                found |= {a.tensor for a in e.inputs if a.tensor.endswith(".weight")}
    return found


def _tied(workload: Workload, table: str) -> bool:
    """Whether the output head multiplies by the embedding's own weight."""
    return any(
        e.op is Op.MATMUL and any(a.tensor == table for a in e.inputs)
        for phase in workload.phases
        for e in phase.cascade.einsums
    )
