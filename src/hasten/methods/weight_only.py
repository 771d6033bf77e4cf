"""Linear layers with weights of 16 (bf16), 8 or 4 bits, and activations as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import nn

from hasten.errors import HastenError
from hasten.kernels.packed_linear import FEW_ROWS, GROUP, fast_bf16
from hasten.methods.editing import Draft, edit
from hasten.methods.method import Method
from hasten.nn import PackedEmbedding, PackedLinear
from hasten.workload.einsum import Access, Einsum, Op, Phase, Role, Tensor, Workload

_STORED = {16: "bf16", 8: "int8", 4: "int4"}


@dataclass(frozen=True)
class WeightOnly(Method):
    """Packs the weights of linear layers, with a scale for each group of columns.

    Rounding to nearest in groups: int8 symmetric, int4 with a scale and a minimum (the formats of
    `hasten.kernels.packed_linear`). A token's row is multiplied in fp32 with the unpacked weight.

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
        if any(isinstance(m, PackedLinear) for m in model.modules()):
            return "its weights are packed already"
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if not linears:
            return "it has no linear layers"
        odd = [m.in_features for m in linears if m.in_features % self.group]
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
        packed: dict[nn.Module, PackedLinear] = {}
        places: list[tuple[nn.Module, str, nn.Module]] = []
        for path, parent in model.named_modules():
            for name, child in parent._modules.items():
                if not isinstance(child, nn.Linear) or name == "lm_head" or _own_forward(child):
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

    def _pack(self, linear: nn.Linear, bits: int, name: str) -> PackedLinear:
        try:
            return PackedLinear.from_linear(linear, bits, self.group, self.bf16, self.int8 and bits < 16)
        except HastenError as error:
            raise HastenError(f"{name}: {error}") from error

    def rewrite(self, workload: Workload) -> Workload:
        weights = dict(workload.weights)
        tables = _embedding_tables(workload)

        def change(phase: Phase, draft: Draft) -> None:
            for i, e in enumerate(draft.einsums):
                weight = _weight(draft, e)
                if weight is None:
                    continue
                head = e.module.endswith("lm_head")
                tied = head and weight in tables
                if e.op is Op.GATHER:
                    if self.head_bits and weight in tables and _tied(workload, weight):
                        draft.einsums[i] = self._gather(draft, e, weight, weights)
                elif not head:
                    draft.einsums[i] = self._product(draft, e, weight, self.bits, weights)
                elif self.head_bits:
                    assert tied or weight.endswith("lm_head.weight")
                    draft.einsums[i] = self._product(draft, e, weight, self.head_bits, weights)

        changed = edit(workload, change)
        return replace(changed, weights=weights)

    def _pieces(self, draft: Draft, weight: str, bits: int, weights: dict[str, int]) -> list[Tensor]:
        known = draft.tensors[weight]
        rows, columns = known.shape
        base = weight.removesuffix(".weight")
        pieces = [Tensor(f"{base}.packed", known.shape, _STORED[bits], Role.WEIGHT)]
        if bits != 16:
            pieces.append(Tensor(f"{base}.scales", (rows, columns // self.group), "fp16", Role.WEIGHT))
        if bits == 4:
            pieces.append(Tensor(f"{base}.mins", (rows, columns // self.group), "fp16", Role.WEIGHT))
        weights.pop(weight, None)
        for piece in pieces:
            draft.tensors[piece.name] = piece
            weights[piece.name] = piece.nbytes
        return pieces

    def _product(self, draft: Draft, e: Einsum, weight: str, bits: int, weights: dict[str, int]) -> Einsum:
        packed, *scales = self._pieces(draft, weight, bits, weights)
        sizes = e.sizes
        ranks = (("m", sizes["m"] * sizes.get("b", 1)), ("n", sizes["n"]), ("k", sizes["k"]))
        inputs = (
            Access(e.inputs[0].tensor, ("m", "k"), e.inputs[0].elements),
            Access(packed.name, ("k", "n")),
            *(Access(s.name, ("n", "k"), s.elements) for s in scales),
        )
        output = Access(e.output.tensor, ("m", "n"))
        product = "mul-bf16" if self.bf16 and ranks[0][1] > FEW_ROWS else "mul"
        return replace(e, ranks=ranks, inputs=inputs, output=output, map=product, source="hasten::packed_linear")

    def _gather(self, draft: Draft, e: Einsum, weight: str, weights: dict[str, int]) -> Einsum:
        packed, *scales = self._pieces(draft, weight, self.head_bits, weights)
        table, *ids = e.inputs
        touched = min(e.points, packed.elements)
        inputs = (
            replace(table, tensor=packed.name),
            *(Access(s.name, table.ranks, -(-touched // self.group)) for s in scales),
            *ids,
        )
        return replace(e, inputs=inputs, map="dequantize", source="hasten::packed_embedding")

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        native = fast_bf16()
        plain = [cls(bits, head, bf16=native) for bits, head in ((16, 16), (8, 8), (4, 8), (4, 4))]
        return plain + [cls(bits, head, bf16=native, int8=True) for bits, head in ((8, 8), (4, 8), (4, 4))]


def _with_heads(model: Any) -> list[Any]:
    """The networks within ``model`` whose head is a linear layer."""
    return [m for m in model.modules() if isinstance(getattr(m, "lm_head", None), nn.Linear)]


def _own_forward(module: nn.Module) -> bool:
    """Whether a class derived from torch's layer computes something else than that."""
    base = nn.Linear if isinstance(module, nn.Linear) else nn.Embedding
    return type(module).forward is not base.forward


def _like(table: nn.Embedding, head: PackedLinear) -> PackedEmbedding:
    scale = getattr(table, "embed_scale", None)
    empty = PackedEmbedding(0, table.embedding_dim, bits=head.bits, group=head.group, scale=scale)
    empty.num_embeddings = table.num_embeddings
    return empty.tie(head)


def _weight(draft: Draft, e: Einsum) -> str | None:
    """The weight matrix that ``e`` multiplies by or reads rows of."""
    if e.op not in (Op.MATMUL, Op.GATHER) or e.source.startswith("hasten::"):
        return None
    for access in e.inputs:
        known = draft.tensors[access.tensor]
        if known.role is Role.WEIGHT and known.name.endswith(".weight") and len(known.shape) == 2:
            return known.name
    return None


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
