"""Two of every four weights left out, with regard to what comes in (SparseGPT, Wanda; the first step of AccLLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.methods.method import Method
from hasten.methods.sparse_low_bit import calibration, compress, not_compressible, solver
from hasten.workload.einsum import Workload

SOLVERS = ("sparsegpt", "wanda", "magnitude")


@dataclass(frozen=True)
class TwoOfFour(Method):
    """2:4 semi-structured pruning of every linear layer within the decoder layers.

    Weights stay in their format, zeros among them: hardware with sparse units runs them faster, others do not. The
    packed form with two bits is `SparseLowBit`.

    Args:
        by: ``sparsegpt`` lets the weights that stay make up for those that go, ``wanda`` chooses by size times the
            input's norm, ``magnitude`` by size alone.
        sequences, length: of the calibration text.
    """

    name: ClassVar[str] = "two-of-four"
    kind: ClassVar[str] = "pruning"
    order: ClassVar[int] = 15
    conflicts: ClassVar[tuple[str, ...]] = ("sparse-low-bit",)
    untried: ClassVar[str] = "seconds of calibration a trial, and nothing here runs sparse weights faster"
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"2:4": {}}
    source: ClassVar[str] = "AccLLM, arXiv 2505.03745; SparseGPT, arXiv 2301.00774; Wanda, arXiv 2306.11695"

    by: str = "sparsegpt"
    sequences: int = 10
    length: int = 512

    def __post_init__(self) -> None:
        if self.by not in SOLVERS:
            raise HastenError(f"2:4 pruning goes by one of {', '.join(SOLVERS)}, not {self.by!r}")
        if self.sequences < 1 or self.length < 1:
            raise HastenError("calibration takes at least one sequence of one token")

    @property
    def title(self) -> str:
        return f"2:4 sparse by {self.by}"

    def why_not(self, model: Any) -> str | None:
        if (why := not_compressible(model, 4, "fours")) is not None:
            return why
        if all(_is_sparse(m.weight) for m in model.layers.modules() if isinstance(m, nn.Linear)):
            return "its weights are 2:4 sparse already"
        return "it has no tokenizer to calibrate with" if model.tokenizer is None else None

    def apply(self, model: Any) -> Any:
        self.check(model)
        compress(model, calibration(model, self.sequences, self.length), solver(self.by))
        return model

    def rewrite(self, workload: Workload) -> Workload:
        """The same: zeros are stored and multiplied like other numbers."""
        return workload

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        """None, see ``untried``."""
        return []


def _is_sparse(weight: torch.Tensor) -> bool:
    return int((weight.detach().unflatten(1, (-1, 4)) != 0).sum(-1).max()) <= 2
