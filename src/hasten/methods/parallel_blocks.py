"""A network's residual blocks side by side in place of one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hasten.errors import HastenError, users_code
from hasten.methods.network_method import NetworkMethod
from hasten.models.parallel_blocks import parallelize, residual_runs, short_sight
from hasten.runtime.network import Network
from hasten.workload.einsum import Workload


@dataclass(frozen=True)
class ParallelBlocks(NetworkMethod):
    """Residual blocks that follow each other read the same input, alike ones as one broad layer: fewer steps wait for
    each other. Answers move by the terms that are left out, `hasten.models.parallelize`.

    Args:
        together: blocks side by side, from 2.

    Raises:
        HastenError: fewer than 2.
    """

    name: ClassVar[str] = "parallel-blocks"
    kind: ClassVar[str] = "depth"
    order: ClassVar[int] = 10
    source: ClassVar[str] = "shallow networks, arXiv 2309.08414"

    together: int = 2

    def __post_init__(self) -> None:
        if self.together < 2:
            raise HastenError(f"from 2 blocks on stand side by side, not {self.together}")

    @property
    def title(self) -> str:
        return f"{self.together} blocks side by side"

    def why_not_network(self, network: Network) -> str | None:
        if residual_runs(network.module, network.inputs.args, network.inputs.kwargs):
            return None
        return "no residual blocks follow each other in it"

    def change(self, network: Network) -> None:
        inputs = network.inputs
        network.module = parallelize(network.module, inputs.args, inputs.kwargs, together=self.together, fused=True)

    def rewrite(self, workload: Workload) -> Workload:
        """The same: weights and products stay what they were, in fewer layers that wait for each other."""
        return workload

    def remarks(self, workload: Workload) -> Sequence[str]:
        said = [f"{self.title}: the same products, fewer of them one after the other, which no prediction sees"]
        sources = {e.source for phase in workload.phases for e in phase.cascade.einsums}
        if any("conv" in source for source in sources):
            said.append(
                f"{self.title}: each position of a map sees less of an image, too little perhaps for a head that"
                " averages them: hasten.models.parallelize warns of that"
            )
        return said

    def cautions(self, model: Any) -> Sequence[str]:
        if not isinstance(model, Network):
            return ()
        changed = self.apply(model.twin())
        with users_code("looking at it fails"):
            said = short_sight(model.module, changed.module, model.inputs.args, model.inputs.kwargs)
        return [f"{self.title}: {said}"] if said else []

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls()] if isinstance(model, Network) else []
