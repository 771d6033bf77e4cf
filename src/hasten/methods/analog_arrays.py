"""Linear layers on analogue arrays of resistive memory."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from hasten.cost.chips.crossbar import ANALOG, CrossbarCost, analog_layers, crossbar_cost
from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import Crossbar, CrossbarChip
from hasten.methods.described_model import WeightProduct, is_router, product_of
from hasten.methods.editing import Draft, edit
from hasten.methods.method import LANGUAGE_MODEL, NETWORK, Method
from hasten.methods.network_method import FUSED, let_layers_be_called
from hasten.nn.analog import AnalogLinear
from hasten.runtime.network import Network
from hasten.workload.einsum import Access, Einsum, Phase, Role, Tensor, Workload

_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True)
class AnalogArrays(Method):
    """Linear layers whose weights are conductances of pairs of cells, read in tiles through converters.

    Which cells are off, and by how much, is drawn from the seed and a layer's path. A read is without noise, so that
    answers do not turn on what else is in a batch; within `hasten.nn.noisy_reads` each has its own. A decoder's output
    head, layers whose weight is another module's too, such as a table of tokens, what chooses among experts, and
    convolutions stay digital.

    Args:
        read_noise, adc_bits, input_bits, unformed, programming_noise, rows, columns, adc_range, drift, drift_spread,
            age: as in `hasten.hardware.chips.crossbar.Crossbar`.
        seed: of what programming leaves to chance.
    """

    name: ClassVar[str] = "analog"
    kind: ClassVar[str] = "weights"
    order: ClassVar[int] = 45
    conflicts: ClassVar[tuple[str, ...]] = ("sparse-low-bit",)
    subjects: ClassVar[tuple[str, ...]] = (LANGUAGE_MODEL, NETWORK)
    untried: ClassVar[str] = "arrays are computed here, not read: it can only be slower"
    source: ClassVar[str] = "in-memory products of ISAAC, ISCA 2016; random conductances of arXiv 2307.00771"

    read_noise: float = 0.0
    adc_bits: int = 8
    input_bits: int = 8
    unformed: float = 0.0
    programming_noise: float = 0.0
    rows: int = 512
    columns: int = 512
    adc_range: float = 1.0
    drift: float = 0.0
    drift_spread: float = 0.0
    age: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.crossbar  # which refuses what no crossbar is
        if self.seed < 0:
            raise HastenError(f"a seed is not below 0: {self.seed}")

    @property
    def crossbar(self) -> Crossbar:
        """The settings without the seed."""
        return Crossbar(**{f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"})

    @property
    def title(self) -> str:
        plain = Crossbar()
        named = {"adc_bits": "{} bit converters", "input_bits": "{} bit inputs", "read_noise": "read noise {:.3g}"}
        changed = [f for f in fields(Crossbar) if getattr(self.crossbar, f.name) != getattr(plain, f.name)]
        told = [
            named.get(f.name, f"{f.name.replace('_', ' ')} {{:.4g}}").format(getattr(self.crossbar, f.name))
            for f in changed
        ]
        return ", ".join(["analogue arrays", *told, *([f"seed {self.seed}"] if self.seed else [])])

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, nn.Module):
            return "it is no module"
        if isinstance(model, Network) and model.engine is not None:
            return "an engine runs it already"
        if any(isinstance(part, AnalogLinear) for part in model.modules()):
            return "it is on analogue arrays already"
        if isinstance(model, nn.Linear):
            return "it is a linear layer by itself, which cannot be changed in place: AnalogLinear.from_linear takes it"
        return None if _places(model) else "it has no linear layers in floating point beside a head"

    def apply(self, model: Any) -> Any:
        self.check(model)
        found = _places(model)
        made = {layer: self._made(layer, places[0][0]) for layer, places in found.items()}
        for layer, places in found.items():
            for _, parent, name in places:
                setattr(parent, name, made[layer])
        let_layers_be_called(model)
        if isinstance(model, Network):
            model.derived = {}  # they were another module's
        return model

    def _made(self, layer: nn.Linear, path: str) -> AnalogLinear:
        # A layer draws the same whatever else is in the model; torch's generators take 32 bits of a seed.
        inner = path.removeprefix("module.").removeprefix("network.")
        seed = zlib.crc32(f"{self.seed} {inner}".encode())
        try:
            return AnalogLinear.from_linear(layer, self.crossbar, seed)
        except HastenError as error:
            raise HastenError(f"{path}: {error}") from error

    def why_not_described(self, workload: Workload) -> str | None:
        if workload.attributes.get(FUSED):
            return "an engine runs it already"
        drafts, shared = [Draft(phase.cascade) for phase in workload.phases], _shared(workload)
        found = any(_product(d, e, workload, shared) for d in drafts for e in d.einsums)
        return None if found else "it has no linear layers"

    def rewrite(self, workload: Workload) -> Workload:
        weights, shared = dict(workload.weights), _shared(workload)

        def change(phase: Phase, draft: Draft) -> None:
            for i, e in enumerate(draft.einsums):
                if (found := _product(draft, e, workload, shared)) is not None:
                    draft.einsums[i] = _read(draft, e, found, weights)

        return replace(edit(workload, change), weights=weights)

    def remarks(self, workload: Workload) -> Sequence[str]:
        return ("analogue arrays are priced as this computer computes them: ask for a chip of them, as --on isaac",)

    def cost(self, workload: Workload, chip: CrossbarChip, *, active: float = 1.0) -> CrossbarCost:
        """What the linear layers of a described model cost on a chip; all else of it is left out. Inputs without codes
        are read once, as events are.

        Args:
            workload: before or after `rewrite`.
            active: share of the inputs' bits that are 1.

        Raises:
            HastenError: it has no linear layers, or the chip has too few tiles.
        """
        changed = self.rewrite(workload)
        layers = analog_layers(changed)
        if not layers:
            raise HastenError(f"{workload.name} has no linear layers for analogue arrays")
        return crossbar_cost(layers, chip, input_bits=self.input_bits or 1, active=active)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        """None, see ``untried``."""
        return []


def _places(model: nn.Module) -> dict[nn.Linear, list[tuple[str, nn.Module, str]]]:
    """Layers that can be replaced -> (path, parent, name) of each place that they stand in.

    What derives from torch's layer may have a forward of its own, or a parent that reads its weight.
    """
    found: dict[nn.Linear, list[tuple[str, nn.Module, str]]] = {}
    owned = Counter(id(p) for part in model.modules() for p in part._parameters.values())
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if type(child) is not nn.Linear or child.weight.dtype not in _FORMATS.values() or name in _HEADS:
                continue
            if owned[id(child.weight)] > 1 or not child.weight.numel():
                continue
            if not (hasattr(parent, "experts") and is_router(name)):
                found.setdefault(child, []).append((f"{path}.{name}" if path else name, parent, name))
    return found


def _shared(workload: Workload) -> frozenset[str]:
    """Weights that are read by another module than their own, and than those that it is a part of."""
    found = set()
    for phase in workload.phases:
        tensors = phase.cascade.tensors
        for e in phase.cascade.einsums:
            for a in e.inputs:
                owner = a.tensor.rpartition(".")[0]
                within = not e.module or f"{owner}.".startswith(f"{e.module}.")
                if tensors[a.tensor].role is Role.WEIGHT and not within:
                    found.add(a.tensor)
    return frozenset(found)


def _product(draft: Draft, e: Einsum, workload: Workload, shared: frozenset[str]) -> WeightProduct | None:
    """The weight of a linear layer that ``e`` multiplies by; None where it is no product by one."""
    head = e.module.rpartition(".")[2] in _HEADS
    found = None if head or e.source.startswith("hasten::") else product_of(draft, e)
    if found is None or len(found.weight.shape) != 2 or found.weight.dtype not in _FORMATS:
        return None
    if found.weight.name in shared or not found.weight.elements:
        return None
    # A layer's own weight; what a module reads of another one's, or makes of a weight first, has another name.
    own = found.weight.name == f"{e.module}.weight".removeprefix(".")
    if not own or e.touched(found.access) != found.weight.elements or {"m", "n", "k"} - e.sizes.keys():
        return None
    owner, _, last = found.base.rpartition(".")
    mixture = any(name.startswith(f"{owner}.experts.") for name in workload.weights)
    return None if mixture and is_router(last) else found


def _read(draft: Draft, e: Einsum, found: WeightProduct, weights: dict[str, int]) -> Einsum:
    out, base = found.weight.shape[0], found.base
    cells = [Tensor(f"{base}.{name}", found.weight.shape, "fp32", Role.WEIGHT) for name in ("positive", "negative")]
    gain = Tensor(f"{base}.gain", (out,), "fp32", Role.WEIGHT)
    weights.pop(found.weight.name, None)
    for piece in (*cells, gain):
        draft.tensors[piece.name] = piece
        weights[piece.name] = piece.nbytes
    sizes = e.sizes
    given = next(a for a in e.inputs if a.tensor != found.weight.name)
    inputs = (
        Access(given.tensor, ("m", "k"), given.elements),
        *(Access(piece.name, ("k", "n")) for piece in cells),
        Access(gain.name, ("n",)),
    )
    ranks = (("m", sizes["m"] * sizes.get("b", 1)), ("n", sizes["n"]), ("k", sizes["k"]))
    return replace(e, ranks=ranks, inputs=inputs, output=Access(e.output.tensor, ("m", "n")), map="mul", source=ANALOG)
