"""Networks run by a compiler or by another library's engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import nn

from hasten.errors import HastenError
from hasten.methods.fold_normalization import FoldNormalization
from hasten.methods.network_formats import narrow_numbers
from hasten.methods.network_method import NetworkMethod
from hasten.methods.network_products import products_in_int8
from hasten.runtime.engines import (
    ONNX,
    ONNX_INT8,
    OPENVINO,
    CompiledEngine,
    OnnxEngine,
    OpenVinoEngine,
    cpp_compiler,
    fused,
)
from hasten.runtime.network import Network, NetworkEngine
from hasten.workload.einsum import Workload

# What a compiler takes for a module of a network, so that none is begun that would end long after the budget.
_COMPILE_SECONDS = 0.15
# What an engine takes to read a network, and what exports to its format take that are not there yet.
_READ_SECONDS = 1.0
_EXPORT_SECONDS = {ONNX: 0.5, ONNX_INT8: 2.5, OPENVINO: 2.5}
# What changes a module in ways that an engine does better by itself, or cannot read.
_OWN = ("fold-normalization", "channels-last", "bf16-network", "weight-only", "int8-products")


class EngineMethod(NetworkMethod):
    """A network run as one program, which folds normalizations and keeps what is read at once in the caches."""

    kind: ClassVar[str] = "engine"
    order: ClassVar[int] = 90
    whole: ClassVar[bool] = True
    package: ClassVar[str] = ""

    def engine(self, network: Network, described: Callable[[Workload], Workload]) -> NetworkEngine:
        """What runs the network.

        Args:
            network: as other methods left it.
            described: what the program computes where the module computes a workload.
        """
        raise NotImplementedError

    def why_not_network(self, network: Network) -> str | None:
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed: run pip install 'hasten[{self.package}]'"
        return None

    def change(self, network: Network) -> None:
        network.replace_engine(self.engine(network, self.rewrite))

    @property
    def formats(self) -> tuple[str, ...]:
        """What a network is exported to on its way."""
        return ()

    def seconds_to_apply(self, model: Any) -> float:
        known = model.derived if isinstance(model, Network) else {}
        return _READ_SECONDS + sum(_EXPORT_SECONDS[f] for f in self.formats if f not in known)


def _folded(workload: Workload) -> Workload:
    folding = FoldNormalization()
    return workload if folding.why_not_described(workload) else folding.rewrite(workload)


@dataclass(frozen=True)
class Compiled(EngineMethod):
    """torch.compile with weights frozen, where a C++ compiler is there."""

    name: ClassVar[str] = "compile"
    source: ClassVar[str] = "PyTorch 2, ASPLOS 2024, 10.1145/3620665.3640366"

    @property
    def title(self) -> str:
        return "torch.compile"

    def why_not_network(self, network: Network) -> str | None:
        return None if cpp_compiler() else "there is no C++ compiler: install g++ or clang++"

    def engine(self, network: Network, described: Callable[[Workload], Workload]) -> NetworkEngine:
        return CompiledEngine(network, described)

    def seconds_to_apply(self, model: Any) -> float:
        parts = sum(1 for m in model.module.modules() if not any(True for _ in m.children()))
        return 5.0 + _COMPILE_SECONDS * parts if isinstance(model.module, nn.Module) else 0.0

    def rewrite(self, workload: Workload) -> Workload:
        return fused(workload, self.full_name)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls()] if isinstance(model, Network) else []


@dataclass(frozen=True)
class OnnxRuntime(EngineMethod):
    """ONNX Runtime, for inputs of the shapes that the network was tuned with.

    Args:
        int8: weights and inputs of products in int8, scales found on the example inputs.
    """

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"
    conflicts: ClassVar[tuple[str, ...]] = _OWN
    source: ClassVar[str] = "ONNX Runtime, https://onnxruntime.ai"

    int8: bool = False

    @property
    def title(self) -> str:
        return "ONNX Runtime" + (" int8" if self.int8 else "")

    def why_not_network(self, network: Network) -> str | None:
        if self.int8 and importlib.util.find_spec("onnx") is None:
            return "onnx is not installed: run pip install 'hasten[onnxruntime]'"
        return super().why_not_network(network)

    @property
    def formats(self) -> tuple[str, ...]:
        return (ONNX, ONNX_INT8) if self.int8 else (ONNX,)

    def engine(self, network: Network, described: Callable[[Workload], Workload]) -> NetworkEngine:
        return OnnxEngine(network, self.int8, described)

    def rewrite(self, workload: Workload) -> Workload:
        workload = _folded(workload)
        return fused(products_in_int8(workload) if self.int8 else workload, self.full_name)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls(), cls(True)] if isinstance(model, Network) else []


@dataclass(frozen=True)
class OpenVino(EngineMethod):
    """OpenVINO, for inputs of the shapes that the network was tuned with.

    Args:
        numbers: ``fp32``, ``bf16``, or ``int8`` for weights and inputs of products; for int8 ONNX Runtime must be
            installed too, whose tools find the scales on the example inputs.

    Raises:
        HastenError: other numbers.
    """

    name: ClassVar[str] = "openvino"
    package: ClassVar[str] = "openvino"
    conflicts: ClassVar[tuple[str, ...]] = _OWN
    source: ClassVar[str] = "OpenVINO, https://docs.openvino.ai"

    numbers: Literal["fp32", "bf16", "int8"] = "fp32"

    def __post_init__(self) -> None:
        if self.numbers not in ("fp32", "bf16", "int8"):
            raise HastenError(f"openvino computes in fp32, bf16 or int8, not {self.numbers!r}")

    @property
    def title(self) -> str:
        return "OpenVINO" + ("" if self.numbers == "fp32" else f" {self.numbers}")

    def why_not_network(self, network: Network) -> str | None:
        needed = ("onnxruntime", "onnx") if self.numbers == "int8" else ()
        missing = [n for n in needed if importlib.util.find_spec(n) is None]
        if missing:
            return f"{missing[0]} finds the scales of int8 and is not installed: run pip install 'hasten[onnxruntime]'"
        return super().why_not_network(network)

    @property
    def formats(self) -> tuple[str, ...]:
        return (ONNX, ONNX_INT8) if self.numbers == "int8" else (OPENVINO,)

    def engine(self, network: Network, described: Callable[[Workload], Workload]) -> NetworkEngine:
        return OpenVinoEngine(network, self.numbers, described)

    def rewrite(self, workload: Workload) -> Workload:
        workload = _folded(workload)
        if self.numbers == "bf16":
            workload = narrow_numbers(workload, "bf16")
        return fused(products_in_int8(workload) if self.numbers == "int8" else workload, self.full_name)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls(n) for n in ("fp32", "bf16", "int8")] if isinstance(model, Network) else []
