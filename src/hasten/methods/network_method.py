"""What methods for networks that are no language models share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import nn

from hasten.errors import HastenError, users_code
from hasten.methods.method import NETWORK, Method
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.network import Network, quietly
from hasten.workload.einsum import Workload

FUSED = "engine"
"""Attribute of a workload that one program computes: which."""


def let_layers_be_called(module: nn.Module) -> None:
    """Has torch's own encoder layers call what is in them, whose weights they read by themselves otherwise."""
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.register_forward_pre_hook(_nothing)


def _nothing(module: nn.Module, given: Any) -> None:
    """A hook that does nothing: where somebody listens, every layer is called."""


class NetworkMethod(Method):
    """A change to a `hasten.runtime.Network`: any module with example inputs."""

    subjects: ClassVar[tuple[str, ...]] = (NETWORK,)
    untried: ClassVar[str] = "it is for networks that are no language models"

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, Network):
            kind = "a language model" if isinstance(model, LanguageModel) else "no network with example inputs"
            return f"it is {kind}: this is for a hasten.runtime.Network"
        if model.engine is not None:
            return "an engine runs it already"
        try:  # whoever looks at a network by running parts of it runs its user's code
            with users_code("looking at it fails"):
                return self.why_not_network(model)
        except HastenError as error:
            return str(error)

    def why_not_network(self, network: Network) -> str | None:
        """Why it cannot be applied to a network that no engine runs; None when it can."""
        return None

    def apply(self, model: Any) -> Any:
        self.check(model)
        with users_code(f"{self.title} cannot be applied to {model.name}"), quietly():
            self.change(model)
            model.derived = {}  # they were another module's
        return model

    @abstractmethod
    def change(self, network: Network) -> None:
        """Changes the network's module or gives it an engine; tensors that it shares with others stay as they are."""

    def why_not_described(self, workload: Workload) -> str | None:
        if [p.name for p in workload.phases] != ["forward"]:
            return "it is a language model's workload"
        return "an engine runs it already" if workload.attributes.get(FUSED) else None
